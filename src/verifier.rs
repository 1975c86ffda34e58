//! The verifier: at an interval every held key is fetched again, compared and tried.
//!
//! An outage changes nothing but a metric and a log line. Another key under the same name stops sealing at
//! once.

use crate::{
    backup::Drill,
    cause::{Cause, Finding},
    clock::Clock,
    files::Blocking,
    health::{Health, Severity},
    keyring::{Keyring, Verified},
    metrics::Registry,
    offline::SealedCopy,
    retry::Backoff,
    shutdown::{Drain, Ended},
};
use prometheus::{Gauge, IntCounterVec};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::sync::watch;

/// The settings of the verifier.
#[derive(Clone, Debug)]
pub struct Config {
    /// The time between two verifications. After a failure the next one comes sooner.
    pub interval: Duration,
}

/// The task that verifies the held keys.
pub struct Verifier {
    config: Config,
    /// The keyring in use.
    keyring: watch::Receiver<Keyring>,
    health: Health,
    /// The sealed copy, sealed anew after every verification that found a key well.
    copy: Option<Arc<SealedCopy>>,
    sealed: Gauge,
    /// The last verification found no key well, so the copy was not sealed.
    copy_waits: bool,
    blocking: Blocking,
    drill: Option<(Drill, Gauge)>,
    runs: IntCounterVec,
    /// The cause of each key's last logged failure.
    failing: BTreeMap<String, Cause>,
    /// The last logged words on each key with later versions.
    overwritten: BTreeMap<String, String>,
}

// === impl Verifier ===

impl Verifier {
    /// A verifier of the keys of whichever keyring is in use.
    pub fn new(
        config: Config,
        keyring: watch::Receiver<Keyring>,
        registry: &Registry,
        health: Health,
    ) -> Self {
        let runs = registry.counters(
            "keswarden_key_verifications_total",
            "Keys fetched again and compared, by outcome",
            &["outcome"],
        );
        for outcome in ["ok", "failed", "changed"] {
            runs.with_label_values(&[outcome]);
        }
        let sealed = registry.gauge(
            "keswarden_sealed_copy_timestamp_seconds",
            "When the sealed copy was last written; 0 when never",
        );
        Self {
            config,
            keyring,
            health,
            copy: None,
            sealed,
            copy_waits: false,
            blocking: Blocking::default(),
            drill: None,
            runs,
            failing: BTreeMap::new(),
            overwritten: BTreeMap::new(),
        }
    }

    /// The same with a sealed copy.
    pub fn with_copy(self, copy: Option<Arc<SealedCopy>>) -> Self {
        Self { copy, ..self }
    }

    /// The same with the time of the last drill of a backup among the metrics.
    pub fn with_drill(self, drill: Drill, registry: &Registry) -> Self {
        let help = "When a backup was last proven to hold the keys in use, by a drill beside this agent; 0 when never";
        let gauge = registry.gauge("keswarden_backup_last_drill_timestamp_seconds", help);
        let verifier = Self { drill: Some((drill, gauge)), ..self };
        verifier.read_drill();
        verifier
    }

    fn read_drill(&self) {
        if let Some((drill, gauge)) = &self.drill {
            gauge.set(drill.last().map_or(0.0, |at| at.as_second() as f64));
        }
    }

    /// Seals the copy on another thread, since the disk may hang. Without a key that was found well, the copy
    /// stays as it is.
    async fn seal_copy(&mut self, results: &[Verified], keyring: &Keyring, clock: &Clock) {
        let Some(copy) = self.copy.clone() else { return };
        if results.iter().all(|verified| verified.result.is_err()) {
            if !results.is_empty() && !self.copy_waits {
                self.copy_waits = true;
                tracing::warn!("no key could be verified: the sealed copy stays as it was, and ends in time");
            }
            return;
        }
        self.copy_waits = false;
        let keys = keyring.all();
        let save = move || copy.save(keys.iter().map(|(name, held)| (name, &**held)));
        match self.blocking.run(save).await {
            Ok(Ok(())) => self.sealed.set(clock.unix_seconds()),
            Ok(Err(finding)) => {
                tracing::error!(cause = finding.cause.id(), "the sealed copy was not written: {finding}");
            }
            Err(hangs) => tracing::error!("the sealed copy was not written: {hangs}"),
        }
    }

