//! keswarden in the place of KES: all that real MinIO and real `mc` do with keys, over each key store, through restarts
//! of either side; and two nodes of one cluster that both find no default key at their first boot.

mod host;

use crate::harness::{
    Agent, Bao, Launch, Mc, Minio, SOON, Server, Var, eventually, make_certificate, policy, vault_yaml,
};
use host::Host;
use keswarden::identity::ApiKey;
use std::{fs, thread};
use tempfile::TempDir;

/// The default key.
const KEY: &str = "minio-default-key";
/// A bucket with SSE-S3, hence under the default key.
const BY_S3: &str = "by-s3";
/// A bucket with SSE-KMS, under the new key.
const BY_KMS: &str = "by-kms";
/// How often two nodes make the same key at the same time.
const ROUNDS: usize = 5;

/// Where the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Directory,
    KvVersion1,
    KvVersion2,
    /// K/V version 2, with keys that a transit key wraps.
    Transit,
}

#[test]
fn keys_in_a_directory() {
    journey(Store::Directory);
}

#[test]
fn keys_in_kv_version_1() {
    journey(Store::KvVersion1);
}

#[test]
fn keys_in_kv_version_2() {
    journey(Store::KvVersion2);
}

#[test]
fn keys_wrapped_by_transit() {
    journey(Store::Transit);
}

fn journey(store: Store) {
    let mut site = Host::running(store);
    site.keys_are_made_listed_and_tried();
    info_says_that_the_kms_is_online(&site.mc);
    for bucket in [BY_S3, BY_KMS] {
        site.a_bucket_encrypts(bucket);
    }
    site.objects_are_copied_to_and_fro();
    for bucket in [BY_S3, BY_KMS] {
        site.versions_are_deleted_one_by_one(bucket);
    }
    site.everything_reads_back();

    site.minio.restart();
    site.minio.wait_live();
    site.everything_reads_back();
    info_says_that_the_kms_is_online(&site.mc);

    site.agent.drain();
    site.agent.run();
    site.agent.ready();
    site.everything_reads_back();
    info_says_that_the_kms_is_online(&site.mc);
}

/// Each node has a `keswarden run` of its own: the first of them makes the key.
#[test]
fn two_nodes_race_for_the_default_key() {
    let (bao, mut settings) = vault(Store::KvVersion2);
    settings.push(("KESWARDEN_KEY_NAME", KEY.to_owned()));
    settings.push(("KESWARDEN_KEY_CREATE", "if-new".to_owned()));
    let mut agents = ["first", "second"].map(|name| Agent::new(name, &settings));
    agents.iter_mut().for_each(Agent::run);
    agents.iter_mut().for_each(Agent::ready);
    let logs = agents.each_ref().map(Agent::logs);
    let makers = logs.iter().filter(|log| log.contains("the key was made")).count();
    assert_eq!(makers, 1, "one agent must say that it made the key\n{}", logs.join("\n---\n"));

    let mut cluster = Minio::cluster(["first", "second"]);
    for (node, agent) in cluster.iter_mut().zip(&agents) {
        node.set(agent.minio_vars(KEY));
    }
    both_nodes_start_and_share_the_key(&mut cluster);
    assert_eq!(versions_stored(&bao, KEY), 1);
    for mut agent in agents {
        agent.drain();
    }
}

/// Each node has a `keswarden server` of its own, which demands no key: the first MinIO has the key made.
#[test]
fn two_nodes_race_for_the_default_key_through_kes_server() {
    let (bao, settings) = vault(Store::KvVersion2);
    let dir = temporary();
    let certificate = make_certificate(dir.path());
    let api_key = ApiKey::generate();
    let config = dir.path().join("server-config.yaml");
    let content = vault_yaml(dir.path(), &settings, api_key.identity().as_str());
    fs::write(&config, content).expect("a temporary file must be written");

    let mut servers = ["first", "second"].map(|name| Launch::with_file(name, &config).start());
    servers.iter_mut().for_each(Server::ready);
    assert!(keys_stored(&bao).is_empty(), "nobody but MinIO must make the key: {:?}", keys_stored(&bao));

    let mut cluster = Minio::cluster(["first", "second"]);
    for (node, server) in cluster.iter_mut().zip(&servers) {
        node.set(vec![
            ("MINIO_KMS_KES_ENDPOINT", format!("https://127.0.0.1:{}", server.api.port())),
            ("MINIO_KMS_KES_API_KEY", api_key.to_text().expose().to_owned()),
            ("MINIO_KMS_KES_CAPATH", certificate.to_string_lossy().into_owned()),
            ("MINIO_KMS_KES_KEY_NAME", KEY.to_owned()),
        ]);
    }
    both_nodes_start_and_share_the_key(&mut cluster);
    was_made_once(KEY, &servers, &bao);

    // How close the race is at boot is chance: here the race is run again and again.
    let [first, second] = cluster.each_ref().map(|node| node.mc("node"));
    for round in 0..ROUNDS {
        let key = format!("contested-{round}");
        only_one_makes(&key, [&first, &second]);
        was_made_once(&key, &servers, &bao);
    }
}

