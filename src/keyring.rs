//! The keyring: the held keys. Readers see one consistent set without a lock over an await; one writer
//! changes the set.
//!
//! A look-up of a key that is not held asks the store, by message to the writer: once for any number of
//! concurrent look-ups of a name. So a key that another pod made a second ago is used at its first mention,
//! and a slow store delays no key that is held.

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

/// A held key: read, parsed and tried.
pub struct Held {
    /// The key.
    pub version: Arc<KeyVersion>,
    /// The fingerprint of the key.
    pub fingerprint: String,
    /// The store has another key, or none, under this name now: the held key opens, and seals only where the
    /// settings allow that.
    pub lost: bool,
    /// The time of the last good verification, as [`Clock::boot`] counts.
    pub verified: Duration,
    /// The number of verifications in a row that found no such key, and the time of the first.
    absent: Option<(u32, Duration)>,
}

/// Bounds of the time since a key's last good verification. Absent: no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// The bound for opening.
    pub open: Option<Duration>,
    /// The bound for sealing.
    pub seal: Option<Duration>,
}

type Snapshot = HashMap<Name, Arc<Held>>;

/// The reading side. Cheap to clone.
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

/// Bound of the requests that wait for the writer. Further requests wait in the API.
const QUEUED_REQUESTS_MAX: usize = 1024;

/// The reading and the writing side over `store`, without any held key.
pub fn new(store: Arc<dyn KeyStore>, registry: &Registry, clock: Clock) -> (Keyring, KeyringWriter) {
    let (sender, receiver) = watch::channel(Arc::default());
    let (requests, queue) = mpsc::channel(QUEUED_REQUESTS_MAX);
    let worker = Arc::new(Worker::new(store, registry, clock));
    (Keyring { snapshot: receiver, requests }, KeyringWriter::new(sender, queue, worker))
}

// === impl Keyring ===

impl Keyring {
    /// The key: the held one, or else from the store.
    ///
    /// # Errors
    /// When the key is not held, and the store has no such key or cannot give it, or a witness knows another
    /// key of the name.
    pub async fn get(&self, name: &Name) -> Result<Arc<Held>, Error> {
        match self.held(name.as_str()) {
            Some(held) => Ok(held),
            None => self.ask(|reply| Request::Load(name.clone(), reply)).await,
        }
    }

    /// The key, if it is held.
    pub fn held(&self, name: &str) -> Option<Arc<Held>> {
        self.snapshot.borrow().get(name).cloned()
    }

    /// Puts a held key back into the store that has lost it. Returns the result in words.
    ///
    /// # Errors
    /// When the key is not held, another text is stored under the name, or the store does not take the key.
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

    /// Every held key, in no order.
    pub fn all(&self) -> Vec<(Name, Arc<Held>)> {
        self.snapshot.borrow().iter().map(|(name, held)| (name.clone(), held.clone())).collect()
    }

    /// Creates a new key, HMAC key included, with `by` as its maker. A name that is held is refused, even
    /// when the store has lost the key: the new key would not open what the held key sealed.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken, and [`Error::Failed`] when the name is lost or the store
    /// failed.
    pub async fn create(&self, name: &Name, by: &str, now: Timestamp) -> Result<(), Error> {
        match self.held(name.as_str()) {
            None => {}
            Some(held) if held.lost => return Err(Error::Failed(is_in_use(name, &held))),
            Some(_) => return Err(Error::Exists),
        }
        let version = KeyVersion::generate(Kind::of_this_machine(), now, by.to_owned());
        self.ask(|reply| Request::Create(name.clone(), Box::new(version), reply)).await
    }

    /// Stores a key of given bytes, with a fresh HMAC key and `by` as its maker.
    ///
    /// # Errors
    /// As for `create`.
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

    /// Deletes a key from the store, and holds the key no longer.
    ///
    /// # Errors
    /// When the store did not delete the key, which is then still held.
    pub async fn delete(&self, name: &Name) -> Result<(), Error> {
        self.ask(|reply| Request::Delete(name.clone(), reply)).await
    }

    /// Every name in the store, sorted.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn list(&self) -> Result<Vec<String>, Error> {
        self.ask(Request::List).await
    }

    /// The time that the store takes to answer whether it is ready.
    ///
    /// # Errors
    /// When the store is not ready.
    pub async fn status(&self) -> Result<Duration, Finding> {
        let (reply, answer) = oneshot::channel();
        let sent = self.requests.send(Request::Status(reply)).await;
        match (sent, answer.await) {
            (Ok(()), Ok(result)) => result,
            _ => Err(ended()),
        }
    }

    /// Verifies every held key: fetches the key again, compares it with the held one, and tries it.
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

/// The state of a held key that a verification may change.
#[derive(Clone, Copy, PartialEq, Eq)]
struct VerifiedState {
    lost: bool,
    verified: Duration,
    absent: Option<(u32, Duration)>,
}

/// Sets the state of the key that was verified. Another key that took its name meanwhile is left alone.
fn mark(
    snapshot: &mut Snapshot,
    name: &Name,
    compared: &Arc<Held>,
    VerifiedState { lost, verified, absent }: VerifiedState,
) {
    if let Some(held) = snapshot.get_mut(name)
        && Arc::ptr_eq(&held.version, &compared.version)
    {
        let Held { version, fingerprint, .. } = &**held;
        let (version, fingerprint) = (version.clone(), fingerprint.clone());
        *held = Arc::new(Held { version, fingerprint, lost, verified, absent });
    }
}

// === impl Held ===

impl Held {
    /// Whether the key may open: its last good verification is not too long ago. `now` is as [`Clock::boot`]
    /// counts.
    pub fn may_open(&self, limits: &Limits, now: Duration) -> bool {
        limits.open.is_none_or(|limit| now.saturating_sub(self.verified) <= limit)
    }

    /// Whether the key may seal, by age alone: the caller refuses a lost key. `now` is as [`Clock::boot`]
    /// counts.
    pub fn may_seal(&self, limits: &Limits, now: Duration) -> bool {
        self.may_open(limits, now)
            && limits.seal.is_none_or(|limit| now.saturating_sub(self.verified) <= limit)
    }
}
