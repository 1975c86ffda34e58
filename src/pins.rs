//! Pins: fingerprints written down once and apart from the keys, by name: in a directory, in a K/V path, in
//! the settings.
//!
//! The right to overwrite a key need not include the right to change its pin. A pin says nothing about K/V
//! versions, times or clusters, since people move all of these. Each place of pins is a witness of its own;
//! `known::judge` compares a key with them.

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
    /// A key without a pin passes, and gets a pin where pins can be written.
    #[default]
    Warn,
    /// A key without a pin is refused. A pin is written for a key that is created here, that the drives
    /// prove, or by `key pin`.
    Require,
}

/// The places of pins, and whether pins are demanded.
#[derive(Clone, Default)]
pub struct Pins {
    /// Whether a key without a pin may pass.
    pub mode: Mode,
    /// The pins of the settings.
    stated: Option<Arc<StatedPins>>,
    /// The places that pins are written to.
    places: Vec<Arc<PinPlace>>,
}

/// One place of pins: a secret, or a file, for each key.
struct PinPlace {
    store: Arc<dyn KeyStore>,
    /// A key without a pin gets one at its first use.
    pins_first_use: bool,
    clock: Clock,
}

/// The pins of the settings: fingerprints by name of the key.
struct StatedPins(BTreeMap<String, String>);

/// The pin of one key, as JSON. Unknown members are ignored: a later version may write more.
#[derive(Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Pin {
    /// The version of this form.
    pin: u32,
    /// As `crypto::Key::fingerprint` gives it.
    fingerprint: String,
    /// RFC 3339.
    pinned_at: String,
}

/// The version of the form that is written. A reader takes this version and every earlier one.
const VERSION: u32 = 1;

// === impl Pins ===

impl Pins {
    /// The pins of the settings, `stated` as fingerprints by name, and those in `stores`, one text a key.
    pub fn new(
        mode: Mode,
        stated: BTreeMap<String, String>,
        stores: Vec<Arc<dyn KeyStore>>,
        clock: &Clock,
    ) -> Self {
        if mode == Mode::Off {
            return Self::off();
        }
        let pins_first_use = mode == Mode::Warn;
        let place = |store| Arc::new(PinPlace { store, pins_first_use, clock: clock.clone() });
        let stated = (!stated.is_empty()).then(|| Arc::new(StatedPins(stated)));
        Self { mode, stated, places: stores.into_iter().map(place).collect() }
    }

    /// No pins at all.
    pub fn off() -> Self {
        Self { mode: Mode::Off, ..Self::default() }
    }

    /// Whether there is a place that pins are written to.
    pub fn can_write(&self) -> bool {
        !self.places.is_empty()
    }

    /// Every place of pins, as a witness.
    pub fn witnesses(&self) -> Vec<Arc<dyn Witness>> {
        let stated = self.stated.iter().map(|stated| stated.clone() as Arc<dyn Witness>);
        stated.chain(self.places.iter().map(|place| place.clone() as Arc<dyn Witness>)).collect()
    }

    /// Pins a key in every place where the key has no pin yet. Another pod may be faster, with the same pin.
    ///
    /// # Errors
    /// When a place has another pin of the name, even one written meanwhile, or cannot be read or written.
    pub async fn pin(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        for place in &self.places {
            place.pin(name, fingerprint).await?;
        }
        Ok(())
    }
}

/// Whether a pin of the key with this fingerprint is among the statements.
pub fn is_pinned(statements: &[Statement], fingerprint: &str) -> bool {
    statements.iter().any(|one| one.kind == Kind::Pin && one.knows(fingerprint))
}

// === impl PinPlace ===

impl PinPlace {
    async fn read(&self, name: &Name) -> Result<Option<Pin>, Finding> {
        let text = match self.store.get(name).await {
            Ok(text) => text,
            Err(Error::Missing(_)) => return Ok(None),
            Err(error) => return Err(error.into_finding(|| contradiction(name))),
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

    /// The text of a pin, dated now.
    fn pin_of(&self, fingerprint: &str) -> Secret {
        let now = self.clock.timestamp();
        let pin = Pin { pin: VERSION, fingerprint: fingerprint.to_owned(), pinned_at: now.to_string() };
        Secret::new(serde_json::to_string(&pin).expect("a pin must encode"))
    }

    async fn pin(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        if self.read(name).await?.is_none() {
            match self.store.create(name, &self.pin_of(fingerprint)).await {
                Ok(()) | Err(Error::Exists) => {}
                Err(error) => return Err(error.into_finding(|| contradiction(name))),
            }
        }
        // The stored pin counts, whoever wrote the pin.
        let statement = [Statement::new(Kind::Pin, self.place(), self.stored(name).await)];
        match judge(Asked::Key(fingerprint), &statement) {
            Verdict::Other(_) => Err(Cause::KeyReplaced.seen(format!(
                "the key '{name}' has the fingerprint {fingerprint}, and another one is pinned: {}",
                statement[0].words()
            ))),
            _ => Ok(()),
        }
    }

    async fn stored(&self, name: &Name) -> Says {
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
impl Witness for PinPlace {
    fn kind(&self) -> Kind {
        Kind::Pin
    }

    fn place(&self) -> String {
        format!("the pins in {}", self.store.describe())
    }

    async fn says(&self, name: &Name) -> Option<Says> {
        Some(self.stored(name).await)
    }

    async fn remember(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        if self.pins_first_use { self.pin(name, fingerprint).await } else { Ok(()) }
    }

    /// Replaces the pin where the login may delete. The shipped policy does not allow that: a person follows
    /// the fix.
    async fn forget(&self, name: &Name, was: &str, is: Option<&str>) -> Result<(), Finding> {
        match self.read(name).await? {
            Some(pin) if is_same(&pin.fingerprint, was) => {}
            _ => return Ok(()),
        }
        let set_aside = self.store.how_to_set_aside(name).await.command;
        let stays = |error: Error| {
            let finding = error.into_finding(|| contradiction(name));
            finding.fix(format!("as somebody who may change pins, set the former one aside: {set_aside}"))
        };
        match is {
            Some(is) => self.store.replace(name, &self.pin_of(is)).await.map_err(stays),
            // K/V v2 keeps a trace of a deleted pin: a person removes every version.
            None => {
                Err(stays(Error::Failed(Cause::KeyReplaced.seen(format!("{} have {was}", self.place())))))
            }
        }
    }
}

#[async_trait]
impl Witness for StatedPins {
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

fn contradiction(name: &Name) -> Finding {
    Cause::StoreUnavailable
        .seen(format!("successive answers contradict each other on whether the key '{name}' has a pin"))
}
