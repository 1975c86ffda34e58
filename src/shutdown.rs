//! The end of the process: a drain that every part observes, the signals that start the drain, and tasks that
//! are joined.

use crate::cause::Finding;
use std::future::Future;
use tokio::{sync::watch, task::JoinSet};

/// The side that starts the drain. Cheap to clone.
#[derive(Clone)]
pub struct Trigger(watch::Sender<bool>);

/// The side that observes the drain. Cheap to clone.
#[derive(Clone)]
pub struct Drain(watch::Receiver<bool>);

/// The end of a long-running part.
#[derive(Debug)]
pub enum Ended {
    /// The part ended because of the drain.
    Drained,
    /// The part could not begin, for the cause of the finding.
    Refused(Finding),
    /// The part could not go on, for the reason in the text.
    Failed(String),
}

/// Both sides of a drain.
pub fn channel() -> (Trigger, Drain) {
    let (sender, receiver) = watch::channel(false);
    (Trigger(sender), Drain(receiver))
}

// === impl Trigger ===

impl Trigger {
    /// Starts the drain. Later calls change nothing.
    pub fn drain(&self) {
        self.0.send_replace(true);
    }
}

// === impl Drain ===

impl Drain {
    /// Waits until the drain has started, or every [`Trigger`] is dropped.
    pub async fn started(&mut self) {
        let _ = self.0.wait_for(|draining| *draining).await;
    }

    /// Whether the drain has started.
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

/// Tasks that are joined, so that the first end or panic is noticed.
#[derive(Default)]
pub struct Tasks(JoinSet<(&'static str, Ended)>);

// === impl Tasks ===

impl Tasks {
    /// No tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = Ended> + Send + 'static) {
        self.0.spawn(async move { (name, task.await) });
    }

    /// Waits for the next end of a task, and returns the task's name; nothing when no task is left.
    ///
    /// A task that panicked or was cancelled is `Failed`, under the name `task`.
    pub async fn next(&mut self) -> Option<(&'static str, Ended)> {
        match self.0.join_next().await? {
            Ok(ended) => Some(ended),
            Err(error) if error.is_panic() => Some(("task", Ended::Failed("it panicked".to_owned()))),
            Err(_) => Some(("task", Ended::Failed("it was cancelled".to_owned()))),
        }
    }

    /// The number of tasks whose end [`Tasks::next`] has not returned.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether no task is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Cancels every task.
    pub fn abort_all(&mut self) {
        self.0.abort_all();
    }
}

/// The signals SIGTERM and SIGINT.
pub struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

// === impl Signals ===

impl Signals {
    /// Takes the signals over from here on.
    ///
    /// # Errors
    /// When the operating system takes no handler.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for a signal, and returns the signal's name.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// The signal SIGHUP: a `server` reads its file again, and every process may send credentials again that Vault refused.
pub struct Hangups(tokio::signal::unix::Signal);

// === impl Hangups ===

impl Hangups {
    /// Takes the signal over from here on.
    ///
    /// # Errors
    /// When the operating system takes no handler.
    pub fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self(signal(SignalKind::hangup())?))
    }

    /// Waits for a signal.
    pub async fn next(&mut self) {
        self.0.recv().await;
    }
}
