//! The cause that a gate names for each answer at Vault's address: faults that a real Vault cannot be made to show at will, from a server
//! that answers by a script, and fails on any request that the script does not have.

use crate::harness::{
    KEY, ScriptedVault, closed_port,
    scripted_vault::{LEADER, LOGIN, MOUNT, Script, UNSEALED, init, says},
};
use std::{net::TcpListener, sync::atomic::Ordering};

#[test]
fn which_certificate_trouble_it_is() {
    let other = ScriptedVault::good([]);
    let unknown = ScriptedVault::good([]);
    let ca = other.ca();
    says(
        unknown.init(&[("KESWARDEN_VAULT_CACERT", ca.to_str().unwrap())]),
        69,
        &["vault_tls_unknown_ca", "invalid peer certificate", "KESWARDEN_VAULT_CACERT"],
    );
    let name = ScriptedVault::start("vault.example.com", (-1, 1), Script::new());
    says(name.init(&[]), 69, &["vault_tls_name", "vault.example.com"]);
    says(
        ScriptedVault::start("127.0.0.1", (-9, -2), Script::new()).init(&[]),
        69,
        &["vault_tls_expired", "expired"],
    );
    says(
        ScriptedVault::start("127.0.0.1", (2, 9), Script::new()).init(&[]),
        69,
        &["vault_tls_expired", "not valid yet"],
    );
    says(
        other.init(&[("KESWARDEN_VAULT_CACERT", "/nonexistent/ca.crt")]),
        71,
        &["tls_file_unusable", "cannot read /nonexistent/ca.crt"],
    );
}

#[test]
fn nobody_there_and_nobody_answering() {
    let dir = tempfile::tempdir().unwrap();
    let address = format!("https://127.0.0.1:{}", closed_port());
    says(init(dir.path(), &[("KESWARDEN_VAULT_ADDR", &address)]), 69, &["vault_unreachable_refused"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}", silent.local_addr().unwrap());
    says(
        init(dir.path(), &[("KESWARDEN_VAULT_ADDR", &address)]),
        69,
        &["vault_unreachable_timeout", "500ms"],
    );
    says(
        init(dir.path(), &[("KESWARDEN_VAULT_ADDR", "https://no-such-host.invalid:8200")]),
        69,
        &["vault_unreachable_dns"],
    );
}

#[test]
fn uninitialised_and_sealed_are_told_apart() {
    let body = r#"{"initialized":false,"sealed":true,"t":0,"progress":0}"#;
    says(
        ScriptedVault::good([("GET /v1/sys/seal-status", (200, body))]).init(&[]),
        69,
        &["vault_uninitialised"],
    );
    let body = r#"{"initialized":true,"sealed":true,"t":3,"progress":2}"#;
    says(
        ScriptedVault::good([("GET /v1/sys/seal-status", (200, body))]).init(&[]),
        69,
        &["vault_sealed", "2 of 3 keys"],
    );
    says(
        ScriptedVault::good([("GET /v1/sys/seal-status", (200, "<html>"))]).init(&[]),
        69,
        &["vault_unhealthy", "not Vault's"],
    );
    let nowhere = ("GET /v1/sys/seal-status", (307, ""));
    says(ScriptedVault::good([nowhere]).init(&[]), 69, &["vault_standby_without_leader"]);
}

#[test]
fn refused_credentials_are_sent_once_and_not_again() {
    let refused = ("POST /v1/auth/approle/login", (400, r#"{"errors":["invalid role or secret ID"]}"#));
    let vault = ScriptedVault::good([UNSEALED, LEADER, refused]);
    says(
        vault.init(&[]),
        77,
        &["login_refused", "invalid role or secret ID", "the same pair is not sent again for "],
    );
    assert_eq!(vault.logins.load(Ordering::SeqCst), 1, "five refusals lock the role out for every pod");
}

#[test]
fn what_the_policy_lacks_is_spelt_out() {
    let denied = (403, r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#);
    let vault = ScriptedVault::good([
        UNSEALED,
        LOGIN,
        MOUNT,
        ("GET /v1/kv/data/my-key?version=1", denied),
        ("GET /v1/auth/token/lookup-self", (200, r#"{"data":{"ttl":1200}}"#)),
    ]);
    says(vault.init(&[]), 77, &["policy_missing", "path \"kv/data/my-key\" { capabilities = [\"read\"] }"]);
    let no_mount = ScriptedVault::good([
        UNSEALED,
        LOGIN,
        ("GET /v1/sys/internal/ui/mounts/kv", denied),
        ("GET /v1/auth/token/lookup-self", (200, r#"{"data":{"ttl":1200}}"#)),
    ]);
    says(no_mount.init(&[]), 69, &["mount_missing", "bao secrets enable"]);
}

#[test]
fn a_key_that_is_deleted_destroyed_trimmed_or_garbled_is_never_just_missing() {
    let key = |status, body| [UNSEALED, LOGIN, MOUNT, ("GET /v1/kv/data/my-key?version=1", (status, body))];
    let deleted = r#"{"data":{"data":null,"metadata":{"deletion_time":"2026-01-01T00:00:00Z","destroyed":false,"version":1}}}"#;
    says(
        ScriptedVault::good(key(404, deleted)).init(&[]),
        69,
        &["key_deleted", "bao kv undelete -mount=kv -versions=1 my-key"],
    );
    let destroyed = r#"{"data":{"data":null,"metadata":{"deletion_time":"","destroyed":true,"version":1}}}"#;
    // What is left under the name is looked at, to say how it goes out of the way.
    let history =
        ("GET /v1/kv/metadata/my-key", (200, r#"{"data":{"current_version":12,"oldest_version":3}}"#));
    let left = key(404, destroyed).into_iter().chain([history]);
    says(ScriptedVault::good(left).init(&[]), 65, &["key_destroyed", "bao kv metadata delete "]);
    let trimmed = key(404, r#"{"errors":[]}"#).into_iter().chain([history]);
    says(
        ScriptedVault::good(trimmed).init(&[("KESWARDEN_KEY_CREATE", "if-new")]),
        65,
        &["key_destroyed", "version 1 is gone"],
    );
    for (body, words) in [
        (r#"{"data":{"data":{"other":"x"}}}"#, "has no field 'my-key'"),
        (r#"{"data":{"data":{"my-key":7}}}"#, "is no text"),
        (r#"{"data":{"data":{"my-key":"AAAA"}}}"#, "no protobuf message"),
        (r#"{"data":{"data":{"my-key":"{\"bytes\":\"AAAA\"}"}}}"#, "3 bytes long, not 32"),
        (r#"{"data":{"data":{"my-key":"vault:v3:abc"}}}"#, "KESWARDEN_VAULT_TRANSIT_KEY"),
    ] {
        let (code, text) = ScriptedVault::good(key(200, body).into_iter().chain([history])).init(&[]);
        assert!(text.contains(words), "{words:?} is missing from: {text}");
        assert!(matches!(code, 64 | 65), "{text}");
    }
    // An answer that is not Vault's says nothing about the key.
    for body in ["{\"data\":{\"da", "<html>Down for maintenance</html>", "", "[]", "{\"data\":7}"] {
        says(ScriptedVault::good(key(200, body)).init(&[]), 69, &["vault_unhealthy", "not Vault's"]);
    }
    assert_eq!(KEY, "my-key");
}
