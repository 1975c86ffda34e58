//! The gate: which causes it waits for, which it ends with, and which key it takes.

mod events;
mod journey;
mod kes;
mod machine_memory;
mod offline;
mod pins;
mod remembered;
mod run_dir;
mod silenced;

use crate::harness::{App, IN_PROCESS, KEY, closed_port, environment, eventually, key_text};
use keswarden::{cause::Cause, keystore::memory::MemoryStore};
use std::{
    net::TcpStream,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

#[test]
fn it_waits_with_a_reason_and_passes_when_the_reason_is_gone() {
    let store = Arc::new(MemoryStore::new());
    store.fail(Some(Cause::VaultSealed.seen("Vault is sealed (unseal progress 1 of 3 keys)")));
    let app = App::start(store, &[]);
    let says = |cause: &str| {
        eventually(IN_PROCESS, cause, || {
            let (status, body) = app.health("/status");
            (status == 200 && body.contains(cause)).then_some(body)
        })
    };
    assert!(says("vault_sealed").contains("1 of 3 keys"));
    let (status, body) = app.health("/readyz");
    assert_eq!(status, 503);
    assert!(body.contains("api (") && body.contains("gate ("), "{body}");
    assert_eq!(app.health("/livez").0, 200, "waiting is no reason to be restarted");
    assert!(TcpStream::connect(app.api).is_err(), "a client must be refused at once, not left hanging");
    app.store.fail(None);
    assert!(says("key_missing").contains(KEY));
    app.store.put(KEY, "garbage");
    says("key_malformed");
    app.store.put(KEY, &key_text());
    app.wait_ready();
    app.stop().unwrap();
}

#[test]
fn it_makes_no_key_unless_told_to_and_then_only_where_there_is_no_trace() {
    let store = Arc::new(MemoryStore::new());
    let app = App::start(store, &[("KESWARDEN_KEY_CREATE", "if-new")]);
    app.wait_ready();
    let made = app.metric("keswarden_key_last_verified_timestamp_seconds{key=\"my-key\"}").unwrap();
    assert!(made > 0.0);
    let minio = app.minio(false);
    let (_, ciphertext) = minio.generate(KEY, "{}");
    let store = app.store.clone();
    app.stop().unwrap();
    let again = App::start(store, &[("KESWARDEN_KEY_CREATE", "if-new")]);
    again.wait_ready();
    assert_eq!(
        again.minio(false).decrypt(KEY, &ciphertext, "{}").status,
        200,
        "a second start opens what the first sealed"
    );
}

#[test]
fn draining_while_it_waits_ends_at_once() {
    let app = App::start(Arc::new(MemoryStore::new()), &[]);
    eventually(IN_PROCESS, "it waits", || app.health("/status").1.contains("key_missing").then_some(()));
    app.stop().unwrap();
}

fn init(dir: &Path, more: &[(&str, &str)]) -> Output {
    let fs_dir = dir.join("keys");
    let fs_dir = fs_dir.to_str().unwrap();
    let mut all = vec![("KESWARDEN_FS_DIR", fs_dir), ("KESWARDEN_GATE_TIMEOUT", "300ms")];
    all.extend_from_slice(more);
    let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
    command.arg("init").env_clear().envs(environment(&dir.join("run"), &all));
    command.output().unwrap()
}

#[test]
fn at_its_deadline_it_exits_with_the_code_of_the_cause() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    let key_file = dir.path().join("keys").join(KEY);
    let ends = |output: &Output, code: i32, says: &str| {
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(says) && text.contains("fix: "), "{text}");
    };
    ends(&init(dir.path(), &[]), 69, "key_missing");
    std::fs::write(&key_file, "not a key").unwrap();
    ends(&init(dir.path(), &[]), 65, "key_malformed");
    std::fs::write(&key_file, key_text()).unwrap();
    let passed = init(dir.path(), &[]);
    assert_eq!(passed.status.code(), Some(0), "{}", String::from_utf8_lossy(&passed.stderr));
    assert!(String::from_utf8_lossy(&passed.stderr).contains("gate passed"));
    let port = closed_port();
    let endpoint = format!("https://127.0.0.1:{port}");
    ends(&init(dir.path(), &[("MINIO_KMS_KES_ENDPOINT", &endpoint)]), 64, "minio_env_incomplete");
    let api_key = "kes:v1:AGaV6VXHasF1FnaB60WdCOeTZ8eTIDikL4zlN56c8NAs";
    let theirs = [("MINIO_KMS_KES_ENDPOINT", endpoint.as_str()), ("MINIO_KMS_KES_API_KEY", api_key)];
    ends(&init(dir.path(), &theirs), 69, "kes_unreachable");
}

