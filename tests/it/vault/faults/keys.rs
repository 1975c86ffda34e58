//! The key itself is missing, deleted, destroyed, replaced, written over, garbled, or rolled back. A key that can come back is waited
//! for. A key that is lost from the store goes on opening, and seals no more. The right bytes end the fault, and keswarden writes nothing
//! meanwhile.

use super::{Site, with_key};
use crate::harness::{
    Agent, Bao, Client, KEY, Proxy, SOON, TOLD, Var, Wire, answers, base64, eventually, fingerprint,
    http_get, key_text, policy, put_key, succeeded, text,
};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// Where the key is, for `bao kv` and for the API.
const PLACE: &str = "minio/my-key";
const DATA: &str = "kv/data/minio/my-key";
const METADATA: &str = "kv/metadata/minio/my-key";
const MISMATCH: &str = "keswarden_key_fingerprint_mismatch{key=\"my-key\"}";
const OVERWRITTEN: &str = "keswarden_key_overwritten{key=\"my-key\"}";
/// A pod whose write came too late has this line.
const REFUSED: &str = "keswarden_vault_request_duration_seconds_count{code=\"400\",op=\"kv\"} ";

/// A site whose pods have a pin of the key, and would make a first key if the pin let them; and the key, as it is stored.
fn pinned() -> (Site, String) {
    let (bao, mut settings) = with_key();
    let key = stored(&bao);
    settings.push(("KESWARDEN_PINS", format!("{KEY}={}", fingerprint(&key))));
    settings.push(("KESWARDEN_KEY_CREATE", "if-new".to_owned()));
    (Site::serving(bao, &settings), key)
}

/// A Vault without any key, and the settings of a pod beside it.
fn without_key() -> (Bao, Vec<Var>) {
    let bao = Bao::with_kv(2);
    let mut settings = bao.approle_vars(&policy(2));
    settings.push(("KESWARDEN_KEY_NAME", KEY.to_owned()));
    (bao, settings)
}

fn read(bao: &Bao, path: &str) -> Value {
    bao.api("GET", path, None, Some(bao.root_token())).1["data"].clone()
}

fn stored(bao: &Bao) -> String {
    let version_1 = read(bao, &format!("{DATA}?version=1"));
    version_1["data"][KEY].as_str().expect("there must be a key").to_owned()
}

/// The history of the key, and the names in its folder: every write, deletion and restore there changes them.
fn history(bao: &Bao) -> [Value; 2] {
    [read(bao, METADATA), read(bao, "kv/metadata/minio/?list=true")]
}

/// Every trace of the key goes.
fn remove(bao: &Bao) {
    bao.ok(&["kv", "metadata", "delete", "-mount=kv", PLACE], "");
}

/// Another key is written over this version.
fn write_over(bao: &Bao, version: u32) {
    bao.ok(&["kv", "put", &format!("-cas={version}"), "-mount=kv", PLACE, "my-key=-"], &key_text());
}

/// The words of the command that a line tells after `start`.
fn told<'a>(log: &'a str, start: &str) -> Vec<&'a str> {
    let (_, rest) = log.split_once(start).unwrap_or_else(|| panic!("no {start:?} in\n{log}"));
    rest.split('`').next().unwrap_or_default().split_whitespace().collect()
}

/// The key in use is lost from the store: a gate says how, the agent opens what it has sealed and seals no more, no other key is made
/// under the name, and nothing is written.
fn is_lost(site: &mut Site, cause: &str) -> String {
    is_lost_and_a_gate_says(site, cause, cause)
}

/// The same where a gate, which has not looked for half a minute, has another cause.
fn is_lost_and_a_gate_says(site: &mut Site, cause: &str, gate: &str) -> String {
    let before = history(&site.bao);
    site.refuses_to_seal(cause);
    site.agent.process().says(SOON, &format!("sealing with the key has stopped: {cause}: "));
    eventually(SOON, "the loss is among the metrics", || site.metric(MISMATCH) == 1.0);
    let log = site.gate_says(gate);
    site.opens(cause);
    makes_no_other(site);
    assert_eq!(answers(site.agent.admin_port(), "/readyz", 200), Ok(()), "what is sealed must be read");
    assert_eq!(history(&site.bao), before, "{cause}: nothing is written");
    log
}

