//! The gate against any sequence of changes to a store and to the witnesses of its key, across restarts: a gate passes with the key that a
//! witness knows and with no other, makes a key only where all witnesses were asked and none knows a key, and never stops the right key.
//!
//! More sequences: `PROPTEST_CASES=100000 cargo test --release --test it machine`.

use crate::harness::{KEY, key_text};
use async_trait::async_trait;
use keswarden::{
    cause::{Cause, Finding},
    clock::Clock,
    crypto::key_version::KeyVersion,
    gate::{self, Create},
    keystore::memory::MemoryStore,
    known::{Commands, Kind, Known, Says, Witness, Witnesses, is_same, ledger::Ledger},
    metrics::Registry,
    names::Name,
    pins::{Guarded, Pins},
};
use proptest::prelude::*;
use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex},
};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The right key is stored, or another key, or none, or a text that is no key.
    Right,
    Other,
    Removed,
    Garbled,
    /// The store is away, or is back.
    Away(bool),
    /// A process starts, with this setting.
    Start(Create),
    /// A witness can be asked, or cannot.
    Silent(usize, bool),
    /// A witness loses its memory, as with its disk.
    Loses(usize),
}

/// A place that remembers in memory.
#[derive(Default)]
struct Remembers {
    number: usize,
    knows: Mutex<Option<String>>,
    silent: Mutex<bool>,
}

fn silence() -> Finding {
    Cause::MemoryUnusable.seen("as the script says")
}

#[async_trait]
impl Witness for Remembers {
    fn kind(&self) -> Kind {
        Kind::Pin
    }

    fn place(&self) -> String {
        format!("script {}", self.number)
    }

    async fn says(&self, _: &Name) -> Option<Says> {
        if *self.silent.lock().unwrap() {
            return Some(Says::CannotTell(silence()));
        }
        let known = self.knows.lock().unwrap().clone();
        Some(known.map_or(Says::New, |known| Says::Known(vec![Known::Fingerprint(known, String::new())])))
    }

    async fn remember(&self, _: &Name, fingerprint: &str) -> Result<(), Finding> {
        if *self.silent.lock().unwrap() {
            return Err(silence());
        }
        self.knows.lock().unwrap().get_or_insert_with(|| fingerprint.to_owned());
        Ok(())
    }
}

/// Two places in memory, and a state directory.
const WITNESSES: usize = 3;

struct World {
    store: Arc<MemoryStore>,
    scripts: [Arc<Remembers>; 2],
    dir: TempDir,
    right: String,
    other: String,
    away: bool,
    // The model: what each witness knows, and whether it can be asked.
    knows: [Option<String>; WITNESSES],
    silent: [bool; WITNESSES],
}

fn fingerprint(text: &str) -> Option<String> {
    KeyVersion::parse(text.as_bytes()).ok().map(|version| version.key.fingerprint())
}

// === impl World ===