    /// Verifies the held keys until the drain, and seals the copy after each verification.
    pub async fn run(mut self, clock: Clock, mut drain: Drain) -> Ended {
        let mut retry = Backoff::new(self.config.interval.min(Duration::from_secs(1)), self.config.interval);
        // With a sealed copy the first verification is at once: the copy must be written, or the start was on
        // it and Vault is awaited.
        let mut delay = if self.copy.is_some() { Duration::ZERO } else { self.config.interval };
        loop {
            if drain.or(tokio::time::sleep(delay)).await.is_none() {
                return Ended::Drained;
            }
            let keyring = self.keyring.borrow_and_update().clone();
            let Some(results) = drain.or(keyring.verify()).await else { return Ended::Drained };
            let good = results.iter().all(|verified| verified.result.is_ok());
            self.report(&results);
            if drain.or(self.seal_copy(&results, &keyring, &clock)).await.is_none() {
                return Ended::Drained;
            }
            self.read_drill();
            // Verifications are more frequent in an outage, so that its end is seen soon.
            delay = if good { self.config.interval } else { retry.next_delay().min(self.config.interval) };
            if good {
                retry.reset();
            }
        }
    }

    /// Reports the later versions of a key once, and again at each change.
    fn report_overwritten(&mut self, name: &str, overwritten: Option<&Finding>) {
        let Some(finding) = overwritten else { return drop(self.overwritten.remove(name)) };
        let before = self.overwritten.insert(name.to_owned(), finding.seen.clone());
        if before.as_ref() != Some(&finding.seen) {
            let says = format!("{}; fix: {}", finding.seen, finding.fix);
            self.health.happened(Severity::Warning, finding.cause.id(), says);
            tracing::error!(key = %name, cause = finding.cause.id(), "the key goes on being served: {finding}");
        }
    }

    fn report(&mut self, results: &[Verified]) {
        let mut keys = serde_json::Map::new();
        // An outage concerns every key, and is one event.
        let mut happened = Vec::new();
        for Verified { name, result, overwritten } in results {
            self.report_overwritten(name.as_str(), overwritten.as_ref());
            let cause = result.as_ref().err().map(|finding| finding.cause);
            let outcome = match cause {
                None => "ok",
                Some(cause) if cause.is_key_lost() => "changed",
                Some(_) => "failed",
            };
            self.runs.with_label_values(&[outcome]).inc();
            keys.insert(name.to_string(), outcome.into());
            let before = match cause {
                None => self.failing.remove(name.as_str()),
                Some(cause) => self.failing.insert(name.to_string(), cause),
            };
            match result {
                _ if before == cause => {}
                Ok(()) => {
                    happened.push((Severity::Normal, "key_verified", "a key is verified again".to_owned()));
                    tracing::info!(key = %name, "the key is verified again");
                }
                Err(finding) if finding.cause.is_key_lost() => {
                    let says =
                        format!("sealing with a key has stopped: {}; fix: {}", finding.seen, finding.fix);
                    happened.push((Severity::Warning, finding.cause.id(), says));
                    tracing::error!(key = %name, cause = finding.cause.id(), "sealing with the key has stopped: {finding}");
                }
                Err(finding) if finding.cause == Cause::KeyDeleted => {
                    let says = format!(
                        "a key was deleted, and is served on: {}; fix: {}",
                        finding.seen, finding.fix
                    );
                    happened.push((Severity::Warning, finding.cause.id(), says));
                    tracing::error!(key = %name, cause = finding.cause.id(), "the key goes on being served, but nobody can load it now: {finding}");
                }
                Err(finding) => {
                    let says = format!("keys are served unverified: {}; fix: {}", finding.seen, finding.fix);
                    happened.push((Severity::Warning, finding.cause.id(), says));
                    tracing::warn!(key = %name, cause = finding.cause.id(), "the key goes on being served, unverified: {finding}");
                }
            }
        }
        happened.dedup();
        for (severity, reason, says) in happened {
            self.health.happened(severity, reason, says);
        }
        self.health.note("verification", keys.into());
    }
}