/// A MinIO that asks for a new key under the name gets none.
fn makes_no_other(site: &Site) {
    let reply = Client::of(&site.agent).call("POST", &format!("/v1/key/create/{KEY}"), None);
    assert_ne!(reply.status, 200, "no other key is made under the name of one in use");
}

/// The right key is back: the agent goes on with that key, and pods start.
fn is_well(site: &Site, key: &str) {
    site.recovers();
    assert_eq!(stored(&site.bao), key);
    eventually(SOON, "the metric is back", || site.metric(MISMATCH) == 0.0);
    site.gate_passes();
}

/// The key is missing, and is made while the gate waits (`key_missing`).
#[test]
fn a_key_that_is_made_while_the_gate_waits() {
    let (bao, settings) = without_key();
    let (mut first, mut second) = (Agent::new("first", &settings), Agent::new("second", &settings));
    let begun = Instant::now();
    let mut init = first.init();
    second.run();
    for waiting in [&mut init, second.process()] {
        waiting.says(SOON, ": key_missing: ");
        assert!(begun.elapsed() < TOLD, "{}", waiting.log());
        assert_eq!(waiting.ended(), None, "it must wait");
    }
    assert_eq!(history(&bao), [Value::Null, Value::Null], "nobody makes a key that nobody has asked for");
    // The fix is a command to be copied.
    let log = init.log();
    let create = told(&log, "only when there never was one: `keswarden ");
    let made = succeeded("key create", &first.output(&create));
    assert_eq!(made.trim(), format!("{KEY} {}", fingerprint(&stored(&bao))));
    assert_eq!(init.wait(SOON), 0, "{}", init.log());
    second.ready();
    let client = Client::of(&second);
    let sealed = client.generate(KEY, "{}").1;
    assert_eq!(client.decrypt(KEY, &sealed, "{}").status, 200);
}

/// The key is deleted, and comes back by an undelete (`key_deleted`).
#[test]
fn a_key_that_is_deleted_and_undeleted() {
    let (mut site, key) = pinned();
    site.bao.ok(&["kv", "delete", "-mount=kv", PLACE], "");
    let before = history(&site.bao);
    // The key can be brought back, so data that is sealed now is not lost: sealing goes on.
    let log = site.goes_on_while("key_deleted");
    site.agent.process().says(SOON, "nobody can load it now: key_deleted: ");
    makes_no_other(&site);
    assert_eq!(site.metric(MISMATCH), 0.0);
    assert_eq!(history(&site.bao), before, "nothing is written, nor undeleted");
    site.bao.ok(&told(&log, "undelete it: `bao "), "");
    is_well(&site, &key);
}

/// The key's bytes are destroyed in Vault, and are in the agent's memory alone (`key_destroyed`).
#[test]
fn a_key_that_is_destroyed() {
    let (mut site, key) = pinned();
    site.bao.ok(&["kv", "destroy", "-mount=kv", "-versions=1", PLACE], "");
    is_lost(&mut site, "key_destroyed");
    // The undelete of a destroyed version reports success, and brings nothing back.
    site.bao.ok(&["kv", "undelete", "-mount=kv", "-versions=1", PLACE], "");
    is_lost(&mut site, "key_destroyed");
    // The only copy is in the agent's memory; a rescue writes to an empty place alone.
    let rescue = |site: &Site| site.agent.output(&["key", "rescue", KEY, "--yes"]);
    let refused = rescue(&site);
    let says = text(&refused.stderr);
    assert!(!refused.status.success() && says.contains("bao kv metadata delete "), "{says}");
    remove(&site.bao);
    succeeded("key rescue", &rescue(&site));
    is_well(&site, &key);
}

