//! Readiness: not ready is a named guard that somebody holds; and what each part says of itself.

use crate::clock::{self, Clock, Instant};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::broadcast;

/// What `/readyz`, `/startupz` and `/status` read. Cheap to clone.
#[derive(Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
    listeners: broadcast::Sender<Happening>,
    clock: Clock,
}

/// What happened last, for who outlives everybody that anything happens to.
pub struct History(Arc<Mutex<State>>);

/// Something that a person would want to have seen.
#[derive(Clone, Debug)]
pub struct Happening {
    pub at: Timestamp,
    pub severity: Severity,
    /// A cause, or another word of a closed set.
    pub reason: &'static str,
    /// Never a secret, never a name that a client chose.
    pub says: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// So many happenings are remembered.
const HISTORY: usize = 32;

struct State {
    pending: BTreeMap<&'static str, Pending>,
    draining: bool,
    notes: BTreeMap<&'static str, serde_json::Value>,
    history: VecDeque<Happening>,
}

struct Pending {
    since: Instant,
    abandoned: bool,
}

/// While it lives, the process is not ready. Dropping it is not success: only [`Guard::done`] releases.
#[must_use = "a guard that is dropped stays listed as abandoned"]
pub struct Guard {
    name: &'static str,
    health: Health,
    done: bool,
}

/// Why the process is not ready: one text per reason, sorted.
pub type NotReady = Vec<String>;

// === impl Health ===

impl Health {
    pub fn new(clock: Clock) -> Self {
        let state = State {
            pending: BTreeMap::new(),
            draining: false,
            notes: BTreeMap::new(),
            history: VecDeque::with_capacity(HISTORY),
        };
        Self { state: Arc::new(Mutex::new(state)), listeners: broadcast::channel(HISTORY).0, clock }
    }

    /// The process is not ready until the guard is done.
    pub fn until(&self, name: &'static str) -> Guard {
        let pending = Pending { since: self.clock.now(), abandoned: false };
        self.lock().pending.insert(name, pending);
        Guard { name, health: self.clone(), done: false }
    }

    /// From here on the process is not ready, for good.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Ready: everything that was waited for is done, and it is not draining.
    pub fn ready(&self) -> Result<(), NotReady> {
        if self.lock().draining {
            return Err(vec!["draining".to_owned()]);
        }
        self.started()
    }

    /// Started: as ready, but draining does not undo it.
    pub fn started(&self) -> Result<(), NotReady> {
        let now = self.clock.now();
        let waiting: NotReady = self
            .lock()
            .pending
            .iter()
            .map(|(name, Pending { since, abandoned })| match abandoned {
                true => format!("{name} (abandoned)"),
                false => format!("{name} ({})", clock::human(now - *since)),
            })
            .collect();
        if waiting.is_empty() { Ok(()) } else { Err(waiting) }
    }

    /// A part says what it is doing, for `/status`. Never a secret, never a name that a client chose.
    pub fn note(&self, part: &'static str, says: serde_json::Value) {
        self.lock().notes.insert(part, says);
    }

    /// What every part last said.
    pub fn notes(&self) -> BTreeMap<&'static str, serde_json::Value> {
        self.lock().notes.clone()
    }

    /// Remembers it, the last of them for `/status`, and tells those who listen.
    pub fn happened(&self, severity: Severity, reason: &'static str, says: impl Into<String>) {
        let at = Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        let happening = Happening { at, severity, reason, says: says.into() };
        let mut state = self.lock();
        if state.history.len() == HISTORY {
            state.history.pop_front();
        }
        state.history.push_back(happening.clone());
        drop(state);
        let _ = self.listeners.send(happening);
    }

    /// What happened last, the oldest first.
    pub fn history(&self) -> Vec<Happening> {
        self.lock().history.iter().cloned().collect()
    }

    /// What has happened by then, without being somebody who may have something to say.
    pub fn looking_back(&self) -> History {
        History(self.state.clone())
    }

    /// Everything that happens from now on.
    pub fn listen(&self) -> broadcast::Receiver<Happening> {
        self.listeners.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

// === impl History ===

impl History {
    /// Why it is not started, as was last said; nothing once it is.
    pub fn why_it_waits(&self) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let last = state.history.back().filter(|_| !state.pending.is_empty());
        last.map(|happening| happening.says.clone())
    }
}

// === impl Guard ===

impl Guard {
    /// What was waited for is there.
    pub fn done(mut self) {
        self.done = true;
        self.health.lock().pending.remove(self.name);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.done
            && let Some(pending) = self.health.lock().pending.get_mut(self.name)
        {
            pending.abandoned = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_guard_is_done_and_a_drop_is_not_success() {
        let health = Health::new(Clock::system());
        let (gate, listener) = (health.until("gate"), health.until("api"));
        assert_eq!(health.ready().expect_err("must wait").len(), 2);
        gate.done();
        drop(listener);
        assert_eq!(health.ready(), Err(vec!["api (abandoned)".to_owned()]));
        health.until("api").done();
        assert_eq!(health.ready(), Ok(()));
        health.drain();
        assert_eq!((health.ready(), health.started()), (Err(vec!["draining".to_owned()]), Ok(())));
    }
}
