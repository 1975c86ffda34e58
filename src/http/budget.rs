//! What connections may cost: how many at once, how long one may be silent, and who goes when there is no room.
//!
//! A server that is full closes the connection that has been idle longest, so that a client that has something to ask
//! always gets in; a connection with a request under way is never closed for it.

use crate::clock::{Clock, Instant};
use hyper::rt::{Read, ReadBufCursor, Write};
use std::{
    collections::HashMap,
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

/// How long one that was told to go may take, before the next is told.
const EVICTION: Duration = Duration::from_millis(100);

/// The connections of one server. Cheap to clone.
#[derive(Clone)]
pub(super) struct Budget {
    slots: Arc<Semaphore>,
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

/// What a connection is doing.
pub(super) struct Activity {
    state: Mutex<State>,
    /// It must go, to make room.
    pub(super) evicted: Notify,
    clock: Clock,
}

struct State {
    /// Requests under way.
    requests: u32,
    /// When the last one ended, or the connection started.
    idle_since: Instant,
    /// When the headers that are being read began.
    head_since: Option<Instant>,
}

/// A request under way.
pub(super) struct Busy(Arc<Activity>);

// === impl Budget ===

impl Budget {
    pub(super) fn new(connections: usize, clock: Clock) -> Self {
        Self { slots: Arc::new(Semaphore::new(connections)), connections: Arc::default(), clock }
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
        let state = State { requests: 0, idle_since: now, head_since: Some(now) };
        Self { state: Mutex::new(state), evicted: Notify::new(), clock }
    }

    /// A request's headers are there.
    pub(super) fn begin(self: &Arc<Self>) -> Busy {
        let mut state = lock(&self.state);
        (state.requests, state.head_since) = (state.requests + 1, None);
        Busy(self.clone())
    }

    /// Whether it has been silent, or slow with its headers, for too long.
    pub(super) fn is_overdue(&self, http1: bool) -> bool {
        let (state, now) = (lock(&self.state), self.clock.now());
        let slow = http1 && state.head_since.is_some_and(|since| now - since >= HEADERS);
        state.requests == 0 && (slow || now - state.idle_since >= IDLE)
    }

    pub(super) fn is_idle(&self) -> bool {
        lock(&self.state).requests == 0
    }

    fn idle_since(&self) -> Option<Instant> {
        let state = lock(&self.state);
        (state.requests == 0).then_some(state.idle_since)
    }

    fn bytes_came(&self) {
        let mut state = lock(&self.state);
        if state.requests == 0 && state.head_since.is_none() {
            state.head_since = Some(self.clock.now());
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        (state.requests, state.idle_since) = (state.requests - 1, self.0.clock.now());
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
