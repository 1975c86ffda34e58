//! `server`: the drop-in for `kes server`, with everything from KES's own file, which is read again when it changes.
//!
//! A change counts when two looks, a second apart, see the same content, so that a half-written file never drops a deny
//! rule. What cannot be used changes nothing: the former configuration stays, and a metric and a log line say so.

use super::{Base, Stopped, notify};
use crate::{
    cause::{Cause, Finding},
    config::{
        PinSettings,
        kes_yaml::{KesYaml, Tls},
        server::ServerSettings,
    },
    gate::{self, Create},
    health::Guard,
    http,
    kes::State,
    keyring::{Keyring, KeyringWriter},
    pins::Pins,
    shutdown::{Drain, Ended, Hangups, Tasks},
    store::KeyStore,
    telemetry,
    tls::{
        self,
        server::{ClientAuth, read_pair},
        trust::Trust,
    },
    verifier,
};
use prometheus::{IntCounterVec, IntGauge};
use rustls::ServerConfig;
use sha2::{Digest, Sha256};
use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    time::Duration,
};
use tokio::{sync::watch, task::JoinSet};

/// What the server is made of.
pub(super) struct Parts {
    settings: ServerSettings,
    store: Arc<dyn KeyStore>,
    pins: Pins,
    tls: Arc<ServerConfig>,
    /// A test's own store, which no reload replaces.
    given: bool,
}

/// How often the files are looked at: a change is in force after two looks that see the same.
const LOOK: Duration = Duration::from_secs(1);
/// How soon a new configuration that could not be taken, for no fault of its own, is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long the former key store still answers what was asked of it.
const RETIREMENT: Duration = Duration::from_secs(20);

// === impl Parts ===

impl Parts {
    pub(super) fn new(
        settings: ServerSettings,
        store: Option<Arc<dyn KeyStore>>,
        base: &Base,
    ) -> Result<Self, Stopped> {
        let tls = server_config(&settings.first)?;
        let given = store.is_some();
        let (store, pins) = base.open_pinned(store, &settings.first.store, &settings.own.pins)?;
        Ok(Self { settings, store, pins, tls, given })
    }

    /// Passes the gate and starts every part.
    pub(super) async fn serve(
        self,
        base: &Base,
        tasks: &mut Tasks,
        api: http::Bound,
        (gate_guard, api_guard): (Guard, Guard),
        mut drain: Drain,
    ) -> Result<(), Stopped> {
        let Self { settings, store, pins, tls, given } = self;
        let ServerSettings { own, file, first, .. } = settings;
        let (address, describe) = (api.address, store.describe());
        notify(&[sd_notify::NotifyState::Status("waiting at the gate")]);
        let gate = gate_config(&first, own.gate_timeout, pins.clone());
        let Some(passed) = drain.or(base.pass(&gate, &store, gate_guard)).await else { return Ok(()) };
        let (keyring, writer) = passed?;
        let since = base.now().to_string();
        let (state, state_receiver) = watch::channel(Arc::new(state_of(&first, keyring.clone(), &since)));
        let (publish, tls) = watch::channel(tls);
        let (keyrings, keyring) = watch::channel(keyring);
        let listening = base.spawn_api(tasks, api, own.kes, state_receiver, tls, drain.clone());
        let verifier = verifier::Verifier::new(own.verifier, keyring, &base.registry, base.health.clone());
        tasks.spawn("verifier", verifier.run(base.clock.clone(), drain.clone()));
        let configuration = Configuration {
            base: base.clone(),
            read: Box::new(move || file.read()),
            pins,
            pin_settings: own.pins,
            store_content: store_content(&first),
            now: first,
            store,
            given,
            level_is_set: own.log_is_set,
            since,
            publish: Publish { state, tls: publish, keyrings },
            metrics: Metrics::new(base),
        };
        tasks.spawn("configuration", configuration.run(writer, drain));
        if listening.await.is_err() {
            // It could not listen, and says why as its task ends.
            return Ok(());
        }
        api_guard.done();
        notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("serving")]);
        tracing::info!(api = %address, store = describe, "serving");
        Ok(())
    }
}

/// Nobody but the file's own keys is demanded; what it names is made where there is no trace of it, as KES does.
fn gate_config(file: &KesYaml, deadline: Option<Duration>, pins: Pins) -> gate::Config {
    gate::Config {
        keys: file.keys.clone(),
        create: Create::IfNew,
        maker: file.policies.admin.clone(),
        deadline,
        pins,
        exit_on_lost: false,
        drives: Vec::new(),
        copy: None,
        kes: Arc::new(|| Ok(None)),
    }
}

