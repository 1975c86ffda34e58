//! Assembly: the files that see every part. `build` takes addresses and gives them out; `run` runs.
//!
//! Two runtimes: the KES API has a thread and a runtime of its own, so that a slow Vault or a busy verification never
//! delays an open; everything else shares the caller's.

mod agent;
mod backup;
pub mod doctor;
mod keys;
mod memory;
mod server;

pub use backup::{Checked, Restoring, back_up, drill, restore};
pub use keys::{create_first, forget, pin, rescue_from_copy};

use crate::{
    admin,
    cause::{Cause, Finding},
    clock::{self, Clock},
    config::{self, Settings, server::ServerSettings},
    exit, gate,
    health::{Guard, Health, History},
    http, kes, keyring,
    keystore::fs::FsStore,
    kubernetes,
    metrics::Registry,
    names::Name,
    shutdown::{self, Drain, Ended, Tasks, Trigger},
    store::KeyStore,
    tls::mint::RunDir,
    vault,
};
use memory::OpenStore;
pub use memory::Opened;
use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::sync::{oneshot, watch};

/// What a test may put in place of the real thing.
#[derive(Default)]
pub struct Deps {
    /// In place of the store of the settings.
    pub store: Option<Arc<dyn KeyStore>>,
    pub clock: Option<Clock>,
}

/// Bound, not yet running.
pub struct Bound {
    /// Where the KES API will be.
    pub api: SocketAddr,
    /// Where health and metrics will be; absent when their usual place is taken, and nobody asked for it.
    pub admin: Option<SocketAddr>,
    /// Starts the drain.
    pub trigger: Trigger,
    drain: Drain,
    base: Base,
    work: Work,
    sockets: (http::Bound, Option<http::Bound>),
    guards: (Guard, Guard),
}

/// What every part is given.
#[derive(Clone)]
struct Base {
    health: Health,
    registry: Registry,
    clock: Clock,
    grace: Duration,
    /// The agent's part of the run directory, where one process leaves its login to the next.
    state_dir: Option<PathBuf>,
    events: Option<kubernetes::Config>,
    /// What Vault did not take from us.
    refusals: vault::Refusals,
}

enum Work {
    Agent(Box<agent::Parts>),
    Server(Box<server::Parts>),
}

/// Why the process ends.
#[derive(Debug, thiserror::Error)]
pub enum Stopped {
    /// Something needed is missing, wrong or refused.
    #[error("{0}")]
    Refused(Finding),
    /// The gate did not pass before the deadline.
    #[error("{0}")]
    Gate(#[from] gate::Refused),
    /// A part ended that must not end.
    #[error("{0} ended unexpectedly: {1}")]
    Ended(&'static str, String),
}

// === impl Stopped ===

impl Stopped {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused(finding) => finding.cause.exit_code(),
            Self::Gate(gate::Refused { finding, .. }) => finding.cause.exit_code(),
            Self::Ended(..) => exit::TASK_ENDED,
        }
    }
}

impl From<Finding> for Stopped {
    fn from(finding: Finding) -> Self {
        Self::Refused(finding)
    }
}

/// `keswarden init`: makes the certificates that MinIO will be started with, and waits at the gate; `health` hears why.
pub async fn init(settings: Settings, deps: Deps, health: Health) -> Result<(), Stopped> {
    let base = Base { health, ..Base::in_line(deps.clock, &settings) };
    let run_dir = RunDir::new(settings.run_dir.clone(), &settings.tls_names);
    if let Err(error) = run_dir.ensure(clock::unix(base.clock.wall()) as i64) {
        // Beside a KES that is not ours there may be no agent, and no place for its certificates.
        match settings.minio.env.get("MINIO_KMS_KES_ENDPOINT") {
            Some(_) => tracing::info!("no certificates of our own were made: {error}"),
            None => return Err(error.of_run_dir().into()),
        }
    }
    let agent = Some(settings.run_dir.as_path());
    let opened = base.open_remembering(deps.store, &settings.store, &settings.memory, agent)?;
    let posting = base.post_events();
    let guard = base.health.until("gate");
    let asked =
        gate::Deps { canaries: canaries(&settings), kes: settings.kes_source(), ..opened.gate_deps(&base) };
    let passed = base.pass(&settings.gate(), &asked, &opened, guard).await;
    drop(asked);
    drop(base);
    say_the_rest(posting).await;
    Ok(passed.map(drop)?)
}

/// Events that are still to be posted, at the end.
async fn say_the_rest(posting: Option<tokio::task::JoinHandle<()>>) {
    if let Some(posting) = posting {
        let _ = tokio::time::timeout(LAST_WORDS, posting).await;
    }
}

