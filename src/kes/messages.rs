//! The JSON of requests and answers: read as leniently as Go's decoder does, written as compactly.

use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine, alphabet, engine::general_purpose::STANDARD};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::fmt;
use zeroize::Zeroizing;

/// The members of a request body that some operation reads. What is absent is empty.
#[derive(Default)]
pub struct Members {
    pub plaintext: Bytes,
    pub ciphertext: Bytes,
    pub context: Bytes,
    pub message: Bytes,
    pub key: Bytes,
    pub cipher: String,
}

/// Decoded bytes; some of them are secret, so all are wiped.
pub type Bytes = Zeroizing<Vec<u8>>;

/// Base64 as Go reads it: padded, standard alphabet, trailing bits not looked at.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Which members an operation knows; others are ignored.
#[derive(Clone, Copy)]
pub struct Known(pub &'static [&'static str]);

// === impl Members ===

impl Members {
    /// Reads the first JSON value of a body; what follows it is ignored.
    pub fn parse(body: &[u8], known: Known) -> Option<Self> {
        let mut json = serde_json::Deserializer::from_slice(body);
        json.deserialize_any(Object { known }).ok()
    }

    fn bytes_of(&mut self, name: &str) -> Option<&mut Bytes> {
        match name {
            "plaintext" => Some(&mut self.plaintext),
            "ciphertext" => Some(&mut self.ciphertext),
            "context" => Some(&mut self.context),
            "message" => Some(&mut self.message),
            "key" => Some(&mut self.key),
            _ => None,
        }
    }
}

struct Object {
    known: Known,
}

impl<'de> Visitor<'de> for Object {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<Members, E> {
        Ok(Members::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
        let mut members = Members::default();
        while let Some(name) = map.next_key_seed(MemberName(self.known))? {
            match name {
                None => drop(map.next_value::<IgnoredAny>()?),
                Some(name) => {
                    if let Some(field) = members.bytes_of(name) {
                        map.next_value_seed(BytesOf(field))?;
                    } else {
                        let text: Option<String> = map.next_value()?;
                        if let ("cipher", Some(text)) = (name, text) {
                            members.cipher = text;
                        }
                    }
                }
            }
        }
        Ok(members)
    }
}

/// A member's name, matched without regard to case, and without keeping what is unknown.
struct MemberName(Known);

impl<'de> DeserializeSeed<'de> for MemberName {
    type Value = Option<&'static str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for MemberName {
    type Value = Option<&'static str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.0.iter().find(|known| known.eq_ignore_ascii_case(text)).copied())
    }
}

/// Base64 text, an array of numbers 0–255, or `null`, which leaves what was there.
struct BytesOf<'a>(&'a mut Bytes);

impl<'de> DeserializeSeed<'de> for BytesOf<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BytesOf<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("base64 text")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let decoded = match text.contains(['\r', '\n']) {
            false => LENIENT.decode(text),
            true => LENIENT.decode(&*Zeroizing::new(text.replace(['\r', '\n'], ""))),
        };
        *self.0 = Zeroizing::new(decoded.map_err(|_| E::custom("not base64"))?);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<(), A::Error> {
        self.0.clear();
        while let Some(number) = numbers.next_element()? {
            self.0.push(number);
        }
        Ok(())
    }
}

/// `{"name":"base64",…}` and a line end, in one allocation.
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

/// A JSON string with Go's escapes, which also cover `<`, `>`, `&`, U+2028 and U+2029.
pub fn quoted(text: &str) -> String {
    let plain = serde_json::to_string(text).expect("text must encode");
    let mut escaped = String::with_capacity(plain.len());
    for character in plain.chars() {
        match character {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                escaped.push_str(&format!("\\u{:04x}", u32::from(character)));
            }
            '\u{7f}' => escaped.push(character),
            other => escaped.push(other),
        }
    }
    escaped
}
