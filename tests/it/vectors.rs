//! What a real KES wrote, and what it made of what it read: every vector, by name.

use base64::{Engine, engine::general_purpose::STANDARD};
use keswarden::{
    crypto::{Key, Kind, key_version::KeyVersion},
    identity::{ApiKey, Certificate},
    kes::policy::Policy,
    names::{Name, Pattern},
};
use proptest::prelude::*;
use serde_json::Value;
use zeroize::Zeroizing;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/kes.json")).unwrap()
}

fn rows(section: &str) -> Vec<Value> {
    vectors()[section].as_array().unwrap().clone()
}

fn text(row: &Value, member: &str) -> String {
    row[member].as_str().unwrap_or_default().to_owned()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn bytes(row: &Value, member: &str) -> Vec<u8> {
    unhex(row[member].as_str().unwrap_or_default())
}

fn key(row: &Value) -> Key {
    let kind = Kind::parse(row["algorithm"].as_str().unwrap()).unwrap();
    Key::new(kind, Zeroizing::new(bytes(row, "key_hex").try_into().unwrap()), None)
}

#[test]
fn ciphertexts_of_all_three_formats_open_or_are_refused_as_by_kes() {
    for row in rows("decrypt") {
        let opened = key(&row).open(&bytes(&row, "ciphertext_hex"), &bytes(&row, "context_hex"));
        match row["expect"].as_str().unwrap() {
            "ok" => {
                assert_eq!(*opened.unwrap(), bytes(&row, "plaintext_hex"), "{}", row["id"])
            }
            _ => assert!(opened.is_err(), "{} must be refused: {}", row["id"], row["reason"]),
        }
    }
    for row in rows("msgpack") {
        let opened = key(&row).open(&bytes(&row, "ciphertext_hex"), &bytes(&row, "context_hex"));
        assert_eq!(*opened.unwrap(), bytes(&row, "plaintext_hex"));
    }
}

#[test]
fn what_we_seal_with_the_same_random_bytes_is_what_kes_sealed() {
    for row in rows("encrypt").into_iter().chain(rows("generate_dek")) {
        let ciphertext = bytes(&row, "ciphertext_hex");
        let random: &[u8; 28] = ciphertext.last_chunk().unwrap();
        let sealed = key(&row).seal_with(random, &bytes(&row, "plaintext_hex"), &bytes(&row, "context_hex"));
        assert_eq!(sealed, ciphertext);
    }
}

#[test]
fn hmacs_are_those_of_kes() {
    for row in rows("hmac") {
        let hmac_key = Zeroizing::new(bytes(&row, "hmac_key_hex").try_into().unwrap());
        let key = Key::new(Kind::Aes256, Zeroizing::new([0; 32]), Some(hmac_key));
        assert_eq!(key.hmac(&bytes(&row, "message_hex")).unwrap().to_vec(), bytes(&row, "hmac_hex"));
    }
}

#[test]
fn stored_keys_are_read_as_by_kes() {
    for row in rows("key_version_parse") {
        let parsed = KeyVersion::parse(text(&row, "raw").as_bytes());
        if row["expect"] != "ok" {
            assert!(parsed.is_err(), "{} must be refused: {}", row["id"], row["reason"]);
            continue;
        }
        let parsed = parsed.unwrap_or_else(|error| panic!("{}: {error}", row["id"]));
        assert!(parsed.key.seal_opens_with(&key(&row)), "{}", row["id"]);
        assert_eq!(parsed.created_by, text(&row, "created_by"));
        let expected: jiff::Timestamp = text(&row, "created_at").parse().unwrap();
        assert_eq!(parsed.created_at, expected, "{}", row["id"]);
        assert_eq!(parsed.key.has_hmac(), !row["hmac"].is_null());
    }
}

/// Seals with one and opens with the other.
trait SameKey {
    fn seal_opens_with(&self, other: &Key) -> bool;
}

impl SameKey for Key {
    fn seal_opens_with(&self, other: &Key) -> bool {
        other.open(&self.seal(b"x", b"c"), b"c").is_ok_and(|opened| *opened == b"x")
    }
}

#[test]
fn keys_that_we_write_are_byte_for_byte_what_kes_writes() {
    for row in rows("keystore_files") {
        let content = text(&row, "file_content");
        let parsed = KeyVersion::parse(content.as_bytes()).unwrap();
        assert_eq!(parsed.to_text().expose(), content);
        if let Some(created_at) = row["describe_response"]["created_at"].as_str() {
            assert_eq!(parsed.created_at.to_string(), created_at);
        }
        let with_line_end = KeyVersion::parse(format!("{content}\r\n").as_bytes()).unwrap();
        assert!(with_line_end.key.same(&parsed.key));
    }
}

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

#[test]
fn api_keys_lead_to_the_identities_of_kes() {
    for row in rows("api_keys") {
        let key = ApiKey::parse(&text(&row, "api_key")).ok().unwrap();
        assert_eq!(key.identity().as_str(), text(&row, "identity"));
        let (certificate, _) = key.certificate(1_700_000_000);
        let shown = Certificate::parse(&certificate).unwrap();
        assert_eq!((shown.identity.as_str(), shown.is_ca), (text(&row, "identity").as_str(), false));
    }
    for invalid in rows("api_keys_invalid") {
        assert!(ApiKey::parse(invalid.as_str().unwrap()).is_err(), "{invalid}");
    }
    assert!(ApiKey::parse(vectors()["api_key_without_prefix"].as_str().unwrap()).is_ok());
}

#[test]
fn certificates_lead_to_the_identities_of_kes() {
    for row in rows("certificates") {
        let der = STANDARD.decode(text(&row, "certificate_der_b64")).unwrap();
        assert_eq!(Certificate::parse(&der).unwrap().identity.as_str(), text(&row, "identity"));
    }
}

#[test]
fn names_and_patterns_follow_the_rules_of_kes() {
    let strings = |section: &str, kind: &str| -> Vec<String> {
        vectors()[section][kind]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap().to_owned())
            .collect()
    };
    for (kind, valid) in [("valid", true), ("invalid", false)] {
        for name in strings("names", kind) {
            assert_eq!(Name::parse(&name).is_ok(), valid, "{name:?}");
        }
        for pattern in strings("list_patterns", kind) {
            assert_eq!(Pattern::parse(&pattern).is_some(), valid, "{pattern:?}");
        }
    }
}

#[test]
fn policies_decide_as_kes_does() {
    for row in rows("policy_match") {
        let patterns = |member: &str| -> Vec<String> {
            row[member].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
        };
        let policy = Policy { allow: patterns("allow"), deny: patterns("deny") };
        for (path, allowed) in row["requests"].as_object().unwrap() {
            assert_eq!(policy.allows(path), allowed.as_bool().unwrap(), "{path} under {row}");
        }
    }
}

/// What a key is made of; `Key` itself has no `Debug`, on purpose.
type Parts = (bool, [u8; 32], Option<[u8; 32]>);

fn key_of((aes, bytes, hmac): Parts) -> Key {
    let kind = if aes { Kind::Aes256 } else { Kind::ChaCha20 };
    Key::new(kind, Zeroizing::new(bytes), hmac.map(Zeroizing::new))
}

proptest! {
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
