//! Bodies: their limits, and how leniently their JSON and base64 are read.

use super::{
    MAC_OF_HELLO, MAC_OF_NOTHING, OPENED, SEALED_AES, SEALED_CHACHA, Who,
    answers::{Findings, done, json_of, none_of, refused, template_of},
    clients,
    requests::{DATA_KEY, SEALED_NOTHING, Then},
    serving,
};
use crate::harness::base64;

#[test]
fn bodies_one_byte_over_the_limit_are_refused_and_bodies_at_it_are_read() {
    let kes = serving();
    let mut findings = Findings::default();
    // The value ends where the body ends, so that no byte can be taken for garbage after the value.
    let body = |members: &str, length: usize| {
        let frame = format!("{{{members},\"pad\":\"\"}}").len();
        format!("{{{members},\"pad\":\"{}\"}}", "x".repeat(length - frame))
    };
    let sealed = SEALED_AES.strip_prefix('{').unwrap().strip_suffix('}').unwrap();
    let imported = "\"key\":\"dDHbTWgo+Yh3u804SYB5OyVMy6RiLeJYBQth1f6KlEU=\",\"cipher\":\"AES256\"";
    for (client, http1) in clients(&kes, Who::Allowed) {
        let fresh = format!("/v1/key/import/made-{}", u8::from(http1));
        for (path, members, then, refusal) in [
            ("/v1/key/generate/kept", "\"context\":\"e30=\"", DATA_KEY, "invalid request body"),
            ("/v1/key/encrypt/kept", "\"plaintext\":\"\"", SEALED_NOTHING, "invalid request body"),
            ("/v1/key/decrypt/kept", sealed, Then::Says(OPENED), "invalid request body"),
            (
                "/v1/key/hmac/kept",
                "\"message\":\"aGVsbG8=\"",
                Then::Says(MAC_OF_HELLO),
                "invalid request body",
            ),
            (fresh.as_str(), imported, Then::Says(""), "invalid import key request body"),
        ] {
            let (over, at) = (body(members, 1_000_001), body(members, 1_000_000));
            assert_eq!((over.len(), at.len()), (1_000_001, 1_000_000));
            findings.check((&client, http1), ("PUT", path, Some(&over)), &refused(400, refusal));
            findings.check((&client, http1), ("PUT", path, Some(&at)), &template_of(then));
        }
    }
    none_of(&findings.0);
}