impl World {
    fn new() -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            scripts: [0, 1].map(|number| Arc::new(Remembers { number, ..Remembers::default() })),
            dir: tempfile::tempdir().unwrap(),
            right: key_text(),
            other: key_text(),
            away: false,
            knows: Default::default(),
            silent: [false; WITNESSES],
        }
    }

    fn known_keys(&self) -> [PathBuf; 2] {
        ["known-keys", "aside"].map(|name| self.dir.path().join(name))
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Right => self.store.put(KEY, &self.right),
            Step::Other => self.store.put(KEY, &self.other),
            Step::Garbled => self.store.put(KEY, "no key at all"),
            Step::Removed => self.store.remove(KEY),
            Step::Away(away) => {
                self.away = away;
                self.store.fail(away.then(|| Cause::VaultSealed.seen("as the script says")));
            }
            Step::Silent(witness, silent) if self.silent[witness] != silent => {
                self.silent[witness] = silent;
                match self.scripts.get(witness) {
                    Some(script) => *script.silent.lock().unwrap() = silent,
                    None => self.state_directory_is(silent),
                }
            }
            Step::Loses(witness) if !self.silent[witness] => {
                self.knows[witness] = None;
                match self.scripts.get(witness) {
                    Some(script) => *script.knows.lock().unwrap() = None,
                    None => drop(fs::remove_dir_all(&self.known_keys()[0])),
                }
            }
            Step::Silent(..) | Step::Loses(_) | Step::Start(_) => {}
        }
    }

    /// A file in the place of the folder cannot be listed.
    fn state_directory_is(&self, silent: bool) {
        let [folder, aside] = self.known_keys();
        if silent {
            let _ = fs::rename(&folder, &aside);
            fs::write(&folder, "").unwrap();
        } else {
            fs::remove_file(&folder).unwrap();
            let _ = fs::rename(&aside, &folder);
        }
    }

    /// The result that a start must have: the key that is served, or the cause. Updates what the witnesses know.
    fn expects(&mut self, create: Create) -> Result<(), Vec<Cause>> {
        if self.away {
            return Err(vec![Cause::VaultSealed]);
        }
        let asked = || (0..WITNESSES).filter(|at| !self.silent[*at]);
        let known: Vec<_> = asked().filter_map(|at| self.knows[at].clone()).collect();
        match self.store.text(KEY) {
            None if create == Create::Never || !known.is_empty() => Err(vec![Cause::KeyMissing]),
            None if self.silent.contains(&true) => Err(vec![Cause::MemoryUnusable]),
            None => Ok(()),
            Some(text) => match fingerprint(&text) {
                None => Err(vec![Cause::KeyMalformed]),
                Some(stored) if known.iter().any(|known| !is_same(known, &stored)) => {
                    Err(vec![Cause::KeyReplaced])
                }
                Some(_) => Ok(()),
            },
        }
    }

    async fn start(&mut self, create: Create) -> Result<(), String> {
        let (expected, before) = (self.expects(create), self.store.text(KEY));
        let clock = Clock::system();
        let ledger = Ledger::new(self.dir.path(), "In Memory".to_owned(), String::new(), clock.clone());
        let scripts = self.scripts.iter().map(|script| script.clone() as Arc<dyn Witness>);
        let witnesses = Witnesses::new(scripts.chain([Arc::new(ledger) as Arc<dyn Witness>]).collect());
        let guarded = Guarded::new(self.store.clone(), witnesses.clone(), Pins::off(), Commands::default());
        let settings = gate::Settings {
            keys: vec![Name::parse(KEY).unwrap()],
            create,
            drives: Vec::new(),
            kes_alone: false,
            exit_on_lost: false,
            maker: "a script".to_owned(),
            deadline: None,
        };
        let deps = gate::Deps {
            store: Arc::new(guarded),
            memory: gate::Memory { witnesses, ..gate::Memory::default() },
            canaries: None,
            copy: None,
            kes: Arc::new(|| Ok(None)),
            registry: Registry::new(),
            clock,
        };
        let passed = gate::attempt(&settings, &deps).await;
        let after = self.store.text(KEY);
        match (passed, expected) {
            (Err(finding), Err(causes)) if causes.contains(&finding.cause) => {
                if before == after {
                    Ok(())
                } else {
                    Err(format!("something was written: {finding}"))
                }
            }
            (Ok((keyring, _)), Ok(())) => {
                let held = keyring.held(KEY).ok_or("no key is held")?;
                let stored = after.as_deref().and_then(fingerprint).ok_or("no key is stored")?;
                if held.fingerprint != stored || before.is_some() && before != after {
                    return Err("another key is served than is stored".to_owned());
                }
                for at in (0..WITNESSES).filter(|at| !self.silent[*at]) {
                    self.knows[at].get_or_insert_with(|| stored.clone());
                }
                Ok(())
            }
            (passed, expected) => Err(format!(
                "{:?}, and not {expected:?}",
                passed.map(drop).map_err(|finding| finding.to_string())
            )),
        }
    }
}

async fn run(steps: &[Step]) -> Result<(), String> {
    let mut world = World::new();
    world.apply(Step::Right);
    world.start(Create::Never).await.map_err(|error| format!("at first: {error}"))?;
    for step in steps {
        world.apply(*step);
        if let Step::Start(create) = *step {
            world.start(create).await.map_err(|error| format!("at {step:?}: {error}"))?;
        }
    }
    Ok(())
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let create = prop::sample::select(vec![Create::Never, Create::IfNew, Create::First]);
    let step = prop_oneof![
        2 => Just(Step::Right),
        2 => Just(Step::Other),
        2 => Just(Step::Removed),
        1 => Just(Step::Garbled),
        1 => any::<bool>().prop_map(Step::Away),
        8 => create.prop_map(Step::Start),
        3 => (0..WITNESSES, any::<bool>()).prop_map(|(witness, silent)| Step::Silent(witness, silent)),
        2 => (0..WITNESSES).prop_map(Step::Loses),
    ];
    prop::collection::vec(step, 1..24)
}

#[test]
fn whatever_becomes_of_a_key_and_of_those_who_remember_it() {
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(steps in steps())| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let result = runtime.block_on(run(&steps));
        prop_assert!(result.is_ok(), "{}", result.unwrap_err());
    });
}