/// The key is removed with its history, and another key is made under the name (`key_missing`, `key_replaced`).
#[test]
fn a_key_that_is_removed_and_made_anew() {
    let (mut site, key) = pinned();
    remove(&site.bao);
    let log = site.goes_on_while("key_missing");
    assert!(log.contains("so it is not made anew"), "{log}");
    makes_no_other(&site);
    assert_eq!(history(&site.bao), [Value::Null, Value::Null], "nothing is written");
    // The other key is version 1 again, so no version number tells the keys apart.
    let another = key_text();
    put_key(&site.bao, &another);
    let log = is_lost(&mut site, "key_replaced");
    assert!(log.contains(&fingerprint(&another)) && log.contains(&fingerprint(&key)), "{log}");
    remove(&site.bao);
    put_key(&site.bao, &key);
    is_well(&site, &key);
}

/// Further versions are written over the key, until the first version is gone.
#[test]
fn a_key_that_is_written_over_once_and_often() {
    let (mut site, key) = pinned();
    write_over(&site.bao, 1);
    site.agent.process().says(SOON, "the key goes on being served: key_overwritten: ");
    eventually(SOON, "that is among the metrics", || site.metric(OVERWRITTEN) == 1.0);
    // Version 1 is what counts.
    is_well(&site, &key);
    // A mount keeps ten versions by default: the eleventh pushes the first one out.
    site.bao.ok(&["write", "kv/config", "max_versions=10"], "");
    (2..=12).for_each(|version| write_over(&site.bao, version));
    let log = is_lost(&mut site, "key_destroyed");
    assert!(log.contains("has a history, but its version 1 is gone"), "{log}");
    remove(&site.bao);
    put_key(&site.bao, &key);
    is_well(&site, &key);
    eventually(SOON, "nothing is odd any more", || site.metric(OVERWRITTEN) == 0.0);
}

/// The key's entry holds something that is no key.
#[test]
fn something_that_is_no_key() {
    let (mut site, key) = pinned();
    let short = json!({ "bytes": base64(&[7; 31]), "algorithm": "AES256" }).to_string();
    for (field, value, says) in [
        (KEY, json!("{\"bytes\":\"c2VjcmV0"), "it is neither base64 text nor JSON"),
        (KEY, json!(key[..40]), "the base64 text holds no protobuf message"),
        (KEY, json!(short), "the key is 31 bytes long, not 32"),
        (KEY, json!(7), "has a field 'my-key' that is no text"),
        ("value", json!(key), "has no field 'my-key'"),
    ] {
        remove(&site.bao);
        let body = json!({ "options": { "cas": 0 }, "data": { field: value } });
        let (status, answer) = site.bao.api("POST", DATA, Some(&body), Some(site.bao.root_token()));
        assert_eq!(status, 200, "{answer}");
        let log = is_lost(&mut site, "key_malformed") + &site.agent.logs();
        assert!(log.contains(says), "{says}: {log}");
        assert!(value.as_str().is_none_or(|text| !log.contains(text)), "{says}: what it is nobody tells");
        remove(&site.bao);
        put_key(&site.bao, &key);
        is_well(&site, &key);
    }
}

