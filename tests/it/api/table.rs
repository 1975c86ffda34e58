//! The KES API as one table: routes × methods × callers × names × bodies, against a model of KES's specification.
//!
//! [`model`] knows KES's specification and none of our code: the model writes routes, texts and rules out once more, so that a slip in our
//! code is not repeated here. [`requests`] has the names and bodies that are sent, [`answers`] holds an answer against the model's.

mod answers;
mod bodies;
mod certificates;
mod matrix;
mod model;
mod paths;
mod policies;
mod requests;

use crate::harness::{App, Client, admin_key, api_key};
use keswarden::identity::ApiKey;

/// Key material 7431…9445, HMAC key 00…1f, made on 2023-11-14 by "someone"; written with another protobuf encoder.
const AES_KEY: &str = concat!(
    "CiQKIHQx201oKPmId7vNOEmAeTslTMukYi3iWAULYdX+ipRFEAESJAogAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8QARoGCIDiz6oG",
    "Igdzb21lb25l"
);
const CHACHA_KEY: &str = concat!(
    "CiQKIHQx201oKPmId7vNOEmAeTslTMukYi3iWAULYdX+ipRFEAISJAogAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8QARoGCIDiz6oG",
    "Igdzb21lb25l"
);
/// The same material as KES kept keys in 2021: without an HMAC key, and without the identity that made the key.
const LEGACY_KEY: &str =
    r#"{"bytes":"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=","created_at":"2021-01-02T03:04:05.1Z"}"#;

/// The HMAC of "hello" and of nothing, by another implementation.
const MAC_OF_HELLO: &str = "{\"hmac\":\"U8QCcqcMFcpO4K9N8fFV/WxB4AziMH2Jh+zUuzan6ZA=\"}\n";
const MAC_OF_NOTHING: &str = "{\"hmac\":\"04tCCW2A9F+Ca0Sp1WB95ySWpBXT9KGoyI47udqNwcs=\"}\n";
/// The plaintext of the ciphertexts below (vectors kes-decrypt-6 and -7 of the reference).
const OPENED: &str = "{\"plaintext\":\"CLcJoykFCWZDkEIiUq9bJRqwCwW9ZDvdgu8EMA==\"}\n";
const SEALED_AES: &str = concat!(
    r#"{"ciphertext":"s2gmfQHeGdlyL8x1yEWSACUV3GrSoz3t160hugMgzKWgyqesXDVUJ5Dw5Mt076rR1PNiU9X4YjLH14D8a81t2r2xsz4gVZac","#,
    r#""context":"AAAAAAAAAAAAAAAAAAAAAA=="}"#
);
const SEALED_CHACHA: &str = concat!(
    r#"{"ciphertext":"gO4woRIswAJdjUjW7z2ApsSQxJlwB24yjLrmH4eI7sB0uh5nfEJfk9ybTPFft5FRFaZCVBmzhx7OJs9n0WWtxH3sySIxecIK","#,
    r#""context":"AAAAAAAAAAAAAAAAAAAAAA=="}"#
);

/// The key store's content: two good keys, one without an HMAC key, one that cannot be read.
const STORED: [(&str, &str); 4] =
    [("kept", AES_KEY), ("kept-chacha", CHACHA_KEY), ("legacy", LEGACY_KEY), ("broken", "no key at all")];

const NOT_ALLOWED: &str = "not authorized: insufficient permissions";
const NO_CERTIFICATE: &str = "tls: client certificate is required";
const TWO_CERTIFICATES: &str = "tls: received more than one client certificate";

/// The caller of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// A caller without a certificate: `skip_auth` on one route makes certificates optional on all.
    Nobody,
    Stranger,
    /// Its policy allows everything, and denies everything.
    Denied,
    /// Its policy speaks of other paths.
    Unmentioned,
    Allowed,
    Admin,
}

impl Who {
    fn key(self) -> Option<ApiKey> {
        match self {
            Self::Nobody => None,
            Self::Stranger => Some(api_key(11)),
            Self::Denied => Some(api_key(12)),
            Self::Unmentioned => Some(api_key(13)),
            Self::Allowed => Some(api_key(14)),
            Self::Admin => Some(admin_key()),
        }
    }

    fn identity(self) -> String {
        self.key().map_or_else(String::new, |key| key.identity().as_str().to_owned())
    }

    fn may(self) -> bool {
        matches!(self, Self::Allowed | Self::Admin)
    }
}

fn config() -> String {
    format!(
        "api:
  /v1/ready:
    skip_auth: true
policy:
  app:
    allow: [\"/v1/*\"]
    identities: [\"{}\"]
  beaten:
    allow: [\"/v1/*\"]
    deny: [\"/v1/*\"]
    identities: [\"{}\"]
  narrow:
    allow: [\"/v1/elsewhere/*\", \"/v1/key\"]
    identities: [\"{}\"]
",
        Who::Allowed.identity(),
        Who::Denied.identity(),
        Who::Unmentioned.identity()
    )
}

fn serving() -> App {
    let kes = App::server(&config());
    for (name, text) in STORED {
        kes.store.put(name, text);
    }
    kes
}

/// A client of each protocol, and whether it speaks HTTP/1.1.
fn clients(kes: &App, who: Who) -> [(Client, bool); 2] {
    [true, false].map(|http1| (kes.client(who.key().as_ref(), http1), http1))
}

fn version_of(http1: bool) -> &'static str {
    if http1 { "HTTP/1.1" } else { "HTTP/2.0" }
}
