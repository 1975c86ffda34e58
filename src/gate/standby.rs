//! The store is away: a sealed copy may stand in for it, when it is there, counts, and neither pins nor drives say otherwise.

use super::checks::{Checks, Looked};
use crate::{
    cause::{Cause, Finding},
    clock, evidence,
    keyring::KeyringWriter,
    offline::{self, Opened},
};
use std::sync::Arc;

impl Checks<'_> {
    pub(super) async fn without_store(
        &self,
        writer: &KeyringWriter,
        finding: Finding,
    ) -> (Result<String, Finding>, Option<Result<String, Finding>>) {
        let Some(copy) = self.config.copy.as_ref().filter(|_| offline::stands_in_for(finding.cause)) else {
            return (Err(finding), None);
        };
        let opening = copy.clone();
        let opened = self.blocking.run(move || opening.open()).await;
        let opened = opened.unwrap_or_else(|hangs| Err(Cause::CopyUnusable.seen(hangs.to_string())));
        let opened = match opened {
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

    /// The demanded keys must be in it; none of it is held before all of it was found well. Keys count as verified when they
    /// last were.
    async fn keys_of_copy(&self, writer: &KeyringWriter, opened: Opened) -> Result<String, Finding> {
        let mut looked = Looked::new();
        for kept in opened.keys {
            let verified = self.clock.boot().saturating_sub(kept.age);
            looked.insert(kept.name, (Arc::new(writer.copied(kept.version, verified, kept.lost)), true));
        }
        for name in &self.config.keys {
            if !looked.contains_key(name) {
                return Err(Cause::KeyMissing.seen(format!("the sealed copy has no key '{name}'")));
            }
        }
        // A registry in the Vault that is away cannot be asked; one that answers counts.
        let pins = match looked.keys().next() {
            Some(name) => self.config.pins.that_answer(name).await,
            None => self.config.pins.clone(),
        };
        for (name, (held, _)) in &looked {
            pins.judge(name, &held.fingerprint).await?;
        }
        let mut seen = vec![format!("{} keys of the sealed copy", looked.len())];
        if let Some(samples) = self.samples().await? {
            seen.push(self.proof(&samples, &looked, evidence::Opened::Unknown)?.says);
        }
        for (name, (held, _)) in looked {
            writer.hold(&name, held);
        }
        Ok(seen.join("; "))
    }
}
