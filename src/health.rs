//! Readiness, events and notes. The process is not ready while a part holds a named guard.

use crate::clock::{self, Clock, Instant};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
};
use tokio::sync::broadcast;

/// The state behind `/readyz`, `/startupz` and `/status`. Clones are cheap and share the state.
#[derive(Clone)]
pub struct Health {
    state: Arc<Mutex<State>>,
    listeners: broadcast::Sender<Happening>,
    clock: Clock,
}

/// A reader of the last happenings, which does not keep the channel of happenings open.
pub struct History(Arc<Mutex<State>>);

/// An event that a person should see.
#[derive(Clone, Debug)]
pub struct Happening {
    /// The time of the event.
    pub at: Timestamp,
    /// Whether the event is a warning.
    pub severity: Severity,
    /// A cause's id, or another word of a closed set.
    pub reason: &'static str,
    /// The text for people, without secrets and without names that a client chose.
    pub says: String,
}

/// The severity of a happening, as in Kubernetes' Events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is wrong.
    Normal,
    /// A person should act.
    Warning,
}

/// Happenings that are kept at most.
const HISTORY_MAX: usize = 32;

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

/// A reason for not being ready. Only [`Guard::done`] ends the reason; a drop marks the reason as abandoned.
#[must_use = "a guard that is dropped stays listed as abandoned"]
pub struct Guard {
    name: &'static str,
    health: Health,
    done: bool,
}

/// The reasons for not being ready: one text per reason, sorted.
pub type NotReady = Vec<String>;

// === impl Health ===

impl Health {
    /// A health without guards: ready.
    pub fn new(clock: Clock) -> Self {
        let state = State {
            pending: BTreeMap::new(),
            draining: false,
            notes: BTreeMap::new(),
            history: VecDeque::with_capacity(HISTORY_MAX),
        };
        Self { state: Arc::new(Mutex::new(state)), listeners: broadcast::channel(HISTORY_MAX).0, clock }
    }

    /// A guard called `name`: the process is not ready until the guard is done.
    pub fn until(&self, name: &'static str) -> Guard {
        let pending = Pending { since: self.clock.now(), abandoned: false };
        self.lock().pending.insert(name, pending);
        Guard { name, health: self.clone(), done: false }
    }

    /// Makes the process not ready, for good.
    pub fn drain(&self) {
        self.lock().draining = true;
    }

    /// Whether the process is ready: every guard is done, and no drain has started.
    ///
    /// # Errors
    /// The reasons for not being ready.
    pub fn ready(&self) -> Result<(), NotReady> {
        if self.lock().draining {
            return Err(vec!["draining".to_owned()]);
        }
        self.started()
    }

    /// Whether every guard is done, drain or not.
    ///
    /// # Errors
    /// The guards that are not done, each with its age.
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

    /// Replaces the note of a part, for `/status`. A note has no secrets and no names that a client chose.
    pub fn note(&self, part: &'static str, says: serde_json::Value) {
        self.lock().notes.insert(part, says);
    }

    /// The note of each part.
    pub fn notes(&self) -> BTreeMap<&'static str, serde_json::Value> {
        self.lock().notes.clone()
    }

    /// Records a happening for `/status`, which shows the last 32, and sends the happening to listeners.
    pub fn happened(&self, severity: Severity, reason: &'static str, says: impl Into<String>) {
        let at = self.clock.timestamp();
        let happening = Happening { at, severity, reason, says: says.into() };
        let mut state = self.lock();
        if state.history.len() == HISTORY_MAX {
            state.history.pop_front();
        }
        state.history.push_back(happening.clone());
        drop(state);
        let _ = self.listeners.send(happening);
    }

    /// The last 32 happenings, the oldest first.
    pub fn history(&self) -> Vec<Happening> {
        self.lock().history.iter().cloned().collect()
    }

    /// A reader of the last happenings, which does not keep the channel of [`Health::listen`] open.
    pub fn looking_back(&self) -> History {
        History(self.state.clone())
    }

    /// The happenings from now on. A listener that lags by more than 32 loses the oldest.
    pub fn listen(&self) -> broadcast::Receiver<Happening> {
        self.listeners.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

// === impl History ===

impl History {
    /// The text of the last happening while a guard is not done; nothing once all are done.
    pub fn why_it_waits(&self) -> Option<String> {
        let state = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let last = state.history.back().filter(|_| !state.pending.is_empty());
        last.map(|happening| happening.says.clone())
    }
}

// === impl Guard ===

impl Guard {
    /// Ends the reason for not being ready.
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
