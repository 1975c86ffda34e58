//! What a key store can do, and how it fails: the contract between the keyring and whatever holds the keys.

use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
};
use async_trait::async_trait;

/// Why a key store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such key, and no trace of one that the store knows of.
    #[error("{0}")]
    Missing(Finding),
    /// Create: the name is taken. What is stored under it was not touched.
    #[error("a key of this name exists already")]
    Exists,
    /// Anything else; the finding says what a person can do.
    #[error("{0}")]
    Failed(Finding),
}

/// What a store remembers of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum History {
    /// Something is, or was, stored under it.
    Was,
    /// Nothing ever was.
    New,
    /// Nothing is, and what was deleted leaves no trace here: proof of nothing. Why, in words.
    Forgets(&'static str),
}

/// How a person moves what is stored under a name out of the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    /// In words; a command is in backquotes.
    pub command: String,
    /// The keys that are in files then, beside the one that counts now.
    pub others: Vec<SetAsideKey>,
}

/// A key that is in a file of its own once it was set aside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAsideKey {
    pub fingerprint: String,
    /// How a person has this key count, in words; a command is in backquotes.
    pub put_back: String,
}

/// A place of keys: opaque texts by name, as KES writes them. No method has a default, so that a store in front of another one forgets
/// none.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// The store in words for people, for example `Vault https://vault:8200, K/V kv/minio`.
    fn describe(&self) -> String;

    /// The cause of a request that the store did not answer in time.
    fn unanswered(&self) -> Cause;

    /// Checks everything between here and the keys; the first failure is the finding.
    async fn ready(&self) -> Result<(), Finding>;

    /// The stored text of a key. A store whose nodes may answer stale asks again before [`Error::Missing`].
    async fn get(&self, name: &Name) -> Result<Secret, Error>;

    /// Whether anything in the store shows that a key of this name was ever there.
    async fn history(&self, name: &Name) -> Result<History, Finding>;

    /// Whether a key with this fingerprint may be used under the name for the first time.
    async fn vouch(&self, name: &Name, fingerprint: &str) -> Result<(), Finding>;

    /// Creates a key that does not exist, and reads the key back: on success every later reader gets `text`.
    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Puts a key back that was in use before: as `create`, for bytes that somebody has kept.
    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Puts a key in the place of another one, for good, on a person's word.
    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Removes a key, in a way that can be undone where the store has one.
    async fn delete(&self, name: &Name) -> Result<(), Error>;

    /// The names of all keys, in no order.
    async fn list(&self) -> Result<Vec<String>, Finding>;

    /// A warning when later versions are stored beside the version that counts, which is well.
    async fn overwritten(&self, name: &Name) -> Result<Option<Finding>, Finding>;

    /// How a person moves what is stored under a name out of the way, without losing any of it; for error messages.
    async fn how_to_set_aside(&self, name: &Name) -> SetAside;
}

/// Advice for the operator of a key store that needs a login.
#[async_trait]
pub trait Advice: Send + Sync + 'static {
    /// Warnings about the login, such as credentials that end soon.
    async fn on_login(&self) -> Vec<Finding>;

    /// Warnings about the rights to a key and about its mount: rights beyond need, a history that is too short.
    async fn on_rights(&self, name: &Name) -> Result<Vec<Finding>, Finding>;

    /// Warnings about what is written from now on: what no KES on the same store could read.
    async fn on_writing(&self) -> Result<Vec<Finding>, Finding>;
}

/// A login that ends unless somebody renews it.
#[async_trait]
pub trait Upkeep: Send + Sync + 'static {
    /// Renews the login; runs until dropped.
    async fn renew(&self);
}

// === impl Error ===

impl Error {
    /// The finding of an operation that never says `Exists`.
    pub fn finding(self) -> Finding {
        self.into_finding(|| Cause::StoreUnavailable.seen("the store answered out of turn"))
    }

    /// The finding, for those who treat every failure alike.
    pub fn into_finding(self, otherwise: impl FnOnce() -> Finding) -> Finding {
        match self {
            Self::Missing(finding) | Self::Failed(finding) => finding,
            Self::Exists => otherwise(),
        }
    }
}
