//! Proof by the tenant's own data: whether the keys open what the drives say was sealed with them.

use super::checks::Checks;
use crate::{
    cause::{Cause, Finding},
    evidence::{self, Limits, Opened, Samples, Verdict},
    keyring::{Held, KeyringWriter},
    names::Name,
    pins,
    store::Error,
};
use std::{collections::BTreeMap, sync::Arc};

/// What the drives prove of the keys.
pub(super) struct Proof {
    /// Keys that open what was sealed with them.
    pub(super) proven: Vec<(Name, String)>,
    /// In words, for a table and a log line.
    pub(super) says: String,
}

impl Checks<'_> {
    /// The drives, looked at once: nothing writes to them while MinIO is held back.
    pub(super) async fn samples(&self) -> Result<Option<&Samples>, Finding> {
        if self.config.drives.is_empty() {
            return Ok(None);
        }
        let look = async {
            let drives = evidence::expand(&self.config.drives);
            let drives = drives.map_err(|error| unreadable(format!("KESWARDEN_DRIVES: {error}")))?;
            let clock = self.clock.clone();
            let looked =
                tokio::task::spawn_blocking(move || evidence::sample(&drives, &Limits::default(), &clock));
            looked.await.map_err(|_| unreadable("looking at the drives ended unexpectedly".to_owned()))
        };
        self.samples.get_or_try_init(|| look).await.map(Some)
    }

    /// Holds every key that the drives name against what they hold.
    pub(super) async fn proof(&self, writer: &KeyringWriter) -> Result<Option<Proof>, Finding> {
        let Some(samples) = self.samples().await? else { return Ok(None) };
        let mut keys: BTreeMap<String, Option<Arc<Held>>> = BTreeMap::new();
        for name in samples.keys.keys() {
            keys.insert(name.clone(), self.named(name, writer).await?);
        }
        let findings = evidence::judge(samples, |key, ciphertext, context| match keys.get(key) {
            Some(Some(held)) => match held.version.key.open(ciphertext, context) {
                Ok(_) => Opened::Yes,
                Err(_) => Opened::No,
            },
            Some(None) => Opened::NoSuchKey,
            None => Opened::Unknown,
        });
        let (mut proven, mut says) = (Vec::new(), Vec::new());
        for finding in &findings {
            self.weigh(finding)?;
            let evidence::Finding { key, opened, failed, records, .. } = finding;
            says.push(format!("'{key}' opened {opened} of {} tried ({records} seen)", opened + failed));
            if let (Verdict::Opens, Ok(name), Some(Some(held))) =
                (finding.verdict, Name::parse(key), keys.get(key))
            {
                proven.push((name, held.fingerprint.clone()));
            }
        }
        let says = match (samples.is_new(), says.is_empty()) {
            (true, _) => "the drives are new".to_owned(),
            (_, true) => "no evidence on the drives".to_owned(),
            (_, false) => format!("by the drives: {}", says.join("; ")),
        };
        Ok(Some(Proof { proven, says }))
    }

    /// A key that the drives name; nothing when there is none.
    async fn named(&self, name: &str, writer: &KeyringWriter) -> Result<Option<Arc<Held>>, Finding> {
        let Ok(name) = Name::parse(name) else { return Ok(None) };
        match writer.load(&name).await {
            Ok(held) => Ok(Some(held)),
            Err(Error::Missing(_)) => Ok(None),
            Err(Error::Failed(finding)) if !crate::offline::stands_in_for(finding.cause) => {
                tracing::error!(cause = finding.cause.id(), "the drives name the key '{name}': {finding}");
                Ok(None)
            }
            Err(error) => Err(error.into_finding(|| unreadable(format!("the key '{name}' exists by turns")))),
        }
    }

    /// What stops the gate, and what is only said.
    fn weigh(&self, finding: &evidence::Finding) -> Result<(), Finding> {
        let evidence::Finding { key, opened, failed, records, .. } = finding;
        match finding.verdict {
            Verdict::NoneOpen => Err(Cause::KeyReplaced.seen(format!(
                "the key '{key}' opens none of the {failed} objects tried, of {records} on the drives: it is not the key \
                 that they were sealed with, whatever the pins say"
            ))),
            Verdict::Mixed => Err(Cause::KeyMixed.seen(format!(
                "the key '{key}' opens {opened} of the objects tried, old or new, and not the other {failed}: somebody has \
                 booted on another key of this name"
            ))),
            Verdict::MissingKey if self.config.keys.iter().all(|demanded| demanded.as_str() != key) => {
                tracing::error!(
                    cause = Cause::KeyMissing.id(),
                    "the drives hold {records} objects under the key '{key}', and there is no such key: bring it back, or \
                     they cannot be read"
                );
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Pins what the data has proven.
    pub(super) async fn pin_what_is_proven(&self, proof: &Proof) -> Result<(), Finding> {
        if !self.config.pins.can_write() {
            return Ok(());
        }
        let now = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        for (name, fingerprint) in &proof.proven {
            if self.config.pins.judge(name, fingerprint).await? == pins::Verdict::Unpinned {
                self.config.pins.pin(name, fingerprint, now).await?;
                tracing::info!(key = %name, fingerprint, "the key is pinned: the drives prove it");
            }
        }
        Ok(())
    }
}

fn unreadable(seen: String) -> Finding {
    Cause::DrivesUnreadable.seen(seen)
}
