//! The keys at hand: readers see one consistent set without a lock over an await; one writer changes it.
//!
//! A look-up that misses asks the store, by message to the writer's side: once, however many ask for the same name. So a key
//! that another pod made a second ago is used at its first mention, and no slow store ever delays a key that is here.

use crate::{
    cause::{Cause, Finding},
    clock::{Clock, Instant},
    crypto::{Kind, key_version::KeyVersion},
    metrics::Registry,
    names::Name,
    secret::{Bytes32, Secret},
    store::{Error, KeyStore},
};
use jiff::Timestamp;
use prometheus::{GaugeVec, IntGaugeVec};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::sync::{mpsc, oneshot, watch};

/// A key that was read, parsed and tried.
pub struct Held {
    pub version: Arc<KeyVersion>,
    pub fingerprint: String,
    /// The store holds other bytes, or none, under this name now: it opens, but seals no more.
    pub lost: bool,
    /// When it was last fetched and compared, as [`Clock::boot`] counts.
    pub verified: Duration,
}

/// For how long after its last good verification a key is used; absent: without limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub open: Option<Duration>,
    pub seal: Option<Duration>,
}

type Snapshot = HashMap<Name, Arc<Held>>;

/// Reads keys. Cheap to clone.
#[derive(Clone)]
pub struct Keyring {
    snapshot: watch::Receiver<Arc<Snapshot>>,
    requests: mpsc::Sender<Request>,
}

/// The one side that talks to the store and changes the set.
pub struct KeyringWriter {
    snapshot: watch::Sender<Arc<Snapshot>>,
    requests: mpsc::Receiver<Request>,
    worker: Arc<Worker>,
}

/// What the writer's tasks share.
struct Worker {
    store: Arc<dyn KeyStore>,
    clock: Clock,
    metrics: Metrics,
}

struct Metrics {
    verified: GaugeVec,
    mismatch: IntGaugeVec,
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

enum Request {
    Load(Name, Reply<Arc<Held>>),
    Create(Name, Box<KeyVersion>, Reply<()>),
    Delete(Name, Reply<()>),
    List(Reply<Vec<String>>),
    Status(oneshot::Sender<Result<Duration, Finding>>),
    Verify(oneshot::Sender<Vec<Verified>>),
    Rescue(Name, Arc<Held>, oneshot::Sender<Result<String, Finding>>),
}

/// What a work item leads to.
enum Outcome {
    Loaded(Name, Result<Arc<Held>, Error>),
    /// It was made, or somebody tried to: what was known of it is old.
    Created(Name),
    Deleted(Name, Reply<()>),
    Nothing,
}

/// What a verification of one key found.
pub struct Verified {
    pub name: Name,
    pub result: Result<(), Finding>,
}

/// How many requests to the store may wait; more are refused by waiting in the API.
const QUEUE: usize = 1024;
/// How long "there is no such key" is believed.
const NEGATIVE: Duration = Duration::from_millis(500);
/// A standby may answer 404 for a key made a moment ago: ask again after this.
const STALE: Duration = Duration::from_millis(150);
/// A key that seems to be lost is looked at again after this, before that is believed.
const CONFIRM: Duration = Duration::from_secs(1);

/// A reader and a writer over `store`, without any key yet.
pub fn new(store: Arc<dyn KeyStore>, registry: &Registry, clock: Clock) -> (Keyring, KeyringWriter) {
    let (sender, receiver) = watch::channel(Arc::default());
    let (requests, queue) = mpsc::channel(QUEUE);
    let worker = Arc::new(Worker { store, clock, metrics: Metrics::new(registry) });
    (Keyring { snapshot: receiver, requests }, KeyringWriter { snapshot: sender, requests: queue, worker })
}

// === impl Keyring ===

impl Keyring {
    /// The key, from memory or, when it is not there, from the store.
    pub async fn get(&self, name: &Name) -> Result<Arc<Held>, Error> {
        match self.held(name.as_str()) {
            Some(held) => Ok(held),
            None => self.ask(|reply| Request::Load(name.clone(), reply)).await,
        }
    }

    /// The key, if it is in memory.
    pub fn held(&self, name: &str) -> Option<Arc<Held>> {
        self.snapshot.borrow().get(name).cloned()
    }

    /// Puts the copy of a key that is at hand back into the store, where it is lost; what was done, in words.
    pub async fn rescue(&self, name: &Name) -> Result<String, Finding> {
        let Some(held) = self.held(name.as_str()) else {
            return Err(Cause::KeyMissing.seen(format!("no key '{name}' is at hand here")));
        };
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Rescue(name.clone(), held, reply)).await;
        match (sent, answer.await) {
            (Ok(()), Ok(result)) => result,
            _ => Err(ended()),
        }
    }

