//! How bytes reach Vault: a transport that can be real or simulated, and what it means when they do not.

use super::{Config, endpoints::Headers, verdict::Answer};
use crate::{
    cause::{Cause, Finding},
    tls::{self, Pair, Trouble, trust::Trust},
};
use async_trait::async_trait;
use rustify::{endpoint::Endpoint, errors::ClientError};
use std::{error::Error as StdError, sync::Arc, time::Duration};

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
    Timeout,
    Dns,
    Tls(Trouble),
    Other,
}

/// An answer larger than this is not read: 5,000 key names are 60 kB.
const MAX_ANSWER: usize = 32 * 1024 * 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// The network. HTTP/1.1 only: one black-holed HTTP/2 connection would stall every request.
pub struct Real(reqwest::Client);

// === impl Real ===

impl Real {
    pub fn new(config: &Config) -> Result<Self, Finding> {
        let unusable = |error: tls::Error| Cause::TlsFileUnusable.seen(format!("for TLS to Vault: {error}"));
        let trust = Trust::from_setting(config.ca.as_deref()).map_err(unusable)?;
        let own = config.client_certificate.as_ref().map(|(certificate, key)| Pair::read(certificate, key));
        let tls = tls::client_config(trust, own.transpose().map_err(unusable)?).map_err(unusable)?;
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT.min(config.timeout))
            .timeout(config.timeout)
            .pool_max_idle_per_host(2)
            .pool_idle_timeout(Duration::from_secs(60))
            .build()
            .map_err(|error| {
                Cause::VaultUnreachable.seen(format!("the HTTP client cannot start: {error}"))
            })?;
        Ok(Self(client))
    }
}

#[async_trait]
impl Transport for Real {
    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, Failure> {
        let request = reqwest::Request::try_from(request).map_err(|error| Failure::of(&error))?;
        let mut answer = self.0.execute(request).await.map_err(|error| Failure::of(&error))?;
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
}

// === impl Failure ===

impl Failure {
    pub fn of(error: &reqwest::Error) -> Self {
        let words = innermost(error);
        let kind = match tls::trouble(error) {
            Some((trouble, words)) => return Self { kind: FailureKind::Tls(trouble), words },
            None if error.is_timeout() => FailureKind::Timeout,
            None if has_kind(error, std::io::ErrorKind::ConnectionRefused) => FailureKind::Refused,
            None if error.is_connect() && format!("{error:?}").contains("dns") => FailureKind::Dns,
            None => FailureKind::Other,
        };
        Self { kind, words }
    }
}

/// The last error of the chain: the closest to what happened.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
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

/// A transport with an address, as `rustify` wants it: every status is an answer.
pub(super) struct Wire {
    address: String,
    transport: Arc<dyn Transport>,
}

// === impl Wire ===

impl Wire {
    pub(super) fn new(address: String, transport: Arc<dyn Transport>) -> Self {
        Self { address, transport }
    }

    pub(super) async fn send(&self, endpoint: impl Endpoint, headers: &Headers) -> Result<Answer, Failure> {
        let result = endpoint.with_middleware(headers).exec(self).await;
        match result {
            Ok(result) => Ok(Answer::new(result.response)),
            Err(ClientError::RequestError { source, .. }) => {
                Err(source.downcast().unwrap_or_else(Failure::odd))
            }
            Err(ClientError::GenericError { source }) => Err(Failure::odd(source)),
            Err(_) => Err(Failure::odd(anyhow::anyhow!("the request could not be built"))),
        }
    }
}

impl Failure {
    /// Only for errors whose text is our own.
    fn odd(error: anyhow::Error) -> Self {
        Self { kind: FailureKind::Other, words: error.to_string() }
    }
}

#[async_trait]
impl rustify::client::Client for Wire {
    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, ClientError> {
        let (url, method) = (request.uri().to_string(), request.method().to_string());
        let failed = |failure| ClientError::RequestError { source: anyhow::Error::new(failure), url, method };
        self.transport.send(request).await.map_err(failed)
    }

    fn base(&self) -> &str {
        &self.address
    }

    /// As `send`: an answer of any status is an answer.
    async fn execute(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, ClientError> {
        rustify::client::Client::send(self, request).await
    }
}
