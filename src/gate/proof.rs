//! Proof by the tenant's own data: whether the keys open the evidence on the drives.

use super::checks::{Checks, ReadKeys};
use crate::{
    cause::{Cause, Finding},
    clock::{self, Instant},
    evidence::{self, Drive, Limits, Opened, Samples, State, Verdict},
    keyring::{Held, KeyringWriter},
    known::{Kind, Known, Says, Statement},
    names::Name,
    store::Error,
};
use futures_util::stream::{self, StreamExt};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::task::JoinHandle;

/// The statements of the drives on the keys that were read.
#[derive(Default)]
pub(super) struct DriveStatements {
    /// The statement on each key that the drives name.
    statements: BTreeMap<String, Statement>,
    /// The statement on every key, when the drives could not be asked.
    silent: Option<Statement>,
    /// The result in words, for a table and a log line. Absent where no drives are given.
    pub(super) says: Option<String>,
    /// Warnings, which stop no start.
    pub(super) notes: Vec<Finding>,
}

// === impl DriveStatements ===

impl DriveStatements {
    /// The statement on a key. Absent: the drives do not name the key, or none are given.
    pub(super) fn statement(&self, name: &Name) -> Option<Statement> {
        self.statements.get(name.as_str()).or(self.silent.as_ref()).cloned()
    }

    /// The finding of a key that opens none or only some of the evidence, where no other witness is asked.
    pub(super) fn refutes(&self, finding: &evidence::Finding) -> Finding {
        let key = &finding.key;
        let words = self.statements.get(key).map(Statement::words).unwrap_or_default();
        match finding.verdict {
            Verdict::Mixed => Cause::KeyMixed
                .seen(format!("the key '{key}' opens some of the data, and not the rest: {words}")),
            _ => Cause::KeyReplaced
                .seen(format!("the key '{key}' is not the one that the data were sealed with: {words}")),
        }
    }

    /// Whether the drives know another key of the name than the key that was read.
    pub(super) fn is_refuted(&self, name: &Name) -> bool {
        let known = self.statements.get(name.as_str()).map(Statement::known).unwrap_or_default();
        known.iter().any(|known| matches!(known, Known::Another(_)))
    }
}

/// A sampling of the drives, on a thread of its own: a drive that hangs must delay nothing else.
type Sampling = JoinHandle<Result<Samples, String>>;

/// The sampling under way, and the last samples with their time.
#[derive(Default)]
pub(super) struct Drives {
    under_way: Option<Sampling>,
    sampled: Option<(Instant, Arc<Samples>)>,
}

/// Bound of the wait for a sampling in one attempt. A sampling takes two seconds, unless a drive hangs.
const SAMPLING_MAX: Duration = Duration::from_secs(15);
/// Least time between two samplings of drives that may still be mounted.
const SAMPLING_PAUSE: Duration = Duration::from_secs(5);
/// Bound of the number of keys that are read at once.
const CONCURRENT_READS_MAX: usize = 16;

