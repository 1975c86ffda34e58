//! The text of a stored key: base64 of a protobuf message, as KES writes keys, and the JSON that KES wrote
//! before.
//!
//! ```text
//! KeyVersion { 1: SecretKey{1: bytes key, 2: uint32 type}, 2: HMACKey{1: bytes key, 2: uint32 hash},
//!              3: google.protobuf.Timestamp{1: int64 seconds, 2: int32 nanos}, 4: string created_by }
//! ```

use super::{Key, Kind};
use crate::{
    go::json::{self, Wanted},
    secret::{self, Bytes32, Secret},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use zeroize::Zeroizing;

/// A key, with the time and the identity of its creation.
pub struct KeyVersion {
    /// The key.
    pub key: Key,
    /// The time of creation; the year 1 where the older form has none.
    pub created_at: Timestamp,
    /// The identity that created the key; may be empty.
    pub created_by: String,
}

/// The reason that a stored text is no key. No variant has bytes of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The text is neither base64 nor JSON.
    #[error("it is neither base64 text nor JSON")]
    Encoding,
    /// The base64 text has no protobuf message.
    #[error("the base64 text holds no protobuf message")]
    Protobuf,
    /// The JSON is not of KES's form.
    #[error("it is JSON, but not of the form {{\"bytes\",\"algorithm\",\"created_at\",\"created_by\"}}")]
    Json,
    /// The member of the key is missing.
    #[error("it holds no key")]
    NoKey,
    /// The key's length in bytes, which is not 32.
    #[error("the key is {0} bytes long, not 32")]
    KeyLength(usize),
    /// The key's type, which is unknown.
    #[error("the key's type is {0}, which is neither 1 (AES256) nor 2 (ChaCha20)")]
    KeyType(u64),
    /// The algorithm's name is unknown.
    #[error("the algorithm is none of AES256, AES256-GCM_SHA256, ChaCha20, XCHACHA20-POLY1305")]
    Algorithm,
    /// The HMAC key's length in bytes, which is not 32.
    #[error("the HMAC key is {0} bytes long, not 32")]
    HmacLength(usize),
    /// The HMAC key's hash, which is unknown.
    #[error("the HMAC key's hash is {0}, not 1 (SHA-256)")]
    HmacHash(u64),
    /// The time or the identity of creation cannot be read.
    #[error("the time or the maker is not readable")]
    Metadata,
}

/// The year 1, Go's zero time.
const YEAR_ONE: &str = "0001-01-01T00:00:00Z";

// === impl KeyVersion ===

impl KeyVersion {
    /// A new key: 32 random bytes, and 32 more for HMAC.
    pub fn generate(kind: Kind, created_at: Timestamp, created_by: String) -> Self {
        let key = Key::new(kind, secret::random32(), Some(secret::random32()));
        Self { key, created_at, created_by }
    }

    /// Reads the text of a stored key. A text that is JSON as a whole is in the older form.
    ///
    /// # Errors
    /// When the text is in neither form, or has no usable key.
    pub fn parse(stored: &[u8]) -> Result<Self, Malformed> {
        if json::is_json(stored) {
            return from_json(stored);
        }
        let message = json::base64(stored).ok_or(Malformed::Encoding)?;
        from_protobuf(&message)
    }

    /// The text that KES stores: base64, padded, without a line end.
    pub fn to_text(&self) -> Secret {
        let mut message = Zeroizing::new(Vec::with_capacity(256));
        let (bytes, hmac_key) = self.key.parts();
        let number = match self.key.kind() {
            Kind::Aes256 => 1,
            Kind::ChaCha20 => 2,
        };
        put_secret(&mut message, 1, bytes, number);
        if let Some(hmac_key) = hmac_key {
            put_secret(&mut message, 2, hmac_key, 1);
        }
        let mut timestamp = Vec::new();
        put_number(&mut timestamp, 1, self.created_at.as_second().cast_unsigned());
        put_number(&mut timestamp, 2, i64::from(self.created_at.subsec_nanosecond()).cast_unsigned());
        put_bytes(&mut message, 3, &timestamp);
        if !self.created_by.is_empty() {
            put_bytes(&mut message, 4, self.created_by.as_bytes());
        }
        Secret::new(STANDARD.encode(&*message))
    }
}

fn bytes32(bytes: &[u8]) -> Result<Bytes32, usize> {
    let mut key = Zeroizing::new([0; 32]);
    if bytes.len() != 32 {
        return Err(bytes.len());
    }
    key.copy_from_slice(bytes);
    Ok(key)
}

