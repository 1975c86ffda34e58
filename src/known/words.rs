//! The words for verdicts: what is known of a key, where the key can be had, and the commands for that.

use super::{Kind, Known, Says, Statement, is_same};
use crate::{
    cause::{Cause, Finding},
    names::Name,
    store::{SetAside, SetAsideKey},
};
use std::fmt::Write;

/// The commands that findings suggest, with the set-up of this process.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    /// KES's own file, where the set-up has one: the flag `--config` of every command.
    pub config: Option<std::path::PathBuf>,
}

/// The witnesses that could not be asked, in words. Absent when every witness could be asked.
pub fn not_asked(statements: &[Statement]) -> Option<String> {
    let silent = statements.iter().filter(|one| matches!(one.says, Says::CannotTell(_)));
    let silent: Vec<_> = silent.map(Statement::words).collect();
    (!silent.is_empty()).then(|| silent.join("; "))
}

/// The warning that a key passes although some witnesses could not be asked, with the fix of the first of
/// them. Absent when every witness could be asked.
pub fn passes_unasked(name: &Name, statements: &[Statement]) -> Option<Finding> {
    let first = statements.iter().find_map(|one| match &one.says {
        Says::CannotTell(finding) => Some(finding.clone()),
        Says::Known(_) | Says::WasInUse(_) | Says::New | Says::Forgets(_) => None,
    })?;
    let silent = not_asked(statements).unwrap_or_default();
    let seen = format!("the key '{name}' passes, and not every witness could be asked: {silent}");
    Some(Finding { seen, ..first })
}

/// The finding of a key that is not the key that was in use: both fingerprints, the witnesses of each, and
/// the way back. `set_aside` moves the stored text out of the way without losing it.
pub fn replaced(
    name: &Name,
    fingerprint: &str,
    place: &str,
    statements: &[Statement],
    (commands, set_aside): (&Commands, &SetAside),
) -> Finding {
    let mut seen = format!(
        "the key '{name}' in {place} is not the one that was in use: its fingerprint is {fingerprint}; "
    );
    let others = statements.iter().filter(|one| one.known().iter().any(|known| !known.is(fingerprint)));
    let words: Vec<_> = others.clone().map(Statement::words).collect();
    let _ = write!(seen, "another key is known from {}", words.join("; from "));
    let same: Vec<_> =
        statements.iter().filter(|one| one.knows(fingerprint)).map(|one| one.place.as_str()).collect();
    if !same.is_empty() {
        let _ = write!(seen, "; this one is known from {}", same.join(", "));
    }
    if let Some(silent) = not_asked(statements) {
        let _ = write!(seen, "; not asked: {silent}");
    }
    let lacks_hmac = others.clone().flat_map(Statement::known).any(|known| match known {
        Known::Fingerprint(known, _) => known.split('-').next() == Some(fingerprint) && known != fingerprint,
        Known::Another(_) => false,
    });
    if lacks_hmac {
        seen.push_str(
            "; it is the same encryption key without the HMAC key that it had: it opens the data, and a MinIO with root access off does \
             not start on it",
        );
    }
    // A witness that knows the key at hand would put that key back.
    let theirs: Vec<_> = others.clone().filter(|one| !one.knows(fingerprint)).cloned().collect();
    let back = ways_back(name, &theirs, commands, later_version(set_aside, &theirs));
    let former = others.flat_map(Statement::known).find_map(|known| match known {
        Known::Fingerprint(former, _) if !is_same(former, fingerprint) => Some(former.as_str()),
        _ => None,
    });
    let on_purpose = match former {
        Some(former) => format!(
            "; only if it was replaced on purpose, and nothing that the former key sealed is needed: `{}`",
            commands.of(&format!("key forget {name} --was {former} --is {fingerprint} --yes"))
        ),
        None => String::new(),
    };
    Cause::KeyReplaced.seen(seen).fix(format!(
        "bring the former key back, what it sealed opens with nothing else: set aside what is stored now, {}, then {back}{on_purpose}{}",
        set_aside.command, not_these_drives(statements)
    ))
}

/// The finding of a key that is not stored, because these witnesses know another key of the name. The fix
/// says how a mistaken witness forgets.
pub fn taken(name: &Name, fingerprint: &str, others: &[&Statement], commands: &Commands) -> Finding {
    let words: Vec<_> = others.iter().map(|one| one.words()).collect();
    let theirs: Vec<_> = others.iter().map(|one| (*one).clone()).collect();
    let mistaken = others.iter().flat_map(|one| one.known()).find_map(|known| match known {
        Known::Fingerprint(other, _) if !is_same(other, fingerprint) => Some(other),
        _ => None,
    });
    let forget = mistaken.map(|other| {
        let command = commands.of(&format!("key forget {name} --was {other} --yes"));
        format!("; where {fingerprint} is the right one, and that a mistake: `{command}`, then again")
    });
    Cause::KeyReplaced
        .seen(format!(
            "there was a key '{name}' already, it is known from {}: the key {fingerprint} is not stored under its name",
            words.join("; from ")
        ))
        .fix(format!("{}{}", ways_back(name, &theirs, commands, None), forget.unwrap_or_default()))
}

