//! The budget of connections: their number, their idle time, and the eviction of idle ones.
//!
//! A full server closes the connection that has been idle longest, so that a new client always gets in. A
//! connection with a request under way is never closed for a new client. A connection whose client does not
//! read its answer counts as idle, and is closed: an HTTP/2 client may announce a window of 0, and would hold
//! the connection for ever.

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

/// The bound of an HTTP/1.1 request's headers, from the connection's start or the request's first byte (as
/// KES).
pub(super) const HEADERS_TIMEOUT: Duration = Duration::from_secs(5);
/// The time that a connection may be idle (as KES).
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The time that a client may take to read an answer. KES gives nearly every route as much, answer included.
const ANSWER_READ_TIMEOUT: Duration = Duration::from_secs(15);

/// The wait for an evicted connection's slot, before another connection is evicted.
const EVICTION_WAIT: Duration = Duration::from_millis(100);
/// One slot of so many is reserved for closing connections.
const SLOTS_PER_CLOSING_SLOT: usize = 16;

/// The connections of one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget {
    slots: Arc<Semaphore>,
    /// Slots of connections that shut down gracefully, so that new clients do not wait for their slots.
    closing: Arc<Semaphore>,
    connections: Arc<Mutex<HashMap<u64, Arc<Activity>>>>,
    clock: Clock,
}

/// A connection's place in the budget, which is free again on drop.
pub(super) struct Slot {
    pub(super) activity: Arc<Activity>,
    number: u64,
    budget: Budget,
    _permit: OwnedSemaphorePermit,
}

/// The activity of a connection. A connection is idle when every request is answered.
pub(super) struct Activity {
    requests: Mutex<Requests>,
    /// Notified when the connection must make room.
    pub(super) evicted: Notify,
    clock: Clock,
}

/// The requests of a connection.
struct Requests {
    /// Requests whose answer is not fully sent, by number, with the time since when the answer is ready.
    open: BTreeMap<u64, Option<Instant>>,
    /// The number of requests so far.
    begun: u64,
    /// The last time that an answer was ready or a request ended; the connection's start before that.
    idle_since: Instant,
    /// The first byte of the headers that are being read.
    head_since: Option<Instant>,
}

/// A request, until the last byte of its answer is sent.
pub(super) struct Busy {
    activity: Arc<Activity>,
    number: u64,
}

// === impl Budget ===

impl Budget {
    pub(super) fn new(places: usize, clock: Clock) -> Self {
        let closing = places / SLOTS_PER_CLOSING_SLOT;
        Self {
            slots: Arc::new(Semaphore::new(places - closing)),
            closing: Arc::new(Semaphore::new(closing)),
            connections: Arc::default(),
            clock,
        }
    }

    /// A slot for a new connection. A full budget evicts the connection that has been idle longest.
    pub(super) async fn slot(&self, number: u64) -> Slot {
        let permit = loop {
            let permit = self.slots.clone().acquire_owned();
            let permit = match self.slots.available_permits() {
                0 => {
                    self.evict();
                    tokio::time::timeout(EVICTION_WAIT, permit).await
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

    /// Notifies the connection that has been idle longest.
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
    /// Trades the slot for one of the closing connections. False when none of those is free: the connection
    /// then ends without a graceful shutdown.
    pub(super) fn leave(&mut self) -> bool {
        let Ok(permit) = self.budget.closing.clone().try_acquire_owned() else { return false };
        self._permit = permit;
        // A closing connection is not evicted.
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
        let requests = Requests { open: BTreeMap::new(), begun: 0, idle_since: now, head_since: Some(now) };
        Self { requests: Mutex::new(requests), evicted: Notify::new(), clock }
    }

    /// Counts a request whose headers are read.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        let mut requests = lock(&self.requests);
        let number = requests.begun;
        (requests.begun, requests.head_since) = (number + 1, None);
        requests.open.insert(number, None);
        Busy { activity: self.clone(), number }
    }

    /// Whether the client was idle, or slow to send headers, or slow to read an answer, for too long.
    pub(super) fn is_overdue(&self, http1: bool) -> bool {
        let (requests, now) = (lock(&self.requests), self.clock.now());
        let slow = http1 && requests.head_since.is_some_and(|since| now - since >= HEADERS_TIMEOUT);
        let silent = requests.is_idle() && (slow || now - requests.idle_since >= IDLE_TIMEOUT);
        silent || requests.open.values().flatten().any(|since| now - *since >= ANSWER_READ_TIMEOUT)
    }

    pub(super) fn is_idle_for(&self, length: Duration) -> bool {
        self.idle_since().is_some_and(|since| self.clock.now() - since >= length)
    }

    fn idle_since(&self) -> Option<Instant> {
        let requests = lock(&self.requests);
        requests.is_idle().then_some(requests.idle_since)
    }

    /// Notes the first byte of a request's headers.
    fn received(&self) {
        let mut requests = lock(&self.requests);
        if requests.open.is_empty() && requests.head_since.is_none() {
            requests.head_since = Some(self.clock.now());
        }
    }
}

impl Requests {
    fn is_idle(&self) -> bool {
        self.open.values().all(Option::is_some)
    }
}

// === impl Busy ===

impl Busy {
    /// Notes that the answer is ready, so that only the client's reading is waited for.
    pub(super) fn answered(&self) {
        let mut requests = lock(&self.activity.requests);
        let now = self.activity.clock.now();
        requests.open.insert(self.number, Some(now));
        requests.idle_since = now;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut requests = lock(&self.activity.requests);
        requests.open.remove(&self.number);
        requests.idle_since = self.activity.clock.now();
    }
}

/// A stream that notes received bytes in an [`Activity`].
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
        self.activity.received();
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
        tokio::time::advance(IDLE_TIMEOUT * 2).await;
        assert!(!activity.is_idle_for(Duration::ZERO) && !activity.is_overdue(true));
        asked.answered();
        assert!(activity.is_idle_for(Duration::ZERO) && !activity.is_overdue(true));
        tokio::time::advance(ANSWER_READ_TIMEOUT).await;
        assert!(activity.is_overdue(true), "nobody took the answer");
        drop(asked);
        assert!(!activity.is_overdue(true));
    }

    #[tokio::test(start_paused = true)]
    async fn a_closing_connection_frees_its_slot_and_few_close_at_a_time() {
        let budget = Budget::new(SLOTS_PER_CLOSING_SLOT, Clock::system());
        let mut slots = Vec::new();
        for number in 1..SLOTS_PER_CLOSING_SLOT as u64 {
            slots.push(budget.slot(number).await);
        }
        assert!(slots[0].leave());
        assert!(!slots[1].leave(), "one slot is for closing connections");
        let begun = budget.clock.now();
        let next = budget.slot(0).await;
        assert_eq!(budget.clock.now() - begun, Duration::ZERO);
        drop((next, slots));
        assert!(lock(&budget.connections).is_empty());
        assert_eq!(budget.closing.available_permits(), 1);
    }
}
