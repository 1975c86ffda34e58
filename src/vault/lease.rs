//! The life of a token, as a pure state machine: what to do, given what has happened and what time it is.
//!
//! TTLs count from before the request was sent. Between half and two thirds of what was granted, by chance so that pods do not march
//! in step, the token is renewed. A renewal that fails because Vault is away is tried again: a token outlives a seal. One that is
//! refused, or of which little is left, is followed by a login while the old token still serves. A token that cannot be renewed, or not
//! beyond the role's maximum, is replaced shortly before its end. `chance` is from 0 up to 1, and the caller's: nothing here is random.

use crate::clock::Instant;
use std::time::Duration;

/// A token's lease, and what tokens before it have come to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease {
    held: Option<Held>,
    deaths: Deaths,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    /// What was last granted as a whole.
    ttl: Duration,
    /// Absent: it never expires.
    expires: Option<Instant>,
    act_at: Instant,
    step: Step,
    /// It can be renewed beyond what it has.
    renewable: bool,
    /// Renewals and logins that failed since the last that did not.
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Renew,
    Login,
}

/// Tokens that died before their end: a few may be replaced at once, and then one in each [`PERIOD`]. Whoever revokes them, or uses
/// them up, must not be answered by a storm of logins.
#[derive(Clone, Copy, Debug, Default)]
struct Deaths {
    /// The last token died, and none has come in its place.
    mourned: bool,
    /// When as many as ever may be replaced at once.
    full_at: Option<Instant>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, and ask again after this long.
    Wait(Duration),
    Renew,
    Login,
}

/// Why a renewal failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failed {
    /// Vault did not answer, or not as who can do anything: sealed, without a leader, overloaded.
    Away,
    /// Vault has said no.
    Refused,
}

/// A token that never expires asks for nothing.
const NOTHING_TO_DO: Duration = Duration::from_secs(86_400);
/// How soon what failed is tried again, more or less; doubled each time, up to the most.
const RETRY: Duration = Duration::from_secs(4);
const MOST: Duration = Duration::from_secs(30);
/// A failover leaves no node that renews or logs in for 12 s and more (seen on three nodes of OpenBao 2.7.2): so much is left for the
/// last login, if the token lives long enough.
const MARGIN: Duration = Duration::from_secs(30);
/// Answers are rounded to seconds.
const ROUNDING: Duration = Duration::from_secs(1);
/// So many dead tokens in a row are replaced at once, and one in each such time.
const AT_ONCE: u32 = 4;
const PERIOD: Duration = Duration::from_secs(30);

// === impl Lease ===

impl Lease {
    /// A login granted a token; `sent` is when it was asked for.
    pub fn granted(&mut self, sent: Instant, ttl: Option<Duration>, renewable: bool, chance: f64) {
        if std::mem::take(&mut self.deaths.mourned) {
            self.deaths.full_at = Some(self.deaths.full_after(sent));
        }
        self.held = Some(Held::new(sent, ttl, renewable, chance));
    }

    /// A renewal granted this much.
    pub fn renewed(&mut self, sent: Instant, ttl: Option<Duration>, renewable: bool, chance: f64) {
        let Some(held) = &mut self.held else { return };
        // Less than the last time: the role's maximum is near, and no renewal goes beyond.
        let is_capped = ttl.is_some_and(|ttl| ttl + ROUNDING < held.ttl);
        *held = Held::new(sent, ttl, renewable && !is_capped, chance);
    }

    /// A renewal failed. While Vault is away it is tried again, for as long as there is time for a login afterwards.
    pub fn renewal_failed(&mut self, now: Instant, why: Failed, chance: f64) {
        let Some(held) = &mut self.held else { return };
        let has_time = held.expires.is_none_or(|expires| now + last_part(held.ttl) < expires);
        if why == Failed::Away && has_time {
            held.again(now, Step::Renew, chance);
        } else {
            (held.step, held.act_at) = (Step::Login, now);
        }
    }

