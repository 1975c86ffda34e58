//! Opens a key store with everything that remembers its keys in front of it.

use super::Base;
use crate::{
    cause::Finding,
    config::{self, MemorySettings, StateDir},
    control::AgentWitness,
    gate,
    keystore::{self, fs::FsStore, nowhere::Nowhere, vault::VaultStore},
    known::{Commands, NamedByDrives, Witness, Witnesses, ledger::Ledger},
    offline::{CopyWitness, SealedCopy},
    pins::{Guarded, Pins},
    store::{Advice, KeyStore, Upkeep},
    vault,
};
use std::{collections::BTreeSet, path::Path, sync::Arc};

/// A key store as it was opened, with nothing in front.
pub struct Opened {
    pub keys: Arc<dyn KeyStore>,
    /// Absent for a store without a login.
    pub advice: Option<Arc<dyn Advice>>,
    /// Absent for a store without a login.
    upkeep: Option<Arc<dyn Upkeep>>,
    /// The K/V path of pins in the Vault of the keys, when there is one.
    pins: Option<Arc<dyn KeyStore>>,
}

/// A key store behind its witnesses.
#[derive(Clone)]
pub(super) struct OpenStore {
    pub(super) store: Arc<dyn KeyStore>,
    pub(super) memory: gate::Memory,
    pub(super) copy: Option<Arc<SealedCopy>>,
    pub(super) advice: Option<Arc<dyn Advice>>,
    upkeep: Option<Arc<dyn Upkeep>>,
}

// === impl OpenStore ===

impl OpenStore {
    /// Renews the store's login; runs until dropped.
    pub(super) async fn renew(&self) {
        match &self.upkeep {
            Some(upkeep) => upkeep.renew().await,
            None => std::future::pending().await,
        }
    }

    /// What the gate asks, with no KES beside the store and no canaries.
    pub(super) fn gate_deps(&self, base: &Base) -> gate::Deps {
        gate::Deps {
            store: self.store.clone(),
            memory: self.memory.clone(),
            copy: self.copy.clone(),
            canaries: None,
            kes: Arc::new(|| Ok(None)),
            registry: base.registry.clone(),
            clock: base.clock.clone(),
        }
    }
}

// === impl Base ===

impl Base {
    /// The store with its memory in front. `agent`: the run directory of an agent that may run beside this process.
    pub(super) fn open_remembering(
        &self,
        given: Option<Arc<dyn KeyStore>>,
        store: &config::Store,
        settings: &MemorySettings,
        agent: Option<&Path>,
    ) -> Result<OpenStore, Finding> {
        let Opened { keys, advice, upkeep, pins } = self.open(given, store, settings.pin_kv.clone())?;
        let mut registries: Vec<Arc<dyn KeyStore>> = Vec::new();
        if let Some(dir) = &settings.pin_dir {
            registries.push(Arc::new(FsStore::new(dir.clone()).made_on_demand()));
        }
        registries.extend(pins);
        let pins = Pins::new(settings.mode, settings.stated.clone(), registries, &self.clock);
        let origin = keys.describe();
        let mut witnesses: Vec<Arc<dyn Witness>> = Vec::new();
        let copy = settings.offline.clone();
        let copy = copy.map(|config| Arc::new(SealedCopy::new(config, origin.clone(), self.clock.clone())));
        let commands = Commands { config: settings.config.clone() };
        if let Some(run_dir) = agent {
            // A `server` has its socket in its state directory.
            let of_servers =
                settings.dirs.iter().map(|dir| dir.path.as_path()).chain(settings.server_dir.as_deref());
            let dirs: BTreeSet<_> = of_servers.chain([run_dir]).collect();
            witnesses.extend(
                dirs.into_iter().map(|dir| Arc::new(AgentWitness(dir.to_owned())) as Arc<dyn Witness>),
            );
        }
        if let Some(copy) = &copy {
            witnesses.push(Arc::new(CopyWitness::new(copy.clone(), commands.clone())));
        }
        let dirs: Vec<_> = settings.dirs.iter().filter(|dir| is_usable(dir)).collect();
        for dir in &dirs {
            let (tenant, clock) = (settings.tenant.clone(), self.clock.clone());
            witnesses.push(Arc::new(Ledger::new(&dir.path, origin.clone(), tenant, clock)));
        }
        for dir in settings.neighbours.iter().filter(|_| !settings.dirs.is_empty()) {
            witnesses.push(Arc::new(Ledger::of_another(dir, origin.clone(), self.clock.clone())));
        }
        witnesses.extend(pins.witnesses());
        let named = Arc::new(NamedByDrives::default());
        witnesses.push(named.clone());
        let lasting = dirs.iter().filter(|dir| dir.lasts).map(|dir| dir.path.display().to_string()).collect();
        let witnesses = Witnesses::new(witnesses);
        let memory = gate::Memory { witnesses, pins, commands, named, lasting };
        let guarded =
            Guarded::new(keys, memory.witnesses.clone(), memory.pins.clone(), memory.commands.clone());
        Ok(OpenStore { store: Arc::new(guarded), memory, copy, advice, upkeep })
    }

    /// The store of the settings, or the one that a test put in its place, with nothing in front.
    pub(super) fn open(
        &self,
        given: Option<Arc<dyn KeyStore>>,
        store: &config::Store,
        pin_kv: Option<keystore::vault::Config>,
    ) -> Result<Opened, Finding> {
        let bare = |keys| Opened { keys, advice: None, upkeep: None, pins: None };
        Ok(match (given, store) {
            (Some(given), _) => bare(given),
            (None, config::Store::Fs(dir)) => bare(Arc::new(FsStore::new(dir.clone()))),
            (None, config::Store::InKes) => bare(Arc::new(Nowhere)),
            (None, config::Store::Vault(configs)) => {
                let (mut vault, kv) = (**configs).clone();
                vault.state_dir.clone_from(&self.state_dir);
                let client =
                    vault::Client::new(vault, &self.registry, self.clock.clone(), self.refusals.clone())?;
                let client = Arc::new(client);
                let pins =
                    pin_kv.map(|kv| Arc::new(VaultStore::new(client.clone(), kv)) as Arc<dyn KeyStore>);
                let store = Arc::new(VaultStore::new(client, kv));
                Opened { keys: store.clone(), advice: Some(store.clone()), upkeep: Some(store), pins }
            }
        })
    }
}

/// A directory that nobody has named is used where it is, or can be made.
fn is_usable(dir: &StateDir) -> bool {
    use rustix::fs::{Access, access};
    if !dir.by_default || dir.path.exists() {
        return true;
    }
    let above = dir.path.ancestors().skip(1).find(|path| path.exists());
    above.is_some_and(|above| access(above, Access::WRITE_OK | Access::EXEC_OK).is_ok())
}
