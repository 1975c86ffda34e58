//! The names of keys on the tenant's drives, as the gate has seen them, for as long as the agent runs.
//!
//! MinIO names every key in the files that it seals. A key that the drives name, and that the store does not have, is lost: no other one is
//! made under its name. The drives are not read again, since MinIO asks for no key in the agent's time but through the agent.

use super::{Kind, Says, Witness};
use crate::names::Name;
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Which of the keys that the drives name were not in the store, and how many files each has sealed.
#[derive(Default)]
pub struct NamedByDrives(Mutex<BTreeMap<String, u64>>);

// === impl NamedByDrives ===

impl NamedByDrives {
    /// Notes that the drives hold so many files of a key that the store does not have.
    pub fn note(&self, key: &str, files: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key.to_owned(), files);
    }
}

#[async_trait]
impl Witness for NamedByDrives {
    fn kind(&self) -> Kind {
        Kind::Drives
    }

    fn place(&self) -> String {
        "the drives, as the gate saw them".to_owned()
    }

    /// Absent for a key that no file names: the gate looks at a sample only.
    async fn says(&self, name: &Name) -> Option<Says> {
        let named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let files = named.get(name.as_str())?;
        Some(Says::WasInUse(format!("{files} objects that were sealed with it")))
    }
}
