//! What a gate says when the thing at Vault's address is not as it should be: faults that a real Vault cannot be made to
//! show at will, from a server that fails on any request it does not expect.

use crate::harness::{KEY, closed_port, environment};
use keswarden::tls;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::{
    collections::HashMap,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};
use time::{Duration, OffsetDateTime};

/// A TLS server with a certificate for `name`, from `start` to `end` days from now; and its CA.
pub struct Vault {
    pub port: u16,
    dir: tempfile::TempDir,
    pub logins: Arc<AtomicUsize>,
    /// Each request with its namespace.
    pub asked: Asked,
    unexpected: Arc<Mutex<Vec<String>>>,
}

/// Requests, each with its namespace.
type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// `METHOD path` → status and body; of a redirect, where to.
type Script = HashMap<&'static str, (u16, &'static str)>;

pub const UNSEALED: (&str, (u16, &str)) =
    ("GET /v1/sys/seal-status", (200, r#"{"initialized":true,"sealed":false,"t":2,"progress":0}"#));
pub const LOGIN: (&str, (u16, &str)) = (
    "POST /v1/auth/approle/login",
    (200, r#"{"auth":{"client_token":"s.secret-token","lease_duration":1200,"renewable":true}}"#),
);
/// A pair that is refused is sent again only where a standby refused it.
pub const LEADER: (&str, (u16, &str)) = (
    "GET /v1/sys/health?standbyok=true&perfstandbyok=true",
    (200, r#"{"initialized":true,"sealed":false,"standby":false}"#),
);
pub const MOUNT: (&str, (u16, &str)) =
    ("GET /v1/sys/internal/ui/mounts/kv", (200, r#"{"data":{"type":"kv","options":{"version":"2"}}}"#));

impl Vault {
    pub fn start(name: &str, days: (i64, i64), script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::default();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.path().join("ca.crt"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let now = OffsetDateTime::now_utc();
        (params.not_before, params.not_after) = (now + Duration::days(days.0), now + Duration::days(days.1));
        let certificate = params.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
        let pair = tls::Pair {
            chain: vec![certificate.der().clone()],
            key: rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        };
        let config = rustls::ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(pair.chain, pair.key)
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (config, script) = (Arc::new(config), Arc::new(script));
        let (logins, unexpected) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let asked = Asked::default();
        let (counted, seen, noted) = (logins.clone(), unexpected.clone(), asked.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (config, script, logins, seen, noted) =
                    (config.clone(), script.clone(), counted.clone(), seen.clone(), noted.clone());
                thread::spawn(move || serve(stream, config, &script, &logins, &seen, &noted));
            }
        });
        Self { port, dir, logins, asked, unexpected }
    }

    pub fn good(script: impl IntoIterator<Item = (&'static str, (u16, &'static str))>) -> Self {
        Self::start("127.0.0.1", (-1, 1), script.into_iter().collect())
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn ca(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// What `init` says and exits with, within the deadline.
    pub fn init(&self, more: &[(&str, &str)]) -> (i32, String) {
        let ca = self.ca();
        let address = format!("https://127.0.0.1:{}", self.port);
        let mut all = vec![
            ("KESWARDEN_VAULT_ADDR", address.as_str()),
            ("KESWARDEN_VAULT_CACERT", ca.to_str().unwrap()),
        ];
        all.extend_from_slice(more);
        let said = init(self.dir.path(), &all);
        let unexpected = self.unexpected.lock().unwrap();
        assert!(unexpected.is_empty(), "requests that nobody expected: {unexpected:?}");
        said
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    script: &Script,
    logins: &AtomicUsize,
    seen: &Mutex<Vec<String>>,
    noted: &Asked,
) {
    let Ok(connection) = rustls::ServerConnection::new(config) else { return };
    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let request = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let (mut length, mut namespace) = (0, None);
        loop {
            let mut header = String::new();
            if stream.read_line(&mut header).unwrap_or(0) == 0 || header == "\r\n" {
                break;
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("x-vault-namespace:") {
                namespace = Some(value.trim().to_owned());
            }
        }
        noted.lock().unwrap().push((request.clone(), namespace));
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        if request.ends_with("/login") {
            logins.fetch_add(1, Ordering::SeqCst);
        }
        let found = script.get(request.as_str()).copied();
        let (status, text) = found.unwrap_or_else(|| {
            seen.lock().unwrap().push(request);
            (500, "{}")
        });
        let (location, text) = match status {
            307 => (format!("Location: {text}\r\n"), ""),
            _ => (String::new(), text),
        };
        let answer = format!("HTTP/1.1 {status} X\r\n{location}Content-Length: {}\r\n\r\n{text}", text.len());
        if stream.get_mut().write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

/// The value of a setting that is not set.
pub const UNSET: &str = "(unset)";

pub fn init(dir: &std::path::Path, more: &[(&str, &str)]) -> (i32, String) {
    let mut all = vec![
        ("KESWARDEN_VAULT_ROLE_ID", "the-role-id"),
        ("KESWARDEN_VAULT_SECRET_ID", "the-secret-id"),
        ("KESWARDEN_VAULT_TIMEOUT", "500ms"),
        ("KESWARDEN_GATE_TIMEOUT", "1200ms"),
    ];
    all.extend_from_slice(more);
    let mut environment = environment(&dir.join("run"), &all);
    environment.retain(|(name, value)| name != "KESWARDEN_FS_DIR" && value != UNSET);
    let output = Command::new(env!("CARGO_BIN_EXE_keswarden"))
        .arg("init")
        .env_clear()
        .envs(environment)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    for secret in ["the-secret-id", "s.secret-token"] {
        assert!(!text.contains(secret), "a secret was printed: {text}");
    }
    (output.status.code().unwrap(), text)
}

#[track_caller]
pub fn says((code, text): (i32, String), expected: i32, words: &[&str]) {
    assert_eq!(code, expected, "{text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing from: {text}");
    }
}

#[test]
fn which_certificate_trouble_it_is() {
    let other = Vault::good([]);
    let unknown = Vault::good([]);
    let ca = other.ca();
    says(
        unknown.init(&[("KESWARDEN_VAULT_CACERT", ca.to_str().unwrap())]),
        69,
        &["vault_tls_unknown_ca", "invalid peer certificate", "KESWARDEN_VAULT_CACERT"],
    );
    let name = Vault::start("vault.example.com", (-1, 1), Script::new());
    says(name.init(&[]), 69, &["vault_tls_name", "vault.example.com"]);
    says(Vault::start("127.0.0.1", (-9, -2), Script::new()).init(&[]), 69, &["vault_tls_expired", "expired"]);
    says(
        Vault::start("127.0.0.1", (2, 9), Script::new()).init(&[]),
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
    says(Vault::good([("GET /v1/sys/seal-status", (200, body))]).init(&[]), 69, &["vault_uninitialised"]);
    let body = r#"{"initialized":true,"sealed":true,"t":3,"progress":2}"#;
    says(
        Vault::good([("GET /v1/sys/seal-status", (200, body))]).init(&[]),
        69,
        &["vault_sealed", "2 of 3 keys"],
    );
    says(
        Vault::good([("GET /v1/sys/seal-status", (200, "<html>"))]).init(&[]),
        69,
        &["vault_unhealthy", "not Vault's"],
    );
    let nowhere = ("GET /v1/sys/seal-status", (307, ""));
    says(Vault::good([nowhere]).init(&[]), 69, &["vault_standby_without_leader"]);
}

#[test]
fn refused_credentials_are_sent_once_and_not_again() {
    let refused = ("POST /v1/auth/approle/login", (400, r#"{"errors":["invalid role or secret ID"]}"#));
    let vault = Vault::good([UNSEALED, LEADER, refused]);
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
    let vault = Vault::good([
        UNSEALED,
        LOGIN,
        MOUNT,
        ("GET /v1/kv/data/my-key?version=1", denied),
        ("GET /v1/auth/token/lookup-self", (200, r#"{"data":{"ttl":1200}}"#)),
    ]);
    says(vault.init(&[]), 77, &["policy_missing", "path \"kv/data/my-key\" { capabilities = [\"read\"] }"]);
    let no_mount = Vault::good([
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
        Vault::good(key(404, deleted)).init(&[]),
        69,
        &["key_deleted", "bao kv undelete -mount=kv -versions=1 my-key"],
    );
    let destroyed = r#"{"data":{"data":null,"metadata":{"deletion_time":"","destroyed":true,"version":1}}}"#;
    says(Vault::good(key(404, destroyed)).init(&[]), 65, &["key_destroyed"]);
    let history =
        ("GET /v1/kv/metadata/my-key", (200, r#"{"data":{"current_version":12,"oldest_version":3}}"#));
    let trimmed = key(404, r#"{"errors":[]}"#).into_iter().chain([history]);
    says(
        Vault::good(trimmed).init(&[("KESWARDEN_KEY_CREATE", "if-new")]),
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
        let (code, text) = Vault::good(key(200, body)).init(&[]);
        assert!(text.contains(words), "{words:?} is missing from: {text}");
        assert!(matches!(code, 64 | 65), "{text}");
    }
    // Whatever answers there that is not Vault says nothing about the key.
    for body in ["{\"data\":{\"da", "<html>Down for maintenance</html>", "", "[]", "{\"data\":7}"] {
        says(Vault::good(key(200, body)).init(&[]), 69, &["vault_unhealthy", "not Vault's"]);
    }
    assert_eq!(KEY, "my-key");
}
