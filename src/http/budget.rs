//! What connections may cost: how many at once, how long one may be silent, and who goes when there is no room.
//!
//! A server that is full closes the connection that has been idle longest, so that a client that has something to ask
//! always gets in; a connection with a request under way is never closed for it. Once there is an answer, it is the client
//! who has to take it: an HTTP/2 client may leave room for nothing at all, and would stay for ever.

use crate::clock::{Clock, Instant};
use hyper::rt::{Read, ReadBufCursor, Write};
use std::{
    collections::{BTreeMap, HashMap},
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// From a connection's start, or the first byte of a further request, to the end of its headers (HTTP/1.1; as KES).
pub(super) const HEADERS: Duration = Duration::from_secs(5);
/// How long a connection may have nothing under way (as KES).
pub(super) const IDLE: Duration = Duration::from_secs(90);
/// How long an answer may wait for its client to take it: what KES gives nearly every route, the answer included.
const TAKING: Duration = Duration::from_secs(15);

/// How long one that was told to go may take, before the next is told.
const EVICTION: Duration = Duration::from_millis(100);
/// One place of so many is for those that leave.
const LEAVING: usize = 16;

/// The connections of one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget {
    slots: Arc<Semaphore>,
    /// Places apart for those that say goodbye, so that nobody who comes has to wait for that.
    leaving: Arc<Semaphore>,
    connections: Arc<Mutex<HashMap<u64, Arc<Activity>>>>,
    clock: Clock,
}

/// A connection's place; dropping it makes room.
pub(super) struct Slot {
    pub(super) activity: Arc<Activity>,
    number: u64,
    budget: Budget,
    _permit: OwnedSemaphorePermit,
}

/// What a connection is doing. It is idle when everything that was asked is answered.
pub(super) struct Activity {
    state: Mutex<State>,
    /// It must go, to make room.
    pub(super) evicted: Notify,
    clock: Clock,
}

struct State {
    /// Requests whose last byte is not on its way yet, by number, and since when their answer is there.
    requests: BTreeMap<u64, Option<Instant>>,
    /// How many there were.
    begun: u64,
    /// When the last one was answered, or gone, or the connection started.
    idle_since: Instant,
    /// When the headers that are being read began.
    head_since: Option<Instant>,
}

/// A request, until the last byte of its answer is on its way.
pub(super) struct Busy {
    activity: Arc<Activity>,
    number: u64,
}

// === impl Budget ===

impl Budget {
    pub(super) fn new(places: usize, clock: Clock) -> Self {
        let leaving = places / LEAVING;
        Self {
            slots: Arc::new(Semaphore::new(places - leaving)),
            leaving: Arc::new(Semaphore::new(leaving)),
            connections: Arc::default(),
            clock,
        }
    }

    /// A place for a connection that is there, made at the cost of the one idle longest if there is none.
    pub(super) async fn slot(&self, number: u64) -> Slot {
        let permit = loop {
            let permit = self.slots.clone().acquire_owned();
            let permit = match self.slots.available_permits() {
                0 => {
                    self.evict();
                    tokio::time::timeout(EVICTION, permit).await
                }
                _ => Ok(permit.await),
            };
            if let Ok(permit) = permit {
                break permit.expect("the semaphore must stay open");
            }
        };
        let activity = Arc::new(Activity::new(self.clock.clone()));
        lock(&self.connections).insert(number, activity.clone());
        Slot { activity, number, budget: self.clone(), _permit: permit }
    }

    /// Tells the connection that has been idle longest to go.
    pub(super) fn evict(&self) {
        let connections = lock(&self.connections);
        let idle = connections.values().filter_map(|activity| Some((activity.idle_since()?, activity)));
        if let Some((_, activity)) = idle.min_by_key(|(since, _)| *since) {
            activity.evicted.notify_one();
        }
    }
}

// === impl Slot ===

