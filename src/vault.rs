//! The Vault / OpenBao client: what is asked, as whom, and what an answer means.
//!
//! Request shapes come from `vaultrs` where it has them right; they are sent over a [`Transport`] of ours, because its
//! own client follows redirects with the token on them, panics on odd tokens, prints tokens in `Debug` and drops
//! headers. Whatever a server answers becomes an [`Answer`] or a [`Finding`] here; no foreign error leaves this module.

mod endpoints;
mod entry;
pub mod lease;
pub mod login;
mod session;
pub mod transport;
pub mod verdict;

use crate::{
    cause::{Cause, Finding},
    clock::{Clock, Instant},
    metrics::{self, Registry},
    secret::Secret,
    shutdown::Hangups,
};
use endpoints::{Call, Headers};
use lease::{Action, Lease};
use login::Login;
use prometheus::{Gauge, HistogramVec, IntCounterVec};
use rustify::endpoint::Endpoint;
use session::Heritage;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use transport::{Transport, Wire};
use verdict::{Answer, Asked};

/// Where Vault is and who we are.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port`, without a path; several are nodes of one cluster.
    pub addresses: Vec<String>,
    /// All of them, for people.
    pub address: String,
    /// PEM file or directory; the system's roots when absent.
    pub ca: Option<PathBuf>,
    /// Client certificate and key, PEM files.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    pub namespace: Option<String>,
    /// Namespace of the login; the other one when absent.
    pub auth_namespace: Option<String>,
    /// The bound of one request, connecting included.
    pub timeout: Duration,
    pub login: Login,
    /// Where a process leaves its token, and what was refused, to the next one; nowhere when absent.
    pub state_dir: Option<PathBuf>,
}

/// A client that logs in when it must. Share it by `Arc`.
pub struct Client {
    config: Config,
    wire: Wire,
    clock: Clock,
    session: Mutex<Session>,
    /// Held while somebody logs in: the others wait and use what it got.
    logging_in: tokio::sync::Mutex<()>,
    heritage: Heritage,
    metrics: Metrics,
}

#[derive(Default)]
struct Session {
    token: Option<Arc<Secret>>,
    lease: Lease,
    refused: login::Refused,
    /// When a login last failed, and why.
    failed: Option<(Instant, Finding)>,
    /// The token of the process before was tried.
    inherited: bool,
    /// What was in the wrapping token: it can be opened once, and used as often as the secret_id may be.
    unwrapped: Option<(login::Fingerprint, Arc<Secret>)>,
    /// Vault asked not to be asked before.
    quiet_until: Option<Instant>,
    /// A clock that is wrong was told of.
    told_of_skew: bool,
}

struct Metrics {
    requests: HistogramVec,
    logins: IntCounterVec,
    token_expiry: Gauge,
    last_renewal: Gauge,
    skew: Gauge,
    state: metrics::States<4>,
}

/// What `seal-status` says.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
struct SealStatus {
    initialized: bool,
    sealed: bool,
    t: u64,
    progress: u64,
}

/// How often an idle lease is looked at: a login on the way of a request may have changed it.
const LOOK: Duration = Duration::from_secs(5);
/// No pause is longer, whatever Vault asks for.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Seconds that two clocks may differ by: certificates that are just made become valid no later.
const MOST_SKEW: f64 = 60.0;

// === impl Client ===

impl Client {
    pub fn new(config: Config, registry: &Registry, clock: Clock) -> Result<Self, Finding> {
        let transport = transport::Real::new(&config, clock.clone())?;
        Ok(Self::over(Arc::new(transport), config, registry, clock))
    }

    /// A client whose bytes go over `transport`.
    pub fn over(transport: Arc<dyn Transport>, config: Config, registry: &Registry, clock: Clock) -> Self {
        let heritage = Heritage::new(&config, clock.clone());
        let refused = login::Refused::remembered(heritage.refusal(), clock.now());
        Self {
            wire: Wire::new(config.addresses.clone(), transport, registry),
            config,
            clock,
            session: Mutex::new(Session { refused, ..Session::default() }),
            logging_in: tokio::sync::Mutex::default(),
            heritage,
            metrics: Metrics::new(registry),
        }
    }

    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// Reachable, initialised and unsealed.
    pub async fn unsealed(&self) -> Result<(), Finding> {
        let mut result = self.seal_state().await;
        for _ in 1..self.wire.len() {
            if result.is_ok() {
                break;
            }
            // Another node may be well; what is said of the first is what is told.
            self.wire.pass();
            result = self.seal_state().await.or(result);
        }
        self.metrics.state.set(match &result {
            Ok(()) => "unsealed",
            Err(Finding { cause: Cause::VaultSealed, .. }) => "sealed",
            Err(Finding { cause: Cause::VaultUninitialised, .. }) => "uninitialised",
            Err(_) => "unreachable",
        });
        result
    }

