//! What a key was: the registry of fingerprints, apart from the keys, so that no key can take the place of another unseen.
//!
//! A pin is written once and never changed: whoever can overwrite a key need not be able to move its pin. Every source that
//! is configured is asked; sources that disagree are a finding of their own. A pin says nothing about K/V versions, times or
//! clusters: people move all of these.

mod guarded;

use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    store::{Error, KeyStore},
};
pub use guarded::Guarded;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Whether a key without a pin may pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Pins are neither read nor written.
    Off,
    /// It may, and that is said at every start.
    #[default]
    Warn,
    /// It may not.
    Require,
}

/// Where pins are, and what they are for.
#[derive(Clone, Default)]
pub struct Pins {
    pub mode: Mode,
    /// Pins that the settings state, by name.
    pub stated: BTreeMap<String, String>,
    /// Where pins are kept: one secret, or file, for each key.
    pub registries: Vec<Arc<dyn KeyStore>>,
}

/// What a registry holds for a key. Unknown members are ignored: the next version may write more.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Pin {
    /// The version of this form.
    pin: u32,
    /// As `crypto::Key::fingerprint` gives it.
    fingerprint: String,
    /// RFC 3339.
    pinned_at: String,
}

/// The form that is written; a reader takes it and every earlier one.
const VERSION: u32 = 1;

/// What the pins say of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is the key that was pinned.
    Pinned,
    /// Nobody has pinned it.
    Unpinned,
}

// === impl Pins ===

impl Pins {
    /// No pins at all.
    pub fn off() -> Self {
        Self { mode: Mode::Off, ..Self::default() }
    }

    /// Whether a pin could be written anywhere.
    pub fn can_write(&self) -> bool {
        self.mode != Mode::Off && !self.registries.is_empty()
    }

    /// The pinned fingerprint of a name, when there is one; sources that disagree are a finding.
    pub async fn of(&self, name: &Name) -> Result<Option<String>, Finding> {
        let mut found: Vec<(String, String)> = Vec::new();
        if let Some(stated) = self.stated.get(name.as_str()) {
            found.push(("the settings".to_owned(), stated.clone()));
        }
        for registry in &self.registries {
            if let Some(pin) = read(&**registry, name).await? {
                found.push((registry.describe(), pin.fingerprint));
            }
        }
        let Some(((place, fingerprint), others)) = found.split_first() else { return Ok(None) };
        match others.iter().find(|(_, other)| other != fingerprint) {
            None => Ok(Some(fingerprint.clone())),
            Some((other_place, other)) => Err(Cause::PinConflict.seen(format!(
                "the pins of the key '{name}' disagree: {place} has {fingerprint}, {other_place} has {other}"
            ))),
        }
    }

    /// The same without the registries that are away, as far as one question shows.
    pub async fn that_answer(&self, name: &Name) -> Self {
        let mut registries = Vec::new();
        for registry in &self.registries {
            match read(&**registry, name).await {
                Err(finding) if !is_proof(&finding) => {
                    tracing::warn!(cause = finding.cause.id(), "pins that cannot be asked now: {finding}");
                }
                _ => registries.push(registry.clone()),
            }
        }
        Self { mode: self.mode, stated: self.stated.clone(), registries }
    }

    /// Holds a key against its pin.
    pub async fn judge(&self, name: &Name, fingerprint: &str) -> Result<Verdict, Finding> {
        if self.mode == Mode::Off {
            return Ok(Verdict::Unpinned);
        }
        match self.of(name).await? {
            Some(pinned) if is_same(&pinned, fingerprint) => Ok(Verdict::Pinned),
            Some(pinned) => Err(Cause::KeyReplaced.seen(format!(
                "the key '{name}' is not the one that was pinned: its fingerprint is {fingerprint}, the pin is {pinned}"
            ))),
            None => Ok(Verdict::Unpinned),
        }
    }

    /// Pins a key where it is not pinned yet. Another pod may be faster, with the same pin.
    pub async fn pin(&self, name: &Name, fingerprint: &str, now: jiff::Timestamp) -> Result<(), Finding> {
        let pin = Pin { pin: VERSION, fingerprint: fingerprint.to_owned(), pinned_at: now.to_string() };
        let text = serde_json::to_string(&pin).expect("a pin must encode");
        for registry in &self.registries {
            if read(&**registry, name).await?.is_some() {
                continue;
            }
            match registry.create(name, &Secret::new(text.clone())).await {
                Ok(()) | Err(Error::Exists) => {}
                Err(error) => return Err(error.into_finding(|| unexpected(name))),
            }
        }
        // What is there now is what counts, whoever wrote it.
        self.judge(name, fingerprint).await.map(drop)
    }
}

/// Whether a key is the pinned one. One that had no HMAC key when it was pinned, and has one now, still is: nothing could have
/// been made with an HMAC key that was not there. One that has lost its HMAC key is not.
fn is_same(pinned: &str, fingerprint: &str) -> bool {
    let bytes = fingerprint.split('-').next();
    pinned == fingerprint || (!pinned.contains('-') && Some(pinned) == bytes)
}

/// The pins say that it is another key, or contradict one another; any other finding only says that they could not be asked.
pub fn is_proof(finding: &Finding) -> bool {
    matches!(finding.cause, Cause::KeyReplaced | Cause::PinConflict)
}

fn unexpected(name: &Name) -> Finding {
    Cause::PinConflict.seen(format!("the pin of the key '{name}' exists and does not, by turns"))
}

async fn read(registry: &dyn KeyStore, name: &Name) -> Result<Option<Pin>, Finding> {
    let text = match registry.get(name).await {
        Ok(text) => text,
        Err(Error::Missing(_)) => return Ok(None),
        Err(error) => return Err(error.into_finding(|| unexpected(name))),
    };
    let place = registry.describe();
    let pin: Pin = serde_json::from_str(text.expose().trim())
        .map_err(|_| Cause::PinConflict.seen(format!("what {place} holds for the key '{name}' is no pin")))?;
    match pin.pin {
        1..=VERSION => Ok(Some(pin)),
        newer => Err(Cause::PinConflict
            .seen(format!("the pin of the key '{name}' in {place} is of version {newer}, and this program knows {VERSION}"))
            .fix("run the version that wrote it, or a later one")),
    }
}
