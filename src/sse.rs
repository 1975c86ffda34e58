//! Bucket defaults: every bucket without a default encryption gets the operator's, within seconds.
//!
//! All buckets are listed at a short interval, because MinIO's events are lossy and late. A checked bucket is
//! checked again after a longer interval.

pub mod policy;

use crate::{
    clock::{Clock, Instant},
    health::Health,
    metrics::Registry,
    s3::{Client, Error, Sse},
    shutdown::{Drain, Ended},
};
use policy::Verdict;
use prometheus::{Histogram, IntCounterVec, IntGaugeVec};
use std::{collections::HashMap, time::Duration};

/// The settings of bucket defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The default encryption for buckets that have none.
    pub wanted: Sse,
    /// The interval of listing buckets.
    pub interval: Duration,
}

/// The task that checks and sets bucket defaults until the drain.
pub struct Enforcer {
    client: Client,
    config: Config,
    clock: Clock,
    health: Health,
    metrics: Metrics,
    checked: HashMap<String, Checked>,
    /// The last error that was logged, so that a long outage is one line and not one per interval.
    trouble: Option<String>,
}

/// The last check of a bucket.
struct Checked {
    state: &'static str,
    at: Instant,
}

struct Metrics {
    buckets: IntGaugeVec,
    repairs: IntCounterVec,
    reaction: Histogram,
}

/// The time between two checks of a bucket.
const RECHECK_INTERVAL: Duration = Duration::from_secs(60);

// === impl Enforcer ===

impl Enforcer {
    /// A task that checks nothing before [`Enforcer::run`].
    pub fn new(client: Client, config: Config, registry: &Registry, health: Health, clock: Clock) -> Self {
        Self {
            client,
            config,
            clock,
            health,
            metrics: Metrics::new(registry),
            checked: HashMap::new(),
            trouble: None,
        }
    }

    /// Checks and sets until the drain. Errors are logged, and tried again after the interval.
    pub async fn run(mut self, mut drain: Drain) -> Ended {
        loop {
            let round = self.round();
            match drain.or(round).await {
                None => return Ended::Drained,
                Some(Ok(())) => self.report(None),
                Some(Err(error)) => self.report(Some(error.to_string())),
            }
            if drain.or(tokio::time::sleep(self.config.interval)).await.is_none() {
                return Ended::Drained;
            }
        }
    }

    async fn round(&mut self) -> Result<(), Error> {
        let names = self.client.buckets().await?;
        self.checked.retain(|name, _| names.contains(name));
        let mut trouble = Ok(());
        for name in names {
            let now = self.clock.now();
            let settled = self.checked.get(&name).is_some_and(|checked| now - checked.at < RECHECK_INTERVAL);
            if settled {
                continue;
            }
            let first = !self.checked.contains_key(&name);
            // An error of one bucket does not stop the check of the others.
            match self.check(&name, first).await {
                Ok(state) => drop(self.checked.insert(name, Checked { state, at: now })),
                Err(error) => trouble = Err(error),
            }
        }
        for state in policy::STATES {
            let count = self.checked.values().filter(|checked| checked.state == state).count();
            self.metrics.buckets.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        trouble
    }

    async fn check(&self, bucket: &str, first: bool) -> Result<&'static str, Error> {
        let started = self.clock.now();
        let current = self.client.encryption(bucket).await?;
        let verdict = policy::decide(current.as_ref(), &self.config.wanted);
        if verdict == Verdict::Set {
            self.client.set_encryption(bucket, &self.config.wanted).await?;
            let reason = if first { "new" } else { "removed" };
            self.metrics.repairs.with_label_values(&[reason]).inc();
            self.metrics.reaction.observe((self.clock.now() - started).as_secs_f64());
            tracing::info!(
                bucket,
                "the bucket had no default encryption; it is {} now",
                policy::named(&self.config.wanted)
            );
            return Ok(policy::STATES[0]);
        }
        Ok(verdict.state())
    }

    fn report(&mut self, trouble: Option<String>) {
        let note = match &trouble {
            None => serde_json::json!({ "buckets": self.checked.len() }),
            Some(trouble) => serde_json::json!({ "buckets": self.checked.len(), "trouble": trouble }),
        };
        self.health.note("bucket_defaults", note);
        if trouble != self.trouble {
            match &trouble {
                Some(trouble) => tracing::warn!("bucket defaults cannot be looked after: {trouble}"),
                None => tracing::info!(buckets = self.checked.len(), "bucket defaults are looked after"),
            }
        }
        self.trouble = trouble;
    }
}

// === impl Metrics ===

impl Metrics {
    fn new(registry: &Registry) -> Self {
        let metrics = Self {
            buckets: registry.int_gauges(
                "keswarden_bucket_sse",
                "Buckets by the state of their default encryption",
                &["state"],
            ),
            repairs: registry.counters(
                "keswarden_bucket_sse_repairs_total",
                "Default encryptions that were set, by reason",
                &["reason"],
            ),
            reaction: registry.histogram(
                "keswarden_sse_reaction_seconds",
                "From seeing a bucket without a default encryption to having set it",
                crate::metrics::REMOTE,
            ),
        };
        for state in policy::STATES {
            metrics.buckets.with_label_values(&[state]);
        }
        for reason in ["new", "removed"] {
            metrics.repairs.with_label_values(&[reason]);
        }
        metrics
    }
}
