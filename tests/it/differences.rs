//! The rows of docs/differences.md that no other test holds: where we answer otherwise than KES, on purpose.

use crate::{
    attack::Server,
    harness::{KEY, base64, eventually, key_text},
    kes_server::Kes,
    peers::{Bao, policy},
};
use keswarden::{cause::Cause, keystore::memory::MemoryStore};
use std::{path::Path, sync::Arc};

fn refusal(message: &str) -> String {
    format!("{{\"message\":\"{message}\"\n}}")
}

#[test]
fn a_key_is_deleted_only_where_that_is_allowed() {
    for (environment, status) in [(&[][..], 403), (&[("KESWARDEN_ALLOW_DELETE", "on")][..], 200)] {
        let kes = Kes::start(Arc::new(MemoryStore::new()), "", environment);
        kes.wait_ready();
        kes.store.put(KEY, &key_text());
        let admin = kes.client(Some(&Kes::admin()), false);
        let path = format!("/v1/key/delete/{KEY}");
        assert_eq!(admin.call("GET", &format!("/v1/key/describe/{KEY}"), None).status, 200);
        let deleted = admin.call("DELETE", &path, None);
        assert_eq!(deleted.status, status, "{}", deleted.body);
        if status == 403 {
            assert_eq!(deleted.body, refusal("not authorized: insufficient permissions"));
        } else {
            let gone = admin.call("GET", &format!("/v1/key/describe/{KEY}"), None);
            assert_eq!((gone.status, gone.body), (404, refusal("key does not exist")));
        }
    }
}

/// On a real K/V v2: version 1 is what is deleted and what comes back, whatever versions there are besides.
#[test]
fn deleted_keys_can_be_undeleted() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv");
    let key = key_text();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server-config.yaml");
    std::fs::write(&file, vault_yaml(&bao, dir.path())).unwrap();
    let server = Server::with(dir, vec![("KESWARDEN_ALLOW_DELETE", "on".to_owned())]);
    let admin = server.client(false);
    let empty = admin.call("GET", "/v1/key/list/", None);
    assert_eq!(
        (empty.status, empty.body.as_str()),
        (200, "{\"names\":[]}\n"),
        "an empty folder is no failure"
    );
    let put =
        |cas: &str, key: &str| bao.ok(&["kv", "put", cas, "-mount=kv", "minio/my-key", "my-key=-"], key);
    put("-cas=0", &key);
    put("-cas=1", "somebody wrote a second version, which is not what counts");
    let (_, ciphertext) = admin.generate(KEY, "{}");
    assert_eq!(admin.call("DELETE", "/v1/key/delete/my-key", None).status, 200);
    for (method, path, message) in [
        ("GET", "/v1/key/describe/my-key", "failed to read key"),
        ("PUT", "/v1/key/create/my-key", "failed to create key"),
    ] {
        let refused = admin.call(method, path, None);
        assert_eq!((refused.status, refused.body), (502, refusal(message)), "{path}");
    }
    assert_eq!(admin.call("DELETE", "/v1/key/delete/never-there", None).status, 200, "as KES on Vault");
    bao.ok(&["kv", "undelete", "-mount=kv", "-versions=1", "minio/my-key"], "");
    assert_eq!(admin.decrypt(KEY, &ciphertext, "{}").status, 200);
}

fn vault_yaml(bao: &Bao, dir: &Path) -> String {
    let more = "\npath \"kv/delete/minio/*\" { capabilities = [\"update\"] }\n";
    let (role_id, secret_id) = bao.setup_approle(&(policy(2) + more));
    let path = |file: &str| dir.join(file).display().to_string();
    format!(
        "admin: {{ identity: {} }}\ntls: {{ key: {}, cert: {} }}\nkeystore:\n  vault:\n    endpoint: {}\n    engine: kv\n    \
         version: v2\n    prefix: minio\n    approle: {{ id: \"{role_id}\", secret: \"{secret_id}\" }}\n    tls: {{ ca: {} }}\n",
        Kes::admin().identity(),
        path("server.key"),
        path("server.crt"),
        bao.addr(),
        bao.ca_path().display(),
    )
}

#[test]
fn a_status_without_a_store_can_be_read_by_the_sdk() {
    let kes = Kes::serving("");
    kes.store.fail(Some(Cause::VaultSealed.seen("Vault is sealed")));
    let admin = kes.client(Some(&Kes::admin()), true);
    let status: serde_json::Value =
        serde_json::from_str(&admin.call("GET", "/v1/status", None).body).unwrap();
    assert_eq!(
        (&status["keystore_unreachable"], &status["keystore_unavailable"]),
        (&true.into(), &true.into())
    );
    assert!(status["keystore_latency"].is_null());
    let ready = admin.call("GET", "/v1/ready", None);
    assert_eq!((ready.status, ready.body), (504, refusal("key store is not reachable")));
}

