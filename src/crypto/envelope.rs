//! The bytes of a ciphertext: today's form, and the conversion of the two older forms.
//!
//! Today's form is sealed ‖ tag(16) ‖ iv(16) ‖ nonce(12). KES wrote MessagePack and JSON before; both have
//! the same parts. Bytes in none of the three forms are left unchanged, and fail to open.

use crate::go::json::{self, Kind, Wanted};
use std::borrow::Cow;

/// Length of the random KDF input, in bytes.
pub const IV: usize = 16;
/// Length of the AEAD nonce, in bytes.
pub const NONCE: usize = 12;
/// Length of the AEAD tag, in bytes.
pub const TAG: usize = 16;
/// Bytes that a ciphertext is longer than its plaintext.
pub const OVERHEAD: usize = TAG + IV + NONCE;

/// The ciphertext in today's form.
pub fn normal_form(ciphertext: &[u8]) -> Cow<'_, [u8]> {
    let older = match ciphertext.first() {
        Some(0x95) => from_msgpack(ciphertext),
        Some(b'{') => from_json(ciphertext),
        _ => None,
    };
    older.map_or(Cow::Borrowed(ciphertext), Cow::Owned)
}

fn joined(bytes: &[u8], iv: &[u8], nonce: &[u8]) -> Option<Vec<u8>> {
    (iv.len() == IV && nonce.len() == NONCE).then(|| [bytes, iv, nonce].concat())
}

/// Reads the MessagePack array `[algorithm str, id str, iv bin, nonce bin, bytes bin]`, with nothing after
/// the array.
fn from_msgpack(ciphertext: &[u8]) -> Option<Vec<u8>> {
    let mut rest = ciphertext.get(1..)?;
    let algorithm = take(&mut rest, Item::Text)?;
    let _id = take(&mut rest, Item::Text)?;
    let iv = take(&mut rest, Item::Bytes)?;
    let nonce = take(&mut rest, Item::Bytes)?;
    let bytes = take(&mut rest, Item::Bytes)?;
    let known = super::Kind::parse(std::str::from_utf8(algorithm).ok()?).is_some();
    if known && rest.is_empty() { joined(bytes, iv, nonce) } else { None }
}

#[derive(Clone, Copy)]
enum Item {
    Text,
    Bytes,
}

/// Takes a MessagePack str (fixstr, str 8/16/32) or bin (bin 8/16/32).
fn take<'a>(rest: &mut &'a [u8], item: Item) -> Option<&'a [u8]> {
    let (&marker, after) = rest.split_first()?;
    let (width, length) = match (item, marker) {
        (Item::Text, 0xa0..=0xbf) => (0, usize::from(marker & 0x1f)),
        (Item::Text, 0xd9) | (Item::Bytes, 0xc4) => (1, be(after.get(..1)?)),
        (Item::Text, 0xda) | (Item::Bytes, 0xc5) => (2, be(after.get(..2)?)),
        (Item::Text, 0xdb) | (Item::Bytes, 0xc6) => (4, be(after.get(..4)?)),
        _ => return None,
    };
    let taken = after.get(width..)?.get(..length)?;
    *rest = &after[width + length..];
    Some(taken)
}

/// A big-endian number.
fn be(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |sum, &byte| sum << 8 | usize::from(byte))
}

/// Reads the JSON object `{"aead","id","iv","nonce","bytes"}`, with nothing after the object.
fn from_json(ciphertext: &[u8]) -> Option<Vec<u8>> {
    const PARTS: Wanted = &[
        ("aead", Kind::Text),
        ("id", Kind::Text),
        ("iv", Kind::Bytes),
        ("nonce", Kind::Bytes),
        ("bytes", Kind::Bytes),
    ];
    let parts = json::whole(ciphertext, PARTS)?;
    let known = matches!(parts.text("aead"), "AES-256-GCM-HMAC-SHA-256" | "ChaCha20Poly1305");
    known.then(|| joined(parts.bytes("bytes"), parts.bytes("iv"), parts.bytes("nonce"))).flatten()
}
