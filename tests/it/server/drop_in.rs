//! keswarden in the place of KES: all that real MinIO and real `mc` do with keys, over each key store, through restarts
//! of either side; and two nodes of one cluster that both find no default key at their first boot.

use crate::peers::{
    Agent, Bao, Mc, Minio, Process, SOON, Var, answers, eventually, finish, free_port, policy, succeeded,
    text,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use keswarden::identity::ApiKey;
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    process::Command,
    thread,
};
use tempfile::TempDir;

/// The default key.
const KEY: &str = "minio-default-key";
/// A key that MinIO makes through keswarden.
const NEW_KEY: &str = "made-by-mc";
/// A bucket with SSE-S3, hence under the default key.
const BY_S3: &str = "by-s3";
/// A bucket with SSE-KMS, under the new key.
const BY_KMS: &str = "by-kms";
/// Large enough for `mc` to put it in several parts.
const LARGE: u64 = 70 * 1024 * 1024;
/// How often two nodes make the same key at the same time.
const ROUNDS: usize = 5;

/// Where the keys are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    Directory,
    KvVersion1,
    KvVersion2,
    /// K/V version 2, and what it holds is wrapped by a transit key.
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
    let mut site = Site::running(store);
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

/// Each node has a `keswarden run` of its own: whichever is first makes the key.
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

/// Each node has a `keswarden server` of its own, which demands no key: whichever MinIO is first has it made.
#[test]
fn two_nodes_race_for_the_default_key_through_kes_server() {
    let (bao, settings) = vault(Store::KvVersion2);
    let dir = temporary();
    let certificate = make_certificate(dir.path());
    let api_key = ApiKey::generate();
    let config = dir.path().join("server-config.yaml");
    let content = server_config(dir.path(), &settings, api_key.identity().as_str());
    fs::write(&config, content).expect("a temporary file must be written");

    let mut servers = ["first", "second"].map(|name| Server::start(name, &config));
    servers.iter_mut().for_each(Server::ready);
    assert!(keys_stored(&bao).is_empty(), "nobody but MinIO must make the key: {:?}", keys_stored(&bao));

    let mut cluster = Minio::cluster(["first", "second"]);
    for (node, server) in cluster.iter_mut().zip(&servers) {
        node.set(vec![
            ("MINIO_KMS_KES_ENDPOINT", format!("https://127.0.0.1:{}", server.kes_port)),
            ("MINIO_KMS_KES_API_KEY", api_key.to_text().expose().to_owned()),
            ("MINIO_KMS_KES_CAPATH", certificate.to_string_lossy().into_owned()),
            ("MINIO_KMS_KES_KEY_NAME", KEY.to_owned()),
        ]);
    }
    both_nodes_start_and_share_the_key(&mut cluster);
    was_made_once(KEY, &servers, &bao);

    // At boot it is chance how close the race is: here it is run again and again.
    let [first, second] = cluster.each_ref().map(|node| node.mc("node"));
    for round in 0..ROUNDS {
        let key = format!("contested-{round}");
        only_one_makes(&key, [&first, &second]);
        was_made_once(&key, &servers, &bao);
    }
}

/// One host: keswarden, MinIO and `mc`, and OpenBao where there is one.
struct Site {
    store: Store,
    bao: Option<Bao>,
    agent: Agent,
    minio: Minio,
    mc: Mc,
    /// Every object that must be read back.
    kept: Vec<Kept>,
    /// Contents, and the keys when they are in a directory.
    dir: TempDir,
}

struct Kept {
    /// `BUCKET/OBJECT`
    place: String,
    /// The newest when absent.
    version: Option<String>,
    sha256: String,
}

// === impl Site ===

impl Site {
    /// MinIO runs beside a keswarden whose default key was made by hand.
    fn running(store: Store) -> Self {
        let dir = temporary();
        let keys = dir.path().join("keys");
        fs::create_dir(&keys).expect("a temporary folder must be made");
        let (bao, mut settings) = match store {
            Store::Directory => (None, vec![("KESWARDEN_FS_DIR", keys.to_string_lossy().into_owned())]),
            _ => {
                let (bao, settings) = vault(store);
                (Some(bao), settings)
            }
        };
        settings.push(("KESWARDEN_KEY_NAME", KEY.to_owned()));
        if store == Store::Transit {
            settings.push(("KESWARDEN_VAULT_TRANSIT_KEY", "wrap".to_owned()));
        }
        let agent = Agent::new("drop-in", &settings);
        let minio = Minio::new("drop-in");
        let mc = minio.mc("site");
        let mut site = Self { store, bao, agent, minio, mc, kept: Vec::new(), dir };

        let key = succeeded("keswarden key new", &site.agent.output(&["key", "new", KEY]));
        site.store_key(KEY, key.trim());
        site.agent.run();
        site.agent.ready();
        site.minio.set(site.agent.minio_vars(KEY));
        site.minio.start();
        site.minio.wait_live();
        site
    }

