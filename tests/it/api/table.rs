//! The KES API as one table: routes × methods × callers × names × bodies, against a model of the spec's pipeline.
//!
//! The model knows kes-spec §1 and §2 and none of our code: it writes routes, texts and rules out once more, so that a slip
//! in ours is not repeated here.

use crate::{
    harness::{Client, Reply, base64, block_on},
    kes_server::Kes,
};
use keswarden::identity::ApiKey;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::{Value, json};
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

// === the world that the table is about ===

/// Key material 7431…9445, HMAC key 00…1f, made on 2023-11-14 by "someone"; written with another protobuf encoder.
const AES_KEY: &str = concat!(
    "CiQKIHQx201oKPmId7vNOEmAeTslTMukYi3iWAULYdX+ipRFEAESJAogAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8QARoGCIDiz6oG",
    "Igdzb21lb25l"
);
const CHACHA_KEY: &str = concat!(
    "CiQKIHQx201oKPmId7vNOEmAeTslTMukYi3iWAULYdX+ipRFEAISJAogAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8QARoGCIDiz6oG",
    "Igdzb21lb25l"
);
/// The same material as KES kept it in 2021: no HMAC key, nobody who made it.
const LEGACY_KEY: &str =
    r#"{"bytes":"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=","created_at":"2021-01-02T03:04:05.1Z"}"#;

/// What `hmac` says of "hello" and of nothing, by another implementation of HMAC.
const MAC_OF_HELLO: &str = "{\"hmac\":\"U8QCcqcMFcpO4K9N8fFV/WxB4AziMH2Jh+zUuzan6ZA=\"}\n";
const MAC_OF_NOTHING: &str = "{\"hmac\":\"04tCCW2A9F+Ca0Sp1WB95ySWpBXT9KGoyI47udqNwcs=\"}\n";
/// What the ciphertexts below hold (vectors kes-decrypt-6 and -7 of the reference).
const OPENED: &str = "{\"plaintext\":\"CLcJoykFCWZDkEIiUq9bJRqwCwW9ZDvdgu8EMA==\"}\n";
const SEALED_AES: &str = concat!(
    r#"{"ciphertext":"s2gmfQHeGdlyL8x1yEWSACUV3GrSoz3t160hugMgzKWgyqesXDVUJ5Dw5Mt076rR1PNiU9X4YjLH14D8a81t2r2xsz4gVZac","#,
    r#""context":"AAAAAAAAAAAAAAAAAAAAAA=="}"#
);
const SEALED_CHACHA: &str = concat!(
    r#"{"ciphertext":"gO4woRIswAJdjUjW7z2ApsSQxJlwB24yjLrmH4eI7sB0uh5nfEJfk9ybTPFft5FRFaZCVBmzhx7OJs9n0WWtxH3sySIxecIK","#,
    r#""context":"AAAAAAAAAAAAAAAAAAAAAA=="}"#
);

/// What is in the key store: two good keys, one without an HMAC key, one that cannot be read.
const STORED: [(&str, &str); 4] =
    [("kept", AES_KEY), ("kept-chacha", CHACHA_KEY), ("legacy", LEGACY_KEY), ("broken", "no key at all")];

const NOT_ALLOWED: &str = "not authorized: insufficient permissions";
const NO_CERTIFICATE: &str = "tls: client certificate is required";
const TWO_CERTIFICATES: &str = "tls: received more than one client certificate";

/// Who calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    /// Without a certificate: `skip_auth` on one route makes it optional for all.
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
            Self::Stranger => Some(Kes::key(11)),
            Self::Denied => Some(Kes::key(12)),
            Self::Unmentioned => Some(Kes::key(13)),
            Self::Allowed => Some(Kes::key(14)),
            Self::Admin => Some(Kes::admin()),
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

fn serving() -> Kes {
    let kes = Kes::serving(&config());
    for (name, text) in STORED {
        kes.store.put(name, text);
    }
    kes
}

/// A client of each protocol, and whether it speaks HTTP/1.1.
fn clients(kes: &Kes, who: Who) -> [(Client, bool); 2] {
    [true, false].map(|http1| (kes.client(who.key().as_ref(), http1), http1))
}

fn version_of(http1: bool) -> &'static str {
    if http1 { "HTTP/1.1" } else { "HTTP/2.0" }
}

// === the model: kes-spec §1.2 to §1.8 and §2 ===

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Does {
    Version,
    Ready,
    Status,
    Metrics,
    Api,
    Create,
    Import,
    Describe,
    ListKeys,
    Delete,
    Generate,
    Encrypt,
    Decrypt,
    Hmac,
    DescribePolicy,
    ReadPolicy,
    ListPolicies,
    DescribeIdentity,
    ListIdentities,
    SelfDescribe,
    Log,
}

/// A line of the table of §1.4.
struct Row {
    path: &'static str,
    method: &'static str,
    max_body: u64,
    seconds: u64,
    does: Does,
}

const fn row(path: &'static str, method: &'static str, max_body: u64, seconds: u64, does: Does) -> Row {
    Row { path, method, max_body, seconds, does }
}

const ROWS: [Row; 22] = [
    row("/version", "GET", 0, 10, Does::Version),
    row("/v1/ready", "GET", 0, 15, Does::Ready),
    row("/v1/status", "GET", 0, 15, Does::Status),
    row("/v1/metrics", "GET", 0, 15, Does::Metrics),
    row("/v1/api", "GET", 0, 10, Does::Api),
    row("/v1/key/create/", "PUT", 0, 15, Does::Create),
    row("/v1/key/import/", "PUT", 1_000_000, 15, Does::Import),
    row("/v1/key/describe/", "GET", 0, 15, Does::Describe),
    row("/v1/key/list/", "GET", 0, 15, Does::ListKeys),
    row("/v1/key/delete/", "DELETE", 0, 15, Does::Delete),
    row("/v1/key/generate/", "PUT", 1_000_000, 15, Does::Generate),
    row("/v1/key/encrypt/", "PUT", 1_000_000, 15, Does::Encrypt),
    row("/v1/key/decrypt/", "PUT", 1_000_000, 15, Does::Decrypt),
    row("/v1/key/hmac/", "PUT", 1_000_000, 15, Does::Hmac),
    row("/v1/policy/describe/", "GET", 0, 15, Does::DescribePolicy),
    row("/v1/policy/read/", "GET", 0, 15, Does::ReadPolicy),
    row("/v1/policy/list/", "GET", 0, 15, Does::ListPolicies),
    row("/v1/identity/describe/", "GET", 0, 15, Does::DescribeIdentity),
    row("/v1/identity/list/", "GET", 0, 15, Does::ListIdentities),
    row("/v1/identity/self/describe", "GET", 0, 15, Does::SelfDescribe),
    row("/v1/log/error", "GET", 0, 0, Does::Log),
    row("/v1/log/audit", "GET", 0, 0, Does::Log),
];

/// The last one is none that HTTP itself defines.
const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"];

/// What must come back.
#[derive(Debug)]
struct Wanted {
    status: u16,
    accept: Option<&'static str>,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Nothing,
    /// A body as a template: see `fits`.
    Json(String),
    /// An object whose order of members the spec leaves open, apart from its `created_at`.
    Members(Value),
    /// The array of `/v1/api`, in any order.
    Rows,
    Metrics,
}

fn done() -> Wanted {
    Wanted { status: 200, accept: None, content: Content::Nothing }
}

fn json_of(template: impl Into<String>) -> Wanted {
    Wanted { status: 200, accept: None, content: Content::Json(template.into()) }
}

/// The line end comes before the closing brace.
fn refusal_text(message: &str) -> String {
    format!("{{\"message\":\"{message}\"\n}}")
}

fn refused(status: u16, message: &str) -> Wanted {
    Wanted { status, accept: None, content: Content::Json(refusal_text(message)) }
}

fn template_of(then: Then) -> Wanted {
    match then {
        Then::Says("") => done(),
        Then::Says(template) => json_of(template),
        other => unreachable!("{other:?} is no template"),
    }
}

/// What the model is asked about.
struct Call<'a> {
    row: &'a Row,
    who: Who,
    method: &'a str,
    /// Decoded.
    name: &'a str,
    body: &'a Sent,
    /// What the key store holds now.
    keys: &'a BTreeSet<String>,
}

