//! Answers that differ from KES's on purpose, as docs/reference/differences.md lists them: those that no other module holds.

use super::refusal;
use crate::harness::{
    App, Bao, IN_PROCESS, KEY, Launch, QUIET, Server, admin_key, api_key, base64, block_on, eventually,
    key_text, policy, server_yaml,
};
use keswarden::{cause::Cause, keystore::memory::MemoryStore};
use std::{path::Path, sync::Arc};

#[test]
fn a_key_is_deleted_only_where_that_is_allowed() {
    for (environment, status) in [(&[][..], 403), (&[("KESWARDEN_ALLOW_DELETE", "on")][..], 200)] {
        let kes = App::start_server(Arc::new(MemoryStore::new()), "", environment);
        kes.wait_ready();
        kes.store.put(KEY, &key_text());
        let admin = kes.admin_client(false);
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

/// On a real K/V v2, deletion and undeletion are of version 1, whatever versions there are besides.
#[test]
fn deleted_keys_can_be_undeleted() {
    let bao = Bao::with_kv(2);
    let key = key_text();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server-config.yaml");
    std::fs::write(&file, yaml_over(&bao, dir.path(), DELETE)).unwrap();
    let server = Launch::in_folder(dir).set(&[("KESWARDEN_ALLOW_DELETE", "on".to_owned())]).ready();
    let admin = server.admin_client(false);
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
    // A start that demands this key waits for the key, and makes no other.
    let dir = tempfile::tempdir().unwrap();
    let before = std::fs::read_to_string(server.dir().join("server-config.yaml")).unwrap();
    let yaml = before.replace(&server.dir().display().to_string(), &dir.path().display().to_string());
    std::fs::write(dir.path().join("server-config.yaml"), yaml + "keys: [{ name: my-key }]\n").unwrap();
    let demanding = Launch::in_folder(dir).start();
    eventually(IN_PROCESS, "it names the command", || {
        demanding.status().contains("bao kv undelete").then_some(())
    });
    bao.ok(&["kv", "undelete", "-mount=kv", "-versions=1", "minio/my-key"], "");
    demanding.api_ready();
    assert_eq!(admin.decrypt(KEY, &ciphertext, "{}").status, 200);
}

/// The further rights of a policy for soft deletion.
const DELETE: &str = "\npath \"kv/delete/minio/*\" { capabilities = [\"update\"] }\n";

fn yaml_over(bao: &Bao, dir: &Path, more: &str) -> String {
    let (role_id, secret_id) = bao.setup_approle(&(policy(2) + more));
    let path = |file: &str| dir.join(file).display().to_string();
    format!(
        "admin: {{ identity: {} }}\ntls: {{ key: {}, cert: {} }}\nkeystore:\n  vault:\n    endpoint: {}\n    engine: kv\n    \
         version: v2\n    prefix: minio\n    approle: {{ id: \"{role_id}\", secret: \"{secret_id}\" }}\n    tls: {{ ca: {} }}\n",
        admin_key().identity(),
        path("server.key"),
        path("server.crt"),
        bao.addr(),
        bao.ca_path().display(),
    )
}

#[test]
fn a_status_without_a_store_can_be_read_by_the_sdk() {
    let kes = App::server("");
    kes.store.fail(Some(Cause::VaultSealed.seen("Vault is sealed")));
    let admin = kes.admin_client(true);
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
    let kes = App::server("");
    let text = key_text();
    for number in 0..1500 {
        kes.store.put(&format!("my-{number:04}"), &text);
    }
    kes.store.put("other", &text);
    let admin = kes.admin_client(false);
    let listed: serde_json::Value =
        serde_json::from_str(&admin.call("GET", "/v1/key/list/my*", None).body).unwrap();
    assert_eq!(listed["names"].as_array().unwrap().len(), 1500);
    assert!(listed["continue_at"].is_null());
}

#[test]
fn foreign_files_are_no_keys() {
    let server = Server::over_one_key(QUIET);
    let keys = server.dir().join("keys");
    std::fs::write(keys.join("a.file"), "").unwrap();
    std::fs::write(keys.join(".hidden"), "").unwrap();
    std::fs::create_dir(keys.join("a-folder")).unwrap();
    let listed = server.admin_client(true).call("GET", "/v1/key/list/", None);
    assert_eq!(listed.body, format!("{{\"names\":[\"{KEY}\"]}}\n"));
}

#[test]
fn a_failed_list_is_a_whole_answer() {
    let kes = App::server("");
    kes.store.fail(Some(Cause::StoreUnavailable.seen("away")));
    for http1 in [true, false] {
        let failed = kes.admin_client(http1).call("GET", "/v1/key/list/", None);
        assert_eq!((failed.status, failed.body), (502, refusal("failed to list keys")));
    }
}

#[test]
fn everybody_is_told_who_they_are() {
    let app = api_key(1);
    let kes = App::server(&format!(
        "policy:\n  app:\n    allow: [/v1/key/*]\n    deny: [/v1/key/delete/*]\n    identities: [{}]\n",
        app.identity()
    ));
    let told = kes.client(Some(&app), false).call("GET", "/v1/identity/self/describe", None);
    let told: serde_json::Value = serde_json::from_str(&told.body).unwrap();
    assert_eq!(told["identity"], app.identity().as_str());
    assert_eq!((&told["policy"], &told["allow"]["/v1/key/*"]), (&"app".into(), &serde_json::json!({})));
    assert_eq!(told["deny"]["/v1/key/delete/*"], serde_json::json!({}));
    let stranger = kes.client(Some(&api_key(9)), false).call("GET", "/v1/identity/self/describe", None);
    assert_eq!((stranger.status, stranger.body), (404, refusal("identity does not exist")));
}

#[test]
fn an_entry_that_is_no_key_is_an_error_and_not_the_end() {
    let kes = App::server("");
    kes.store.put("empty", "");
    // `1: {1: 32 bytes, 2: AES256}`, and no field 2.
    let no_hmac = [&[0x0a, 0x24, 0x0a, 32][..], &[7; 32], &[0x10, 1]].concat();
    kes.store.put("no-hmac", &base64(&no_hmac));
    let admin = kes.admin_client(true);
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
    let server = Server::over_one_key(QUIET);
    let admin = server.admin_client(false);
    let names = || admin.call("GET", "/v1/key/list/", None).body;
    assert!(names().contains(KEY));
    let file = server.dir().join("server-config.yaml");
    let yaml = std::fs::read_to_string(&file).unwrap();
    let other = server.dir().join("other");
    std::fs::write(&file, yaml.replace("/keys", "/other")).unwrap();
    eventually(IN_PROCESS, "the reload fails, since there is no such directory", || {
        server.metric("keswarden_config_reload_failed").filter(|failed| *failed == 1.0)
    });
    assert!(names().contains(KEY), "the old one serves on");
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("elsewhere"), key_text()).unwrap();
    eventually(IN_PROCESS, "it is tried again, and works now", || {
        names().contains("elsewhere").then_some(())
    });
    assert_eq!(admin.call("GET", &format!("/v1/key/describe/{KEY}"), None).status, 404);
    assert_eq!(server.metric("keswarden_config_reload_failed"), Some(0.0));
}

#[test]
fn a_file_that_is_mended_while_the_start_waits_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("server-config.yaml");
    let yaml = server_yaml(&dir, "");
    std::fs::write(&file, yaml.replace("/keys", "/mistyped")).unwrap();
    std::fs::create_dir(dir.path().join("keys")).unwrap();
    let server = Launch::in_folder(dir).start();
    eventually(IN_PROCESS, "it waits, and says for what", || {
        server.status().contains("store_unavailable").then_some(())
    });
    std::fs::write(&file, "no: [yaml").unwrap();
    std::fs::write(&file, yaml).unwrap();
    server.api_ready();
}

