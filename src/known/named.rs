//! The names of lost keys on the tenant's drives, as the gate has read them, for as long as the agent runs.
//!
//! MinIO names every key in the files that it seals. A key that the drives name and the store lacks is lost:
//! no other key is created under its name. The drives are not read again, since MinIO gets every key from the
//! agent while the agent runs.

use super::{Kind, Says, Witness};
use crate::names::Name;
use async_trait::async_trait;
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// The keys that the drives name and the store lacks, each with the number of files that it sealed.
#[derive(Default)]
pub struct NamedByDrives(Mutex<BTreeMap<String, u64>>);

// === impl NamedByDrives ===

impl NamedByDrives {
    /// Notes a key that the store lacks, with the number of files on the drives that the key sealed.
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

    /// Absent for a key that no file names: the gate reads a sample only, which proves no name new.
    async fn says(&self, name: &Name) -> Option<Says> {
        let named = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let files = named.get(name.as_str())?;
        Some(Says::WasInUse(format!("{files} objects that were sealed with it")))
    }
}
