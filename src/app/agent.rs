//! `run`: the agent beside one MinIO, with certificates of its own and MinIO as its client.

use super::{Base, OpenStore, Stopped, notify};
use crate::{
    backup::Drill,
    clock,
    config::{self, Settings},
    control,
    files::Blocking,
    gate,
    health::Guard,
    http,
    identity::ApiKey,
    kes::{self, policy::Policies, routes},
    keystore::nowhere,
    s3,
    shutdown::{Drain, Ended, Tasks},
    sse,
    store::KeyStore,
    tls::{self, mint::RunDir},
    verifier,
};
use prometheus::Gauge;
use rustls::{ServerConfig, pki_types::CertificateDer};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// What the agent is made of.
pub(super) struct Parts {
    settings: Settings,
    opened: OpenStore,
    certificates: Certificates,
}

/// Our certificates, and when the one in use ends.
struct Certificates {
    run_dir: RunDir,
    not_after: Gauge,
}

/// How often our certificates are looked at.
const RENEWAL_LOOK: Duration = Duration::from_secs(60);
/// The bound of one request to MinIO.
const S3_TIMEOUT: Duration = Duration::from_secs(10);

// === impl Parts ===

impl Parts {
    pub(super) fn new(
        settings: Settings,
        store: Option<Arc<dyn KeyStore>>,
        base: &Base,
    ) -> Result<Self, Stopped> {
        if matches!(settings.store, config::Store::InKes) && store.is_none() {
            return Err(nowhere::unset().into());
        }
        let run_dir = RunDir::new(settings.run_dir.clone(), &settings.tls_names);
        run_dir.ensure(clock::unix(base.clock.wall()) as i64).map_err(|error| error.of_run_dir())?;
        let opened = base.open_remembering(store, &settings.store, &settings.memory, None)?;
        let not_after = base.registry.not_after("server");
        Ok(Self { settings, opened, certificates: Certificates { run_dir, not_after } })
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
        let address = api.address;
        notify(&[sd_notify::NotifyState::Status("waiting at the gate")]);
        let opened = self.opened.clone();
        let copy = opened.copy.clone();
        let asked = gate::Deps { kes: self.settings.kes_source(), ..opened.gate_deps(base) };
        let gate = self.settings.gate();
        let Some(passed) = drain.or(base.pass(&gate, &asked, &opened, gate_guard)).await else {
            return Ok(());
        };
        let (keyring, writer) = passed?;
        tasks.spawn("key store", async move {
            writer.run().await;
            Ended::Drained
        });
        let (renewed, mut until) = (opened.clone(), drain.clone());
        tasks.spawn("credentials", async move {
            match until.or(renewed.renew()).await {
                None => Ended::Drained,
                Some(()) => Ended::Failed("it stopped renewing".to_owned()),
            }
        });
        let state = kes::State {
            keyring: keyring.clone(),
            policies: self.policies(base)?,
            routes: routes::Settings::default(),
        };
        // Nothing changes it: the settings of an agent are those it was started with.
        let (_, state) = watch::channel(Arc::new(state));
        let loaded = self.certificates.load();
        let (tls, leaf) = loaded.map_err(|error| error.of_run_dir())?;
        let (publish, tls) = watch::channel(tls);
        let config = self.settings.kes.clone();
        let listening = base.spawn_api(tasks, api, config, state, tls, drain.clone());
        let run_dir = self.settings.run_dir.clone();
        let (_, keyring) = watch::channel(keyring);
        tasks.spawn("control", control::serve(run_dir, keyring.clone(), drain.clone()));
        let verifier = verifier::Verifier::new(
            self.settings.verifier.clone(),
            keyring,
            &base.registry,
            base.health.clone(),
        );
        let verifier = verifier.with_copy(copy);
        let verifier = verifier.with_drill(Drill::of(&self.settings.run_dir), &base.registry);
        tasks.spawn("verifier", verifier.run(base.clock.clone(), drain.clone()));
        if let Some(enforcer) = self.enforcer(base) {
            tasks.spawn("bucket defaults", enforcer.run(drain.clone()));
        }
        tasks.spawn("certificates", self.certificates.renew(publish, leaf, base.clone(), drain));
        if listening.await.is_err() {
            // It could not listen, and says why as its task ends.
            return Ok(());
        }
        api_guard.done();
        notify(&[sd_notify::NotifyState::Ready, sd_notify::NotifyState::Status("serving")]);
        tracing::info!(api = %address, store = opened.store.describe(), "serving");
        Ok(())
    }

    /// Who may call: KES's own policies where its file is given, and MinIO.
    fn policies(&self, base: &Base) -> Result<Policies, Stopped> {
        let Settings { identities, policies, minio, .. } = &self.settings;
        let mut allowed = identities.clone();
        let ours = self.certificates.run_dir.client_identity();
        allowed.push(ours.map_err(|error| error.of_run_dir())?);
        if let Some(key) =
            minio.env.get("MINIO_KMS_KES_API_KEY").and_then(|key| ApiKey::parse(key.trim()).ok())
        {
            allowed.push(key.identity());
        }
        Ok(Policies::for_minio(allowed, base.now().to_string()).joined(policies))
    }

    /// The bucket enforcer, when it is wanted and can be had.
    fn enforcer(&self, base: &Base) -> Option<sse::Enforcer> {
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
        match s3::Client::new(client, base.clock.clone()) {
            Ok(client) => Some(sse::Enforcer::new(
                client,
                config,
                &base.registry,
                base.health.clone(),
                base.clock.clone(),
            )),
            Err(error) => {
                tracing::warn!("bucket defaults are not looked after: {error}");
                None
            }
        }
    }
}

// === impl Certificates ===

impl Certificates {
    /// What the run directory holds now, and its leaf.
    fn load(&self) -> Result<(Arc<ServerConfig>, CertificateDer<'static>), tls::Error> {
        let pair = self.run_dir.server()?;
        let leaf = pair.chain[0].clone();
        let config = tls::server_config(pair, true)?;
        self.not_after.set(self.run_dir.server_not_after().unwrap_or(0) as f64);
        Ok((config, leaf))
    }

    /// Makes certificates anew before they end, and publishes what can be used: also what another process, such as
    /// `init`, has made in the same directory.
    async fn renew(
        self,
        publish: watch::Sender<Arc<ServerConfig>>,
        mut published: CertificateDer<'static>,
        base: Base,
        mut drain: Drain,
    ) -> Ended {
        let (certificates, blocking) = (Arc::new(self), Blocking::default());
        loop {
            if drain.or(tokio::time::sleep(RENEWAL_LOOK)).await.is_none() {
                return Ended::Drained;
            }
            let (ours, now) = (certificates.clone(), clock::unix(base.clock.wall()) as i64);
            let made = blocking.run(move || ours.run_dir.ensure(now).and_then(|_| ours.load()));
            let Some(made) = drain.or(made).await else { return Ended::Drained };
            let made = made.map_err(|hangs| hangs.to_string());
            match made.and_then(|made| made.map_err(|error| error.to_string())) {
                Ok((_, leaf)) if published == leaf => {}
                Ok((config, leaf)) => {
                    publish.send_replace(config);
                    published = leaf;
                    tracing::info!("the server certificate was made anew");
                }
                Err(error) => {
                    tracing::error!(
                        "the server certificate could not be made anew, the old one stays: {error}"
                    );
                }
            }
        }
    }
}
