//! What a real KES wrote, and what it made of what it read: every vector is a test of its own, by name.

use base64::{Engine, engine::general_purpose::STANDARD};
use keswarden::{
    crypto::{Key, Kind, key_version::KeyVersion},
    identity::{ApiKey, Certificate},
    kes::policy::Policy,
    names::{Name, Pattern},
};
use libtest_mimic::{Arguments, Failed, Trial};
use serde_json::Value;
use zeroize::Zeroizing;

type Checked = Result<(), Failed>;
type Section = (&'static str, fn(&Value) -> Checked);

fn text(row: &Value, member: &str) -> String {
    row[member].as_str().unwrap_or_default().to_owned()
}

fn bytes(row: &Value, member: &str) -> Vec<u8> {
    let text = row[member].as_str().unwrap_or_default();
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("must be hex"))
        .collect()
}

fn key(row: &Value) -> Result<Key, Failed> {
    let kind = Kind::parse(&text(row, "algorithm")).ok_or("the vector names no algorithm")?;
    let key: [u8; 32] = bytes(row, "key_hex").try_into().map_err(|_| "the vector has no key")?;
    Ok(Key::new(kind, Zeroizing::new(key), None))
}

fn same<T: PartialEq + std::fmt::Debug>(ours: T, theirs: T) -> Checked {
    if ours == theirs { Ok(()) } else { Err(format!("ours: {ours:?}\ntheirs: {theirs:?}").into()) }
}

fn that(holds: bool, what: &str) -> Checked {
    if holds { Ok(()) } else { Err(what.into()) }
}

/// A ciphertext of any format opens, or is refused.
fn decrypt(row: &Value) -> Checked {
    let opened = key(row)?.open(&bytes(row, "ciphertext_hex"), &bytes(row, "context_hex"));
    match opened {
        Ok(opened) if row["expect"].as_str().unwrap_or("ok") == "ok" => {
            same(opened.to_vec(), bytes(row, "plaintext_hex"))
        }
        Ok(_) => Err(format!("it must be refused: {}", row["reason"]).into()),
        Err(refused) if row["expect"].as_str().unwrap_or("ok") == "ok" => Err(refused.to_string().into()),
        Err(refused) => same(refused.to_string().as_str(), "decryption failed: ciphertext is not authentic"),
    }
}

/// With the same random bytes we seal to the same ciphertext.
fn encrypt(row: &Value) -> Checked {
    let ciphertext = bytes(row, "ciphertext_hex");
    let random: &[u8; 28] = ciphertext.last_chunk().ok_or("the vector is too short")?;
    let sealed = key(row)?.seal_with(random, &bytes(row, "plaintext_hex"), &bytes(row, "context_hex"));
    same(sealed, ciphertext)
}

fn hmac(row: &Value) -> Checked {
    let hmac_key: [u8; 32] = bytes(row, "hmac_key_hex").try_into().map_err(|_| "the vector has no key")?;
    let key = Key::new(Kind::Aes256, Zeroizing::new([0; 32]), Some(Zeroizing::new(hmac_key)));
    same(
        key.hmac(&bytes(row, "message_hex")).ok_or("the key has no HMAC key")?.to_vec(),
        bytes(row, "hmac_hex"),
    )
}

/// A stored key is read, or refused.
fn key_version(row: &Value) -> Checked {
    let parsed = match KeyVersion::parse(text(row, "raw").as_bytes()) {
        Err(_) if row["expect"] != "ok" => return Ok(()),
        Err(error) => return Err(error.to_string().into()),
        Ok(_) if row["expect"] != "ok" => return Err(format!("it must be refused: {}", row["reason"]).into()),
        Ok(parsed) => parsed,
    };
    let opened = key(row)?.open(&parsed.key.seal(b"x", b"c"), b"c")?;
    that(*opened == b"x", "it is another key")?;
    same(parsed.created_by, text(row, "created_by"))?;
    same(parsed.created_at, text(row, "created_at").parse()?)?;
    same(parsed.key.has_hmac(), !row["hmac"].is_null())
}

