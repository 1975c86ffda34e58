//! KES as a peer: keswarden's own server in its KES role, with faults in front of KES, in KES and behind KES. A gate that starts names the
//! cause within ten seconds, in words that a person can act upon, and passes by itself once the fault is over.

use crate::harness::{
    Agent, Bao, Client, KEY, Launch, Process, Proxy, SOON, Server, Var, Wire, eventually, free_port,
    key_text, metric, names_its_cause, now, policy, put_key, vault_yaml,
};
use keswarden::{
    identity::ApiKey,
    tls::{self, Pair},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};
use tempfile::TempDir;
use time::{Duration as Days, OffsetDateTime};

/// A KES over a folder with the key, its own CA, and MinIO's API key.
struct Kes {
    dir: TempDir,
    ca: CertificateParams,
    ca_key: KeyPair,
    key: KeyPair,
    minio: ApiKey,
    port: u16,
    server: Option<Server>,
}

/// A pod, and its gate, which waits.
type Gate = (Agent, Process);

/// The routes that MinIO needs.
const ENOUGH: &str = "/v1/key/create/*, /v1/key/generate/*, /v1/key/decrypt/*";

/// A gate with these settings of KES names the cause in time, in these words, and waits.
fn waits(vars: &[Var], cause: &str, words: &[&str]) -> Gate {
    let mut pod = Agent::new("before KES", vars);
    let init = names_its_cause(&mut pod, cause);
    let log = init.log();
    for words in words {
        assert!(log.contains(words), "{cause}: {words:?} is missing from {log}");
    }
    assert!(!log.contains("kes:v1:"), "{cause}: an API key is printed: {log}");
    (pod, init)
}

fn passes((_pod, mut init): Gate) {
    assert_eq!(init.wait(SOON), 0, "{}", init.log());
}

/// MinIO's setting for the address of KES.
fn endpoint(port: u16) -> Var {
    ("MINIO_KMS_KES_ENDPOINT", format!("https://127.0.0.1:{port}"))
}

// === impl Kes ===

