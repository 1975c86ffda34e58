//! Keys and ciphertexts of any content: a ciphertext opens in each format, and a changed ciphertext does not.

use base64::{Engine, engine::general_purpose::STANDARD};
use keswarden::crypto::{Key, Kind, key_version::KeyVersion};
use proptest::prelude::*;
use zeroize::Zeroizing;

#[test]
fn stored_bytes_that_are_no_key_are_refused_and_say_why() {
    let encode = |bytes: &[u8]| STANDARD.encode(bytes);
    let short = [&[0x0a, 0x23, 0x0a, 31][..], &[7; 31], &[0x10, 1]].concat();
    let odd_type = [&[0x0a, 0x24, 0x0a, 32][..], &[7; 32], &[0x10, 9]].concat();
    for (stored, says) in [
        (String::new(), "no key"),
        ("{}".to_owned(), "no key"),
        ("[]".to_owned(), "not of the form"),
        ("!!!!".to_owned(), "neither base64"),
        (encode(b"\xff\xff\xff"), "no protobuf"),
        (encode(&short), "31 bytes"),
        (encode(&odd_type), "type is 9"),
        (format!("{{\"bytes\":\"{}\"}}", encode(&[1; 16])), "16 bytes"),
        (format!("{{\"bytes\":\"{}\",\"algorithm\":\"AES256-GCM\"}}", encode(&[1; 32])), "algorithm"),
        (format!("{{\"bytes\":\"{}\"}} trailing", encode(&[1; 32])), "neither base64"),
    ] {
        let error = KeyVersion::parse(stored.as_bytes()).err().expect(&stored).to_string();
        assert!(error.contains(says), "{stored}: {error}");
    }
}

/// The parts of a key; `Key` itself has no `Debug`, on purpose.
type Parts = (bool, [u8; 32], Option<[u8; 32]>);

fn key_of((aes, bytes, hmac): Parts) -> Key {
    let kind = if aes { Kind::Aes256 } else { Kind::ChaCha20 };
    Key::new(kind, Zeroizing::new(bytes), hmac.map(Zeroizing::new))
}

/// The same ciphertext as older versions of KES wrote it: `[algorithm, id, iv, nonce, bytes]` in MessagePack.
fn as_msgpack(kind: Kind, id: &str, sealed: &[u8]) -> Vec<u8> {
    let text = |text: &str| [&[0xd9, u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat();
    let bin =
        |bytes: &[u8]| [&[0xc6][..], &u32::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat();
    let (bytes, iv, nonce) = parts_of(sealed);
    [&[0x95][..], &text(kind.name()), &text(id), &bin(iv), &bin(nonce), &bin(bytes)].concat()
}

/// The same ciphertext as still older versions of KES wrote it, in JSON.
fn as_json(kind: Kind, id: &str, sealed: &[u8]) -> Vec<u8> {
    let aead = match kind {
        Kind::Aes256 => "AES-256-GCM-HMAC-SHA-256",
        Kind::ChaCha20 => "ChaCha20Poly1305",
    };
    let (bytes, iv, nonce) = parts_of(sealed);
    let encode = |bytes: &[u8]| STANDARD.encode(bytes);
    let value = serde_json::json!({
        "aead": aead, "id": id, "iv": encode(iv), "nonce": encode(nonce), "bytes": encode(bytes),
    });
    value.to_string().into_bytes()
}

fn parts_of(sealed: &[u8]) -> (&[u8], &[u8], &[u8]) {
    let (bytes, random) = sealed.split_at(sealed.len() - 28);
    let (iv, nonce) = random.split_at(16);
    (bytes, iv, nonce)
}

proptest! {
    #[test]
    fn the_older_formats_open_as_todays_does(
        parts: Parts, plaintext: Vec<u8>, context: Vec<u8>, id in "[0-9a-f]{32}", at: prop::sample::Index, bit in 0..8_u32,
    ) {
        let key = key_of(parts);
        let sealed = key.seal(&plaintext, &context);
        for older in [as_msgpack(key.kind(), &id, &sealed), as_json(key.kind(), &id, &sealed)] {
            prop_assert_eq!(&*key.open(&older, &context).unwrap(), &plaintext);
            let mut changed = older.clone();
            changed[at.index(older.len())] ^= 1_u8 << bit;
            // A change of the names, which nothing seals, may leave the ciphertext whole; a text that opens is the sealed text.
            if let Ok(opened) = key.open(&changed, &context) {
                prop_assert_eq!(&*opened, &plaintext);
            }
        }
        let mut changed = sealed.clone();
        changed[at.index(sealed.len())] ^= 1_u8 << bit;
        for older in [as_msgpack(key.kind(), &id, &changed), as_json(key.kind(), &id, &changed)] {
            let refused = key.open(&older, &context).unwrap_err();
            prop_assert_eq!(refused.to_string(), "decryption failed: ciphertext is not authentic");
        }
    }

    #[test]
    fn anything_sealed_opens_for_its_context_alone(
        parts: Parts, plaintext: Vec<u8>, context: Vec<u8>, other: Vec<u8>,
    ) {
        let key = key_of(parts);
        let sealed = key.seal(&plaintext, &context);
        prop_assert_eq!(sealed.len(), plaintext.len() + 44);
        prop_assert_eq!(&*key.open(&sealed, &context).unwrap(), &plaintext);
        prop_assert_eq!(key.open(&sealed, &other).is_ok(), other == context);
    }

    #[test]
    fn any_flipped_bit_is_refused(parts: Parts, plaintext: Vec<u8>, at: prop::sample::Index, bit in 0..8_u32) {
        let key = key_of(parts);
        let mut sealed = key.seal(&plaintext, b"{}");
        let at = at.index(sealed.len());
        sealed[at] ^= 1_u8 << bit;
        let opened = key.open(&sealed, b"{}");
        prop_assert!(opened.is_err());
    }

    #[test]
    fn any_key_survives_its_text(parts: Parts, seconds in 0..4_000_000_000_i64, nanos in 0..1_000_000_000, by in "[a-f0-9]{0,64}") {
        let key = key_of(parts);
        let created_at = jiff::Timestamp::new(seconds, nanos).unwrap();
        let version = KeyVersion { key, created_at, created_by: by };
        let read = KeyVersion::parse(version.to_text().expose().as_bytes()).unwrap();
        prop_assert!(read.key.same(&version.key));
        prop_assert_eq!(read.key.fingerprint(), version.key.fingerprint());
        prop_assert_eq!((read.created_at, read.created_by), (version.created_at, version.created_by));
    }

    #[test]
    fn no_bytes_panic_the_parsers(bytes: Vec<u8>, parts: Parts) {
        let key = key_of(parts);
        let _ = KeyVersion::parse(&bytes);
        let _ = KeyVersion::parse(STANDARD.encode(&bytes).as_bytes());
        for first in [0x95, b'{'] {
            let _ = key.open(&[&[first][..], &bytes].concat(), b"");
        }
        prop_assert!(key.open(&bytes, b"").is_err());
    }
}
