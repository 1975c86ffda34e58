//! What must be true before MinIO may start: one function per check, in the order in which they make sense.

use super::{Config, Create};
use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock},
    evidence::Samples,
    kes_client,
    keyring::{Held, KeyringWriter},
    names::Name,
    offline::{self, Opened},
    pins::{Mode, Verdict},
    store::{Error, KeyStore},
};
use std::{sync::Arc, time::Duration};
use tokio::sync::OnceCell;

/// The KES that MinIO was told to use, when it is not ours; asked at each attempt, since the file may change.
pub type KesSource = Arc<dyn Fn() -> Result<Option<kes_client::Config>, Finding> + Send + Sync>;

/// One thing that must be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    Store,
    Key,
    Kes,
}

/// What one check found, for a table.
pub struct Row {
    pub check: Check,
    /// Absent: not looked at, because an earlier check failed.
    pub result: Option<Result<String, Finding>>,
}

pub(super) struct Checks<'a> {
    pub(super) config: &'a Config,
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) clock: Clock,
    /// What the drives say, once they were looked at.
    pub(super) samples: OnceCell<Samples>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(config: &'a Config, store: Arc<dyn KeyStore>, clock: Clock) -> Self {
        Self { config, store, clock, samples: OnceCell::new() }
    }
}

// === impl Check ===

impl Check {
    /// What is waited for, in words.
    pub fn what(self, keys: &[Name]) -> String {
        match self {
            Self::Store => "the key store".to_owned(),
            Self::Key => match keys {
                [] => "no key".to_owned(),
                [key] => format!("the default key '{key}'"),
                keys => {
                    let names: Vec<_> = keys.iter().map(|key| format!("'{key}'")).collect();
                    format!("every one of the keys {}", names.join(", "))
                }
            },
            Self::Kes => "KES".to_owned(),
        }
    }
}

// === impl Checks ===

/// The bound of one attempt, whatever its requests do.
const ATTEMPT: Duration = Duration::from_secs(30);
/// The least that an attempt is given, so that a deadline ends with a reason.
const LEAST: Duration = Duration::from_secs(1);

