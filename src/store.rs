//! The contract of key stores: operations, failures and advice.

use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
};
use async_trait::async_trait;

/// The failure of an operation of a key store.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such key, and no trace of one that the store knows of.
    #[error("{0}")]
    Missing(Finding),
    /// A creation found the name taken. The stored text was not touched.
    #[error("a key of this name exists already")]
    Exists,
    /// Any other failure. The finding says what a person can do.
    #[error("{0}")]
    Failed(Finding),
}

/// The memory that a store has of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// A text is, or was, stored under the name.
    Was,
    /// No text was ever stored under the name.
    New,
    /// No text is stored under the name, and deleted texts leave no trace in this store: no proof either way.
    /// The reason, in words.
    Forgets(&'static str),
}

/// The way to move the texts that are stored under a name out of the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    /// The way, in words; a command is in backquotes.
    pub command: String,
    /// The keys of later versions that the command saves in files, beside the version that counts.
    pub others: Vec<SetAsideKey>,
}

/// A key that a command of [`SetAside`] saves in a file of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAsideKey {
    /// The fingerprint of the key.
    pub fingerprint: String,
    /// The way to put this key back, in words; a command is in backquotes.
    pub put_back: String,
}

/// A place of keys: opaque texts by name, as KES writes them. No method has a default, so that a wrapper of a
/// store must pass each on.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// The store in words for people, for example `Vault https://vault:8200, K/V kv/minio`.
    fn describe(&self) -> String;

    /// The cause of a request that the store did not answer in time.
    fn unanswered(&self) -> Cause;

    /// Checks every hop between this process and the keys, such as seal, login and mount.
    ///
    /// # Errors
    /// The first failure.
    async fn ready(&self) -> Result<(), Finding>;

    /// The stored text of a key. A store whose nodes may answer stale asks again before [`Error::Missing`].
    ///
    /// # Errors
    /// [`Error::Missing`] when there is no such key, and [`Error::Failed`] when the store cannot tell or give
    /// the key.
    async fn get(&self, name: &Name) -> Result<Secret, Error>;

    /// Whether the store shows that a key of this name ever existed.
    ///
    /// # Errors
    /// When the store cannot be asked.
    async fn history(&self, name: &Name) -> Result<History, Finding>;

    /// Allows the first use of a key with this fingerprint under the name.
    ///
    /// # Errors
    /// When a witness knows another key of the name, or the store is none.
    async fn vouch(&self, name: &Name, fingerprint: &str) -> Result<(), Finding>;

    /// Creates a key that does not exist, and reads the key back: on success every later reader gets `text`.
    ///
    /// # Errors
    /// [`Error::Exists`] when the name is taken, and [`Error::Failed`] when the key was not stored, or is not
    /// known to be stored.
    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Puts back a key that was in use before: as `create`, for a text that was kept elsewhere.
    ///
    /// # Errors
    /// As for `create`.
    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Replaces the key of a name for good, at a person's request.
    ///
    /// # Errors
    /// When the key was not replaced; the finding says so when the former key is lost as well.
    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Deletes a key, in a way that can be undone where the store has one.
    ///
    /// # Errors
    /// When the key was not deleted; [`Error::Missing`] for a missing key, in stores where that is no
    /// success.
    async fn delete(&self, name: &Name) -> Result<(), Error>;

    /// The names of all keys, in no order.
    ///
    /// # Errors
    /// When the store cannot be listed.
    async fn list(&self) -> Result<Vec<String>, Finding>;

    /// The warning that later versions are stored beside the version that counts. Absent when there are none.
    ///
    /// # Errors
    /// When the store cannot be asked.
    async fn overwritten(&self, name: &Name) -> Result<Option<Finding>, Finding>;

    /// The way to move the texts that are stored under a name out of the way without losing any of them, for
    /// messages.
    async fn how_to_set_aside(&self, name: &Name) -> SetAside;
}

/// Advice for the operator of a key store that needs a login.
#[async_trait]
pub trait Advice: Send + Sync + 'static {
    /// Warnings about the login, such as credentials that end soon.
    async fn on_login(&self) -> Vec<Finding>;

    /// Warnings about the rights to a key and about its mount: rights beyond need, a history that is too
    /// short.
    ///
    /// # Errors
    /// When the store cannot be asked.
    async fn on_rights(&self, name: &Name) -> Result<Vec<Finding>, Finding>;

    /// Warnings about keys written from now on: a form that no KES on the same store could read.
    ///
    /// # Errors
    /// When the store cannot be asked.
    async fn on_writing(&self) -> Result<Vec<Finding>, Finding>;
}

/// The upkeep of a login that expires unless it is renewed.
#[async_trait]
pub trait Upkeep: Send + Sync + 'static {
    /// Renews the login; runs until dropped.
    async fn renew(&self);
}

// === impl Error ===

impl Error {
    /// The finding of an operation that never fails with `Exists`.
    pub fn finding(self) -> Finding {
        self.into_finding(|| Cause::StoreUnavailable.seen("the store answered out of turn"))
    }

    /// The finding of any failure; `otherwise` gives the finding for `Exists`.
    pub fn into_finding(self, otherwise: impl FnOnce() -> Finding) -> Finding {
        match self {
            Self::Missing(finding) | Self::Failed(finding) => finding,
            Self::Exists => otherwise(),
        }
    }
}
