//! What is known of a key: witnesses say what they know of a name, and one pure function judges.
//!
//! A witness is a place that may know by which fingerprint a key was in use: a state directory, the pins, the sealed copy, the running
//! agent, the drives, the key store's own history. [`judge`] is the only place that decides:
//!
//! ```text
//! asked about      a witness knows ANOTHER key   a witness knows THIS key   one cannot tell   verdict
//! a key at hand    yes                           any                        any               Other: it is not used
//! a key at hand    no                            yes                        any               Same
//! a key at hand    no                            no                         any               First: it is used, and remembered
//! a key to make    a witness knows the name                                 any               Other: it is not made
//! a key to make    no witness knows the name                                yes               Unsure: it is not made
//! a key to make    no witness knows the name                                no                First: it is made, and remembered
//! ```
//!
//! A witness that cannot be asked never makes a name new, and never stops the right key.

pub mod ledger;
mod named;
mod witnesses;

pub use named::NamedByDrives;
pub use witnesses::{Witness, Witnesses};

use crate::{
    cause::{Cause, Finding},
    names::Name,
    store::{SetAside, SetAsideKey},
};
use std::fmt::Write;

/// What kind of place a witness is. Ordered by what it can do for a key that is lost: the first two can give it back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// An agent that runs in the same run directory.
    Agent,
    /// The sealed copy on a disk of this machine.
    Copy,
    /// The files of a state directory.
    Ledger,
    /// A pin: in a directory, in a K/V path, or stated in the settings.
    Pin,
    /// The tenant's drives.
    Drives,
    /// The key store's own history of the name.
    History,
}

/// One key of a name that a witness knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// A key with this fingerprint, and what else is known of it, in words; may be empty.
    Fingerprint(String, String),
    /// A key whose fingerprint the witness does not know: not the one at hand, or none is at hand. In words, how that shows.
    Another(String),
}

/// What a witness says of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// Keys of this name were in use.
    Known(Vec<Known>),
    /// A key of this name was in use, and the witness cannot tell which: no other key is made, and the key at hand may be that one. In
    /// words, how that shows.
    WasInUse(String),
    /// The witness was asked, and has never heard of the name.
    New,
    /// The witness has no key of the name, and forgets what is deleted: proof of nothing.
    Forgets(String),
    /// The witness could not be asked.
    CannotTell(Finding),
}

/// What one witness says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    pub kind: Kind,
    /// Which one it is, for people: `the state directory /var/lib/keswarden`.
    pub place: String,
    pub says: Says,
    /// How a person has it put the key back, when it can.
    pub gives_back: Option<String>,
}

/// What is to be judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// A key with this fingerprint is to be used, or put back.
    Key(&'a str),
    /// A new key is to be made. `on_request`: a person or a client asks for this very name, so that a store which forgets what is
    /// deleted is no obstacle; otherwise only drives that are new make up for that.
    Creation { on_request: bool },
}

