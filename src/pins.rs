//! Pins: what a key was, written once and apart from the keys, by name: in a directory, in a K/V path, in the settings.
//!
//! Whoever can overwrite a key need not be able to move its pin. A pin says nothing about K/V versions, times or clusters: people move
//! all of these. Each place of pins is a witness of its own; `known::judge` holds a key against them.

mod guarded;

use crate::{
    cause::{Cause, Finding},
    clock::Clock,
    known::{Asked, Kind, Known, Says, Statement, Verdict, Witness, is_same, judge},
    names::Name,
    secret::Secret,
    store::{Error, KeyStore},
};
use async_trait::async_trait;
pub use guarded::Guarded;
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// Whether a key without a pin may pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Pins are neither read nor written.
    Off,
    /// It may, and gets one where pins can be written.
    #[default]
    Warn,
    /// It may not: a pin is written for a key that is made here, that the drives prove, or by `key pin`.
    Require,
}

/// Where pins are, and what they are for.
#[derive(Clone, Default)]
pub struct Pins {
    pub mode: Mode,
    /// Pins that the settings state, by name.
    stated: Option<Arc<Stated>>,
    /// Where pins are kept.
    registries: Vec<Arc<Registry>>,
}

/// One place of pins: a secret, or a file, for each key.
pub struct Registry {
    store: Arc<dyn KeyStore>,
    /// A key that is first seen gets a pin.
    writes: bool,
    clock: Clock,
}

/// The pins that the settings state.
struct Stated(BTreeMap<String, String>);

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

// === impl Pins ===

impl Pins {
    pub fn new(
        mode: Mode,
        stated: BTreeMap<String, String>,
        registries: Vec<Arc<dyn KeyStore>>,
        clock: &Clock,
    ) -> Self {
        if mode == Mode::Off {
            return Self::off();
        }
        let writes = mode == Mode::Warn;
        let registry = |store| Arc::new(Registry { store, writes, clock: clock.clone() });
        let stated = (!stated.is_empty()).then(|| Arc::new(Stated(stated)));
        Self { mode, stated, registries: registries.into_iter().map(registry).collect() }
    }

    /// No pins at all.
    pub fn off() -> Self {
        Self { mode: Mode::Off, ..Self::default() }
    }

    /// Whether a pin could be written anywhere.
    pub fn can_write(&self) -> bool {
        !self.registries.is_empty()
    }

    /// Every place of pins.
    pub fn witnesses(&self) -> Vec<Arc<dyn Witness>> {
        let stated = self.stated.iter().map(|stated| stated.clone() as Arc<dyn Witness>);
        stated.chain(self.registries.iter().map(|registry| registry.clone() as Arc<dyn Witness>)).collect()
    }

    /// Pins a key in every registry where it is not pinned yet. Another pod may be faster, with the same pin.
    ///
    /// # Errors
    /// When a registry has, or gets from somebody else, another pin, or cannot be read or written.
    pub async fn pin(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        for registry in &self.registries {
            registry.pin(name, fingerprint).await?;
        }
        Ok(())
    }
}

/// Whether these statements have a pin of the key.
pub fn is_pinned(statements: &[Statement], fingerprint: &str) -> bool {
    statements.iter().any(|one| one.kind == Kind::Pin && one.knows(fingerprint))
}

// === impl Registry ===

impl Registry {
    async fn read(&self, name: &Name) -> Result<Option<Pin>, Finding> {
        let text = match self.store.get(name).await {
            Ok(text) => text,
            Err(Error::Missing(_)) => return Ok(None),
            Err(error) => return Err(error.into_finding(|| by_turns(name))),
        };
        let place = self.place();
        let pin: Pin = serde_json::from_str(text.expose().trim()).map_err(|_| {
            Cause::PinConflict.seen(format!("what {place} have for the key '{name}' is no pin"))
        })?;
        match pin.pin {
            1..=VERSION => Ok(Some(pin)),
            newer => Err(Cause::PinConflict
                .seen(format!("the pin of the key '{name}' in {place} is of version {newer}, and this program knows {VERSION}"))
                .fix("run the version that wrote it, or a later one")),
        }
    }

