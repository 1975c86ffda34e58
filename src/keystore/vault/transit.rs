//! The wrapping of keys by Vault's transit engine, under any version of the transit key.

use super::VaultStore;
use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    vault::verdict::Asked,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use zeroize::Zeroizing;

impl VaultStore {
    /// The text to store: wrapped, where the settings name a transit engine.
    pub(super) async fn wrapped(&self, text: &Secret) -> Result<Secret, Finding> {
        let Some(transit) = &self.config.transit else { return Ok(Secret::new(text.expose().to_owned())) };
        let plaintext = Zeroizing::new(STANDARD.encode(text.expose()));
        let path = format!("{}/encrypt/{}", transit.mount, transit.key);
        let asked = Asked { what: "wrapping the key with transit", path: &path };
        let wrapped = self.transit(&asked, &json!({ "plaintext": *plaintext }), "ciphertext").await?;
        match is_wrapped(&wrapped) {
            true => Ok(Secret::new(wrapped.to_string())),
            false => {
                Err(Cause::TransitFailed.seen(format!("{path} answered something that is not vault:v…:")))
            }
        }
    }

    /// The text of a key: unwrapped, where the stored text is wrapped.
    pub(super) async fn unwrap(&self, name: &Name, text: Secret) -> Result<Secret, Finding> {
        if !is_wrapped(text.expose()) {
            return Ok(text);
        }
        let Some(transit) = &self.config.transit else {
            return Err(
                Cause::KeyTransitUnset.seen(format!("the key '{name}' is wrapped by Vault's transit engine"))
            );
        };
        let path = format!("{}/decrypt/{}", transit.mount, transit.key);
        let asked = Asked { what: "unwrapping the key with transit", path: &path };
        let plaintext = self.transit(&asked, &json!({ "ciphertext": text.expose() }), "plaintext").await?;
        let text = STANDARD.decode(plaintext.as_bytes()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        text.map(Secret::new).ok_or_else(|| {
            Cause::KeyMalformed.seen(format!("what transit unwrapped for the key '{name}' is no text"))
        })
    }

    async fn transit(
        &self,
        asked: &Asked<'_>,
        body: &Value,
        member: &str,
    ) -> Result<Zeroizing<String>, Finding> {
        let answer = self.client.post(asked, body).await?;
        let mut value: Value = match answer.status {
            200 => answer.json().unwrap_or_default(),
            _ => return Err(self.client.verdict(asked, &answer)),
        };
        match value["data"][member].take() {
            Value::String(text) => Ok(Zeroizing::new(text)),
            _ => Err(Cause::TransitFailed.seen(format!("{} answered without '{member}'", asked.path))),
        }
    }
}

/// Whether a text starts with `vault:v<digits>:`, as transit writes.
fn is_wrapped(text: &str) -> bool {
    let version = text.strip_prefix("vault:v").and_then(|rest| rest.split_once(':'));
    version
        .is_some_and(|(digits, _)| !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_digit()))
}
