//! The context that MinIO sealed a DEK with, as JSON with the same bytes.

use std::{collections::BTreeMap, io::Write};

/// The suffix of a directory object's folder: `folder/` is kept in `folder__XLDIR__`, and sealed as `folder`.
const DIRECTORY_SUFFIX: &[u8] = b"__XLDIR__";

/// The context of an object: `{"bucket":"bucket/object"}`, merged into the client's own context of SSE-KMS.
///
/// `object` is the object's path on the drive. `client` is the client's context in JSON, or empty. Nothing
/// when `client` is no flat map of texts.
pub fn of_object(bucket: &str, object: &[u8], client: &[u8]) -> Option<Vec<u8>> {
    let mut pairs: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    if !client.is_empty() {
        let given: BTreeMap<String, String> = serde_json::from_slice(client).ok()?;
        pairs.extend(given.into_iter().map(|(name, value)| (name.into_bytes(), value.into_bytes())));
    }
    let object = object.strip_suffix(DIRECTORY_SUFFIX).unwrap_or(object);
    let place = || [bucket.as_bytes(), b"/", object].concat();
    pairs.entry(bucket.as_bytes().to_vec()).or_insert_with(place);
    Some(json(&pairs))
}

/// The context of one of MinIO's own files: `{".minio.sys":"PATH"}`.
pub(super) fn of_own(path: &str) -> Vec<u8> {
    json(&BTreeMap::from([(b".minio.sys".to_vec(), path.as_bytes().to_vec())]))
}

/// A compact JSON object, sorted by name, with Go's escapes for HTML.
fn json(pairs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut text = vec![b'{'];
    for (number, (name, value)) in pairs.iter().enumerate() {
        if number > 0 {
            text.push(b',');
        }
        quote(&mut text, name);
        text.push(b':');
        quote(&mut text, value);
    }
    text.push(b'}');
    text
}

fn quote(text: &mut Vec<u8>, raw: &[u8]) {
    text.push(b'"');
    for chunk in raw.utf8_chunks() {
        for character in chunk.valid().chars() {
            escape(text, character);
        }
        // Go replaces each byte that is not UTF-8.
        for _ in chunk.invalid() {
            text.extend_from_slice(b"\\ufffd");
        }
    }
    text.push(b'"');
}

fn escape(text: &mut Vec<u8>, character: char) {
    match character {
        '"' => text.extend_from_slice(b"\\\""),
        '\\' => text.extend_from_slice(b"\\\\"),
        '\n' => text.extend_from_slice(b"\\n"),
        '\r' => text.extend_from_slice(b"\\r"),
        '\t' => text.extend_from_slice(b"\\t"),
        '\0'..='\x1f' | '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
            write!(text, "\\u{:04x}", u32::from(character)).expect("a vector must take what is written");
        }
        other => text.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(object: &[u8], client: &str) -> String {
        let context = of_object("kms", object, client.as_bytes()).expect("there must be a context");
        String::from_utf8(context).expect("a context must be text")
    }

    #[test]
    fn names_are_escaped_as_go_does() {
        assert_eq!(of(b"d/e.bin", ""), r#"{"kms":"kms/d/e.bin"}"#);
        let odd = "a b/ü+<1>&\"\\\n\u{1}\u{2028}".as_bytes();
        assert_eq!(of(odd, ""), r#"{"kms":"kms/a b/ü+\u003c1\u003e\u0026\"\\\n\u0001\u2028"}"#);
        assert_eq!(of(b"a\xe2\x82b", ""), r#"{"kms":"kms/a\ufffd\ufffdb"}"#);
        assert_eq!(of(b"folder/sub__XLDIR__", ""), r#"{"kms":"kms/folder/sub"}"#);
    }

    #[test]
    fn a_clients_own_context_is_kept() {
        let client = r#"{"project":"\u003cx\u003e","a":"1"}"#;
        assert_eq!(of(b"o", client), r#"{"a":"1","kms":"kms/o","project":"\u003cx\u003e"}"#);
        assert_eq!(of(b"o", r#"{"kms":"other"}"#), r#"{"kms":"other"}"#);
        assert_eq!(of_object("kms", b"o", b"{\"a\":[1]}"), None);
        assert_eq!(of_object("kms", b"o", b"garbage"), None);
    }
}