/// The key is missing, and four pods make the first key at once: all of them serve the same key.
#[test]
fn four_pods_that_make_the_first_key_at_once() {
    let (bao, mut settings) = without_key();
    let proxy = Proxy::before(bao.addr().rsplit(':').next().unwrap().parse().unwrap());
    settings.push(("KESWARDEN_VAULT_ADDR", format!("https://127.0.0.1:{}", proxy.port)));
    settings.push(("KESWARDEN_KEY_CREATE", "if-new".to_owned()));
    let mut refused = 0;
    // The first round is on an empty mount, the others beside the keys of other tenants; until two have written at the same time.
    for round in 1..=40 {
        let prefix = format!("minio/tenant-{round}");
        settings.push(("KESWARDEN_VAULT_KV_PREFIX", prefix.clone()));
        let mut pods: Vec<_> = (1..=4).map(|pod| Agent::new(&format!("pod {pod}"), &settings)).collect();
        // All pods wait for Vault. Then answers come so slowly that each pod has seen no key before any pod has made one.
        proxy.set(Wire::Ended);
        pods.iter_mut().for_each(Agent::run);
        pods.iter_mut().for_each(|pod| pod.process().says(SOON, "vault_unreachable: "));
        proxy.set(Wire::Drip(Duration::from_micros(600)));
        pods.iter_mut().for_each(Agent::ready);
        let clients: Vec<_> = pods.iter().map(Client::of).collect();
        for sealing in &clients {
            let (plaintext, ciphertext) = sealing.generate(KEY, "{}");
            for opening in &clients {
                let reply = opening.decrypt(KEY, &ciphertext, "{}");
                let opened: Value = serde_json::from_str(&reply.body).unwrap();
                assert_eq!((reply.status, opened["plaintext"].as_str()), (200, Some(plaintext.as_str())));
            }
        }
        let metadata = read(&bao, &format!("kv/metadata/{prefix}/{KEY}"));
        let versions: Vec<_> = metadata["versions"].as_object().unwrap().keys().collect();
        assert_eq!(versions, ["1"], "{metadata}");
        let makers = pods.iter().filter(|pod| pod.logs().contains("the key was made: ")).count();
        assert_eq!(makers, 1, "one has made it, the others have found it");
        let metrics = |pod: &Agent| text(&http_get(pod.admin_port(), "/metrics").unwrap().1);
        refused += pods.iter().filter(|pod| metrics(pod).contains(REFUSED)).count();
        if refused > 0 && round > 1 {
            return;
        }
    }
    panic!("they must have written at the same time");
}

/// Vault's storage is restored from a snapshot that is older than the key.
#[test]
fn a_snapshot_from_before_the_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let (without, with) = (file("without"), file("with"));
    let bao = Bao::with_kv(2);
    let login = bao.approle_pair(&policy(2));
    let snapshot =
        |bao: &Bao, what: &str, file: &str| bao.ok(&["operator", "raft", "snapshot", what, file], "");
    // Vault stalls for some seconds after a restore: its new content is waited for.
    let restore = |bao: &Bao, file: &str, wanted: u16| {
        snapshot(bao, "restore", file);
        eventually(SOON, "the snapshot is in use", || {
            let (status, answer) = bao.try_api("GET", METADATA, None, Some(bao.root_token()))?;
            if status == wanted { Ok(()) } else { Err(format!("{status} {answer}")) }
        });
    };
    snapshot(&bao, "save", &without);
    let key = key_text();
    put_key(&bao, &key);
    let secret_id = ["write", "-f", "-field=secret_id", "auth/approle/role/minio-sidecar/secret-id"];
    let newer = bao.ok(&secret_id, "").trim().to_owned();
    let mut site = Site::serving(bao, &login);
    snapshot(&site.bao, "save", &with);
    let logins = site.logins();

    // The agent's token is unknown now, and the key looks as if there never was one.
    restore(&site.bao, &without, 404);
    site.goes_on_while("key_missing");
    assert_eq!(site.logins(), logins + 1.0, "one login for each restore");
    // A pod with a pin knows the key.
    site.settings.push(("KESWARDEN_PINS", format!("{KEY}={}", fingerprint(&key))));
    let log = site.gate_says("key_missing");
    assert!(log.contains(&fingerprint(&key)), "{log}");
    // A secret_id that is newer than the snapshot is as unknown as the token.
    site.settings.push(("KESWARDEN_VAULT_SECRET_ID", newer));
    site.gate_says("login_refused");
    site.settings.pop();
    makes_no_other(&site);
    // The key is away for half a minute, which is longer than a stale answer lasts.
    is_lost_and_a_gate_says(&mut site, "key_destroyed", "key_missing");
    assert_eq!(history(&site.bao), [Value::Null, Value::Null], "nothing is written");

    restore(&site.bao, &with, 200);
    is_well(&site, &key);
    assert_eq!(site.logins(), logins + 2.0, "one login for each restore");
}
