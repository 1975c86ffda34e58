//! The writer: the only side that changes the set of held keys, and the only side that gets the store's
//! answers.

use super::{
    Held, Reply, Request, Snapshot, missing,
    worker::{Outcome, Worker},
};
use crate::{
    cause::{Cause, Finding},
    clock::Instant,
    crypto::{Kind, key_version::KeyVersion},
    names::Name,
    store::Error,
};
use jiff::Timestamp;
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, watch};

/// The side that asks the store and changes the set of held keys.
pub struct KeyringWriter {
    snapshot: watch::Sender<Arc<Snapshot>>,
    requests: mpsc::Receiver<Request>,
    worker: Arc<Worker>,
}

/// Bound of the time for which "there is no such key" is cached.
const ABSENCE_CACHE_MAX: Duration = Duration::from_millis(500);

// === impl KeyringWriter ===

impl KeyringWriter {
    pub(super) fn new(
        snapshot: watch::Sender<Arc<Snapshot>>,
        requests: mpsc::Receiver<Request>,
        worker: Arc<Worker>,
    ) -> Self {
        Self { snapshot, requests, worker }
    }

    /// Reads, parses, tries and holds a key. No witness is asked.
    ///
    /// # Errors
    /// When the store has no such key or cannot give the key, or the stored text is no key that works.
    pub async fn load(&self, name: &Name) -> Result<Arc<Held>, Error> {
        let held = self.look(name).await?;
        self.hold(name, held.clone());
        Ok(held)
    }

    /// Reads, parses and tries a key without holding it, for the gate.
    ///
    /// # Errors
    /// As for `load`.
    pub async fn look(&self, name: &Name) -> Result<Arc<Held>, Error> {
        self.worker.load(name).await
    }

    /// A key of the sealed copy, as a key to hold. `verified` is the time of the last good verification, as
    /// [`Clock::boot`] counts.
    ///
    /// [`Clock::boot`]: crate::clock::Clock::boot
    pub fn copied(&self, version: Arc<KeyVersion>, verified: Duration, lost: bool) -> Held {
        let fingerprint = version.key.fingerprint();
        Held { version, fingerprint, lost, verified, absent: None }
    }

    /// The key, if it is held.
    pub fn held(&self, name: &Name) -> Option<Arc<Held>> {
        self.snapshot.borrow().get(name).cloned()
    }

    /// Holds a key: from now on readers get the key.
    pub fn hold(&self, name: &Name, held: Arc<Held>) {
        self.snapshot.send_modify(|snapshot| drop(Arc::make_mut(snapshot).insert(name.clone(), held)));
    }

    /// Creates a new key in the store, HMAC key included, with `by` as its maker, and reads the key back. The
    /// key is not held yet.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken, and otherwise when the store failed, or the key does not
    /// work.
    pub async fn create(&self, name: &Name, by: &str, now: Timestamp) -> Result<Arc<Held>, Error> {
        let version = KeyVersion::generate(Kind::of_this_machine(), now, by.to_owned());
        self.worker.store.create(name, &version.to_text()).await?;
        self.look(name).await
    }

    /// Answers the readers' requests until no reader is left.
    pub async fn run(mut self) {
        let mut work = Work::default();
        loop {
            tokio::select! {
                request = self.requests.recv() => match request {
                    None => return,
                    Some(Request::Load(name, reply)) => self.look_up(&mut work, name, reply),
                    Some(other) => {
                        let (worker, snapshot) = (self.worker.clone(), self.snapshot.clone());
                        work.tasks.spawn(async move { worker.serve(other, &snapshot).await });
                    }
                },
                Some(done) = work.tasks.join_next_with_id() => match done {
                    Ok((task, outcome)) => {
                        work.loads.remove(&task);
                        self.take(&mut work, outcome);
                    }
                    Err(error) => {
                        tracing::error!("a task of the key store failed: {error}");
                        if let Some(name) = work.loads.remove(&error.id()) {
                            work.answer(&name, &Err(Error::Failed(failed(&name))));
                        }
                    }
                },
            }
        }
    }

