//! The judgement of keys that were read, by the statements of the witnesses: pass, wait or refuse; and
//! remembering.

use super::checks::{Checks, PassedKeys, ReadKeys};
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

/// A key that was read, and the statements of the witnesses on its name.
pub(super) type Witnessed = (Name, Arc<Held>, Vec<Statement>);

/// Bound of the number of keys that the witnesses are asked about at once.
const CONCURRENT_KEYS_MAX: usize = 64;
/// Bound of the wait for drives that may still be mounted, where no other witness knows the key.
pub(super) const DRIVES_WAIT_MAX: Duration = Duration::from_secs(30);

impl Checks<'_> {
    /// Judges every key that was read, and holds those that pass.
    pub(super) async fn judge_all(
        &self,
        writer: &KeyringWriter,
        keys_read: ReadKeys,
        drives: super::proof::DriveStatements,
    ) -> Result<PassedKeys, Vec<Finding>> {
        let (mut wrong, mut passed, mut seen) = (Vec::new(), Vec::new(), Vec::new());
        let mut notes = drives.notes.clone();
        for (name, held, mut statements) in ask_witnesses(&self.deps.memory.witnesses, keys_read).await {
            statements.extend(drives.statement(&name));
            match self.judge(&name, &held, &statements).await {
                Ok(_) if self.waits_for_drives(&name, &held, &statements) => {
                    wrong.extend(waiting_for_drives(&name, &statements));
                }
                Ok(note) => {
                    notes.extend(note);
                    passed.push((name, held, statements));
                }
                Err(finding) if self.is_demanded(&name) || drives.is_refuted(&name) => wrong.push(finding),
                Err(finding) => self.log_error_once(&finding, &format!("the key '{name}' is not used")),
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        for (name, held, statements) in passed {
            if self.is_demanded(&name) {
                seen.extend(described(&name, &held));
            }
            notes.extend(known::passes_unasked(&name, &statements));
            self.passed.lock().unwrap_or_else(PoisonError::into_inner).push((
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
        Ok(PassedKeys { says: seen.join("; "), notes })
    }

    /// Whether the gate waits for drives: no witness knows the key, and the drives cannot tell yet, as while
    /// volumes are mounted. A key that passes now is remembered as the right one, so the drives are asked
    /// first.
    fn waits_for_drives(&self, name: &Name, held: &Held, statements: &[Statement]) -> bool {
        let is_silent = |one: &Statement| {
            one.kind == known::Kind::Drives && matches!(one.says, known::Says::CannotTell(_))
        };
        self.waits
            && self.is_demanded(name)
            && self.deps.clock.now() - self.begun < DRIVES_WAIT_MAX
            && statements.iter().any(is_silent)
            && known::judge(Asked::Key(&held.fingerprint), statements) == Verdict::First
    }

    pub(super) fn is_demanded(&self, name: &Name) -> bool {
        self.settings.keys.contains(name)
    }

    /// Whether the key may be used, by the statements of all witnesses. A key that may be used can have a
    /// warning.
    async fn judge(
        &self,
        name: &Name,
        held: &Held,
        statements: &[Statement],
    ) -> Result<Option<Finding>, Finding> {
        let note = self.check_no_other(name, held, statements).await?;
        let fingerprint = &held.fingerprint;
        if self.deps.memory.mode() == Mode::Require
            && self.is_demanded(name)
            && !pins::is_pinned(statements, fingerprint)
            && !is_proven(statements, fingerprint)
        {
            return Err(Cause::KeyUnpinned.seen(format!(
                "the key '{name}', fingerprint {fingerprint}, has no pin, and KESWARDEN_PIN=require"
            )));
        }
        Ok(note)
    }

    /// No witness knows another key of the name. A warning when the drives were sealed with two keys, and
    /// another witness knows this one as the right one.
    pub(super) async fn check_no_other(
        &self,
        name: &Name,
        held: &Held,
        statements: &[Statement],
    ) -> Result<Option<Finding>, Finding> {
        let fingerprint = &held.fingerprint;
        let Verdict::Other(_) = known::judge(Asked::Key(fingerprint), statements) else { return Ok(None) };
        let (drives, others): (Vec<_>, Vec<_>) =
            statements.iter().cloned().partition(|one| one.kind == known::Kind::Drives);
        let is_mixed = drives.iter().any(|one| one.knows(fingerprint) && one.known().len() > 1);
        if is_mixed && known::judge(Asked::Key(fingerprint), &others) == Verdict::Same {
            return Ok(Some(mixed(name, held, &drives)));
        }
        let (place, set_aside) = (self.deps.store.describe(), self.deps.store.how_to_set_aside(name).await);
        let commands = (&self.deps.memory.commands, &set_aside);
        let finding = known::replaced(name, fingerprint, &place, statements, commands);
        Err(match is_mixed {
            true => Cause::KeyMixed.seen(finding.seen).fix(format!(
                "find out which of the two keys has sealed more, and what (`keswarden evidence --all DRIVE…`), and keep both; once you know \
                 that {fingerprint} is the right one, pin it, and the gate passes with a warning: `{}`, or KESWARDEN_PINS={name}={fingerprint}",
                self.deps.memory.commands.of(&format!("key pin {name}"))
            )),
            false => finding,
        })
    }

    /// Remembers a key before its first use. Failures are warnings.
    pub(super) async fn remember(&self, name: &Name, held: &Held, statements: &[Statement]) -> Vec<Finding> {
        if self.is_read_only {
            return Vec::new();
        }
        let memory = &self.deps.memory;
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

/// The statements of every witness on each of these keys. Many keys are asked about at once, so that a
/// witness that hangs delays all of them together.
pub(super) async fn ask_witnesses(witnesses: &Witnesses, keys_read: ReadKeys) -> Vec<Witnessed> {
    let each = stream::iter(keys_read).map(|(name, held)| async move {
        let statements = witnesses.ask(&name).await;
        (name, held, statements)
    });
    let mut found: Vec<_> = each.buffer_unordered(CONCURRENT_KEYS_MAX).collect().await;
    found.sort_by(|(one, ..), (other, ..)| one.cmp(other));
    found
}

/// The finding of a gate that waits for drives, which may know a key that no other witness knows.
fn waiting_for_drives(name: &Name, statements: &[Statement]) -> Option<Finding> {
    let finding = known::passes_unasked(name, statements)?;
    let seen = format!(
        "nobody knows the key '{name}', and the drives may: they are waited for, {} at the most: {}",
        clock::human(DRIVES_WAIT_MAX),
        known::not_asked(statements).unwrap_or_default()
    );
    Some(Finding { seen, ..finding })
}

/// The warning that the drives hold data of two keys of the name: data that the other key sealed stay
/// unreadable.
fn mixed(name: &Name, held: &Held, drives: &[Statement]) -> Finding {
    let words: Vec<_> = drives.iter().map(Statement::words).collect();
    Cause::KeyMixed
        .seen(format!(
            "the key '{name}', fingerprint {}, is the one that is remembered, and opens not all of the data: {}",
            held.fingerprint,
            words.join("; ")
        ))
        .fix("find the key that sealed the rest, and keep both: `keswarden evidence --all DRIVE…` names the objects")
}

/// A key that passed, in words.
fn described(name: &Name, held: &Held) -> Vec<String> {
    let mut seen = vec![format!("'{name}', fingerprint {}", held.fingerprint)];
    if !held.version.key.has_hmac() {
        seen.push(format!(
            "note: '{name}' has no HMAC key, as in the older form of KES: a MinIO with root access off does not start on it"
        ));
    }
    seen
}

/// Whether the drives prove the key. Drives that another key of the name has sealed as well prove neither.
fn is_proven(statements: &[Statement], fingerprint: &str) -> bool {
    let proves = |one: &Statement| one.knows(fingerprint) && one.known().len() == 1;
    statements.iter().any(|one| one.kind == known::Kind::Drives && proves(one))
}
