//! What must be true before MinIO may start: one function per check, in the order in which they make sense.

use super::{Create, Deps, Settings, judged::FoundWell, proof::Drives};
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
    /// Absent: not looked at, because an earlier check failed. A failure is one finding or more, the first that matters first.
    pub result: Option<Result<String, Vec<Finding>>>,
    /// What stops nobody, and a person should know of: witnesses that could not be asked, a key that nothing proves.
    pub notes: Vec<Finding>,
    pub took: Duration,
}

/// What stands in the way.
pub(super) struct Failed {
    pub(super) check: Check,
    pub(super) finding: Finding,
    /// What will stand in the way when that is mended.
    pub(super) others: Vec<Finding>,
}

pub(super) struct Checks<'a> {
    pub(super) settings: &'a Settings,
    pub(super) deps: &'a Deps,
    /// Nothing is made and nothing is remembered: `doctor` only looks.
    pub(super) only_looks: bool,
    /// What the drives said, and the look at them that is under way.
    pub(super) drives: Mutex<Drives>,
    /// Keys that the attempt under way found well, to be remembered once all of it passes.
    pub(super) found: std::sync::Mutex<Vec<FoundWell>>,
    pub(super) begun: Instant,
    /// There is a next attempt, and time for it.
    pub(super) waits: bool,
    /// What was logged by an attempt is not logged by the next.
    pub(super) said: std::sync::Mutex<HashSet<String>>,
    /// What reads the sealed copy: its disk may hang.
    pub(super) blocking: Blocking,
}

/// Keys that were read.
pub(super) type Looked = BTreeMap<Name, Arc<Held>>;

