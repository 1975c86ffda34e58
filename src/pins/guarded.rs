//! A key store with witnesses in front: no other key is made, put back or used under a name that somebody knows, and what is first
//! used is remembered before.

use super::{Mode, Pins};
use crate::{
    cause::{Cause, Finding},
    crypto::key_version::KeyVersion,
    known::{self, Asked, Commands, Statement, Verdict, Witnesses, judge},
    names::Name,
    secret::Secret,
    store::{Error, History, KeyStore},
};
use async_trait::async_trait;
use std::sync::Arc;

/// A key store with witnesses in front of it.
pub struct Guarded {
    store: Arc<dyn KeyStore>,
    witnesses: Witnesses,
    pins: Pins,
    commands: Commands,
}

// === impl Guarded ===

impl Guarded {
    pub fn new(store: Arc<dyn KeyStore>, witnesses: Witnesses, pins: Pins, commands: Commands) -> Self {
        Self { store, witnesses, pins, commands }
    }

    /// Whether these bytes may be stored under the name: what the witnesses say of their fingerprint.
    async fn may_be_stored(&self, name: &Name, text: &Secret) -> Result<(String, Vec<Statement>), Finding> {
        let key = KeyVersion::parse(text.expose().as_bytes()).map_err(|error| {
            Cause::KeyMalformed.seen(format!("what was to be stored as '{name}' is no key: {error}"))
        })?;
        let fingerprint = key.key.fingerprint();
        let statements = self.witnesses.ask(name).await;
        match judge(Asked::Key(&fingerprint), &statements) {
            Verdict::Other(others) => Err(known::taken(name, &fingerprint, &others, &self.commands)),
            _ => Ok((fingerprint, statements)),
        }
    }

    /// The key is there and is right; what could not be written down is told of, and stops nothing.
    async fn store_and_remember(
        &self,
        name: &Name,
        text: &Secret,
        (fingerprint, statements): (&str, &[Statement]),
    ) -> Result<(), Error> {
        self.store.create(name, text).await?;
        if self.pins.mode == Mode::Require
            && let Err(finding) = self.pins.pin(name, fingerprint).await
        {
            tracing::error!(key = %name, cause = finding.cause.id(), "the new key could not be pinned: {finding}");
        }
        self.remember(name, fingerprint, statements).await;
        Ok(())
    }

    async fn remember(&self, name: &Name, fingerprint: &str, statements: &[Statement]) {
        for finding in self.witnesses.remember(name, fingerprint, statements).await {
            tracing::error!(key = %name, cause = finding.cause.id(), "the key is used, and could not be remembered: {finding}");
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

    async fn history(&self, name: &Name) -> Result<History, Finding> {
        self.store.history(name).await
    }

    /// A new key: somebody asks for it by name. A witness that cannot be asked may know the name.
    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let (fingerprint, statements) = match self.may_be_stored(name, text).await {
            Ok(may) => may,
            // Another pod was faster, and has told the witnesses.
            Err(_) if self.store.get(name).await.is_ok() => return Err(Error::Exists),
            Err(finding) => return Err(Error::Failed(finding)),
        };
        if let Verdict::Unsure(silent) = judge(Asked::Creation { on_request: true }, &statements) {
            let absent = Cause::MemoryUnusable.seen(format!("the key '{name}' was to be made"));
            return Err(Error::Failed(known::unsure(name, absent, &silent, &self.commands)));
        }
        self.store_and_remember(name, text, (&fingerprint, &statements)).await
    }

    /// The very bytes that were in use: who kept them is a witness, so nobody else need be asked.
    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let (fingerprint, statements) = self.may_be_stored(name, text).await.map_err(Error::Failed)?;
        self.store_and_remember(name, text, (&fingerprint, &statements)).await
    }

    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.store.replace(name, text).await
    }

    async fn vouch(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        let statements = self.witnesses.ask(name).await;
        if let Verdict::Other(_) = judge(Asked::Key(fingerprint), &statements) {
            let (place, set_aside) = (self.store.describe(), self.store.how_to_set_aside(name));
            return Err(known::replaced(
                name,
                fingerprint,
                &place,
                &statements,
                (&self.commands, &set_aside),
            ));
        }
        if let Some(finding) = known::passes_unasked(name, &statements) {
            tracing::warn!(cause = finding.cause.id(), "{finding}");
        }
        self.remember(name, fingerprint, &statements).await;
        Ok(())
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

    fn how_to_set_aside(&self, name: &Name) -> String {
        self.store.how_to_set_aside(name)
    }

    async fn keep(&self) {
        self.store.keep().await;
    }
}
