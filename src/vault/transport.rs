//! How bytes reach Vault: a transport that can be real or simulated, and what it means when they do not.

use super::{Config, endpoints::Headers, verdict::Answer};
use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock, Instant},
    metrics::Registry,
    tls::{
        self, Pair, Trouble,
        trust::{PeerEnds, Trust},
    },
};
use async_trait::async_trait;
use prometheus::IntGaugeVec;
use rustify::{endpoint::Endpoint, enums::RequestMethod, errors::ClientError};
use sha2::{Digest, Sha256};
use std::{
    error::Error as StdError,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use zeroize::Zeroizing;

/// Sends one request and gets one whole answer, whatever its status.
#[async_trait]
pub trait Transport: Send + Sync {
    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, Failure>;
}

/// No whole answer came. Holds nothing of the request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{words}")]
pub struct Failure {
    pub kind: FailureKind,
    /// The peer's, or the library's, own words.
    pub words: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    Refused,
    /// Nobody took the connection in time.
    ConnectTimeout,
    /// It was taken, and no answer came in time.
    Timeout,
    Dns,
    Tls(Trouble),
    Other,
}

/// An answer larger than this is not read: 5,000 key names are 60 kB.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How often files are looked at for a change while all goes well.
const LOOK: Duration = Duration::from_secs(10);

/// The network. HTTP/1.1 only: one black-holed HTTP/2 connection would stall every request. Certificates are read again when
/// their files change, and connections are thrown away after a timeout: the next one may get through.
pub struct Real {
    config: Config,
    clock: Clock,
    state: Mutex<State>,
    /// Of Vault's certificate.
    ends: PeerEnds,
}

struct State {
    client: reqwest::Client,
    /// What the files held that the client was made of.
    files: [u8; 32],
    /// What they hold now and cannot be used, and why.
    unusable: Option<([u8; 32], String)>,
    looked: Instant,
}

// === impl Real ===

impl Real {
    /// What it learns of Vault's certificate is noted in `ends`.
    pub fn new(config: &Config, clock: Clock, ends: PeerEnds) -> Result<Self, Finding> {
        let (files, looked) = (content(config), clock.now());
        let state = State { client: connect(config, &ends)?, files, unusable: None, looked };
        Ok(Self { config: config.clone(), clock, state: Mutex::new(state), ends })
    }

    fn client(&self) -> reqwest::Client {
        let mut state = self.lock();
        if self.clock.now() - state.looked >= LOOK {
            self.refresh(&mut state);
        }
        state.client.clone()
    }

    /// A client of the files as they are now, if they have changed; whether they have.
    fn refresh(&self, state: &mut State) -> bool {
        state.looked = self.clock.now();
        let files = content(&self.config);
        if files == state.files {
            state.unusable = None;
            return false;
        }
        match connect(&self.config, &self.ends) {
            Ok(client) => {
                tracing::info!("the certificates for TLS to Vault have changed, and are in use");
                (state.client, state.files, state.unusable) = (client, files, None);
                true
            }
            // Half written, perhaps: the former ones stay, and it is looked again.
            Err(finding) => {
                if state.unusable.as_ref().is_none_or(|(known, _)| *known != files) {
                    tracing::warn!(
                        cause = finding.cause.id(),
                        "the changed files for TLS to Vault are not used: {finding}"
                    );
                }
                state.unusable = Some((files, finding.seen));
                false
            }
        }
    }

    /// What a failure means for the connections; whether it is worth another try.
    fn learn(&self, failure: &Failure) -> bool {
        let mut state = self.lock();
        match failure.kind {
            FailureKind::Tls(_) => self.refresh(&mut state),
            FailureKind::ConnectTimeout | FailureKind::Timeout | FailureKind::Other => {
                if let Ok(client) = connect(&self.config, &self.ends) {
                    state.client = client;
                }
                false
            }
            FailureKind::Refused | FailureKind::Dns => false,
        }
    }

    /// How long it was waited, and that files are there which would perhaps have done.
    fn with_what_is_known(&self, failure: Failure) -> Failure {
        let words = match (failure.kind, &self.lock().unusable) {
            (FailureKind::Timeout, _) => format!("no answer within {}", clock::human(self.config.timeout)),
            (FailureKind::ConnectTimeout, _) => {
                let bound = CONNECT_TIMEOUT.min(self.config.timeout);
                format!("no connection within {}", clock::human(bound))
            }
            (FailureKind::Tls(_), Some((_, why))) => {
                format!("{}; and the files for TLS have changed, and cannot be used: {why}", failure.words)
            }
            _ => return failure,
        };
        Failure { words, ..failure }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn connect(config: &Config, ends: &PeerEnds) -> Result<reqwest::Client, Finding> {
    let unusable = |error: tls::Error| Cause::TlsFileUnusable.seen(format!("for TLS to Vault: {error}"));
    let trust = Trust::from_setting(config.ca.as_deref()).map_err(unusable)?;
    let trust = trust.noting(ends);
    let own = config.client_certificate.as_ref().map(|(certificate, key)| Pair::read(certificate, key));
    let tls = tls::client_config(trust, own.transpose().map_err(unusable)?).map_err(unusable)?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .http1_only()
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
        .timeout(config.timeout)
        .pool_max_idle_per_host(2)
        .pool_idle_timeout(Duration::from_secs(60))
        .build()
        .map_err(|error| Cause::VaultUnreachable.seen(format!("the HTTP client cannot start: {error}")))
}

/// What is in the files of certificates and keys, as one digest.
fn content(config: &Config) -> [u8; 32] {
    let own = config.client_certificate.iter().flat_map(|(certificate, key)| [certificate, key]);
    let mut digest = Sha256::new();
    for path in config.ca.iter().chain(own) {
        let files = match std::fs::read_dir(path) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(_) => vec![path.clone()],
        };
        for file in files {
            let bytes = Zeroizing::new(std::fs::read(file).unwrap_or_default());
            digest.update((bytes.len() as u64).to_be_bytes());
            digest.update(&*bytes);
        }
    }
    digest.finalize().into()
}

#[async_trait]
impl Transport for Real {
    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, Failure> {
        let request = reqwest::Request::try_from(request).map_err(|error| Failure::of(&error))?;
        let again = request.try_clone();
        match (exchange(&self.client(), request).await, again) {
            // A handshake that failed has sent nothing.
            (Err(failure), Some(again)) if self.learn(&failure) => exchange(&self.client(), again).await,
            (result, _) => result,
        }
        .map_err(|failure| self.with_what_is_known(failure))
    }
}

async fn exchange(
    client: &reqwest::Client,
    request: reqwest::Request,
) -> Result<http::Response<Vec<u8>>, Failure> {
    let mut answer = client.execute(request).await.map_err(|error| Failure::of(&error))?;
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| Failure::of(&error))? {
        if body.len() + chunk.len() > MAX_ANSWER {
            let words = format!("the answer is larger than {MAX_ANSWER} bytes");
            return Err(Failure { kind: FailureKind::Other, words });
        }
        body.extend_from_slice(&chunk);
    }
    let mut whole = http::Response::new(body);
    *whole.status_mut() = answer.status();
    *whole.headers_mut() = answer.headers().clone();
    Ok(whole)
}

// === impl Failure ===

impl Failure {
    pub fn of(error: &reqwest::Error) -> Self {
        let words = tls::words(error);
        let kind = match tls::trouble(error) {
            Some((trouble, words)) => return Self { kind: FailureKind::Tls(trouble), words },
            None if error.is_timeout() && error.is_connect() => FailureKind::ConnectTimeout,
            None if error.is_timeout() => FailureKind::Timeout,
            None if has_kind(error, std::io::ErrorKind::ConnectionRefused) => FailureKind::Refused,
            None if error.is_connect() && is_of_dns(error) => FailureKind::Dns,
            None => FailureKind::Other,
        };
        Self { kind, words }
    }
}

/// hyper-util's connector says so in words only, and an address may have the same letters in it.
fn is_of_dns(error: &(dyn StdError + 'static)) -> bool {
    let mut next = error.source();
    while let Some(error) = next {
        if error.to_string().starts_with("dns error") {
            return true;
        }
        next = error.source();
    }
    false
}

fn has_kind(error: &(dyn StdError + 'static), kind: std::io::ErrorKind) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == kind) {
            return true;
        }
        next = error.source();
    }
    false
}

/// A transport with the addresses of one Vault: every status is an answer.
pub(super) struct Wire {
    addresses: Vec<String>,
    /// The one that answered last.
    current: AtomicUsize,
    transport: Arc<dyn Transport>,
    up: IntGaugeVec,
}

/// One of the addresses, as `rustify` wants it.
struct At<'a> {
    address: &'a str,
    wire: &'a Wire,
}

