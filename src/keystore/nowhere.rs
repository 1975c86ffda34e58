//! No key store: the keys are in a KES, which never gives them away. Whoever asks for one is told so.

use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    store::{Error, KeyStore},
};
use async_trait::async_trait;

/// In the place of a key store where none is configured.
pub struct Nowhere;

/// That there is none.
pub fn unset() -> Finding {
    Cause::StoreUnset.seen("no key store is configured: neither KESWARDEN_VAULT_ADDR, nor KESWARDEN_FS_DIR, nor a --config with a keystore")
}

#[async_trait]
impl KeyStore for Nowhere {
    fn describe(&self) -> String {
        "no key store".to_owned()
    }

    async fn ready(&self) -> Result<(), Finding> {
        Err(unset())
    }

    async fn get(&self, _: &Name) -> Result<Secret, Error> {
        Err(Error::Failed(unset()))
    }

    async fn has_trace(&self, _: &Name) -> Result<bool, Finding> {
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

    fn how_to_create(&self, name: &Name) -> String {
        format!("`kes key create {name}`")
    }
}
