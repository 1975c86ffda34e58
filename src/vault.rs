//! The Vault / OpenBao client: what is asked, as whom, and what an answer means.
//!
//! Request shapes come from `vaultrs` where it has them right; they are sent over a [`Transport`] of ours, because its
//! own client follows redirects with the token on them, panics on odd tokens, prints tokens in `Debug` and drops
//! headers. Whatever a server answers becomes an [`Answer`] or a [`Finding`] here; no foreign error leaves this module.

mod counted;
mod endpoints;
mod expiry;
mod handover;
pub mod lease;
pub mod login;
mod login_flow;
mod pace;
mod refusals;
mod renewal;
mod seal_status;
mod token;
pub mod transport;
pub mod verdict;
mod wire;

use crate::{
    cause::{Cause, Finding},
    clock::{Clock, Instant},
    metrics::Registry,
    secret::Secret,
    tls::trust::PeerEnds,
};
use counted::Metrics;
use endpoints::{Call, Headers};
use expiry::Inspections;
use handover::Handover;
use login::Login;
use login_flow::LoginFlow;
use pace::Pace;
pub use refusals::Refusals;
use renewal::RenewalLog;
use rustify::endpoint::Endpoint;
use seal_status::NodeState;
use std::{path::PathBuf, sync::Arc, time::Duration};
use token::TokenInUse;
use transport::{FailureKind, Transport};
use verdict::{Answer, Asked};
use wire::Wire;

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
    token: TokenInUse,
    logins: LoginFlow,
    pace: Pace,
    inspections: Inspections,
    renewal_log: RenewalLog,
    handover: Handover,
    refusals: Refusals,
    /// When Vault's certificate ends.
    ends: PeerEnds,
    chance: Chance,
    metrics: Metrics,
}

/// Gives numbers from 0 up to 1, for jitter.
pub type Chance = Box<dyn Fn() -> f64 + Send + Sync>;

/// A standby is behind its leader (≤ 102 ms seen), for a token as for a key.
const LAG: Duration = Duration::from_millis(150);

// === impl Client ===

impl Client {
    /// `refusals` is what this process knows of credentials that were not taken.
    pub fn new(
        config: Config,
        registry: &Registry,
        clock: Clock,
        refusals: Refusals,
    ) -> Result<Self, Finding> {
        let ends = PeerEnds::default();
        let transport = transport::Real::new(&config, clock.clone(), ends.clone())?;
        Ok(Self {
            ends,
            ..Self::over(Arc::new(transport), config, registry, clock, refusals, Box::new(chance))
        })
    }

    /// A client whose bytes go over `transport`, and whose jitter comes from `chance`.
    pub fn over(
        transport: Arc<dyn Transport>,
        config: Config,
        registry: &Registry,
        clock: Clock,
        refusals: Refusals,
        chance: Chance,
    ) -> Self {
        let handover = Handover::new(&config, clock.clone());
        if let Some(refusal) = handover.refusal() {
            refusals.remember(refusal, clock.theirs());
        }
        Self {
            wire: Wire::new(config.addresses.clone(), transport, registry),
            config,
            clock,
            token: TokenInUse::default(),
            logins: LoginFlow::default(),
            pace: Pace::default(),
            inspections: Inspections::default(),
            renewal_log: RenewalLog::default(),
            handover,
            refusals,
            ends: PeerEnds::default(),
            chance,
            metrics: Metrics::new(registry),
        }
    }

    pub fn address(&self) -> &str {
        &self.config.address
    }

    /// The time by this process's clock.
    pub fn now(&self) -> jiff::Timestamp {
        self.clock.timestamp()
    }

    /// The first of the addresses: what a command takes.
    pub fn first_address(&self) -> &str {
        self.config.addresses.first().map_or(&self.config.address, String::as_str)
    }

    /// That of the keys, when there is one.
    pub fn namespace(&self) -> Option<&str> {
        self.config.namespace.as_deref()
    }

    fn observe(&self, asked: &Asked<'_>, begun: Instant, answer: &Result<Answer, transport::Failure>) {
        let code = answer.as_ref().map_or_else(|_| "none".to_owned(), |answer| answer.status.to_string());
        let elapsed = (self.clock.now() - begun).as_secs_f64();
        self.metrics.requests.with_label_values(&[verdict::operation(asked.path), &code]).observe(elapsed);
    }

