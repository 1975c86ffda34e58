//! `server`: the drop-in for `kes server`, with everything from KES's own file, which is read again when it changes.
//!
//! A change counts when two looks, a second apart, see the same content, so that a half-written file never drops a deny
//! rule. What cannot be used changes nothing: the former configuration stays, and a metric and a log line say so.

mod files;

use super::{Base, Stopped, notify};
use crate::{
    cause::{Cause, Finding},
    config::{
        self, PinSettings,
        kes_yaml::{KesYaml, Tls},
        server::ServerSettings,
    },
    gate::{self, Create},
    health::Guard,
    http,
    kes::State,
    keyring::{Keyring, KeyringWriter},
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
use files::{Watched, content, content_of, store_content};
use prometheus::{IntCounterVec, IntGauge};
use rustls::ServerConfig;
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet};

/// What the server is made of.
pub(super) struct Parts {
    settings: ServerSettings,
    store: Arc<dyn KeyStore>,
    pins: Pins,
    tls: Arc<ServerConfig>,
    /// A test's own store, which no reload replaces.
    given: bool,
    watched: Watched,
}

/// How often the files are looked at: a change is in force after two looks that see the same.
const LOOK: Duration = Duration::from_secs(1);
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
        let watched = Watched::new(content_of(&settings.first));
        let tls = server_config(&settings.first)?;
        let given = store.is_some();
        let (store, pins) = base.open_pinned(store, &settings.first.store, &settings.own.pins)?;
        Ok(Self { settings, store, pins, tls, given, watched })
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
        let copy = parts.settings.own.offline.clone();
        let copy = copy.map(|config| Arc::new(SealedCopy::new(config, base.clock.clone())));
        let (keyring, writer) = loop {
            let gate =
                gate_config(&parts.settings.first, parts.settings.own.gate_timeout, parts.pins.clone());
            let gate = gate::Config { copy: copy.clone(), ..gate };
            let guard = base.health.until("gate");
            let store = parts.store.clone();
            tokio::select! {
                biased;
                () = drain.started() => return Ok(()),
                passed = base.pass(&gate, &store, guard) => break passed?,
                next = parts.changed(base, &mut hangups) => parts.take(next, base),
            }
        };
        let Self { settings, store, pins, tls, given, watched } = parts;
        let ServerSettings { own, file, first, .. } = settings;
        let describe = store.describe();
        let since = base.now().to_string();
        let (state, state_receiver) = watch::channel(Arc::new(state_of(&first, keyring.clone(), &since)));
        let (publish, tls) = watch::channel(tls);
        let (keyrings, keyring) = watch::channel(keyring);
        let listening = base.spawn_api(tasks, api, own.kes, state_receiver, tls, drain.clone());
        let verifier = verifier::Verifier::new(own.verifier, keyring, &base.registry, base.health.clone());
        let verifier = verifier.with_copy(copy, store.describe());
        tasks.spawn("verifier", verifier.run(base.clock.clone(), drain.clone()));
        let configuration = Configuration {
            base: base.clone(),
            read: Box::new(move || file.read()),
            pins,
            pin_settings: own.pins,
            store_content: store_content(&first),
            tried: None,
            now: first,
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
    /// The file, once it says something else, while the gate waits.
    async fn changed(&mut self, base: &Base, hangups: &mut Hangups) -> KesYaml {
        let mut look = tokio::time::interval(LOOK);
        loop {
            let asked = tokio::select! {
                () = hangups.next() => true,
                _ = look.tick() => false,
            };
            let read = self.settings.file.read();
            let content = content(&read, &self.settings.first);
            if !self.watched.has_changed(content, base.clock.now()) && !asked {
                continue;
            }
            self.watched.taken(content);
            match read {
                Ok(next) => return next,
                Err(problems) => tracing::error!("{RELOAD_FAILED}: {}", problems.join("; ")),
            }
        }
    }

    /// Goes on waiting with another configuration, if it can be used.
    fn take(&mut self, next: KesYaml, base: &Base) {
        let opened = server_config(&next).and_then(|tls| {
            if self.given {
                return Ok((tls, (self.store.clone(), self.pins.clone())));
            }
            Ok((tls, base.open_pinned(None, &next.store, &self.settings.own.pins)?))
        });
        match opened {
            Ok((tls, (store, pins))) => {
                (self.tls, self.store, self.pins) = (tls, store, pins);
                self.settings.first = next;
                tracing::info!(store = self.store.describe(), "the configuration was reloaded");
            }
            Err(finding) => tracing::error!(cause = finding.cause.id(), "{RELOAD_FAILED}: {finding}"),
        }
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
    read: Box<dyn Fn() -> Result<KesYaml, Vec<String>> + Send + Sync>,
    now: KesYaml,
    store: Arc<dyn KeyStore>,
    pins: Pins,
    pin_settings: PinSettings,
    /// What the key store in use was opened with, its files included.
    store_content: [u8; 32],
    /// One that did not pass yet, and what it was opened with.
    tried: Option<([u8; 32], Arc<dyn KeyStore>, Pins)>,
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

/// Another key store must have every key that is in use, and the same one: what they sealed opens with nothing else.
async fn is_the_same(keyring: &Keyring, writer: &KeyringWriter, place: &str) -> Result<(), Finding> {
    for (name, held) in keyring.all() {
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
    Ok(())
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
        let mut look = tokio::time::interval(LOOK);
        loop {
            let asked = tokio::select! {
                biased;
                () = drain.started() => return Ended::Drained,
                () = &mut work => return Ended::Failed("the key store's work ended".to_owned()),
                Some(_) = retired.join_next() => false,
                () = hangups.next() => true,
                _ = look.tick() => watched.has_changed(content(&(self.read)(), &self.now), self.base.clock.now()),
            };
            if !asked {
                continue;
            }
            watched.taken(content(&(self.read)(), &self.now));
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
                true => self.trial(store_content, &next.store)?,
                false => (self.store.clone(), self.pins.clone()),
            };
            let gate = gate_config(&next, None, pins.clone());
            let tried =
                gate::attempt(&gate, store.clone(), &self.base.registry, self.base.clock.clone()).await;
            let (fresh, writer) = tried.map_err(Unchanged::NotYet)?;
            if moved {
                is_the_same(&keyring, &writer, &store.describe()).await.map_err(Unchanged::NotYet)?;
                keyring = fresh;
                work = Some(at_work(store.clone(), writer));
                (self.store, self.pins, self.tried) = (store, pins, None);
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

    /// The key store that the file names now: the one that was tried before, with its login, while that file stays.
    fn trial(
        &mut self,
        content: [u8; 32],
        store: &config::Store,
    ) -> Result<(Arc<dyn KeyStore>, Pins), Unchanged> {
        if let Some((known, store, pins)) = &self.tried
            && *known == content
        {
            return Ok((store.clone(), pins.clone()));
        }
        let (store, pins) =
            self.base.open_pinned(None, store, &self.pin_settings).map_err(Unchanged::NotYet)?;
        self.tried = Some((content, store.clone(), pins.clone()));
        Ok((store, pins))
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
                "Failed to update server configuration, the former one stays, and it is tried again: {finding}"
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
