//! The knowledge of keys: witnesses state what they know of a name, and one pure function judges.
//!
//! A witness is a place that may know the fingerprint of the key that was in use under a name: a state
//! directory, the pins, the sealed copy, the running agent, the drives, the key store's own history.
//! [`judge`] is the only place that decides:
//!
//! ```text
//! asked about      a witness knows ANOTHER key   a witness knows THIS key   one cannot tell   verdict
//! a key at hand    yes                           any                        any               Other: refused
//! a key at hand    no                            yes                        any               Same: used
//! a key at hand    no                            no                         any               First: used, and remembered
//! a key to create  a witness knows the name                                 any               Other: refused
//! a key to create  no witness knows the name                                yes               Unsure: refused
//! a key to create  no witness knows the name                                no                First: created, and remembered
//! ```
//!
//! A witness that cannot be asked never makes a name new, and never stops the right key.

pub mod ledger;
mod named;
mod witnesses;
mod words;

pub use named::NamedByDrives;
pub use witnesses::{Witness, Witnesses};
pub use words::{Commands, missing, not_asked, passes_unasked, replaced, shell_word, taken, unsure};

use crate::cause::Finding;

/// The kind of place that a witness is. The order is the order of ways to put a lost key back: the first two
/// kinds have the key itself.
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
    /// A key with this fingerprint; further knowledge of the key, in words, may be empty.
    Fingerprint(String, String),
    /// A key whose fingerprint the witness does not know, and which is not the key at hand. The evidence, in
    /// words.
    Another(String),
}

/// The content of a statement on a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Says {
    /// Keys of this name were in use.
    Known(Vec<Known>),
    /// A key of this name was in use, and the witness cannot tell which: no other key is created, and the key
    /// at hand may be the right one. The evidence, in words.
    WasInUse(String),
    /// The witness was asked, and knows no key of the name.
    New,
    /// The witness has no key of the name, and forgets deleted keys: no proof either way. The reason, in
    /// words.
    Forgets(String),
    /// The witness could not be asked. The finding says why.
    CannotTell(Finding),
}

/// The statement of one witness on a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The kind of the witness.
    pub kind: Kind,
    /// The place, for people: `the state directory /var/lib/keswarden`.
    pub place: String,
    /// The content.
    pub says: Says,
    /// The way to put the key back from this place: words and a command. Absent for places that have no keys.
    pub gives_back: Option<String>,
}

/// The question that is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked<'a> {
    /// Whether a key with this fingerprint may be used, or put back.
    Key(&'a str),
    /// Whether a new key may be created. `on_request`: a person or a client asks for this very name, so that
    /// a store that forgets deleted keys is no obstacle. Without a request, such a store needs drives that
    /// are new.
    Creation {
        /// The name was asked for.
        on_request: bool,
    },
}

/// The joint verdict of the witnesses.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// The key is the one that was in use before.
    Same,
    /// No witness knows the name.
    First,
    /// These witnesses know another key of the name; for a creation, any key.
    Other(Vec<&'a Statement>),
    /// For a creation: no witness knows the name, and these cannot tell.
    Unsure(Vec<&'a Statement>),
}

/// Judges a key, or a creation, by the statements of the witnesses. Pure: the order of statements changes
/// nothing.
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

/// Whether a fingerprint names the key of a known fingerprint. A key that has gained an HMAC key since is the
/// same key: nothing was ever made with an HMAC key that did not exist. A key that has lost its HMAC key is
/// another key.
pub fn is_same(known: &str, fingerprint: &str) -> bool {
    let bytes = fingerprint.split('-').next();
    known == fingerprint || (!known.contains('-') && Some(known) == bytes)
}

// === impl Known ===

impl Known {
    fn is(&self, fingerprint: &str) -> bool {
        matches!(self, Self::Fingerprint(known, _) if is_same(known, fingerprint))
    }
}

// === impl Statement ===

impl Statement {
    /// A statement of a witness that has no keys to put back.
    pub fn new(kind: Kind, place: impl Into<String>, says: Says) -> Self {
        Self { kind, place: place.into(), says, gives_back: None }
    }

    /// The keys that the witness knows; empty for every statement but [`Says::Known`].
    pub fn known(&self) -> &[Known] {
        match &self.says {
            Says::Known(known) => known,
            Says::WasInUse(_) | Says::New | Says::Forgets(_) | Says::CannotTell(_) => &[],
        }
    }

    /// Whether the witness knows that any key of the name was in use.
    pub fn knows_the_name(&self) -> bool {
        match self.says {
            Says::Known(_) | Says::WasInUse(_) => true,
            Says::New | Says::Forgets(_) | Says::CannotTell(_) => false,
        }
    }

    /// Whether the witness knows the key with this fingerprint.
    pub fn knows(&self, fingerprint: &str) -> bool {
        self.known().iter().any(|known| known.is(fingerprint))
    }

    /// The statement in words, for a log line and a table.
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

#[cfg(test)]
mod tests;