fn state_of(file: &KesYaml, keyring: Keyring, since: &str) -> State {
    let mut policies = file.policies.clone();
    since.clone_into(&mut policies.since);
    State { keyring, policies, routes: file.routes.clone() }
}

/// The TLS side of the file, validated.
fn server_config(file: &KesYaml) -> Result<Arc<ServerConfig>, Finding> {
    let unusable = |error: tls::Error| Cause::TlsFileUnusable.seen(format!("kesconf: {error}"));
    let Some(Tls { certificate, key, password, verify, ca }) = &file.tls else {
        return Err(Cause::TlsFileUnusable.seen("the file names no certificate"));
    };
    let password = password.as_ref().map_or("", |password| password.expose());
    let pair = read_pair(certificate, key, password).map_err(unusable)?;
    let trusted = verify.then(|| Trust::system_and(ca.as_deref())).transpose().map_err(unusable)?;
    let clients = ClientAuth { mandatory: !file.routes.any_open(), trusted };
    tls::server::config(pair, clients).map_err(unusable)
}

/// Keeps the configuration in force the one that the file describes.
struct Configuration {
    base: Base,
    read: Box<dyn Fn() -> Result<KesYaml, Vec<String>> + Send + Sync>,
    now: KesYaml,
    store: Arc<dyn KeyStore>,
    pins: Pins,
    pin_settings: PinSettings,
    /// What the key store in use was opened with, its files included.
    store_content: [u8; 32],
    given: bool,
    /// The level is that of our own setting, whatever the file says.
    level_is_set: bool,
    since: String,
    publish: Publish,
    metrics: Metrics,
}

/// Who hears of a new one.
struct Publish {
    state: watch::Sender<Arc<State>>,
    tls: watch::Sender<Arc<ServerConfig>>,
    keyrings: watch::Sender<Keyring>,
}

struct Metrics {
    failed: IntGauge,
    reloads: IntCounterVec,
}

/// Why a reload changed nothing.
enum Unchanged {
    /// The file, or what it names, cannot be used.
    Unusable(String),
    /// The new key store does not pass the gate now; it may later.
    NotYet(Finding),
}

/// A key store at work: answers the keyring, and keeps its login.
type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

fn at_work(store: Arc<dyn KeyStore>, writer: KeyringWriter) -> Work {
    Box::pin(async move {
        let kept = store.keep();
        tokio::select! {
            () = writer.run() => {}
            () = kept => {}
        }
    })
}

// === impl Configuration ===

impl Configuration {
    async fn run(mut self, writer: KeyringWriter, mut drain: Drain) -> Ended {
        let mut hangups = match Hangups::listen() {
            Ok(hangups) => hangups,
            Err(error) => return Ended::Failed(format!("cannot listen for SIGHUP: {error}")),
        };
        let mut work = at_work(self.store.clone(), writer);
        let mut retired: JoinSet<()> = JoinSet::new();
        let mut look = tokio::time::interval(LOOK);
        let mut watched = Watched::new(self.content());
        loop {
            let asked = tokio::select! {
                biased;
                () = drain.started() => return Ended::Drained,
                () = &mut work => return Ended::Failed("the key store's work ended".to_owned()),
                Some(_) = retired.join_next() => false,
                () = hangups.next() => true,
                _ = look.tick() => watched.has_changed(self.content(), self.base.clock.now()),
            };
            if !asked {
                continue;
            }
            watched.taken(self.content());
            // The store in use goes on working while the new one is tried.
            let tried = tokio::select! {
                biased;
                () = drain.started() => return Ended::Drained,
                () = &mut work => return Ended::Failed("the key store's work ended".to_owned()),
                tried = self.reload() => tried,
            };
            match tried {
                Ok(None) => self.said(Ok(())),
                Ok(Some(next)) => {
                    let former = std::mem::replace(&mut work, next);
                    retired.spawn(async move { drop(tokio::time::timeout(RETIREMENT, former).await) });
                    self.said(Ok(()));
                }
                Err(unchanged) => {
                    if let Unchanged::NotYet(_) = unchanged {
                        watched.again_at = Some(self.base.clock.now() + RETRY);
                    }
                    self.said(Err(unchanged));
                }
            }
        }
    }