fn takes(row: &Row, method: &str) -> bool {
    method == row.method || (row.method == "PUT" && method == "POST")
}

fn in_alphabet(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_')
}

fn is_name(text: &str) -> bool {
    let length = (1..=80).contains(&text.len());
    let ends = !text.starts_with('-') && !text.ends_with('-');
    length && ends && text != "_" && text.bytes().all(in_alphabet)
}

fn is_pattern(text: &str) -> bool {
    if text.is_empty() || text == "*" {
        return true;
    }
    let ends = !text.starts_with('-') && !text.ends_with('-');
    let (last, others) = text.as_bytes().split_last().unwrap();
    let letters = others.iter().copied().all(in_alphabet) && (*last == b'*' || in_alphabet(*last));
    text.len() <= 80 && ends && text != "_" && letters
}

/// The names that a pattern lists, as JSON.
fn listed<'a>(pattern: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let prefix = pattern.strip_suffix('*').unwrap_or(pattern);
    let names: BTreeSet<_> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    names.join(",")
}

/// Route, method, who, name, body, key, operation: the first that objects decides.
fn expect(call: &Call<'_>) -> Wanted {
    let Call { row, who, method, name, body, keys } = *call;
    if !takes(row, method) {
        let wanted = refused(405, &format!("received method '{method}' expected '{}'", row.method));
        return Wanted { accept: Some(row.method), ..wanted };
    }
    if !matches!(row.does, Does::Version | Does::Ready | Does::SelfDescribe) {
        match who {
            Who::Nobody => return refused(400, NO_CERTIFICATE),
            Who::Stranger | Who::Denied | Who::Unmentioned => return refused(403, NOT_ALLOWED),
            Who::Allowed | Who::Admin => {}
        }
    }
    let bad = "is empty, too long or contains invalid characters";
    let what = match row.does {
        Does::DescribePolicy | Does::ReadPolicy => Some("policy name"),
        Does::DescribeIdentity => Some("identity"),
        Does::Create | Does::Import | Does::Describe | Does::Delete => Some("key name"),
        Does::Generate | Does::Encrypt | Does::Decrypt | Does::Hmac => Some("key name"),
        _ => None,
    };
    if let Some(what) = what.filter(|_| !is_name(name)) {
        return refused(400, &format!("{what} '{name}' {bad}"));
    }
    let lists = matches!(row.does, Does::ListKeys | Does::ListPolicies | Does::ListIdentities);
    if lists && !is_pattern(name) {
        return refused(400, &format!("listing pattern '{name}' is empty, too long or is invalid"));
    }
    let admin = Who::Admin.identity();
    match row.does {
        Does::Version => json_of("{\"version\":\"⟨word⟩\",\"commit\":\"⟨word⟩\"}\n"),
        Does::Ready => done(),
        Does::Status => json_of(concat!(
            "{\"version\":\"⟨word⟩\",\"os\":\"linux\",\"arch\":\"⟨word⟩\",\"uptime\":⟨number⟩,\"num_cpu\":⟨number⟩,",
            "\"num_cpu_used\":⟨number⟩,\"mem_heap_used\":⟨number⟩,\"mem_stack_used\":⟨number⟩,",
            "\"keystore_latency\":⟨number⟩}\n"
        )),
        Does::Metrics => Wanted { content: Content::Metrics, ..done() },
        Does::Api => Wanted { content: Content::Rows, ..done() },
        Does::Create if keys.contains(name) => refused(400, "key already exists"),
        Does::Create => done(),
        Does::Import => match body.then {
            Then::Invalid => refused(400, "invalid import key request body"),
            Then::NotAcceptable(message) => refused(406, message),
            _ if keys.contains(name) => refused(400, "key already exists"),
            _ => done(),
        },
        Does::Describe if !keys.contains(name) => refused(404, "key does not exist"),
        Does::Describe => match name {
            "broken" => refused(502, "failed to read key"),
            "legacy" => json_of(
                "{\"name\":\"legacy\",\"algorithm\":\"AES256\",\"created_at\":\"2021-01-02T03:04:05.1Z\"}\n",
            ),
            _ => {
                let algorithm = if name == "kept-chacha" { "ChaCha20" } else { "AES256" };
                json_of(format!(
                    "{{\"name\":\"{name}\",\"algorithm\":\"{algorithm}\",\"created_at\":\"2023-11-14T22:13:20Z\",\
                     \"created_by\":\"someone\"}}\n"
                ))
            }
        },
        Does::ListKeys => {
            let names = listed(name, keys.iter().map(String::as_str));
            json_of(format!("{{\"names\":[{names}]}}\n"))
        }
        // Off unless the operator says otherwise: ours alone, so that no client can destroy data by default.
        Does::Delete => refused(403, NOT_ALLOWED),
        Does::Generate | Does::Encrypt | Does::Decrypt | Does::Hmac => match (name, body.then) {
            (_, Then::Invalid) => refused(400, "invalid request body"),
            (name, _) if !keys.contains(name) => refused(404, "key does not exist"),
            ("broken", _) => refused(502, "failed to read key"),
            ("legacy", _) if row.does == Does::Hmac => refused(409, "key does not support HMAC"),
            (_, Then::Says(template)) => json_of(template),
            (_, Then::Unauthentic) => refused(400, "decryption failed: ciphertext is not authentic"),
            (_, other) => unreachable!("{other:?} is about importing"),
        },
        Does::DescribePolicy | Does::ReadPolicy => {
            let (allow, deny) = match name {
                "app" => (json!({ "/v1/*": {} }), None),
                "beaten" => (json!({ "/v1/*": {} }), Some(json!({ "/v1/*": {} }))),
                "narrow" => (json!({ "/v1/elsewhere/*": {}, "/v1/key": {} }), None),
                _ => return refused(404, "policy does not exist"),
            };
            if row.does == Does::DescribePolicy {
                return json_of(format!(
                    "{{\"name\":\"{name}\",\"created_at\":\"⟨time⟩\",\"created_by\":\"{admin}\"}}\n"
                ));
            }
            let mut members = json!({ "name": name, "created_by": admin, "allow": allow });
            if let Some(deny) = deny {
                members["deny"] = deny;
            }
            Wanted { content: Content::Members(members), ..done() }
        }
        Does::ListPolicies => {
            let names = listed(name, ["app", "beaten", "narrow"]);
            json_of(format!("{{\"names\":[{names}],\"continue_at\":\"\"}}\n"))
        }
        Does::DescribeIdentity => {
            let assigned = [(Who::Allowed, "app"), (Who::Denied, "beaten"), (Who::Unmentioned, "narrow")];
            let found = assigned.iter().find(|(who, _)| who.identity() == name);
            match found {
                _ if name == admin => json_of("{\"admin\":true,\"created_at\":\"⟨time⟩\"}\n"),
                None => refused(404, "identity does not exist"),
                Some((_, policy)) => json_of(format!(
                    "{{\"policy\":\"{policy}\",\"created_at\":\"⟨time⟩\",\"created_by\":\"{admin}\"}}\n"
                )),
            }
        }
        Does::ListIdentities => {
            let known = [Who::Admin, Who::Allowed, Who::Denied, Who::Unmentioned].map(Who::identity);
            let identities = listed(name, known.iter().map(String::as_str));
            json_of(format!("{{\"identities\":[{identities}],\"continue_at\":\"\"}}\n"))
        }
        Does::SelfDescribe => {
            let everything = json!({ "/v1/*": {} });
            let mut members = match who {
                Who::Nobody | Who::Stranger => return refused(404, "identity does not exist"),
                Who::Admin => {
                    return json_of(format!(
                        "{{\"identity\":\"{admin}\",\"admin\":true,\"created_at\":\"⟨time⟩\"}}\n"
                    ));
                }
                Who::Allowed => json!({ "policy": "app", "allow": everything }),
                Who::Denied => json!({ "policy": "beaten", "allow": everything, "deny": everything }),
                Who::Unmentioned => {
                    json!({ "policy": "narrow", "allow": { "/v1/elsewhere/*": {}, "/v1/key": {} } })
                }
            };
            members["identity"] = who.identity().into();
            members["created_by"] = admin.into();
            Wanted { content: Content::Members(members), ..done() }
        }
        Does::Log => unreachable!("a stream without an end is not asked for"),
    }
}