/// What the witnesses together say.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// It is the key that was in use before.
    Same,
    /// Nobody knows the name.
    First,
    /// These witnesses know another key of the name; for a creation, any key.
    Other(Vec<&'a Statement>),
    /// A creation, and these witnesses could not be asked.
    Unsure(Vec<&'a Statement>),
}

/// Judges a key, or a creation, by what the witnesses say. Pure: the order of statements changes nothing.
pub fn judge<'a>(asked: Asked<'_>, statements: &'a [Statement]) -> Verdict<'a> {
    let those =
        |is: &dyn Fn(&Statement) -> bool| -> Vec<_> { statements.iter().filter(|one| is(one)).collect() };
    match asked {
        Asked::Key(fingerprint) => {
            let others = those(&|one| one.known().iter().any(|known| !known.is(fingerprint)));
            let is_known = statements.iter().any(|one| one.knows(fingerprint));
            match (others.is_empty(), is_known) {
                (false, _) => Verdict::Other(others),
                (true, true) => Verdict::Same,
                (true, false) => Verdict::First,
            }
        }
        Asked::Creation { on_request } => {
            let known = those(&Statement::knows_the_name);
            if !known.is_empty() {
                return Verdict::Other(known);
            }
            let new_drives = statements.iter().any(|one| one.kind == Kind::Drives && one.says == Says::New);
            let unsure = those(&|one| match one.says {
                Says::CannotTell(_) => true,
                Says::Forgets(_) => !on_request && !new_drives,
                Says::Known(_) | Says::WasInUse(_) | Says::New => false,
            });
            if unsure.is_empty() { Verdict::First } else { Verdict::Unsure(unsure) }
        }
    }
}

/// Whether a key is the one that was known. One that had no HMAC key when it was written down, and has one now, still is: nothing
/// could have been made with an HMAC key that was not there. One that has lost its HMAC key is not.
pub fn is_same(known: &str, fingerprint: &str) -> bool {
    let bytes = fingerprint.split('-').next();
    known == fingerprint || (!known.contains('-') && Some(known) == bytes)
}

/// What a person types to mend it, as this process was started.
#[derive(Clone, Debug, Default)]
pub struct Commands {
    /// KES's own file, when that is the set-up: commands need it as well.
    pub config: Option<std::path::PathBuf>,
}

// === impl Known ===

impl Known {
    fn is(&self, fingerprint: &str) -> bool {
        matches!(self, Self::Fingerprint(known, _) if is_same(known, fingerprint))
    }
}

// === impl Statement ===

impl Statement {
    pub fn new(kind: Kind, place: impl Into<String>, says: Says) -> Self {
        Self { kind, place: place.into(), says, gives_back: None }
    }

    /// What the witness knows; nothing when it could not be asked.
    pub fn known(&self) -> &[Known] {
        match &self.says {
            Says::Known(known) => known,
            Says::WasInUse(_) | Says::New | Says::Forgets(_) | Says::CannotTell(_) => &[],
        }
    }

    /// The witness knows that a key of the name was in use, whichever.
    pub fn knows_the_name(&self) -> bool {
        match self.says {
            Says::Known(_) | Says::WasInUse(_) => true,
            Says::New | Says::Forgets(_) | Says::CannotTell(_) => false,
        }
    }

    /// The witness knows this very key.
    pub fn knows(&self, fingerprint: &str) -> bool {
        self.known().iter().any(|known| known.is(fingerprint))
    }

    /// In words, for a line and a table.
    pub fn words(&self) -> String {
        let place = &self.place;
        match &self.says {
            Says::Known(known) => {
                let known = known.iter().map(|known| match known {
                    Known::Fingerprint(fingerprint, more) if more.is_empty() => fingerprint.clone(),
                    Known::Fingerprint(fingerprint, more) => format!("{fingerprint} ({more})"),
                    Known::Another(how) => how.clone(),
                });
                format!("{place}: {}", known.collect::<Vec<_>>().join(", "))
            }
            Says::WasInUse(how) => format!("{place}: {how}"),
            Says::New => format!("{place}: nothing of it"),
            Says::Forgets(why) => format!("{place}: {why}"),
            Says::CannotTell(finding) => format!("{place}: could not be asked: {}", finding.seen),
        }
    }
}

/// The witnesses that could not be asked, in words; nothing when there is none.
pub fn not_asked(statements: &[Statement]) -> Option<String> {
    let silent = statements.iter().filter(|one| matches!(one.says, Says::CannotTell(_)));
    let silent: Vec<_> = silent.map(Statement::words).collect();
    (!silent.is_empty()).then(|| silent.join("; "))
}

/// That a key passes though not every witness could be asked, with what mends the first of those; nothing when all were.
pub fn passes_unasked(name: &Name, statements: &[Statement]) -> Option<Finding> {
    let first = statements.iter().find_map(|one| match &one.says {
        Says::CannotTell(finding) => Some(finding.clone()),
        Says::Known(_) | Says::WasInUse(_) | Says::New | Says::Forgets(_) => None,
    })?;
    let silent = not_asked(statements).unwrap_or_default();
    let seen = format!("the key '{name}' passes, and not every witness could be asked: {silent}");
    Some(Finding { seen, ..first })
}

/// That a key at hand is another one than before: both fingerprints, where each is known from, and the way back. `set_aside` is the
/// command that moves what is stored out of the way without losing it.
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
    // Whoever knows the key at hand alone would give that one back.
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

/// That a key is not stored under a name, because these know another one of it; where one of them is mistaken, how it is told so.
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

/// A later version in the store that is a key which is missed: how a person puts that back.
fn later_version<'a>(set_aside: &'a SetAside, statements: &[Statement]) -> Option<&'a str> {
    let is_missed = |key: &&SetAsideKey| statements.iter().any(|one| one.knows(&key.fingerprint));
    set_aside.others.iter().find(is_missed).map(|key| key.put_back.as_str())
}

/// Drives speak for their own tenant only.
fn not_these_drives(statements: &[Statement]) -> &'static str {
    let are_alone = |one: &Statement| one.kind == Kind::Drives || one.known().is_empty();
    match statements.iter().any(|one| one.kind == Kind::Drives) && statements.iter().all(are_alone) {
        true => "; if the drives are another tenant's, correct KESWARDEN_DRIVES",
        false => "",
    }
}

/// A key that cannot be had from the store, and what is true of it here. The store's own finding says where it was looked for; an
/// undelete in its fix is kept. `set_aside`: something that is not the key is left under the name, and goes out of the way first.
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
            // What the store itself knows to do: an undelete, or a disk that is not mounted.
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

/// In the order in which they cost least: who has the key gives it back, then the store itself, then a backup, then the former store.
fn ways_back(name: &Name, statements: &[Statement], commands: &Commands, of_store: Option<&str>) -> String {
    let mut givers: Vec<_> = statements.iter().filter(|one| !one.known().is_empty()).collect();
    givers.sort_by_key(|one| one.kind);
    let mut ways: Vec<_> = givers.into_iter().filter_map(|one| one.gives_back.clone()).collect();
    ways.extend(of_store.map(str::to_owned));
    ways.push(format!("restore it from a backup: `{}`", commands.restore(name)));
    ways.push("bring the former key store back, or a snapshot of it that has the key".to_owned());
    ways.join("; or ")
}

/// That nobody knows the name, and that these could not be asked: no key is made. The cause is why the first of them could not.
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
    /// A command of ours, with the set-up that this process has.
    pub fn of(&self, command: &str) -> String {
        match &self.config {
            Some(file) => format!("keswarden {command} --config {}", shell_word(&file.display().to_string())),
            None => format!("keswarden {command}"),
        }
    }

    pub fn create_first(&self, name: &Name) -> String {
        self.of(&format!("key create --first {name}"))
    }

    fn restore(&self, name: &Name) -> String {
        self.of(&format!("key restore --from FILE --identity IDENTITY {name}"))
    }
}

/// One word of a shell's command line, whatever is in it.
pub fn shell_word(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-:=@".contains(&byte);
    if !text.is_empty() && text.bytes().all(is_plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests;
