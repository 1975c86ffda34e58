//! Backups: keys with their pins and their origin, encrypted for people outside, and put back without
//! overwriting.
//!
//! A backup is an age file (age-encryption.org/v1) for X25519 recipients, so that `age -d` opens it without
//! keswarden. The plaintext is one JSON object. The text of a key is the text that KES stores, byte for byte,
//! HMAC key included:
//!
//! ```text
//! { "keswarden_backup": 1, "made_at": RFC 3339, "origin": words, "tenant": text,
//!   "keys": { NAME: { "text": stored text, "fingerprint": hex, "pinned": bool } } }
//! ```

use crate::{
    cause::{Cause, Finding},
    crypto::{key_version::KeyVersion, usable::Usable},
    files,
    known::{Asked, Statement, Verdict, Witnesses, judge},
    names::Name,
    pins,
    secret::Secret,
    store::{Error, KeyStore},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// The content of a backup: keys that were read, tried, and compared with their pins.
pub struct Backup {
    /// The time of the backup.
    pub made_at: jiff::Timestamp,
    /// The key store, in words.
    pub origin: String,
    /// The tenant of the settings. May be empty.
    pub tenant: String,
    /// The keys by name.
    pub keys: BTreeMap<Name, Kept>,
}

/// A key of a backup.
pub struct Kept {
    /// The stored text, as KES writes it.
    text: Secret,
    /// The key.
    pub version: KeyVersion,
    /// The fingerprint of the key.
    pub fingerprint: String,
    /// The key was the pinned one when the backup was made.
    pub pinned: bool,
}

/// The people that a backup is encrypted for.
pub struct Recipients(Vec<age::x25519::Recipient>);

/// The result of the restore of one key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// The key was missing, and was written.
    Written,
    /// The key is missing, and a dry run writes nothing.
    Absent,
    /// The store has the same key already.
    There,
}

/// The comparison of a key of a backup with a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The store has the same key.
    Same,
    /// The store has no key of the name.
    Missing,
    /// The store has another key of the name, with this fingerprint.
    Other {
        /// The fingerprint of the key in the store.
        fingerprint: String,
    },
}

#[derive(Deserialize, Serialize)]
struct Content {
    keswarden_backup: u32,
    made_at: jiff::Timestamp,
    origin: String,
    tenant: String,
    keys: BTreeMap<String, ContentKey>,
}

#[derive(Deserialize, Serialize)]
struct ContentKey {
    text: Zeroizing<String>,
    fingerprint: String,
    pinned: bool,
}

/// The version of the form that is written. A reader takes this version and every earlier one.
const VERSION: u32 = 1;
/// Bound of a backup's file, in bytes: room for a hundred thousand keys.
const FILE_MAX: u64 = 64 * 1024 * 1024;
/// The first bytes of an age file.
const AGE_MAGIC: &[u8] = b"age-encryption.org/v1";

/// Reads keys of a store into a backup. Keys that cannot be read, do not work, or differ from what a witness
/// knows are left out, each with the finding.
pub async fn collect(
    store: &dyn KeyStore,
    witnesses: &Witnesses,
    names: Vec<Name>,
    now: jiff::Timestamp,
    tenant: String,
) -> (Backup, Vec<(Name, Finding)>) {
    let mut backup = Backup { made_at: now, origin: store.describe(), tenant, keys: BTreeMap::new() };
    let mut left_out = Vec::new();
    for name in names {
        match read(store, witnesses, &name).await {
            Ok(kept) => drop(backup.keys.insert(name, kept)),
            Err(finding) => left_out.push((name, finding)),
        }
    }
    (backup, left_out)
}

async fn read(store: &dyn KeyStore, witnesses: &Witnesses, name: &Name) -> Result<Kept, Finding> {
    let text = store.get(name).await.map_err(|error| error.into_finding(|| contradiction(name)))?;
    let mut kept = Kept::of(name, text, &store.describe())?;
    let statements = is_known(witnesses, name, &kept.fingerprint, &store.describe()).await?;
    kept.pinned = pins::is_pinned(&statements, &kept.fingerprint);
    Ok(kept)
}

