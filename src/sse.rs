//! Bucket defaults: every bucket without a default encryption gets the one that the operator wants, within seconds.
//!
//! All buckets are listed at a short interval, since MinIO's events are lossy and late; a bucket that was found in order is
//! looked at again only at a longer one.

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

/// What is wanted, and how often to look.
#[derive(Clone, Debug)]
pub struct Config {
    pub wanted: Sse,
    pub interval: Duration,
}

/// Looks and sets until the drain.
pub struct Enforcer {
    client: Client,
    config: Config,
    clock: Clock,
    health: Health,
    metrics: Metrics,
    seen: HashMap<String, Seen>,
    /// The last trouble that was logged, so that a long outage is one line, not one every two seconds.
    trouble: Option<String>,
}

struct Seen {
    state: &'static str,
    at: Instant,
}

struct Metrics {
    buckets: IntGaugeVec,
    repairs: IntCounterVec,
    reaction: Histogram,
}

/// How long a bucket that is in order is not looked at again.
const TRUST: Duration = Duration::from_secs(60);

// === impl Enforcer ===

impl Enforcer {
    pub fn new(client: Client, config: Config, registry: &Registry, health: Health, clock: Clock) -> Self {
        Self {
            client,
            config,
            clock,
            health,
            metrics: Metrics::new(registry),
            seen: HashMap::new(),
            trouble: None,
        }
    }

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
        self.seen.retain(|name, _| names.contains(name));
        let mut trouble = Ok(());
        for name in names {
            let now = self.clock.now();
            let settled = self.seen.get(&name).is_some_and(|seen| now - seen.at < TRUST);
            if settled {
                continue;
            }
            let first = !self.seen.contains_key(&name);
            // One bucket that cannot be looked after is no reason to leave the others alone.
            match self.look_at(&name, first).await {
                Ok(state) => drop(self.seen.insert(name, Seen { state, at: now })),
                Err(error) => trouble = Err(error),
            }
        }
        for state in policy::STATES {
            let count = self.seen.values().filter(|seen| seen.state == state).count();
            self.metrics.buckets.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        trouble
    }

    async fn look_at(&self, bucket: &str, first: bool) -> Result<&'static str, Error> {
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
            None => serde_json::json!({ "buckets": self.seen.len() }),
            Some(trouble) => serde_json::json!({ "buckets": self.seen.len(), "trouble": trouble }),
        };
        self.health.note("bucket_defaults", note);
        if trouble != self.trouble {
            match &trouble {
                Some(trouble) => tracing::warn!("bucket defaults cannot be looked after: {trouble}"),
                None => tracing::info!(buckets = self.seen.len(), "bucket defaults are looked after"),
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