// === names and bodies ===

/// A name as it is sent.
struct Named {
    sent: String,
    decoded: String,
    /// It is tried with every method and every body; the others only where names matter.
    always: bool,
}

/// Replaced by a name that no key has yet.
const FRESH: &str = "a-fresh-name";

fn names_for(does: Does) -> Vec<Named> {
    let long = |length: usize| "a".repeat(length);
    let starred = |length: usize| format!("{}*", long(length - 1));
    let plain = |text: &str, always: bool| Named { sent: text.to_owned(), decoded: text.to_owned(), always };
    let encoded = |sent: &str, decoded: &str| Named {
        sent: sent.to_owned(),
        decoded: decoded.to_owned(),
        always: false,
    };
    let mut names = vec![
        plain("missing", true),
        plain("bad.name", true),
        plain("", false),
        plain("-a", false),
        plain("a-", false),
        plain("a-a", false),
        plain("_", false),
        plain("__", false),
        plain("_-___---_", false),
        plain("a/b", false),
        plain(&long(80), false),
        plain(&long(81), false),
        encoded("a%2Fb", "a/b"),
        encoded("a%20b", "a b"),
        encoded("%C3%A9", "é"),
    ];
    match does {
        Does::ListKeys | Does::ListPolicies | Does::ListIdentities => {
            let (one, prefix) = match does {
                Does::ListKeys => ("kept".to_owned(), "kept".to_owned()),
                Does::ListPolicies => ("app".to_owned(), "b".to_owned()),
                _ => (Who::Denied.identity(), Who::Denied.identity()[..6].to_owned()),
            };
            names.extend([plain(&one, true), plain("*", true), plain(&prefix, false)]);
            names.extend([plain(&format!("{prefix}*"), false), plain("missing*", false)]);
            names.extend([plain("**", false), plain("a*b", false), plain("*a", false), plain("-*", false)]);
            names.extend([plain("a-*", false), plain("_*", false), encoded("%2A", "*")]);
            names.extend([plain(&starred(80), false), plain(&starred(81), false)]);
        }
        Does::DescribePolicy | Does::ReadPolicy => {
            names.extend([plain("app", true), plain("beaten", false), plain("narrow", false)]);
            names.extend([plain("App", false), plain("app*", false), encoded("%61pp", "app")]);
        }
        Does::DescribeIdentity => {
            let known = [Who::Allowed, Who::Admin, Who::Denied, Who::Unmentioned, Who::Stranger];
            names.extend(known.map(|who| plain(&who.identity(), who == Who::Allowed)));
            names.push(plain(&Who::Admin.identity().to_uppercase(), false));
        }
        _ => {
            names.extend([plain("kept", true), plain("legacy", false), plain("broken", false)]);
            names.extend([plain("Kept", false), plain("kept*", false), encoded("%6Bept", "kept")]);
            if does == Does::Describe {
                names.push(plain("kept-chacha", false));
            }
            if matches!(does, Does::Create | Does::Import) {
                // What is missing must stay so for the other routes: new keys get names of their own.
                let stays = |name: &str| !is_name(name) || STORED.iter().any(|(stored, _)| *stored == name);
                names.retain(|name| stays(&name.decoded));
                names.push(plain(FRESH, true));
            }
        }
    }
    names
}

/// A body, and what it means once everything before it is in order.
struct Sent {
    text: Option<&'static str>,
    /// It is tried with every name.
    always: bool,
    then: Then,
}