    /// A login failed: in a while the old token is tried again, if there is anything left of it.
    pub fn login_failed(&mut self, now: Instant, chance: f64) {
        let Some(held) = &mut self.held else { return };
        let step = if held.renewable && !held.has_expired(now) { Step::Renew } else { Step::Login };
        held.again(now, step, chance);
    }

    /// The token was found dead before its end.
    pub fn died(&mut self) {
        self.held = None;
        self.deaths.mourned = true;
    }

    /// Whether a login may be tried; how long not, where tokens die faster than they should.
    pub fn may_log_in(&self, now: Instant) -> Result<(), Duration> {
        if !self.deaths.mourned {
            return Ok(());
        }
        let wait = (self.deaths.full_after(now) - now).saturating_sub(PERIOD * AT_ONCE);
        if wait.is_zero() { Ok(()) } else { Err(wait) }
    }

    pub fn has_expired(&self, now: Instant) -> bool {
        self.held.is_some_and(|held| held.has_expired(now))
    }

    pub fn next(&self, now: Instant) -> Action {
        match self.held {
            // Nothing is left to be renewed, as after a suspension.
            Some(held) if held.has_expired(now) && held.step == Step::Renew => Action::Login,
            Some(Held { expires: Some(_), act_at, step, .. }) if now >= act_at => match step {
                Step::Renew => Action::Renew,
                Step::Login => Action::Login,
            },
            Some(Held { expires: Some(_), act_at, .. }) => Action::Wait(act_at - now),
            _ => Action::Wait(NOTHING_TO_DO),
        }
    }
}

// === impl Deaths ===

impl Deaths {
    /// When all may be replaced at once again, if one is replaced now.
    fn full_after(&self, now: Instant) -> Instant {
        self.full_at.map_or(now, |at| at.max(now)) + PERIOD
    }
}

// === impl Held ===

impl Held {
    fn new(sent: Instant, ttl: Option<Duration>, renewable: bool, chance: f64) -> Self {
        let whole = ttl.unwrap_or_default();
        let (step, after) = match renewable {
            true => (Step::Renew, early(whole, chance)),
            false => (Step::Login, late(whole, chance)),
        };
        let expires = ttl.map(|ttl| sent + ttl);
        // However little was granted, nobody asks without a pause.
        let act_at = sent + after.max(ROUNDING / 2);
        Self { ttl: whole, expires, act_at, step, renewable, failures: 0 }
    }

    fn has_expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| now >= expires)
    }

    /// Later, by chance: all pods have seen the same outage.
    fn again(&mut self, now: Instant, step: Step, chance: f64) {
        let bound = RETRY.saturating_mul(1 << self.failures.min(8)).min(MOST);
        // A token that lives shortly cannot wait for long.
        let bound = bound.min((self.ttl / 8).max(ROUNDING));
        self.failures = self.failures.saturating_add(1);
        (self.step, self.act_at) = (step, now + bound.mul_f64(0.25 + chance * 0.75));
    }
}

/// Between half and two thirds of it.
fn early(ttl: Duration, chance: f64) -> Duration {
    ttl.mul_f64(0.5 + chance / 6.0)
}

/// Shortly before its end: one login for each life.
fn late(ttl: Duration, chance: f64) -> Duration {
    ttl - last_part(ttl).mul_f64(1.0 - chance / 4.0)
}