#[test]
fn a_reload_during_an_outage_keeps_the_keys_at_hand() {
    let kes = App::server("");
    kes.store.put(KEY, &key_text());
    let admin = kes.admin_client(false);
    let (_, ciphertext) = admin.generate(KEY, "{}");
    kes.store.fail(Some(Cause::VaultSealed.seen("Vault is sealed")));
    kes.rewrite("api:\n  /v1/ready:\n    timeout: 7s\n");
    eventually(IN_PROCESS, "the new file is in force", || {
        let api = admin.call("GET", "/v1/api", None).body;
        api.contains(r#""path":"/v1/ready","max_body":0,"timeout":7}"#).then_some(())
    });
    assert_eq!(admin.decrypt(KEY, &ciphertext, "{}").status, 200);
}

#[test]
fn metrics_are_text_whatever_is_asked_for() {
    let kes = App::server("");
    let admin = kes.admin_client(false);
    let url = format!("https://{}/v1/metrics", kes.api);
    let accept = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited";
    let answer = block_on(async { admin.http.get(url).header("accept", accept).send().await }).unwrap();
    let kind = answer.headers()["content-type"].to_str().unwrap().to_owned();
    assert_eq!(kind, "text/plain; version=0.0.4; charset=utf-8; escaping=underscores");
    assert!(block_on(answer.text()).unwrap().contains("# TYPE kes_system_up_time gauge"));
}

#[test]
fn the_version_is_our_own() {
    let kes = App::server("");
    let told = kes.admin_client(true).call("GET", "/version", None).body;
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!(told["version"], keswarden::version::VERSION);
    assert_eq!(told["commit"].as_str().unwrap().len(), 40);
}

#[test]
fn ciphers_without_authentication_of_their_own_are_refused() {
    let kes = App::server("");
    let shakes_hands = |cipher: &str| {
        let output = std::process::Command::new("openssl")
            .args(["s_client", "-tls1_2", "-cipher", cipher, "-connect", &kes.api.to_string()])
            .stdin(std::process::Stdio::null())
            .output()
            .unwrap();
        !String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).contains("handshake failure")
    };
    assert!(!shakes_hands("ECDHE-ECDSA-AES128-SHA"), "AES-CBC with SHA-1");
    assert!(shakes_hands("ECDHE-ECDSA-AES128-GCM-SHA256"), "this server's certificate is no obstacle");
}