#[derive(Clone, Copy, Debug)]
enum Then {
    /// No valid request.
    Invalid,
    /// With a good key this is what comes back; nothing, or a key made, where the route says so.
    Says(&'static str),
    Unauthentic,
    /// 406.
    NotAcceptable(&'static str),
}

const fn sent(text: &'static str, then: Then) -> Sent {
    Sent { text: Some(text), always: false, then }
}

const fn always(text: &'static str, then: Then) -> Sent {
    Sent { text: Some(text), always: true, then }
}

const fn absent(then: Then) -> Sent {
    Sent { text: None, always: false, then }
}

/// Where the route reads no body: whatever is sent changes nothing.
const UNREAD: &[Sent] =
    &[Sent { text: None, always: true, then: Then::Says("") }, sent("garbage", Then::Says(""))];

const DATA_KEY: Then = Then::Says("{\"plaintext\":\"⟨base64 44⟩\",\"ciphertext\":\"⟨base64 104⟩\"}\n");
const GENERATE: &[Sent] = &[
    absent(DATA_KEY),
    sent("", DATA_KEY),
    always("{\"context\":\"e30=\"}", DATA_KEY),
    sent("{}", DATA_KEY),
    sent("null", DATA_KEY),
    sent("{\"context\":\"e30=\",\"version\":\"v1\"}", DATA_KEY),
    always("garbage", Then::Invalid),
    sent("[]", Then::Invalid),
    sent("7", Then::Invalid),
    sent("{\"context\":7}", Then::Invalid),
    sent("{\"context\":\"%%\"}", Then::Invalid),
    sent("{\"context\":\"e30=\"", Then::Invalid),
    sent("{\"version\":7}", Then::Invalid),
];

const SEALED_NOTHING: Then = Then::Says("{\"ciphertext\":\"⟨base64 60⟩\"}\n");
const ENCRYPT: &[Sent] = &[
    always(
        "{\"plaintext\":\"aGVsbG8=\",\"context\":\"e30=\"}",
        Then::Says("{\"ciphertext\":\"⟨base64 68⟩\"}\n"),
    ),
    sent("{}", SEALED_NOTHING),
    sent("null", SEALED_NOTHING),
    sent("{\"plaintext\":\"\"}", SEALED_NOTHING),
    absent(Then::Invalid),
    sent("", Then::Invalid),
    always("garbage", Then::Invalid),
    sent("[]", Then::Invalid),
    sent("{\"plaintext\":7}", Then::Invalid),
    sent("{\"plaintext\":\"aGVsbG8\"}", Then::Invalid),
    sent("{\"context\":{}}", Then::Invalid),
];

const DECRYPT: &[Sent] = &[
    always(SEALED_AES, Then::Says(OPENED)),
    // Sealed with the same bytes as a key of the other kind.
    sent(SEALED_CHACHA, Then::Unauthentic),
    sent("{}", Then::Unauthentic),
    sent("null", Then::Unauthentic),
    sent("{\"ciphertext\":\"QUJD\"}", Then::Unauthentic),
    absent(Then::Invalid),
    sent("", Then::Invalid),
    always("garbage", Then::Invalid),
    sent("7", Then::Invalid),
    sent("{\"ciphertext\":true}", Then::Invalid),
    sent("{\"ciphertext\":\"QUJD", Then::Invalid),
];

const HMAC: &[Sent] = &[
    always("{\"message\":\"aGVsbG8=\"}", Then::Says(MAC_OF_HELLO)),
    sent("{}", Then::Says(MAC_OF_NOTHING)),
    sent("null", Then::Says(MAC_OF_NOTHING)),
    absent(Then::Invalid),
    sent("", Then::Invalid),
    always("garbage", Then::Invalid),
    sent("\"x\"", Then::Invalid),
    sent("{\"message\":7}", Then::Invalid),
    sent("{\"message\":\"%%\"}", Then::Invalid),
];

const IMPORT: &[Sent] = &[
    always(
        "{\"key\":\"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=\",\"cipher\":\"AES256\"}",
        Then::Says(""),
    ),
    sent(
        "{\"key\":\"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=\",\"cipher\":\"AES256-GCM_SHA256\"}",
        Then::Says(""),
    ),
    sent(
        "{\"key\":\"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=\",\"cipher\":\"ChaCha20\"}",
        Then::Says(""),
    ),
    sent(
        "{\"key\":\"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=\",\"cipher\":\"XCHACHA20-POLY1305\"}",
        Then::Says(""),
    ),
    absent(Then::Invalid),
    sent("", Then::Invalid),
    always("garbage", Then::Invalid),
    sent("[]", Then::Invalid),
    sent("{\"key\":\"%%\",\"cipher\":\"AES256\"}", Then::Invalid),
    sent("{\"key\":\"QUJD\",\"cipher\":7}", Then::Invalid),
    sent("{}", Then::NotAcceptable("algorithm '' is not supported")),
    sent("null", Then::NotAcceptable("algorithm '' is not supported")),
    sent("{\"bytes\":\"QUJD\"}", Then::NotAcceptable("algorithm '' is not supported")),
    // The cipher is looked at before the size, and its name in this case alone.
    sent("{\"key\":\"QUJD\",\"cipher\":\"DES\"}", Then::NotAcceptable("algorithm 'DES' is not supported")),
    sent(
        "{\"key\":\"QUJD\",\"cipher\":\"aes256\"}",
        Then::NotAcceptable("algorithm 'aes256' is not supported"),
    ),
    sent("{\"key\":\"QUJD\",\"cipher\":\"AES256\"}", Then::NotAcceptable("invalid key size for 'AES256'")),
    sent("{\"cipher\":\"ChaCha20\"}", Then::NotAcceptable("invalid key size for 'ChaCha20'")),
];

fn bodies_for(does: Does) -> &'static [Sent] {
    match does {
        Does::Generate => GENERATE,
        Does::Encrypt => ENCRYPT,
        Does::Decrypt => DECRYPT,
        Does::Hmac => HMAC,
        Does::Import => IMPORT,
        _ => UNREAD,
    }
}

// === what came back, held against what must ===

/// Whether a text is what a template says: `⟨time⟩`, `⟨number⟩`, `⟨word⟩` and `⟨base64 length⟩` stand for what no test can
/// know, the rest for itself.
fn fits(template: &str, text: &str) -> bool {
    let mut pieces = template.split('⟨');
    let Some(mut text) = text.strip_prefix(pieces.next().unwrap()) else { return false };
    for piece in pieces {
        let (what, literal) = piece.split_once('⟩').unwrap();
        let within = |letter: char| letter.is_ascii_alphanumeric() || "-_.:+/=".contains(letter);
        let (value, rest) = text.split_at(text.find(|letter: char| !within(letter)).unwrap_or(text.len()));
        let good = match what {
            "time" => value.ends_with('Z') && value.parse::<jiff::Timestamp>().is_ok(),
            "number" => value.parse::<u64>().is_ok(),
            "word" => !value.is_empty(),
            _ => {
                use base64::Engine;
                let decoded = base64::engine::general_purpose::STANDARD.decode(value);
                what == format!("base64 {}", value.len()) && decoded.is_ok()
            }
        };
        match rest.strip_prefix(literal) {
            Some(rest) if good => text = rest,
            _ => return false,
        }
    }
    text.is_empty()
}

/// The rows of `/v1/api`, in an order of our own.
fn rows_of_api(rows: impl IntoIterator<Item = Value>) -> Vec<Value> {
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by_key(|row| row["path"].to_string());
    rows
}

impl Wanted {
    /// What is wrong with an answer to `method`.
    fn problem(&self, method: &str, http1: bool, got: &Reply) -> Option<String> {
        let header = |name: &str| got.headers.get(name).map(String::as_str);
        let (kind, length) = match &self.content {
            Content::Nothing => (None, 0),
            // An answer to HEAD tells the length that the body would have had.
            Content::Json(text) if method == "HEAD" => (Some("application/json"), text.len()),
            Content::Metrics => (header("content-type"), got.body.len()),
            _ => (Some("application/json"), got.body.len()),
        };
        let body = match &self.content {
            _ if method == "HEAD" => got.body.is_empty(),
            Content::Nothing => got.body.is_empty(),
            Content::Json(template) => fits(template, &got.body),
            Content::Members(wanted) => match serde_json::from_str::<Value>(&got.body) {
                Ok(Value::Object(mut members)) if got.body.ends_with("}\n") => {
                    let at = members.remove("created_at");
                    at.is_some_and(|at| at.as_str().is_some_and(|at| fits("⟨time⟩", at)))
                        && Value::Object(members) == *wanted
                }
                _ => false,
            },
            Content::Rows => match serde_json::from_str::<Vec<Value>>(&got.body) {
                Ok(rows) => {
                    let wanted = ROWS.iter().map(|row| {
                        json!({
                            "method": row.method, "path": row.path, "max_body": row.max_body, "timeout": row.seconds,
                        })
                    });
                    rows_of_api(rows) == rows_of_api(wanted)
                }
                Err(_) => false,
            },
            Content::Metrics => got.body.contains("kes_system_up_time"),
        };
        let length = length.to_string();
        // A long page may come in chunks.
        let is_page = matches!(self.content, Content::Rows | Content::Metrics);
        let problem = match () {
            () if got.version != version_of(http1) => "the protocol",
            () if got.status != self.status => "the status",
            () if !body => "the body",
            () if header("content-type") != kind => "content-type",
            () if matches!(self.content, Content::Metrics)
                && !kind.is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4; charset=utf-8")) =>
            {
                "content-type"
            }
            () if header("content-length").map_or(!is_page, |said| said != length) => "content-length",
            () if header("accept") != self.accept => "accept",
            () if header("server").is_some() => "server",
            () if header("date").is_none() => "date",
            () => return None,
        };
        Some(format!("{problem} is wrong\n  expected {self:?}\n  got {got:?}"))
    }
}

// === the table ===

/// One caller's part of the table.
struct Table {
    who: Who,
    keys: BTreeSet<String>,
    made: usize,
    tried: usize,
    failures: Vec<String>,
}

impl Table {
    fn run(&mut self, client: &Client, http1: bool) {
        self.tried = 0;
        for row in &ROWS {
            for method in METHODS {
                let right = takes(row, method);
                if row.does == Does::Log && right && self.who.may() {
                    continue;
                }
                match row.path.ends_with('/') {
                    true => self.names(client, http1, row, method, right),
                    false => UNREAD
                        .iter()
                        .filter(|body| right || body.text.is_none())
                        .for_each(|body| self.one(client, http1, row, method, ("", ""), body)),
                }
            }
        }
        assert!(self.tried > 1000, "only {} combinations over {}", self.tried, version_of(http1));
    }

    /// All names and bodies with the right method; with a wrong one, those that would get furthest.
    fn names(&mut self, client: &Client, http1: bool, row: &Row, method: &str, right: bool) {
        for name in names_for(row.does).iter().filter(|name| right || name.always) {
            let named = (name.sent.as_str(), name.decoded.as_str());
            if !right {
                self.one(client, http1, row, method, named, &UNREAD[0]);
                continue;
            }
            for body in bodies_for(row.does).iter().filter(|body| name.always || body.always) {
                self.one(client, http1, row, method, named, body);
            }
        }
        if method == "PATCH" {
            // A method is refused before a body is looked at.
            self.one(client, http1, row, method, ("kept", "kept"), &sent("garbage", Then::Invalid));
        }
    }

