//! The configuration in force, kept the one that the file describes: another file is validated and published, another key store is
//! tried beside the one in use, and takes over when it passes.

use super::{
    super::Base,
    OpenStore, RELOAD_FAILED,
    files::{Loaded, Watched},
    gate_settings, open, state_of,
};
use crate::{
    cause::{Cause, Finding},
    clock::Instant,
    config::{MemorySettings, kes_yaml::KesYaml},
    files::Blocking,
    gate,
    kes::State,
    keyring::{Keyring, KeyringWriter},
    names::Name,
    shutdown::{Drain, Ended, Hangups},
    telemetry,
};
use prometheus::{IntCounterVec, IntGauge};
use rustls::ServerConfig;
use std::{future::Future, pin::Pin, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinSet};

/// How soon a new configuration that could not be taken, for no fault of its own, is tried again.
pub(super) const RETRY: Duration = Duration::from_secs(5);
/// Between lines that say that it still could not be taken.
const REMIND: Duration = Duration::from_secs(60);
/// How long the former key store still answers what was asked of it.
const RETIREMENT: Duration = Duration::from_secs(20);

/// Keeps the configuration in force the one that the file describes.
pub(super) struct Configuration {
    pub(super) base: Base,
    pub(super) blocking: Blocking,
    /// What is in force, but for the two below, which may wait for a key store.
    pub(super) now: Arc<KesYaml>,
    /// Those of the file's own keys that were demanded last, and were there.
    pub(super) keys: Vec<Name>,
    /// What the key store in use was opened with, its files included.
    pub(super) store_content: [u8; 32],
    pub(super) opened: OpenStore,
    pub(super) memory: MemorySettings,
    /// What is to be tried of the file in force.
    pub(super) wanted: Option<Wanted>,
    /// A key store that did not pass yet, and what it was opened with.
    pub(super) trial: Option<([u8; 32], OpenStore)>,
    pub(super) given: bool,
    /// The level is that of our own setting, whatever the file says.
    pub(super) level_is_set: bool,
    pub(super) since: String,
    /// Why a key store does not pass, as was last said, and when.
    pub(super) waits: Option<(Cause, Instant)>,
    pub(super) publish: Publish,
    pub(super) metrics: Metrics,
}

/// Another key store, or other keys to be demanded.
#[derive(Clone)]
pub(super) struct Wanted {
    config: Arc<KesYaml>,
    store_content: [u8; 32],
    /// How long to wait before it is tried.
    after: Duration,
}

/// Who hears of a new one.
pub(super) struct Publish {
    pub(super) state: watch::Sender<Arc<State>>,
    pub(super) tls: watch::Sender<Arc<ServerConfig>>,
    pub(super) keyrings: watch::Sender<Keyring>,
}

pub(super) struct Metrics {
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

fn at_work(opened: OpenStore, writer: KeyringWriter) -> Work {
    Box::pin(async move {
        tokio::select! {
            () = writer.run() => {}
            () = opened.renew() => {}
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
    pub(super) async fn run(
        mut self,
        writer: KeyringWriter,
        mut watched: Watched,
        mut hangups: Hangups,
        mut drain: Drain,
    ) -> Ended {
        let mut work = at_work(self.opened.clone(), writer);
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
        let opened = match moved {
            true => self.tried(&config, store_content).await?,
            false => self.opened.clone(),
        };
        let (gate, store) = (gate_settings(&config, None), opened.store.clone());
        let (keyring, writer) = gate::attempt(&gate, &opened.gate_deps(&self.base)).await?;
        if moved {
            let in_use = self.publish.keyrings.borrow().clone();
            is_the_same(&in_use, &writer, &store.describe()).await?;
        }
        // From here to the publication nothing is waited for, so that no key can come into use in between.
        self.keys.clone_from(&config.keys);
        if !moved {
            return Ok(None);
        }
        // The verifier goes on with the copy that it has: of another store from now on, which has every key of the former.
        let work = at_work(opened.clone(), writer);
        let former = std::mem::replace(&mut self.opened, opened);
        if let Some(copy) = former.copy {
            copy.moves_to(store.describe());
            self.opened.copy = Some(copy);
        }
        self.store_content = store_content;
        self.trial = None;
        Ok(Some((keyring, work)))
    }

    /// The key store that is wanted: the one that was tried before, with its login, while that file stays.
    async fn tried(&mut self, config: &Arc<KesYaml>, content: [u8; 32]) -> Result<OpenStore, Finding> {
        if let Some((known, opened)) = &self.trial
            && *known == content
        {
            return Ok(opened.clone());
        }
        let opened = open(&self.base, &self.blocking, config, &self.memory).await?;
        self.trial = Some((content, opened.clone()));
        Ok(opened)
    }

    fn said(&mut self, result: Result<(), Unchanged>) {
        self.metrics.failed.set(i64::from(result.is_err()));
        // A trial is made again and again; it is told of when its cause is another one, and once in a while.
        let now = self.base.clock.now();
        self.waits = match &result {
            Err(Unchanged::NotYet(finding)) => {
                let is_known = |(cause, at): (Cause, Instant)| cause == finding.cause && now - at < REMIND;
                if self.waits.is_some_and(is_known) {
                    return;
                }
                Some((finding.cause, now))
            }
            _ => None,
        };
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        self.metrics.reloads.with_label_values(&[outcome]).inc();
        match result {
            Ok(()) => tracing::info!(store = self.opened.store.describe(), "the configuration was reloaded"),
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
    pub(super) fn new(base: &Base) -> Self {
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
