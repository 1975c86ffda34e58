//! `server`: the drop-in for `kes server`, with everything from KES's own file, which is read again when it changes.
//!
//! A change counts when two looks, a second apart, see the same content, so that a half-written file never drops a deny
//! rule. What cannot be used changes nothing: the former configuration stays, and a metric and a log line say so. A key store
//! that does not pass yet holds up nothing but itself.

mod files;

use super::{Base, Stopped, blocking::Blocking, notify};
use crate::{
    cause::{Cause, Finding},
    config::{
        PinSettings,
        kes_yaml::{KesYaml, Tls},
        server::{Own, ServerSettings},
    },
    gate::{self, Create},
    health::Guard,
    http,
    kes::State,
    keyring::{Keyring, KeyringWriter},
    names::Name,
    offline::SealedCopy,
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
use files::{Loaded, Watched};
use prometheus::{IntCounterVec, IntGauge};
use rustls::ServerConfig;
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet};

/// What the server is made of.
pub(super) struct Parts {
    own: Own,
    loaded: Loaded,
    store: Arc<dyn KeyStore>,
    pins: Pins,
    /// A test's own store, which no reload replaces.
    given: bool,
    watched: Watched,
    /// What opens key stores.
    blocking: Blocking,
}

/// A key store, and the pins that it is guarded by.
type Opened = (Arc<dyn KeyStore>, Pins);

/// How soon a new configuration that could not be taken, for no fault of its own, is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// How long the former key store still answers what was asked of it.
const RETIREMENT: Duration = Duration::from_secs(20);

/// KES's own words, and what that means here.
const RELOAD_FAILED: &str = "Failed to reload server config, the former one stays";

// === impl Parts ===

