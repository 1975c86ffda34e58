//! A start on the sealed copy while the key store is away: the copy must count, and no other witness may know
//! other keys.

use super::{
    checks::{Checks, PassedKeys, ReadKeys},
    judged::ask_witnesses,
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
    /// The results of the checks of store and keys, when the store failed with `finding`. The second is
    /// absent when the copy cannot be used.
    pub(super) async fn without_store(
        &self,
        writer: &KeyringWriter,
        finding: Finding,
    ) -> (Result<String, Finding>, Option<Result<PassedKeys, Finding>>) {
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

    /// The copy has every demanded key, and no other witness knows another key of the name. No key is held
    /// before all have passed. A key counts as verified at its last verification. A copy of another key store
    /// counts only for keys that another witness knows: two agents may share a directory.
    async fn keys_of_copy(&self, writer: &KeyringWriter, opened: Opened) -> Result<PassedKeys, Finding> {
        let mut keys_read = ReadKeys::new();
        for kept in opened.keys {
            let verified = self.deps.clock.boot().saturating_sub(kept.age);
            keys_read.insert(kept.name, Arc::new(writer.copied(kept.version, verified, kept.lost)));
        }
        for name in &self.settings.keys {
            if !keys_read.contains_key(name) {
                return Err(Cause::KeyMissing.seen(format!("the sealed copy has no key '{name}'")));
            }
        }
        let mut drives = self.try_on_evidence(&self.samples().await, &keys_read);
        // The copy is no witness for itself.
        let others = self.deps.memory.witnesses.without(Kind::Copy);
        let mut passed = Vec::new();
        for (name, held, mut statements) in ask_witnesses(&others, keys_read).await {
            statements.extend(drives.statement(&name));
            match self.check_no_other(&name, &held, &statements).await {
                Ok(note) => drives.notes.extend(note),
                Err(finding) if self.is_demanded(&name) => return Err(finding),
                Err(finding) => {
                    self.log_error_once(
                        &finding,
                        &format!("the key '{name}' of the sealed copy is not used"),
                    );
                    continue;
                }
            }
            let is_known = known::judge(Asked::Key(&held.fingerprint), &statements) == Verdict::Same;
            if opened.is_ours || is_known {
                passed.push((name, held));
            } else if self.settings.keys.contains(&name) {
                return Err(Cause::CopyUnusable
                    .seen(format!(
                        "the sealed copy is of {}, the key store here is {}, and no other witness knows its key '{name}'",
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
        Ok(PassedKeys { says: says.join("; "), notes: drives.notes })
    }
}
