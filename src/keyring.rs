//! The keys at hand: readers see one consistent set without a lock over an await; one writer changes it.
//!
//! A look-up that misses asks the store, by message to the writer's side: once, however many ask for the same name. So a key
//! that another pod made a second ago is used at its first mention, and no slow store ever delays a key that is here.

mod worker;
mod writer;

use crate::{
    cause::{Cause, Finding},
    clock::Clock,
    crypto::{Kind, key_version::KeyVersion},
    metrics::Registry,
    names::Name,
    secret::Bytes32,
    store::{Error, KeyStore},
};
use jiff::Timestamp;
use std::{collections::HashMap, sync::Arc, time::Duration};
use tokio::sync::{mpsc, oneshot, watch};
pub use worker::Verified;
use worker::Worker;
pub use writer::KeyringWriter;

/// A key that was read, parsed and tried.
pub struct Held {
    pub version: Arc<KeyVersion>,
    pub fingerprint: String,
    /// The store holds other bytes, or none, under this name now: it opens, but seals no more.
    pub lost: bool,
    /// When it was last fetched and compared, as [`Clock::boot`] counts.
    pub verified: Duration,
    /// In how many looks in a row there was no such key, and since when.
    absent: Option<(u32, Duration)>,
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

/// How many requests may wait for the writer's side; who asks beyond that waits in the API.
const QUEUE: usize = 1024;

/// A reader and a writer over `store`, without any key yet.
pub fn new(store: Arc<dyn KeyStore>, registry: &Registry, clock: Clock) -> (Keyring, KeyringWriter) {
    let (sender, receiver) = watch::channel(Arc::default());
    let (requests, queue) = mpsc::channel(QUEUE);
    let worker = Arc::new(Worker::new(store, registry, clock));
    (Keyring { snapshot: receiver, requests }, KeyringWriter::new(sender, queue, worker))
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

fn missing(name: &Name) -> Finding {
    Cause::KeyMissing.seen(format!("there was no key '{name}' a moment ago"))
}

fn ended() -> Finding {
    Cause::StoreUnavailable.seen("the key store's task has ended, as at shutdown")
}

/// What a verification finds out about a key at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
struct State {
    lost: bool,
    verified: Duration,
    absent: Option<(u32, Duration)>,
}

/// Marks the very key that was looked at; another one that came under its name meanwhile is left alone.
fn mark(
    snapshot: &mut Snapshot,
    name: &Name,
    looked_at: &Arc<Held>,
    State { lost, verified, absent }: State,
) {
    if let Some(held) = snapshot.get_mut(name)
        && Arc::ptr_eq(&held.version, &looked_at.version)
    {
        let Held { version, fingerprint, .. } = &**held;
        let (version, fingerprint) = (version.clone(), fingerprint.clone());
        *held = Arc::new(Held { version, fingerprint, lost, verified, absent });
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
