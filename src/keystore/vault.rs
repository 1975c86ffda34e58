//! Keys in Vault K/V v1 or v2, at KES's paths and in KES's format; optionally wrapped by the transit engine.
//!
//! The field in the secret has the key's own name. On v2 version 1 counts, as for KES, so that later versions
//! change nothing. A creation is a write with `cas=0`, and succeeds only once the key was read back.

mod read;
mod rights;
mod set_aside;
mod transit;

use crate::{
    cause::{Cause, Finding},
    names::Name,
    retry::Backoff,
    secret::Secret,
    store::{Advice, Error, History, KeyStore, SetAside, Upkeep},
    vault::{
        Client,
        verdict::{self, Answer, Asked},
    },
};
use async_trait::async_trait;
use serde::Deserialize;
use serde_json::json;
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// The place of the keys in Vault.
#[derive(Clone)]
pub struct Config {
    /// The mount of the K/V engine, without slashes at its ends.
    pub mount: String,
    /// The version of the mount. Absent: Vault is asked.
    pub version: Option<Version>,
    /// The folder below the mount. May be empty.
    pub prefix: String,
    /// The transit engine that wraps the keys. Absent: keys are stored unwrapped.
    pub transit: Option<Transit>,
}

/// The transit engine that wraps the keys.
#[derive(Clone)]
pub struct Transit {
    /// The mount of the engine, without slashes at its ends.
    pub mount: String,
    /// The name of the transit key.
    pub key: String,
}

/// The version of a K/V mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// K/V v1: a write goes over the stored text.
    V1,
    /// K/V v2: a write adds a version.
    V2,
}

/// A key store in Vault.
pub struct VaultStore {
    client: Arc<Client>,
    config: Config,
    /// The version of the mount as last seen, or as set. Absent: Vault is asked again.
    version: Mutex<Option<Version>>,
}

/// Pause before a missing key is read again: a standby may answer stale (≤ 102 ms seen).
const STALE_PAUSE: Duration = Duration::from_millis(150);
/// Bound of the reads of a new key until it is read back, and the pause between them.
const READ_BACK_TRIES_MAX: u32 = 20;
const READ_BACK_PAUSE: Duration = Duration::from_millis(100);
/// Bound of the writes of a key in the place of a removed one.
const REPLACE_TRIES_MAX: u32 = 12;
/// Bound of the reads of a key that another process has made, behind a stale standby.
const STALE_TRIES_MAX: u32 = 3;

// === impl VaultStore ===

impl VaultStore {
    /// The store at a place in the Vault of a client.
    pub fn new(client: Arc<Client>, config: Config) -> Self {
        let version = Mutex::new(config.version);
        Self { client, config, version }
    }

    /// The version of the mount: as set, or as Vault says.
    async fn version(&self) -> Result<Version, Finding> {
        if let Some(version) = self.known_version() {
            return Ok(version);
        }
        let version = self.detect().await?;
        *self.lock() = Some(version);
        Ok(version)
    }

