//! The store is away: a sealed copy may stand in for it, when it is there, counts, and neither pins nor drives say otherwise.

use super::{
    checks::{Checks, Looked, Well},
    judged::asked,
};
use crate::{
    cause::{Cause, Finding},
    clock,
    keyring::KeyringWriter,
    known::{self, Asked, Kind, Verdict},
    offline::Opened,
};
use std::sync::Arc;

impl Checks<'_> {
    pub(super) async fn without_store(
        &self,
        writer: &KeyringWriter,
        finding: Finding,
    ) -> (Result<String, Finding>, Option<Result<Well, Finding>>) {
        let Some(copy) = self.deps.copy.as_ref().filter(|_| finding.cause.allows_sealed_copy()) else {
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

    /// The demanded keys must be in it, and no other witness may know another one; none of it is held before all of it was found well.
    /// Keys count as verified when they last were. A copy of another key store counts for no key that nobody else knows: two agents may
    /// share a directory.
    async fn keys_of_copy(&self, writer: &KeyringWriter, opened: Opened) -> Result<Well, Finding> {
        let mut looked = Looked::new();
        for kept in opened.keys {
            let verified = self.deps.clock.boot().saturating_sub(kept.age);
            looked.insert(kept.name, Arc::new(writer.copied(kept.version, verified, kept.lost)));
        }
        for name in &self.settings.keys {
            if !looked.contains_key(name) {
                return Err(Cause::KeyMissing.seen(format!("the sealed copy has no key '{name}'")));
            }
        }
        let mut drives = self.tried(&self.samples().await, &looked);
        // The copy is no witness for itself.
        let others = self.deps.memory.witnesses.without(Kind::Copy);
        let mut passed = Vec::new();
        for (name, held, mut statements) in asked(&others, looked).await {
            statements.extend(drives.statement(&name));
            match self.is_no_other(&name, &held, &statements).await {
                Ok(note) => drives.notes.extend(note),
                Err(finding) if self.is_demanded(&name) => return Err(finding),
                Err(finding) => {
                    self.say(&finding, &format!("the key '{name}' of the sealed copy is not used"));
                    continue;
                }
            }
            let is_known = known::judge(Asked::Key(&held.fingerprint), &statements) == Verdict::Same;
            if opened.is_ours || is_known {
                passed.push((name, held));
            } else if self.settings.keys.contains(&name) {
                return Err(Cause::CopyUnusable
                    .seen(format!(
                        "the sealed copy is of {}, the key store here is {}, and nobody else knows its key '{name}'",
                        opened.origin,
                        self.deps.store.describe()
                    ))
                    .fix(
                        "give each key store a copy of its own: KESWARDEN_OFFLINE_DIR; if the key store has only moved, say so by a pin: \
                         KESWARDEN_PINS",
                    ));
            }
        }
        let mut says = vec![format!("{} keys of the sealed copy", passed.len())];
        says.extend(drives.says.take());
        for (name, held) in passed {
            writer.hold(&name, held);
        }
        Ok(Well { says: says.join("; "), notes: drives.notes })
    }
}