fn from_json(stored: &[u8]) -> Result<KeyVersion, Malformed> {
    const PARTS: Wanted = &[
        ("bytes", json::Kind::Bytes),
        ("algorithm", json::Kind::Text),
        ("created_at", json::Kind::Text),
        ("created_by", json::Kind::Text),
    ];
    let parts = json::whole(stored, PARTS).ok_or(Malformed::Json)?;
    if !parts.has("bytes") {
        return Err(Malformed::NoKey);
    }
    let kind = match parts.text("algorithm") {
        "" => Kind::Aes256,
        name => Kind::parse(name).ok_or(Malformed::Algorithm)?,
    };
    let key = Key::new(kind, bytes32(parts.bytes("bytes")).map_err(Malformed::KeyLength)?, None);
    let created_at = if parts.has("created_at") { parts.text("created_at") } else { YEAR_ONE };
    let created_at = created_at.parse().map_err(|_| Malformed::Metadata)?;
    Ok(KeyVersion { key, created_at, created_by: parts.text("created_by").to_owned() })
}

fn from_protobuf(message: &[u8]) -> Result<KeyVersion, Malformed> {
    let (mut key, mut hmac_key) = (None, None);
    let (mut seconds, mut nanos, mut created_by) = (0, 0, String::new());
    for field in Fields(message) {
        match field? {
            (1, Value::Bytes(bytes)) => key = Some(SecretField::parse(bytes)?),
            (2, Value::Bytes(bytes)) => hmac_key = Some(SecretField::parse(bytes)?),
            (3, Value::Bytes(bytes)) => {
                for field in Fields(bytes) {
                    match field? {
                        (1, Value::Number(number)) => seconds = number.cast_signed(),
                        (2, Value::Number(number)) => nanos = number.cast_signed(),
                        _ => {}
                    }
                }
            }
            (4, Value::Bytes(bytes)) => {
                created_by = std::str::from_utf8(bytes).map_err(|_| Malformed::Metadata)?.to_owned();
            }
            _ => {}
        }
    }
    let key = key.ok_or(Malformed::NoKey)?;
    let kind = match key.number {
        1 => Kind::Aes256,
        2 => Kind::ChaCha20,
        other => return Err(Malformed::KeyType(other)),
    };
    let bytes = bytes32(key.bytes).map_err(Malformed::KeyLength)?;
    let hmac_key = match hmac_key {
        None => None,
        Some(SecretField { number, .. }) if number != 1 => return Err(Malformed::HmacHash(number)),
        Some(field) => Some(bytes32(field.bytes).map_err(Malformed::HmacLength)?),
    };
    let nanos = i32::try_from(nanos).map_err(|_| Malformed::Metadata)?;
    let created_at = Timestamp::new(seconds, nanos).map_err(|_| Malformed::Metadata)?;
    Ok(KeyVersion { key: Key::new(kind, bytes, hmac_key), created_at, created_by })
}

/// The message `{1: bytes, 2: uint32}`: a key with its type, or an HMAC key with its hash.
#[derive(Default)]
struct SecretField<'a> {
    bytes: &'a [u8],
    number: u64,
}

impl<'a> SecretField<'a> {
    fn parse(message: &'a [u8]) -> Result<Self, Malformed> {
        let mut field = Self::default();
        for part in Fields(message) {
            match part? {
                (1, Value::Bytes(bytes)) => field.bytes = bytes,
                (2, Value::Number(number)) => field.number = number,
                _ => {}
            }
        }
        Ok(field)
    }
}

/// The fields of a protobuf message, in order, unknown ones included.
struct Fields<'a>(&'a [u8]);

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Eight or four fixed bytes, which no field of a key has.
    Fixed,
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            _ => return None,
        };
        (tag >> 3 != 0).then_some((tag >> 3, value))
    }

    fn varint(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field.ok_or(Malformed::Protobuf))
    }
}

fn put_secret(message: &mut Vec<u8>, field: u64, bytes: &Bytes32, number: u64) {
    let mut inner = Zeroizing::new(Vec::with_capacity(48));
    put_bytes(&mut inner, 1, &**bytes);
    put_number(&mut inner, 2, number);
    put_bytes(message, field, &inner);
}

fn put_bytes(message: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(message, field << 3 | 2);
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

/// Appends a number, unless the number is 0, which is the default of proto3.
fn put_number(message: &mut Vec<u8>, field: u64, number: u64) {
    if number != 0 {
        put_varint(message, field << 3);
        put_varint(message, number);
    }
}

fn put_varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number as u8 | 0x80);
        number >>= 7;
    }
    message.push(number as u8);
}
