//! Proof by the tenant's own data: whether the keys open what the drives say was sealed with them.

use super::checks::{Checks, Looked};
use crate::{
    cause::{Cause, Finding},
    clock::{self, Instant},
    evidence::{self, Drive, Limits, Opened, Samples, State, Verdict},
    keyring::{Held, KeyringWriter},
    names::Name,
    offline, pins,
    store::Error,
};
use futures_util::stream::{self, StreamExt};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// What the drives prove of the keys.
pub(super) struct Proof {
    /// Keys that open what was sealed with them.
    pub(super) proven: Vec<(Name, String)>,
    /// In words, for a table and a log line.
    pub(super) says: String,
}

/// A look at the drives, on a thread of its own: a drive that hangs must hold up nothing else.
type Look = JoinHandle<Result<Samples, String>>;

/// What is known of the drives.
#[derive(Default)]
pub(super) struct Drives {
    under_way: Option<Look>,
    seen: Option<(Instant, Arc<Samples>)>,
}

/// A look is over in two seconds, unless a drive hangs.
const LOOK: Duration = Duration::from_secs(15);
/// A drive that failed is not looked at more often.
const AGAIN: Duration = Duration::from_secs(5);
/// How many of the keys that the drives name are asked for at once.
const AT_ONCE: usize = 16;