    async fn seal_state(&self) -> Result<(), Finding> {
        let asked = Asked { what: "asking for the seal status", path: "sys/seal-status" };
        let answer = self.send(&asked, Call::get("sys/seal-status"), &Headers::none()).await?;
        if answer.status != 200 {
            return Err(verdict::of(&asked, &self.config, &answer));
        }
        let status: SealStatus = answer.json().ok_or_else(|| verdict::not_vault(&self.config, &answer))?;
        let SealStatus { initialized, sealed, t, progress } = status;
        let address = &self.config.address;
        match (initialized, sealed) {
            (false, _) => Err(Cause::VaultUninitialised.seen(format!("Vault {address} is not initialised"))),
            (true, true) => Err(Cause::VaultSealed
                .seen(format!("Vault {address} is sealed (unseal progress {progress} of {t} keys)"))),
            (true, false) => Ok(()),
        }
    }

    /// Logged in: there is a token that Vault takes.
    pub async fn logged_in(&self) -> Result<(), Finding> {
        self.token().await.map(drop)
    }

    /// Sends a request as us. A dead token is replaced once.
    pub async fn ask(&self, asked: &Asked<'_>, endpoint: impl Endpoint + Clone) -> Result<Answer, Finding> {
        for attempt in 0..2 {
            let token = self.token().await?;
            let headers = Headers::with(Some(token.clone()), self.config.namespace.clone());
            let answer = self.send(asked, endpoint.clone(), &headers).await?;
            if answer.status != 403 || !self.token_is_dead(&headers).await? {
                return Ok(answer);
            }
            self.forget(&token);
            if attempt == 1 || !self.config.login.can_repeat() {
                break;
            }
        }
        Err(Cause::TokenDead.seen(format!(
            "{} was refused by Vault {}: 403, and it does not know the token any more",
            asked.what, self.config.address
        )))
    }

    /// `GET path`, as us.
    pub async fn get(&self, asked: &Asked<'_>, query: Option<&'static str>) -> Result<Answer, Finding> {
        self.ask(asked, Call::get(asked.path).query(query)).await
    }

    /// `POST path` with a JSON body, as us.
    pub async fn post(&self, asked: &Asked<'_>, body: &serde_json::Value) -> Result<Answer, Finding> {
        self.ask(asked, Call::post(asked.path, body)).await
    }

    /// `DELETE path`, as us.
    pub async fn delete(&self, asked: &Asked<'_>) -> Result<Answer, Finding> {
        self.ask(asked, Call::delete(asked.path)).await
    }

    /// The finding of an answer that is none of those the caller knows what to do with.
    pub fn verdict(&self, asked: &Asked<'_>, answer: &Answer) -> Finding {
        verdict::of(asked, &self.config, answer)
    }

    /// The finding of an answer that cannot be Vault's.
    pub fn not_vault(&self, answer: &Answer) -> Finding {
        verdict::not_vault(&self.config, answer)
    }

