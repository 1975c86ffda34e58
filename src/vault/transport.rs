//! How bytes reach Vault: a transport that can be real or simulated, and what it means when they do not.

use super::Config;
use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock, Instant},
    tls::{
        self, Pair, Trouble,
        trust::{PeerEnds, Trust},
    },
};
use async_trait::async_trait;
use sha2::{Digest, Sha256};
use std::{
    error::Error as StdError,
    sync::{Mutex, MutexGuard, PoisonError},
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
    /// How many there were before.
    generation: u64,
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
        let state = State { client: connect(config, &ends)?, generation: 0, files, unusable: None, looked };
        Ok(Self { config: config.clone(), clock, state: Mutex::new(state), ends })
    }

    fn client(&self) -> (reqwest::Client, u64) {
        let mut state = self.lock();
        if self.clock.now() - state.looked >= LOOK {
            self.refresh(&mut state);
        }
        (state.client.clone(), state.generation)
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
                state.generation += 1;
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

    /// What a failure means for the connections of the client that met it; whether it is worth another try.
    fn learn(&self, failure: &Failure, generation: u64) -> bool {
        let mut state = self.lock();
        if state.generation != generation {
            // Somebody else has learnt it before: there are new ones.
            return matches!(failure.kind, FailureKind::Tls(_));
        }
        match failure.kind {
            FailureKind::Tls(_) => self.refresh(&mut state),
            FailureKind::ConnectTimeout | FailureKind::Timeout | FailureKind::Other => {
                if let Ok(client) = connect(&self.config, &self.ends) {
                    (state.client, state.generation) = (client, generation + 1);
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
        let mut files: Vec<std::path::PathBuf> = files;
        files.sort_unstable();
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
        let (client, generation) = self.client();
        match (exchange(&client, request).await, again) {
            // A handshake that failed has sent nothing.
            (Err(failure), Some(again)) if self.learn(&failure, generation) => {
                exchange(&self.client().0, again).await
            }
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

impl Failure {
    /// Only for errors whose text is our own.
    pub(super) fn odd(error: anyhow::Error) -> Self {
        Self { kind: FailureKind::Other, words: error.to_string() }
    }

    /// Nothing of the request has reached anybody.
    pub(super) fn was_not_sent(&self) -> bool {
        matches!(
            self.kind,
            FailureKind::Refused | FailureKind::ConnectTimeout | FailureKind::Dns | FailureKind::Tls(_)
        )
    }
}