/// The statements of the witnesses on a key that was found at a place.
///
/// # Errors
/// When a witness knows another key of the name.
pub async fn is_known(
    witnesses: &Witnesses,
    name: &Name,
    fingerprint: &str,
    place: &str,
) -> Result<Vec<Statement>, Finding> {
    let statements = witnesses.ask(name).await;
    if let Verdict::Other(others) = judge(Asked::Key(fingerprint), &statements) {
        let others: Vec<_> = others.into_iter().map(Statement::words).collect();
        return Err(Cause::KeyReplaced.seen(format!(
            "the key '{name}' of {place} has the fingerprint {fingerprint}, and another one is known from {}",
            others.join("; from ")
        )));
    }
    Ok(statements)
}

/// Puts one key back where the store has none. A stored text, whatever it is, stays. A dry run writes
/// nothing.
///
/// # Errors
/// When the store has another text under the name, cannot be read, or does not take the key.
pub async fn restore(
    store: &dyn KeyStore,
    name: &Name,
    kept: &Kept,
    dry_run: bool,
) -> Result<Restored, Finding> {
    match standing(store, name, kept).await? {
        Standing::Same => return Ok(Restored::There),
        Standing::Other { fingerprint } => {
            let place = store.describe();
            return Err(Cause::KeyReplaced
                .seen(format!(
                    "{place} has another key '{name}': its fingerprint is {fingerprint}, that of the backup {}",
                    kept.fingerprint
                ))
                .fix("nothing was overwritten; find out which of the two sealed the data (`keswarden evidence`), and move the other away first"));
        }
        Standing::Missing if dry_run => return Ok(Restored::Absent),
        Standing::Missing => {}
    }
    store.put_back(name, &kept.text).await.map_err(|error| match error {
        Error::Exists => Cause::KeyReplaced
            .seen(format!("{} refused the key '{name}': something is, or was, stored under its name", store.describe()))
            .fix("nothing was overwritten; undelete what was there, or remove its metadata (`bao kv metadata delete`) once you know that it is not needed, and restore again"),
        Error::Missing(finding) | Error::Failed(finding) => finding,
    })?;
    match standing(store, name, kept).await? {
        Standing::Same => Ok(Restored::Written),
        _ => Err(contradiction(name)),
    }
}

/// Compares a key of a backup with a store.
///
/// # Errors
/// When the store cannot give its key, or the stored text is no key that works.
pub async fn standing(store: &dyn KeyStore, name: &Name, kept: &Kept) -> Result<Standing, Finding> {
    let text = match store.get(name).await {
        Ok(text) => text,
        Err(Error::Missing(_)) => return Ok(Standing::Missing),
        Err(error) => return Err(incomparable(store, name, error.into_finding(|| contradiction(name))).await),
    };
    let there = match Kept::of(name, text, &store.describe()) {
        Ok(there) => there,
        Err(finding) => return Err(incomparable(store, name, finding).await),
    };
    Ok(match there.version.key.same(&kept.version.key) {
        true => Standing::Same,
        false => Standing::Other { fingerprint: there.fingerprint },
    })
}

/// The finding of a key that cannot be compared. Where the key is lost, the fix sets the stored text aside
/// first.
async fn incomparable(store: &dyn KeyStore, name: &Name, finding: Finding) -> Finding {
    if !finding.cause.is_key_lost() {
        return finding;
    }
    let set_aside = store.how_to_set_aside(name).await.command;
    finding.fix(format!("set aside what is left under the name, {set_aside}, and run this again"))
}

