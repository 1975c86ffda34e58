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
use std::time::Duration;

/// Bound of the versions that are read, the newest first, to find the missing key among them.
const VERSIONS_READ_MAX: usize = 8;
/// Bound of the look at the versions: a finding must not wait for a slow Vault.
const LOOK_MAX: Duration = Duration::from_secs(3);

/// The versions of a key that are not destroyed, ascending.
#[derive(Default)]
struct Kept {
    all: Vec<u64>,
    /// Those that are soft-deleted: they can be saved once they are undeleted.
    deleted: Vec<u64>,
}

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
        let looked = tokio::time::timeout(LOOK_MAX, self.look_at_versions(name)).await;
        let Some((Kept { all, deleted }, texts)) = looked.ok().flatten() else {
            // Without the history nobody knows here what the removal would take along.
            let command = format!(
                "save every version that `bao kv metadata get {at} {place}` lists (`bao kv get {at} -version=N -format=json {place}`), and \
                 then `bao kv metadata delete {at} {place}`"
            );
            return SetAside { command, others: Vec::new() };
        };
        let (mut with_field, mut others) = (Vec::new(), Vec::new());
        for (version, text) in texts {
            with_field.push(version);
            if version > 1
                && let Ok(Usable { fingerprint, .. }) = Usable::read(name, &text, "in a later version")
            {
                let put_back = format!(
                    "put version {version} back as the first one: `bao kv put {at} -cas=0 {place} {name}=@{name}.set-aside.{version}`"
                );
                others.push(SetAsideKey { fingerprint, put_back });
            }
        }
        let whole: Vec<_> = all.iter().copied().filter(|version| !with_field.contains(version)).collect();
        let list = |versions: &[u64], separator: &str| {
            let numbers: Vec<_> = versions.iter().map(u64::to_string).collect();
            numbers.join(separator)
        };
        let undelete = match deleted.as_slice() {
            [] => String::new(),
            deleted => format!("bao kv undelete {at} -versions={} {place} && ", list(deleted, ",")),
        };
        let save = |versions: &[u64], what: String| match versions {
            [] => String::new(),
            versions => format!(
                "for v in {}; do bao kv get {at} -version=$v {what} {place} > {name}.set-aside.$v || exit 1; done && ",
                list(versions, " ")
            ),
        };
        let command = format!(
            "`(umask 077; set -C; {undelete}{}{}bao kv metadata delete {at} {place})`",
            save(&with_field, what(true)),
            save(&whole, what(false))
        );
        SetAside { command, others }
    }

    /// The versions that are not destroyed, and the texts of the newest. Absent without the right to read the history.
    async fn look_at_versions(&self, name: &Name) -> Option<(Kept, Vec<(u64, Secret)>)> {
        let kept = self.kept_versions(name).await?;
        let mut texts = Vec::new();
        for version in kept.all.iter().rev().take(VERSIONS_READ_MAX) {
            texts.extend(self.text_of(name, *version).await.map(|text| (*version, text)));
        }
        Some((kept, texts))
    }

    /// The versions that are not destroyed. Absent without the right to read the history.
    async fn kept_versions(&self, name: &Name) -> Option<Kept> {
        let path = self.path("metadata", name.as_str());
        let asked = Asked { what: "looking for the key's versions", path: &path };
        let answer = self.client.get(&asked, None).await.ok().filter(|answer| answer.status == 200)?;
        let metadata: Value = answer.json()?;
        let now = self.client.now();
        let mut kept = Kept::default();
        for (number, version) in metadata.pointer("/data/versions")?.as_object()? {
            let Ok(number) = number.parse() else { continue };
            if version["destroyed"] == json!(true) {
                continue;
            }
            kept.all.push(number);
            // A time to come is that of `delete_version_after`: the version can be read until then.
            let deleted = version["deletion_time"].as_str().filter(|time| !time.is_empty());
            let is_past = |time: &str| time.parse::<jiff::Timestamp>().map_or(true, |time| time <= now);
            if deleted.is_some_and(is_past) {
                kept.deleted.push(number);
            }
        }
        kept.all.sort_unstable();
        kept.deleted.sort_unstable();
        Some(kept)
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