/// How long the last Events may take: who waits for our end waits for nothing else.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Where the canaries of a tenant are whose keys only KES has.
fn canaries(settings: &Settings) -> gate::Canaries {
    let dir = settings.memory.pin_dir.as_ref().filter(|_| matches!(settings.store, config::Store::InKes))?;
    Some(Arc::new(FsStore::new(dir.join("canaries")).made_on_demand()))
}

/// The key store of a configuration, for commands that move keys about.
pub fn open_store(store: &config::Store) -> Result<Opened, Finding> {
    Base::new(None, Duration::ZERO).open(None, store, None)
}

/// `keswarden run`: everything that can fail before anything is waited for.
pub fn build(settings: Settings, deps: Deps) -> Result<Bound, Stopped> {
    let base = Base::in_line(deps.clock, &settings);
    let admin = http::Bound::bind(settings.admin_address, "KESWARDEN_ADMIN_ADDR")?;
    let address = settings.address;
    let parts = agent::Parts::new(settings, deps.store, &base)?;
    let api = http::Bound::bind(address, "KESWARDEN_ADDR")?;
    Ok(Bound::new(base, Work::Agent(Box::new(parts)), api, Some(admin)))
}

/// `keswarden server`: as `build`, from KES's own file.
pub fn build_server(settings: ServerSettings, deps: Deps) -> Result<Bound, Stopped> {
    let state_dir = settings.own.run_dir.as_ref().map(|dir| dir.join("agent"));
    let base = Base { state_dir, ..Base::new(deps.clock, settings.own.drain_timeout) };
    let api = http::Bound::bind(settings.address, "--addr")?;
    let own = &settings.own;
    let admin = match http::Bound::bind(own.admin_address, "KESWARDEN_ADMIN_ADDR") {
        Ok(admin) => Some(admin),
        Err(finding) if own.admin_demanded => return Err(finding.into()),
        Err(finding) => {
            tracing::warn!("no health and metrics: {finding}");
            None
        }
    };
    let parts = server::Parts::new(settings, deps.store, &base)?;
    Ok(Bound::new(base, Work::Server(Box::new(parts)), api, admin))
}

// === impl Base ===

impl Base {
    /// The same for a process that others follow in the same run directory.
    fn in_line(clock: Option<Clock>, settings: &Settings) -> Self {
        let state_dir = Some(settings.run_dir.join("agent"));
        Self { state_dir, events: settings.events.clone(), ..Self::new(clock, settings.drain_timeout) }
    }

    /// A command that an operator runs, perhaps beside an agent: its login is used, since a secret_id may be good for one only, and
    /// what it was refused is not sent again.
    fn beside(clock: Option<Clock>, settings: &Settings) -> Self {
        Self { events: None, ..Self::in_line(clock, settings) }
    }

    /// Posts Events until nobody has anything to say any more.
    #[allow(
        clippy::disallowed_methods,
        reason = "`say_the_rest` waits for it, after everybody else has ended"
    )]
    fn post_events(&self) -> Option<tokio::task::JoinHandle<()>> {
        let poster = kubernetes::Poster::new(self.events.clone()?)?;
        Some(tokio::spawn(poster.run(self.health.listen())))
    }

    fn new(clock: Option<Clock>, grace: Duration) -> Self {
        let clock = clock.unwrap_or_else(Clock::system);
        Self {
            health: Health::new(clock.clone()),
            registry: Registry::new(),
            clock,
            grace,
            state_dir: None,
            events: None,
            refusals: vault::Refusals::default(),
        }
    }

    /// Passes the gate; a login that was made meanwhile is kept alive, however long it takes.
    async fn pass(
        &self,
        settings: &gate::Settings,
        deps: &gate::Deps,
        opened: &OpenStore,
        guard: Guard,
    ) -> Result<(crate::keyring::Keyring, crate::keyring::KeyringWriter), gate::Refused> {
        let renewed = opened.renew();
        let passing = gate::pass(settings, deps, guard, &self.health);
        tokio::select! {
            biased;
            passed = passing => passed,
            () = renewed => unreachable!("a login must be renewed until it is dropped"),
        }
    }

    /// The store of an agent's settings, for a command beside it.
    fn open_beside(&self, settings: &Settings) -> Result<OpenStore, Finding> {
        self.open_remembering(None, &settings.store, &settings.memory, Some(&settings.run_dir))
    }

    /// Reads, parses and tries a key, and holds it nowhere.
    async fn look_at(&self, store: &Arc<dyn KeyStore>, name: &Name) -> Result<Arc<keyring::Held>, Finding> {
        store.ready().await?;
        let (_, writer) = keyring::new(store.clone(), &self.registry, self.clock.clone());
        let held = writer.look(name).await;
        held.map_err(|error| error.into_finding(|| Cause::StoreUnavailable.seen("it answered out of turn")))
    }

    fn now(&self) -> jiff::Timestamp {
        self.clock.timestamp()
    }

    /// The KES API, on a thread and a runtime of its own. What is returned hears when it listens.
    fn spawn_api(
        &self,
        tasks: &mut Tasks,
        api: http::Bound,
        config: kes::Config,
        state: watch::Receiver<Arc<kes::State>>,
        tls: http::Tls,
        drain: Drain,
    ) -> oneshot::Receiver<()> {
        let (listens, listening) = oneshot::channel();
        let server = kes::Server::new(state, config, &self.registry, self.clock.clone());
        let grace = self.grace;
        let (done, ended) = oneshot::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let result = match runtime {
                Ok(runtime) => {
                    runtime.block_on(api.serve(Some(tls), server, drain, grace, http::many(), || {
                        let _ = listens.send(());
                    }))
                }
                Err(error) => Ended::Failed(format!("no runtime: {error}")),
            };
            let _ = done.send(result);
        };
        let thread = std::thread::Builder::new().name("kes-api".to_owned()).spawn(serve);
        tasks.spawn("api", async move {
            match thread {
                Ok(_) => ended.await.unwrap_or_else(|_| Ended::Failed("its thread panicked".to_owned())),
                Err(error) => Ended::Failed(format!("no thread: {error}")),
            }
        });
        listening
    }
}

