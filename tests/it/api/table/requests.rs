//! The names and bodies that are sent.

use super::{
    MAC_OF_HELLO, MAC_OF_NOTHING, OPENED, SEALED_AES, SEALED_CHACHA, STORED, Who,
    model::{Does, is_name},
};

/// A name as it is sent.
pub struct Named {
    pub sent: String,
    pub decoded: String,
    /// The name is tried with every method and every body; the other names only where names matter.
    pub always: bool,
}

/// Replaced by a name that no key has yet.
pub const FRESH: &str = "a-fresh-name";

pub fn names_for(does: Does) -> Vec<Named> {
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
                // A key that is missing must stay missing for the other routes: new keys get names of their own.
                let stays = |name: &str| !is_name(name) || STORED.iter().any(|(stored, _)| *stored == name);
                names.retain(|name| stays(&name.decoded));
                names.push(plain(FRESH, true));
            }
        }
    }
    names
}

/// A body, and its answer once everything before the body is in order.
pub struct Sent {
    pub text: Option<&'static str>,
    /// The body is tried with every name.
    pub always: bool,
    pub then: Then,
}

#[derive(Clone, Copy, Debug)]
pub enum Then {
    /// No valid request.
    Invalid,
    /// The answer with a good key: nothing, a key made, or this template, as the route says.
    Says(&'static str),
    Unauthentic,
    /// 406.
    NotAcceptable(&'static str),
}

pub const fn sent(text: &'static str, then: Then) -> Sent {
    Sent { text: Some(text), always: false, then }
}

const fn always(text: &'static str, then: Then) -> Sent {
    Sent { text: Some(text), always: true, then }
}

const fn absent(then: Then) -> Sent {
    Sent { text: None, always: false, then }
}

/// Bodies for a route that reads none: no body changes the answer.
pub const UNREAD: &[Sent] =
    &[Sent { text: None, always: true, then: Then::Says("") }, sent("garbage", Then::Says(""))];

pub const DATA_KEY: Then = Then::Says("{\"plaintext\":\"⟨base64 44⟩\",\"ciphertext\":\"⟨base64 104⟩\"}\n");
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

pub const SEALED_NOTHING: Then = Then::Says("{\"ciphertext\":\"⟨base64 60⟩\"}\n");
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
    // The cipher is checked before the size, and its name is case-sensitive.
    sent("{\"key\":\"QUJD\",\"cipher\":\"DES\"}", Then::NotAcceptable("algorithm 'DES' is not supported")),
    sent(
        "{\"key\":\"QUJD\",\"cipher\":\"aes256\"}",
        Then::NotAcceptable("algorithm 'aes256' is not supported"),
    ),
    sent("{\"key\":\"QUJD\",\"cipher\":\"AES256\"}", Then::NotAcceptable("invalid key size for 'AES256'")),
    sent("{\"cipher\":\"ChaCha20\"}", Then::NotAcceptable("invalid key size for 'ChaCha20'")),
];

pub fn bodies_for(does: Does) -> &'static [Sent] {
    match does {
        Does::Generate => GENERATE,
        Does::Encrypt => ENCRYPT,
        Does::Decrypt => DECRYPT,
        Does::Hmac => HMAC,
        Does::Import => IMPORT,
        _ => UNREAD,
    }
}