/// A key file is read, and written byte for byte as KES wrote it.
fn key_file(row: &Value) -> Checked {
    let content = text(row, "file_content");
    let parsed = KeyVersion::parse(content.as_bytes())?;
    that(parsed.to_text().expose() == content, "it is not written as it was read")?;
    if let Some(created_at) = row["describe_response"]["created_at"].as_str() {
        same(parsed.created_at.to_string().as_str(), created_at)?;
    }
    let with_line_end = KeyVersion::parse(format!("{content}\r\n").as_bytes())?;
    that(with_line_end.key.same(&parsed.key), "a line end changes it")
}

fn api_key(row: &Value) -> Checked {
    let key = ApiKey::parse(&text(row, "api_key"))?;
    same(key.identity().to_string(), text(row, "identity"))?;
    let (certificate, _) = key.certificate(1_700_000_000);
    let shown = Certificate::parse(&certificate)?;
    same((shown.identity.to_string(), shown.is_ca), (text(row, "identity"), false))
}

fn certificate(row: &Value) -> Checked {
    let der = STANDARD.decode(text(row, "certificate_der_b64"))?;
    same(Certificate::parse(&der)?.identity.to_string(), text(row, "identity"))
}

fn policy(row: &Value) -> Checked {
    let patterns = |member: &str| -> Vec<String> {
        let patterns = row[member].as_array().into_iter().flatten();
        patterns.filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let policy = Policy { allow: patterns("allow"), deny: patterns("deny") };
    for (path, allowed) in row["requests"].as_object().ok_or("the vector has no requests")? {
        that(Some(policy.allows(path)) == allowed.as_bool(), path)?;
    }
    Ok(())
}

fn main() {
    let vectors: Value =
        serde_json::from_str(include_str!("vectors/kes.json")).expect("the vectors must be JSON");
    let mut trials = Vec::new();
    let sections: [Section; 10] = [
        ("decrypt", decrypt),
        ("msgpack", decrypt),
        ("encrypt", encrypt),
        ("generate_dek", encrypt),
        ("hmac", hmac),
        ("key_version_parse", key_version),
        ("keystore_files", key_file),
        ("api_keys", api_key),
        ("certificates", certificate),
        ("policy_match", policy),
    ];
    for (section, check) in sections {
        let rows = vectors[section].as_array().expect("a section must be a list");
        assert!(!rows.is_empty(), "{section} has no vectors");
        for (number, row) in rows.iter().enumerate() {
            let id =
                row["id"].as_str().or(row["name"].as_str()).map_or_else(|| number.to_string(), str::to_owned);
            let row = row.clone();
            trials.push(Trial::test(format!("{section}::{id}"), move || check(&row)));
        }
    }
    for (number, invalid) in vectors["api_keys_invalid"].as_array().into_iter().flatten().enumerate() {
        let invalid = invalid.as_str().unwrap_or_default().to_owned();
        let check = move || that(ApiKey::parse(&invalid).is_err(), "it must be refused");
        trials.push(Trial::test(format!("api_keys_invalid::{number}"), check));
    }
    let bare = text(&vectors, "api_key_without_prefix");
    trials.push(Trial::test("api_key_without_prefix", move || Ok(ApiKey::parse(&bare).map(drop)?)));
    for (kind, valid) in [("valid", true), ("invalid", false)] {
        for name in vectors["names"][kind].as_array().into_iter().flatten() {
            let name = name.as_str().unwrap_or_default().to_owned();
            let check = move || that(Name::parse(&name).is_ok() == valid, &name);
            trials.push(Trial::test(format!("names::{kind}::{}", trials.len()), check));
        }
        for pattern in vectors["list_patterns"][kind].as_array().into_iter().flatten() {
            let pattern = pattern.as_str().unwrap_or_default().to_owned();
            let check = move || that(Pattern::parse(&pattern).is_some() == valid, &pattern);
            trials.push(Trial::test(format!("list_patterns::{kind}::{}", trials.len()), check));
        }
    }
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}
