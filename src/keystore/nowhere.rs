//! The absence of a key store: the keys are in a KES, which gives none away. Every operation fails with
//! `store_unset`.

use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    store::{Error, History, KeyStore, SetAside},
};
use async_trait::async_trait;

/// The key store of a set-up that configures none.
pub struct Nowhere;

/// The finding that no key store is configured.
pub fn unset() -> Finding {
    Cause::StoreUnset.seen("no key store is configured: neither KESWARDEN_VAULT_ADDR, nor KESWARDEN_FS_DIR, nor a --config with a keystore")
}

#[async_trait]
impl KeyStore for Nowhere {
    fn describe(&self) -> String {
        "no key store".to_owned()
    }

    fn unanswered(&self) -> Cause {
        Cause::StoreUnset
    }

    async fn ready(&self) -> Result<(), Finding> {
        Err(unset())
    }

    async fn get(&self, _: &Name) -> Result<Secret, Error> {
        Err(Error::Failed(unset()))
    }

    async fn history(&self, _: &Name) -> Result<History, Finding> {
        Err(unset())
    }

    async fn create(&self, _: &Name, _: &Secret) -> Result<(), Error> {
        Err(Error::Failed(unset()))
    }

    async fn replace(&self, _: &Name, _: &Secret) -> Result<(), Error> {
        Err(Error::Failed(unset()))
    }

    async fn delete(&self, _: &Name) -> Result<(), Error> {
        Err(Error::Failed(unset()))
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        Err(unset())
    }

    async fn vouch(&self, _: &Name, _: &str) -> Result<(), Finding> {
        Err(unset())
    }

    async fn put_back(&self, _: &Name, _: &Secret) -> Result<(), Error> {
        Err(Error::Failed(unset()))
    }

    async fn overwritten(&self, _: &Name) -> Result<Option<Finding>, Finding> {
        Err(unset())
    }

    async fn how_to_set_aside(&self, name: &Name) -> SetAside {
        SetAside { command: format!("in the key store of KES, the key '{name}'"), others: Vec::new() }
    }
}
