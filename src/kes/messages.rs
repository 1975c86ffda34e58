//! The JSON of requests and answers: the members that each operation reads, and the writing of answers.

use crate::go::json::{Kind, Wanted};
use base64::{Engine, engine::general_purpose::STANDARD};

/// Members that `generate` reads. `version` must be text, and is ignored.
pub const GENERATE: Wanted = &[("context", Kind::Bytes), ("version", Kind::Text)];
/// Members that `encrypt` reads.
pub const ENCRYPT: Wanted = &[("plaintext", Kind::Bytes), ("context", Kind::Bytes), ("version", Kind::Text)];
/// Members that `decrypt` reads.
pub const DECRYPT: Wanted = &[("ciphertext", Kind::Bytes), ("context", Kind::Bytes), ("version", Kind::Text)];
/// Members that `hmac` reads.
pub const HMAC: Wanted = &[("message", Kind::Bytes), ("version", Kind::Text)];
/// Members that `import` reads.
pub const IMPORT: Wanted = &[("key", Kind::Bytes), ("cipher", Kind::Text)];

/// The text `{"name":"base64",…}` and a line end, in one allocation.
pub fn bytes_object(members: &[(&str, &[u8])]) -> String {
    let length: usize =
        members.iter().map(|(name, bytes)| name.len() + bytes.len().div_ceil(3) * 4 + 6).sum();
    let mut text = String::with_capacity(length + 3);
    for (name, bytes) in members {
        text.push(if text.is_empty() { '{' } else { ',' });
        text.push('"');
        text.push_str(name);
        text.push_str("\":\"");
        STANDARD.encode_string(bytes, &mut text);
        text.push('"');
    }
    text.push_str("}\n");
    text
}
