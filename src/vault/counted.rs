//! What is counted of Vault: requests, logins, what ends and when, and how it is.

use super::login::Login;
use crate::{
    clock::Clock,
    metrics::{self, Registry},
};
use prometheus::{Gauge, HistogramVec, IntCounterVec};
use std::time::Duration;

pub(super) struct Metrics {
    pub(super) requests: HistogramVec,
    pub(super) logins: IntCounterVec,
    pub(super) token_expiry: Gauge,
    pub(super) last_renewal: Gauge,
    pub(super) secret_id_expiry: Gauge,
    pub(super) certificate: Gauge,
    pub(super) own_certificate: Gauge,
    pub(super) skew: Gauge,
    pub(super) state: metrics::States<4>,
}

// === impl Metrics ===

impl Metrics {
    pub(super) fn new(registry: &Registry) -> Self {
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
            secret_id_expiry: registry.gauge(
                "keswarden_secret_id_expiry_timestamp_seconds",
                "When the AppRole's secret_id expires; 0 when it never does, or the policy does not let us know",
            ),
            certificate: registry.not_after("vault"),
            own_certificate: registry.not_after("vault_client"),
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

    pub(super) fn expires(&self, clock: &Clock, ttl: Option<Duration>) {
        self.token_expiry.set(ttl.map_or(0.0, |ttl| clock.unix_seconds() + ttl.as_secs_f64()));
    }
}