    /// Stores a key by hand, as KES keeps it.
    fn store_key(&self, name: &str, key: &str) {
        let Some(bao) = &self.bao else {
            fs::write(self.dir.path().join("keys").join(name), key).expect("a key file must be written");
            return;
        };
        let stored = match self.store {
            Store::Transit => {
                let wrap = ["write", "-field=ciphertext", "transit/encrypt/wrap", "plaintext=-"];
                bao.ok(&wrap, &STANDARD.encode(key)).trim().to_owned()
            }
            _ => key.to_owned(),
        };
        let (place, field) = (format!("minio/{name}"), format!("{name}=-"));
        let mut arguments = vec!["kv", "put"];
        if self.store != Store::KvVersion1 {
            arguments.push("-cas=0");
        }
        arguments.extend_from_slice(&["-mount=kv", &place, &field]);
        bao.ok(&arguments, &stored);
    }

    /// What the store holds under a name.
    fn stored_key(&self, name: &str) -> String {
        match &self.bao {
            None => {
                fs::read_to_string(self.dir.path().join("keys").join(name)).expect("a key must be a file")
            }
            Some(bao) => {
                let (place, field) = (format!("minio/{name}"), format!("-field={name}"));
                bao.ok(&["kv", "get", "-mount=kv", &field, &place], "")
            }
        }
    }

    fn keys_are_made_listed_and_tried(&self) {
        let mc = &self.mc;
        assert_eq!(key_names(mc), [KEY]);
        mc.make_key(NEW_KEY);
        assert_eq!(key_names(mc), [NEW_KEY, KEY]);
        for key in [KEY, NEW_KEY] {
            assert_eq!(mc.key_works(key), Ok(()));
        }
        // Both errors reach the administrator as MinIO words them for KES.
        let again = make_key(mc, NEW_KEY).expect_err("a key must not be made twice");
        assert!(again.contains("already exi"), "{again}");
        let absent = mc.key_works("nobody-made-it").expect_err("a key that is not there must not work");
        assert!(absent.contains("does not exist"), "{absent}");

        let wrapped = self.stored_key(NEW_KEY).starts_with("vault:v1:");
        assert_eq!(wrapped, self.store == Store::Transit, "is the new key wrapped, in {:?}", self.store);
    }

    /// The bucket takes versions, and encrypts what is small and what comes in parts.
    fn a_bucket_encrypts(&mut self, bucket: &str) {
        self.mc.make_bucket(bucket);
        let place = self.mc.place(bucket);
        match bucket {
            BY_KMS => {
                self.mc.set_default_key(bucket, NEW_KEY);
                assert_eq!(self.mc.default_key(bucket), Ok(NEW_KEY.to_owned()));
            }
            _ => {
                self.mc.json(&["encrypt", "set", "sse-s3", &place]);
                let told = self.mc.json(&["encrypt", "info", &place]);
                assert_eq!(told[0]["encryption"]["algorithm"], "AES256", "{told:?}");
            }
        }
        self.mc.json(&["version", "enable", &place]);

        self.put(&format!("{bucket}/small.bin"), 1000);
        let large = format!("{bucket}/large.bin");
        self.put(&large, LARGE);
        let told = self.mc.json(&["stat", &self.mc.place(&large)]);
        // S3 writes the number of parts behind the ETag.
        let etag = told[0]["etag"].as_str().unwrap_or_default();
        assert!(etag.contains('-'), "{large} must have been put in several parts: {told:?}");
    }

    /// MinIO opens the object with one key and seals it with the other, without `mc` seeing it.
    fn objects_are_copied_to_and_fro(&mut self) {
        for (from, to) in [(BY_S3, BY_KMS), (BY_KMS, BY_S3)] {
            for size in ["small", "large"] {
                let (from, to) = (format!("{from}/{size}.bin"), format!("{to}/{size}-copy.bin"));
                self.mc.json(&["cp", &self.mc.place(&from), &self.mc.place(&to)]);
                let kept = self.kept.iter().find(|kept| kept.place == from).expect("it must have been put");
                let sha256 = kept.sha256.clone();
                self.keep(&to, None, sha256);
            }
        }
    }