impl Kes {
    /// The files of KES; nothing runs yet.
    fn new() -> Self {
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let kes = Self {
            dir: tempfile::tempdir().unwrap(),
            ca,
            ca_key: KeyPair::generate().unwrap(),
            key: KeyPair::generate().unwrap(),
            minio: ApiKey::generate(),
            port: free_port(),
            server: None,
        };
        fs::create_dir(kes.path("keys")).unwrap();
        fs::write(kes.path("keys").join(KEY), key_text()).unwrap();
        fs::write(kes.path("ca.crt"), kes.ca.self_signed(&kes.ca_key).unwrap().pem()).unwrap();
        fs::write(kes.path("server.key"), kes.key.serialize_pem()).unwrap();
        kes.shows("127.0.0.1", (-1, 1));
        kes.configure("", &[(ENOUGH, &kes.minio)]);
        kes
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn text(&self, file: &str) -> String {
        self.path(file).to_string_lossy().into_owned()
    }

    /// Makes a server certificate for this name and these days from now; a running KES reads the file again by itself.
    fn shows(&self, name: &str, days: (i64, i64)) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + Days::days(days.0), now + Days::days(days.1));
        let certificate = params.signed_by(&self.key, &Issuer::from_params(&self.ca, &self.ca_key)).unwrap();
        fs::write(self.path("server.crt"), certificate.pem()).unwrap();
    }

    /// Writes KES's file: further settings of TLS, and policies; a running KES reads the file again by itself.
    fn configure(&self, tls: &str, policies: &[(&str, &ApiKey)]) {
        let (key, certificate, keys) = (self.text("server.key"), self.text("server.crt"), self.text("keys"));
        let mut yaml = format!(
            "admin: {{ identity: disabled }}\ntls: {{ key: {key}, cert: {certificate}{tls} }}\n\
             keystore: {{ fs: {{ path: {keys} }} }}\npolicy:\n"
        );
        for (at, (allow, who)) in policies.iter().enumerate() {
            yaml += &format!("  p{at}: {{ allow: [{allow}], identities: [{}] }}\n", who.identity());
        }
        fs::write(self.path("server-config.yaml"), yaml).unwrap();
    }

    fn start(&mut self) {
        let launch = Launch::with_file("kes", &self.path("server-config.yaml"));
        self.server = Some(launch.on(Some(self.port)).ready());
    }

    /// Kills KES; the next start is on the same port.
    fn stop(&mut self) {
        self.server = None;
    }

    /// MinIO's settings for KES, and further settings, which win.
    fn vars(&self, more: &[Var]) -> Vec<Var> {
        let vars = [
            endpoint(self.port),
            ("MINIO_KMS_KES_API_KEY", self.minio.to_text().expose().to_owned()),
            ("MINIO_KMS_KES_CAPATH", self.text("ca.crt")),
            ("MINIO_KMS_KES_KEY_NAME", KEY.to_owned()),
        ];
        [&vars[..], more].concat()
    }

    /// The same in MinIO's environment file, which a gate reads again at each attempt; the gate's setting.
    fn env_file(&self, more: &[Var]) -> [Var; 1] {
        let lines = self.vars(more).into_iter().map(|(name, value)| format!("{name}={value}\n"));
        fs::write(self.path("new.env"), lines.collect::<String>()).unwrap();
        fs::rename(self.path("new.env"), self.path("minio.env")).unwrap();
        [("KESWARDEN_MINIO_ENV_FILE", self.text("minio.env"))]
    }

    /// A server with KES's certificate that answers every request with a page; its port, and its requests.
    fn page(&self) -> (u16, Arc<Mutex<Vec<String>>>) {
        let pair = Pair::read(&self.path("server.crt"), &self.path("server.key")).unwrap();
        let config = tls::server_config(pair, false).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, asked) = (listener.local_addr().unwrap().port(), Arc::new(Mutex::new(Vec::new())));
        let told = asked.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let connection = rustls::ServerConnection::new(config.clone()).unwrap();
                let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
                let mut head = String::new();
                while stream.read_line(&mut head).unwrap_or(0) > 0 && !head.ends_with("\r\n\r\n") {}
                // A client that does not trust the certificate sends no request.
                let Some(line) = head.lines().next() else { continue };
                told.lock().unwrap().push(line.to_owned());
                let head = head.to_ascii_lowercase();
                let length =
                    head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
                let _ = stream.read_exact(&mut vec![0; length.unwrap_or(0)]);
                let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>";
                let _ = stream.get_mut().write_all(answer);
            }
        });
        (port, asked)
    }
}

#[test]
fn a_kes_that_is_away_hangs_or_breaks_off() {
    let mut kes = Kes::new();
    let gate = waits(&kes.vars(&[]), "kes_unreachable", &["Connection refused", "MINIO_KMS_KES_ENDPOINT"]);
    kes.start();
    passes(gate);
    let proxy = Proxy::before(kes.port);
    let there = endpoint(proxy.port);
    let vars = kes.vars(std::slice::from_ref(&there));
    // In the handshake, and in an answer.
    for (wire, words) in [
        (Wire::BlackHole, "no answer in time"),
        (Wire::CutAfter(40), "cannot be reached"),
        (Wire::CutAfter(2200), "cannot be reached"),
        (Wire::Ended, "cannot be reached"),
    ] {
        proxy.set(wire);
        let gate = waits(&vars, "kes_unreachable", &[&there.1, words]);
        proxy.set(Wire::Good);
        passes(gate);
    }
}

