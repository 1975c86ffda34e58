//! The reading of a key, and the meaning of a missing one: never stored, deleted, destroyed, or trimmed away.

use super::{READ_BACK_PAUSE, STALE_TRIES_MAX, VaultStore, Version};
use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    store::Error,
    vault::verdict::{self, Answer, Asked},
};
use serde_json::{Value, json};

impl VaultStore {
    /// Reads a key once: on K/V v2 its version 1. A wrapped key is not unwrapped.
    pub(super) async fn read(&self, name: &Name) -> Result<Secret, Error> {
        let version = self.version().await.map_err(Error::Failed)?;
        let (part, query) = match version {
            Version::V1 => ("", None),
            Version::V2 => ("data", Some("version=1")),
        };
        let path = self.path(part, name.as_str());
        let asked = Asked { what: "reading the key", path: &path };
        let answer = self.client.get(&asked, query).await.map_err(Error::Failed)?;
        match answer.status {
            200 => self.field(version, name, &path, &answer).map_err(Error::Failed),
            404 => Err(self.absent(version, name, &asked, &answer).await),
            _ => Err(Error::Failed(self.client.verdict(&asked, &answer))),
        }
    }

    /// The text in the field that has the key's own name.
    pub(super) fn field(
        &self,
        version: Version,
        name: &Name,
        path: &str,
        answer: &Answer,
    ) -> Result<Secret, Finding> {
        let malformed = |what: &str| {
            Cause::KeyMalformed
                .seen(format!("the secret at {path} in Vault {} {what}", self.client.address()))
        };
        // A proxy in front of Vault may answer 200 as well, which says nothing about a key.
        let mut value: Value = answer.json().unwrap_or_default();
        if !value.get("data").is_some_and(Value::is_object) {
            return Err(self.client.not_vault(answer));
        }
        let data = match version {
            Version::V1 => value.pointer_mut("/data"),
            Version::V2 => value.pointer_mut("/data/data"),
        };
        match data.and_then(|data| data.get_mut(name.as_str())).map(Value::take) {
            Some(Value::String(text)) => Ok(Secret::new(text)),
            Some(_) => Err(malformed(&format!("has a field '{name}' that is no text"))),
            None => Err(malformed(&format!(
                "has no field '{name}' (KES keeps a key in the field of its own name)"
            ))),
        }
    }

    /// The meaning of a 404: never stored, deleted, destroyed, or trimmed away.
    async fn absent(&self, version: Version, name: &Name, asked: &Asked<'_>, answer: &Answer) -> Error {
        let address = self.client.address();
        if !answer.is_vaults() {
            return Error::Failed(self.client.not_vault(answer));
        }
        let words = answer.errors();
        if words.iter().any(|word| word.contains("Invalid path for a versioned"))
            && self.config.version.is_none()
        {
            // The mount was v1 when Vault was asked, and is v2 now: ask again at the next call.
            *self.lock() = None;
        }
        if words.iter().any(|word| {
            word.contains("no handler for route")
                || word.contains("Invalid path for a versioned")
                || word.contains("namespace not found")
        }) {
            return Error::Failed(self.client.verdict(asked, answer));
        }
        let mount = &self.config.mount;
        let place = self.path("", name.as_str());
        let inner = place.strip_prefix(&format!("{mount}/")).unwrap_or(&place);
        let space = self.client.namespace().map(|space| format!("-namespace={space} ")).unwrap_or_default();
        let metadata = answer.json::<Value>().and_then(|body| body.pointer("/data/metadata").cloned());
        if let Some(metadata) = metadata {
            let destroyed = metadata["destroyed"] == json!(true);
            return Error::Failed(match destroyed {
                true => Cause::KeyDestroyed
                    .seen(format!("version 1 of the key at {place} in Vault {address} was destroyed")),
                false => Cause::KeyDeleted
                    .seen(format!(
                        "version 1 of the key at {place} in Vault {address} was deleted at {}",
                        verdict::plain(metadata["deletion_time"].as_str().unwrap_or("an unknown time"))
                    ))
                    .fix(format!("undelete it: `bao kv undelete {space}-mount={mount} -versions=1 {inner}`")),
            });
        }
        let history = match version {
            Version::V1 => false,
            Version::V2 => match self.has_metadata(name).await {
                // A standby may have got the key between the two requests: then version 1 can be read by now.
                Ok(true) => {
                    let again = self.client.get(asked, Some("version=1")).await;
                    !again.is_ok_and(|answer| answer.status == 200)
                }
                Ok(false) => false,
                // Without the right to read the history, the first 404 decides.
                Err(finding) if finding.cause == Cause::PolicyMissing => false,
                Err(finding) => return Error::Failed(finding),
            },
        };
        match history {
            true => Error::Failed(
                Cause::KeyDestroyed
                    .seen(format!("the key at {place} in Vault {address} has a history, but its version 1 is gone: later versions are not what KES or keswarden read")),
            ),
            false => Error::Missing(
                Cause::KeyMissing.seen(format!("there is no key at {place} in Vault {address}")),
            ),
        }
    }

