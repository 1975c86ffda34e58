//! Assembly: the one file that sees every part. `build` takes addresses and gives them out; `run` runs.
//!
//! Two runtimes: the KES API has a thread and a runtime of its own, so that a slow Vault or a busy verification never
//! delays an open; everything else shares the caller's.

use crate::{
    admin,
    cause::{Cause, Finding},
    clock::{self, Clock},
    config::{self, Settings},
    exit, gate,
    health::{Guard, Health},
    http,
    identity::ApiKey,
    kes::{self, policy::Policies},
    keyring::Keyring,
    keystore::{fs::FsStore, vault::VaultStore},
    metrics::Registry,
    s3,
    shutdown::{self, Drain, Ended, Tasks, Trigger},
    sse,
    store::KeyStore,
    tls::{self, mint::RunDir},
    vault, verifier,
};
use prometheus::Gauge;
use rustls::ServerConfig;
use std::{net::SocketAddr, sync::Arc, time::Duration};
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
    /// Where health and metrics will be.
    pub admin: SocketAddr,
    /// Starts the drain.
    pub trigger: Trigger,
    drain: Drain,
    parts: Parts,
    sockets: (http::Bound, http::Bound),
    guards: (Guard, Guard),
}

struct Parts {
    settings: Settings,
    store: Arc<dyn KeyStore>,
    run_dir: RunDir,
    health: Health,
    registry: Registry,
    clock: Clock,
    not_after: Gauge,
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

/// How often our certificates are looked at.
const RENEWAL_LOOK: Duration = Duration::from_secs(3600);
/// The bound of one request to MinIO.
const S3_TIMEOUT: Duration = Duration::from_secs(10);

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

/// `keswarden init`: makes the certificates that MinIO will be started with, and waits at the gate.
pub async fn init(settings: Settings, deps: Deps) -> Result<(), Stopped> {
    let (registry, clock) = (Registry::new(), deps.clock.unwrap_or_else(Clock::system));
    let health = Health::new(clock.clone());
    let run_dir = RunDir::new(settings.run_dir.clone(), &settings.tls_names);
    if let Err(error) = run_dir.ensure(clock::unix(clock.wall()) as i64) {
        // Beside a KES that is not ours there may be no agent, and no place for its certificates.
        match settings.minio.env.get("MINIO_KMS_KES_ENDPOINT") {
            Some(_) => tracing::info!("no certificates of our own were made: {error}"),
            None => return Err(Cause::RunDirUnusable.seen(error.to_string()).into()),
        }
    }
    let store = open(settings.store(deps.store), &registry, &clock)?;
    let guard = health.until("gate");
    gate::pass(&settings.gate(), store, guard, &health, &registry, clock).await?;
    Ok(())
}

/// `keswarden doctor`: every check once.
pub async fn doctor(settings: Settings, deps: Deps) -> Result<Vec<gate::Row>, Stopped> {
    let (registry, clock) = (Registry::new(), deps.clock.unwrap_or_else(Clock::system));
    let store = open(settings.store(deps.store), &registry, &clock)?;
    Ok(gate::examine(&settings.gate(), store, &registry, clock).await)
}

/// `keswarden run`: everything that can fail before anything is waited for.
pub fn build(settings: Settings, deps: Deps) -> Result<Bound, Stopped> {
    let (registry, clock) = (Registry::new(), deps.clock.unwrap_or_else(Clock::system));
    let health = Health::new(clock.clone());
    let run_dir = RunDir::new(settings.run_dir.clone(), &settings.tls_names);
    run_dir
        .ensure(clock::unix(clock.wall()) as i64)
        .map_err(|error| Cause::RunDirUnusable.seen(error.to_string()))?;
    let api = http::Bound::bind(settings.address, "KESWARDEN_ADDR")?;
    let admin = http::Bound::bind(settings.admin_address, "KESWARDEN_ADMIN_ADDR")?;
    let store = open(settings.store(deps.store), &registry, &clock)?;
    let not_after =
        registry.gauges("keswarden_tls_not_after_timestamp_seconds", "When a certificate ends", &["usage"]);
    let not_after = not_after.with_label_values(&["server"]);
    let guards = (health.until("gate"), health.until("api"));
    let (trigger, drain) = shutdown::channel();
    let (api_address, admin_address) = (api.address, admin.address);
    let parts = Parts { settings, store, run_dir, health, registry, clock, not_after };
    Ok(Bound { api: api_address, admin: admin_address, trigger, drain, parts, sockets: (api, admin), guards })
}

/// The store of the settings, or the one that a test put in its place.
enum Wanted<'a> {
    Given(Arc<dyn KeyStore>),
    Set(&'a config::Store),
}

impl Settings {
    fn store(&self, given: Option<Arc<dyn KeyStore>>) -> Wanted<'_> {
        given.map_or(Wanted::Set(&self.store), Wanted::Given)
    }
}

