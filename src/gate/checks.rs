//! The checks that must pass before MinIO may start: key store, keys, KES.

use super::{Create, Deps, Settings, judged::Witnessed, proof::Drives};
use crate::{
    cause::{Cause, Finding},
    clock::{self, Instant},
    files::Blocking,
    kes_client,
    keyring::{Held, KeyringWriter},
    keystore::nowhere,
    known,
    names::Name,
    store::Error,
};
use std::{
    collections::{BTreeMap, HashSet},
    sync::{Arc, PoisonError},
    time::Duration,
};
use tokio::sync::Mutex;

/// The source of the KES in MinIO's own settings: absent when MinIO uses this agent. Called at each attempt,
/// since MinIO's file may change.
pub type KesSource = Arc<dyn Fn() -> Result<Option<kes_client::Config>, Finding> + Send + Sync>;

/// One condition of the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// The key store answers and can be used.
    Store,
    /// Every demanded key can be read, works, and is the key that the witnesses know.
    Key,
    /// The KES of MinIO's settings seals and opens, with the keys of the key store.
    Kes,
}

/// The result of one check, for a table.
pub struct Row {
    /// The check.
    pub check: Check,
    /// The result in words, or one finding or more, the most important first. Absent: skipped, because an
    /// earlier check failed.
    pub result: Option<Result<String, Vec<Finding>>>,
    /// Warnings: witnesses that could not be asked, a key that no data prove. They stop no start.
    pub notes: Vec<Finding>,
    /// The duration of the check.
    pub took: Duration,
}

/// The first failure of an attempt.
pub(super) struct Failed {
    pub(super) check: Check,
    pub(super) finding: Finding,
    /// The further findings of the same attempt.
    pub(super) others: Vec<Finding>,
}

pub(super) struct Checks<'a> {
    pub(super) settings: &'a Settings,
    pub(super) deps: &'a Deps,
    /// For `doctor`: no key is created and none is remembered.
    pub(super) is_read_only: bool,
    /// The samples of the drives, and the sampling under way.
    pub(super) drives: Mutex<Drives>,
    /// Keys that passed in the attempt under way, to be remembered once the whole attempt passes.
    pub(super) passed: std::sync::Mutex<Vec<Witnessed>>,
    pub(super) begun: Instant,
    /// A further attempt will follow, with time for drives to come.
    pub(super) waits: bool,
    /// Lines logged by earlier attempts, which are not logged again.
    pub(super) logged: std::sync::Mutex<HashSet<String>>,
    /// Reads the sealed copy on other threads: the disk may hang.
    pub(super) blocking: Blocking,
}

/// Keys that were read and tried, by name.
pub(super) type ReadKeys = BTreeMap<Name, Arc<Held>>;

/// The keys that passed, in words, and the warnings about them.
pub(super) struct PassedKeys {
    pub(super) says: String,
    pub(super) notes: Vec<Finding>,
}

impl<'a> Checks<'a> {
    pub(super) fn new(settings: &'a Settings, deps: &'a Deps) -> Self {
        Self {
            begun: deps.clock.now(),
            waits: false,
            settings,
            deps,
            is_read_only: false,
            drives: Mutex::default(),
            passed: std::sync::Mutex::default(),
            logged: std::sync::Mutex::default(),
            blocking: Blocking::default(),
        }
    }

    /// The same for a gate that may wait for drives.
    pub(super) fn waiting(self, waits: bool) -> Self {
        Self { waits, ..self }
    }

    /// The same for `doctor`: no key is created and none is remembered.
    pub(super) fn read_only(self) -> Self {
        Self { is_read_only: true, ..self }
    }

    /// Whether the text was not logged by this set of checks before; marks the text as logged.
    pub(super) fn is_new_line(&self, text: &str) -> bool {
        self.logged.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned())
    }
}

// === impl Row ===

