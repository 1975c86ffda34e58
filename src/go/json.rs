//! JSON as Go's decoder reads it: KES's clients, key files and ciphertexts rely on its leniency (kes-spec §0).
//!
//! Member names match in any case, unknown members are ignored, the last duplicate wins, `null` empties bytes and leaves
//! text as it was, and bytes are base64 text (line ends in it are skipped, trailing bits are not looked at) or an array of numbers.

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use std::fmt;
use zeroize::{Zeroize, Zeroizing};

/// Decoded bytes; some of them are secret, so all are wiped.
pub type Bytes = Zeroizing<Vec<u8>>;

/// What a member holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Bytes,
    Text,
}

/// The members that are wanted; others are ignored.
pub type Wanted = &'static [(&'static str, Kind)];

/// The members that were found. What is absent is empty.
pub struct Object {
    wanted: Wanted,
    values: Vec<Zeroizing<Vec<u8>>>,
    present: Vec<bool>,
}

/// Base64 as Go reads it: padded, standard alphabet, trailing bits not looked at.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Decodes base64 as Go does: carriage returns and line feeds are skipped.
pub fn base64(text: &[u8]) -> Option<Bytes> {
    let decoded = match text.iter().any(|byte| matches!(byte, b'\r' | b'\n')) {
        false => LENIENT.decode(text),
        true => {
            let mut tidy = Zeroizing::new(Vec::with_capacity(text.len()));
            tidy.extend(text.iter().filter(|byte| !matches!(byte, b'\r' | b'\n')));
            LENIENT.decode(&*tidy)
        }
    };
    decoded.ok().map(Zeroizing::new)
}

/// The first JSON value of a stream, which must be an object or `null`; what follows it is not looked at.
pub fn first(stream: &[u8], wanted: Wanted) -> Option<Object> {
    let mut json = serde_json::Deserializer::from_slice(stream);
    json.deserialize_any(Members(wanted)).ok()
}

/// A document that is one JSON value, an object or `null`, and nothing else.
pub fn whole(document: &[u8], wanted: Wanted) -> Option<Object> {
    let mut json = serde_json::Deserializer::from_slice(document);
    let object = json.deserialize_any(Members(wanted)).ok()?;
    json.end().ok()?;
    Some(object)
}

/// The document is one JSON value, whatever it says.
pub fn is_json(document: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(document).is_ok()
}

// === impl Object ===

impl Object {
    fn empty(wanted: Wanted) -> Self {
        Self {
            wanted,
            values: wanted.iter().map(|_| Bytes::default()).collect(),
            present: vec![false; wanted.len()],
        }
    }

    /// The bytes of a member, empty when it is absent.
    ///
    /// # Panics
    /// When the member was not wanted.
    pub fn bytes(&self, name: &str) -> &[u8] {
        &self.values[self.index(name)]
    }

    /// The text of a member, empty when it is absent.
    pub fn text(&self, name: &str) -> &str {
        std::str::from_utf8(self.bytes(name)).unwrap_or_default()
    }

    /// The member is there, and is not `null`.
    pub fn has(&self, name: &str) -> bool {
        self.present[self.index(name)]
    }

    fn index(&self, name: &str) -> usize {
        let found = self.wanted.iter().position(|(known, _)| *known == name);
        found.expect("a member that is read must be wanted")
    }
}

/// Reads the members of an object.
struct Members(Wanted);

