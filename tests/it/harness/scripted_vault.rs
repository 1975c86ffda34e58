//! A server at Vault's address that answers by a script, and fails on any request that the script does not have.

use super::environment;
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
pub struct ScriptedVault {
    pub port: u16,
    dir: tempfile::TempDir,
    pub logins: Arc<AtomicUsize>,
    /// Each request with its namespace.
    pub asked: Asked,
    unexpected: Arc<Mutex<Vec<String>>>,
}

/// Requests, each with its namespace.
pub type Asked = Arc<Mutex<Vec<(String, Option<String>)>>>;

/// `METHOD path` → status and body; of a redirect, where to.
pub type Script = HashMap<&'static str, (u16, &'static str)>;

pub const UNSEALED: (&str, (u16, &str)) =
    ("GET /v1/sys/seal-status", (200, r#"{"initialized":true,"sealed":false,"t":2,"progress":0}"#));
pub const LOGIN: (&str, (u16, &str)) = (
    "POST /v1/auth/approle/login",
    (200, r#"{"auth":{"client_token":"s.secret-token","lease_duration":1200,"renewable":true}}"#),
);
/// The health page of a leader: a refused pair is sent again only where a standby refused.
pub const LEADER: (&str, (u16, &str)) = (
    "GET /v1/sys/health?standbyok=true&perfstandbyok=true",
    (200, r#"{"initialized":true,"sealed":false,"standby":false}"#),
);
pub const MOUNT: (&str, (u16, &str)) =
    ("GET /v1/sys/internal/ui/mounts/kv", (200, r#"{"data":{"type":"kv","options":{"version":"2"}}}"#));

impl ScriptedVault {
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

    /// The exit code and the stderr of `init`.
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