    /// Answers a look-up from the held keys or the cached absences, or asks the store: once for any number of
    /// waiting look-ups.
    fn look_up(&self, work: &mut Work, name: Name, reply: Reply<Arc<Held>>) {
        let now = self.worker.clock.now();
        work.absent.retain(|_, at| now < *at + ABSENCE_CACHE_MAX);
        if let Some(held) = self.snapshot.borrow().get(&name) {
            let _ = reply.send(Ok(held.clone()));
        } else if work.absent.contains_key(&name) {
            let _ = reply.send(Err(Error::Missing(missing(&name))));
        } else if let Some(others) = work.waiting.get_mut(&name) {
            others.push(reply);
        } else {
            work.waiting.insert(name.clone(), vec![reply]);
            work.load(&self.worker, name);
        }
    }

    fn take(&self, work: &mut Work, outcome: Outcome) {
        match outcome {
            // A look-up concurrent with a creation or a deletion may have read the state before: read again.
            Outcome::Loaded(name, _) if work.changed.remove(&name) => work.load(&self.worker, name),
            Outcome::Loaded(name, result) => {
                match &result {
                    Ok(held) => self.hold(&name, held.clone()),
                    Err(Error::Missing(_)) => {
                        work.absent.insert(name.clone(), self.worker.clock.now());
                    }
                    Err(_) => {}
                }
                work.answer(&name, &result);
            }
            // The cached absence ends before the reply, since the client may ask for the new key at once.
            Outcome::Created(name, reply, result) => {
                work.is_changed(name);
                let _ = reply.send(result);
            }
            Outcome::Deleted(name, reply) => {
                self.snapshot.send_modify(|snapshot| drop(Arc::make_mut(snapshot).remove(&name)));
                self.worker.metrics.forget(&name);
                work.is_changed(name);
                let _ = reply.send(Ok(()));
            }
            Outcome::Nothing => {}
        }
    }
}

/// The work under way.
#[derive(Default)]
struct Work {
    tasks: tokio::task::JoinSet<Outcome>,
    /// The key that each task loads, so that waiting look-ups get an answer when a task fails.
    loads: HashMap<tokio::task::Id, Name>,
    /// The look-ups that wait for each key.
    waiting: HashMap<Name, Vec<Reply<Arc<Held>>>>,
    /// Keys that were created or deleted while being loaded.
    changed: HashSet<Name>,
    /// The cached absences, with the time of each.
    absent: HashMap<Name, Instant>,
}

// === impl Work ===

impl Work {
    fn load(&mut self, worker: &Arc<Worker>, name: Name) {
        let (worker, wanted) = (worker.clone(), name.clone());
        let task =
            self.tasks.spawn(async move { Outcome::Loaded(wanted.clone(), worker.find(&wanted).await) });
        self.loads.insert(task.id(), name);
    }

    fn is_changed(&mut self, name: Name) {
        self.absent.remove(&name);
        if self.waiting.contains_key(&name) {
            self.changed.insert(name);
        }
    }

    fn answer(&mut self, name: &Name, result: &Result<Arc<Held>, Error>) {
        self.changed.remove(name);
        for reply in self.waiting.remove(name).unwrap_or_default() {
            let _ = reply.send(share(result));
        }
    }
}

fn failed(name: &Name) -> Finding {
    Cause::StoreUnavailable.seen(format!("loading the key '{name}' ended unexpectedly"))
}

/// A copy of a result, for one of the waiting look-ups.
fn share(result: &Result<Arc<Held>, Error>) -> Result<Arc<Held>, Error> {
    match result {
        Ok(held) => Ok(held.clone()),
        Err(Error::Missing(finding)) => Err(Error::Missing(finding.clone())),
        Err(Error::Failed(finding)) => Err(Error::Failed(finding.clone())),
        Err(Error::Exists) => Err(Error::Exists),
    }
}
