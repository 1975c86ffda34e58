//! A stored text that was parsed and tried: the one way from a text to a key that may be used.

use super::key_version::KeyVersion;
use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
};

/// A key that was parsed, and that opens what it seals.
pub struct Usable {
    pub version: KeyVersion,
    /// The fingerprint, as [`super::Key::fingerprint`] makes it.
    pub fingerprint: String,
}

// === impl Usable ===

impl Usable {
    /// Parses a stored text, and has the key open what it seals. `place` follows the key's name in findings, for example `in Vault …`.
    ///
    /// # Errors
    /// `key_malformed` when the text is no key, `key_test_failed` when the key does not open what it seals.
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