fn contradiction(name: &Name) -> Finding {
    Cause::StoreUnavailable
        .seen(format!("successive answers contradict each other on whether the key '{name}' is in the store"))
        .fix("try again; if this lasts, another process writes to the store")
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Finding {
    Cause::BackupUnusable.seen(format!("the backup {}: {why}", path.display()))
}

// === impl Kept ===

impl Kept {
    /// The key of a stored text that was found at a place, parsed and tried; not pinned.
    ///
    /// # Errors
    /// When the text is no key, or the key does not open what it seals.
    pub fn of(name: &Name, text: Secret, place: &str) -> Result<Self, Finding> {
        let Usable { version, fingerprint } = Usable::read(name, &text, &format!("in {place}"))?;
        Ok(Self { text, version, fingerprint, pinned: false })
    }
}

// === impl Recipients ===

impl Recipients {
    /// Parses recipients of the form `age1…`, as `age-keygen` prints them.
    ///
    /// # Errors
    /// When a text is no X25519 recipient of age.
    pub fn parse(texts: &[String]) -> Result<Self, Finding> {
        let parsed = texts.iter().map(|text| {
            text.trim().parse().map_err(|error| {
                Cause::BackupUnusable
                    .seen(format!("'{text}' is no age recipient: {error}"))
                    .fix("give the line that starts with age1, as `age-keygen -y KEYFILE` prints it")
            })
        });
        Ok(Self(parsed.collect::<Result<_, _>>()?))
    }

    /// The number of recipients.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no recipients.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Backup ===

impl Backup {
    /// Encrypts the backup into a new file of mode 0600. On success the file is synced to the disk.
    ///
    /// # Errors
    /// When the file exists, or cannot be written. A file that is partly written is removed.
    pub fn write(&self, path: &Path, recipients: &Recipients) -> Result<(), Finding> {
        let sealed = self.seal(recipients).map_err(|error| unusable(path, error))?;
        files::create_anywhere(path, 0o600, &sealed).map_err(|error| {
            let fix = match error.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
                    "make room, or choose another place; nothing was left behind"
                }
                _ => {
                    "choose a file that is not there yet, in a directory that can be written: no backup is ever overwritten"
                }
            };
            unusable(path, error).fix(fix)
        })
    }

    fn seal(&self, recipients: &Recipients) -> Result<Vec<u8>, String> {
        let keys = self.keys.iter().map(|(name, kept)| {
            let Kept { text, fingerprint, pinned, .. } = kept;
            let text = Zeroizing::new(text.expose().to_owned());
            (name.to_string(), ContentKey { text, fingerprint: fingerprint.clone(), pinned: *pinned })
        });
        let content = Content {
            keswarden_backup: VERSION,
            made_at: self.made_at,
            origin: self.origin.clone(),
            tenant: self.tenant.clone(),
            keys: keys.collect(),
        };
        let text = encode(&content);
        let recipients = recipients.0.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients).map_err(|error| error.to_string())?;
        let mut sealed = Vec::with_capacity(text.len() + 1024);
        let written = (|| {
            let mut writer = encryptor.wrap_output(&mut sealed)?;
            writer.write_all(&text)?;
            writer.finish().map(drop)
        })();
        written.map_err(|error: std::io::Error| error.to_string())?;
        Ok(sealed)
    }

    /// Reads the backup at `path`, decrypted with any identity in the file `identities`, as `age-keygen`
    /// writes the file.
    ///
    /// # Errors
    /// When a file cannot be read, no identity decrypts the backup, or the content is no backup of this
    /// version or an earlier one with keys that work.
    pub fn read(path: &Path, identities: &Path) -> Result<Self, Finding> {
        let sealed = files::read(path, FILE_MAX).map_err(|error| unusable(path, error))?;
        if !sealed.starts_with(AGE_MAGIC) {
            return Err(unusable(path, "it is no age file"));
        }
        let identities = read_identities(identities)?;
        let decryptor = age::Decryptor::new_buffered(&sealed[..]).map_err(|error| unusable(path, error))?;
        let mut text = Zeroizing::new(Vec::with_capacity(sealed.len()));
        let identities = identities.iter().map(|identity| identity as &dyn age::Identity);
        let mut reader = decryptor.decrypt(identities).map_err(|error| {
            unusable(path, error)
                .fix("give the identity file of one of the recipients that the backup was made for")
        })?;
        reader
            .read_to_end(&mut text)
            .map_err(|error| unusable(path, format!("it was cut or changed: {error}")))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, Finding> {
        #[derive(Deserialize)]
        struct Form {
            keswarden_backup: u32,
        }
        let form: Form =
            serde_json::from_slice(text).map_err(|_| unusable(path, "it opens, and is no backup of ours"))?;
        if !(1..=VERSION).contains(&form.keswarden_backup) {
            let newer = form.keswarden_backup;
            return Err(unusable(
                path,
                format!("it is of version {newer}, and this program knows {VERSION}"),
            )
            .fix("run the version that wrote it, or a later one"));
        }
        // The error is not quoted: its words may have a key in them.
        let content: Content =
            serde_json::from_slice(text).map_err(|_| unusable(path, "it opens, and cannot be read"))?;
        let mut keys = BTreeMap::new();
        for (name, ContentKey { text, fingerprint, pinned }) in content.keys {
            let name = Name::parse(&name).map_err(|error| unusable(path, error))?;
            let kept = Kept::of(&name, Secret::new(text.to_string()), &path.display().to_string())?;
            if kept.fingerprint != fingerprint {
                return Err(unusable(
                    path,
                    format!(
                        "its key '{name}' has the fingerprint {}, and the backup names {fingerprint}",
                        kept.fingerprint
                    ),
                ));
            }
            keys.insert(name, Kept { pinned, ..kept });
        }
        Ok(Self { made_at: content.made_at, origin: content.origin, tenant: content.tenant, keys })
    }
}

