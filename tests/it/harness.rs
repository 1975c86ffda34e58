//! The real app in process, on ports from the operating system, over a store that a test can make fail.

use keswarden::{
    app::{self, Deps},
    clock::Clock,
    config::{self, Inputs},
    crypto::{Kind, key_version::KeyVersion},
    identity::ApiKey,
    keystore::memory::MemoryStore,
    shutdown::Trigger,
    tls::{self, Pair, trust::Trust},
};
use std::{ffi::OsString, net::SocketAddr, path::Path, sync::Arc, thread::JoinHandle, time::Duration};
use tempfile::TempDir;

pub const KEY: &str = "my-key";

/// A running app; it drains when dropped.
pub struct App {
    pub api: SocketAddr,
    pub admin: SocketAddr,
    pub store: Arc<MemoryStore>,
    pub run_dir: TempDir,
    trigger: Trigger,
    thread: Option<JoinHandle<Result<(), app::Stopped>>>,
}

/// Settings as text, over what every test needs.
pub fn environment(run_dir: &Path, more: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    let run_dir = run_dir.to_str().unwrap().to_owned();
    let mut environment = vec![
        ("KESWARDEN_FS_DIR".to_owned(), "/nonexistent".to_owned()),
        ("KESWARDEN_KEY_NAME".to_owned(), KEY.to_owned()),
        ("KESWARDEN_RUN_DIR".to_owned(), run_dir),
        ("KESWARDEN_ADDR".to_owned(), "127.0.0.1:0".to_owned()),
        ("KESWARDEN_ADMIN_ADDR".to_owned(), "127.0.0.1:0".to_owned()),
        ("KESWARDEN_AUDIT".to_owned(), "off".to_owned()),
    ];
    for (name, value) in more {
        environment.retain(|(other, _)| other != name);
        environment.push(((*name).to_owned(), (*value).to_owned()));
    }
    environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

pub fn inputs(run_dir: &Path, more: &[(&str, &str)]) -> Inputs {
    Inputs { environment: environment(run_dir, more), config: None, key: None }
}

/// The text of a fresh key, as the store holds it.
pub fn key_text() -> String {
    KeyVersion::generate(Kind::Aes256, jiff::Timestamp::UNIX_EPOCH, "me".to_owned())
        .to_text()
        .expose()
        .to_owned()
}

// === impl App ===

impl App {
    /// An app that serves `my-key`.
    pub fn serving(more: &[(&str, &str)]) -> Self {
        let store = Arc::new(MemoryStore::new());
        store.put(KEY, &key_text());
        let app = Self::start(store, more);
        app.wait_ready();
        app
    }

    pub fn start(store: Arc<MemoryStore>, more: &[(&str, &str)]) -> Self {
        Self::with_clock(None, store, more)
    }

    /// The same on a clock of its own.
    pub fn start_at(clock: Clock, store: Arc<MemoryStore>, more: &[(&str, &str)]) -> Self {
        Self::with_clock(Some(clock), store, more)
    }

    fn with_clock(clock: Option<Clock>, store: Arc<MemoryStore>, more: &[(&str, &str)]) -> Self {
        let run_dir = tempfile::tempdir().unwrap();
        let settings =
            config::load(inputs(run_dir.path(), more)).unwrap_or_else(|problems| panic!("{problems}"));
        let (send, receive) = std::sync::mpsc::channel();
        let given = store.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let bound = app::build(settings, Deps { store: Some(given), clock })?;
                send.send((bound.api, bound.admin.unwrap(), bound.trigger.clone())).unwrap();
                bound.run().await
            })
        });
        let (api, admin, trigger) =
            receive.recv_timeout(Duration::from_secs(10)).expect("the app must be built");
        Self { api, admin, store, run_dir, trigger, thread: Some(thread) }
    }

    pub fn wait_ready(&self) {
        eventually("the app is ready", || (self.health("/readyz").0 == 200).then_some(()));
    }

    /// Status and body of a page of the health server.
    pub fn health(&self, path: &str) -> (u16, String) {
        health(self.admin, path)
    }

    /// The value of a metric line that starts with `line`.
    pub fn metric(&self, line: &str) -> Option<f64> {
        metric(self.admin, line)
    }

    /// A client with MinIO's certificate.
    pub fn minio(&self, http1: bool) -> Client {
        self.client(Some(minio_pair(self.run_dir.path())), http1)
    }

    /// The same for an app with another run directory, by a client to whom it is always `now`.
    pub fn minio_of(&self, run_dir: &Path, now: jiff::Timestamp) -> Client {
        let trust = Trust::only(&run_dir.join("ca.crt")).unwrap();
        let mut config = tls::client_config(trust, Some(minio_pair(run_dir))).unwrap();
        config.time_provider = Arc::new(At(now));
        Client::new(config, false, self.api)
    }

    /// A client whom nobody knows.
    pub fn stranger(&self) -> Client {
        let (certificate, key) = ApiKey::generate().certificate(1_700_000_000);
        self.client(Some(Pair { chain: vec![certificate], key }), false)
    }

    pub fn client(&self, pair: Option<Pair>, http1: bool) -> Client {
        let trust = Trust::only(&self.run_dir.path().join("ca.crt")).unwrap();
        Client::new(tls::client_config(trust, pair).unwrap(), http1, self.api)
    }

    /// Says how it ended, by itself.
    pub fn wait(mut self) -> Result<(), app::Stopped> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Drains, and says how it ended.
    pub fn stop(mut self) -> Result<(), app::Stopped> {
        self.trigger.drain();
        self.thread.take().unwrap().join().unwrap()
    }
}

