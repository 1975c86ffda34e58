//! What must hold for any bytes whatsoever: used by the fuzz targets, and by `tests/it/corpus.rs` on the seeds.

use base64::{Engine, engine::general_purpose::STANDARD};
use keswarden::{
    config::kes_yaml::{self, Purpose},
    crypto::{Key, Kind, envelope, key_version::KeyVersion},
    evidence::xl_meta,
    go::json,
    kes::{
        messages,
        policy::Policy,
        routes::{self, Found},
    },
};
use std::collections::BTreeMap;
use zeroize::Zeroizing;

/// Ciphertexts of every format, as a stranger sends them: what was broken does not open.
pub fn envelope(data: &[u8]) {
    for kind in [Kind::Aes256, Kind::ChaCha20] {
        let key = Key::new(kind, Zeroizing::new([7; 32]), None);
        // The first byte says where to break what was sealed, the rest is what a stranger sends.
        let sealed = key.seal(data, b"context");
        assert_eq!(key.open(&sealed, b"context").as_deref().map(Vec::as_slice), Ok(data));
        if let Some((&at, with)) = data.split_first() {
            let mut broken = sealed.clone();
            let at = usize::from(at) % broken.len();
            for (byte, other) in broken[at..].iter_mut().zip(with) {
                *byte ^= other;
            }
            assert!(broken == sealed || key.open(&broken, b"context").is_err());
        }
        // The fuzzer sees what tags are compared with, so it can forge one for this key: what opens is then what sealing with
        // the same randomness gives.
        if let Ok(opened) = key.open(data, b"context") {
            let normal = envelope::normal_form(data);
            let random: &[u8; 28] = normal.last_chunk().expect("what opens must be long enough");
            assert!(key.seal_with(random, &opened, b"context") == *normal);
        }
    }
}

/// Stored keys: what is read is written as KES writes it, and read again as the same key.
pub fn key_version(data: &[u8]) {
    let encoded = STANDARD.encode(data);
    for stored in [data, encoded.as_bytes()] {
        let Ok(read) = KeyVersion::parse(stored) else { continue };
        assert!(read.key.works());
        let text = read.to_text();
        let again = KeyVersion::parse(text.expose().as_bytes()).expect("what we write must be readable");
        assert!(again.key.same(&read.key));
        assert!(again.created_at == read.created_at && again.created_by == read.created_by);
        assert!(again.to_text().expose() == text.expose());
    }
}

/// Bodies of requests, and paths: no panic, and the same answer twice.
pub fn request_body(data: &[u8]) {
    for wanted in [messages::GENERATE, messages::ENCRYPT, messages::DECRYPT, messages::HMAC, messages::IMPORT]
    {
        let first = json::first(data, wanted);
        // A whole document is a first value too.
        if let Some(whole) = json::whole(data, wanted) {
            let first = first.as_ref().expect("what is whole must begin");
            for (name, _) in wanted {
                assert_eq!(whole.bytes(name), first.bytes(name));
            }
        }
        // What follows the first value is not looked at.
        if let Some(first) = first {
            let more = [data, b" } garbage"].concat();
            let again = json::first(&more, wanted).expect("garbage behind it must not matter");
            for (name, _) in wanted {
                assert_eq!(again.bytes(name), first.bytes(name));
            }
        }
    }
    // A path that is moved is moved once.
    if let Ok(path) = std::str::from_utf8(data)
        && let Found::Moved(to) = routes::find(path)
    {
        assert!(!matches!(routes::find(&to.replace('%', "%25")), Found::Moved(again) if again == to), "{to}");
    }
}

/// Policies: KES's rules are two lines, and these are they.
pub fn policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let mut lines = text.lines();
    let path = lines.next().unwrap_or_default();
    let (allow, deny): (Vec<_>, Vec<_>) = lines.partition(|line| !line.starts_with('!'));
    let deny: Vec<_> = deny.into_iter().map(|line| &line[1..]).collect();
    let matches = |pattern: &&str| match pattern.strip_suffix('*') {
        Some(prefix) => path.as_bytes().starts_with(prefix.as_bytes()),
        None => !pattern.is_empty() && *pattern == path,
    };
    let expected = !deny.iter().any(matches) && allow.iter().any(matches);
    let owned = |patterns: &[&str]| patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    let policy = Policy { allow: owned(&allow), deny: owned(&deny) };
    assert_eq!(policy.allows(path), expected);
    for pattern in policy.ineffective() {
        assert!(pattern.contains(['*', '?', '[']), "{pattern}");
    }
}

/// Configuration files: no panic, no loop, an error or a configuration, and the same each time.
pub fn server_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment: BTreeMap<_, _> = [("SET", "value"), ("EMPTY", ""), ("YES", "on")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
    for purpose in [Purpose::Server, Purpose::KeyStore] {
        let (one, two) =
            (kes_yaml::parse(text, &environment, purpose), kes_yaml::parse(text, &environment, purpose));
        match (one, two) {
            (Ok(one), Ok(two)) => {
                assert!(one.digest() == two.digest() && one.store_digest == two.store_digest)
            }
            (Err(one), Err(two)) => {
                assert!(!one.is_empty(), "a refusal must say why");
                assert_eq!(one, two);
            }
            _ => panic!("the same text must have the same outcome"),
        }
    }
}

/// MinIO's metadata files: no panic, nothing larger than what came in, and the same from as many bytes as it says are needed.
pub fn xl_meta(data: &[u8]) {
    let read = xl_meta::parse(data);
    assert!(read == xl_meta::parse(data));
    if let Ok(versions) = &read {
        assert!(versions.len() <= data.len());
    }
    if let Some(needed) = xl_meta::needed(data).and_then(|needed| data.get(..usize::try_from(needed).ok()?)) {
        assert!(read.is_err() || xl_meta::parse(needed) == read);
    }
    if let Ok(xl_meta::Own::Sealed(_, sealed)) = xl_meta::own(data) {
        assert!(sealed.ciphertext.len() <= data.len() && sealed.key_name.len() <= data.len());
    }
}
