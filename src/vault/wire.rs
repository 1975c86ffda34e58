//! The addresses of one Vault, over a transport: which of them is asked, which is passed over, and what is never done twice.

use super::{
    endpoints::Headers,
    transport::{Failure, FailureKind, Transport},
    verdict::Answer,
};
use crate::{clock, metrics::Registry};
use async_trait::async_trait;
use prometheus::IntGaugeVec;
use rustify::{endpoint::Endpoint, enums::RequestMethod, errors::ClientError};
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

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
    pub(super) fn turn(&self) -> impl ExactSizeIterator<Item = usize> + use<> {
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

    /// One whole answer of this address, and of no other.
    pub(super) async fn send_to(
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