    /// Reads, validates, tries, and then publishes all of it. The work of a new key store, when there is one.
    async fn reload(&mut self) -> Result<Option<Work>, Unchanged> {
        let next = (self.read)().map_err(|problems| Unchanged::Unusable(problems.join("; ")))?;
        let tls = server_config(&next).map_err(|finding| Unchanged::Unusable(finding.seen))?;
        let store_content = store_content(&next);
        let moved = store_content != self.store_content && !self.given;
        let mut keyring = self.publish.keyrings.borrow().clone();
        let mut work = None;
        if moved || next.keys != self.now.keys {
            let (store, pins) = match moved {
                true => {
                    let opened = self.base.open_pinned(None, &next.store, &self.pin_settings);
                    opened.map_err(Unchanged::NotYet)?
                }
                false => (self.store.clone(), self.pins.clone()),
            };
            let gate = gate_config(&next, None, pins.clone());
            let tried =
                gate::attempt(&gate, store.clone(), &self.base.registry, self.base.clock.clone()).await;
            let (fresh, writer) = tried.map_err(Unchanged::NotYet)?;
            if moved {
                keyring = fresh;
                work = Some(at_work(store.clone(), writer));
                (self.store, self.pins) = (store, pins);
            }
        }
        for warning in &next.warnings {
            tracing::warn!("{warning}");
        }
        if next.address != self.now.address {
            tracing::warn!("address has changed: that takes a restart");
        }
        if !self.level_is_set {
            telemetry::set_level(telemetry::Level::of_slog(next.log.error));
        }
        self.publish.keyrings.send_replace(keyring.clone());
        self.publish.state.send_replace(Arc::new(state_of(&next, keyring, &self.since)));
        self.publish.tls.send_replace(tls);
        (self.now, self.store_content) = (next, store_content);
        Ok(work)
    }

    fn said(&self, result: Result<(), Unchanged>) {
        self.metrics.failed.set(i64::from(result.is_err()));
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        self.metrics.reloads.with_label_values(&[outcome]).inc();
        match result {
            Ok(()) => tracing::info!(store = self.store.describe(), "the configuration was reloaded"),
            Err(Unchanged::Unusable(reason)) => {
                tracing::error!("Failed to reload server config, the former one stays: {reason}");
            }
            Err(Unchanged::NotYet(finding)) => tracing::error!(
                cause = finding.cause.id(),
                "Failed to update server configuration, the former one stays, and it is tried again: {finding}"
            ),
        }
    }

    /// What every file says that the configuration in force is made of.
    fn content(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        let config = (self.read)();
        let described = match &config {
            Ok(config) => config,
            // What is named by a file that cannot be read now is not known: what was known is looked at.
            Err(problems) => {
                digest.update(problems.join("\n"));
                &self.now
            }
        };
        digest.update(described.digest());
        described.tls_files().iter().for_each(|path| add(&mut digest, path));
        digest.update(store_content(described));
        digest.finalize().into()
    }
}

/// What a key store is opened with: its section of the file, and the files that it names.
fn store_content(file: &KesYaml) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(file.store_digest);
    file.store_files().iter().for_each(|path| add(&mut digest, path));
    digest.finalize().into()
}

/// A file's bytes, or those of every file of a directory, in the order of names.
fn add(digest: &mut Sha256, path: &Path) {
    let entries = std::fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = match entries {
        Ok(entries) => entries.collect(),
        Err(_) => vec![path.to_owned()],
    };
    files.sort();
    for file in files {
        digest.update(file.as_os_str().as_encoded_bytes());
        let content = zeroize::Zeroizing::new(std::fs::read(&file).unwrap_or_default());
        digest.update((content.len() as u64).to_be_bytes());
        digest.update(&*content);
    }
}

/// What was seen of the files.
struct Watched {
    /// What the last reload was made of.
    taken: [u8; 32],
    /// What the last look saw.
    seen: [u8; 32],
    /// Try again then, changed or not.
    again_at: Option<crate::clock::Instant>,
}

// === impl Watched ===

impl Watched {
    fn new(content: [u8; 32]) -> Self {
        Self { taken: content, seen: content, again_at: None }
    }

    /// Two looks have seen the same, and it is not what is in force.
    fn has_changed(&mut self, content: [u8; 32], now: crate::clock::Instant) -> bool {
        let twice = std::mem::replace(&mut self.seen, content) == content;
        let due = self.again_at.is_some_and(|at| now >= at);
        twice && (content != self.taken || due)
    }

    fn taken(&mut self, content: [u8; 32]) {
        (self.taken, self.again_at) = (content, None);
    }
}

// === impl Metrics ===

impl Metrics {
    fn new(base: &Base) -> Self {
        let reloads = base.registry.counters(
            "keswarden_config_reloads_total",
            "How often the configuration was read again, by outcome",
            &["outcome"],
        );
        for outcome in ["ok", "failed"] {
            reloads.with_label_values(&[outcome]);
        }
        let failed = base.registry.int_gauge(
            "keswarden_config_reload_failed",
            "1 while the configuration in force is not the one that the file describes",
        );
        Self { failed, reloads }
    }
}