// === impl Bound ===

impl Bound {
    fn new(base: Base, work: Work, api: http::Bound, admin: Option<http::Bound>) -> Self {
        let guards = (base.health.until("gate"), base.health.until("api"));
        let (trigger, drain) = shutdown::channel();
        let (api_address, admin_address) = (api.address, admin.as_ref().map(|admin| admin.address));
        Self {
            api: api_address,
            admin: admin_address,
            trigger,
            drain,
            base,
            work,
            sockets: (api, admin),
            guards,
        }
    }

    /// Why it waits, for who will have to say so.
    pub fn history(&self) -> History {
        self.base.health.looking_back()
    }

    /// Runs until the drain, or until a part ends that must not.
    pub async fn run(self) -> Result<(), Stopped> {
        let Self { trigger, drain, base, work, sockets: (api, admin), guards, .. } = self;
        let mut tasks = Tasks::new();
        let posting = base.post_events();
        // Health is served to the very end: it says that we drain.
        let (admin_stop, admin_drain) = shutdown::channel();
        let health = base.clone();
        tasks.spawn("health", async move {
            let server = admin::Server::new(health.health, health.registry);
            match admin {
                Some(admin) => {
                    admin.serve(None, server, admin_drain, Duration::from_secs(1), http::FEW, || {}).await
                }
                None => {
                    let mut drain = admin_drain;
                    drain.started().await;
                    Ended::Drained
                }
            }
        });
        let result = match work {
            Work::Agent(parts) => parts.serve(&base, &mut tasks, api, guards, drain.clone()).await,
            Work::Server(parts) => parts.serve(&base, &mut tasks, api, guards, drain.clone()).await,
        };
        let result = match result {
            Ok(()) => watch_over(&mut tasks, &base.health, &trigger, drain, base.grace).await,
            Err(stopped) => Err(stopped),
        };
        base.health.drain();
        trigger.drain();
        admin_stop.drain();
        tasks.abort_all();
        while tasks.next().await.is_some() {}
        drop(base);
        say_the_rest(posting).await;
        result
    }
}

/// Waits for the drain, and for the parts to follow it; a part that ends before is a failure.
async fn watch_over(
    tasks: &mut Tasks,
    health: &Health,
    trigger: &Trigger,
    mut drain: Drain,
    grace: Duration,
) -> Result<(), Stopped> {
    let failed = tokio::select! {
        biased;
        () = drain.started() => None,
        ended = tasks.next() => ended,
    };
    // A part that heard of the drain first has not failed.
    let failed = failed.filter(|(_, ended)| !(drain.has_started() && matches!(ended, Ended::Drained)));
    health.drain();
    trigger.drain();
    notify(&[sd_notify::NotifyState::Stopping]);
    let finished = async {
        // Health is the last one: it goes on until told otherwise.
        while tasks.len() > 1 {
            if let Some((name, Ended::Failed(reason))) = tasks.next().await {
                tracing::error!("{name} failed while draining: {reason}");
            }
        }
    };
    let _ = tokio::time::timeout(grace + Duration::from_secs(1), finished).await;
    match failed {
        None => Ok(()),
        Some((_, Ended::Refused(finding))) => Err(Stopped::Refused(finding)),
        Some((name, Ended::Failed(reason))) => Err(Stopped::Ended(name, reason)),
        Some((name, Ended::Drained)) => Err(Stopped::Ended(name, "it drained by itself".to_owned())),
    }
}

/// Tells systemd, when it asked to be told.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd could not be told: {error}");
    }
}