    /// Every key at hand.
    pub fn all(&self) -> Vec<(Name, Arc<Held>)> {
        self.snapshot.borrow().iter().map(|(name, held)| (name.clone(), held.clone())).collect()
    }

    /// Makes a whole new key. Never under the name of one that is at hand, whatever the store says of it: what that one
    /// sealed, the new one would not open.
    pub async fn create(&self, name: &Name, by: &str, now: Timestamp) -> Result<(), Error> {
        match self.held(name.as_str()) {
            None => {}
            Some(held) if held.lost => return Err(Error::Failed(is_in_use(name, &held))),
            Some(_) => return Err(Error::Exists),
        }
        let version = KeyVersion::generate(Kind::of_this_machine(), now, by.to_owned());
        self.ask(|reply| Request::Create(name.clone(), Box::new(version), reply)).await
    }

    /// Stores a key whose bytes are given; its HMAC key is fresh.
    pub async fn import(
        &self,
        name: &Name,
        kind: Kind,
        bytes: Bytes32,
        by: &str,
        now: Timestamp,
    ) -> Result<(), Error> {
        let key = crate::crypto::Key::new(kind, bytes, Some(crate::secret::random32()));
        match self.held(name.as_str()) {
            None => {}
            Some(held) if held.lost => return Err(Error::Failed(is_in_use(name, &held))),
            Some(_) => return Err(Error::Exists),
        }
        let version = KeyVersion { key, created_at: now, created_by: by.to_owned() };
        self.ask(|reply| Request::Create(name.clone(), Box::new(version), reply)).await
    }

    pub async fn delete(&self, name: &Name) -> Result<(), Error> {
        self.ask(|reply| Request::Delete(name.clone(), reply)).await
    }

    /// Every name in the store, sorted.
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        self.ask(Request::List).await
    }

    /// How fast the store answers.
    pub async fn status(&self) -> Result<Duration, Finding> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Status(reply)).await;
        match (sent, answer.await) {
            (Ok(()), Ok(result)) => result,
            _ => Err(ended()),
        }
    }

    /// Fetches every key again, compares it with the one at hand, and tries it.
    pub async fn verify(&self) -> Vec<Verified> {
        let (reply, answer) = oneshot::channel();
        match self.requests.send(Request::Verify(reply)).await {
            Ok(()) => answer.await.unwrap_or_default(),
            Err(_) => Vec::new(),
        }
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(request(reply)).await;
        match (sent, answer.await) {
            (Ok(()), Ok(result)) => result,
            _ => Err(Error::Failed(ended())),
        }
    }
}

fn is_in_use(name: &Name, held: &Held) -> Finding {
    Cause::KeyReplaced.seen(format!(
        "the key '{name}', fingerprint {}, is in use here and lost from the store: no other key is made under its name",
        held.fingerprint
    ))
}

fn ended() -> Finding {
    Cause::StoreUnavailable.seen("the key store's task has ended, as at shutdown")
}

// === impl KeyringWriter ===

impl KeyringWriter {
    /// Reads, parses, tries and holds a key: what the gate does before anything is served.
    pub async fn load(&self, name: &Name) -> Result<Arc<Held>, Error> {
        let held = self.worker.load(name).await?;
        self.hold(name, held.clone());
        Ok(held)
    }

    /// Holds a key of the sealed copy, as it was when it was sealed.
    pub fn hold_copy(&self, name: &Name, version: Arc<KeyVersion>, verified: Duration) {
        let fingerprint = version.key.fingerprint();
        self.hold(name, Arc::new(Held { version, fingerprint, lost: false, verified }));
    }

    /// Makes a whole new key and holds it.
    pub async fn create(&self, name: &Name, by: &str, now: Timestamp) -> Result<Arc<Held>, Error> {
        let version = KeyVersion::generate(Kind::of_this_machine(), now, by.to_owned());
        self.worker.store.create(name, &version.to_text()).await?;
        self.load(name).await
    }

    /// The store's side: answers requests until no reader is left or it is dropped.
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

    /// Answers a look-up from memory, or asks the store, once however many wait.
    fn look_up(&self, work: &mut Work, name: Name, reply: Reply<Arc<Held>>) {
        let now = self.worker.clock.now();
        work.absent.retain(|_, at| now < *at + NEGATIVE);
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
            // What was looked up while the key was made or deleted may be from before: look again.
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
            Outcome::Created(name) => work.is_changed(name),
            Outcome::Deleted(name, reply) => {
                self.snapshot.send_modify(|snapshot| drop(Arc::make_mut(snapshot).remove(&name)));
                self.worker.metrics.forget(&name);
                work.is_changed(name);
                let _ = reply.send(Ok(()));
            }
            Outcome::Nothing => {}
        }
    }

    fn hold(&self, name: &Name, held: Arc<Held>) {
        self.snapshot.send_modify(|snapshot| drop(Arc::make_mut(snapshot).insert(name.clone(), held)));
    }
}

