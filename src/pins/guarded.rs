//! A key store whose names are pinned: nothing else is created under a name that has a pin, and what is created gets one.

use super::{Pins, is_proof, is_same};
use crate::{
    cause::{Cause, Finding},
    clock::Clock,
    crypto::key_version::KeyVersion,
    names::Name,
    secret::Secret,
    store::{Error, KeyStore},
};
use async_trait::async_trait;
use std::sync::Arc;

/// A key store with pins in front of it.
pub struct Guarded {
    pub store: Arc<dyn KeyStore>,
    pub pins: Pins,
    pub clock: Clock,
}

// === impl Guarded ===

impl Guarded {
    /// The very bytes that were pinned may be put back: that is a restore.
    async fn may_be_created(&self, name: &Name, text: &Secret) -> Result<String, Finding> {
        let key = KeyVersion::parse(text.expose().as_bytes()).map_err(|error| {
            Cause::KeyMalformed.seen(format!("what was to be stored as '{name}' is no key: {error}"))
        })?;
        let fingerprint = key.key.fingerprint();
        match self.pins.of(name).await? {
            Some(pinned) if !is_same(&pinned, &fingerprint) => Err(Cause::KeyReplaced.seen(format!(
                "there was a key '{name}' already, with the fingerprint {pinned}: no other is made under its name"
            ))),
            _ => Ok(fingerprint),
        }
    }
}

#[async_trait]
impl KeyStore for Guarded {
    fn describe(&self) -> String {
        self.store.describe()
    }

    async fn ready(&self) -> Result<(), Finding> {
        self.store.ready().await
    }

    async fn get(&self, name: &Name) -> Result<Secret, Error> {
        self.store.get(name).await
    }

    /// A pin is a trace as well: on K/V v1 it is the only one that a deletion leaves.
    async fn has_trace(&self, name: &Name) -> Result<bool, Finding> {
        Ok(self.pins.of(name).await?.is_some() || self.store.has_trace(name).await?)
    }

    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let fingerprint = self.may_be_created(name, text).await.map_err(Error::Failed)?;
        self.store.create(name, text).await?;
        let now = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        if let Err(finding) = self.pins.pin(name, &fingerprint, now).await {
            // The key is there and is right; that it has no pin is said at every start.
            tracing::error!(key = %name, cause = finding.cause.id(), "the new key could not be pinned: {finding}");
        }
        Ok(())
    }

    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.may_be_created(name, text).await.map_err(Error::Failed)?;
        self.store.replace(name, text).await
    }

    /// A registry that cannot be asked stops nobody: the gate has asked for the keys that matter most.
    async fn vouch(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        match self.pins.judge(name, fingerprint).await {
            Err(finding) if is_proof(&finding) => Err(finding),
            Err(finding) => {
                tracing::warn!(key = %name, cause = finding.cause.id(), "the key is used without a look at its pin: {finding}");
                Ok(())
            }
            Ok(_) => Ok(()),
        }
    }

    async fn forgets(&self) -> Result<bool, Finding> {
        self.store.forgets().await
    }

    async fn oddity(&self, name: &Name) -> Result<Option<Finding>, Finding> {
        self.store.oddity(name).await
    }

    async fn standing(&self) -> Vec<Finding> {
        self.store.standing().await
    }

    async fn notes(&self, name: &Name) -> Result<Vec<Finding>, Finding> {
        self.store.notes(name).await
    }

    async fn caveats(&self) -> Result<Vec<Finding>, Finding> {
        self.store.caveats().await
    }

    async fn delete(&self, name: &Name) -> Result<(), Error> {
        self.store.delete(name).await
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        self.store.list().await
    }

    fn how_to_create(&self, name: &Name) -> String {
        self.store.how_to_create(name)
    }

    async fn keep(&self) {
        self.store.keep().await;
    }
}
