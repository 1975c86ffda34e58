//! The worker: requests to the store, and the meaning of the answers for the held keys.

use super::{Held, Reply, Request, Snapshot, VerifiedState, mark};
use crate::{
    cause::{Cause, Finding},
    clock::Clock,
    crypto::usable::Usable,
    metrics::Registry,
    names::Name,
    store::{Error, KeyStore},
};
use prometheus::{GaugeVec, IntGaugeVec};
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// The dependencies that the writer's tasks share.
pub(super) struct Worker {
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
}

pub(super) struct Metrics {
    verified: GaugeVec,
    mismatch: IntGaugeVec,
    overwritten: IntGaugeVec,
}

/// The outcome of a request, for the writer.
pub(super) enum Outcome {
    Loaded(Name, Result<Arc<Held>, Error>),
    /// A creation was tried, with or without success: earlier answers about the name are stale.
    Created(Name, Reply<()>, Result<(), Error>),
    Deleted(Name, Reply<()>),
    /// The request changes nothing for the writer.
    Nothing,
}

/// The verification of one key.
pub struct Verified {
    /// The name of the key.
    pub name: Name,
    /// The result: the stored key is the held key and works, or the finding.
    pub result: Result<(), Finding>,
    /// The warning that later versions are stored beside a key that passed.
    pub overwritten: Option<Finding>,
}

/// Pause before a key that seems to be lost is compared again.
const CONFIRM_PAUSE: Duration = Duration::from_secs(1);
/// Least number of verifications in a row without the key, and least time over which, before the key counts
/// as gone. One 404 proves nothing.
const ABSENCES_MIN: u32 = 3;
const ABSENT_TIME_MIN: Duration = Duration::from_secs(30);

// === impl Worker ===

impl Worker {
    pub(super) fn new(store: Arc<dyn KeyStore>, registry: &Registry, clock: Clock) -> Self {
        Self { store, clock, metrics: Metrics::new(registry) }
    }

    /// Reads, parses and tries a key.
    pub(super) async fn load(&self, name: &Name) -> Result<Arc<Held>, Error> {
        let text = self.store.get(name).await?;
        let usable = Usable::read(name, &text, &format!("in {}", self.store.describe()));
        let Usable { version, fingerprint } = usable.map_err(Error::Failed)?;
        self.metrics.verified.with_label_values(&[name.as_str()]).set(self.clock.unix_seconds());
        self.metrics.mismatch.with_label_values(&[name.as_str()]).set(0);
        let version = Arc::new(version);
        Ok(Arc::new(Held { version, fingerprint, lost: false, verified: self.clock.boot(), absent: None }))
    }

    /// As `load`, for a key that a client asks for: the witnesses judge the key before its first use.
    pub(super) async fn find(&self, name: &Name) -> Result<Arc<Held>, Error> {
        let held = self.load(name).await?;
        self.store.vouch(name, &held.fingerprint).await.map_err(Error::Failed)?;
        Ok(held)
    }

    pub(super) async fn serve(&self, request: Request, snapshot: &watch::Sender<Arc<Snapshot>>) -> Outcome {
        match request {
            Request::Load(_, _) => unreachable!("loads must be answered by the loop"),
            Request::Create(name, version, reply) => {
                let result = self.store.create(&name, &version.to_text()).await;
                Outcome::Created(name, reply, result)
            }
            Request::Delete(name, reply) => match self.store.delete(&name).await {
                Ok(()) => Outcome::Deleted(name, reply),
                Err(error) => {
                    let _ = reply.send(Err(error));
                    Outcome::Nothing
                }
            },
            Request::List(reply) => {
                let names = self.store.list().await.map_err(Error::Failed).map(|mut names| {
                    names.sort_unstable();
                    names
                });
                let _ = reply.send(names);
                Outcome::Nothing
            }
            Request::Status(reply) => {
                let started = self.clock.now();
                let result = self.store.ready().await.map(|()| self.clock.now() - started);
                let _ = reply.send(result);
                Outcome::Nothing
            }
            Request::Rescue(name, held, reply) => {
                let result = self.rescue(&name, &held).await;
                if result.is_ok() {
                    let state = VerifiedState { lost: false, verified: self.clock.boot(), absent: None };
                    snapshot.send_modify(|snapshot| mark(Arc::make_mut(snapshot), &name, &held, state));
                    self.count(&name, &Ok(()));
                }
                let _ = reply.send(result);
                Outcome::Nothing
            }
            Request::Verify(reply) => {
                let _ = reply.send(self.verify(snapshot).await);
                Outcome::Nothing
            }
        }
    }