    fn versions_are_deleted_one_by_one(&mut self, bucket: &str) {
        let object = format!("{bucket}/versions.txt");
        let place = self.mc.place(&object);
        for content in ["first\n", "second\n", "third\n"] {
            self.mc.put(&object, content);
        }
        let versions = self.versions(&object);
        let [third, second, first] = &versions[..] else { panic!("three versions are there: {versions:?}") };

        self.mc.json(&["rm", "--version-id", third, &place]);
        assert_eq!(self.versions(&object), [second.clone(), first.clone()]);
        assert_eq!(self.mc.cat(&object), "second\n");
        assert_eq!(text(&self.read(&object, Some(first)).expect("an older version must be read")), "first\n");

        // Without a version, what is deleted is only hidden.
        self.mc.json(&["rm", &place]);
        self.read(&object, None).expect_err("a deleted object must not be read");
        for version in [first, second] {
            let told = self.mc.json(&["stat", "--version-id", version, &place]);
            let algorithm = &told[0]["metadata"]["X-Amz-Server-Side-Encryption"];
            assert_eq!(algorithm, if bucket == BY_KMS { "aws:kms" } else { "AES256" }, "{told:?}");
            let content = self.read(&object, Some(version)).expect("an older version must be read");
            let sha256 = self.sha256(&content);
            self.keep(&object, Some(version.clone()), sha256);
        }
    }

    /// Every object is what was put, and is encrypted as its bucket says.
    fn everything_reads_back(&self) {
        // Whoever was restarted may need a moment to find the other.
        eventually(SOON, "MinIO reads", || self.read(&self.kept[0].place, None));
        for Kept { place, version, sha256 } in &self.kept {
            let content =
                self.read(place, version.as_deref()).unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(&self.sha256(&content), sha256, "the content of {place}, version {version:?}");
            if version.is_none() {
                let wanted = match place.starts_with(BY_KMS) {
                    true => ("aws:kms".to_owned(), NEW_KEY.to_owned()),
                    false => ("AES256".to_owned(), String::new()),
                };
                assert_eq!(self.mc.encryption_of(place), wanted, "the encryption of {place}");
            }
        }
    }

    /// Puts random bytes.
    fn put(&mut self, place: &str, size: u64) {
        let path = self.dir.path().join("to-be-put");
        let random = File::open("/dev/urandom").expect("the OS must give randomness");
        let mut file = File::create(&path).expect("a temporary file must be made");
        let written = io::copy(&mut random.take(size), &mut file).expect("a temporary file must be written");
        assert_eq!(written, size, "the OS must give as much randomness as is wanted");
        self.mc.json(&["cp", &path.to_string_lossy(), &self.mc.place(place)]);
        self.keep(place, None, sha256(&path));
    }

    fn keep(&mut self, place: &str, version: Option<String>, sha256: String) {
        self.kept.push(Kept { place: place.to_owned(), version, sha256 });
    }

    fn read(&self, place: &str, version: Option<&str>) -> Result<Vec<u8>, String> {
        let place = self.mc.place(place);
        let mut arguments = vec!["cat"];
        if let Some(version) = version {
            arguments.extend_from_slice(&["--version-id", version]);
        }
        arguments.push(&place);
        let output = self.mc.run(&arguments);
        if output.status.success() { Ok(output.stdout) } else { Err(text(&output.stderr)) }
    }

    /// The versions of an object, the newest first.
    fn versions(&self, place: &str) -> Vec<String> {
        let rows = self.mc.json(&["ls", "--versions", &self.mc.place(place)]);
        rows.iter().map(|row| row["versionId"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn sha256(&self, content: &[u8]) -> String {
        let path = self.dir.path().join("was-read");
        fs::write(&path, content).expect("a temporary file must be written");
        sha256(&path)
    }
}

/// `keswarden server`, started as `kes server` is.
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) kes_port: u16,
    admin_port: u16,
}

// === impl Server ===

impl Server {
    pub(crate) fn start(name: &str, config: &Path) -> Self {
        Self::start_with(name, config, &[], None)
    }

    /// With these settings of ours, and the port that it had before.
    pub(crate) fn start_with(name: &str, config: &Path, settings: &[Var], port: Option<u16>) -> Self {
        let (kes_port, admin_port) = (port.unwrap_or_else(free_port), free_port());
        let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
        command.env_clear().env("KESWARDEN_ADMIN_ADDR", format!("127.0.0.1:{admin_port}"));
        command.env("XDG_STATE_HOME", config.with_file_name("state"));
        command.envs(settings.iter().map(|(name, value)| (name, value)));
        command.arg("server").arg("--config").arg(config);
        command.arg("--addr").arg(format!("127.0.0.1:{kes_port}"));
        let log = config.with_file_name(format!("{name}.log"));
        let process = Process::spawn(&format!("keswarden server {name}"), command, log);
        Self { process, kes_port, admin_port }
    }