/// What the writer's side is about.
#[derive(Default)]
struct Work {
    tasks: tokio::task::JoinSet<Outcome>,
    /// Which key a task loads, so that those who wait hear of a task that fails.
    loads: HashMap<tokio::task::Id, Name>,
    waiting: HashMap<Name, Vec<Reply<Arc<Held>>>>,
    /// Keys that are being loaded, and were made or deleted meanwhile.
    changed: HashSet<Name>,
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

/// The same result for everybody who waited.
fn share(result: &Result<Arc<Held>, Error>) -> Result<Arc<Held>, Error> {
    match result {
        Ok(held) => Ok(held.clone()),
        Err(Error::Missing(finding)) => Err(Error::Missing(finding.clone())),
        Err(Error::Failed(finding)) => Err(Error::Failed(finding.clone())),
        Err(Error::Exists) => Err(Error::Exists),
    }
}

fn missing(name: &Name) -> Finding {
    Cause::KeyMissing.seen(format!("there was no key '{name}' a moment ago"))
}

// === impl Worker ===

impl Worker {
    /// Reads, parses and tries a key.
    async fn load(&self, name: &Name) -> Result<Arc<Held>, Error> {
        let text = self.store.get(name).await?;
        let held = parse(name, &text, &self.store.describe(), self.clock.boot()).map_err(Error::Failed)?;
        self.metrics.verified.with_label_values(&[name.as_str()]).set(self.clock.unix_seconds());
        self.metrics.mismatch.with_label_values(&[name.as_str()]).set(0);
        Ok(Arc::new(held))
    }

    /// As `load`, but one "missing" is not believed: a standby may not have heard yet.
    async fn find(&self, name: &Name) -> Result<Arc<Held>, Error> {
        match self.load(name).await {
            Err(Error::Missing(_)) => {
                tokio::time::sleep(STALE).await;
                self.load(name).await
            }
            result => result,
        }
    }

    async fn serve(&self, request: Request, snapshot: &watch::Sender<Arc<Snapshot>>) -> Outcome {
        match request {
            Request::Load(_, _) => unreachable!("loads must be answered by the loop"),
            Request::Create(name, version, reply) => {
                let _ = reply.send(self.store.create(&name, &version.to_text()).await);
                Outcome::Created(name)
            }
            Request::Delete(name, reply) => match self.store.delete(&name).await {
                Ok(()) => Outcome::Deleted(name, reply),
                Err(error) => {
                    let _ = reply.send(Err(error));
                    Outcome::Nothing
                }
            },
            Request::List(reply) => {
                let names = self.store.list().await.map_err(Error::Failed).map(|mut names| {
                    names.sort_unstable();
                    names
                });
                let _ = reply.send(names);
                Outcome::Nothing
            }
            Request::Status(reply) => {
                let started = self.clock.now();
                let result = self.store.ready().await.map(|()| self.clock.now() - started);
                let _ = reply.send(result);
                Outcome::Nothing
            }
            Request::Rescue(name, held, reply) => {
                let result = self.rescue(&name, &held).await;
                if result.is_ok() {
                    let now = self.clock.boot();
                    snapshot.send_modify(|snapshot| mark(Arc::make_mut(snapshot), &name, false, now));
                    self.count(&name, &Ok(()));
                }
                let _ = reply.send(result);
                Outcome::Nothing
            }
            Request::Verify(reply) => {
                let _ = reply.send(self.verify(snapshot).await);
                Outcome::Nothing
            }
        }
    }

    /// Every key at hand, fetched again. Bytes that are not at hand are never taken: a changed key is marked, the
    /// one we hold is kept.
    async fn verify(&self, snapshot: &watch::Sender<Arc<Snapshot>>) -> Vec<Verified> {
        let held: Vec<_> =
            snapshot.borrow().iter().map(|(name, held)| (name.clone(), held.clone())).collect();
        let mut results = Vec::with_capacity(held.len());
        for (name, held) in held {
            let mut result = self.compare(&name, &held).await;
            if !held.lost && result.as_ref().is_err_and(is_lost) {
                // One answer is no proof: a standby may be stale, a restore may be under way.
                tokio::time::sleep(CONFIRM).await;
                result = self.compare(&name, &held).await;
            }
            match &result {
                Ok(()) => {
                    let now = self.clock.boot();
                    snapshot.send_modify(|snapshot| mark(Arc::make_mut(snapshot), &name, false, now));
                }
                Err(finding) if is_lost(finding) && !held.lost => {
                    snapshot.send_modify(|snapshot| mark(Arc::make_mut(snapshot), &name, true, held.verified))
                }
                Err(_) => {}
            }
            self.count(&name, &result);
            results.push(Verified { name, result });
        }
        results
    }

