//! Keys that were read, held against what the witnesses know: who passes, who is waited for, and what is remembered.

use super::checks::{Checks, Looked, Well};
use crate::{
    cause::{Cause, Finding},
    clock,
    keyring::{Held, KeyringWriter},
    known::{self, Asked, Statement, Verdict, Witnesses},
    names::Name,
    pins::{self, Mode},
};
use futures_util::stream::{self, StreamExt};
use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

/// A key that was found well, and what the witnesses say of it.
pub(super) type FoundWell = (Name, Arc<Held>, Vec<Statement>);

/// How many keys the witnesses are asked about at once.
const ASKED_AT_ONCE: usize = 64;
/// How long a gate waits for drives that are not there yet, where nobody else knows the key.
pub(super) const DRIVES_MAY_COME: Duration = Duration::from_secs(30);

impl Checks<'_> {
    /// Judges every key that was read, and holds those that pass.
    pub(super) async fn judged(
        &self,
        writer: &KeyringWriter,
        looked: Looked,
        drives: super::proof::Tried,
    ) -> Result<Well, Vec<Finding>> {
        let (mut wrong, mut passed, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        let mut notes = drives.notes.clone();
        for (name, held, mut statements) in asked(&self.config.memory.witnesses, looked).await {
            statements.extend(drives.statement(&name));
            match self.judge(&name, &held, &statements) {
                Ok(()) if self.waits_for_drives(&name, &held, &statements) => {
                    wrong.extend(drives_may_come(&name, &statements));
                }
                Ok(()) => passed.push((name, held, statements)),
                Err(finding) if self.is_demanded(&name) || drives.is_refuted(&name) => wrong.push(finding),
                Err(finding) => self.say(&finding, &format!("the key '{name}' is not used")),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        for (name, held, statements) in passed {
            if self.is_demanded(&name) {
                seen.extend(about(&name, &held));
            }
            notes.extend(known::passes_unasked(&name, &statements));
            self.found.lock().unwrap_or_else(PoisonError::into_inner).push((
                name.clone(),
                held.clone(),
                statements,
            ));
            writer.hold(&name, held);
        }
        if seen.is_empty() {
            seen.push("no key is demanded".to_owned());
        }
        seen.extend(drives.says);
        Ok(Well { says: seen.join("; "), notes })
    }

    /// A key that nobody knows, and drives that may know it and are not there yet, as while volumes are mounted: for a while they are
    /// waited for, since what passes now is remembered as the right one.
    fn waits_for_drives(&self, name: &Name, held: &Held, statements: &[Statement]) -> bool {
        let is_silent = |one: &Statement| {
            one.kind == known::Kind::Drives && matches!(one.says, known::Says::CannotTell(_))
        };
        self.waits
            && self.is_demanded(name)
            && self.clock.now() - self.begun < DRIVES_MAY_COME
            && statements.iter().any(is_silent)
            && known::judge(Asked::Key(&held.fingerprint), statements) == Verdict::First
    }

    pub(super) fn is_demanded(&self, name: &Name) -> bool {
        self.config.keys.contains(name)
    }

    /// Whether this key may be used, by all that is known of the name.
    fn judge(&self, name: &Name, held: &Held, statements: &[Statement]) -> Result<(), Finding> {
        self.is_no_other(name, held, statements)?;
        let fingerprint = &held.fingerprint;
        if self.config.memory.mode() == Mode::Require
            && self.is_demanded(name)
            && !pins::is_pinned(statements, fingerprint)
            && !is_proven(statements, fingerprint)
        {
            return Err(Cause::KeyUnpinned.seen(format!(
                "the key '{name}', fingerprint {fingerprint}, has no pin, and KESWARDEN_PIN=require"
            )));
        }
        Ok(())
    }

    /// No witness knows another key of the name.
    pub(super) fn is_no_other(
        &self,
        name: &Name,
        held: &Held,
        statements: &[Statement],
    ) -> Result<(), Finding> {
        let fingerprint = &held.fingerprint;
        if let Verdict::Other(_) = known::judge(Asked::Key(fingerprint), statements) {
            let (place, set_aside) = (self.store.describe(), self.store.how_to_set_aside(name));
            let commands = (&self.config.memory.commands, set_aside.as_str());
            let finding = known::replaced(name, fingerprint, &place, statements, commands);
            // Drives that know both: somebody has booted on another key of the name.
            let mixed = statements.iter().any(|one| one.kind == known::Kind::Drives && one.known().len() > 1);
            return Err(match mixed {
                true => Cause::KeyMixed.seen(finding.seen),
                false => finding,
            });
        }
        Ok(())
    }

    /// Writes down what is about to be used. What cannot be written stops nobody, unless a pin is demanded.
    pub(super) async fn remember(&self, name: &Name, held: &Held, statements: &[Statement]) -> Vec<Finding> {
        if self.only_looks {
            return Vec::new();
        }
        let memory = &self.config.memory;
        let mut failed = memory.witnesses.remember(name, &held.fingerprint, statements).await;
        if memory.mode() == Mode::Require && is_proven(statements, &held.fingerprint) {
            failed.extend(memory.pins.pin(name, &held.fingerprint).await.err());
        }
        let could_not = |finding: Finding| {
            let seen = format!("the key '{name}' passes, and could not be remembered: {}", finding.seen);
            Finding { seen, ..finding }
        };
        failed.into_iter().map(could_not).collect()
    }
}

/// What every witness says of each of these keys: many are asked for at once, so that one that hangs is waited for once.
pub(super) async fn asked(witnesses: &Witnesses, looked: Looked) -> Vec<FoundWell> {
    let each = stream::iter(looked).map(|(name, held)| async move {
        let statements = witnesses.ask(&name).await;
        (name, held, statements)
    });
    let mut found: Vec<_> = each.buffer_unordered(ASKED_AT_ONCE).collect().await;
    found.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    found
}

/// That drives are waited for which may know a key that nobody else knows.
fn drives_may_come(name: &Name, statements: &[Statement]) -> Option<Finding> {
    let finding = known::passes_unasked(name, statements)?;
    let seen = format!(
        "nobody knows the key '{name}', and the drives may: they are waited for, {} at the most: {}",
        clock::human(DRIVES_MAY_COME),
        known::not_asked(statements).unwrap_or_default()
    );
    Some(Finding { seen, ..finding })
}

/// A key that is well, in words.
fn about(name: &Name, held: &Held) -> Vec<String> {
    let mut seen = vec![format!("'{name}', fingerprint {}", held.fingerprint)];
    if !held.version.key.has_hmac() {
        seen.push(format!(
            "note: '{name}' has no HMAC key, as in the older form of KES: a MinIO with root access off does not start on it"
        ));
    }
    seen
}

/// The drives prove the key.
fn is_proven(statements: &[Statement], fingerprint: &str) -> bool {
    statements.iter().any(|one| one.kind == known::Kind::Drives && one.knows(fingerprint))
}
