//! A key store in memory, for development and tests. A test can make every call fail.

use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    store::{Error, History, KeyStore, SetAside},
};
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

/// A key store in memory.
#[derive(Default)]
pub struct MemoryStore {
    keys: Mutex<BTreeMap<String, String>>,
    fault: Mutex<Option<Finding>>,
    reads: AtomicUsize,
}

// === impl MemoryStore ===

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes every later call fail with this finding; `None` ends that.
    pub fn fail(&self, fault: Option<Finding>) {
        *lock(&self.fault) = fault;
    }

    /// Stores a text under a name, over any other.
    pub fn put(&self, name: &str, text: &str) {
        lock(&self.keys).insert(name.to_owned(), text.to_owned());
    }

    /// The text under a name.
    pub fn text(&self, name: &str) -> Option<String> {
        lock(&self.keys).get(name).cloned()
    }

    /// Removes the text under a name.
    pub fn remove(&self, name: &str) {
        lock(&self.keys).remove(name);
    }

    /// The number of reads so far, failed ones included.
    pub fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<(), Finding> {
        lock(&self.fault).clone().map_or(Ok(()), Err)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[async_trait]
impl KeyStore for MemoryStore {
    fn describe(&self) -> String {
        "In Memory".to_owned()
    }

    fn unanswered(&self) -> Cause {
        Cause::StoreUnavailable
    }

    async fn ready(&self) -> Result<(), Finding> {
        self.check()
    }

    async fn get(&self, name: &Name) -> Result<Secret, Error> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        self.check().map_err(Error::Failed)?;
        let missing =
            || Error::Missing(Cause::KeyMissing.seen(format!("there is no key '{name}' in memory")));
        lock(&self.keys).get(name.as_str()).cloned().map(Secret::new).ok_or_else(missing)
    }

    async fn history(&self, name: &Name) -> Result<History, Finding> {
        self.check()?;
        Ok(if lock(&self.keys).contains_key(name.as_str()) { History::Was } else { History::New })
    }

    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.check().map_err(Error::Failed)?;
        match lock(&self.keys).entry(name.as_str().to_owned()) {
            std::collections::btree_map::Entry::Occupied(_) => Err(Error::Exists),
            std::collections::btree_map::Entry::Vacant(vacant) => {
                vacant.insert(text.expose().to_owned());
                Ok(())
            }
        }
    }

    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.check().map_err(Error::Failed)?;
        self.put(name.as_str(), text.expose());
        Ok(())
    }

    async fn delete(&self, name: &Name) -> Result<(), Error> {
        self.check().map_err(Error::Failed)?;
        let missing =
            || Error::Missing(Cause::KeyMissing.seen(format!("there is no key '{name}' in memory")));
        lock(&self.keys).remove(name.as_str()).map(drop).ok_or_else(missing)
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        self.check()?;
        Ok(lock(&self.keys).keys().cloned().collect())
    }

    async fn vouch(&self, _: &Name, _: &str) -> Result<(), Finding> {
        Ok(())
    }

    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.create(name, text).await
    }

    async fn overwritten(&self, _: &Name) -> Result<Option<Finding>, Finding> {
        Ok(None)
    }

    async fn how_to_set_aside(&self, name: &Name) -> SetAside {
        SetAside { command: format!("in memory, the key '{name}'"), others: Vec::new() }
    }
}