    /// Whether the name has a history on K/V v2.
    pub(super) async fn has_metadata(&self, name: &Name) -> Result<bool, Finding> {
        let path = self.path("metadata", name.as_str());
        let asked = Asked { what: "looking for the key's history", path: &path };
        let answer = self.client.get(&asked, None).await?;
        match answer.status {
            200 if answer.is_vaults() => Ok(true),
            200 => Err(self.client.not_vault(&answer)),
            404 if answer.is_vaults() => Ok(false),
            404 => Err(self.client.not_vault(&answer)),
            _ => Err(self.client.verdict(&asked, &answer)),
        }
    }

    /// The warning that later versions are stored. No process reads them, and `max_versions` may push version
    /// 1 out.
    pub(super) async fn later_versions(&self, name: &Name) -> Result<Option<Finding>, Finding> {
        let path = self.path("metadata", name.as_str());
        let asked = Asked { what: "looking for the key's history", path: &path };
        let answer = self.client.get(&asked, None).await?;
        if answer.status != 200 {
            // The right to read the history is optional.
            return Ok(None);
        }
        let metadata: Value = answer.json().unwrap_or_default();
        // Versions that were removed again push no further version out, and need no second removal.
        let is_live =
            |version: &Value| version["destroyed"] != json!(true) && version["deletion_time"] == json!("");
        let versions = metadata.pointer("/data/versions").and_then(Value::as_object).into_iter().flatten();
        let later = versions
            .filter(|(_, version)| is_live(version))
            .filter_map(|(number, _)| number.parse::<u64>().ok());
        let Some(current) = later.max().filter(|current| *current > 1) else { return Ok(None) };
        let (mount, place) = (&self.config.mount, self.path("", name.as_str()));
        let inner = place.strip_prefix(&format!("{mount}/")).unwrap_or(&place);
        Ok(Some(
            Cause::KeyOverwritten
                .seen(format!(
                    "the key at {place} in Vault {} was written again, up to version {current}; version 1 is what counts, and \
                     is well",
                    self.client.address()
                ))
                .fix(format!(
                    "find out who writes there and take the right to `update` from them; then remove the others: `bao kv \
                     destroy -mount={mount} -versions=2,… {inner}` (each further write may push version 1 out)"
                )),
        ))
    }

    /// Reads a name until the key is there, for as long as a standby may be stale. Succeeds when the name has
    /// a key.
    pub(super) async fn is_taken(&self, name: &Name) -> Result<(), Error> {
        let mut last = self.read(name).await;
        for _ in 0..STALE_TRIES_MAX {
            match last {
                Err(Error::Missing(_)) => tokio::time::sleep(READ_BACK_PAUSE).await,
                known => return known.map(drop),
            }
            last = self.read(name).await;
        }
        last.map(drop)
    }
}