fn open(wanted: Wanted<'_>, registry: &Registry, clock: &Clock) -> Result<Arc<dyn KeyStore>, Stopped> {
    Ok(match wanted {
        Wanted::Given(store) => store,
        Wanted::Set(config::Store::Fs(dir)) => Arc::new(FsStore::new(dir.clone())),
        Wanted::Set(config::Store::Vault(configs)) => {
            let (vault, store) = (**configs).clone();
            let client = vault::Client::new(vault, registry, clock.clone())?;
            Arc::new(VaultStore::new(Arc::new(client), store))
        }
    })
}

// === impl Bound ===

impl Bound {
    /// Runs until the drain, or until a part ends that must not.
    pub async fn run(self) -> Result<(), Stopped> {
        let Self { trigger, drain, parts, sockets: (api, admin), guards: (gate_guard, api_guard), .. } = self;
        let mut tasks = Tasks::new();
        let grace = parts.settings.drain_timeout;
        let admin_server = admin::Server::new(parts.health.clone(), parts.registry.clone());
        // Health is served to the very end: it says that we drain.
        let (admin_stop, admin_drain) = shutdown::channel();
        tasks.spawn("health", admin.serve(None, admin_server, admin_drain, Duration::from_secs(1), || {}));

        let result = parts.serve(&mut tasks, api, (gate_guard, api_guard), drain.clone()).await;
        let result = match result {
            Ok(()) => watch_over(&mut tasks, &parts.health, &trigger, drain, grace).await,
            Err(stopped) => Err(stopped),
        };
        parts.health.drain();
        trigger.drain();
        admin_stop.drain();
        tasks.abort_all();
        while tasks.next().await.is_some() {}
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
        Some((name, Ended::Failed(reason))) => Err(Stopped::Ended(name, reason)),
        Some((name, Ended::Drained)) => Err(Stopped::Ended(name, "it drained by itself".to_owned())),
    }
}

// === impl Parts ===