/// Keys that are well, in words, and what stops nobody.
pub(super) struct Well {
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
            only_looks: false,
            drives: Mutex::default(),
            found: std::sync::Mutex::default(),
            said: std::sync::Mutex::default(),
            blocking: Blocking::default(),
        }
    }

    /// The same for a gate that may wait for drives.
    pub(super) fn waiting(self, waits: bool) -> Self {
        Self { waits, ..self }
    }

    /// The same for `doctor`: nothing is made and nothing is remembered.
    pub(super) fn only_looking(self) -> Self {
        Self { only_looks: true, ..self }
    }

    /// Whether this is the first time that it is to be said.
    pub(super) fn is_news(&self, text: &str) -> bool {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned())
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

    fn of_keys(result: Result<Well, Vec<Finding>>, took: Duration) -> Self {
        let (result, notes) = match result {
            Ok(Well { says, notes }) => (Ok(says), notes),
            Err(wrong) => (Err(wrong), Vec::new()),
        };
        Self { check: Check::Key, result: Some(result), notes, took }
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
    /// What is only told of, or the first check that fails, and what else does; `left` is what is left of the deadline.
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
        let found = std::mem::take(&mut *self.found.lock().unwrap_or_else(PoisonError::into_inner));
        let Some((check, finding)) = failed.next() else {
            // What did not pass as a whole is not remembered.
            for (name, held, statements) in found {
                notes.extend(self.remember(&name, &held, &statements).await);
            }
            return Ok(notes);
        };
        Err(Failed { check, finding, others: failed.map(|(_, finding)| finding).collect() })
    }

    /// Every check; KES is looked at whatever the store says, since it has a store of its own.
    pub(super) async fn each(&self, writer: &KeyringWriter, left: Option<Duration>) -> Vec<Row> {
        let bound = left.map_or(ATTEMPT, |left| left.clamp(LEAST, ATTEMPT));
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
                let left = bound.saturating_sub(kes_took).max(LEAST);
                let agree = within(left, Cause::KesUnreachable, "KES", self.agree(writer, &client));
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
            // It does not answer, or it did and then did not.
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

    /// What it gives, and how long it took.
    async fn timed<T>(&self, check: impl Future<Output = T>) -> (T, Duration) {
        let begun = self.deps.clock.now();
        (check.await, self.deps.clock.now() - begun)
    }

    /// Without a key store: KES, and what its keys open.
    async fn each_at_kes(&self, bound: Duration) -> Vec<Row> {
        let (kes, took) = self.timed(within(bound, Cause::KesUnreachable, "KES", self.kes())).await;
        let (kes, (keys, keys_took)) = match kes {
            Ok((seen, Some(client))) => {
                let left = bound.saturating_sub(took).max(LEAST);
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

    /// Reachable, unsealed, logged in, and the place of the keys is there.
    async fn store(&self) -> Result<String, Finding> {
        self.deps.store.ready().await.map(|()| self.deps.store.describe())
    }

    /// Every key is there, can be parsed, opens what it seals, opens what the drives hold, and no witness knows another one. Only then
    /// is any of them held.
    async fn keys(&self, writer: &KeyringWriter) -> Result<Well, Vec<Finding>> {
        let (mut looked, mut wrong) = (Looked::new(), Vec::new());
        for name in &self.settings.keys {
            match self.key(name, writer).await {
                Ok(held) => drop(looked.insert(name.clone(), held)),
                // The store is away: the other keys would say the same.
                Err(finding) if finding.cause.allows_sealed_copy() => return Err(vec![finding]),
                Err(finding) => wrong.push(finding),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let samples = self.samples().await;
        if let Ok(Some(samples)) = &samples {
            self.look_for_named(samples, writer, &mut looked).await.map_err(|finding| vec![finding])?;
        }
        let drives = self.tried(&samples, &looked);
        let well = self.judged(writer, looked, drives).await?;
        Ok(well)
    }

    async fn key(&self, name: &Name, writer: &KeyringWriter) -> Result<Arc<Held>, Finding> {
        match writer.look(name).await {
            Err(Error::Missing(finding)) => match self.settings.create {
                Create::IfNew | Create::First | Create::FirstWhateverDrives if !self.only_looks => {
                    self.create(name, writer, finding).await
                }
                _ => Err(self.is_missing(name, finding).await),
            },
            Err(Error::Failed(finding)) if finding.cause.is_no_key() || finding.cause.is_key_lost() => {
                Err(self.is_missing(name, finding).await)
            }
            result => result.map_err(|error| error.into_finding(|| unexpected(name))),
        }
    }

    /// What is true of a key that is not there: who knows it, and who can give it back.
    async fn is_missing(&self, name: &Name, finding: Finding) -> Finding {
        let statements = self.all_know(name, None).await;
        let set_aside = match finding.cause.is_key_lost() {
            true => Some(self.deps.store.how_to_set_aside(name).await),
            false => None,
        };
        known::missing(name, finding, &statements, &self.deps.memory.commands, set_aside.as_ref())
    }

    /// KES opens what it has just sealed for MinIO.
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
        // At once: each may take as long as a request may.
        let (is_ours, worked) = tokio::join!(client.is_ours(), round_trips);
        if is_ours {
            return Ok((format!("{endpoints} is our own"), None));
        }
        worked?;
        Ok((format!("{endpoints} seals and opens for MinIO's identity"), Some(client)))
    }

    /// KES opens what the keys at hand seal, and they open what KES seals: both have the same ones.
    async fn agree(&self, writer: &KeyringWriter, client: &kes_client::Client) -> Result<String, Finding> {
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

/// A check that is given up after a while.
async fn within<T>(
    bound: Duration,
    cause: Cause,
    what: &str,
    check: impl Future<Output = Result<T, Finding>>,
) -> Result<T, Finding> {
    tokio::time::timeout(bound, check).await.unwrap_or_else(|_| Err(late(bound, cause, what)))
}

fn late(bound: Duration, cause: Cause, what: &str) -> Finding {
    cause.seen(format!("{what} did not answer everything within {}", clock::human(bound)))
}

pub(super) fn unexpected(name: &Name) -> Finding {
    Cause::StoreUnavailable.seen(format!("the key '{name}' exists and does not, by turns"))
}