#[test]
fn a_kes_that_is_not_ours_must_seal_and_open_as_minio() {
    let kes = App::serving(&[]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    std::fs::write(dir.path().join("keys").join(KEY), kes.store.text(KEY).unwrap()).unwrap();
    let endpoint = format!("https://{}", kes.api);
    let file = |name: &str| kes.dir.path().join(name).to_str().unwrap().to_owned();
    let (certificate, key, ca, leaf) =
        (file("client.crt"), file("client.key"), file("ca.crt"), file("server.crt"));
    let with = |capath: &str| {
        init(
            dir.path(),
            &[
                ("MINIO_KMS_KES_ENDPOINT", endpoint.as_str()),
                ("MINIO_KMS_KES_CERT_FILE", certificate.as_str()),
                ("MINIO_KMS_KES_KEY_FILE", key.as_str()),
                ("MINIO_KMS_KES_CAPATH", capath),
                // The test is about KES's answer: no memory of the key must decide.
                ("KESWARDEN_MEMORY", "off"),
            ],
        )
    };
    // The operator gives MinIO the leaf as its CA file; Go accepts that, and so must we.
    for trusted in [&ca, &leaf] {
        let passed = with(trusted);
        assert_eq!(passed.status.code(), Some(0), "{}", String::from_utf8_lossy(&passed.stderr));
    }
    let api_key = "kes:v1:AGaV6VXHasF1FnaB60WdCOeTZ8eTIDikL4zlN56c8NAs";
    let denied = init(
        dir.path(),
        &[
            ("MINIO_KMS_KES_ENDPOINT", endpoint.as_str()),
            ("MINIO_KMS_KES_API_KEY", api_key),
            ("MINIO_KMS_KES_CAPATH", ca.as_str()),
        ],
    );
    assert_eq!(denied.status.code(), Some(77));
    let text = String::from_utf8_lossy(&denied.stderr).into_owned();
    assert!(text.contains("kes_identity_unknown") && text.contains("/v1/key/generate/*"), "{text}");
    assert!(!text.contains(api_key), "a secret must never be printed");
    // KES works for MinIO, and has another key than our own store: one of the two keys is wrong.
    std::fs::write(dir.path().join("keys").join(KEY), key_text()).unwrap();
    let other = with(&ca);
    let text = String::from_utf8_lossy(&other.stderr).into_owned();
    assert!(other.status.code() == Some(65) && text.contains("kes_disagrees"), "{text}");
    // A CA file of our own run directory: MinIO's KES is this agent, and the gate does not wait for itself.
    let ours = dir.path().join("run/ca.crt");
    let passed = with(ours.to_str().unwrap());
    assert_eq!(passed.status.code(), Some(0), "{}", String::from_utf8_lossy(&passed.stderr));
}

#[test]
fn a_kes_that_shows_our_own_certificate_is_not_waited_for() {
    let kes = App::serving(&[]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    std::fs::write(dir.path().join("keys").join(KEY), kes.store.text(KEY).unwrap()).unwrap();
    let api_key = "kes:v1:AGaV6VXHasF1FnaB60WdCOeTZ8eTIDikL4zlN56c8NAs";
    let endpoint = format!("https://{}", kes.api);
    let ours = kes.dir.path().to_str().unwrap();
    let theirs = [("MINIO_KMS_KES_ENDPOINT", endpoint.as_str()), ("MINIO_KMS_KES_API_KEY", api_key)];
    // With another run directory the same address is another KES, whose CA this gate does not trust.
    let stranger = init(dir.path(), &theirs);
    let text = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert!(stranger.status.code() == Some(69) && text.contains("kes_tls"), "{text}");
    let known = init(dir.path(), &[theirs[0], theirs[1], ("KESWARDEN_RUN_DIR", ours)]);
    assert_eq!(known.status.code(), Some(0), "{}", String::from_utf8_lossy(&known.stderr));
}

#[test]
fn kes_s_own_file_and_a_key_name_are_all_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    std::fs::write(keys.join("from-kes"), key_text()).unwrap();
    let file = dir.path().join("server-config.yaml");
    let text = format!(
        "version: v1\nadmin:\n  identity: disabled\nkeystore:\n  fs:\n    path: {}\n",
        keys.display()
    );
    std::fs::write(&file, text).unwrap();
    let run = |command: &str| {
        let run_dir = dir.path().join("run");
        let mut binary = Command::new(env!("CARGO_BIN_EXE_keswarden"));
        binary.args([command, "--key", "from-kes", "--config"]).arg(&file).env_clear();
        binary.env("KESWARDEN_RUN_DIR", run_dir).output().unwrap()
    };
    let passed = run("init");
    assert_eq!(passed.status.code(), Some(0), "{}", String::from_utf8_lossy(&passed.stderr));
    let doctor = run("doctor");
    let table = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert_eq!(doctor.status.code(), Some(0), "{table}");
    assert_eq!(table.lines().filter(|line| line.starts_with("ok ")).count(), 8, "{table}");
    assert!(table.contains("MinIO's readiness probe") && table.contains("skipped"), "{table}");
    std::fs::remove_file(keys.join("from-kes")).unwrap();
    let doctor = run("doctor");
    let table = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(
        doctor.status.code() == Some(69) && table.contains("FAILED") && table.contains("fix: "),
        "{table}"
    );
}