impl Checks<'_> {
    /// The samples of the drives, taken once, since nothing writes to the drives while MinIO is held back.
    /// Drives that failed, or may not be mounted yet, are sampled again. Absent where no drives are given.
    pub(super) async fn samples(&self) -> Result<Option<Arc<Samples>>, Finding> {
        if self.settings.drives.is_empty() {
            return Ok(None);
        }
        let mut drives = self.drives.lock().await;
        if let Some((at, samples)) = &drives.sampled
            && (!samples.drives.iter().any(Drive::may_come) || self.deps.clock.now() - *at < SAMPLING_PAUSE)
        {
            return Ok(Some(samples.clone()));
        }
        let sampling = drives.under_way.get_or_insert_with(|| {
            let (patterns, clock) = (self.settings.drives.clone(), self.deps.clock.clone());
            tokio::task::spawn_blocking(move || {
                let drives = evidence::expand(&patterns)?;
                Ok(evidence::sample(&drives, &Limits::default(), &clock))
            })
        });
        // The next attempt waits for a sampling that hangs: two never run at once.
        let ended = tokio::time::timeout(SAMPLING_MAX, sampling).await.map_err(|_| {
            unreadable(format!("a look at the drives did not end within {}", clock::human(SAMPLING_MAX)))
                .fix("look for a drive that hangs (`dmesg`, a lost network volume)")
        })?;
        drives.under_way = None;
        let samples = ended.map_err(|_| unreadable("looking at the drives ended unexpectedly".to_owned()))?;
        let samples = samples.map_err(|error| unreadable(format!("KESWARDEN_DRIVES: {error}")))?;
        self.check_readable(&samples)?;
        let samples = Arc::new(samples);
        drives.sampled = Some((self.deps.clock.now(), samples.clone()));
        Ok(Some(samples))
    }

    /// Fails when no drive can be read. Single failed drives are logged: MinIO runs without them as well.
    fn check_readable(&self, samples: &Samples) -> Result<(), Finding> {
        let failed: Vec<_> = samples
            .drives
            .iter()
            .filter_map(|drive| match &drive.state {
                State::Unreadable(why) => Some(format!("{}: {why}", drive.path.display())),
                State::New | State::Bare | State::Used => None,
            })
            .collect();
        if !failed.is_empty() && failed.len() == samples.drives.len() {
            return Err(unreadable(format!("no drive can be read: {}", failed.join("; "))));
        }
        for drive in failed.iter().filter(|drive| self.is_new_line(drive)) {
            tracing::warn!(
                cause = Cause::DrivesUnreadable.id(),
                "the gate goes by the other drives: {drive}"
            );
        }
        Ok(())
    }

    /// Reads the keys that the drives name and that are not demanded.
    pub(super) async fn read_named(
        &self,
        samples: &Samples,
        writer: &KeyringWriter,
        keys_read: &mut ReadKeys,
    ) -> Result<(), Finding> {
        let names = samples.keys.keys().filter_map(|name| Name::parse(name).ok());
        let others: Vec<_> = names.filter(|name| !keys_read.contains_key(name)).collect();
        let found: Vec<_> = stream::iter(others)
            .map(|name| async move {
                let found = self.named(&name, writer).await;
                (name, found)
            })
            .buffer_unordered(CONCURRENT_READS_MAX)
            .collect()
            .await;
        for (name, found) in found {
            if let Some(found) = found? {
                keys_read.insert(name, found);
            }
        }
        Ok(())
    }

    /// A key that the drives name. Absent when the store has no such key, or none that can be used.
    async fn named(&self, name: &Name, writer: &KeyringWriter) -> Result<Option<Arc<Held>>, Finding> {
        match writer.look(name).await {
            Ok(held) => Ok(Some(held)),
            Err(Error::Missing(_)) => Ok(None),
            Err(Error::Failed(finding)) if !finding.cause.allows_sealed_copy() => {
                self.log_error_once(&finding, &format!("the drives name the key '{name}'"));
                Ok(None)
            }
            Err(error) => Err(error.into_finding(|| {
                unreadable(format!(
                    "successive answers contradict each other on whether there is a key '{name}'"
                ))
            })),
        }
    }

    /// Logs an error line, unless an earlier attempt has logged the same finding.
    pub(super) fn log_error_once(&self, finding: &Finding, what: &str) {
        if self.is_new_line(&finding.seen) {
            tracing::error!(cause = finding.cause.id(), "{what}: {finding}");
        }
    }

    /// Tries every key that was read on the evidence of the drives.
    pub(super) fn try_on_evidence(
        &self,
        samples: &Result<Option<Arc<Samples>>, Finding>,
        keys_read: &ReadKeys,
    ) -> DriveStatements {
        let samples = match samples {
            Ok(None) => return DriveStatements::default(),
            Ok(Some(samples)) => samples,
            Err(finding) => {
                return DriveStatements { silent: Some(self.silent(finding)), ..DriveStatements::default() };
            }
        };
        let findings = evidence::judge(samples, |key, ciphertext, context| match keys_read.get(key) {
            None => Opened::NoSuchKey,
            Some(held) if held.version.key.open(ciphertext, context).is_ok() => Opened::Yes,
            Some(_) => Opened::No,
        });
        self.drive_statements(samples, &findings, |key| {
            keys_read.get(key).map(|held| held.fingerprint.clone())
        })
    }

    /// Turns findings of the drives into a statement for each key, and warnings. `fingerprint` gives the
    /// fingerprint of a key that was tried, where known.
    pub(super) fn drive_statements(
        &self,
        samples: &Samples,
        findings: &[evidence::Finding],
        fingerprint: impl Fn(&str) -> Option<String>,
    ) -> DriveStatements {
        let mut tried = DriveStatements::default();
        let mut says = Vec::new();
        for finding in findings {
            let evidence::Finding { key, opened, failed, records, .. } = finding;
            says.push(format!("'{key}' opened {opened} of {} tried ({records} seen)", opened + failed));
            let this = |fingerprint| {
                Known::Fingerprint(fingerprint, format!("opens {opened} of {} tried", opened + failed))
            };
            let another = |how: String| Known::Another(how);
            let known = match (finding.verdict, fingerprint(key)) {
                (Verdict::Opens, Some(fingerprint)) => vec![this(fingerprint)],
                (Verdict::NoneOpen, _) => vec![another(format!(
                    "what is stored opens none of the {failed} sealed files tried, of {records} on the drives"
                ))],
                (Verdict::Mixed, fingerprint) => fingerprint
                    .map(this)
                    .into_iter()
                    .chain([another(format!(
                        "{failed} of those tried were sealed with another key of this name"
                    ))])
                    .collect(),
                (Verdict::TooFew, _) => {
                    tried.notes.push(Cause::KeyUnproven.seen(format!(
                        "the key '{key}' opens none of the {failed} objects tried, of {records} on the drives: so few may have been \
                         sealed for another place, and prove nothing"
                    )));
                    continue;
                }
                (Verdict::MissingKey, _) => {
                    self.note_missing(key, *records);
                    continue;
                }
                (Verdict::NoEvidence | Verdict::Opens, _) => continue,
            };
            tried.statements.insert(
                key.clone(),
                Statement::new(Kind::Drives, self.drives_in_words(), Says::Known(known)),
            );
        }
        let mut said = match (samples.is_new(), says.is_empty()) {
            (true, _) => "the drives are new".to_owned(),
            (_, true) => "no evidence on the drives".to_owned(),
            (_, false) => format!("by the drives: {}", says.join("; ")),
        };
        if samples.unseen() > 0 {
            said.push_str(&format!(
                "; {} sealed files of MinIO's own were not looked at: another drive has their first part",
                samples.unseen()
            ));
        }
        if let Some(gap) = gap(samples) {
            said.push_str(&format!("; {gap}"));
        }
        tried.says = Some(said);
        tried
    }

    /// Notes a key that the drives name and the store lacks. A key that is not demanded stops no start, and
    /// is logged.
    fn note_missing(&self, key: &str, records: u64) {
        self.deps.memory.named.note(key, records);
        if self.settings.keys.iter().any(|demanded| demanded.as_str() == key) {
            return;
        }
        let missing = Cause::KeyMissing
            .seen(format!(
                "the drives hold {records} objects under the key '{key}', and there is no such key"
            ))
            .fix("bring the key back: without it these objects cannot be read");
        self.log_error_once(&missing, "the tenant starts all the same");
    }

    /// The statement of the drives on a name without a stored key. Absent: no drives are given, or the drives
    /// are in use and do not name the key.
    pub(super) async fn drives_know(&self, name: &Name) -> Option<Statement> {
        let samples = match self.samples().await {
            Ok(samples) => samples?,
            Err(finding) => return Some(self.silent(&finding)),
        };
        let says = if let Some(records) = samples.keys.get(name.as_str()) {
            let seen = records.seen;
            Says::WasInUse(format!("{seen} objects that were sealed with it"))
        } else if let Some(gap) = gap(&samples) {
            Says::CannotTell(unreadable(format!("{gap}: what is sealed with it may be there")))
        } else if let Some(unseen) = unseen(&samples) {
            Says::CannotTell(unreadable(format!("{unseen}: the key may be named there")).fix(format!(
                "look from where the other drives are; where this MinIO never had encryption, make the key without the drives: `{}`",
                self.without_drives(name)
            )))
        } else if samples.is_new() {
            Says::New
        } else {
            let bare = samples.drives.iter().find(|drive| drive.state == State::Bare)?;
            let path = bare.path.display();
            Says::CannotTell(
                unreadable(format!("{path} has no MinIO format and is no mount point: its volume may not be mounted")).fix(format!(
                    "mount the tenant's volumes; where {path} is a plain directory that is new, make the key without the drives: `{}`",
                    self.without_drives(name)
                )),
            )
        };
        Some(Statement::new(Kind::Drives, self.drives_in_words(), says))
    }

    fn silent(&self, finding: &Finding) -> Statement {
        Statement::new(Kind::Drives, self.drives_in_words(), Says::CannotTell(finding.clone()))
    }

    fn without_drives(&self, name: &Name) -> String {
        self.deps.memory.commands.of(&format!("key create --first {name} --no-drives"))
    }

    fn drives_in_words(&self) -> String {
        format!("the drives {}", self.settings.drives.join(", "))
    }
}

/// The part of the drives that was not read, in words. Absent: everything was read.
fn gap(samples: &Samples) -> Option<String> {
    let unreadable = samples.drives.iter().find_map(|drive| match &drive.state {
        State::Unreadable(why) => Some(format!("{} cannot be read: {why}", drive.path.display())),
        State::New | State::Bare | State::Used => None,
    });
    let left = samples.tally.skipped + samples.tally.unknown;
    unreadable.or_else(|| match (samples.cut_short, left) {
        (true, _) => Some("there is more on the drives than was looked at".to_owned()),
        (false, 0) => None,
        (false, left) => Some(format!("{left} of the files on the drives could not be understood")),
    })
}

/// The sealed files whose first part is on a drive elsewhere, in words. Absent: there are none.
fn unseen(samples: &Samples) -> Option<String> {
    let unseen = samples.unseen();
    (unseen > 0).then(|| {
        format!("{unseen} files of MinIO's own, which may be sealed, have their first part on another drive")
    })
}

fn unreadable(seen: String) -> Finding {
    Cause::DrivesUnreadable.seen(seen)
}