    /// Logged in: there is a token that Vault takes.
    pub async fn logged_in(&self) -> Result<(), Finding> {
        self.live_token().await.map(drop)
    }

    /// Sends a request as us. A dead token is replaced once.
    pub async fn ask(&self, asked: &Asked<'_>, endpoint: impl Endpoint + Clone) -> Result<Answer, Finding> {
        self.ask_in(self.config.namespace.clone(), asked, endpoint).await
    }

    async fn ask_in(
        &self,
        namespace: Option<String>,
        asked: &Asked<'_>,
        endpoint: impl Endpoint + Clone,
    ) -> Result<Answer, Finding> {
        let (mut died, mut was_too_soon) = (false, false);
        loop {
            let token = self.live_token().await?;
            let headers = Headers::with(Some(token.clone()), namespace.clone());
            let answer = self.send(asked, endpoint.clone(), &headers).await?;
            if answer.status != 403 || !answer.is_vaults() {
                return Ok(answer);
            }
            let is_young = self.token.is_young(&token, self.clock.theirs());
            if !self.token_is_dead(&token, &headers).await? {
                // A standby may have heard of a fresh token by now.
                if !is_young || std::mem::replace(&mut was_too_soon, true) {
                    return Ok(answer);
                }
                continue;
            }
            self.forget(&token);
            if std::mem::replace(&mut died, true) || !self.config.login.can_repeat() {
                break;
            }
        }
        Err(Cause::TokenDead.seen(format!(
            "{} was refused by Vault {}: 403, and it does not know the token any more",
            asked.what, self.config.address
        )))
    }

    /// `GET path`, as us.
    pub async fn get(&self, asked: &Asked<'_>, query: Option<&str>) -> Result<Answer, Finding> {
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

    /// After a 403: is it the token (then log in), or the policy (then say so)?
    async fn token_is_dead(&self, token: &Arc<Secret>, headers: &Headers) -> Result<bool, Finding> {
        let asked = Asked { what: "looking up the token", path: "auth/token/lookup-self" };
        loop {
            let answer = self.send(&asked, Call::get(asked.path), headers).await?;
            if !matches!(answer.status, 200 | 403) || !answer.is_vaults() {
                return Err(verdict::of(&asked, &self.config, &answer));
            }
            // Without a grant to look itself up a live token is refused in other words than a dead one.
            let is_known = answer.status == 200
                || answer.errors().iter().any(|error| error.contains("1 error occurred"));
            if is_known || !self.token.is_young(token, self.clock.theirs()) {
                return Ok(!is_known);
            }
            tokio::time::sleep(LAG).await;
        }
    }

    fn forget(&self, token: &Arc<Secret>) {
        if self.token.drop_dead(token) {
            self.metrics.expires(&self.clock, None);
        }
    }

    async fn send(
        &self,
        asked: &Asked<'_>,
        endpoint: impl Endpoint + Clone,
        headers: &Headers,
    ) -> Result<Answer, Finding> {
        self.pace.check(&self.config.address, self.clock.theirs())?;
        let begun = self.clock.now();
        let (at, mut result) = self.wire.send(endpoint, headers).await;
        if let Ok(answer) = &result {
            self.pace.note(answer, &self.clock, &self.metrics);
        }
        self.observe(asked, begun, &result);
        let is_odd = match &result {
            Ok(answer) => answer.may_be_behind_green_health(),
            Err(failure) => failure.kind == FailureKind::Timeout,
        };
        if is_odd && self.health_is_green(at).await {
            match &mut result {
                Ok(answer) => answer.behind_green_health = true,
                Err(failure) => return Err(verdict::behind_green_health(asked, &self.config, failure)),
            }
        }
        self.note_state(match &result {
            Ok(answer) if answer.status == 503 && answer.says("Vault is sealed") => NodeState::Sealed,
            Ok(_) => NodeState::Unsealed,
            Err(failure) => NodeState::without_answer(failure),
        });
        result.map_err(|failure| verdict::unreachable(asked, &self.config, &failure))
    }
}

/// From 0 up to 1.
fn chance() -> f64 {
    let [byte] = crate::secret::random();
    f64::from(byte) / 256.0
}