#[test]
fn keys_under_a_rotated_transit_key_are_made_and_read() {
    let bao = Bao::with_kv(2);
    bao.ok(&["secrets", "enable", "transit"], "");
    bao.ok(&["write", "-f", "transit/keys/wrap"], "");
    let transit = |dir: &Path| {
        let more = ["encrypt", "decrypt"]
            .map(|op| format!("\npath \"transit/{op}/wrap\" {{ capabilities = [\"update\"] }}"))
            .concat();
        yaml_over(&bao, dir, &more)
            .replace("    prefix: minio\n", "    prefix: minio\n    transit: { key: wrap }\n")
    };
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("server-config.yaml"), transit(dir.path())).unwrap();
    let file = std::fs::read_to_string(dir.path().join("server-config.yaml")).unwrap();
    let server = Launch::in_folder(dir).ready();
    let create =
        |name: &str| server.admin_client(false).call("PUT", &format!("/v1/key/create/{name}"), None).status;
    let stored = |name: &str| {
        bao.ok(&["kv", "get", "-mount=kv", &format!("-field={name}"), &format!("minio/{name}")], "")
    };
    assert_eq!(create("before"), 200);
    bao.ok(&["write", "-f", "transit/keys/wrap/rotate"], "");
    assert_eq!(create("after"), 200);
    assert!(stored("before").starts_with("vault:v1:") && stored("after").starts_with("vault:v2:"));
    let sealed = ["before", "after"].map(|name| (name, server.admin_client(false).generate(name, "{}").1));
    // Another server has neither key in memory.
    let dir = tempfile::tempdir().unwrap();
    let own =
        |line: &str| line.replace(&server.dir().display().to_string(), &dir.path().display().to_string());
    std::fs::write(dir.path().join("server-config.yaml"), own(&file)).unwrap();
    let other = Launch::in_folder(dir).ready();
    for (name, ciphertext) in &sealed {
        assert_eq!(other.admin_client(false).decrypt(name, ciphertext, "{}").status, 200, "{name}");
    }
    // `migrate --dry-run` warns a tenant that would go back to KES.
    let keys = other.dir().join("from");
    std::fs::create_dir(&keys).unwrap();
    let from = other.dir().join("from.yaml");
    std::fs::write(&from, format!("keystore: {{ fs: {{ path: {} }} }}\n", keys.display())).unwrap();
    let to = other.dir().join("server-config.yaml");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_keswarden"))
        .args(["migrate", "--dry-run", "--from"])
        .arg(from)
        .arg("--to")
        .arg(to)
        .env_clear()
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains("vault:v2:, which no KES can read"), "{told}");
}
