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

/// Where keys are kept: opaque text by name. The text is what KES writes.
#[async_trait]
pub trait KeyStore: Send + Sync + 'static {
    /// What it is, for people, for example `Vault https://vault:8200, K/V kv/minio`.
    fn describe(&self) -> String;

    /// Everything between here and the keys works; the first thing that does not is the finding.
    async fn ready(&self) -> Result<(), Finding>;

    /// The stored text of a key.
    async fn get(&self, name: &Name) -> Result<Secret, Error>;

    /// Whether anything in the store shows that a key of this name was ever there.
    async fn history(&self, name: &Name) -> Result<History, Finding>;

    /// Creates a key that does not exist, and reads it back: on success every later reader gets `text`.
    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Puts a key in the place of another one, for good: for somebody who said so.
    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error>;

    /// Puts a key back that was in use before: as `create`, for bytes that somebody has kept.
    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.create(name, text).await
    }

    /// Whether this is the key that it must be, as far as anybody knows; what is not is never used.
    async fn vouch(&self, _name: &Name, _fingerprint: &str) -> Result<(), Finding> {
        Ok(())
    }

    /// Something about a key that is well for now, and that a person must know of.
    async fn oddity(&self, _name: &Name) -> Result<Option<Finding>, Finding> {
        Ok(None)
    }

    /// What of our login a person should mend before it stops anything, such as credentials that end soon.
    async fn standing(&self) -> Vec<Finding> {
        Vec::new()
    }

    /// What a person might want to change: rights beyond need, history that is too short.
    async fn notes(&self, _name: &Name) -> Result<Vec<Finding>, Finding> {
        Ok(Vec::new())
    }

    /// What a KES on the same store could not do with what is written here now; nothing when there is a way back.
    async fn caveats(&self) -> Result<Vec<Finding>, Finding> {
        Ok(Vec::new())
    }

    /// Removes a key, in a way that can be undone where the store has one.
    async fn delete(&self, name: &Name) -> Result<(), Error>;

    /// The names of all keys, in no order.
    async fn list(&self) -> Result<Vec<String>, Finding>;

    /// The command by which a person moves what is stored under a name out of the way, without losing it; for error messages.
    fn how_to_set_aside(&self, name: &Name) -> String;

    /// Keeps credentials alive; runs until it is dropped.
    async fn keep(&self) {
        std::future::pending().await
    }
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