impl Row {
    fn new(check: Check, result: Option<Result<String, Finding>>, took: Duration) -> Self {
        Self {
            check,
            result: result.map(|result| result.map_err(|finding| vec![finding])),
            notes: Vec::new(),
            took,
        }
    }

    fn of_keys(result: Result<PassedKeys, Vec<Finding>>, took: Duration) -> Self {
        let (result, notes) = match result {
            Ok(PassedKeys { says, notes }) => (Ok(says), notes),
            Err(wrong) => (Err(wrong), Vec::new()),
        };
        Self { check: Check::Key, result: Some(result), notes, took }
    }
}

// === impl Check ===

impl Check {
    /// The subject of the check, in words: `the default key 'minio'`.
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

/// Bound of one attempt, whatever its requests do.
const ATTEMPT_MAX: Duration = Duration::from_secs(30);
/// Least bound of an attempt, so that a deadline ends with a finding.
const ATTEMPT_MIN: Duration = Duration::from_secs(1);

impl Checks<'_> {
    /// Runs every check, and remembers the keys when all pass: the warnings, or the first failure. `left` is
    /// the rest of the deadline.
    pub(super) async fn all(
        &self,
        writer: &KeyringWriter,
        left: Option<Duration>,
    ) -> Result<Vec<Finding>, Failed> {
        let (mut failed, mut notes) = (Vec::new(), Vec::new());
        for row in self.each(writer, left).await {
            notes.extend(row.notes);
            let wrong = row.result.and_then(Result::err).unwrap_or_default();
            failed.extend(wrong.into_iter().map(|finding| (row.check, finding)));
        }
        let mut failed = failed.into_iter();
        let passed = std::mem::take(&mut *self.passed.lock().unwrap_or_else(PoisonError::into_inner));
        let Some((check, finding)) = failed.next() else {
            // An attempt that failed remembers none of its keys.
            for (name, held, statements) in passed {
                notes.extend(self.remember(&name, &held, &statements).await);
            }
            return Ok(notes);
        };
        Err(Failed { check, finding, others: failed.map(|(_, finding)| finding).collect() })
    }

    /// Runs every check. KES is checked even when the key store fails, since KES has a store of its own.
    pub(super) async fn each(&self, writer: &KeyringWriter, left: Option<Duration>) -> Vec<Row> {
        let bound = left.map_or(ATTEMPT_MAX, |left| left.clamp(ATTEMPT_MIN, ATTEMPT_MAX));
        if self.settings.kes_alone {
            return self.each_at_kes(bound).await;
        }
        let (store_and_keys, (kes, kes_took)) = tokio::join!(
            tokio::time::timeout(bound, self.store_and_keys(writer)),
            self.timed(within(bound, Cause::KesUnreachable, "KES", self.kes()))
        );
        let [store, keys] = store_and_keys.unwrap_or_else(|_| {
            // A directory may hang as well, on a network file system.
            let late = late(bound, self.deps.store.unanswered(), &self.deps.store.describe());
            [Row::new(Check::Store, Some(Err(late)), bound), Row::new(Check::Key, None, Duration::ZERO)]
        });
        let (kes, agreeing_took) = match kes {
            Err(finding) => (Err(finding), Duration::ZERO),
            Ok((seen, None)) => (Ok(seen), Duration::ZERO),
            Ok((seen, Some(client))) => {
                let left = bound.saturating_sub(kes_took).max(ATTEMPT_MIN);
                let agree = within(left, Cause::KesUnreachable, "KES", self.same_keys(writer, &client));
                let (agreed, took) = self.timed(agree).await;
                (agreed.map(|more| seen + &more), took)
            }
        };
        vec![store, keys, Row::new(Check::Kes, Some(kes), kes_took + agreeing_took)]
    }

