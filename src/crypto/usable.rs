//! Keys that were parsed and tried: the one way from a stored text to a key in use.

use super::key_version::KeyVersion;
use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
};

/// A key that was parsed, and that opens what the key seals.
pub struct Usable {
    /// The key, with the time and the identity of its creation.
    pub version: KeyVersion,
    /// The fingerprint, as [`super::Key::fingerprint`] makes it.
    pub fingerprint: String,
}

// === impl Usable ===

impl Usable {
    /// Parses a stored text, and tries the key: the key must open what the key seals. `place` follows the
    /// key's name in findings, for example `in Vault …`.
    ///
    /// # Errors
    /// `key_malformed` when the text is no key; `key_test_failed` when the key does not open what the key
    /// seals.
    pub fn read(name: &Name, text: &Secret, place: &str) -> Result<Self, Finding> {
        let version = KeyVersion::parse(text.expose().as_bytes()).map_err(|error| {
            Cause::KeyMalformed.seen(format!("the key '{name}' {place} cannot be used: {error}"))
        })?;
        if !version.key.works() {
            return Err(
                Cause::KeyTestFailed.seen(format!("the key '{name}' {place} does not open what it seals"))
            );
        }
        let fingerprint = version.key.fingerprint();
        Ok(Self { version, fingerprint })
    }
}