    /// The text of a pin that is made now.
    fn pin_of(&self, fingerprint: &str) -> Secret {
        let now = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        let pin = Pin { pin: VERSION, fingerprint: fingerprint.to_owned(), pinned_at: now.to_string() };
        Secret::new(serde_json::to_string(&pin).expect("a pin must encode"))
    }

    async fn pin(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        if self.read(name).await?.is_none() {
            match self.store.create(name, &self.pin_of(fingerprint)).await {
                Ok(()) | Err(Error::Exists) => {}
                Err(error) => return Err(error.into_finding(|| by_turns(name))),
            }
        }
        // What is there now is what counts, whoever wrote it.
        let statement = [Statement::new(Kind::Pin, self.place(), self.look(name).await)];
        match judge(Asked::Key(fingerprint), &statement) {
            Verdict::Other(_) => Err(Cause::KeyReplaced.seen(format!(
                "the key '{name}' has the fingerprint {fingerprint}, and another one is pinned: {}",
                statement[0].words()
            ))),
            _ => Ok(()),
        }
    }

    async fn look(&self, name: &Name) -> Says {
        match self.read(name).await {
            Ok(None) => Says::New,
            Ok(Some(pin)) => {
                let day = pin.pinned_at.split('T').next().filter(|day| !day.is_empty());
                let more = day.map(|day| format!("pinned {day}")).unwrap_or_default();
                Says::Known(vec![Known::Fingerprint(pin.fingerprint, more)])
            }
            Err(finding) => Says::CannotTell(finding),
        }
    }
}

#[async_trait]
impl Witness for Registry {
    fn kind(&self) -> Kind {
        Kind::Pin
    }

    fn place(&self) -> String {
        format!("the pins in {}", self.store.describe())
    }

    async fn says(&self, name: &Name) -> Option<Says> {
        Some(self.look(name).await)
    }

    async fn remember(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        if self.writes { self.pin(name, fingerprint).await } else { Ok(()) }
    }

    /// Where the login may delete; the shipped policy does not let it, and a person does what the fix says.
    async fn forget(&self, name: &Name, was: &str, is: Option<&str>) -> Result<(), Finding> {
        match self.read(name).await? {
            Some(pin) if is_same(&pin.fingerprint, was) => {}
            _ => return Ok(()),
        }
        let set_aside = self.store.how_to_set_aside(name).await.command;
        let stays = |error: Error| {
            let finding = error.into_finding(|| by_turns(name));
            finding.fix(format!("as somebody who may change pins, set the former one aside: {set_aside}"))
        };
        match is {
            Some(is) => self.store.replace(name, &self.pin_of(is)).await.map_err(stays),
            // What a store deletes, K/V v2 still remembers: a person takes all of it away.
            None => {
                Err(stays(Error::Failed(Cause::KeyReplaced.seen(format!("{} have {was}", self.place())))))
            }
        }
    }
}

#[async_trait]
impl Witness for Stated {
    fn kind(&self) -> Kind {
        Kind::Pin
    }

    fn place(&self) -> String {
        "the pins in KESWARDEN_PINS".to_owned()
    }

    async fn says(&self, name: &Name) -> Option<Says> {
        let stated = self.0.get(name.as_str());
        Some(
            stated.map_or(Says::New, |pin| Says::Known(vec![Known::Fingerprint(pin.clone(), String::new())])),
        )
    }

    async fn forget(&self, name: &Name, was: &str, is: Option<&str>) -> Result<(), Finding> {
        match self.0.get(name.as_str()) {
            Some(stated) if is_same(stated, was) => {
                Err(Cause::KeyReplaced.seen(format!("KESWARDEN_PINS states {name}={was}")).fix(match is {
                    Some(is) => format!("state {name}={is} there"),
                    None => "take that away there".to_owned(),
                }))
            }
            _ => Ok(()),
        }
    }
}

fn by_turns(name: &Name) -> Finding {
    Cause::StoreUnavailable.seen(format!("the pin of the key '{name}' exists and does not, by turns"))
}
