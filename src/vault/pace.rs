//! What an answer of Vault says beside what was asked: when to ask again, and what time it is.

use super::{counted::Metrics, verdict::Answer};
use crate::{
    cause::{Cause, Finding},
    clock::{Clock, Instant},
};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The pause that Vault asked for, and whether its clock and ours differ.
#[derive(Default)]
pub(super) struct Pace(Mutex<State>);

#[derive(Default)]
struct State {
    quiet_until: Option<Instant>,
    /// The two clocks differ, and a line says so.
    is_skewed: bool,
}

/// The longest pause that is kept, whatever Vault asks for.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Seconds that two clocks may differ by: certificates that are just made become valid no later.
const SKEW_MAX: f64 = 60.0;

// === impl Pace ===

impl Pace {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a request while the pause lasts that Vault asked for.
    ///
    /// # Errors
    /// `vault_rate_limited` while the pause lasts.
    pub(super) fn check(&self, address: &str, now: Instant) -> Result<(), Finding> {
        match self.lock().quiet_until.is_some_and(|until| now < until) {
            false => Ok(()),
            true => Err(Cause::VaultRateLimited
                .seen(format!("Vault {address} answered 429 and asked for a pause, which is kept"))),
        }
    }

    /// Notes the pause and the time in an answer.
    pub(super) fn note(&self, answer: &Answer, clock: &Clock, metrics: &Metrics) {
        let mut state = self.lock();
        if let (429, Some(pause)) = (answer.status, answer.retry_after) {
            state.quiet_until = Some(clock.theirs() + pause.min(PAUSE_MAX));
        }
        let Some(date) = answer.date else { return };
        let skew = clock.unix_seconds() - date.as_second() as f64;
        metrics.skew.set(skew);
        let is_skewed = skew.abs() > SKEW_MAX;
        if is_skewed && !state.is_skewed {
            let finding =
                Cause::ClockSkew.seen(format!("this machine's clock and Vault's differ by {skew:.0} s"));
            tracing::warn!(cause = finding.cause.id(), "{finding}");
        }
        state.is_skewed = is_skewed;
    }
}