impl Parts {
    /// Passes the gate and starts every part.
    async fn serve(
        &self,
        tasks: &mut Tasks,
        api: http::Bound,
        (gate_guard, api_guard): (Guard, Guard),
        mut drain: Drain,
    ) -> Result<(), Stopped> {
        let Self { settings, store, health, registry, clock, .. } = self;
        let address = api.address;
        notify(&[sd_notify::NotifyState::Status("waiting at the gate")]);
        let gate = settings.gate();
        let passing = gate::pass(&gate, store.clone(), gate_guard, health, registry, clock.clone());
        let Some(passed) = drain.or(passing).await else { return Ok(()) };
        let (keyring, writer) = passed?;
        tasks.spawn("key store", async move {
            writer.run().await;
            Ended::Drained
        });
        let (kept, mut until) = (store.clone(), drain.clone());
        tasks.spawn("credentials", async move {
            match until.or(kept.keep()).await {
                None => Ended::Drained,
                Some(()) => Ended::Failed("it stopped renewing".to_owned()),
            }
        });
        let (policies, policies_receiver) = watch::channel(Arc::new(self.policies()?));
        let (tls, tls_receiver) = watch::channel(self.server_config()?);
        let listening =
            self.spawn_api(tasks, api, keyring.clone(), policies_receiver, tls_receiver, drain.clone());
        self.spawn_control(tasks, keyring, drain, (policies, tls));
        if listening.await.is_err() {
            // It could not listen, and says why as its task ends.
            return Ok(());
        }
        api_guard.done();
        notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("serving")]);
        tracing::info!(api = %address, store = store.describe(), "serving");
        Ok(())
    }

    /// The KES API, on a thread and a runtime of its own.
    fn spawn_api(
        &self,
        tasks: &mut Tasks,
        api: http::Bound,
        keyring: Keyring,
        policies: watch::Receiver<Arc<Policies>>,
        tls: http::Tls,
        drain: Drain,
    ) -> oneshot::Receiver<()> {
        let Self { settings, registry, clock, .. } = self;
        let (listens, listening) = oneshot::channel();
        let server = kes::Server::new(keyring, policies, settings.kes.clone(), registry, clock.clone());
        let grace = settings.drain_timeout;
        let (done, ended) = oneshot::channel();
        let serve = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let _ = done.send(match runtime {
                Ok(runtime) => runtime.block_on(api.serve(Some(tls), server, drain, grace, || {
                    let _ = listens.send(());
                })),
                Err(error) => Ended::Failed(format!("no runtime: {error}")),
            });
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

    /// What goes on beside the API.
    fn spawn_control(
        &self,
        tasks: &mut Tasks,
        keyring: Keyring,
        drain: Drain,
        publish: (watch::Sender<Arc<Policies>>, watch::Sender<Arc<ServerConfig>>),
    ) {
        let Self { settings, run_dir, health, registry, clock, not_after, .. } = self;
        let verifier = verifier::Verifier::new(settings.verifier.clone(), keyring, registry, health.clone());
        tasks.spawn("verifier", verifier.run(drain.clone()));
        if let Some(enforcer) = self.enforcer() {
            tasks.spawn("bucket defaults", enforcer.run(drain.clone()));
        }
        let run_dir = RunDir::new(run_dir.path(""), &settings.tls_names);
        tasks.spawn("certificates", renew(run_dir, publish, not_after.clone(), clock.clone(), drain));
    }

    /// Who may call: KES's own policies where its file is given, and MinIO.
    fn policies(&self) -> Result<Policies, Stopped> {
        let Settings { identities, policies, minio, .. } = &self.settings;
        let unusable = |error: tls::Error| Stopped::Refused(Cause::RunDirUnusable.seen(error.to_string()));
        let mut allowed = identities.clone();
        allowed.push(self.run_dir.client_identity().map_err(unusable)?);
        if let Some(key) =
            minio.env.get("MINIO_KMS_KES_API_KEY").and_then(|key| ApiKey::parse(key.trim()).ok())
        {
            allowed.push(key.identity());
        }
        let since = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default().to_string();
        let mut all = Policies::for_minio(allowed, since);
        all.policies.extend(policies.policies.clone());
        all.assigned.extend(policies.assigned.clone());
        if !policies.admin.is_empty() {
            all.admin.clone_from(&policies.admin);
        }
        Ok(all)
    }

    fn server_config(&self) -> Result<Arc<ServerConfig>, Stopped> {
        self.not_after.set(self.run_dir.server_not_after().unwrap_or(0) as f64);
        let unusable = |error: tls::Error| Stopped::Refused(Cause::RunDirUnusable.seen(error.to_string()));
        tls::server_config(self.run_dir.server().map_err(unusable)?, true).map_err(unusable)
    }

    /// The bucket enforcer, when it is wanted and can be had.
    fn enforcer(&self) -> Option<sse::Enforcer> {
        let minio = &self.settings.minio;
        let (endpoint, config) = (minio.endpoint.clone()?, minio.sse.clone()?);
        let Some((access_key, secret_key)) = minio.credentials() else {
            tracing::warn!(
                "bucket defaults are not looked after: KESWARDEN_MINIO_ENDPOINT is set, but no credentials are \
                 (KESWARDEN_MINIO_ACCESS_KEY and _SECRET_KEY, or MINIO_ROOT_USER and MINIO_ROOT_PASSWORD)"
            );
            return None;
        };
        let client =
            s3::Config { endpoint, access_key, secret_key, ca: minio.ca.clone(), timeout: S3_TIMEOUT };
        match s3::Client::new(client, self.clock.clone()) {
            Ok(client) => Some(sse::Enforcer::new(
                client,
                config,
                &self.registry,
                self.health.clone(),
                self.clock.clone(),
            )),
            Err(error) => {
                tracing::warn!("bucket defaults are not looked after: {error}");
                None
            }
        }
    }
}

/// Makes certificates anew before they end, and publishes what can be used.
async fn renew(
    run_dir: RunDir,
    (_policies, publish): (watch::Sender<Arc<Policies>>, watch::Sender<Arc<ServerConfig>>),
    not_after: Gauge,
    clock: Clock,
    mut drain: Drain,
) -> Ended {
    loop {
        if drain.or(tokio::time::sleep(RENEWAL_LOOK)).await.is_none() {
            return Ended::Drained;
        }
        let renewed = run_dir.ensure(clock::unix(clock.wall()) as i64);
        let config = match renewed {
            Ok(false) => continue,
            Ok(true) => run_dir.server().and_then(|pair| tls::server_config(pair, true)),
            Err(error) => Err(error),
        };
        match config {
            Ok(config) => {
                publish.send_replace(config);
                not_after.set(run_dir.server_not_after().unwrap_or(0) as f64);
                tracing::info!("the server certificate was made anew");
            }
            Err(error) => {
                tracing::error!("the server certificate could not be made anew, the old one stays: {error}")
            }
        }
    }
}

/// Tells systemd, when it asked to be told.
fn notify(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd could not be told: {error}");
    }
}