/// A clock that stands still.
#[derive(Debug)]
struct At(jiff::Timestamp);

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let seconds = u64::try_from(self.0.as_second()).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

fn minio_pair(run_dir: &Path) -> Pair {
    Pair::read(&run_dir.join("client.crt"), &run_dir.join("client.key")).unwrap()
}

impl Drop for App {
    fn drop(&mut self) {
        self.trigger.drain();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Status and body of a page of a health server; 0 when nobody answers.
pub fn health(address: SocketAddr, path: &str) -> (u16, String) {
    block_on(async {
        let client = tls::plain_http_client(Duration::from_secs(5)).unwrap();
        match client.get(format!("http://{address}{path}")).send().await {
            Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap()),
            Err(_) => (0, String::new()),
        }
    })
}

/// The value of a metric line that starts with `line`.
pub fn metric(address: SocketAddr, line: &str) -> Option<f64> {
    let (_, page) = health(address, "/metrics");
    let found = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' ').map(str::to_owned));
    found.and_then(|value| value.parse().ok())
}

/// A client of the KES API.
pub struct Client {
    pub http: reqwest::Client,
    base: String,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    pub headers: std::collections::BTreeMap<String, String>,
    pub version: String,
}

impl Client {
    pub fn new(mut config: rustls::ClientConfig, http1: bool, server: SocketAddr) -> Self {
        if !http1 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20));
        let builder = if http1 { builder.http1_only() } else { builder };
        Self { http: builder.build().unwrap(), base: format!("https://{server}") }
    }

    /// As MinIO's own identity, of an agent that runs or will.
    pub fn of(agent: &crate::peers::Agent) -> Self {
        use keswarden::tls::{self, Pair, trust::Trust};
        let file = |name: &str| agent.run_dir().join(name);
        let pair = Pair::read(&file("client.crt"), &file("client.key")).unwrap();
        let config = tls::client_config(Trust::only(&file("ca.crt")).unwrap(), Some(pair)).unwrap();
        Self::new(config, false, format!("127.0.0.1:{}", agent.kes_port()).parse().unwrap())
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<&str>) -> Result<Reply, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let answer = request.send().await?;
        let headers = answer.headers().iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let (status, version) = (answer.status().as_u16(), format!("{:?}", answer.version()));
        Ok(Reply { status, headers, version, body: answer.text().await? })
    }

    /// An answer that is still being received.
    pub async fn get(&self, path: &str) -> Result<reqwest::Response, reqwest::Error> {
        self.http.get(format!("{}{path}", self.base)).send().await
    }

    pub fn call(&self, method: &str, path: &str, body: Option<&str>) -> Reply {
        block_on(self.send(method, path, body)).unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// Plaintext and ciphertext of a fresh data key, base64.
    pub fn generate(&self, key: &str, context: &str) -> (String, String) {
        let body = serde_json::json!({ "context": base64(context.as_bytes()) }).to_string();
        let reply = self.call("POST", &format!("/v1/key/generate/{key}"), Some(&body));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let value: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        (value["plaintext"].as_str().unwrap().to_owned(), value["ciphertext"].as_str().unwrap().to_owned())
    }

    pub fn decrypt(&self, key: &str, ciphertext: &str, context: &str) -> Reply {
        let body = serde_json::json!({ "ciphertext": ciphertext, "context": base64(context.as_bytes()) })
            .to_string();
        self.call("POST", &format!("/v1/key/decrypt/{key}"), Some(&body))
    }
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Runs one future on a runtime that every test of this binary shares, so that connections can be reused.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> = std::sync::LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    RUNTIME.block_on(work)
}

/// The first value that `look` finds within 20 seconds.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(std::time::Instant::now() < deadline, "20 s passed, and still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port on which nobody listens.
pub fn closed_port() -> u16 {
    crate::peers::free_port()
}