/// OpenBao with everything but the keys, and how keswarden reaches it.
fn vault(store: Store) -> (Bao, Vec<Var>) {
    let version = if store == Store::KvVersion1 { 1 } else { 2 };
    let bao = Bao::with_kv(version);
    let mut policy = policy(version);
    if store == Store::Transit {
        bao.ok(&["secrets", "enable", "transit"], "");
        bao.ok(&["write", "-f", "transit/keys/wrap"], "");
        for place in ["transit/encrypt/wrap", "transit/decrypt/wrap"] {
            policy.push_str(&format!("path \"{place}\" {{ capabilities = [\"update\"] }}\n"));
        }
    }
    let mut settings = bao.approle_vars(&policy);
    settings.push(("KESWARDEN_VAULT_KV_MOUNT", "kv".to_owned()));
    (bao, settings)
}

/// Both nodes start together, and each opens the other's ciphertexts.
fn both_nodes_start_and_share_the_key(cluster: &mut [Minio; 2]) {
    cluster.iter_mut().for_each(Minio::start);
    cluster.iter_mut().for_each(Minio::wait_live);
    let [first, second] = cluster.each_ref().map(|node| node.mc("node"));
    for mc in [&first, &second] {
        assert_eq!(mc.key_works(KEY), Ok(()));
        info_says_that_the_kms_is_online(mc);
    }
    first.make_bucket("shared");
    first.set_default_key("shared", KEY);
    for (writer, reader, object) in
        [(&first, &second, "shared/by-first.txt"), (&second, &first, "shared/by-second.txt")]
    {
        writer.put(object, "Both of us can read this.\n");
        assert_eq!(reader.encryption_of(object), ("aws:kms".to_owned(), KEY.to_owned()));
        assert_eq!(reader.cat(object), "Both of us can read this.\n");
    }
}

/// Both nodes make the key at once: one succeeds, the other is refused because the key exists, and both can use the key.
fn only_one_makes(key: &str, nodes: [&Mc; 2]) {
    let told = thread::scope(|scope| {
        let tries = nodes.map(|mc| scope.spawn(move || make_key(mc, key)));
        tries.map(|one| one.join().expect("no try must panic"))
    });
    let errors: Vec<_> = told.iter().filter_map(|told| told.as_ref().err()).collect();
    assert!(matches!(&errors[..], [error] if error.contains("already exi")), "{key}: {told:?}");
    for mc in nodes {
        assert_eq!(mc.key_works(key), Ok(()));
    }
}

/// Makes a key by `mc`, which may be refused.
fn make_key(mc: &Mc, key: &str) -> Result<(), String> {
    mc.try_json(&["admin", "kms", "key", "create", mc.alias(), key]).map(drop)
}

/// The names of all keys, sorted, as `mc admin kms key list` tells.
fn key_names(mc: &Mc) -> Vec<String> {
    let rows = mc.json(&["admin", "kms", "key", "list", mc.alias()]);
    let keys = rows.first().and_then(|row| row["keys"].as_array());
    let keys = keys.unwrap_or_else(|| panic!("there must be a list of keys: {rows:?}"));
    let mut names: Vec<_> = keys.iter().map(|key| key.as_str().unwrap_or_default().to_owned()).collect();
    names.sort();
    names
}

fn info_says_that_the_kms_is_online(mc: &Mc) {
    let rows = mc.json(&["admin", "info", mc.alias()]);
    assert_eq!(rows[0]["status"], "success");
    let told = &rows[0]["info"]["services"]["kmsStatus"];
    let endpoints = told.as_array().map(Vec::as_slice).unwrap_or_default();
    let online = endpoints.iter().all(|endpoint| endpoint["status"] == "online");
    assert!(online && !endpoints.is_empty(), "MinIO must see its KMS: {told}");
}

/// One of the servers made the key once, by the audit logs of both, and by K/V.
fn was_made_once(key: &str, servers: &[Server; 2], bao: &Bao) {
    let words = format!("secret key '{key}' created");
    let told = || servers.iter().map(|server| server.process.log().matches(&words).count()).sum::<usize>();
    // A log may be written after the answer.
    eventually(SOON, &format!("a server says that it made {key}"), || told() > 0);
    assert_eq!(told(), 1, "one server must have made {key}");
    assert_eq!(versions_stored(bao, key), 1);
}

/// How many versions of a key K/V has ever had.
fn versions_stored(bao: &Bao, key: &str) -> u64 {
    let (status, answer) = bao.api("GET", &format!("kv/metadata/minio/{key}"), None, Some(bao.root_token()));
    assert_eq!(status, 200, "{key} must be stored: {answer}");
    answer["data"]["current_version"].as_u64().expect("metadata must have a version")
}

fn keys_stored(bao: &Bao) -> Vec<String> {
    let (status, answer) = bao.api("GET", "kv/metadata/minio?list=true", None, Some(bao.root_token()));
    match answer["data"]["keys"].as_array() {
        Some(keys) => keys.iter().map(ToString::to_string).collect(),
        None => {
            assert_eq!(status, 404, "without keys there is nothing to list: {answer}");
            Vec::new()
        }
    }
}

fn temporary() -> TempDir {
    TempDir::new().expect("a temporary folder must be made")
}