    /// Keeps the token alive: renews it, and logs in anew when that fails. A SIGHUP has refused credentials tried again. Runs until
    /// it is dropped.
    pub async fn keep(&self) {
        let mut hangups = Hangups::listen().ok();
        loop {
            let action = self.lock().lease.next(self.clock.now());
            match action {
                Action::Wait(delay) => {
                    let hangup = async {
                        match &mut hangups {
                            Some(hangups) => hangups.next().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = tokio::time::sleep(delay.min(LOOK)) => {}
                        () = hangup => self.try_again(),
                    }
                }
                Action::Renew => self.renew().await,
                Action::Login => {
                    if let Err(finding) = self.login().await {
                        tracing::warn!(cause = finding.cause.id(), "cannot renew the login: {finding}");
                        self.lock().lease.failed(self.clock.now(), chance());
                    }
                }
            }
        }
    }

    /// Somebody says that what was refused is worth another try.
    fn try_again(&self) {
        self.heritage.drop_refusal();
        let mut session = self.lock();
        (session.refused, session.failed) = (login::Refused::default(), None);
    }

    async fn renew(&self) {
        let Some(token) = self.lock().token.clone() else { return };
        let headers = Headers::with(Some(token), self.config.namespace.clone());
        let asked = Asked { what: "renewing the token", path: "auth/token/renew-self" };
        let empty = serde_json::json!({});
        let sent = self.clock.now();
        let answer = self.send(&asked, Call::post(asked.path, &empty), &headers).await;
        let granted = match answer {
            Ok(answer) if answer.status == 200 => {
                answer.json::<login::Answered>().map(|answered| answered.auth)
            }
            Ok(answer) => {
                let finding = verdict::of(&asked, &self.config, &answer);
                tracing::warn!(
                    cause = finding.cause.id(),
                    "cannot renew the token, logging in anew: {finding}"
                );
                None
            }
            Err(finding) => {
                tracing::warn!(cause = finding.cause.id(), "cannot renew the token: {finding}");
                None
            }
        };
        let mut session = self.lock();
        match granted {
            Some(granted) => {
                session.lease.renewed(sent, granted.ttl(), granted.renewable, chance());
                self.metrics.last_renewal.set(self.clock.unix_seconds());
                self.metrics.expires(&self.clock, granted.ttl());
            }
            None => session.lease.renewal_failed(self.clock.now()),
        }
    }

    /// After a 403: is it the token (then log in), or the policy (then say so)?
    async fn token_is_dead(&self, headers: &Headers) -> Result<bool, Finding> {
        let asked = Asked { what: "looking up the token", path: "auth/token/lookup-self" };
        let answer = self.send(&asked, Call::get(asked.path), headers).await?;
        if !matches!(answer.status, 200 | 403) {
            return Err(verdict::of(&asked, &self.config, &answer));
        }
        // Without a grant to look itself up a live token is refused in other words than a dead one.
        Ok(answer.status == 403 && !answer.errors().iter().any(|error| error.contains("1 error occurred")))
    }

    fn forget(&self, token: &Arc<Secret>) {
        let mut session = self.lock();
        if session.token.as_ref().is_some_and(|held| Arc::ptr_eq(held, token)) {
            session.token = None;
            session.lease = Lease::default();
        }
    }

    async fn send(
        &self,
        asked: &Asked<'_>,
        endpoint: impl Endpoint + Clone,
        headers: &Headers,
    ) -> Result<Answer, Finding> {
        let started = self.clock.now();
        self.keep_quiet(asked, started)?;
        let result = self.wire.send(endpoint, headers).await;
        if let Ok(answer) = &result {
            self.listen(answer);
        }
        let code = match &result {
            Ok(answer) => answer.status.to_string(),
            Err(_) => "none".to_owned(),
        };
        let elapsed = (self.clock.now() - started).as_secs_f64();
        self.metrics.requests.with_label_values(&[verdict::operation(asked.path), &code]).observe(elapsed);
        result.map_err(|failure| verdict::unreachable(asked, &self.config, &failure))
    }

    /// Vault asked for a pause, and it lasts: it is not asked.
    fn keep_quiet(&self, asked: &Asked<'_>, now: Instant) -> Result<(), Finding> {
        let until = self.lock().quiet_until.filter(|until| now < *until && asked.path != "sys/seal-status");
        until.map_or(Ok(()), |until| {
            let left = crate::clock::human(until - now);
            let address = &self.config.address;
            Err(Cause::VaultRateLimited
                .seen(format!("Vault {address} answered 429 and asked for a pause: {left} are left of it")))
        })
    }

    /// What an answer says beside what was asked: when to come again, and what time it is.
    fn listen(&self, answer: &Answer) {
        let mut session = self.lock();
        if let (429, Some(pause)) = (answer.status, answer.retry_after) {
            session.quiet_until = Some(self.clock.now() + pause.min(LONGEST_PAUSE));
        }
        let Some(date) = answer.date else { return };
        let skew = self.clock.unix_seconds() - date.as_second() as f64;
        self.metrics.skew.set(skew);
        let is_wrong = skew.abs() > MOST_SKEW;
        if is_wrong && !session.told_of_skew {
            let finding =
                Cause::ClockSkew.seen(format!("this machine's clock and Vault's differ by {skew:.0} s"));
            tracing::warn!(cause = finding.cause.id(), "{finding}");
        }
        session.told_of_skew = is_wrong;
    }

    fn lock(&self) -> MutexGuard<'_, Session> {
        self.session.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// From 0 up to 1.
fn chance() -> f64 {
    let [byte] = crate::secret::random();
    f64::from(byte) / 256.0
}

// === impl Metrics ===

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let metrics = Self {
            requests: registry.histograms(
                "keswarden_vault_request_duration_seconds",
                "How long requests to Vault took, by operation and status",
                &["op", "code"],
                metrics::REMOTE,
            ),
            logins: registry.counters(
                "keswarden_vault_login_total",
                "Logins to Vault",
                &["method", "outcome"],
            ),
            token_expiry: registry.gauge(
                "keswarden_vault_token_expiry_timestamp_seconds",
                "When the Vault token expires; 0 when it never does or there is none",
            ),
            last_renewal: registry.gauge(
                "keswarden_vault_token_last_renewal_timestamp_seconds",
                "When the Vault token was last renewed; 0 when never",
            ),
            skew: registry.gauge(
                "keswarden_vault_clock_skew_seconds",
                "This machine's clock less Vault's, as its last answer told",
            ),
            state: registry.states(
                "keswarden_vault_state",
                "What Vault last was, 1 for that state",
                ["unsealed", "sealed", "uninitialised", "unreachable"],
            ),
        };
        for method in Login::METHODS {
            for outcome in ["ok", "failed"] {
                metrics.logins.with_label_values(&[method, outcome]);
            }
        }
        metrics
    }

    fn expires(&self, clock: &Clock, ttl: Option<Duration>) {
        self.token_expiry.set(ttl.map_or(0.0, |ttl| clock.unix_seconds() + ttl.as_secs_f64()));
    }
}