    fn one(
        &mut self,
        client: &Client,
        http1: bool,
        row: &Row,
        method: &str,
        name: (&str, &str),
        body: &Sent,
    ) {
        let fresh = format!("made-{}", self.made);
        let (sent, decoded) = if name.0 == FRESH { (fresh.as_str(), fresh.as_str()) } else { name };
        self.made += 1;
        self.tried += 1;
        let wanted = expect(&Call { row, who: self.who, method, name: decoded, body, keys: &self.keys });
        if matches!(row.does, Does::Create | Does::Import) && wanted.status == 200 {
            self.keys.insert(decoded.to_owned());
        }
        let path = format!("{}{sent}", row.path);
        let problem = match block_on(client.send(method, &path, body.text)) {
            Ok(got) => wanted.problem(method, http1, &got),
            Err(error) => Some(format!("no answer\n  expected {wanted:?}\n  got {error:?}")),
        };
        if let Some(problem) = problem {
            let (who, version) = (self.who, version_of(http1));
            self.failures
                .push(format!("{method} {path} by {who:?} over {version}, body {:?}: {problem}", body.text));
        }
    }
}

/// Panics with the first of what went wrong, and how much there was.
fn none_of(failures: &[String]) {
    let shown = failures[..failures.len().min(25)].join("\n");
    assert!(failures.is_empty(), "{} failures, of which:\n{shown}", failures.len());
}

fn every_combination_for(who: Who) {
    let kes = serving();
    let keys = STORED.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut table = Table { who, keys, made: 0, tried: 0, failures: Vec::new() };
    for (client, http1) in clients(&kes, who) {
        table.run(&client, http1);
    }
    none_of(&table.failures);
}

#[test]
fn the_table_for_who_shows_no_certificate() {
    every_combination_for(Who::Nobody);
}

#[test]
fn the_table_for_an_unknown_identity() {
    every_combination_for(Who::Stranger);
}

#[test]
fn the_table_for_who_is_denied_everything() {
    every_combination_for(Who::Denied);
}

#[test]
fn the_table_for_who_is_allowed_something_else() {
    every_combination_for(Who::Unmentioned);
}

#[test]
fn the_table_for_who_is_allowed_everything() {
    every_combination_for(Who::Allowed);
}

#[test]
fn the_table_for_the_admin() {
    every_combination_for(Who::Admin);
}

// === paths ===

/// Collects what is wrong over both protocols.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    /// Sends, and holds the answer against `wanted`.
    fn check(
        &mut self,
        (client, http1): (&Client, bool),
        request: (&str, &str, Option<&str>),
        wanted: &Wanted,
    ) {
        let (method, path, body) = request;
        let problem = match block_on(client.send(method, path, body)) {
            Ok(got) => wanted.problem(method, http1, &got),
            Err(error) => Some(format!("no answer\n  expected {wanted:?}\n  got {error:?}")),
        };
        if let Some(problem) = problem {
            let body = body.map(|body| body.chars().take(120).collect::<String>());
            self.0.push(format!("{method} {path} over {}, body {body:?}: {problem}", version_of(http1)));
        }
    }

    /// Sends without a body, and asks whether the answer is `good`.
    fn judge(
        &mut self,
        (client, http1): (&Client, bool),
        (method, path): (&str, &str),
        about: &str,
        good: impl FnOnce(&Reply) -> bool,
    ) {
        match block_on(client.send(method, path, None)) {
            Ok(got) if good(&got) => {}
            other => {
                self.0.push(format!("{method} {path} over {}, {about}: got {other:?}", version_of(http1)))
            }
        }
    }
}

fn kept_described() -> Wanted {
    json_of(concat!(
        "{\"name\":\"kept\",\"algorithm\":\"AES256\",\"created_at\":\"2023-11-14T22:13:20Z\",",
        "\"created_by\":\"someone\"}\n"
    ))
}