#[test]
fn a_certificate_that_is_wrong_is_told_apart_and_the_right_one_is_taken() {
    let mut kes = Kes::new();
    kes.start();
    let other = Kes::new();
    let vars = kes.vars(&[("MINIO_KMS_KES_CAPATH", other.text("ca.crt"))]);
    let gate = waits(&vars, "kes_tls_unknown_ca", &["MINIO_KMS_KES_CAPATH"]);
    fs::copy(kes.path("ca.crt"), other.path("ca.crt")).unwrap();
    passes(gate);
    for (name, days, cause, words) in [
        ("kes.example.com", (-1, 1), "kes_tls_name", "kes.example.com"),
        ("127.0.0.1", (-9, -2), "kes_tls_expired", "renew KES's certificate"),
        ("127.0.0.1", (2, 9), "kes_tls_expired", "not valid yet"),
    ] {
        kes.stop();
        kes.shows(name, days);
        kes.start();
        let gate = waits(&kes.vars(&[]), cause, &[words]);
        kes.shows("127.0.0.1", (-1, 1));
        passes(gate);
    }
}

#[test]
fn what_answers_in_the_place_of_kes_is_not_taken_for_it() {
    let mut kes = Kes::new();
    kes.start();
    // The port of a health server, which speaks plain HTTP.
    let mut beside = Agent::new("beside", &[("KESWARDEN_FS_DIR", kes.text("keys"))]);
    beside.set("KESWARDEN_KEY_NAME", KEY);
    beside.run();
    beside.ready();
    let file = kes.env_file(&[endpoint(beside.admin_port())]);
    let gate = waits(&file, "kes_tls_plain_http", &["MINIO_KMS_KES_ENDPOINT"]);
    kes.env_file(&[]);
    passes(gate);

    let (port, asked) = kes.page();
    let file = kes.env_file(&[endpoint(port)]);
    let gate = waits(&file, "kes_unreachable", &["answered 200, but not as KES does"]);
    kes.env_file(&[]);
    passes(gate);
    let asked = asked.lock().unwrap();
    assert!(asked.iter().all(|line| line == "POST /v1/key/generate/my-key HTTP/1.1"), "{asked:?}");
}

#[test]
fn identities_that_kes_does_not_take_or_does_not_let_do_enough() {
    let mut kes = Kes::new();
    let (stranger, weak) = (ApiKey::generate(), ApiKey::generate());
    kes.configure("", &[(ENOUGH, &kes.minio), ("/v1/key/create/*, /v1/key/generate/*", &weak)]);
    kes.start();
    let with = |who: &ApiKey| kes.vars(&[("MINIO_KMS_KES_API_KEY", who.to_text().expose().to_owned())]);
    let unknown = waits(&with(&stranger), "kes_identity_unknown", &[stranger.identity().as_str()]);
    let words = ["/v1/key/decrypt/my-key answered 403", "allow: [", "/v1/key/decrypt/*"];
    let denied = waits(&with(&weak), "kes_denied", &words);
    kes.configure("", &[(ENOUGH, &kes.minio), (ENOUGH, &weak), (ENOUGH, &stranger)]);
    passes(unknown);
    passes(denied);

    // For KES a CA's certificate is no client certificate.
    let mut vars = kes.vars(&[
        ("MINIO_KMS_KES_CERT_FILE", kes.text("minio.crt")),
        ("MINIO_KMS_KES_KEY_FILE", kes.text("minio.key")),
    ]);
    vars.retain(|(name, _)| *name != "MINIO_KMS_KES_API_KEY");
    fs::copy(kes.path("ca.crt"), kes.path("minio.crt")).unwrap();
    fs::write(kes.path("minio.key"), kes.ca_key.serialize_pem()).unwrap();
    let gate = waits(&vars, "kes_identity_unknown", &["client certificate is required"]);
    let (certificate, key) = kes.minio.certificate(now());
    let write = |file: &str, tag: &str, der: &[u8]| {
        fs::write(kes.path(file), pem::encode(&pem::Pem::new(tag, der))).unwrap();
    };
    write("minio.crt", "CERTIFICATE", &certificate);
    write("minio.key", "PRIVATE KEY", key.secret_der());
    passes(gate);

    // A KES that verifies issuers refuses the certificate that an API key makes.
    kes.stop();
    kes.configure(", auth: on", &[(ENOUGH, &kes.minio)]);
    kes.start();
    let gate = waits(&kes.vars(&[]), "kes_identity_unknown", &["client certificate"]);
    kes.configure("", &[(ENOUGH, &kes.minio)]);
    passes(gate);
}