    async fn store_and_keys(&self, writer: &KeyringWriter) -> [Row; 2] {
        let (store, took) = self.timed(self.store()).await;
        let (keys, keys_took) = match &store {
            Ok(_) => self.timed(self.keys(writer)).await,
            Err(finding) => (Err(vec![finding.clone()]), Duration::ZERO),
        };
        match (store, keys) {
            (Ok(store), Ok(keys)) => {
                [Row::new(Check::Store, Some(Ok(store)), took), Row::of_keys(Ok(keys), keys_took)]
            }
            // The store did not answer, or stopped answering between the two checks.
            (Err(finding), _) => self.on_copy(writer, finding, took).await,
            (Ok(_), Err(wrong)) if self.deps.copy.is_some() && wrong[0].cause.allows_sealed_copy() => {
                self.on_copy(writer, wrong[0].clone(), took).await
            }
            (Ok(store), Err(wrong)) => {
                [Row::new(Check::Store, Some(Ok(store)), took), Row::of_keys(Err(wrong), keys_took)]
            }
        }
    }

    async fn on_copy(&self, writer: &KeyringWriter, finding: Finding, took: Duration) -> [Row; 2] {
        let ((store, keys), copy_took) = self.timed(self.without_store(writer, finding)).await;
        let keys = match keys {
            None => Row::new(Check::Key, None, copy_took),
            Some(keys) => Row::of_keys(keys.map_err(|finding| vec![finding]), copy_took),
        };
        [Row::new(Check::Store, Some(store), took), keys]
    }

    /// The output of a check, and its duration.
    async fn timed<T>(&self, check: impl Future<Output = T>) -> (T, Duration) {
        let begun = self.deps.clock.now();
        (check.await, self.deps.clock.now() - begun)
    }

    /// Runs the checks of a set-up without a key store: KES, and its keys by what they open.
    async fn each_at_kes(&self, bound: Duration) -> Vec<Row> {
        let (kes, took) = self.timed(within(bound, Cause::KesUnreachable, "KES", self.kes())).await;
        let (kes, (keys, keys_took)) = match kes {
            Ok((seen, Some(client))) => {
                let left = bound.saturating_sub(took).max(ATTEMPT_MIN);
                let keys = within(left, Cause::KesUnreachable, "KES", self.keys_at_kes(&client));
                let (keys, took) = self.timed(keys).await;
                (Ok(seen), (Some(keys), took))
            }
            Ok((_, None)) => (Err(nowhere::unset()), (None, Duration::ZERO)),
            Err(finding) => (Err(finding), (None, Duration::ZERO)),
        };
        let nowhere = Ok("none: the keys are in KES".to_owned());
        vec![
            Row::new(Check::Store, Some(nowhere), Duration::ZERO),
            Row::new(Check::Kes, Some(kes), took),
            Row::new(Check::Key, keys, keys_took),
        ]
    }

    /// The key store is reachable, unsealed and logged in to, and the place of the keys exists.
    async fn store(&self) -> Result<String, Finding> {
        self.deps.store.ready().await.map(|()| self.deps.store.describe())
    }