#[test]
fn percent_encoding_is_decoded_before_routing_and_before_judging() {
    let (picky, wary) = (Kes::key(20), Kes::key(21));
    let kes = Kes::serving(&format!(
        "policy:
  picky:
    allow: [/v1/key/describe/kept]
    identities: [\"{}\"]
  wary:
    allow: [\"/v1/*\"]
    deny: [/v1/key/describe/kept]
    identities: [\"{}\"]
",
        picky.identity().as_str(),
        wary.identity().as_str()
    ));
    kes.store.put("kept", AES_KEY);
    let mut findings = Findings::default();
    for http1 in [true, false] {
        let admin = kes.client(Some(&Kes::admin()), http1);
        let bad_name = |name: &str| {
            refused(400, &format!("key name '{name}' is empty, too long or contains invalid characters"))
        };
        for (path, wanted) in [
            ("/v1/key/describe/%6b%65%70%74", kept_described()),
            ("/v1/key/describe/%6Bept", kept_described()),
            ("/v1/%6Bey/describe/kept", kept_described()),
            ("/%76%31/key/describe%2Fkept", kept_described()),
            ("/v1/key/describe/kept?name=other&x=%2F", kept_described()),
            ("/v1/key/list/%2A", json_of("{\"names\":[\"kept\"]}\n")),
            ("/v1/key/list/ke%2A", json_of("{\"names\":[\"kept\"]}\n")),
            ("/v1/key/describe/a%2Fb", bad_name("a/b")),
            ("/v1/key/describe/%2A", bad_name("*")),
            // Decoded once, never twice.
            ("/v1/key/describe/%256Bept", bad_name("%6Bept")),
        ] {
            findings.check((&admin, http1), ("GET", path, None), &wanted);
        }
        for path in ["/v1/key/describe/kept", "/v1/key/describe/%6Bept", "/v1/%6bey/describe/kept"] {
            let (picky, wary) = (kes.client(Some(&picky), http1), kes.client(Some(&wary), http1));
            findings.check((&picky, http1), ("GET", path, None), &kept_described());
            findings.check((&wary, http1), ("GET", path, None), &refused(403, NOT_ALLOWED));
        }
    }
    none_of(&findings.0);
}

/// A request whose path is sent as it is spelt: every URL library tidies `..` away before it is sent.
fn verbatim(api: SocketAddr, http1: bool, method: &str, path: &str) -> Reply {
    let mut config = rustls::ClientConfig::builder_with_provider(keswarden::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = vec![if http1 { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
    let uri = if http1 { path.to_owned() } else { format!("https://{api}{path}") };
    let mut request = hyper::Request::builder().method(method).uri(uri);
    if http1 {
        request = request.header("host", api.to_string());
    }
    let request = request.body(http_body_util::Empty::<hyper::body::Bytes>::new()).unwrap();
    block_on(async {
        let stream = tokio::net::TcpStream::connect(api).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        // The sender lives until the body is here, or the connection might go with it.
        if http1 {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            whole(sender.send_request(request).await.unwrap()).await
        } else {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(connection);
            whole(sender.send_request(request).await.unwrap()).await
        }
    })
}

async fn whole(answer: hyper::Response<hyper::body::Incoming>) -> Reply {
    let (head, body) = answer.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    let headers = head.headers.iter();
    Reply {
        status: head.status.as_u16(),
        body: String::from_utf8(body.to_vec()).unwrap(),
        headers: headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
        version: format!("{:?}", head.version),
    }
}

/// Trusts whoever answers: these tests are about paths.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        keswarden::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A redirect as Go writes it. What HEAD says of the body is left open: the spec speaks of GET and the others.
fn is_redirect(got: &Reply, method: &str, location: &str) -> bool {
    let header = |name: &str| got.headers.get(name).map(String::as_str);
    let content = match method {
        "GET" => {
            got.body == format!("<a href=\"{location}\">Moved Permanently</a>.\n\n")
                && header("content-type") == Some("text/html; charset=utf-8")
                && header("content-length").is_none_or(|length| length == got.body.len().to_string())
        }
        "HEAD" => got.body.is_empty(),
        _ => {
            let unlabelled = header("content-type").is_none();
            got.body.is_empty() && unlabelled && header("content-length") == Some("0")
        }
    };
    got.status == 301 && header("location") == Some(location) && content
}

#[test]
fn paths_that_are_not_clean_are_redirected_to_the_clean_one() {
    let kes = serving();
    let mut findings = Findings::default();
    // Nobody's permission is needed, so a client without a certificate asks.
    for http1 in [true, false] {
        for (path, location) in [
            ("/v1//status", "/v1/status"),
            ("//v1/status", "/v1/status"),
            ("/v1/./status", "/v1/status"),
            ("/v1/status/.", "/v1/status"),
            ("/v1/key/../status", "/v1/status"),
            ("/../v1/status", "/v1/status"),
            ("/v1/key/list/../describe/kept", "/v1/key/describe/kept"),
            ("/v1/key/create//kept", "/v1/key/create/kept"),
            ("/v1/key/create//", "/v1/key/create/"),
            ("/v1//nowhere", "/v1/nowhere"),
            // Encoded or not is the same, since paths are decoded first.
            ("/v1/%2e%2e/v1/status", "/v1/status"),
            ("/v1/key/describe/a%2F%2Fb", "/v1/key/describe/a/b"),
        ] {
            for method in METHODS {
                let got = verbatim(kes.api, http1, method, path);
                if !is_redirect(&got, method, location) {
                    let version = version_of(http1);
                    findings.0.push(format!("{method} {path} over {version}, to {location}: got {got:?}"));
                }
            }
        }
    }
    none_of(&findings.0);
}

#[test]
fn paths_that_lack_their_slash_are_redirected_and_lists_are_answered() {
    let kes = serving();
    let mut findings = Findings::default();
    for who in [Who::Nobody, Who::Stranger, Who::Denied, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            for row in ROWS.iter().filter(|row| row.path.ends_with('/') && !row.path.ends_with("/list/")) {
                let path = row.path.strip_suffix('/').unwrap();
                for method in METHODS {
                    let about = format!("by {who:?}, to {}", row.path);
                    findings.judge((&client, http1), (method, path), &about, |got| {
                        is_redirect(got, method, row.path)
                    });
                }
            }
        }
    }
    // The list of a client that asks for no prefix comes at once, under the same rules as with the slash.
    let keys: BTreeSet<_> = STORED.iter().map(|(name, _)| (*name).to_owned()).collect();
    for who in [Who::Nobody, Who::Stranger, Who::Denied, Who::Unmentioned, Who::Allowed, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            for row in ROWS.iter().filter(|row| row.path.ends_with("/list/")) {
                for method in METHODS {
                    let wanted = expect(&Call { row, who, method, name: "", body: &UNREAD[0], keys: &keys });
                    let path = row.path.strip_suffix('/').unwrap();
                    findings.check((&client, http1), (method, path, None), &wanted);
                }
            }
        }
    }
    none_of(&findings.0);
}

#[test]
fn unknown_paths_are_not_found_by_anybody() {
    let kes = serving();
    let mut findings = Findings::default();
    for who in [Who::Nobody, Who::Stranger, Who::Denied, Who::Allowed, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            for path in [
                "/",
                "/v1",
                "/v1/",
                "/v1/key",
                "/v1/key/",
                "/v2/status",
                "/V1/status",
                "/version/",
                "/v1/version",
                "/v1/ready/",
                "/v1/status/",
                "/v1/status/x",
                "/v1/metrics/",
                "/v1/api/",
                "/v1/log",
                "/v1/log/error/",
                "/v1/log/audit/trace",
                "/v1/identity/self/describe/",
                "/v1/identity/self",
                // What older versions of KES had.
                "/v1/key/bulk/decrypt/kept",
                "/v1/policy/write/app",
                "/v1/identity/assign/app",
                "/v1/enclave/create/x",
                "/v1/secret/read/x",
            ] {
                for method in METHODS {
                    let body = if method == "HEAD" { "" } else { "404 page not found\n" };
                    findings.judge((&client, http1), (method, path), &format!("by {who:?}"), |got| {
                        let header = |name: &str| got.headers.get(name).map(String::as_str);
                        (got.status, got.body.as_str()) == (404, body)
                            && header("content-type") == Some("text/plain; charset=utf-8")
                            && header("x-content-type-options") == Some("nosniff")
                            && header("content-length") == Some("19")
                            && header("accept").is_none()
                    });
                }
            }
        }
    }
    none_of(&findings.0);
}

// === policies ===

#[test]
fn patterns_are_prefixes_or_whole_paths_and_deny_beats_allow() {
    struct Case {
        allow: &'static [&'static str],
        deny: &'static [&'static str],
        /// Method, path and status: 403, or what comes of being let in.
        calls: &'static [(&'static str, &'static str, u16)],
    }
    const CASES: &[Case] = &[
        // Deny beats allow, whichever is the longer.
        Case {
            allow: &["/v1/key/describe/*"],
            deny: &["/v1/key/describe/kept"],
            calls: &[
                ("GET", "/v1/key/describe/kept", 403),
                ("GET", "/v1/key/describe/legacy", 200),
                ("GET", "/v1/key/describe/bad.name", 400),
            ],
        },
        Case {
            allow: &["/v1/key/describe/kept"],
            deny: &["/v1/key/*"],
            calls: &[("GET", "/v1/key/describe/kept", 403)],
        },
        Case {
            allow: &["/v1/key/describe/kept"],
            deny: &["/v1/key/describe/kept"],
            calls: &[("GET", "/v1/key/describe/kept", 403)],
        },
        // A prefix goes across slashes.
        Case {
            allow: &["/v1/key/*"],
            deny: &[],
            calls: &[
                ("GET", "/v1/key/describe/kept", 200),
                ("GET", "/v1/key/describe/a/b", 400),
                ("POST", "/v1/key/generate/missing", 404),
                ("GET", "/v1/key/list/", 200),
                ("GET", "/v1/policy/list/", 403),
                ("GET", "/v1/status", 403),
            ],
        },
        // …and need not end at one.
        Case {
            allow: &["/v1/key/describe/ke*"],
            deny: &["/v1/key/describe/kept-*"],
            calls: &[
                ("GET", "/v1/key/describe/kept", 200),
                ("GET", "/v1/key/describe/kept-chacha", 403),
                ("GET", "/v1/key/describe/ke", 404),
                ("GET", "/v1/key/describe/legacy", 403),
            ],
        },
        Case {
            allow: &["/v1/sta*"],
            deny: &[],
            calls: &[("GET", "/v1/status", 200), ("GET", "/v1/api", 403)],
        },
        Case {
            allow: &["*"],
            deny: &[],
            calls: &[("GET", "/v1/status", 200), ("GET", "/v1/key/describe/kept", 200)],
        },
        // Without a star at its end it is the whole path.
        Case {
            allow: &["/v1/key/describe/", "/v1/stat", "v1/api"],
            deny: &[],
            calls: &[
                ("GET", "/v1/key/describe/kept", 403),
                ("GET", "/v1/key/describe/", 400),
                ("GET", "/v1/status", 403),
                ("GET", "/v1/api", 403),
            ],
        },
        // Stars elsewhere, question marks and brackets are themselves: this deny rule protects nothing, as in KES.
        Case {
            allow: &["/v1/key/*"],
            deny: &["/v1/key/*/kept", "/v1/key/describe/kep?", "/v1/key/describe/[k]ept"],
            calls: &[("GET", "/v1/key/describe/kept", 200)],
        },
        Case {
            allow: &["/v1/key/describe/*/x", "/v1/key/describe/**", "/v1/*/describe/kept"],
            deny: &[],
            calls: &[
                ("GET", "/v1/key/describe/kept", 403),
                ("GET", "/v1/key/describe/a/x", 403),
                // Let in, for being spelt like the pattern; no such name can exist.
                ("GET", "/v1/key/describe/%2A/x", 400),
                ("GET", "/v1/key/describe/%2Akept", 400),
            ],
        },
        // Nothing is allowed by default, and an empty pattern matches nothing, in either list.
        Case { allow: &[], deny: &[], calls: &[("GET", "/v1/status", 403), ("GET", "/v1/ready", 403)] },
        Case {
            allow: &["", "/v1/status"],
            deny: &[""],
            calls: &[("GET", "/v1/status", 200), ("GET", "/v1/api", 403)],
        },
        // The path alone is judged, whatever the method; so a wrong method is told first.
        Case {
            allow: &["/v1/key/generate/kept"],
            deny: &[],
            calls: &[
                ("PUT", "/v1/key/generate/kept", 200),
                ("POST", "/v1/key/generate/kept", 200),
                ("GET", "/v1/key/generate/kept", 405),
                ("GET", "/v1/key/describe/missing", 403),
                ("POST", "/v1/key/describe/missing", 405),
            ],
        },
        // What needs no permission cannot be denied.
        Case {
            allow: &[],
            deny: &["*"],
            calls: &[
                ("GET", "/version", 200),
                ("GET", "/v1/identity/self/describe", 200),
                ("GET", "/v1/nowhere", 404),
                ("GET", "/v1/key/create", 301),
                ("GET", "/v1/api", 403),
            ],
        },
    ];
    let key_of = |number: usize| Kes::key(30 + u8::try_from(number).unwrap());
    let mut policies = "policy:\n".to_owned();
    for (number, case) in CASES.iter().enumerate() {
        policies += &format!(
            "  case-{number}:\n    allow: {:?}\n    deny: {:?}\n    identities: [\"{}\"]\n",
            case.allow,
            case.deny,
            key_of(number).identity().as_str()
        );
    }
    let kes = Kes::serving(&policies);
    for (name, text) in STORED {
        kes.store.put(name, text);
    }
    let mut findings = Findings::default();
    for (number, case) in CASES.iter().enumerate() {
        for http1 in [true, false] {
            let client = kes.client(Some(&key_of(number)), http1);
            for (method, path, status) in case.calls {
                let Case { allow, deny, .. } = case;
                let about = format!("allow {allow:?} and deny {deny:?}: expected {status}");
                findings.judge((&client, http1), (method, path), &about, |got| {
                    let is_judgement = got.body == refusal_text(NOT_ALLOWED);
                    got.status == *status && is_judgement == (*status == 403)
                });
            }
        }
    }
    none_of(&findings.0);
}

// === certificates ===

/// A certificate for an API key's own key pair that says of itself what `is_ca` says.
fn certificate(key: &ApiKey, is_ca: rcgen::IsCa) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let (_, private) = key.certificate(1_700_000_000);
    let PrivateKeyDer::Pkcs8(pkcs8) = &private else { panic!("an API key's private key is PKCS#8") };
    let pair = rcgen::KeyPair::from_pkcs8_der_and_sign_algo(pkcs8, &rcgen::PKCS_ED25519).unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = is_ca;
    (params.self_signed(&pair).unwrap().der().clone(), private)
}

