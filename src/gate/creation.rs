//! The first key: made only when nothing shows that the name was ever used.

use super::{
    Create,
    checks::{Checks, unexpected},
};
use crate::{
    cause::{Cause, Finding},
    evidence::{Samples, State},
    keyring::{Held, KeyringWriter},
    names::Name,
    store::Error,
};
use std::sync::Arc;

impl Checks<'_> {
    pub(super) async fn create(
        &self,
        name: &Name,
        writer: &KeyringWriter,
        missing: Finding,
    ) -> Result<Arc<Held>, Finding> {
        if let Some(trace) = self.trace_of(name).await? {
            let seen = format!("{}, but {trace}, so it is not made anew", missing.seen);
            return Err(Cause::KeyMissing
                .seen(seen)
                .fix("bring the former key back: what it sealed opens with nothing else"));
        }
        if self.config.create == Create::IfNew && self.store.forgets().await? && !self.is_new_tenant().await?
        {
            let seen = format!(
                "{}; K/V v1 forgets what is deleted, and a disk that is not mounted is an empty directory: this is no proof \
                 that it is new",
                missing.seen
            );
            return Err(Cause::KeyMissing.seen(seen).fix(format!(
                "if there never was one, make it once: `keswarden key create --first {name}`; or give the gate the tenant's \
                 new drives: KESWARDEN_DRIVES"
            )));
        }
        let now = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        match writer.create(name, &self.config.maker, now).await {
            Ok(held) => {
                tracing::warn!(key = %name, fingerprint = held.fingerprint, "the key was made: nothing shows that there ever was one");
                Ok(held)
            }
            // Another pod was faster: its key is the key.
            Err(Error::Exists) => {
                writer.look(name).await.map_err(|error| error.into_finding(|| unexpected(name)))
            }
            Err(error) => Err(error.into_finding(|| unexpected(name))),
        }
    }

    /// What shows that a key of this name was there once.
    async fn trace_of(&self, name: &Name) -> Result<Option<String>, Finding> {
        if self.store.has_trace(name).await? {
            return Ok(Some("the store has a trace of it".to_owned()));
        }
        if let Some(samples) = self.samples().await? {
            if let Some(records) = samples.keys.get(name.as_str()) {
                let seen = records.seen;
                return Ok(Some(format!("the drives hold {seen} objects that were sealed with it")));
            }
            if let Some(gap) = gap(&samples) {
                return Err(Cause::DrivesUnreadable.seen(format!(
                    "the key '{name}' is missing, and {gap}: what is sealed with it may be there, so it is not made anew"
                )));
            }
        }
        let Some(copy) = self.config.copy.clone() else { return Ok(None) };
        let wanted = name.clone();
        let has = self.blocking.run(move || copy.has(&wanted)).await;
        let has = has.unwrap_or_else(|hangs| Err(Cause::CopyUnusable.seen(hangs.to_string())))?;
        Ok(has.then(|| "the sealed copy has it".to_owned()))
    }

    /// The tenant's drives are there, and no MinIO has ever used them.
    async fn is_new_tenant(&self) -> Result<bool, Finding> {
        Ok(self.samples().await?.is_some_and(|samples| samples.is_new()))
    }
}

/// What of the drives was not read.
fn gap(samples: &Samples) -> Option<String> {
    let unreadable = samples.drives.iter().find_map(|drive| match &drive.state {
        State::Unreadable(why) => Some(format!("{} cannot be read: {why}", drive.path.display())),
        State::New | State::Used => None,
    });
    let left = samples.tally.skipped + samples.tally.unknown;
    unreadable.or_else(|| match (samples.cut_short, left) {
        (true, _) => Some("there is more on the drives than was looked at".to_owned()),
        (false, 0) => None,
        (false, left) => Some(format!("{left} of the files on the drives could not be understood")),
    })
}
