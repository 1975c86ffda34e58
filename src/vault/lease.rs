//! The life of a token, as a pure state machine: what to do, given what was granted and what time it is.
//!
//! TTLs count from before the request was sent. Between half and two thirds of what was granted, by chance so that pods do not march
//! in step, the token is renewed; when that fails, or grants less than a third of the first TTL (the role's maximum is near), a login
//! follows while the old token still serves. `chance` is from 0 up to 1, and the caller's: nothing here is random.

use crate::clock::Instant;
use std::time::Duration;

/// A token's lease.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lease(Option<Held>);

#[derive(Clone, Copy, Debug)]
struct Held {
    /// Absent: it never expires.
    expires: Option<Instant>,
    first_ttl: Duration,
    act_at: Instant,
    renew: bool,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing, and ask again after this long.
    Wait(Duration),
    Renew,
    Login,
}

/// A token that never expires asks for nothing.
const NOTHING_TO_DO: Duration = Duration::from_secs(86_400);
/// How soon a failed login is tried again, more or less.
const RETRY: Duration = Duration::from_secs(5);

// === impl Lease ===

impl Lease {
    /// A login granted a token; `sent` is when it was asked for.
    pub fn granted(sent: Instant, ttl: Option<Duration>, renewable: bool, chance: f64) -> Self {
        let held = match ttl {
            None => Held { expires: None, first_ttl: Duration::ZERO, act_at: sent, renew: false },
            Some(ttl) => Held {
                expires: Some(sent + ttl),
                first_ttl: ttl,
                act_at: sent + early(ttl, chance),
                renew: renewable,
            },
        };
        Self(Some(held))
    }

    /// A renewal granted this much.
    pub fn renewed(&mut self, sent: Instant, ttl: Option<Duration>, renewable: bool, chance: f64) {
        let Some(held) = &mut self.0 else { return };
        let Some(ttl) = ttl else {
            held.expires = None;
            return;
        };
        held.expires = Some(sent + ttl);
        held.renew = renewable && ttl * 3 > held.first_ttl;
        held.act_at = if held.renew { sent + early(ttl, chance) } else { sent };
    }

    /// A renewal failed, for whatever reason: log in, now.
    pub fn renewal_failed(&mut self, now: Instant) {
        if let Some(held) = &mut self.0 {
            (held.renew, held.act_at) = (false, now);
        }
    }

    /// A login failed: try again in a while.
    pub fn failed(&mut self, now: Instant, chance: f64) {
        if let Some(held) = &mut self.0 {
            held.act_at = now + RETRY.mul_f64(0.5 + chance);
        }
    }

    pub fn has_expired(&self, now: Instant) -> bool {
        self.0.and_then(|held| held.expires).is_some_and(|expires| now >= expires)
    }

    pub fn next(&self, now: Instant) -> Action {
        match self.0 {
            Some(Held { expires: Some(_), act_at, renew, .. }) if now >= act_at => match renew {
                true => Action::Renew,
                false => Action::Login,
            },
            Some(Held { expires: Some(_), act_at, .. }) => Action::Wait(act_at - now),
            _ => Action::Wait(NOTHING_TO_DO),
        }
    }
}

/// Between half and two thirds of it.
fn early(ttl: Duration, chance: f64) -> Duration {
    ttl.mul_f64(0.5 + chance / 6.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_periodic_token_is_renewed_for_ever() {
        let start = Instant::now();
        let (mut now, mut renewals) = (start, 0);
        let mut lease = Lease::granted(now, Some(20 * MINUTE), true, 0.99);
        while now < start + Duration::from_secs(30 * 86_400) {
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
    async fn near_the_maximum_it_logs_in_while_the_old_token_serves() {
        let now = Instant::now();
        let mut lease = Lease::granted(now, Some(20 * MINUTE), true, 0.5);
        let later = now + 14 * MINUTE;
        assert_eq!(lease.next(later), Action::Renew);
        lease.renewed(later, Some(2 * MINUTE), true, 0.5);
        assert_eq!(lease.next(later), Action::Login);
        lease.failed(later, 0.5);
        assert!(matches!(lease.next(later), Action::Wait(_)));
        assert!(!lease.has_expired(later + MINUTE));
        assert!(lease.has_expired(later + 2 * MINUTE));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_renewal_leads_to_a_login_before_the_end() {
        let now = Instant::now();
        let mut lease = Lease::granted(now, Some(3 * MINUTE), true, 0.5);
        let later = now + 2 * MINUTE;
        lease.renewal_failed(later);
        assert_eq!(lease.next(later), Action::Login);
        assert!(!lease.has_expired(later));
        assert_eq!(
            Lease::granted(now, None, false, 0.5).next(now + 999 * MINUTE),
            Action::Wait(NOTHING_TO_DO)
        );
    }
}
