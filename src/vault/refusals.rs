//! Credentials that Vault did not take, by whoever in this process sent them: they are not sent again at once. A refused AppRole pair
//! rests for as long as a lockout lasts, since five refusals lock a role out for every pod; anything else rests a little longer each time.

use super::login::Fingerprint;
use crate::{
    cause::Finding,
    clock::{self, Instant},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Shared by every client of a process: one that is made anew, as for a reload, knows what the others were told.
#[derive(Clone, Default)]
pub struct Refusals(Arc<Mutex<HashMap<Fingerprint, Rest>>>);

struct Rest {
    until: Instant,
    /// How often in a row.
    times: u32,
    why: Why,
    finding: Finding,
}

/// Why credentials were not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// Vault says that the pair is wrong, expired or used up.
    BadPair,
    /// Vault says no in another way, and may say yes a moment later.
    Refused,
    /// Vault could not tell.
    Trouble,
    /// Nobody has seen them.
    NotSent,
}

/// A pair that rests, for another process to know.
pub(super) struct Refusal {
    pub(super) credentials: Fingerprint,
    /// From now.
    pub(super) rest: Duration,
    pub(super) finding: Finding,
}

/// As long as OpenBao's lockout, and half as long again by chance: many pods have the same pair.
const REST: Duration = Duration::from_secs(15 * 60);
/// Of a refusal that is not final.
const REFUSED: (Duration, Duration) = (Duration::from_secs(2), Duration::from_secs(30));
/// Of trouble: pods that have seen the same outage do not come back in the same moment.
const TROUBLE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));
/// What rests no longer is forgotten when there is so much.
const MOST: usize = 64;

// === impl Refusals ===

impl Refusals {
    /// Refuses in Vault's stead what Vault refused a while ago.
    pub(super) fn check(&self, credentials: &Fingerprint, now: Instant) -> Result<(), Finding> {
        let rests = self.lock();
        let Some(Rest { until, why, finding, .. }) = rests.get(credentials).filter(|rest| now < rest.until)
        else {
            return Ok(());
        };
        // What rests for a moment is no news; what rests for long is said, so that nobody waits in vain.
        Err(match why {
            Why::BadPair => finding.clone().fix(format!(
                "{}; the same pair is not sent again for {}, unless its file changes or a SIGHUP comes, lest Vault lock the role out",
                finding.cause.usual_fix(),
                clock::human(*until - now)
            )),
            Why::Refused | Why::Trouble | Why::NotSent => finding.clone(),
        })
    }

    /// Vault did not take them. `chance` is from 0 up to 1.
    pub(super) fn note(
        &self,
        credentials: Fingerprint,
        why: Why,
        finding: &Finding,
        now: Instant,
        chance: f64,
    ) {
        let mut rests = self.lock();
        if rests.len() >= MOST {
            rests.retain(|_, rest| now < rest.until);
        }
        let times = rests.get(&credentials).map_or(0, |rest| rest.times);
        let doubled =
            |(least, most): (Duration, Duration)| least.saturating_mul(1 << times.min(10)).min(most);
        let rest = match why {
            Why::BadPair => REST + REST.mul_f64(chance / 2.0),
            Why::Refused => doubled(REFUSED).mul_f64(0.5 + chance / 2.0),
            Why::Trouble => doubled(TROUBLE).mul_f64(chance),
            Why::NotSent => Duration::ZERO,
        };
        let rest = Rest { until: now + rest, times: times.saturating_add(1), why, finding: finding.clone() };
        rests.insert(credentials, rest);
    }

    /// Vault has taken them.
    pub(super) fn forget(&self, credentials: &Fingerprint) {
        self.lock().remove(credentials);
    }

    /// Somebody says that everything is worth another try.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// What the process before was refused.
    pub(super) fn remember(&self, Refusal { credentials, rest, finding }: Refusal, now: Instant) {
        let rest = Rest { until: now + rest, times: 1, why: Why::BadPair, finding };
        self.lock().entry(credentials).or_insert(rest);
    }

    /// What the next process must know of these.
    pub(super) fn to_be_remembered(&self, credentials: &Fingerprint, now: Instant) -> Option<Refusal> {
        let rests = self.lock();
        let Rest { until, why, finding, .. } = rests.get(credentials)?;
        let rest = until.saturating_duration_since(now);
        let refusal = Refusal { credentials: *credentials, rest, finding: finding.clone() };
        (*why == Why::BadPair && !rest.is_zero()).then_some(refusal)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Fingerprint, Rest>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cause::Cause;

    #[tokio::test(start_paused = true)]
    async fn a_bad_pair_rests_for_a_lockout_and_anything_else_for_a_moment() {
        let (refusals, now, finding) =
            (Refusals::default(), Instant::now(), Cause::LoginRefused.seen("as the test says"));
        let rests = |why: Why, times: u32, chance: f64| {
            let refusals = Refusals::default();
            (0..times).for_each(|_| refusals.note([1; 32], why, &finding, now, chance));
            let mut rest = Duration::ZERO;
            while refusals.check(&[1; 32], now + rest).is_err() {
                rest += Duration::from_millis(10);
            }
            rest.as_secs_f64()
        };
        assert_eq!(rests(Why::BadPair, 1, 0.0), 900.0);
        assert_eq!(rests(Why::BadPair, 3, 1.0), 1350.0);
        assert_eq!([1, 2, 3, 9].map(|times| rests(Why::Refused, times, 1.0)), [2.0, 4.0, 8.0, 30.0]);
        assert_eq!(rests(Why::Refused, 9, 0.0), 15.0);
        assert_eq!([1, 2, 9].map(|times| rests(Why::Trouble, times, 1.0)), [0.5, 1.0, 5.0]);
        assert_eq!(rests(Why::Trouble, 9, 0.0), 0.0);

        refusals.note([1; 32], Why::BadPair, &finding, now, 0.5);
        assert!(refusals.check(&[2; 32], now).is_ok(), "others are not concerned");
        let another = refusals.clone();
        let told = another.check(&[1; 32], now).expect_err("every client of the process knows");
        assert!(told.fix.contains("not sent again for 18m45s"), "{}", told.fix);
        let kept = refusals.to_be_remembered(&[1; 32], now).expect("the next process must know");
        let next = Refusals::default();
        next.remember(kept, now);
        assert!(next.check(&[1; 32], now + REST).is_err());
        next.clear();
        assert!(next.check(&[1; 32], now).is_ok());
    }
}