fn ca() -> rcgen::IsCa {
    rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained)
}

#[test]
fn the_caller_is_the_one_certificate_that_is_no_ca_and_that_signed() {
    let kes = serving();
    let (allowed, stranger) = (Who::Allowed.key().unwrap(), Who::Stranger.key().unwrap());
    let plain = |key: &ApiKey| certificate(key, rcgen::IsCa::ExplicitNoCa).0;
    let unsaid = |key: &ApiKey| certificate(key, rcgen::IsCa::NoCa).0;
    let as_ca = |key: &ApiKey| certificate(key, ca()).0;
    // A chain, whose key signs, and what becomes of a request that needs permission.
    let chains = [
        ("a leaf", vec![plain(&allowed)], &allowed, Ok(Who::Allowed)),
        ("a leaf without BasicConstraints", vec![unsaid(&allowed)], &allowed, Ok(Who::Allowed)),
        ("a leaf and a CA", vec![plain(&allowed), as_ca(&Kes::key(40))], &allowed, Ok(Who::Allowed)),
        (
            "a leaf and two CAs",
            vec![plain(&allowed), as_ca(&Kes::key(40)), as_ca(&Kes::key(41))],
            &allowed,
            Ok(Who::Allowed),
        ),
        // Whose key signed is who calls, whatever CA stands behind.
        (
            "a stranger, and a CA with our key",
            vec![plain(&stranger), as_ca(&allowed)],
            &stranger,
            Ok(Who::Stranger),
        ),
        ("two leaves", vec![plain(&allowed), plain(&Kes::key(40))], &allowed, Err(TWO_CERTIFICATES)),
        ("the same leaf twice", vec![plain(&allowed), plain(&allowed)], &allowed, Err(TWO_CERTIFICATES)),
        (
            "a stranger, and our leaf",
            vec![plain(&stranger), plain(&allowed)],
            &stranger,
            Err(TWO_CERTIFICATES),
        ),
        (
            "two leaves, one without BasicConstraints",
            vec![plain(&allowed), unsaid(&Kes::key(40))],
            &allowed,
            Err(TWO_CERTIFICATES),
        ),
        (
            "two leaves around a CA",
            vec![plain(&allowed), as_ca(&Kes::key(41)), plain(&Kes::key(40))],
            &allowed,
            Err(TWO_CERTIFICATES),
        ),
        ("a CA", vec![as_ca(&allowed)], &allowed, Err(NO_CERTIFICATE)),
        ("two CAs", vec![as_ca(&allowed), as_ca(&Kes::key(40))], &allowed, Err(NO_CERTIFICATE)),
        // Stricter than the reference: a certificate that anybody can copy is nobody's proof (§2.2).
        (
            "a stranger's CA, and our leaf",
            vec![as_ca(&stranger), plain(&allowed)],
            &stranger,
            Err(NO_CERTIFICATE),
        ),
    ];
    let mut findings = Findings::default();
    for (what, chain, signer, verdict) in chains {
        for http1 in [true, false] {
            let (_, key) = signer.certificate(1_700_000_000);
            let client = kes.client_with_chain(chain.clone(), key, http1);
            let status = match verdict {
                Ok(who) if who.may() => 200,
                Ok(_) => 403,
                Err(_) => 400,
            };
            for path in ["/v1/key/describe/kept", "/v1/key/list/"] {
                let about = format!("{what}: expected {status}");
                findings.judge((&client, http1), ("GET", path), &about, |got| {
                    let text = match verdict {
                        Ok(who) if who.may() => return got.status == status,
                        Ok(_) => NOT_ALLOWED,
                        Err(message) => message,
                    };
                    (got.status, &got.body) == (status, &refusal_text(text))
                });
            }
            // Neither what is open to all nor a path or method that is wrong depends on certificates.
            for (method, path, status) in [
                ("GET", "/version", 200),
                ("GET", "/v1/ready", 200),
                ("GET", "/v1/nowhere", 404),
                ("POST", "/v1/status", 405),
                ("GET", "/v1/identity/self/describe", if verdict == Ok(Who::Allowed) { 200 } else { 404 }),
            ] {
                let about = format!("{what}: expected {status}");
                findings.judge((&client, http1), (method, path), &about, |got| got.status == status);
            }
        }
    }
    none_of(&findings.0);
}

// === bodies ===

#[test]
fn bodies_one_byte_over_the_limit_are_refused_and_bodies_at_it_are_read() {
    let kes = serving();
    let mut findings = Findings::default();
    // The value ends with the body, so that nothing can be taken for garbage after it.
    let body = |members: &str, length: usize| {
        let frame = format!("{{{members},\"pad\":\"\"}}").len();
        format!("{{{members},\"pad\":\"{}\"}}", "x".repeat(length - frame))
    };
    let sealed = SEALED_AES.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    let imported = "\"key\":\"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=\",\"cipher\":\"AES256\"";
    for (client, http1) in clients(&kes, Who::Allowed) {
        let fresh = format!("/v1/key/import/made-{}", u8::from(http1));
        for (path, members, then, refusal) in [
            ("/v1/key/generate/kept", "\"context\":\"e30=\"", DATA_KEY, "invalid request body"),
            ("/v1/key/encrypt/kept", "\"plaintext\":\"\"", SEALED_NOTHING, "invalid request body"),
            ("/v1/key/decrypt/kept", sealed, Then::Says(OPENED), "invalid request body"),
            (
                "/v1/key/hmac/kept",
                "\"message\":\"aGVsbG8=\"",
                Then::Says(MAC_OF_HELLO),
                "invalid request body",
            ),
            (fresh.as_str(), imported, Then::Says(""), "invalid import key request body"),
        ] {
            let (over, at) = (body(members, 1_000_001), body(members, 1_000_000));
            assert_eq!((over.len(), at.len()), (1_000_001, 1_000_000));
            findings.check((&client, http1), ("PUT", path, Some(&over)), &refused(400, refusal));
            findings.check((&client, http1), ("PUT", path, Some(&at)), &template_of(then));
        }
    }
    none_of(&findings.0);
}

