//! The rights of the login beyond need, and the history that the mount keeps, for `doctor`. Read only.

use super::{VaultStore, Version};
use crate::{
    cause::{Cause, Finding},
    names::Name,
    vault::verdict::Asked,
};
use serde_json::{Value, json};

/// Capabilities that can overwrite or remove keys, and that reading and creating keys does not need.
const CAPABILITIES_BEYOND_NEED: [&str; 5] = ["update", "patch", "delete", "sudo", "root"];
/// Least number of versions that the mount should keep: after that many writes version 1, which KES and
/// keswarden read, is pushed out.
const VERSIONS_KEPT_MIN: u64 = 100;

impl VaultStore {
    pub(super) async fn look_at_rights(&self, name: &Name) -> Result<Vec<Finding>, Finding> {
        let version = self.version().await?;
        let mut notes = self.beyond_need(version, name).await?;
        if version == Version::V2 {
            notes.extend(self.mount_settings().await?);
        }
        Ok(notes)
    }

    async fn beyond_need(&self, version: Version, name: &Name) -> Result<Vec<Finding>, Finding> {
        let parent = |part: &str| {
            [self.config.mount.as_str(), part]
                .into_iter()
                .filter(|part| !part.is_empty())
                .collect::<Vec<_>>()
                .join("/")
        };
        let (keys, folders) = match version {
            Version::V1 => (vec![self.path("", name.as_str())], vec![parent("") + "/"]),
            Version::V2 => (
                ["data", "metadata", "delete", "destroy"].map(|part| self.path(part, name.as_str())).to_vec(),
                vec![parent("metadata") + "/"],
            ),
        };
        let asked = Asked { what: "asking for our own rights", path: "sys/capabilities-self" };
        let paths: Vec<_> = keys.iter().chain(&folders).collect();
        let answer = self.client.post(&asked, &json!({ "paths": paths })).await?;
        if answer.status != 200 {
            return Ok(vec![
                Cause::RightsBeyondNeed
                    .seen("the further rights of the login are unknown: the policy does not let the login ask for them")
                    .fix("add to the policy: path \"sys/capabilities-self\" { capabilities = [\"update\"] }"),
            ]);
        }
        let rights: Value = answer.json().unwrap_or_default();
        let of = |path: &str| -> Vec<String> {
            let list = rights.pointer("/data").and_then(|data| data.get(path)).or_else(|| rights.get(path));
            let list = list.and_then(Value::as_array).into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let mut notes = Vec::new();
        for path in &keys {
            let too_many: Vec<_> = of(path)
                .into_iter()
                .filter(|right| CAPABILITIES_BEYOND_NEED.contains(&right.as_str()))
                .collect();
            if !too_many.is_empty() {
                notes.push(Cause::RightsBeyondNeed.seen(format!(
                    "the login may `{}` {path}, by which keys can be lost",
                    too_many.join(", ")
                )));
            }
        }
        let has_prefix = !self.config.prefix.is_empty();
        for path in folders.iter().filter(|_| has_prefix) {
            if of(path).iter().any(|right| right == "list") {
                notes.push(
                    Cause::RightsBeyondNeed
                        .seen(format!("the login may `list` {path}, where other tenants' keys may be")),
                );
            }
        }
        Ok(notes)
    }

    async fn mount_settings(&self) -> Result<Vec<Finding>, Finding> {
        let path = format!("{}/config", self.config.mount);
        let asked = Asked { what: "reading the mount's settings", path: &path };
        let answer = self.client.get(&asked, None).await?;
        let Some(settings) = answer.json::<Value>().filter(|_| answer.status == 200) else {
            // The shipped policy does not allow this read: then the settings are not checked.
            return Ok(Vec::new());
        };
        let data = &settings["data"];
        let mut notes = Vec::new();
        if data["cas_required"] != json!(true) {
            notes.push(
                Cause::MountCasOptional
                    .seen(format!("the mount '{}' does not demand compare-and-set", self.config.mount))
                    .fix(format!("`bao write {path} cas_required=true`")),
            );
        }
        let max_versions = data["max_versions"].as_u64().unwrap_or(0);
        if max_versions < VERSIONS_KEPT_MIN {
            let kept = if max_versions == 0 { 10 } else { max_versions };
            notes.push(
                Cause::MountHistoryShort
                    .seen(format!("the mount '{}' keeps {kept} versions of a key", self.config.mount))
                    .fix(format!("`bao write {path} max_versions={VERSIONS_KEPT_MIN}`")),
            );
        }
        Ok(notes)
    }
}