/// The way to put back a later version in the store that is a key known to the witnesses.
fn later_version<'a>(set_aside: &'a SetAside, statements: &[Statement]) -> Option<&'a str> {
    let is_missed = |key: &&SetAsideKey| statements.iter().any(|one| one.knows(&key.fingerprint));
    set_aside.others.iter().find(is_missed).map(|key| key.put_back.as_str())
}

/// The advice to check KESWARDEN_DRIVES, where only the drives know another key: the drives may be another
/// tenant's.
fn not_these_drives(statements: &[Statement]) -> &'static str {
    let are_alone = |one: &Statement| one.kind == Kind::Drives || one.known().is_empty();
    match statements.iter().any(|one| one.kind == Kind::Drives) && statements.iter().all(are_alone) {
        true => "; if the drives are another tenant's, correct KESWARDEN_DRIVES",
        false => "",
    }
}

/// The finding of a key that the store cannot give: the store's own finding, with the witnesses of the key
/// and the ways back. A fix of the store, such as an undelete, is kept. `set_aside` is given when another
/// text is left under the name, and goes out of the way first.
pub fn missing(
    name: &Name,
    from_store: Finding,
    statements: &[Statement],
    commands: &Commands,
    set_aside: Option<&SetAside>,
) -> Finding {
    let known: Vec<_> = statements.iter().filter(|one| one.knows_the_name()).map(Statement::words).collect();
    let mut seen = from_store.seen.clone();
    if !known.is_empty() {
        let _ = write!(seen, ", and there was one: it is known from {}", known.join("; from "));
    }
    let silent = not_asked(statements);
    if let Some(silent) = &silent {
        let _ = write!(seen, "; not asked: {silent}");
    }
    let was_there = !known.is_empty() || from_store.cause != Cause::KeyMissing;
    let fix = match (was_there, &silent) {
        (true, _) => {
            // The store's own fix, such as an undelete, or a disk to mount.
            let of_store =
                (from_store.fix != from_store.cause.usual_fix()).then_some(from_store.fix.as_str());
            let of_store = of_store.or_else(|| later_version(set_aside?, statements));
            let back = ways_back(name, statements, commands, of_store);
            match set_aside {
                Some(SetAside { command, .. }) => {
                    format!("set aside what is left under the name, {command}, then {back}")
                }
                None => back,
            }
        }
        (false, Some(_)) => format!(
            "look at what could not be asked first: it may know the key. If anything was ever sealed with it, restore it from a backup: \
             `{}`; only when it never was: `{}`",
            commands.restore(name),
            commands.create_first(name)
        ),
        (false, None) => format!(
            "if anything was ever sealed with a key of this name, restore that one from a backup: `{}`, or bring its key store back \
             (are the address, the mount and the prefix the right ones?); only when there never was one: `{}`",
            commands.restore(name),
            commands.create_first(name)
        ),
    };
    Finding { seen, ..from_store }.fix(fix)
}

/// The ways to put a key back, the cheapest first: places that have the key, the store itself, a backup, the
/// former store.
fn ways_back(name: &Name, statements: &[Statement], commands: &Commands, of_store: Option<&str>) -> String {
    let mut givers: Vec<_> = statements.iter().filter(|one| !one.known().is_empty()).collect();
    givers.sort_by_key(|one| one.kind);
    let mut ways: Vec<_> = givers.into_iter().filter_map(|one| one.gives_back.clone()).collect();
    ways.extend(of_store.map(str::to_owned));
    ways.push(format!("restore it from a backup: `{}`", commands.restore(name)));
    ways.push("bring the former key store back, or a snapshot of it that has the key".to_owned());
    ways.join("; or ")
}

/// The finding of a creation that is refused because some witnesses cannot tell. Cause and fix are those of
/// the first witness that could not be asked, or else of the store.
pub fn unsure(name: &Name, from_store: Finding, silent: &[&Statement], commands: &Commands) -> Finding {
    let words: Vec<_> = silent.iter().map(|one| one.words()).collect();
    let seen = format!(
        "{}, and nothing shows that the name is new: {}; it is not made",
        from_store.seen,
        words.join("; ")
    );
    let first = silent.iter().find_map(|one| match &one.says {
        Says::CannotTell(finding) => Some(finding.clone()),
        _ => None,
    });
    match first {
        Some(finding) => Finding { seen, ..finding },
        None => Finding { seen, ..from_store }.fix(format!(
            "if there never was one, make it once: `{}`; or give the gate the tenant's new drives: KESWARDEN_DRIVES",
            commands.create_first(name)
        )),
    }
}

// === impl Commands ===

impl Commands {
    /// A command of keswarden with the set-up of this process: `key pin minio` becomes `keswarden key pin
    /// minio --config FILE`.
    pub fn of(&self, command: &str) -> String {
        match &self.config {
            Some(file) => format!("keswarden {command} --config {}", shell_word(&file.display().to_string())),
            None => format!("keswarden {command}"),
        }
    }

    /// The command that creates a tenant's first key.
    pub fn create_first(&self, name: &Name) -> String {
        self.of(&format!("key create --first {name}"))
    }

    fn restore(&self, name: &Name) -> String {
        self.of(&format!("key restore --from FILE --identity IDENTITY {name}"))
    }
}

/// A text as one word of a POSIX shell's command line, quoted where needed.
pub fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:=@".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}