#[test]
fn a_kes_whose_own_vault_is_sealed_and_one_without_the_key() {
    let bao = Bao::with_kv(2);
    let settings = bao.approle_vars(&policy(2));
    let mut kes = Kes::new();
    let yaml = vault_yaml(kes.dir.path(), &settings, kes.minio.identity().as_str());
    fs::write(kes.path("server-config.yaml"), yaml).unwrap();
    kes.start();
    let missing = waits(&kes.vars(&[]), "kes_key_missing", &["kes key create my-key"]);
    put_key(&bao, &key_text());
    passes(missing);
    // KES serves a key that is in its memory without Vault.
    bao.seal();
    let mut pod = Agent::new("before a KES that has the key", &kes.vars(&[]));
    assert_eq!(pod.init().wait(SOON), 0, "{}", pod.logs());

    bao.unseal();
    kes.stop();
    kes.start();
    bao.seal();
    let gate = waits(&kes.vars(&[]), "kes_backend_down", &["answered 502 failed to read key", "error log"]);
    bao.unseal();
    passes(gate);
}

#[test]
fn an_agent_that_serves_needs_no_kes_and_a_gate_wants_the_same_key_of_both() {
    let mut kes = Kes::new();
    let ours = kes.path("ours");
    fs::create_dir(&ours).unwrap();
    fs::write(ours.join(KEY), key_text()).unwrap();
    let vars = kes.vars(&[
        ("KESWARDEN_FS_DIR", ours.to_string_lossy().into_owned()),
        ("KESWARDEN_VERIFY_INTERVAL", "300ms".to_owned()),
    ]);
    kes.start();
    let words = ["different keys under the name 'my-key'", "keswarden evidence"];
    let gate = waits(&vars, "kes_disagrees", &words);
    fs::copy(kes.path("keys").join(KEY), ours.join(KEY)).unwrap();
    passes(gate);

    let mut agent = Agent::new("beside KES", &vars);
    agent.run();
    agent.ready();
    let sealed = Client::of(&agent).generate(KEY, "{}").1;
    kes.stop();
    let gate = waits(&vars, "kes_unreachable", &["Connection refused"]);
    let admin = SocketAddr::from(([127, 0, 0, 1], agent.admin_port()));
    let verified = || metric(admin, "keswarden_key_verifications_total{outcome=\"ok\"}").unwrap();
    let before = verified();
    eventually(SOON, "the key is verified without KES", || verified() > before + 1.0);
    agent.ready();
    assert_eq!(Client::of(&agent).decrypt(KEY, &sealed, "{}").status, 200);
    Client::of(&agent).generate(KEY, "{}");
    kes.start();
    passes(gate);
    agent.drain();
}

#[test]
fn settings_of_minio_that_contradict_one_another() {
    let mut kes = Kes::new();
    kes.start();
    let both = "MINIO_KMS_KES_API_KEY and MINIO_KMS_KES_CERT_FILE are both set";
    let empty = "MINIO_KMS_KES_CAPATH is set but empty";
    let beside = "MINIO_KMS_KES_ENDPOINT and MINIO_KMS_SECRET_KEY are both set";
    for (name, value, words) in [
        ("MINIO_KMS_KES_CERT_FILE", "/client.crt", both),
        ("MINIO_KMS_KES_CAPATH", "", empty),
        ("MINIO_KMS_SECRET_KEY", "my-key:c3RhdGlj", beside),
    ] {
        let gate = waits(&kes.env_file(&[(name, value.to_owned())]), "minio_env_conflict", &[words]);
        assert!(!gate.1.log().contains("c3RhdGlj"), "{}", gate.1.log());
        kes.env_file(&[]);
        passes(gate);
    }
}