impl Checks<'_> {
    /// The first check that fails; `left` is what is left of the deadline.
    pub(super) async fn all(
        &self,
        writer: &KeyringWriter,
        left: Option<Duration>,
    ) -> Result<(), (Check, Finding)> {
        for row in self.each(writer, left).await {
            if let Some(Err(finding)) = row.result {
                return Err((row.check, finding));
            }
        }
        Ok(())
    }

    /// Every check; KES is looked at whatever the store says, since it has a store of its own.
    pub(super) async fn each(&self, writer: &KeyringWriter, left: Option<Duration>) -> Vec<Row> {
        let bound = left.map_or(ATTEMPT, |left| left.clamp(LEAST, ATTEMPT));
        let late = |cause: Cause, what: &str| {
            cause.seen(format!("{what} did not answer everything within {}", clock::human(bound)))
        };
        let store_and_keys = async {
            match self.store().await {
                Ok(store) => (Ok(store), Some(self.keys(writer).await)),
                Err(finding) => self.without_store(writer, finding).await,
            }
        };
        let (store_and_keys, kes) = tokio::join!(
            tokio::time::timeout(bound, store_and_keys),
            tokio::time::timeout(bound, self.kes())
        );
        let (store, keys) = store_and_keys
            .unwrap_or_else(|_| (Err(late(Cause::VaultUnreachableTimeout, &self.store.describe())), None));
        let kes = kes.unwrap_or_else(|_| Err(late(Cause::KesUnreachable, "KES")));
        vec![
            Row { check: Check::Store, result: Some(store) },
            Row { check: Check::Key, result: keys },
            Row { check: Check::Kes, result: Some(kes) },
        ]
    }

    /// Reachable, unsealed, logged in, and the place of the keys is there.
    async fn store(&self) -> Result<String, Finding> {
        self.store.ready().await.map(|()| self.store.describe())
    }

    /// The store is away: a sealed copy may stand in for it, when it is there and counts.
    async fn without_store(
        &self,
        writer: &KeyringWriter,
        finding: Finding,
    ) -> (Result<String, Finding>, Option<Result<String, Finding>>) {
        let Some(copy) = self.config.copy.as_ref().filter(|_| offline::stands_in_for(finding.cause)) else {
            return (Err(finding), None);
        };
        let opened = match copy.open() {
            Ok(opened) => opened,
            Err(useless) => {
                let seen = format!("{}; and {}: {}", finding.seen, useless.cause, useless.seen);
                return (Err(Finding { seen, ..finding }), None);
            }
        };
        let age = clock::human(opened.age);
        let seen = format!("on the sealed copy of {}, {age} old: {}", opened.origin, finding.seen);
        let keys = self.keys_of_copy(writer, opened).await;
        if keys.is_ok() {
            tracing::warn!(cause = finding.cause.id(), "starting on the sealed copy, {age} old: {finding}");
        }
        (Ok(seen), Some(keys))
    }

    /// Every key of the copy is held as of when it was sealed; the demanded ones must be among them, and pinned or not
    /// known to be otherwise.
    async fn keys_of_copy(&self, writer: &KeyringWriter, opened: Opened) -> Result<String, Finding> {
        let verified = self.clock.boot().saturating_sub(opened.age);
        for (name, version) in &opened.keys {
            let fingerprint = version.key.fingerprint();
            match self.config.pins.judge(name, &fingerprint).await {
                Err(finding) if !offline::stands_in_for(finding.cause) => return Err(finding),
                _ => writer.hold_copy(name, version.clone(), verified),
            }
        }
        for name in &self.config.keys {
            if !opened.keys.iter().any(|(held, _)| held == name) {
                return Err(Cause::KeyMissing.seen(format!("the sealed copy has no key '{name}'")));
            }
        }
        Ok(format!("{} keys of the sealed copy", opened.keys.len()))
    }

    /// Every key is there, can be parsed, opens what it seals, opens what the drives hold, and is the one that was pinned.
    async fn keys(&self, writer: &KeyringWriter) -> Result<String, Finding> {
        let mut keys = Vec::with_capacity(self.config.keys.len());
        for name in &self.config.keys {
            keys.push((name, self.key(name, writer).await?));
        }
        let proof = self.proof(writer).await?;
        if let Some(proof) = &proof {
            self.pin_what_is_proven(proof).await?;
        }
        let mut seen = Vec::with_capacity(keys.len());
        for (name, held) in keys {
            self.is_the_pinned_one(name, &held).await?;
            seen.push(format!("'{name}', fingerprint {}", held.fingerprint));
        }
        if seen.is_empty() {
            seen.push("no key is demanded".to_owned());
        }
        seen.extend(proof.map(|proof| proof.says));
        Ok(seen.join("; "))
    }

    async fn key(&self, name: &Name, writer: &KeyringWriter) -> Result<Arc<Held>, Finding> {
        match writer.load(name).await {
            Err(Error::Missing(finding)) => match self.config.create {
                Create::Never => Err(self.was_pinned(name, finding).await?),
                Create::IfNew => self.create(name, writer, finding).await,
            },
            result => result.map_err(|error| error.into_finding(|| unexpected(name))),
        }
    }

    async fn is_the_pinned_one(&self, name: &Name, held: &Held) -> Result<(), Finding> {
        match self.config.pins.judge(name, &held.fingerprint).await? {
            Verdict::Unpinned if self.config.pins.mode == Mode::Require => {
                Err(Cause::KeyUnpinned.seen(format!(
                    "the key '{name}', fingerprint {}, has no pin, and KESWARDEN_PIN=require",
                    held.fingerprint
                )))
            }
            Verdict::Pinned | Verdict::Unpinned => Ok(()),
        }
    }

    /// A key that is missing and has a pin was there: that is worse than one that never was.
    async fn was_pinned(&self, name: &Name, missing: Finding) -> Result<Finding, Finding> {
        Ok(match self.config.pins.of(name).await? {
            None => missing,
            Some(pinned) => Cause::KeyDestroyed
                .seen(format!("{}, and there was one: its pinned fingerprint is {pinned}", missing.seen)),
        })
    }

    async fn create(
        &self,
        name: &Name,
        writer: &KeyringWriter,
        missing: Finding,
    ) -> Result<Arc<Held>, Finding> {
        if self.store.has_trace(name).await? {
            let seen = format!("{}, but the store has a trace of it, so it is not made anew", missing.seen);
            return Err(Cause::KeyMissing
                .seen(seen)
                .fix("bring the former key back: what it sealed opens with nothing else"));
        }
        if let Some(records) = self.samples().await?.and_then(|samples| samples.keys.get(name.as_str())) {
            let seen = format!(
                "{}, but the drives hold {} objects that were sealed with it, so it is not made anew",
                missing.seen, records.seen
            );
            return Err(Cause::KeyMissing
                .seen(seen)
                .fix("bring the former key back: what it sealed opens with nothing else"));
        }
        let now = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        match writer.create(name, &self.config.maker, now).await {
            Ok(held) => {
                tracing::warn!(key = %name, fingerprint = held.fingerprint, "the key was made: the store had no trace of it");
                Ok(held)
            }
            // Another pod was faster: its key is the key.
            Err(Error::Exists) => {
                writer.load(name).await.map_err(|error| error.into_finding(|| unexpected(name)))
            }
            Err(error) => Err(error.into_finding(|| unexpected(name))),
        }
    }

    /// KES opens what it has just sealed for MinIO.
    async fn kes(&self) -> Result<String, Finding> {
        let Some(config) = (self.config.kes)()? else {
            return Ok("no KES but ours is configured".to_owned());
        };
        let endpoints = config.endpoints.join(", ");
        let client = kes_client::Client::new(config, &self.clock)?;
        if client.is_ours().await {
            return Ok(format!("{endpoints} is our own"));
        }
        for key in &self.config.keys {
            client.round_trip(key).await?;
        }
        Ok(format!("{endpoints} seals and opens for MinIO's identity"))
    }
}

fn unexpected(name: &Name) -> Finding {
    Cause::StoreUnavailable.seen(format!("the key '{name}' exists and does not, by turns"))
}
