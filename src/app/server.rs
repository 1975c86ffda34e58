//! `server`: the drop-in for `kes server`, with everything from KES's own file, which is read again when it changes.
//!
//! A change counts when two looks, a second apart, see the same content, so that a half-written file never drops a deny
//! rule. What cannot be used changes nothing: the former configuration stays, and a metric and a log line say so. A key store
//! that does not pass yet holds up nothing but itself.

mod files;
mod reload;

use super::{Base, OpenStore, Stopped, notify};
use crate::{
    cause::{Cause, Finding},
    config::{
        MemorySettings,
        kes_yaml::{KesYaml, Tls},
        server::{Own, ServerSettings},
    },
    control,
    files::Blocking,
    gate::{self, Create},
    health::Guard,
    http,
    kes::State,
    keyring::Keyring,
    shutdown::{Drain, Hangups, Tasks},
    store::KeyStore,
    tls::{
        self,
        server::{ClientAuth, read_pair},
        trust::Trust,
    },
    verifier,
};
use files::{Loaded, Watched};
use reload::{Configuration, Metrics, Publish, RETRY};
use rustls::ServerConfig;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// What the server is made of.
pub(super) struct Parts {
    own: Own,
    loaded: Loaded,
    opened: OpenStore,
    /// A test's own store, which no reload replaces.
    given: bool,
    watched: Watched,
    /// A configuration that was read, and whose key store is not open yet.
    pending: Option<Loaded>,
    /// What opens key stores.
    blocking: Blocking,
}

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
        let opened = base.open_remembering(store, &loaded.config.store, &own.memory, None)?;
        Ok(Self { own, loaded, opened, given, watched, pending: None, blocking: Blocking::default() })
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
        let (keyring, writer) = loop {
            let gate = gate_settings(&parts.loaded.config, parts.own.gate_timeout);
            let guard = base.health.until("gate");
            let opened = parts.opened.clone();
            let asked = opened.gate_deps(base);
            tokio::select! {
                biased;
                () = drain.started() => return Ok(()),
                passed = base.pass(&gate, &asked, &opened, guard) => break passed?,
                (loaded, opened) = parts.changed(base, &mut hangups) => {
                    // The gate goes on waiting, with another configuration.
                    (parts.loaded, parts.opened) = (loaded, opened);
                    tracing::info!(store = parts.opened.store.describe(), "the configuration was reloaded");
                }
            }
        };
        let Self { own, loaded, opened, given, mut watched, pending, blocking } = parts;
        if pending.is_some() {
            // The gate has passed on the one before: it is the next one's turn.
            watched.ask();
        }
        let Loaded { config: now, tls, store_content } = loaded;
        let describe = opened.store.describe();
        say_where_keys_are_remembered(&opened.memory);
        let since = base.now().to_string();
        let (state, state_receiver) = watch::channel(Arc::new(state_of(&now, keyring.clone(), &since)));
        let (publish, tls) = watch::channel(tls);
        let (keyrings, keyring) = watch::channel(keyring);
        let listening = base.spawn_api(tasks, api, own.kes, state_receiver, tls, drain.clone());
        let of_memory = own.memory.dirs.first().map(|dir| dir.path.clone());
        if let Some(dir) = own.run_dir.clone().or(of_memory) {
            tasks.spawn("control", control::serve(dir, keyring.clone(), drain.clone()));
        }
        let verifier = verifier::Verifier::new(own.verifier, keyring, &base.registry, base.health.clone());
        let verifier = verifier.with_copy(opened.copy.clone());
        tasks.spawn("verifier", verifier.run(base.clock.clone(), drain.clone()));
        let configuration = Configuration {
            base: base.clone(),
            blocking,
            memory: own.memory,
            keys: now.keys.clone(),
            store_content,
            wanted: None,
            trial: None,
            now,
            opened,
            given,
            level_is_set: own.log_is_set,
            since,
            waits: None,
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
    /// Another configuration that can be used, and its key store, once there is one while the gate waits. Nothing is lost when this
    /// is dropped and called again.
    async fn changed(&mut self, base: &Base, hangups: &mut Hangups) -> (Loaded, OpenStore) {
        loop {
            let Some(loaded) = &self.pending else {
                self.look(hangups).await;
                continue;
            };
            let opened = match self.given {
                true => Ok(self.opened.clone()),
                false => open(base, &self.blocking, &loaded.config, &self.own.memory).await,
            };
            match (opened, self.pending.take()) {
                (Ok(opened), Some(loaded)) => return (loaded, opened),
                (Err(finding), loaded) => {
                    tracing::error!(cause = finding.cause.id(), "{RELOAD_FAILED}: {finding}");
                    self.pending = loaded;
                    // Again in a while, or another one when the file changes.
                    let _ = tokio::time::timeout(RETRY, self.look(hangups)).await;
                }
                (Ok(_), None) => {}
            }
        }
    }

    /// The next configuration that the file describes.
    async fn look(&mut self, hangups: &mut Hangups) {
        match self.watched.next(hangups).await {
            Ok(loaded) => self.pending = Some(loaded),
            Err(reason) => tracing::error!("{RELOAD_FAILED}: {reason}"),
        }
    }
}

/// Opens the key store that the file names, aside, since that reads files.
async fn open(
    base: &Base,
    blocking: &Blocking,
    config: &Arc<KesYaml>,
    memory: &MemorySettings,
) -> Result<OpenStore, Finding> {
    let (base, config, memory) = (base.clone(), config.clone(), memory.clone());
    let opened = blocking.run(move || base.open_remembering(None, &config.store, &memory, None)).await;
    opened.unwrap_or_else(|hangs| Err(Cause::StoreUnavailable.seen(hangs.to_string())))
}

/// In one line.
fn say_where_keys_are_remembered(memory: &gate::Memory) {
    match memory.witnesses.places() {
        nowhere if nowhere.is_empty() => tracing::warn!(
            cause = Cause::MemoryUnusable.id(),
            "no key is remembered: a wrong key under an old name would be served after a restart; set KESWARDEN_STATE_DIR to a directory \
             that lasts"
        ),
        places => tracing::info!("every key that is used is remembered in {}", places.join(", ")),
    }
}

/// Nobody but the file's own keys is demanded; what it names is made where there is no trace of it, as KES does.
fn gate_settings(file: &KesYaml, deadline: Option<Duration>) -> gate::Settings {
    gate::Settings {
        keys: file.keys.clone(),
        create: Create::IfNew,
        maker: file.policies.admin.clone(),
        deadline,
        exit_on_lost: false,
        drives: Vec::new(),
        kes_alone: false,
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