    /// Only into an empty place: what is there, whatever it is, is a person's to judge and to remove.
    async fn rescue(&self, name: &Name, held: &Held) -> Result<String, Finding> {
        let place = self.store.describe();
        match self.compare(name, held).await {
            Ok(()) => return Ok(format!("the key '{name}' is in {place}: there is nothing to rescue")),
            Err(finding) if finding.cause == Cause::KeyMissing => {}
            Err(finding) if finding.cause == Cause::KeyDestroyed => {
                return Err(finding.fix(format!(
                    "remove what is left of it, `bao kv metadata delete` of the key's path, and run the rescue again: \
                     then the key goes back as version 1; {}",
                    self.store.how_to_create(name)
                )));
            }
            Err(finding) if is_lost(&finding) => {
                return Err(finding.fix(
                    "find out what is stored there and keep it; then remove it (`bao kv metadata delete` on K/V v2), and \
                     run the rescue again",
                ));
            }
            Err(finding) => return Err(finding),
        }
        match self.store.create(name, &held.version.to_text()).await {
            Ok(()) => {}
            Err(error) => return Err(error.into_finding(|| missing(name))),
        }
        self.compare(name, held).await?;
        Ok(format!("the key '{name}', fingerprint {}, is back in {place}", held.fingerprint))
    }

    async fn compare(&self, name: &Name, held: &Held) -> Result<(), Finding> {
        let place = self.store.describe();
        let unexpected = || Cause::StoreUnavailable.seen("the store answered out of turn");
        let text = self.store.get(name).await.map_err(|error| error.into_finding(unexpected))?;
        let stored = parse(name, &text, &place, held.verified)?;
        if !stored.version.key.same(&held.version.key) {
            return Err(Cause::KeyReplaced.seen(format!(
                "the key '{name}' in {place} is another one: its fingerprint is {}, was {}",
                stored.fingerprint, held.fingerprint
            )));
        }
        Ok(())
    }

    fn count(&self, name: &Name, result: &Result<(), Finding>) {
        let label = &[name.as_str()];
        match result {
            Ok(()) => {
                self.metrics.verified.with_label_values(label).set(self.clock.unix_seconds());
                self.metrics.mismatch.with_label_values(label).set(0);
            }
            Err(finding) if is_lost(finding) => self.metrics.mismatch.with_label_values(label).set(1),
            Err(_) => {}
        }
    }
}

/// The bytes in use are no longer in the store, for sure: what is sealed with them now, nobody opens after a restart.
pub fn is_lost(finding: &Finding) -> bool {
    matches!(finding.cause, Cause::KeyReplaced | Cause::KeyDestroyed | Cause::KeyMalformed)
}

/// Parses a stored key and tries it.
fn parse(name: &Name, text: &Secret, place: &str, now: Duration) -> Result<Held, Finding> {
    let version = KeyVersion::parse(text.expose().as_bytes()).map_err(|error| {
        Cause::KeyMalformed.seen(format!("the key '{name}' in {place} cannot be used: {error}"))
    })?;
    if !version.key.works() {
        return Err(
            Cause::KeyTestFailed.seen(format!("the key '{name}' in {place} does not open what it seals"))
        );
    }
    let fingerprint = version.key.fingerprint();
    Ok(Held { version: Arc::new(version), fingerprint, lost: false, verified: now })
}

fn mark(snapshot: &mut Snapshot, name: &Name, lost: bool, verified: Duration) {
    if let Some(held) = snapshot.get_mut(name) {
        let Held { version, fingerprint, .. } = &**held;
        let (version, fingerprint) = (version.clone(), fingerprint.clone());
        *held = Arc::new(Held { version, fingerprint, lost, verified });
    }
}

// === impl Held ===

impl Held {
    /// It may open: its last good verification is not too long ago.
    pub fn may_open(&self, limits: &Limits, now: Duration) -> bool {
        limits.open.is_none_or(|limit| now.saturating_sub(self.verified) <= limit)
    }

    /// It may seal.
    pub fn may_seal(&self, limits: &Limits, now: Duration) -> bool {
        self.may_open(limits, now)
            && limits.seal.is_none_or(|limit| now.saturating_sub(self.verified) <= limit)
    }
}

// === impl Metrics ===

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Self {
            verified: registry.gauges(
                "keswarden_key_last_verified_timestamp_seconds",
                "When the key was last fetched, compared and tried",
                &["key"],
            ),
            mismatch: registry.int_gauges(
                "keswarden_key_fingerprint_mismatch",
                "1 when the store holds other bytes under the key's name than those in use, or has destroyed them",
                &["key"],
            ),
        }
    }

    /// The key is gone by request: nothing is to be said of it any more.
    fn forget(&self, name: &Name) {
        let _ = self.verified.remove_label_values(&[name.as_str()]);
        let _ = self.mismatch.remove_label_values(&[name.as_str()]);
    }
}
