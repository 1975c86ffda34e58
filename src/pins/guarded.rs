//! A key store with witnesses in front: no key is created, put back or used under a name of which a witness
//! knows another key, and every key is remembered before its first use.

use super::{Mode, Pins};
use crate::{
    cause::{Cause, Finding},
    crypto::usable::Usable,
    known::{self, Asked, Commands, Statement, Verdict, Witnesses, judge},
    names::Name,
    secret::Secret,
    store::{Error, History, KeyStore, SetAside},
};
use async_trait::async_trait;
use std::sync::Arc;

/// A key store with witnesses in front. Calls that no witness need judge go straight to the store.
pub struct Guarded {
    store: Arc<dyn KeyStore>,
    witnesses: Witnesses,
    pins: Pins,
    commands: Commands,
}

// === impl Guarded ===

impl Guarded {
    /// `store`, guarded by `witnesses`. `pins` are pinned at a creation when a pin is demanded; `commands`
    /// are for findings.
    pub fn new(store: Arc<dyn KeyStore>, witnesses: Witnesses, pins: Pins, commands: Commands) -> Self {
        Self { store, witnesses, pins, commands }
    }

    /// Whether a text may be stored under the name: its fingerprint and the statements of the witnesses.
    async fn may_be_stored(&self, name: &Name, text: &Secret) -> Result<(String, Vec<Statement>), Finding> {
        let Usable { fingerprint, .. } = Usable::read(name, text, "that is to be stored")?;
        let statements = self.witnesses.ask(name).await;
        match judge(Asked::Key(&fingerprint), &statements) {
            Verdict::Other(others) => Err(known::taken(name, &fingerprint, &others, &self.commands)),
            _ => Ok((fingerprint, statements)),
        }
    }

    /// Stores a key that the witnesses allow, and remembers the key. Failures to remember are logged, and
    /// stop nothing.
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

    fn unanswered(&self) -> Cause {
        self.store.unanswered()
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

    /// Creates a key that a client or a person asks for by name. A witness that cannot be asked may know the
    /// name: then no key is created.
    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let (fingerprint, statements) = match self.may_be_stored(name, text).await {
            Ok(may) => may,
            // Another pod was faster, and the witnesses know the key of that pod.
            Err(_) if self.store.get(name).await.is_ok() => return Err(Error::Exists),
            Err(finding) => return Err(Error::Failed(finding)),
        };
        // An import may bring back the key that the witnesses know.
        if judge(Asked::Key(&fingerprint), &statements) != Verdict::Same {
            let absent = |cause: Cause| cause.seen(format!("the key '{name}' was to be made"));
            let verdict = judge(Asked::Creation { on_request: true }, &statements);
            // The key has come back meanwhile, or another pod was faster.
            if !matches!(verdict, Verdict::First) && self.store.get(name).await.is_ok() {
                return Err(Error::Exists);
            }
            match verdict {
                Verdict::Unsure(silent) => {
                    let absent = absent(Cause::MemoryUnusable);
                    return Err(Error::Failed(known::unsure(name, absent, &silent, &self.commands)));
                }
                Verdict::Other(_) => {
                    let absent = absent(Cause::KeyMissing);
                    return Err(Error::Failed(known::missing(
                        name,
                        absent,
                        &statements,
                        &self.commands,
                        None,
                    )));
                }
                Verdict::Same | Verdict::First => {}
            }
        }
        self.store_and_remember(name, text, (&fingerprint, &statements)).await
    }

    /// Puts back the key that was in use. The place that kept the key is a witness, so silent witnesses are
    /// no obstacle.
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
            let (place, set_aside) = (self.store.describe(), self.store.how_to_set_aside(name).await);
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

    async fn overwritten(&self, name: &Name) -> Result<Option<Finding>, Finding> {
        self.store.overwritten(name).await
    }

    async fn delete(&self, name: &Name) -> Result<(), Error> {
        self.store.delete(name).await
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        self.store.list().await
    }

    async fn how_to_set_aside(&self, name: &Name) -> SetAside {
        self.store.how_to_set_aside(name).await
    }
}
