//! The command that moves a key out of the way: every version is saved to a file first, since the command
//! removes all versions from K/V v2.

use super::{Config, VaultStore, Version};
use crate::{
    crypto::usable::Usable,
    known::shell_word,
    names::Name,
    secret::Secret,
    store::{SetAside, SetAsideKey},
    vault::verdict::Asked,
};
use serde_json::{Value, json};

/// Bound of the versions of a key that are saved.
const VERSIONS_MAX: usize = 16;

impl VaultStore {
    /// The command, and the keys of later versions. Version 1 counts, and a later version may be the missing
    /// key, written again by a person.
    pub(super) async fn set_aside(&self, name: &Name) -> SetAside {
        let Config { mount, prefix, .. } = &self.config;
        let place = if prefix.is_empty() { name.to_string() } else { format!("{prefix}/{name}") };
        let place = shell_word(&place);
        let space = self.client.namespace().map(|space| format!(" -namespace={}", shell_word(space)));
        let address = self.client.first_address();
        let at = format!(
            "-address={}{} -mount={}",
            shell_word(address),
            space.unwrap_or_default(),
            shell_word(mount)
        );
        // A secret without the key's field is saved as a whole.
        let what =
            |has_field: bool| if has_field { format!("-field={name}") } else { "-format=json".to_owned() };
        if self.known_version() == Some(Version::V1) {
            let what = what(self.read(name).await.is_ok());
            let command = format!(
                "`(umask 077; set -C; bao kv get {at} {what} {place} > {name}.set-aside && bao kv delete {at} {place})`"
            );
            return SetAside { command, others: Vec::new() };
        }
        // Without the right to read the history, only version 1 is known to exist.
        let versions = self.live_versions(name).await.unwrap_or_else(|| vec![1]);
        let file = |version: u64| match version {
            1 => format!("{name}.set-aside"),
            later => format!("{name}.set-aside.{later}"),
        };
        let (mut saves, mut others) = (String::new(), Vec::new());
        for version in versions {
            let (text, file) = (self.text_of(name, version).await, file(version));
            let what = what(text.is_some());
            saves.push_str(&format!("bao kv get {at} -version={version} {what} {place} > {file} && "));
            if let (2.., Some(text)) = (version, text)
                && let Ok(Usable { fingerprint, .. }) = Usable::read(name, &text, "in a later version")
            {
                let put_back = format!(
                    "put version {version} back as the first one: `bao kv put {at} -cas=0 {place} {name}=@{file}`"
                );
                others.push(SetAsideKey { fingerprint, put_back });
            }
        }
        let command = format!("`(umask 077; set -C; {saves}bao kv metadata delete {at} {place})`");
        SetAside { command, others }
    }

    /// The numbers of the versions that can be read, ascending. Absent without the right to read the history.
    async fn live_versions(&self, name: &Name) -> Option<Vec<u64>> {
        let path = self.path("metadata", name.as_str());
        let asked = Asked { what: "looking for the key's versions", path: &path };
        let answer = self.client.get(&asked, None).await.ok().filter(|answer| answer.status == 200)?;
        let metadata: Value = answer.json()?;
        let is_live =
            |version: &Value| version["destroyed"] != json!(true) && version["deletion_time"] == json!("");
        let versions = metadata.pointer("/data/versions")?.as_object()?.iter();
        let live = versions.filter(|(_, version)| is_live(version));
        let mut live: Vec<u64> = live.filter_map(|(number, _)| number.parse().ok()).collect();
        live.sort_unstable();
        live.truncate(VERSIONS_MAX);
        Some(live)
    }

    /// The text in one version, unwrapped. Absent when the version has no text in the key's field.
    async fn text_of(&self, name: &Name, version: u64) -> Option<Secret> {
        let path = self.path("data", name.as_str());
        let asked = Asked { what: "reading a later version of the key", path: &path };
        let query = format!("version={version}");
        let answer =
            self.client.get(&asked, Some(&query)).await.ok().filter(|answer| answer.status == 200)?;
        let text = self.field(Version::V2, name, &path, &answer).ok()?;
        self.unwrap(name, text).await.ok()
    }
}