/// Requests to `hmac`: its answer tells exactly which bytes were read from the JSON.
fn hmac_of(bodies: &[(&str, &'static str)]) {
    let kes = serving();
    let mut findings = Findings::default();
    for (client, http1) in clients(&kes, Who::Allowed) {
        for (body, said) in bodies {
            let wanted = if said.is_empty() { refused(400, "invalid request body") } else { json_of(*said) };
            findings.check((&client, http1), ("PUT", "/v1/key/hmac/kept", Some(*body)), &wanted);
        }
    }
    none_of(&findings.0);
}

#[test]
fn json_is_read_as_leniently_as_go_reads_it() {
    let numbers: Vec<_> = b"hello".iter().map(u8::to_string).collect();
    let numbers = format!("{{\"message\":[{}]}}", numbers.join(","));
    hmac_of(&[
        // Names in any case; the last of two wins, however it is spelt; others are ignored.
        ("{\"MESSAGE\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"mEssagE\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\",\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG8=\",\"message\":\"\"}", MAC_OF_NOTHING),
        ("{\"Message\":\"\",\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\",\"Message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"other\":[{\"message\":7}],\"message\":\"aGVsbG8=\",\"messages\":\"\"}", MAC_OF_HELLO),
        ("{\"messag\\u0065\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        // Null is nothing.
        ("null", MAC_OF_NOTHING),
        ("{\"message\":null}", MAC_OF_NOTHING),
        ("{\"version\":null,\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":null,\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        ("{\"version\":\"v1\",\"message\":\"aGVsbG8=\"}", MAC_OF_HELLO),
        // Text after the first value is not read; white space before the value is skipped.
        ("{\"message\":\"aGVsbG8=\"} and what follows", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG8=\"}{\"message\":\"\"}", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG8=\"}}", MAC_OF_HELLO),
        ("null garbage", MAC_OF_NOTHING),
        (" \r\n\t{ \"message\" : \"aGVsbG8=\" }\n", MAC_OF_HELLO),
        // Bytes as numbers.
        (numbers.as_str(), MAC_OF_HELLO),
        ("{\"message\":[]}", MAC_OF_NOTHING),
        // Line ends inside base64, escaped slashes and letters, trailing bits that are not zero.
        ("{\"message\":\"aGVs\\r\\nbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\\na\\rGVsbG8\\n=\\n\"}", MAC_OF_HELLO),
        ("{\"message\":\"\\u0061GVsbG8=\"}", MAC_OF_HELLO),
        ("{\"message\":\"aGVsbG9=\"}", MAC_OF_HELLO),
        ("{\"message\":\"\"}", MAC_OF_NOTHING),
    ]);
}

#[test]
fn a_null_after_a_value_empties_it() {
    // `null` is the zero value and the last of two wins: Go sets a slice to nil here.
    hmac_of(&[("{\"message\":\"aGVsbG8=\",\"message\":null}", MAC_OF_NOTHING)]);
}

#[test]
fn json_that_go_refuses_is_refused() {
    hmac_of(
        &[
            "",
            " ",
            "garbage",
            "nul",
            "{",
            "{\"message\":\"aGVsbG8=\"",
            "{\"message\":\"aGVsbG8=\",}",
            "{message:\"aGVsbG8=\"}",
            "{'message':'aGVsbG8='}",
            // Neither an object nor null.
            "[]",
            "[{\"message\":\"aGVsbG8=\"}]",
            "7",
            "\"aGVsbG8=\"",
            "true",
            // The wrong type for a member that is known, even when a good one follows.
            "{\"message\":7}",
            "{\"message\":true}",
            "{\"message\":{}}",
            "{\"message\":[\"a\"]}",
            "{\"message\":[256]}",
            "{\"message\":[-1]}",
            "{\"message\":[1.5]}",
            "{\"message\":7,\"message\":\"aGVsbG8=\"}",
            "{\"MESSAGE\":7}",
            "{\"message\":\"aGVsbG8=\",\"version\":7}",
            "{\"message\":\"aGVsbG8=\",\"version\":[]}",
            // Base64 that is not the standard one: URL-safe letters, no padding or too much of it, blanks.
            "{\"message\":\"-_-_\"}",
            "{\"message\":\"_w==\"}",
            "{\"message\":\"aGVsbG8\"}",
            "{\"message\":\"aGVsbG8==\"}",
            "{\"message\":\"aGVsbG8=aGVs\"}",
            "{\"message\":\"a\"}",
            "{\"message\":\"=\"}",
            "{\"message\":\"aGVs bG8=\"}",
            "{\"message\":\"aGVs\\tbG8=\"}",
            // A line end may be in base64, but JSON wants it escaped.
            "{\"message\":\"aGVs\nbG8=\"}",
        ]
        .map(|body| (body, "")),
    );
}

#[test]
fn every_route_with_a_body_reads_it_the_same_way() {
    let kes = serving();
    let mut findings = Findings::default();
    let key = base64(&[7; 32]);
    for (client, http1) in clients(&kes, Who::Admin) {
        let numbers = vec!["7"; 32].join(",");
        let [a, b, c] = ["a", "b", "c"].map(|name| format!("/v1/key/import/{name}-{}", u8::from(http1)));
        let upper = SEALED_AES.replace("ciphertext", "CipherText").replace("context", "CONTEXT");
        let broken_line = SEALED_AES.replace("AAAA", "AA\\r\\nAA") + " trailing";
        let urlsafe = SEALED_AES.replace("AAAA", "__--");
        let unpadded = SEALED_AES.replace("==", "");
        let bad = refused(400, "invalid request body");
        for (path, body, wanted) in [
            ("/v1/key/decrypt/kept", upper, json_of(OPENED)),
            ("/v1/key/decrypt/kept", broken_line, json_of(OPENED)),
            ("/v1/key/decrypt/kept", urlsafe, refused(400, "invalid request body")),
            ("/v1/key/decrypt/kept", unpadded, refused(400, "invalid request body")),
            (
                "/v1/key/encrypt/kept",
                "{\"PLAINTEXT\":[1,2,3]}null".to_owned(),
                json_of("{\"ciphertext\":\"⟨base64 64⟩\"}\n"),
            ),
            ("/v1/key/generate/kept", "{\"Context\":[123,125]}{".to_owned(), template_of(DATA_KEY)),
            ("/v1/key/generate/kept", "{\"context\":\"e30\"}".to_owned(), bad),
            (a.as_str(), format!("{{\"KEY\":\"{key}\",\"Cipher\":\"AES256\"}} x"), done()),
            (b.as_str(), format!("{{\"key\":[{numbers}],\"cipher\":\"AES256\"}}"), done()),
            (
                c.as_str(),
                format!("{{\"key\":\"{}\",\"cipher\":\"AES256\"}}", key.trim_end_matches('=')),
                refused(400, "invalid import key request body"),
            ),
        ] {
            findings.check((&client, http1), ("POST", path, Some(&body)), &wanted);
        }
    }
    none_of(&findings.0);
}

#[test]
fn the_kind_of_the_key_decides_the_cipher() {
    let kes = serving();
    let mut findings = Findings::default();
    let unauthentic = "decryption failed: ciphertext is not authentic";
    for (client, http1) in clients(&kes, Who::Allowed) {
        for (path, body, wanted) in [
            ("/v1/key/decrypt/kept-chacha", SEALED_CHACHA, json_of(OPENED)),
            ("/v1/key/decrypt/kept-chacha", SEALED_AES, refused(400, unauthentic)),
            ("/v1/key/decrypt/legacy", SEALED_AES, json_of(OPENED)),
            ("/v1/key/decrypt/legacy", SEALED_CHACHA, refused(400, unauthentic)),
            ("/v1/key/generate/kept-chacha", "{}", template_of(DATA_KEY)),
            ("/v1/key/encrypt/kept-chacha", "{}", template_of(SEALED_NOTHING)),
            ("/v1/key/hmac/kept-chacha", "{\"message\":\"aGVsbG8=\"}", json_of(MAC_OF_HELLO)),
        ] {
            findings.check((&client, http1), ("POST", path, Some(body)), &wanted);
        }
    }
    none_of(&findings.0);
}

#[test]
fn what_is_made_is_described_as_made_now_by_its_maker() {
    let kes = serving();
    let mut findings = Findings::default();
    for who in [Who::Allowed, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            let name = format!("made-{who:?}-{}", u8::from(http1));
            let imported = format!("{name}-imported");
            let body = format!("{{\"key\":\"{}\",\"cipher\":\"XCHACHA20-POLY1305\"}}", base64(&[7; 32]));
            // A body for a route that reads none is ignored, and the connection lives on.
            findings.check(
                (&client, http1),
                ("POST", &format!("/v1/key/create/{name}"), Some("{}")),
                &done(),
            );
            findings.check(
                (&client, http1),
                ("PUT", &format!("/v1/key/import/{imported}"), Some(&body)),
                &done(),
            );
            for (name, algorithm) in [(&name, "⟨word⟩"), (&imported, "ChaCha20")] {
                let wanted = json_of(format!(
                    "{{\"name\":\"{name}\",\"algorithm\":\"{algorithm}\",\"created_at\":\"⟨time⟩\",\"created_by\":\"{}\"}}\n",
                    who.identity()
                ));
                findings.check((&client, http1), ("GET", &format!("/v1/key/describe/{name}"), None), &wanted);
            }
        }
    }
    none_of(&findings.0);
}