impl Parts {
    pub(super) fn new(
        settings: ServerSettings,
        store: Option<Arc<dyn KeyStore>>,
        base: &Base,
    ) -> Result<Self, Stopped> {
        let ServerSettings { own, file, first, .. } = settings;
        let watched = Watched::new(file, &first)?;
        let loaded = Loaded::of(Arc::new(first))?;
        let given = store.is_some();
        let (store, pins) = base.open_pinned(store, &loaded.config.store, &own.pins)?;
        Ok(Self { own, loaded, store, pins, given, watched, blocking: Blocking::new() })
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
        // The gate has a guard of its own for each configuration that it is tried with.
        drop(gate_guard);
        let mut hangups = Hangups::listen().map_err(|error| Stopped::Ended("SIGHUP", error.to_string()))?;
        let address = api.address;
        notify(&[sd_notify::NotifyState::Status("waiting at the gate")]);
        let mut parts = self;
        let copy = parts.own.offline.clone();
        let copy = copy.map(|config| Arc::new(SealedCopy::new(config, base.clock.clone())));
        let (keyring, writer) = loop {
            let gate = gate_config(&parts.loaded.config, parts.own.gate_timeout, parts.pins.clone());
            let gate = gate::Config { copy: copy.clone(), ..gate };
            let guard = base.health.until("gate");
            let store = parts.store.clone();
            tokio::select! {
                biased;
                () = drain.started() => return Ok(()),
                passed = base.pass(&gate, &store, guard) => break passed?,
                (loaded, (store, pins)) = parts.changed(base, &mut hangups) => {
                    // The gate goes on waiting, with another configuration.
                    (parts.loaded, parts.store, parts.pins) = (loaded, store, pins);
                    tracing::info!(store = parts.store.describe(), "the configuration was reloaded");
                }
            }
        };
        let Self { own, loaded, store, pins, given, watched, blocking } = parts;
        let Loaded { config: now, tls, store_content } = loaded;
        let describe = store.describe();
        let since = base.now().to_string();
        let (state, state_receiver) = watch::channel(Arc::new(state_of(&now, keyring.clone(), &since)));
        let (publish, tls) = watch::channel(tls);
        let (keyrings, keyring) = watch::channel(keyring);
        let listening = base.spawn_api(tasks, api, own.kes, state_receiver, tls, drain.clone());
        let verifier = verifier::Verifier::new(own.verifier, keyring, &base.registry, base.health.clone());
        let verifier = verifier.with_copy(copy, store.describe());
        tasks.spawn("verifier", verifier.run(base.clock.clone(), drain.clone()));
        let configuration = Configuration {
            base: base.clone(),
            blocking,
            pins,
            pin_settings: own.pins,
            keys: now.keys.clone(),
            store_content,
            wanted: None,
            opened: None,
            now,
            store,
            given,
            level_is_set: own.log_is_set,
            since,
            publish: Publish { state, tls: publish, keyrings },
            metrics: Metrics::new(base),
        };
        tasks.spawn("configuration", configuration.run(writer, watched, hangups, drain));
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

impl Parts {
    /// Another configuration that can be used, and its key store, once there is one while the gate waits.
    async fn changed(&mut self, base: &Base, hangups: &mut Hangups) -> (Loaded, Opened) {
        loop {
            let loaded = match self.watched.next(hangups).await {
                Ok(loaded) => loaded,
                Err(reason) => {
                    tracing::error!("{RELOAD_FAILED}: {reason}");
                    continue;
                }
            };
            if self.given {
                return (loaded, (self.store.clone(), self.pins.clone()));
            }
            match open(base, &self.blocking, &loaded.config, &self.own.pins).await {
                Ok(opened) => return (loaded, opened),
                Err(finding) => tracing::error!(cause = finding.cause.id(), "{RELOAD_FAILED}: {finding}"),
            }
        }
    }
}

/// Opens the key store that the file names, aside, since that reads files.
async fn open(
    base: &Base,
    blocking: &Blocking,
    config: &Arc<KesYaml>,
    pins: &PinSettings,
) -> Result<Opened, Finding> {
    let (base, config, pins) = (base.clone(), config.clone(), pins.clone());
    let opened = blocking.run(move || base.open_pinned(None, &config.store, &pins)).await;
    opened.unwrap_or_else(|hangs| Err(Cause::StoreUnavailable.seen(hangs.to_string())))
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
        kes_alone: false,
        canaries: None,
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
    blocking: Blocking,
    /// What is in force, but for the two below, which may wait for a key store.
    now: Arc<KesYaml>,
    /// Those of the file's own keys that were demanded last, and were there.
    keys: Vec<Name>,
    /// What the key store in use was opened with, its files included.
    store_content: [u8; 32],
    store: Arc<dyn KeyStore>,
    pins: Pins,
    pin_settings: PinSettings,
    /// What is to be tried of the file in force.
    wanted: Option<Wanted>,
    /// A key store that did not pass yet, and what it was opened with.
    opened: Option<([u8; 32], Opened)>,
    given: bool,
    /// The level is that of our own setting, whatever the file says.
    level_is_set: bool,
    since: String,
    publish: Publish,
    metrics: Metrics,
}

/// Another key store, or other keys to be demanded.
#[derive(Clone)]
struct Wanted {
    config: Arc<KesYaml>,
    store_content: [u8; 32],
    /// How long to wait before it is tried.
    after: Duration,
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

/// Why a reload changed less than all.
enum Unchanged {
    /// The file, or what it names, cannot be used: nothing has changed.
    Unusable(String),
    /// The new key store, or the file's own keys, do not pass the gate now; they may later. All else is in force.
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

/// Another key store must have every key that is in use, and the same one: what they sealed opens with nothing else.
async fn is_the_same(keyring: &Keyring, writer: &KeyringWriter, place: &str) -> Result<(), Finding> {
    // The store in use goes on meanwhile: until there is no key in it that was not looked for.
    loop {
        let mut unknown = keyring.all();
        unknown.retain(|(name, held)| {
            writer.held(name).is_none_or(|there| !there.version.key.same(&held.version.key))
        });
        if unknown.is_empty() {
            return Ok(());
        }
        for (name, held) in unknown {
            let there = match writer.look(&name).await {
                Ok(there) => there,
                Err(error) => {
                    return Err(error
                        .finding()
                        .fix("copy the keys first: `keswarden migrate`, or restart to do without them"));
                }
            };
            if !there.version.key.same(&held.version.key) {
                return Err(Cause::KeyReplaced.seen(format!(
                    "the key '{name}' in {place} is another one than that in use: its fingerprint is {}, that in use {}",
                    there.fingerprint, held.fingerprint
                )));
            }
            writer.hold(&name, there);
        }
    }
}

// === impl Configuration ===

impl Configuration {
    async fn run(
        mut self,
        writer: KeyringWriter,
        mut watched: Watched,
        mut hangups: Hangups,
        mut drain: Drain,
    ) -> Ended {
        let mut work = at_work(self.store.clone(), writer);
        let mut retired: JoinSet<()> = JoinSet::new();
        loop {
            // The store in use goes on working while a new one is tried, and so do the looks at the files.
            tokio::select! {
                biased;
                () = drain.started() => break,
                () = &mut work => return Ended::Failed("the key store's work ended".to_owned()),
                change = watched.next(&mut hangups) => self.take(change),
                tried = self.try_wanted() => {
                    if let Some(next) = self.settle(tried) {
                        let former = std::mem::replace(&mut work, next);
                        while retired.try_join_next().is_some() {}
                        retired.spawn(async move { drop(tokio::time::timeout(RETIREMENT, former).await) });
                    }
                }
            }
        }
        // A request under way may wait for a key: the stores work on until nobody is left who could ask. What is published is
        // a reader as well.
        drop(self);
        work.await;
        while retired.join_next().await.is_some() {}
        Ended::Drained
    }

    /// Publishes all but the key store, at once: a revocation, or a certificate in place of one that ends, waits for nothing.
    fn take(&mut self, change: Result<Loaded, String>) {
        // What was wanted before is wanted no more.
        self.wanted = None;
        let Loaded { config: next, tls, store_content } = match change {
            Ok(loaded) => loaded,
            Err(reason) => return self.said(Err(Unchanged::Unusable(reason))),
        };
        for warning in &next.warnings {
            tracing::warn!("{warning}");
        }
        if next.address != self.now.address {
            tracing::warn!("address has changed: that takes a restart");
        }
        if (next.log.audit > 0) != (self.now.log.audit > 0) {
            tracing::warn!("log.audit has changed: that takes a restart");
        }
        if !self.level_is_set {
            telemetry::set_level(telemetry::Level::of_slog(next.log.error));
        }
        let keyring = self.publish.keyrings.borrow().clone();
        self.publish.state.send_replace(Arc::new(state_of(&next, keyring, &self.since)));
        self.publish.tls.send_replace(tls);
        self.now = next.clone();
        if self.has_moved(store_content) || next.keys != self.keys {
            self.wanted = Some(Wanted { config: next, store_content, after: Duration::ZERO });
        } else {
            self.said(Ok(()));
        }
    }

    fn has_moved(&self, store_content: [u8; 32]) -> bool {
        store_content != self.store_content && !self.given
    }

    /// Publishes the key store that has passed. Its work, when it is another one.
    fn settle(&mut self, tried: Result<Option<(Keyring, Work)>, Finding>) -> Option<Work> {
        let fresh = match tried {
            Ok(fresh) => fresh,
            Err(finding) => {
                self.wanted = self.wanted.take().map(|wanted| Wanted { after: RETRY, ..wanted });
                self.said(Err(Unchanged::NotYet(finding)));
                return None;
            }
        };
        self.wanted = None;
        let work = fresh.map(|(keyring, work)| {
            self.publish.keyrings.send_replace(keyring.clone());
            self.publish.state.send_replace(Arc::new(state_of(&self.now, keyring, &self.since)));
            work
        });
        self.said(Ok(()));
        work
    }

    /// A keyring over the key store that is wanted, once it passes, or nothing when that is the one in use; never, when nothing is
    /// wanted.
    async fn try_wanted(&mut self) -> Result<Option<(Keyring, Work)>, Finding> {
        let Some(Wanted { config, store_content, after }) = self.wanted.clone() else {
            return std::future::pending().await;
        };
        tokio::time::sleep(after).await;
        let moved = self.has_moved(store_content);
        let (store, pins) = match moved {
            true => self.trial(&config, store_content).await?,
            false => (self.store.clone(), self.pins.clone()),
        };
        let gate = gate_config(&config, None, pins.clone());
        let clock = self.base.clock.clone();
        let (keyring, writer) = gate::attempt(&gate, store.clone(), &self.base.registry, clock).await?;
        if moved {
            let in_use = self.publish.keyrings.borrow().clone();
            is_the_same(&in_use, &writer, &store.describe()).await?;
        }
        // From here to the publication nothing is waited for, so that no key can come into use in between.
        self.keys.clone_from(&config.keys);
        if !moved {
            return Ok(None);
        }
        (self.store, self.pins, self.store_content) = (store.clone(), pins, store_content);
        self.opened = None;
        Ok(Some((keyring, at_work(store, writer))))
    }

    /// The key store that is wanted: the one that was tried before, with its login, while that file stays.
    async fn trial(&mut self, config: &Arc<KesYaml>, content: [u8; 32]) -> Result<Opened, Finding> {
        if let Some((known, opened)) = &self.opened
            && *known == content
        {
            return Ok(opened.clone());
        }
        let opened = open(&self.base, &self.blocking, config, &self.pin_settings).await?;
        self.opened = Some((content, opened.clone()));
        Ok(opened)
    }

    fn said(&self, result: Result<(), Unchanged>) {
        self.metrics.failed.set(i64::from(result.is_err()));
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        self.metrics.reloads.with_label_values(&[outcome]).inc();
        match result {
            Ok(()) => tracing::info!(store = self.store.describe(), "the configuration was reloaded"),
            Err(Unchanged::Unusable(reason)) => {
                tracing::error!("{RELOAD_FAILED}: {reason}");
            }
            Err(Unchanged::NotYet(finding)) => tracing::error!(
                cause = finding.cause.id(),
                "Failed to update server configuration, the former key store and keys stay, all else is in force, and it is \
                 tried again: {finding}"
            ),
        }
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