#[test]
fn lists_are_whole_and_a_star_is_a_wildcard() {
    let kes = Kes::serving("");
    let text = key_text();
    for number in 0..1500 {
        kes.store.put(&format!("my-{number:04}"), &text);
    }
    kes.store.put("other", &text);
    let admin = kes.client(Some(&Kes::admin()), false);
    let listed: serde_json::Value =
        serde_json::from_str(&admin.call("GET", "/v1/key/list/my*", None).body).unwrap();
    assert_eq!(listed["names"].as_array().unwrap().len(), 1500);
    assert!(listed["continue_at"].is_null());
}

#[test]
fn foreign_files_are_no_keys() {
    let server = Server::start();
    let keys = server.dir.path().join("keys");
    std::fs::write(keys.join("a.file"), "").unwrap();
    std::fs::write(keys.join(".hidden"), "").unwrap();
    std::fs::create_dir(keys.join("a-folder")).unwrap();
    let listed = server.client(true).call("GET", "/v1/key/list/", None);
    assert_eq!(listed.body, format!("{{\"names\":[\"{KEY}\"]}}\n"));
}

#[test]
fn a_failed_list_is_a_whole_answer() {
    let kes = Kes::serving("");
    kes.store.fail(Some(Cause::StoreUnavailable.seen("away")));
    for http1 in [true, false] {
        let failed = kes.client(Some(&Kes::admin()), http1).call("GET", "/v1/key/list/", None);
        assert_eq!((failed.status, failed.body), (502, refusal("failed to list keys")));
    }
}

#[test]
fn everybody_is_told_who_they_are() {
    let app = Kes::key(1);
    let kes = Kes::serving(&format!(
        "policy:\n  app:\n    allow: [/v1/key/*]\n    deny: [/v1/key/delete/*]\n    identities: [{}]\n",
        app.identity()
    ));
    let told = kes.client(Some(&app), false).call("GET", "/v1/identity/self/describe", None);
    let told: serde_json::Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!(told["identity"], app.identity().as_str());
    assert_eq!((&told["policy"], &told["allow"]["/v1/key/*"]), (&"app".into(), &serde_json::json!({})));
    assert_eq!(told["deny"]["/v1/key/delete/*"], serde_json::json!({}));
    let stranger = kes.client(Some(&Kes::key(9)), false).call("GET", "/v1/identity/self/describe", None);
    assert_eq!((stranger.status, stranger.body), (404, refusal("identity does not exist")));
}

#[test]
fn an_entry_that_is_no_key_is_an_error_and_not_the_end() {
    let kes = Kes::serving("");
    kes.store.put("empty", "");
    // `1: {1: 32 bytes, 2: AES256}`, and no field 2.
    let no_hmac = [&[0x0a, 0x24, 0x0a, 32][..], &[7; 32], &[0x10, 1]].concat();
    kes.store.put("no-hmac", &base64(&no_hmac));
    let admin = kes.client(Some(&Kes::admin()), true);
    for op in ["generate", "encrypt", "hmac"] {
        let failed = admin.call("POST", &format!("/v1/key/{op}/empty"), Some("{}"));
        assert_eq!((failed.status, failed.body), (502, refusal("failed to read key")), "{op}");
    }
    assert_eq!(admin.call("POST", "/v1/key/generate/no-hmac", Some("{}")).status, 200);
    let refused = admin.call("PUT", "/v1/key/hmac/no-hmac", Some("{}"));
    assert_eq!((refused.status, refused.body), (409, refusal("key does not support HMAC")));
}

#[test]
fn a_new_key_store_takes_the_place_of_the_old_one_once_it_works() {
    let server = Server::start();
    let admin = server.client(false);
    let names = || admin.call("GET", "/v1/key/list/", None).body;
    assert!(names().contains(KEY));
    let file = server.dir.path().join("server-config.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    let other = server.dir.path().join("other");
    std::fs::write(&file, yaml.replace("/keys", "/other")).unwrap();
    eventually("the reload fails, since there is no such directory", || {
        server.metric("keswarden_config_reload_failed").filter(|failed| *failed == 1.0)
    });
    assert!(names().contains(KEY), "the old one serves on");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("elsewhere"), key_text()).unwrap();
    eventually("it is tried again, and works now", || names().contains("elsewhere").then_some(()));
    assert_eq!(admin.call("GET", &format!("/v1/key/describe/{KEY}"), None).status, 404);
    assert_eq!(server.metric("keswarden_config_reload_failed"), Some(0.0));
}

#[test]
fn a_file_that_is_mended_while_the_start_waits_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server-config.yaml");
    let yaml = Kes::yaml(&dir, "");
    std::fs::write(&file, yaml.replace("/keys", "/mistyped")).unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    let server = Server::launch(dir, Vec::new());
    eventually("it waits, and says for what", || server.status().contains("store_unavailable").then_some(()));
    std::fs::write(&file, "no: [yaml").unwrap();
    std::fs::write(&file, yaml).unwrap();
    server.wait_ready();
}
