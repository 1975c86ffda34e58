//! `keswarden server` in process, over a store in memory, with the file and the clients that a test wants.

use crate::harness::{Client, eventually};
use keswarden::{
    app::{self, Deps},
    config::{Inputs, server},
    identity::ApiKey,
    keystore::memory::MemoryStore,
    shutdown::Trigger,
    tls::{self, Pair, mint::RunDir, trust::Trust},
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::{net::SocketAddr, path::PathBuf, sync::Arc, thread::JoinHandle, time::Duration};
use tempfile::TempDir;

/// A running server; it drains when dropped.
pub struct Kes {
    pub api: SocketAddr,
    pub admin: SocketAddr,
    pub store: Arc<MemoryStore>,
    pub dir: TempDir,
    trigger: Trigger,
    thread: Option<JoinHandle<Result<(), app::Stopped>>>,
}

// === impl Kes ===

impl Kes {
    /// A server with these further sections of YAML; its admin is [`Kes::admin`].
    pub fn serving(more: &str) -> Self {
        let kes = Self::start(Arc::new(MemoryStore::new()), more, &[]);
        kes.wait_ready();
        kes
    }

    pub fn start(store: Arc<MemoryStore>, more: &str, environment: &[(&str, &str)]) -> Self {
        Self::start_on(Some(store), more, environment)
    }

    /// With the key store that the file names: the folder `keys` beside it, which holds this key.
    pub fn over_a_folder(key: &str) -> Self {
        let kes = Self::start_on(None, "", &[]);
        std::fs::create_dir(kes.dir.path().join("keys")).unwrap();
        std::fs::write(kes.dir.path().join("keys").join(crate::harness::KEY), key).unwrap();
        kes.wait_ready();
        kes
    }

    fn start_on(store: Option<Arc<MemoryStore>>, more: &str, environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        RunDir::new(dir.path().to_owned(), &[]).ensure(now()).unwrap();
        let file = dir.path().join("server-config.yaml");
        std::fs::write(&file, Self::yaml(&dir, more)).unwrap();
        let state = dir.path().join("state").display().to_string();
        let mut variables = vec![
            ("KESWARDEN_ADMIN_ADDR", "127.0.0.1:0"),
            ("KESWARDEN_AUDIT", "off"),
            // By default it would be below /var/lib.
            ("XDG_STATE_HOME", state.as_str()),
        ];
        variables.extend_from_slice(environment);
        let environment = variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let inputs = Inputs { environment, config: None, key: None };
        let settings = server::load(inputs, file, Some("127.0.0.1:0"))
            .unwrap_or_else(|refused| panic!("{}", refused.0.join("\n")));
        let (send, receive) = std::sync::mpsc::channel();
        let given = store.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let bound =
                    app::build_server(settings, Deps { store: given.map(|store| store as _), clock: None })?;
                send.send((bound.api, bound.admin.unwrap(), bound.trigger.clone())).unwrap();
                bound.run().await
            })
        });
        let (api, admin, trigger) =
            receive.recv_timeout(Duration::from_secs(10)).expect("the server must be built");
        let store = store.unwrap_or_default();
        Self { api, admin, store, dir, trigger, thread: Some(thread) }
    }

    /// The whole file, for a test that changes it.
    pub fn yaml(dir: &TempDir, more: &str) -> String {
        let path = |file: &str| dir.path().join(file).display().to_string();
        format!(
            "version: v1\naddress: 127.0.0.1:7373\nadmin:\n  identity: {}\ntls:\n  key: {}\n  cert: {}\nkeystore:\n  \
             fs:\n    path: {}\n{more}",
            Self::admin().identity(),
            path("server.key"),
            path("server.crt"),
            path("keys"),
        )
    }

    /// Writes the file anew, with other sections.
    pub fn rewrite(&self, more: &str) {
        std::fs::write(self.file(), Self::yaml(&self.dir, more)).unwrap();
    }

    pub fn file(&self) -> PathBuf {
        self.dir.path().join("server-config.yaml")
    }

    pub fn wait_ready(&self) {
        eventually("the server is ready", || (self.health("/readyz").0 == 200).then_some(()));
    }

    /// Status and body of a page of the health server.
    pub fn health(&self, path: &str) -> (u16, String) {
        crate::harness::health(self.admin, path)
    }

    pub fn metric(&self, line: &str) -> Option<f64> {
        crate::harness::metric(self.admin, line)
    }

    /// A fixed API key, which may do everything.
    pub fn admin() -> ApiKey {
        Self::key(0xad)
    }

    /// A fixed API key.
    pub fn key(seed: u8) -> ApiKey {
        let bytes = [&[0][..], &[seed; 32]].concat();
        ApiKey::parse(&crate::harness::base64(&bytes)).unwrap()
    }

    /// A client with the certificate of an API key, or without any.
    pub fn client(&self, who: Option<&ApiKey>, http1: bool) -> Client {
        let pair = who.map(|key| {
            let (certificate, key) = key.certificate(now());
            Pair { chain: vec![certificate], key }
        });
        self.client_with(pair, http1)
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

    /// Drains, and says how it ended.
    pub fn stop(mut self) -> Result<(), app::Stopped> {
        self.trigger.drain();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Kes {
    fn drop(&mut self) {
        self.trigger.drain();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Seconds since 1970.
pub fn now() -> i64 {
    keswarden::clock::Clock::system().unix_seconds() as i64
}