/// What must be left for a login: a tenth, and no less than a failover takes, where there is so much.
fn last_part(ttl: Duration) -> Duration {
    (ttl / 10).max(MARGIN).min(ttl / 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn granted(now: Instant, ttl: Duration, renewable: bool) -> Lease {
        let mut lease = Lease::default();
        lease.granted(now, Some(ttl), renewable, 0.5);
        lease
    }

    #[tokio::test(start_paused = true)]
    async fn a_periodic_token_is_renewed_for_ever() {
        let start = Instant::now();
        let (mut now, mut renewals) = (start, 0);
        let mut lease = granted(now, 20 * MINUTE, true);
        while now - start < 30 * 24 * 60 * MINUTE {
            assert!(!lease.has_expired(now), "a token must never be used after its end");
            match lease.next(now) {
                Action::Wait(delay) => now += delay,
                Action::Renew => {
                    lease.renewed(now, Some(20 * MINUTE), true, 0.99);
                    renewals += 1;
                }
                Action::Login => panic!("a token that can be renewed must not need a login"),
            }
        }
        assert!((3000..3400).contains(&renewals), "{renewals} renewals in 30 days of 20 minute tokens");
    }

    #[tokio::test(start_paused = true)]
    async fn near_the_maximum_it_logs_in_once_while_the_old_token_serves() {
        let now = Instant::now();
        let mut lease = granted(now, 20 * MINUTE, true);
        let later = now + 14 * MINUTE;
        assert_eq!(lease.next(later), Action::Renew);
        // Capped: it is used on, and replaced shortly before its end.
        lease.renewed(later, Some(10 * MINUTE), true, 0.5);
        assert!(matches!(lease.next(later + 8 * MINUTE), Action::Wait(_)));
        let last = later + 9 * MINUTE + Duration::from_secs(20);
        assert_eq!((lease.next(last), lease.has_expired(last)), (Action::Login, false));
        lease.login_failed(last, 0.5);
        assert!(matches!(lease.next(last), Action::Wait(_)));
        assert!(lease.has_expired(later + 10 * MINUTE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_is_refused_leads_to_a_login_and_one_without_an_answer_to_another() {
        let now = Instant::now();
        let mut lease = granted(now, 20 * MINUTE, true);
        let later = now + 12 * MINUTE;
        lease.renewal_failed(later, Failed::Refused, 0.5);
        assert_eq!((lease.next(later), lease.has_expired(later)), (Action::Login, false));

        let mut lease = granted(now, 20 * MINUTE, true);
        let mut at = later;
        while at < now + 18 * MINUTE {
            match lease.next(at) {
                Action::Wait(delay) => at += delay,
                Action::Renew => lease.renewal_failed(at, Failed::Away, 0.5),
                Action::Login => panic!("the old token may outlive the outage: {:?}", at - now),
            }
        }
        // The outage lasts: a login is tried before the end as well, and then both by turns.
        let (mut renewals, mut logins) = (0, 0);
        while at < now + 20 * MINUTE {
            match lease.next(at) {
                Action::Wait(delay) => at += delay,
                Action::Renew => {
                    renewals += 1;
                    lease.renewal_failed(at, Failed::Away, 0.5);
                }
                Action::Login => {
                    logins += 1;
                    lease.login_failed(at, 0.5);
                }
            }
        }
        assert!(renewals > 2 && logins > 2, "{renewals} renewals, {logins} logins");
        lease.login_failed(at, 0.5);
        assert_eq!(lease.next(at + MOST), Action::Login, "nothing is left to be renewed");
        let mut for_ever = Lease::default();
        for_ever.granted(now, None, false, 0.5);
        assert_eq!(for_ever.next(now + 999 * MINUTE), Action::Wait(NOTHING_TO_DO));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_die_at_once_are_no_reason_for_a_storm() {
        let now = Instant::now();
        let mut lease = Lease::default();
        let (mut at, mut logins) = (now, 0_u32);
        while at < now + 60 * MINUTE {
            match lease.may_log_in(at) {
                Ok(()) => {
                    lease.granted(at, Some(20 * MINUTE), true, 0.5);
                    lease.died();
                    logins += 1;
                }
                Err(wait) => at += wait,
            }
        }
        assert!((120..=126).contains(&logins), "{logins} logins in an hour");
        lease.granted(at, Some(20 * MINUTE), true, 0.5);
        assert_eq!(lease.may_log_in(at), Ok(()), "a token that has ended is nobody's fault");
    }
}