    pub(crate) fn ready(&mut self) {
        let port = self.admin_port;
        self.process.until(SOON, "is ready", || answers(port, "/readyz", 200));
    }
}

/// OpenBao with everything but the keys, and how keswarden reaches it.
pub(crate) fn vault(store: Store) -> (Bao, Vec<Var>) {
    let version = if store == Store::KvVersion1 { 1 } else { 2 };
    let bao = Bao::unsealed();
    bao.setup_kv(version, "kv");
    let mut policy = policy(version);
    if store == Store::Transit {
        bao.ok(&["secrets", "enable", "transit"], "");
        bao.ok(&["write", "-f", "transit/keys/wrap"], "");
        for place in ["transit/encrypt/wrap", "transit/decrypt/wrap"] {
            policy.push_str(&format!("path \"{place}\" {{ capabilities = [\"update\"] }}\n"));
        }
    }
    let (role_id, secret_id) = bao.setup_approle(&policy);
    let settings = vec![
        ("KESWARDEN_VAULT_ADDR", bao.addr()),
        ("KESWARDEN_VAULT_CACERT", bao.ca_path().to_string_lossy().into_owned()),
        ("KESWARDEN_VAULT_ROLE_ID", role_id),
        ("KESWARDEN_VAULT_SECRET_ID", secret_id),
        ("KESWARDEN_VAULT_KV_MOUNT", "kv".to_owned()),
        ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
    ];
    (bao, settings)
}

/// KES's own file, for the OpenBao that these settings reach, with the policy that MinIO's documentation gives.
pub(crate) fn server_config(dir: &Path, settings: &[Var], identity: &str) -> String {
    let of = |wanted: &str| {
        let found = settings.iter().find(|(name, _)| *name == wanted);
        found.unwrap_or_else(|| panic!("{wanted} must be set")).1.as_str()
    };
    let (endpoint, ca) = (of("KESWARDEN_VAULT_ADDR"), of("KESWARDEN_VAULT_CACERT"));
    let (id, secret) = (of("KESWARDEN_VAULT_ROLE_ID"), of("KESWARDEN_VAULT_SECRET_ID"));
    let dir = dir.display();
    format!(
        r#"version: v1
address: 0.0.0.0:7373
admin:
  identity: disabled
tls:
  key: "{dir}/server.key"
  cert: "{dir}/server.crt"
policy:
  minio:
    allow:
      - /v1/key/create/*
      - /v1/key/generate/*
      - /v1/key/decrypt/*
      - /v1/key/describe/*
      - /v1/key/list/*
      - /v1/key/hmac/*
      - /v1/status
      - /v1/metrics
      - /v1/api
      - /v1/log/audit
      - /v1/log/error
    identities:
      - "{identity}"
keystore:
  vault:
    endpoint: "{endpoint}"
    engine: kv
    version: v2
    prefix: minio
    approle:
      id: "{id}"
      secret: "{secret}"
    tls:
      ca: "{ca}"
"#
    )
}

/// A certificate for 127.0.0.1 in `server.crt`, which vouches for itself, and its key in `server.key`.
pub(crate) fn make_certificate(dir: &Path) -> PathBuf {
    let line = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=kes \
                -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.crt";
    let mut command = Command::new("openssl");
    let output = finish(command.current_dir(dir).args(line.split_whitespace()), "", SOON);
    succeeded(&format!("openssl {line}"), &output);
    dir.join("server.crt")
}

/// The nodes are started together, and what one seals the other opens.
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

/// Both make the key at once: one is told that it did, the other that the key is there, and both can use it.
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

/// By one of the servers, as the audit logs of both tell, and as K/V does.
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

/// By a program: Rust that is built for tests takes seconds for a large object.
fn sha256(path: &Path) -> String {
    let mut command = Command::new("openssl");
    let line =
        succeeded("openssl dgst", &finish(command.args(["dgst", "-sha256", "-r"]).arg(path), "", SOON));
    line.split_whitespace().next().expect("openssl must print a digest").to_owned()
}

fn temporary() -> TempDir {
    TempDir::new().expect("a temporary folder must be made")
}