// === impl Wire ===

impl Wire {
    pub(super) fn new(addresses: Vec<String>, transport: Arc<dyn Transport>, registry: &Registry) -> Self {
        let help = "1 when the last request to this address of Vault was answered";
        let up = registry.int_gauges("keswarden_vault_address_up", help, &["address"]);
        Self { addresses, current: AtomicUsize::new(0), transport, up }
    }

    /// The addresses, the one that answered last first.
    pub(super) fn turn(&self) -> impl Iterator<Item = usize> + use<> {
        let (start, count) = (self.current.load(Ordering::Relaxed), self.addresses.len());
        (0..count).map(move |step| (start + step) % count)
    }

    pub(super) fn address(&self, at: usize) -> &str {
        &self.addresses[at]
    }

    /// Asks this one first from now on.
    pub(super) fn prefer(&self, at: usize) {
        self.current.store(at % self.addresses.len(), Ordering::Relaxed);
    }

    /// One whole answer, of the first address that has one to give: a node that is sealed, or a standby that sends us away, is
    /// passed over while there are others. What may have been done is never done twice. And which address it was.
    pub(super) async fn send(
        &self,
        endpoint: impl Endpoint + Clone,
        headers: &Headers,
    ) -> (usize, Result<Answer, Failure>) {
        let may_repeat = matches!(endpoint.method(), RequestMethod::GET);
        let mut last = None;
        for at in self.turn() {
            let result = self.send_to(at, &endpoint, headers).await;
            let result = match result {
                Ok(answer) => self.follow(answer, &endpoint, headers).await,
                failed => failed,
            };
            match &result {
                Ok(answer) if !is_elsewhere(answer) => {
                    self.prefer(at);
                    return (at, result);
                }
                Ok(_) => {}
                Err(failure) if may_repeat || failure.was_not_sent() => {}
                Err(_) => {
                    // Who comes next asks another one first.
                    self.prefer(at + 1);
                    return (at, result);
                }
            }
            // An answer, whatever it is, says more than none.
            last = Some(match last {
                Some(before @ (_, Ok(_))) => before,
                _ => (at, result),
            });
        }
        last.unwrap_or_else(|| (0, Err(Failure::odd(anyhow::anyhow!("Vault has no address")))))
    }