/// The content as JSON, in a buffer that is large enough from the start: a buffer that grows leaves copies of
/// keys in memory.
fn encode(content: &Content) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(size_max(content)));
    serde_json::to_writer(&mut *bytes, content).expect("texts must encode");
    bytes
}

/// Bound of the bytes of the content as JSON: two for each byte of a text, since quotes are escaped, and the
/// members' names.
fn size_max(content: &Content) -> usize {
    let keys = content.keys.iter();
    let keys = keys.map(|(name, key)| name.len() + 2 * key.text.len() + key.fingerprint.len() + 64);
    keys.sum::<usize>() + 2 * (content.origin.len() + content.tenant.len()) + 1024
}

fn read_identities(path: &Path) -> Result<Vec<age::x25519::Identity>, Finding> {
    let failed = |why: String| {
        Cause::CredentialUnreadable.seen(format!("the age identities in {}: {why}", path.display())).fix(
            "give a file as `age-keygen -o FILE` writes it, with a line that starts with AGE-SECRET-KEY-1; one that is \
             encrypted itself is decrypted first: `age -d`",
        )
    };
    let text =
        std::fs::read_to_string(path).map(Zeroizing::new).map_err(|error| failed(error.to_string()))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    // A wrong line is not quoted: the line may be secret nevertheless.
    let parsed: Result<Vec<_>, _> = lines.map(str::parse).collect();
    match parsed {
        Ok(identities) if identities.is_empty() => Err(failed("the file has no identity in it".to_owned())),
        Ok(identities) => Ok(identities),
        Err(_) => Err(failed("a line of it is neither a comment nor an X25519 identity".to_owned())),
    }
}

/// The record of the last drill that passed: a JSON file in the run directory, written by `key verify` and
/// read by the agent.
pub struct Drill(PathBuf);

#[derive(Deserialize, Serialize)]
struct Drilled {
    drill: u32,
    at: jiff::Timestamp,
    keys: usize,
}

// === impl Drill ===

impl Drill {
    /// The record in a run directory.
    pub fn of(run_dir: &Path) -> Self {
        Self(run_dir.join("agent/last-drill.json"))
    }

    /// Writes the record of a drill that compared this number of keys.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn note(&self, at: jiff::Timestamp, keys: usize) -> std::io::Result<()> {
        let text =
            serde_json::to_string(&Drilled { drill: 1, at, keys }).expect("a number and a time must encode");
        files::write(&self.0, 0o644, text.as_bytes())
    }

    /// The time of the last drill. Absent when there is no record.
    pub fn last(&self) -> Option<jiff::Timestamp> {
        let text = std::fs::read(&self.0).ok()?;
        serde_json::from_slice(&text).ok().map(|Drilled { at, .. }| at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_written_into_one_buffer_that_never_grows() {
        let key = |text: &str| ContentKey {
            text: Zeroizing::new(text.to_owned()),
            fingerprint: "0123456789abcdef".repeat(4),
            pinned: false,
        };
        let texts = [r#"{"bytes":"","algorithm":""}"#.repeat(9), "\"".repeat(500), "a".repeat(200)];
        let keys =
            (0..100).flat_map(|at| texts.iter().map(move |text| (format!("{at}-{}", text.len()), text)));
        let content = Content {
            keswarden_backup: VERSION,
            made_at: jiff::Timestamp::UNIX_EPOCH,
            origin: "Vault https://127.0.0.1:8200, K/V kv".to_owned(),
            tenant: "\"".repeat(100),
            keys: keys.map(|(name, text)| (name, key(text))).collect(),
        };
        let bytes = encode(&content);
        assert!(bytes.len() <= size_max(&content));
        assert_eq!(bytes.capacity(), size_max(&content));
    }
}
