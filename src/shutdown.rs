//! How the process ends: a drain that everybody hears of, signals that start it, tasks that are all joined.

use crate::cause::Finding;
use std::future::Future;
use tokio::{sync::watch, task::JoinSet};

/// Starts the drain. Cheap to clone.
#[derive(Clone)]
pub struct Trigger(watch::Sender<bool>);

/// Hears of the drain. Cheap to clone.
#[derive(Clone)]
pub struct Drain(watch::Receiver<bool>);

/// How a long-running part ended.
#[derive(Debug)]
pub enum Ended {
    /// It was told to drain, and did.
    Drained,
    /// It could not begin; the finding says what to do about it.
    Refused(Finding),
    /// It could not go on; the text says why.
    Failed(String),
}

/// A trigger and what listens to it.
pub fn channel() -> (Trigger, Drain) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Drain(receiver))
}

// === impl Trigger ===

impl Trigger {
    pub fn drain(&self) {
        self.0.send_replace(true);
    }
}

// === impl Drain ===

impl Drain {
    /// Ends when the drain has started, or nobody is left who could start it.
    pub async fn started(&mut self) {
        let _ = self.0.wait_for(|draining| *draining).await;
    }

    pub fn has_started(&self) -> bool {
        *self.0.borrow()
    }

    /// The output of `work`, or nothing when the drain starts first.
    pub async fn or<T>(&mut self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.started() => None,
            output = work => Some(output),
        }
    }
}

/// Tasks that are joined: the first that ends, or panics, is seen.
#[derive(Default)]
pub struct Tasks(JoinSet<(&'static str, Ended)>);

// === impl Tasks ===

impl Tasks {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Ended> + Send + 'static) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// The next task that ends, with its name; nothing when none is left.
    pub async fn next(&mut self) -> Option<(&'static str, Ended)> {
        match self.0.join_next().await? {
            Ok(ended) => Some(ended),
            Err(error) if error.is_panic() => Some(("task", Ended::Failed("it panicked".to_owned()))),
            Err(_) => Some(("task", Ended::Failed("it was cancelled".to_owned()))),
        }
    }

    /// How many have not ended.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn abort_all(&mut self) {
        self.0.abort_all();
    }
}

/// Ends at the first SIGTERM or SIGINT after it was made; names it.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

// === impl Signals ===

impl Signals {
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Ends at each SIGHUP after it was made: read the configuration again.
pub struct Hangups(tokio::signal::unix::Signal);

// === impl Hangups ===

impl Hangups {
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self(signal(SignalKind::hangup())?))
    }

    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}