impl Slot {
    /// Gives the place up to say goodbye elsewhere; false when too many do so already, and it must simply end.
    pub(super) fn leave(&mut self) -> bool {
        let Ok(permit) = self.budget.leaving.clone().try_acquire_owned() else { return false };
        self._permit = permit;
        // It is not told to go once more.
        lock(&self.budget.connections).remove(&self.number);
        true
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        lock(&self.budget.connections).remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Activity ===

impl Activity {
    fn new(clock: Clock) -> Self {
        let now = clock.now();
        let state = State { requests: BTreeMap::new(), begun: 0, idle_since: now, head_since: Some(now) };
        Self { state: Mutex::new(state), evicted: Notify::new(), clock }
    }

    /// A request's headers are there.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        let mut state = lock(&self.state);
        let number = state.begun;
        (state.begun, state.head_since) = (number + 1, None);
        state.requests.insert(number, None);
        Busy { activity: self.clone(), number }
    }

    /// Whether it has been silent, or slow with its headers, or has not taken an answer, for too long.
    pub(super) fn is_overdue(&self, http1: bool) -> bool {
        let (state, now) = (lock(&self.state), self.clock.now());
        let slow = http1 && state.head_since.is_some_and(|since| now - since >= HEADERS);
        let silent = state.is_idle() && (slow || now - state.idle_since >= IDLE);
        silent || state.requests.values().flatten().any(|since| now - *since >= TAKING)
    }

    pub(super) fn is_idle_for(&self, length: Duration) -> bool {
        self.idle_since().is_some_and(|since| self.clock.now() - since >= length)
    }

    fn idle_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        state.is_idle().then_some(state.idle_since)
    }

    fn bytes_came(&self) {
        let mut state = lock(&self.state);
        if state.requests.is_empty() && state.head_since.is_none() {
            state.head_since = Some(self.clock.now());
        }
    }
}

impl State {
    fn is_idle(&self) -> bool {
        self.requests.values().all(Option::is_some)
    }
}

// === impl Busy ===

impl Busy {
    /// The answer is there: the rest is up to the client.
    pub(super) fn answered(&self) {
        let mut state = lock(&self.activity.state);
        let now = self.activity.clock.now();
        state.requests.insert(self.number, Some(now));
        state.idle_since = now;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = lock(&self.activity.state);
        state.requests.remove(&self.number);
        state.idle_since = self.activity.clock.now();
    }
}

/// A stream that tells when bytes come.
pub(super) struct Watched<S> {
    pub(super) stream: S,
    pub(super) activity: Arc<Activity>,
}

impl<S: Read + Unpin> Read for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        self.activity.bytes_came();
        Poll::Ready(Ok(()))
    }
}

impl<S: Write + Unpin> Write for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_may_take_its_time_and_its_answer_may_not_wait_for_long() {
        let activity = Arc::new(Activity::new(Clock::system()));
        let (answered, asked) = (activity.begin(), activity.begin());
        answered.answered();
        assert!(!activity.is_idle_for(Duration::ZERO), "one is under way");
        drop(answered);
        tokio::time::advance(IDLE * 2).await;
        assert!(!activity.is_idle_for(Duration::ZERO) && !activity.is_overdue(true));
        asked.answered();
        assert!(activity.is_idle_for(Duration::ZERO) && !activity.is_overdue(true));
        tokio::time::advance(TAKING).await;
        assert!(activity.is_overdue(true), "nobody took the answer");
        drop(asked);
        assert!(!activity.is_overdue(true));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_makes_room_at_once_and_few_do_so_at_a_time() {
        let budget = Budget::new(LEAVING, Clock::system());
        let mut slots = Vec::new();
        for number in 1..LEAVING as u64 {
            slots.push(budget.slot(number).await);
        }
        assert!(slots[0].leave());
        assert!(!slots[1].leave(), "there is one place to say goodbye from");
        let begun = budget.clock.now();
        let next = budget.slot(0).await;
        assert_eq!(budget.clock.now() - begun, Duration::ZERO);
        drop((next, slots));
        assert!(lock(&budget.connections).is_empty());
        assert_eq!(budget.leaving.available_permits(), 1);
    }
}