    /// One whole answer of this address, within a bound.
    pub(super) async fn send_within(
        &self,
        bound: Duration,
        at: usize,
        endpoint: &(impl Endpoint + Clone),
        headers: &Headers,
    ) -> Result<Answer, Failure> {
        tokio::time::timeout(bound, self.send_to(at, endpoint, headers)).await.unwrap_or_else(|_| {
            self.up.with_label_values(&[self.address(at)]).set(0);
            let words = format!("no answer within {}", clock::human(bound));
            Err(Failure { kind: FailureKind::Timeout, words })
        })
    }

    /// A standby may name the leader: it is asked if it is one of ours, and otherwise gets nothing from us.
    async fn follow(
        &self,
        answer: Answer,
        endpoint: &(impl Endpoint + Clone),
        headers: &Headers,
    ) -> Result<Answer, Failure> {
        let named = answer.location.as_deref().filter(|_| (301..=308).contains(&answer.status));
        let of = |address: &String| named.is_some_and(|to| to.starts_with(&format!("{address}/v1/")));
        match self.addresses.iter().position(of) {
            None => Ok(answer),
            Some(leader) => match self.send_to(leader, endpoint, headers).await {
                // Nobody listens there any more: that a standby knows no other leader says more.
                Err(failure) if failure.was_not_sent() => Ok(answer),
                result => result,
            },
        }
    }

    async fn send_to(
        &self,
        at: usize,
        endpoint: &(impl Endpoint + Clone),
        headers: &Headers,
    ) -> Result<Answer, Failure> {
        let address = self.addresses[at].as_str();
        let result = endpoint.clone().with_middleware(headers).exec(&At { address, wire: self }).await;
        let result = match result {
            Ok(result) => Ok(Answer::new(result.response)),
            Err(ClientError::RequestError { source, .. }) => {
                Err(source.downcast().unwrap_or_else(Failure::odd))
            }
            Err(ClientError::GenericError { source }) => Err(Failure::odd(source)),
            Err(_) => Err(Failure::odd(anyhow::anyhow!("the request could not be built"))),
        };
        self.up.with_label_values(&[address]).set(i64::from(result.is_ok()));
        result
    }
}

/// Another address may do what this one does not, and has not begun to do.
fn is_elsewhere(answer: &Answer) -> bool {
    answer.status == 503 || (301..=308).contains(&answer.status) || answer.knows_no_leader()
}

impl Failure {
    /// Only for errors whose text is our own.
    fn odd(error: anyhow::Error) -> Self {
        Self { kind: FailureKind::Other, words: error.to_string() }
    }

    /// Nothing of the request has reached anybody.
    fn was_not_sent(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::Refused | FailureKind::ConnectTimeout | FailureKind::Dns | FailureKind::Tls(_)
        )
    }
}

#[async_trait]
impl rustify::client::Client for At<'_> {
    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, ClientError> {
        let (url, method) = (request.uri().to_string(), request.method().to_string());
        let failed = |failure| ClientError::RequestError { source: anyhow::Error::new(failure), url, method };
        self.wire.transport.send(request).await.map_err(failed)
    }

    fn base(&self) -> &str {
        self.address
    }

    /// As `send`: an answer of any status is an answer.
    async fn execute(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, ClientError> {
        rustify::client::Client::send(self, request).await
    }
}