    fn known_version(&self) -> Option<Version> {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Version>> {
        self.version.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the mount answers this login, and has the version that was set. A green health page says
    /// nothing about either.
    async fn mount(&self) -> Result<(), Finding> {
        let found = match self.detect().await {
            Ok(found) => found,
            // Where the version is set, the right to ask for the version is not needed.
            Err(finding) if finding.cause == Cause::MountMissing && self.config.version.is_some() => {
                return Ok(());
            }
            Err(finding) => return Err(finding),
        };
        match self.config.version {
            Some(set) if set != found => Err(Cause::MountVersionMismatch.seen(format!(
                "the mount '{}' in Vault {} is K/V {found:?}, and was set to be {set:?}",
                self.config.mount,
                self.client.address()
            ))),
            _ => {
                *self.lock() = Some(found);
                Ok(())
            }
        }
    }

    async fn detect(&self) -> Result<Version, Finding> {
        let mount = &self.config.mount;
        let path = format!("sys/internal/ui/mounts/{mount}");
        let asked = Asked { what: "asking for the version of the K/V mount", path: &path };
        let answer = self.client.get(&asked, None).await?;
        if answer.status == 403 {
            return Err(Cause::MountMissing
                .seen(format!("there is no mount '{mount}' in Vault {}, or the policy grants nothing below it (403 on {path})", self.client.address()))
                .fix(format!("enable it: `bao secrets enable -path={mount} -version=2 kv`; or add path \"{}\" {{ capabilities = [\"read\"] }} to the policy", self.policy_path())));
        }
        #[derive(Deserialize)]
        struct Mount {
            data: Data,
        }
        #[derive(Deserialize)]
        struct Data {
            #[serde(default)]
            r#type: String,
            #[serde(default)]
            options: Option<std::collections::HashMap<String, String>>,
        }
        let (200, Some(Mount { data })) = (answer.status, answer.json()) else {
            return Err(self.client.verdict(&asked, &answer));
        };
        if data.r#type != "kv" && data.r#type != "generic" {
            return Err(Cause::MountMissing
                .seen(format!("the mount '{mount}' is of type '{}', not kv", verdict::plain(&data.r#type))));
        }
        let version = data.options.and_then(|options| options.get("version").cloned());
        Ok(if version.as_deref() == Some("2") { Version::V2 } else { Version::V1 })
    }

    fn policy_path(&self) -> String {
        match self.config.prefix.as_str() {
            "" => format!("{}/data/*", self.config.mount),
            prefix => format!("{}/data/{prefix}/*", self.config.mount),
        }
    }

    /// `mount[/part]/prefix/name`, of validated segments only.
    fn path(&self, part: &str, name: &str) -> String {
        [self.config.mount.as_str(), part, self.config.prefix.as_str(), name]
            .into_iter()
            .filter(|segment| !segment.is_empty())
            .collect::<Vec<_>>()
            .join("/")
    }

    async fn write(&self, version: Version, name: &Name, text: &str) -> Result<(), Error> {
        let (part, body) = match version {
            Version::V1 => ("", json!({ name.as_str(): text })),
            Version::V2 => ("data", json!({ "data": { name.as_str(): text }, "options": { "cas": 0 } })),
        };
        let path = self.path(part, name.as_str());
        let asked = Asked { what: "creating the key", path: &path };
        let answer = self.client.post(&asked, &body).await.map_err(Error::Failed)?;
        match answer.status {
            200 | 204 => Ok(()),
            // A token that may only create gets 403 for a key that exists: a read decides.
            400 | 403 => {
                let taken = answer.errors().iter().any(|word| word.contains("check-and-set"));
                match self.is_taken(name).await {
                    Ok(()) => Err(Error::Exists),
                    Err(Error::Failed(finding)) if finding.cause.is_no_key() => Err(Error::Failed(finding)),
                    // The standby that was read is stale: the active node has refused the write.
                    Err(Error::Missing(_)) if taken => Err(Error::Exists),
                    Err(_) => Err(Error::Failed(self.cannot_create(&asked, &answer))),
                }
            }
            _ => Err(Error::Failed(self.client.verdict(&asked, &answer))),
        }
    }

    fn cannot_create(&self, asked: &Asked<'_>, answer: &Answer) -> Finding {
        let finding = self.client.verdict(asked, answer);
        match finding.cause {
            Cause::PolicyMissing => finding.fix(format!(
                "add to the policy: path \"{}\" {{ capabilities = [\"create\", \"read\"] }}",
                asked.path
            )),
            _ => finding,
        }
    }

    /// Reads until the key is there. Fails when another text is there.
    async fn read_back(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        for _ in 0..READ_BACK_TRIES_MAX {
            match self.get(name).await {
                Ok(stored) if stored.same(text) => return Ok(()),
                Ok(_) => return Err(Error::Exists),
                Err(Error::Missing(_)) => tokio::time::sleep(READ_BACK_PAUSE).await,
                Err(error) => return Err(error),
            }
        }
        let seen = format!(
            "Vault {} acknowledged the new key '{name}' but does not return it",
            self.client.address()
        );
        Err(Error::Failed(Cause::VaultUnhealthy.seen(seen)))
    }
}

impl VaultStore {
    /// Creates a key in the place of a removed one, with retries: losing the active node meanwhile must not
    /// leave the name without a key.
    async fn create_with_retries(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let mut retry = Backoff::new(READ_BACK_PAUSE, Duration::from_secs(5));
        for _ in 1..REPLACE_TRIES_MAX {
            match self.create(name, text).await {
                // An earlier try whose answer was lost may have written the key.
                Err(Error::Exists) => return self.read_back(name, text).await,
                Ok(()) => return Ok(()),
                Err(_) => tokio::time::sleep(retry.next_delay()).await,
            }
        }
        self.create(name, text).await
    }
}

#[async_trait]
impl KeyStore for VaultStore {
    fn describe(&self) -> String {
        let space = self.client.namespace().map(|space| format!(", namespace {space}")).unwrap_or_default();
        format!("Vault {}{space}, K/V {}", self.client.address(), self.path("", ""))
    }

    fn unanswered(&self) -> Cause {
        Cause::VaultUnreachableTimeout
    }

    async fn ready(&self) -> Result<(), Finding> {
        self.client.unsealed().await?;
        self.client.logged_in().await?;
        self.mount().await
    }

    /// Reads twice before [`Error::Missing`]: one 404 proves nothing, since a standby may be stale.
    async fn get(&self, name: &Name) -> Result<Secret, Error> {
        let text = match self.read(name).await {
            Err(Error::Missing(_)) => {
                tokio::time::sleep(STALE_PAUSE).await;
                self.read(name).await?
            }
            result => result?,
        };
        self.unwrap(name, text).await.map_err(Error::Failed)
    }

    async fn history(&self, name: &Name) -> Result<History, Finding> {
        match self.read(name).await {
            Ok(_) => Ok(History::Was),
            Err(Error::Failed(finding)) if finding.cause.is_trace_of_key() => Ok(History::Was),
            Err(Error::Failed(finding)) => Err(finding),
            Err(_) if self.version().await? == Version::V2 => {
                Ok(if self.has_metadata(name).await? { History::Was } else { History::New })
            }
            Err(_) => Ok(History::Forgets("K/V v1 forgets what is deleted")),
        }
    }

    async fn overwritten(&self, name: &Name) -> Result<Option<Finding>, Finding> {
        match self.version().await? {
            Version::V1 => Ok(None),
            Version::V2 => self.later_versions(name).await,
        }
    }

    /// Always allowed: Vault's only witness is its own history.
    async fn vouch(&self, _: &Name, _: &str) -> Result<(), Finding> {
        Ok(())
    }

    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.create(name, text).await
    }

    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let version = self.version().await.map_err(Error::Failed)?;
        // K/V v1 has no compare-and-set, so the name is read first, for as long as a standby may be stale,
        // and the key is read back after the write. Two creators in the same instant go unnoticed:
        // docs/threat-model.md says so.
        if version == Version::V1 {
            match self.is_taken(name).await {
                Err(Error::Missing(_)) => {}
                Ok(()) => return Err(Error::Exists),
                Err(Error::Failed(finding)) if finding.cause == Cause::KeyMalformed => {
                    return Err(Error::Exists);
                }
                Err(error) => return Err(error),
            }
        }
        let stored = self.wrapped(text).await.map_err(Error::Failed)?;
        self.write(version, name, stored.expose()).await?;
        self.read_back(name, text).await
    }

    /// On K/V v2 version 1 counts, so the whole history of the name is removed. When the new key cannot be
    /// written, the former key is put back.
    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        if self.version().await.map_err(Error::Failed)? == Version::V1 {
            let stored = self.wrapped(text).await.map_err(Error::Failed)?;
            self.write(Version::V1, name, stored.expose()).await?;
            return self.read_back(name, text).await;
        }
        let former = self.get(name).await?;
        let path = self.path("metadata", name.as_str());
        let asked = Asked { what: "removing the former key", path: &path };
        let answer = self.client.delete(&asked).await.map_err(Error::Failed)?;
        if !matches!(answer.status, 200 | 204) {
            let finding = self.client.verdict(&asked, &answer);
            let fix = format!("add to the policy: path \"{path}\" {{ capabilities = [\"delete\"] }}");
            return Err(Error::Failed(finding.fix(fix)));
        }
        match self.create_with_retries(name, text).await {
            Ok(()) => Ok(()),
            Err(error) => match self.create_with_retries(name, &former).await {
                Ok(()) => Err(error),
                Err(second) => Err(Error::Failed(Cause::KeyDestroyed.seen(format!(
                    "the former key '{name}' was removed, the new one could not be written ({error}), nor the former one put back ({second})"
                )))),
            },
        }
    }

    /// On K/V v2 version 1 is soft-deleted, so that `bao kv undelete -versions=1` brings the key back.
    async fn delete(&self, name: &Name) -> Result<(), Error> {
        let version = self.version().await.map_err(Error::Failed)?;
        match self.read(name).await {
            Ok(_) => {}
            // The deletion of a missing key succeeds, as in KES.
            Err(Error::Missing(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        let path = self.path(if version == Version::V1 { "" } else { "delete" }, name.as_str());
        let asked = Asked { what: "deleting the key", path: &path };
        let answer = match version {
            Version::V1 => self.client.delete(&asked).await,
            Version::V2 => self.client.post(&asked, &json!({ "versions": [1] })).await,
        };
        let answer = answer.map_err(Error::Failed)?;
        if !matches!(answer.status, 200 | 204) {
            let finding = self.client.verdict(&asked, &answer);
            let capability = if version == Version::V1 { "delete" } else { "update" };
            return Err(Error::Failed(match finding.cause {
                Cause::PolicyMissing => finding.fix(format!(
                    "add to the policy: path \"{path}\" {{ capabilities = [\"{capability}\"] }}"
                )),
                _ => finding,
            }));
        }
        for _ in 0..READ_BACK_TRIES_MAX {
            match self.read(name).await {
                Ok(_) => tokio::time::sleep(READ_BACK_PAUSE).await,
                Err(Error::Failed(finding)) if finding.cause != Cause::KeyDeleted => {
                    return Err(Error::Failed(finding));
                }
                Err(_) => return Ok(()),
            }
        }
        let seen = format!(
            "Vault {} acknowledged that '{name}' is deleted, and still returns it",
            self.client.address()
        );
        Err(Error::Failed(Cause::VaultUnhealthy.seen(seen)))
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        let version = self.version().await?;
        let path = self.path(if version == Version::V1 { "" } else { "metadata" }, "");
        let asked = Asked { what: "listing the keys", path: &path };
        let answer = self.client.get(&asked, Some("list=true")).await?;
        #[derive(Deserialize)]
        struct Listing {
            data: Keys,
        }
        #[derive(Deserialize)]
        struct Keys {
            keys: Vec<String>,
        }
        match (answer.status, answer.json()) {
            (200, Some(Listing { data: Keys { keys } })) => {
                // Folders end in a slash. Other entries that are no names of keys cannot be asked for by a
                // client.
                Ok(keys.into_iter().filter(|key| Name::parse(key).is_ok()).collect())
            }
            (404, _) if answer.errors().is_empty() && answer.is_vaults() => Ok(Vec::new()),
            _ => Err(self.client.verdict(&asked, &answer)),
        }
    }

    async fn how_to_set_aside(&self, name: &Name) -> SetAside {
        self.set_aside(name).await
    }
}

#[async_trait]
impl Advice for VaultStore {
    async fn on_login(&self) -> Vec<Finding> {
        self.client.standing().await
    }

    async fn on_rights(&self, name: &Name) -> Result<Vec<Finding>, Finding> {
        self.look_at_rights(name).await
    }

    async fn on_writing(&self) -> Result<Vec<Finding>, Finding> {
        if self.config.transit.is_none() {
            return Ok(Vec::new());
        }
        let wrapped = self.wrapped(&Secret::new("keswarden".to_owned())).await?;
        let version = wrapped.expose().split(':').nth(1).unwrap_or_default().to_owned();
        Ok(match version.as_str() {
            "v1" => Vec::new(),
            version => vec![Cause::TransitRotated.seen(format!(
                "the transit key was rotated: what is written now is wrapped as vault:{version}:, which no KES can read"
            ))],
        })
    }
}

#[async_trait]
impl Upkeep for VaultStore {
    async fn renew(&self) {
        self.client.keep().await;
    }
}
