//! The token in use, and its lease.

use super::lease::{Action, Failed, Lease};
use crate::{clock::Instant, secret::Secret};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::sync::Notify;

/// The token in use. Every method takes the time, as [`crate::clock::Clock::theirs`] counts, and chance from 0 up to 1 for jitter.
#[derive(Default)]
pub(super) struct TokenInUse {
    state: Mutex<State>,
    /// Another token is in use, or none.
    changed: Notify,
}

#[derive(Default)]
struct State {
    token: Option<Arc<Secret>>,
    lease: Lease,
    /// The token that was granted last, and when.
    granted: Option<(Arc<Secret>, Instant)>,
}

/// A grant of Vault: how long the token lives from the request on, and whether its lease can be renewed.
#[derive(Clone, Copy)]
pub(super) struct Grant {
    /// When the request was sent.
    pub(super) sent: Instant,
    /// For ever when absent.
    pub(super) ttl: Option<Duration>,
    pub(super) renewable: bool,
}

/// For how long after its grant a standby may not know a token.
const YOUNG_MAX: Duration = Duration::from_secs(1);

// === impl TokenInUse ===

impl TokenInUse {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The token, expired or not.
    pub(super) fn any(&self) -> Option<Arc<Secret>> {
        self.lock().token.clone()
    }

    /// The token, unless its lease has expired.
    pub(super) fn live(&self, now: Instant) -> Option<Arc<Secret>> {
        let state = self.lock();
        let expired = state.lease.has_expired(now);
        state.token.clone().filter(|_| !expired)
    }

    /// Puts a token that was granted just now in use.
    pub(super) fn put(&self, token: Arc<Secret>, grant: Grant, now: Instant, chance: f64) {
        let mut state = self.lock();
        state.token = Some(token.clone());
        state.granted = Some((token, now));
        state.lease.granted(grant.sent, grant.ttl, grant.renewable, chance);
        self.changed.notify_one();
    }

    /// Drops a token that Vault does not know any more. False when another one is in use by now.
    pub(super) fn drop_dead(&self, token: &Arc<Secret>) -> bool {
        let mut state = self.lock();
        let is_in_use = state.holds(token);
        if is_in_use {
            state.token = None;
            state.lease.died();
            self.changed.notify_one();
        }
        is_in_use
    }

    /// When the token was granted, if it is the one that was granted last.
    pub(super) fn granted_at(&self, token: &Arc<Secret>) -> Option<Instant> {
        let state = self.lock();
        state.granted.as_ref().filter(|(known, _)| Arc::ptr_eq(known, token)).map(|(_, at)| *at)
    }

    /// Whether the token is so young that a standby which does not know it is no judge of it.
    pub(super) fn is_young(&self, token: &Arc<Secret>, now: Instant) -> bool {
        self.granted_at(token).is_some_and(|at| now < at + YOUNG_MAX)
    }

    /// Waits until another token is in use, or none.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What the lease needs next.
    pub(super) fn next(&self, now: Instant) -> Action {
        self.lock().lease.next(now)
    }

    /// Whether a login may be tried now: tokens that die faster than they should are not replaced as fast.
    ///
    /// # Errors
    /// How long the next login is to wait.
    pub(super) fn may_log_in(&self, now: Instant) -> Result<(), Duration> {
        self.lock().lease.may_log_in(now)
    }

    pub(super) fn login_failed(&self, now: Instant, chance: f64) {
        self.lock().lease.login_failed(now, chance);
    }

    /// Vault has renewed the token. False when another one is in use by now.
    pub(super) fn renewed(&self, token: &Arc<Secret>, grant: Grant, chance: f64) -> bool {
        let mut state = self.lock();
        let is_in_use = state.holds(token);
        if is_in_use {
            state.lease.renewed(grant.sent, grant.ttl, grant.renewable, chance);
        }
        is_in_use
    }

    /// Vault has not renewed the token. False when another one is in use by now.
    pub(super) fn renewal_failed(&self, token: &Arc<Secret>, now: Instant, why: Failed, chance: f64) -> bool {
        let mut state = self.lock();
        let is_in_use = state.holds(token);
        if is_in_use {
            state.lease.renewal_failed(now, why, chance);
        }
        is_in_use
    }
}

// === impl State ===

impl State {
    fn holds(&self, token: &Arc<Secret>) -> bool {
        self.token.as_ref().is_some_and(|held| Arc::ptr_eq(held, token))
    }
}