    /// Verifies every held key. A changed key in the store is never taken: the held key is kept, and marked
    /// as lost.
    async fn verify(&self, snapshot: &watch::Sender<Arc<Snapshot>>) -> Vec<Verified> {
        let held: Vec<_> =
            snapshot.borrow().iter().map(|(name, held)| (name.clone(), held.clone())).collect();
        let mut results = Vec::with_capacity(held.len());
        for (name, held) in held {
            let mut result = self.compare(&name, &held).await;
            if !held.lost && result.as_ref().is_err_and(|finding| finding.cause.is_key_lost()) {
                // One answer proves nothing: a standby may be stale, or a restore under way.
                tokio::time::sleep(CONFIRM_PAUSE).await;
                result = self.compare(&name, &held).await;
            }
            let now = self.clock.boot();
            let absent = match &result {
                Err(finding) if finding.cause == Cause::KeyMissing => {
                    let (absences, since) = held.absent.unwrap_or((0, now));
                    Some((absences + 1, since))
                }
                _ => None,
            };
            if let Some(gone) = absent.and_then(|absent| gone(&name, absent, now)) {
                result = Err(gone);
            }
            let state = match &result {
                Ok(()) => VerifiedState { lost: false, verified: now, absent },
                Err(finding) => VerifiedState {
                    lost: held.lost || finding.cause.is_key_lost(),
                    verified: held.verified,
                    absent,
                },
            };
            if state != (VerifiedState { lost: held.lost, verified: held.verified, absent: held.absent }) {
                snapshot.send_modify(|snapshot| mark(Arc::make_mut(snapshot), &name, &held, state));
            }
            self.count(&name, &result);
            let overwritten = match &result {
                Ok(()) => self.store.overwritten(&name).await.unwrap_or_default(),
                Err(_) => None,
            };
            self.metrics
                .overwritten
                .with_label_values(&[name.as_str()])
                .set(i64::from(overwritten.is_some()));
            results.push(Verified { name, result, overwritten });
        }
        results
    }

    /// Puts a held key back under a name that stores no text. A stored text, whatever it is, is left to a
    /// person.
    async fn rescue(&self, name: &Name, held: &Held) -> Result<String, Finding> {
        let place = self.store.describe();
        match self.compare(name, held).await {
            Ok(()) => return Ok(format!("the key '{name}' is in {place}: there is nothing to rescue")),
            Err(finding) if finding.cause == Cause::KeyMissing => {}
            Err(finding) if finding.cause.is_key_lost() => {
                let set_aside = self.store.how_to_set_aside(name).await.command;
                return Err(finding.fix(format!(
                    "set aside what is left under the name, {set_aside}, and run the rescue again"
                )));
            }
            Err(finding) => return Err(finding),
        }
        match self.store.put_back(name, &held.version.to_text()).await {
            Ok(()) => {}
            Err(error) => {
                return Err(error.into_finding(|| {
                    Cause::KeyReplaced
                        .seen(format!("{place} refused the key '{name}': another process has stored a text under its name meanwhile"))
                        .fix("nothing was overwritten; find out what is stored now, and run the rescue again")
                }));
            }
        }
        self.compare(name, held).await?;
        Ok(format!("the key '{name}', fingerprint {}, is back in {place}", held.fingerprint))
    }

    async fn compare(&self, name: &Name, held: &Held) -> Result<(), Finding> {
        let place = self.store.describe();
        let unexpected = || Cause::StoreUnavailable.seen("the store answered out of turn");
        let text = self.store.get(name).await.map_err(|error| match error.into_finding(unexpected) {
            // The store's usual fix creates a new key, which must not happen under a name in use.
            finding if finding.cause == Cause::KeyMissing => finding.fix(put_back(name)),
            finding => finding,
        })?;
        let stored = Usable::read(name, &text, &format!("in {place}"))?;
        if !stored.version.key.same(&held.version.key) {
            return Err(Cause::KeyReplaced.seen(format!(
                "the key '{name}' in {place} is another one: its fingerprint is {}, was {}",
                stored.fingerprint, held.fingerprint
            )));
        }
        Ok(())
    }

    fn count(&self, name: &Name, result: &Result<(), Finding>) {
        let label = &[name.as_str()];
        match result {
            Ok(()) => {
                self.metrics.verified.with_label_values(label).set(self.clock.unix_seconds());
                self.metrics.mismatch.with_label_values(label).set(0);
            }
            Err(finding) if finding.cause.is_key_lost() => {
                self.metrics.mismatch.with_label_values(label).set(1)
            }
            Err(_) => {}
        }
    }
}

/// The finding of a key that is certainly gone. Absent while the absences are too few, or too recent.
fn gone(name: &Name, (absences, since): (u32, Duration), now: Duration) -> Option<Finding> {
    let lasted = now.saturating_sub(since);
    (absences >= ABSENCES_MIN && lasted >= ABSENT_TIME_MIN).then(|| {
        let lasted = crate::clock::human(lasted);
        Cause::KeyDestroyed
            .seen(format!("there has been no key '{name}' in the store for {lasted}, in {absences} looks"))
            .fix(put_back(name))
    })
}

fn put_back(name: &Name) -> String {
    format!(
        "put the same key back: `keswarden key rescue {name}` writes the copy in memory, or restore a backup"
    )
}

// === impl Metrics ===

impl Metrics {
    fn new(registry: &Registry) -> Self {
        Self {
            verified: registry.gauges(
                "keswarden_key_last_verified_timestamp_seconds",
                "When the key was last fetched, compared and tried",
                &["key"],
            ),
            overwritten: registry.int_gauges(
                "keswarden_key_overwritten",
                "1 when the store has later versions beside the one that counts, which is well",
                &["key"],
            ),
            mismatch: registry.int_gauges(
                "keswarden_key_fingerprint_mismatch",
                "1 when the store holds other bytes under the key's name than those in use, or has destroyed them",
                &["key"],
            ),
        }
    }

    /// Removes the series of a key that was deleted by request.
    pub(super) fn forget(&self, name: &Name) {
        let _ = self.verified.remove_label_values(&[name.as_str()]);
        let _ = self.mismatch.remove_label_values(&[name.as_str()]);
        let _ = self.overwritten.remove_label_values(&[name.as_str()]);
    }
}
