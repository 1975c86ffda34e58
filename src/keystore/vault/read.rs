//! Reading a key, and what it means that there is none: never there, deleted, destroyed, or trimmed away.

use super::{READ_BACK_PAUSE, STALE_TRIES, VaultStore, Version};
use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    store::Error,
    vault::verdict::{self, Answer, Asked},
};
use serde_json::{Value, json};

impl VaultStore {
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
        // Whatever stands in front of Vault may answer 200 as well: that says nothing about a key.
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

    /// What a 404 means: never there, deleted, destroyed, or trimmed away.
    async fn absent(&self, version: Version, name: &Name, asked: &Asked<'_>, answer: &Answer) -> Error {
        let address = self.client.address();
        if !answer.is_vaults() {
            return Error::Failed(self.client.not_vault(answer));
        }
        let words = answer.errors();
        if words.iter().any(|word| word.contains("Invalid path for a versioned"))
            && self.config.version.is_none()
        {
            // It was v1 when we asked, and is v2 now: ask again next time.
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
                // A standby may have heard of the key between the two questions: then its version 1 is there by now.
                Ok(true) => {
                    let again = self.client.get(asked, Some("version=1")).await;
                    !again.is_ok_and(|answer| answer.status == 200)
                }
                Ok(false) => false,
                // Without the right to look, the first 404 is all there is to know.
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

    /// Somebody has written other versions: nobody reads them, and `max_versions` may push the first one out.
    pub(super) async fn later_versions(&self, name: &Name) -> Result<Option<Finding>, Finding> {
        let path = self.path("metadata", name.as_str());
        let asked = Asked { what: "looking for the key's history", path: &path };
        let answer = self.client.get(&asked, None).await?;
        if answer.status != 200 {
            // Without the right to look there is nothing to tell.
            return Ok(None);
        }
        let metadata: Value = answer.json().unwrap_or_default();
        // Those that were removed again push nothing out that is not pushed out yet, and nobody can act on them twice.
        let is_there =
            |version: &Value| version["destroyed"] != json!(true) && version["deletion_time"] == json!("");
        let versions = metadata.pointer("/data/versions").and_then(Value::as_object).into_iter().flatten();
        let later = versions
            .filter(|(_, version)| is_there(version))
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

    /// A key that must be there, looked for until a standby has heard of it too.
    pub(super) async fn what_is_there(&self, name: &Name) -> Result<(), Error> {
        let mut last = self.read(name).await;
        for _ in 0..STALE_TRIES {
            match last {
                Err(Error::Missing(_)) => tokio::time::sleep(READ_BACK_PAUSE).await,
                known => return known.map(drop),
            }
            last = self.read(name).await;
        }
        last.map(drop)
    }
}
