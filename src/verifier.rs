//! Re-verification: at an interval every key at hand is fetched again, compared and tried.
//!
//! An outage changes nothing but a metric and a log line; another key under the same name stops sealing, at once.

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

/// How often.
#[derive(Clone, Debug)]
pub struct Config {
    pub interval: Duration,
}

/// Verifies until the drain.
pub struct Verifier {
    config: Config,
    /// The one in use now.
    keyring: watch::Receiver<Keyring>,
    health: Health,
    /// Sealed anew after every verification that found a key well.
    copy: Option<Arc<SealedCopy>>,
    sealed: Gauge,
    /// It was not, the last time.
    copy_waits: bool,
    blocking: Blocking,
    drill: Option<(Drill, Gauge)>,
    runs: IntCounterVec,
    /// What is wrong with which key, as last logged.
    known: BTreeMap<String, Cause>,
    /// What is odd about which key, as last logged.
    overwritten: BTreeMap<String, String>,
}

// === impl Verifier ===

impl Verifier {
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
            known: BTreeMap::new(),
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
        verifier.look_for_drill();
        verifier
    }

    fn look_for_drill(&self) {
        if let Some((drill, gauge)) = &self.drill {
            gauge.set(drill.last().map_or(0.0, |at| at.as_second() as f64));
        }
    }

    /// On a thread of its own: the disk may hang. No result at all is no proof of anything.
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

    pub async fn run(mut self, clock: Clock, mut drain: Drain) -> Ended {
        let mut retry = Backoff::new(self.config.interval.min(Duration::from_secs(1)), self.config.interval);
        // The first look is at once where there is a copy to be written, and a Vault to be waited for.
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
            self.look_for_drill();
            // An outage is looked at more often, so that its end is seen soon.
            delay = if good { self.config.interval } else { retry.next_delay().min(self.config.interval) };
            if good {
                retry.reset();
            }
        }
    }

    /// Once, and again when it has changed.
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
        // An outage concerns every key, and is one thing that happened.
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
                None => self.known.remove(name.as_str()),
                Some(cause) => self.known.insert(name.to_string(), cause),
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
