//! keswarden in this process, on ports from the operating system, over a store that a test can make fail.

use super::{
    Client, IN_PROCESS, KEY, admin_key, eventually, health, inputs, key_text, metric, minio_pair, now,
    pair_of, server_yaml,
};
use keswarden::{
    app::{self, Bound, Deps},
    clock::Clock,
    config::{self, Inputs, server},
    identity::ApiKey,
    keystore::memory::MemoryStore,
    shutdown::Trigger,
    tls::{self, Pair, mint::RunDir, trust::Trust},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};
use tempfile::TempDir;

/// `keswarden run` or `keswarden server` in this process; drains when dropped.
pub struct App {
    pub api: SocketAddr,
    pub admin: SocketAddr,
    pub store: Arc<MemoryStore>,
    /// Of `run` the run directory; of `server` the folder with `server-config.yaml`, the certificates and `keys`.
    pub dir: TempDir,
    trigger: Trigger,
    thread: Option<JoinHandle<Result<(), app::Stopped>>>,
}

/// A clock that stands still.
#[derive(Debug)]
struct At(jiff::Timestamp);

// === impl App: `run` ===

impl App {
    /// `run`, which serves `my-key`.
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
        let dir = tempfile::tempdir().unwrap();
        let settings = config::load(inputs(dir.path(), more)).unwrap_or_else(|problems| panic!("{problems}"));
        let given = store.clone();
        Self::launch(dir, store, move || app::build(settings, Deps { store: Some(given), clock }))
    }

    /// A client with MinIO's certificate.
    pub fn minio(&self, http1: bool) -> Client {
        self.client_with(Some(minio_pair(self.dir.path())), http1)
    }

    /// The same for an app with another run directory; the client's clock stands at `now`.
    pub fn minio_of(&self, run_dir: &Path, now: jiff::Timestamp) -> Client {
        let trust = Trust::only(&run_dir.join("ca.crt")).unwrap();
        let mut config = tls::client_config(trust, Some(minio_pair(run_dir))).unwrap();
        config.time_provider = Arc::new(At(now));
        Client::new(config, false, self.api)
    }

    /// A client whose identity no policy knows.
    pub fn stranger(&self) -> Client {
        let (certificate, key) = ApiKey::generate().certificate(1_700_000_000);
        self.client_with(Some(Pair { chain: vec![certificate], key }), false)
    }
}

// === impl App: `server` ===

impl App {
    /// `server` with these further sections of YAML; its admin is [`admin_key`].
    pub fn server(more: &str) -> Self {
        let app = Self::start_server(Arc::new(MemoryStore::new()), more, &[]);
        app.wait_ready();
        app
    }

    /// The same, with `my-key`.
    pub fn server_with_one_key() -> Self {
        let app = Self::server("");
        app.store.put(KEY, &key_text());
        app
    }

    /// A good client is answered, over both protocols.
    pub fn still_serves(&self) {
        for http1 in [true, false] {
            let described = self.admin_client(http1).call("GET", &format!("/v1/key/describe/{KEY}"), None);
            assert_eq!(described.status, 200);
        }
    }

    pub fn start_server(store: Arc<MemoryStore>, more: &str, environment: &[(&str, &str)]) -> Self {
        Self::server_on(Some(store), more, environment)
    }

    /// With the key store that the file names: the folder `keys` beside it, which holds this key.
    pub fn server_over_a_folder(key: &str) -> Self {
        let app = Self::server_on(None, "", &[]);
        fs::create_dir(app.dir.path().join("keys")).unwrap();
        fs::write(app.dir.path().join("keys").join(KEY), key).unwrap();
        app.wait_ready();
        app
    }

    fn server_on(store: Option<Arc<MemoryStore>>, more: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        RunDir::new(dir.path().to_owned(), &[]).ensure(now()).unwrap();
        let file = dir.path().join("server-config.yaml");
        fs::write(&file, server_yaml(&dir, more)).unwrap();
        let state = dir.path().join("state").display().to_string();
        let mut variables = vec![
            ("KESWARDEN_ADMIN_ADDR", "127.0.0.1:0"),
            ("KESWARDEN_AUDIT", "off"),
            // The default for root is below /var/lib.
            ("XDG_STATE_HOME", state.as_str()),
        ];
        variables.extend_from_slice(environment);
        let environment = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let inputs = Inputs { environment, config: None, key: None };
        let settings = server::load(inputs, file, Some("127.0.0.1:0"))
            .unwrap_or_else(|refused| panic!("{}", refused.0.join("\n")));
        let given = store.clone().map(|store| store as _);
        Self::launch(dir, store.unwrap_or_default(), move || {
            app::build_server(settings, Deps { store: given, clock: None })
        })
    }

    /// Writes the file anew, with other sections.
    pub fn rewrite(&self, more: &str) {
        fs::write(self.file(), server_yaml(&self.dir, more)).unwrap();
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("server-config.yaml")
    }

    pub fn admin_client(&self, http1: bool) -> Client {
        self.client(Some(&admin_key()), http1)
    }
}

// === impl App: both ===

impl App {
    fn launch(
        dir: TempDir,
        store: Arc<MemoryStore>,
        build: impl FnOnce() -> Result<Bound, app::Stopped> + Send + 'static,
    ) -> Self {
        let (send, receive) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let bound = build()?;
                send.send((bound.api, bound.admin.unwrap(), bound.trigger.clone())).unwrap();
                bound.run().await
            })
        });
        let (api, admin, trigger) =
            receive.recv_timeout(Duration::from_secs(10)).expect("the app must be built");
        Self { api, admin, store, dir, trigger, thread: Some(thread) }
    }

    pub fn wait_ready(&self) {
        eventually(IN_PROCESS, "the app is ready", || self.health("/readyz").0 == 200);
    }

    /// Status and body of a page of the health server.
    pub fn health(&self, path: &str) -> (u16, String) {
        health(self.admin, path)
    }

    /// The value of a metric line that starts with `line`.
    pub fn metric(&self, line: &str) -> Option<f64> {
        metric(self.admin, line)
    }

    /// A client with the certificate of an API key, or without any.
    pub fn client(&self, who: Option<&ApiKey>, http1: bool) -> Client {
        self.client_with(who.map(pair_of), http1)
    }

    pub fn client_with_chain(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        http1: bool,
    ) -> Client {
        self.client_with(Some(Pair { chain, key }), http1)
    }

    fn client_with(&self, pair: Option<Pair>, http1: bool) -> Client {
        let trust = Trust::only(&self.dir.path().join("ca.crt")).unwrap();
        Client::new(tls::client_config(trust, pair).unwrap(), http1, self.api)
    }

    /// Starts the drain.
    pub fn drain(&self) {
        self.trigger.drain();
    }

    /// Says how the app ended, by itself.
    pub fn wait(mut self) -> Result<(), app::Stopped> {
        self.thread.take().unwrap().join().unwrap()
    }

    /// Drains, and says how the app ended.
    pub fn stop(self) -> Result<(), app::Stopped> {
        self.drain();
        self.wait()
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.trigger.drain();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

// === impl At ===

impl rustls::time_provider::TimeProvider for At {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let seconds = u64::try_from(self.0.as_second()).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}