impl<'de> Visitor<'de> for Members {
    type Value = Object;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_unit<E: Error>(self) -> Result<Object, E> {
        Ok(Object::empty(self.0))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Object, A::Error> {
        let mut object = Object::empty(self.0);
        while let Some(found) = map.next_key_seed(MemberName(self.0))? {
            let Some(index) = found else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let (value, kind) = (&mut object.values[index], self.0[index].1);
            match map.next_value_seed(Value { value, kind })? {
                true => object.present[index] = true,
                false if kind == Kind::Bytes => {
                    object.values[index].zeroize();
                    object.present[index] = false;
                }
                false => {}
            }
        }
        Ok(object)
    }
}

/// The index of the wanted member that a name stands for.
struct MemberName(Wanted);

impl<'de> DeserializeSeed<'de> for MemberName {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for MemberName {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a member name")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|(known, _)| same_folded(known, text)))
    }
}

/// Equal in Unicode's simple folding, in which two letters beyond ASCII fold into it: the long s and the Kelvin sign.
fn same_folded(known: &str, text: &str) -> bool {
    let fold = |character: char| match character {
        'ſ' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    };
    known.chars().eq(text.chars().map(fold))
}

/// Reads one wanted member; false for `null`.
struct Value<'a> {
    value: &'a mut Bytes,
    kind: Kind,
}

impl<'de> DeserializeSeed<'de> for Value<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Value<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.kind == Kind::Text { "text" } else { "base64 text" })
    }

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<bool, E> {
        *self.value = match self.kind {
            Kind::Text => Zeroizing::new(text.as_bytes().to_vec()),
            Kind::Bytes => base64(text.as_bytes()).ok_or_else(|| E::custom("not base64"))?,
        };
        Ok(true)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut numbers: A) -> Result<bool, A::Error> {
        if self.kind == Kind::Text {
            return Err(A::Error::custom("not text"));
        }
        self.value.zeroize();
        // `null` in an array of numbers is 0.
        while let Some(number) = numbers.next_element::<Option<u8>>()? {
            self.value.push(number.unwrap_or(0));
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = &[("context", Kind::Bytes), ("cipher", Kind::Text)];

    #[test]
    fn what_go_takes_is_taken() {
        for (json, bytes) in [
            (r#"{"context":"YQ=="}"#, "a"),
            (r#"{"CONTEXT":"YQ=="}"#, "a"),
            (r#"{"context":"Yg==","Context":"YQ=="}"#, "a"),
            (r#"{"context":"YQ==","context":null}"#, ""),
            (r#"{"context":"Y\r\nQ=\n="}"#, "a"),
            (r#"{"context":"YR=="}"#, "a"),
            (r#"{"context":[97]}"#, "a"),
            (r#"{"context":[]}"#, ""),
            (r#"{"context":[null]}"#, "\0"),
            (r#"{"other":{"context":[["deep"]]},"context":"YQ=="} and then anything"#, "a"),
            ("null", ""),
            ("{}", ""),
        ] {
            let object = first(json.as_bytes(), WANTED).unwrap_or_else(|| panic!("{json}"));
            assert_eq!(object.bytes("context"), bytes.as_bytes(), "{json}");
        }
        let nested = format!("{{\"x\":{}{},\"context\":\"YQ==\"}}", "[".repeat(5000), "]".repeat(5000));
        assert!(first(nested.as_bytes(), WANTED).is_some(), "depth is no matter");
        let kelvin = first("{\"ke\u{79}\":1,\"\u{212a}EY\":\"YQ==\"}".as_bytes(), &[("key", Kind::Bytes)]);
        assert!(kelvin.is_none(), "a number is no bytes");
        let kelvin = first("{\"\u{212a}EY\":\"YQ==\"}".as_bytes(), &[("key", Kind::Bytes)]);
        assert!(kelvin.is_some_and(|object| object.bytes("key") == b"a"));
    }

    #[test]
    fn what_go_refuses_is_refused() {
        for json in [
            "",
            "7",
            "[]",
            "\"x\"",
            "{",
            r#"{"context":7}"#,
            r#"{"context":{}}"#,
            r#"{"context":[256]}"#,
            r#"{"context":[1.0]}"#,
            r#"{"context":"YQ"}"#,
            r#"{"context":"_-=="}"#,
            r#"{"cipher":["x"]}"#,
            r#"{"context":true}"#,
        ] {
            assert!(first(json.as_bytes(), WANTED).is_none(), "{json}");
        }
        assert!(whole(b"{} x", WANTED).is_none() && whole(b" {} \n", WANTED).is_some());
    }
}