/// `hmac` tells exactly which bytes were read, so it judges how JSON is read.
fn hmac_of(bodies: &[(&str, &'static str)]) {
    let kes = serving();
    let mut findings = Findings::default();
    for (client, http1) in clients(&kes, Who::Allowed) {
        for (body, said) in bodies {
            let wanted = if said.is_empty() { refused(400, "invalid request body") } else { json_of(*said) };
            findings.check((&client, http1), ("PUT", "/v1/key/hmac/kept", Some(*body)), &wanted);
        }
    }
    none_of(&findings.0);
}

#[test]
fn json_is_read_as_leniently_as_go_reads_it() {
    let numbers: Vec<_> = b"hello".iter().map(u8::to_string).collect();
    let numbers = format!("{{\"message\":[{}]}}", numbers.join(","));
    hmac_of(&[
        // Names in any case; the last of two wins, however it is spelt; others are ignored.
        ("{\"MESSAGE\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"mEssagE\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\",\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG8=\",\"message\":\"\"}", MAC_OF_NOTHING),
        ("{\"Message\":\"\",\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\",\"Message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"other\":[{\"message\":7}],\"message\":\"aGVsbG8=\",\"messages\":\"\"}", MAC_OF_HELLO),
        ("{\"messag\\u0065\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        // Null is nothing.
        ("null", MAC_OF_NOTHING),
        ("{\"message\":null}", MAC_OF_NOTHING),
        ("{\"version\":null,\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":null,\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"version\":\"v1\",\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        // What follows the first value is not looked at; white space before it is nothing.
        ("{\"message\":\"aGVsbG8=\"} and what follows", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG8=\"}{\"message\":\"\"}", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG8=\"}}", MAC_OF_HELLO),
        ("null garbage", MAC_OF_NOTHING),
        (" \r\n\t{ \"message\" : \"aGVsbG8=\" }\n", MAC_OF_HELLO),
        // Bytes as numbers.
        (numbers.as_str(), MAC_OF_HELLO),
        ("{\"message\":[]}", MAC_OF_NOTHING),
        // Line ends inside base64, escaped slashes and letters, trailing bits that are not zero.
        ("{\"message\":\"aGVs\\r\\nbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\\na\\rGVsbG8\\n=\\n\"}", MAC_OF_HELLO),
        ("{\"message\":\"\\u0061GVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG9=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\"}", MAC_OF_NOTHING),
    ]);
}

#[test]
fn a_null_after_a_value_empties_it() {
    // `null` is the zero value and the last of two wins: Go sets a slice to nil here.
    hmac_of(&[("{\"message\":\"aGVsbG8=\",\"message\":null}", MAC_OF_NOTHING)]);
}

#[test]
fn json_that_go_refuses_is_refused() {
    hmac_of(
        &[
            "",
            " ",
            "garbage",
            "nul",
            "{",
            "{\"message\":\"aGVsbG8=\"",
            "{\"message\":\"aGVsbG8=\",}",
            "{message:\"aGVsbG8=\"}",
            "{'message':'aGVsbG8='}",
            // Neither an object nor null.
            "[]",
            "[{\"message\":\"aGVsbG8=\"}]",
            "7",
            "\"aGVsbG8=\"",
            "true",
            // The wrong type for a member that is known, even when a good one follows.
            "{\"message\":7}",
            "{\"message\":true}",
            "{\"message\":{}}",
            "{\"message\":[\"a\"]}",
            "{\"message\":[256]}",
            "{\"message\":[-1]}",
            "{\"message\":[1.5]}",
            "{\"message\":7,\"message\":\"aGVsbG8=\"}",
            "{\"MESSAGE\":7}",
            "{\"message\":\"aGVsbG8=\",\"version\":7}",
            "{\"message\":\"aGVsbG8=\",\"version\":[]}",
            // Base64 that is not the standard one: URL-safe letters, no padding or too much of it, blanks.
            "{\"message\":\"-_-_\"}",
            "{\"message\":\"_w==\"}",
            "{\"message\":\"aGVsbG8\"}",
            "{\"message\":\"aGVsbG8==\"}",
            "{\"message\":\"aGVsbG8=aGVs\"}",
            "{\"message\":\"a\"}",
            "{\"message\":\"=\"}",
            "{\"message\":\"aGVs bG8=\"}",
            "{\"message\":\"aGVs\\tbG8=\"}",
            // A line end may be in base64, but JSON wants it escaped.
            "{\"message\":\"aGVs\nbG8=\"}",
        ]
        .map(|body| (body, "")),
    );
}

#[test]
fn every_route_with_a_body_reads_it_the_same_way() {
    let kes = serving();
    let mut findings = Findings::default();
    let key = base64(&[7; 32]);
    for (client, http1) in clients(&kes, Who::Admin) {
        let numbers = vec!["7"; 32].join(",");
        let [a, b, c] = ["a", "b", "c"].map(|name| format!("/v1/key/import/{name}-{}", u8::from(http1)));
        let upper = SEALED_AES.replace("ciphertext", "CipherText").replace("context", "CONTEXT");
        let broken_line = SEALED_AES.replace("AAAA", "AA\\r\\nAA") + " trailing";
        let urlsafe = SEALED_AES.replace("AAAA", "__--");
        let unpadded = SEALED_AES.replace("==", "");
        let bad = refused(400, "invalid request body");
        for (path, body, wanted) in [
            ("/v1/key/decrypt/kept", upper, json_of(OPENED)),
            ("/v1/key/decrypt/kept", broken_line, json_of(OPENED)),
            ("/v1/key/decrypt/kept", urlsafe, refused(400, "invalid request body")),
            ("/v1/key/decrypt/kept", unpadded, refused(400, "invalid request body")),
            (
                "/v1/key/encrypt/kept",
                "{\"PLAINTEXT\":[1,2,3]}null".to_owned(),
                json_of("{\"ciphertext\":\"⟨base64 64⟩\"}\n"),
            ),
            ("/v1/key/generate/kept", "{\"Context\":[123,125]}{".to_owned(), template_of(DATA_KEY)),
            ("/v1/key/generate/kept", "{\"context\":\"e30\"}".to_owned(), bad),
            (a.as_str(), format!("{{\"KEY\":\"{key}\",\"Cipher\":\"AES256\"}} x"), done()),
            (b.as_str(), format!("{{\"key\":[{numbers}],\"cipher\":\"AES256\"}}"), done()),
            (
                c.as_str(),
                format!("{{\"key\":\"{}\",\"cipher\":\"AES256\"}}", key.trim_end_matches('=')),
                refused(400, "invalid import key request body"),
            ),
        ] {
            findings.check((&client, http1), ("POST", path, Some(&body)), &wanted);
        }
    }
    none_of(&findings.0);
}

#[test]
fn the_kind_of_the_key_decides_the_cipher() {
    let kes = serving();
    let mut findings = Findings::default();
    let unauthentic = "decryption failed: ciphertext is not authentic";
    for (client, http1) in clients(&kes, Who::Allowed) {
        for (path, body, wanted) in [
            ("/v1/key/decrypt/kept-chacha", SEALED_CHACHA, json_of(OPENED)),
            ("/v1/key/decrypt/kept-chacha", SEALED_AES, refused(400, unauthentic)),
            ("/v1/key/decrypt/legacy", SEALED_AES, json_of(OPENED)),
            ("/v1/key/decrypt/legacy", SEALED_CHACHA, refused(400, unauthentic)),
            ("/v1/key/generate/kept-chacha", "{}", template_of(DATA_KEY)),
            ("/v1/key/encrypt/kept-chacha", "{}", template_of(SEALED_NOTHING)),
            ("/v1/key/hmac/kept-chacha", "{\"message\":\"aGVsbG8=\"}", json_of(MAC_OF_HELLO)),
        ] {
            findings.check((&client, http1), ("POST", path, Some(body)), &wanted);
        }
    }
    none_of(&findings.0);
}

#[test]
fn what_is_made_is_described_as_made_now_by_its_maker() {
    let kes = serving();
    let mut findings = Findings::default();
    for who in [Who::Allowed, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            let name = format!("made-{who:?}-{}", u8::from(http1));
            let imported = format!("{name}-imported");
            let body = format!("{{\"key\":\"{}\",\"cipher\":\"XCHACHA20-POLY1305\"}}", base64(&[7; 32]));
            // A body for a route that reads none is ignored, and the connection lives on.
            findings.check(
                (&client, http1),
                ("POST", &format!("/v1/key/create/{name}"), Some("{}")),
                &done(),
            );
            findings.check(
                (&client, http1),
                ("PUT", &format!("/v1/key/import/{imported}"), Some(&body)),
                &done(),
            );
            for (name, algorithm) in [(&name, "⟨word⟩"), (&imported, "ChaCha20")] {
                let wanted = json_of(format!(
                    "{{\"name\":\"{name}\",\"algorithm\":\"{algorithm}\",\"created_at\":\"⟨time⟩\",\"created_by\":\"{}\"}}\n",
                    who.identity()
                ));
                findings.check((&client, http1), ("GET", &format!("/v1/key/describe/{name}"), None), &wanted);
            }
        }
    }
    none_of(&findings.0);
}