    /// Every demanded key can be read and parsed, opens what it seals, opens the evidence of the drives, and
    /// no witness knows another key of the name. No key is held before all have passed.
    async fn keys(&self, writer: &KeyringWriter) -> Result<PassedKeys, Vec<Finding>> {
        let (mut keys_read, mut wrong) = (ReadKeys::new(), Vec::new());
        for name in &self.settings.keys {
            match self.key(name, writer).await {
                Ok(held) => drop(keys_read.insert(name.clone(), held)),
                // The store is away: reading the other keys would fail in the same way.
                Err(finding) if finding.cause.allows_sealed_copy() => return Err(vec![finding]),
                Err(finding) => wrong.push(finding),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let samples = self.samples().await;
        if let Ok(Some(samples)) = &samples {
            self.read_named(samples, writer, &mut keys_read).await.map_err(|finding| vec![finding])?;
        }
        let drives = self.try_on_evidence(&samples, &keys_read);
        self.judge_all(writer, keys_read, drives).await
    }

    async fn key(&self, name: &Name, writer: &KeyringWriter) -> Result<Arc<Held>, Finding> {
        match writer.look(name).await {
            Err(Error::Missing(finding)) => match self.settings.create {
                Create::IfNew | Create::First | Create::FirstWhateverDrives if !self.is_read_only => {
                    self.create(name, writer, finding).await
                }
                _ => Err(self.missing(name, finding).await),
            },
            Err(Error::Failed(finding)) if finding.cause.is_no_key() || finding.cause.is_key_lost() => {
                Err(self.missing(name, finding).await)
            }
            result => result.map_err(|error| error.into_finding(|| unexpected(name))),
        }
    }

    /// The finding of a missing key: the witnesses that know the name, and the ways to put the key back.
    async fn missing(&self, name: &Name, finding: Finding) -> Finding {
        let statements = self.statements_on_missing(name, None).await;
        let set_aside = match finding.cause.is_key_lost() {
            true => Some(self.deps.store.how_to_set_aside(name).await),
            false => None,
        };
        known::missing(name, finding, &statements, &self.deps.memory.commands, set_aside.as_ref())
    }

    /// KES opens for MinIO's identity a data key that it has just sealed. The client is absent when that KES
    /// is this agent, or none is configured.
    async fn kes(&self) -> Result<(String, Option<kes_client::Client>), Finding> {
        let Some(config) = (self.deps.kes)()? else {
            return Ok(("no KES but ours is configured".to_owned(), None));
        };
        let endpoints = config.endpoints.join(", ");
        let client = kes_client::Client::new(config, &self.deps.clock)?;
        let round_trips = async {
            for key in &self.settings.keys {
                client.round_trip(key).await?;
            }
            Ok(())
        };
        // Concurrent, since each may take as long as a request may.
        let (is_ours, worked) = tokio::join!(client.is_ours(), round_trips);
        if is_ours {
            return Ok((format!("{endpoints} is our own"), None));
        }
        worked?;
        Ok((format!("{endpoints} seals and opens for MinIO's identity"), Some(client)))
    }

    /// KES and the key store have the same keys: each opens what the other seals.
    async fn same_keys(
        &self,
        writer: &KeyringWriter,
        client: &kes_client::Client,
    ) -> Result<String, Finding> {
        let mut agreed = 0;
        for name in &self.settings.keys {
            let Some(held) = writer.held(name) else { continue };
            let key = &held.version.key;
            let context = kes_client::CONTEXT.as_bytes();
            let (plaintext, ciphertext) = client.generate(name).await?;
            let ours = key.open(&ciphertext, context).is_ok_and(|opened| opened == plaintext);
            let made = key.generate(context);
            let theirs = match client.decrypt(name, &made.ciphertext, context).await {
                Ok(opened) => opened.as_slice() == &made.plaintext[..],
                Err(finding) if finding.cause == Cause::KesRoundTripFailed => false,
                Err(finding) => return Err(finding),
            };
            if !(ours && theirs) {
                return Err(Cause::KesDisagrees.seen(format!(
                    "KES and {} have different keys under the name '{name}': neither opens what the other seals",
                    self.deps.store.describe()
                )));
            }
            agreed += 1;
        }
        Ok(if agreed == 0 { String::new() } else { ", with the same keys as the key store".to_owned() })
    }
}

/// The result of a check, or the cause when the bound passes first.
async fn within<T>(
    bound: Duration,
    cause: Cause,
    what: &str,
    check: impl Future<Output = Result<T, Finding>>,
) -> Result<T, Finding> {
    tokio::time::timeout(bound, check).await.unwrap_or_else(|_| Err(late(bound, cause, what)))
}

fn late(bound: Duration, cause: Cause, what: &str) -> Finding {
    cause.seen(format!("{what} did not answer every request within {}", clock::human(bound)))
}

pub(super) fn unexpected(name: &Name) -> Finding {
    Cause::StoreUnavailable
        .seen(format!("successive answers contradict each other on whether there is a key '{name}'"))
}