impl Checks<'_> {
    /// The drives, looked at once, since nothing writes to them while MinIO is held back; one that failed is looked at again.
    pub(super) async fn samples(&self) -> Result<Option<Arc<Samples>>, Finding> {
        if self.config.drives.is_empty() {
            return Ok(None);
        }
        let mut drives = self.drives.lock().await;
        if let Some((at, samples)) = &drives.seen
            && (!samples.drives.iter().any(Drive::is_unreadable) || self.clock.now() - *at < AGAIN)
        {
            return Ok(Some(samples.clone()));
        }
        let look = drives.under_way.get_or_insert_with(|| {
            let (patterns, clock) = (self.config.drives.clone(), self.clock.clone());
            tokio::task::spawn_blocking(move || {
                let drives = evidence::expand(&patterns)?;
                Ok(evidence::sample(&drives, &Limits::default(), &clock))
            })
        });
        // One that hangs is waited for by the next attempt; there are never two.
        let ended = tokio::time::timeout(LOOK, look).await.map_err(|_| {
            unreadable(format!("a look at the drives did not end within {}", clock::human(LOOK)))
                .fix("look for a drive that hangs (`dmesg`, a lost network volume)")
        })?;
        drives.under_way = None;
        let samples = ended.map_err(|_| unreadable("looking at the drives ended unexpectedly".to_owned()))?;
        let samples = samples.map_err(|error| unreadable(format!("KESWARDEN_DRIVES: {error}")))?;
        self.are_readable(&samples)?;
        let samples = Arc::new(samples);
        drives.seen = Some((self.clock.now(), samples.clone()));
        Ok(Some(samples))
    }

    /// A MinIO lives with a failed drive, so we do; with none that can be read, nobody knows anything.
    fn are_readable(&self, samples: &Samples) -> Result<(), Finding> {
        let failed: Vec<_> = samples
            .drives
            .iter()
            .filter_map(|drive| match &drive.state {
                State::Unreadable(why) => Some(format!("{}: {why}", drive.path.display())),
                State::New | State::Used => None,
            })
            .collect();
        if !failed.is_empty() && failed.len() == samples.drives.len() {
            return Err(unreadable(format!("no drive can be read: {}", failed.join("; "))));
        }
        for drive in failed.iter().filter(|drive| self.is_news(drive)) {
            tracing::warn!(
                cause = Cause::DrivesUnreadable.id(),
                "the gate goes by the other drives: {drive}"
            );
        }
        Ok(())
    }

    /// Reads every key that the drives name beside those that were read already.
    pub(super) async fn look_for_named(
        &self,
        samples: &Samples,
        writer: &KeyringWriter,
        looked: &mut Looked,
    ) -> Result<(), Finding> {
        let names = samples.keys.keys().filter_map(|name| Name::parse(name).ok());
        let others: Vec<_> = names.filter(|name| !looked.contains_key(name)).collect();
        let found: Vec<_> = stream::iter(others)
            .map(|name| async move {
                let found = self.named(&name, writer).await;
                (name, found)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await;
        for (name, found) in found {
            if let Some(found) = found? {
                looked.insert(name, found);
            }
        }
        Ok(())
    }

    /// A key that the drives name, and whether its pin lets it be held; nothing when there is none.
    async fn named(&self, name: &Name, writer: &KeyringWriter) -> Result<Option<(Arc<Held>, bool)>, Finding> {
        let held = match writer.look(name).await {
            Ok(held) => held,
            Err(Error::Missing(_)) => return Ok(None),
            Err(Error::Failed(finding)) if !offline::stands_in_for(finding.cause) => {
                self.say(&finding, &format!("the drives name the key '{name}'"));
                return Ok(None);
            }
            Err(error) => {
                return Err(error.into_finding(|| unreadable(format!("the key '{name}' exists by turns"))));
            }
        };
        match self.config.pins.judge(name, &held.fingerprint).await {
            Ok(_) => Ok(Some((held, true))),
            Err(finding) if pins::is_proof(&finding) => {
                self.say(&finding, &format!("the key '{name}' is not used"));
                Ok(Some((held, false)))
            }
            Err(finding) => Err(finding),
        }
    }

    /// An error line, once.
    fn say(&self, finding: &Finding, what: &str) {
        if self.is_news(&finding.seen) {
            tracing::error!(cause = finding.cause.id(), "{what}: {finding}");
        }
    }

    /// Holds every key that the drives name against what they hold; `absent` is what it means that one was not found.
    pub(super) fn proof(&self, samples: &Samples, looked: &Looked, absent: Opened) -> Result<Proof, Finding> {
        let findings = evidence::judge(samples, |key, ciphertext, context| match looked.get(key) {
            None => absent,
            Some((held, _)) => match held.version.key.open(ciphertext, context) {
                Ok(_) => Opened::Yes,
                Err(_) => Opened::No,
            },
        });
        let (mut proven, mut says) = (Vec::new(), Vec::new());
        for finding in &findings {
            self.weigh(finding)?;
            let evidence::Finding { key, opened, failed, records, .. } = finding;
            says.push(format!("'{key}' opened {opened} of {} tried ({records} seen)", opened + failed));
            if let (Verdict::Opens, Some((name, (held, _)))) =
                (finding.verdict, looked.get_key_value(key.as_str()))
            {
                proven.push((name.clone(), held.fingerprint.clone()));
            }
        }
        let says = match (samples.is_new(), says.is_empty()) {
            (true, _) => "the drives are new".to_owned(),
            (_, true) => "no evidence on the drives".to_owned(),
            (_, false) => format!("by the drives: {}", says.join("; ")),
        };
        Ok(Proof { proven, says })
    }

    /// What stops the gate, and what is only said.
    pub(super) fn weigh(&self, finding: &evidence::Finding) -> Result<(), Finding> {
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
                let missing = Cause::KeyMissing
                    .seen(format!("the drives hold {records} objects under the key '{key}', and there is no such key"))
                    .fix("bring it back, or they cannot be read");
                self.say(&missing, "the tenant starts all the same");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Pins what the data has proven. A pin that cannot be written stops nobody: that there is none is said at every start.
    pub(super) async fn pin_what_is_proven(&self, proof: &Proof) -> Result<(), Finding> {
        if !self.config.pins.can_write() || self.only_looks {
            return Ok(());
        }
        let now = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        for (name, fingerprint) in &proof.proven {
            if self.config.pins.judge(name, fingerprint).await? == pins::Verdict::Pinned {
                continue;
            }
            match self.config.pins.pin(name, fingerprint, now).await {
                Ok(()) => tracing::info!(key = %name, fingerprint, "the key is pinned: the drives prove it"),
                Err(finding) if pins::is_proof(&finding) || self.config.pins.mode == pins::Mode::Require => {
                    return Err(finding);
                }
                Err(finding) => self.say(&finding, &format!("the key '{name}' could not be pinned")),
            }
        }
        Ok(())
    }
}

fn unreadable(seen: String) -> Finding {
    Cause::DrivesUnreadable.seen(seen)
}
