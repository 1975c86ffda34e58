//! Backups: keys with their pins and where they came from, encrypted for people outside, and put back without overwriting.
//!
//! The file is an age file (age-encryption.org/v1) for X25519 recipients, so that `age -d` opens it without us. Inside is one
//! JSON object; the text of a key is what KES stores, byte for byte, its HMAC key included:
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

/// Keys that were read, tried and held against their pins.
pub struct Backup {
    pub made_at: jiff::Timestamp,
    /// The key store, in words.
    pub origin: String,
    /// May be empty.
    pub tenant: String,
    pub keys: BTreeMap<Name, Kept>,
}

/// A key of a backup.
pub struct Kept {
    /// What is stored, as KES writes it.
    text: Secret,
    pub version: KeyVersion,
    pub fingerprint: String,
    /// It was the pinned one when the backup was made.
    pub pinned: bool,
}

/// For whom a backup is encrypted.
pub struct Recipients(Vec<age::x25519::Recipient>);

/// What became of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It was not there, and is now.
    Written,
    /// It was not there; nothing is written in a dry run.
    Absent,
    /// The same key was there.
    There,
}

/// How a key of a backup stands in a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Same,
    Missing,
    /// The store has another one.
    Other {
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

/// The form that is written; a reader takes it and every earlier one.
const VERSION: u32 = 1;
/// A larger file is no backup of keys: it would hold a hundred thousand of them.
const MAX_FILE: u64 = 64 * 1024 * 1024;
/// What age files start with.
const AGE: &[u8] = b"age-encryption.org/v1";

/// Reads the keys of a store; those that cannot be vouched for are left out, with the reason.
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
    let text = store.get(name).await.map_err(|error| error.into_finding(|| by_turns(name)))?;
    let mut kept = Kept::of(name, text, &store.describe())?;
    let statements = is_known(witnesses, name, &kept.fingerprint, &store.describe()).await?;
    kept.pinned = pins::is_pinned(&statements, &kept.fingerprint);
    Ok(kept)
}

/// What the witnesses say of a key that was found at a place.
///
/// # Errors
/// When one of them knows another key of the name.
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

/// Puts one key back where there is none. What is there, whatever it is, stays.
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
        _ => Err(by_turns(name)),
    }
}

/// Holds a key of a backup against a store.
pub async fn standing(store: &dyn KeyStore, name: &Name, kept: &Kept) -> Result<Standing, Finding> {
    let text = match store.get(name).await {
        Ok(text) => text,
        Err(Error::Missing(_)) => return Ok(Standing::Missing),
        Err(error) => return Err(in_the_way(store, name, error.into_finding(|| by_turns(name))).await),
    };
    let there = match Kept::of(name, text, &store.describe()) {
        Ok(there) => there,
        Err(finding) => return Err(in_the_way(store, name, finding).await),
    };
    Ok(match there.version.key.same(&kept.version.key) {
        true => Standing::Same,
        false => Standing::Other { fingerprint: there.fingerprint },
    })
}

/// What is left of a lost key goes out of the way before the key comes back.
async fn in_the_way(store: &dyn KeyStore, name: &Name, finding: Finding) -> Finding {
    if !finding.cause.is_key_lost() {
        return finding;
    }
    let set_aside = store.how_to_set_aside(name).await.command;
    finding.fix(format!("set aside what is left under the name, {set_aside}, and run this again"))
}

fn by_turns(name: &Name) -> Finding {
    Cause::StoreUnavailable
        .seen(format!("the key '{name}' is in the store and is not, by turns"))
        .fix("try again; if it lasts, somebody else writes to the store")
}

fn unusable(path: &Path, why: impl std::fmt::Display) -> Finding {
    Cause::BackupUnusable.seen(format!("the backup {}: {why}", path.display()))
}

// === impl Kept ===

impl Kept {
    /// A stored text that was found at a place, parsed and tried.
    ///
    /// # Errors
    /// When it is no key, or does not open what it seals.
    pub fn of(name: &Name, text: Secret, place: &str) -> Result<Self, Finding> {
        let Usable { version, fingerprint } = Usable::read(name, &text, &format!("in {place}"))?;
        Ok(Self { text, version, fingerprint, pinned: false })
    }
}

// === impl Recipients ===

impl Recipients {
    /// `age1…`, as `age-keygen` prints them.
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

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

// === impl Backup ===

impl Backup {
    /// Encrypts and writes it where no file is yet; it is on the disk when this returns.
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

    /// Reads and decrypts one with any of the identities in the file that `age-keygen` wrote.
    pub fn read(path: &Path, identities: &Path) -> Result<Self, Finding> {
        let sealed = files::read(path, MAX_FILE).map_err(|error| unusable(path, error))?;
        if !sealed.starts_with(AGE) {
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
        // What was wrong is not quoted: it may be a key.
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
                        "its key '{name}' has the fingerprint {}, and {fingerprint} stands beside it",
                        kept.fingerprint
                    ),
                ));
            }
            keys.insert(name, Kept { pinned, ..kept });
        }
        Ok(Self { made_at: content.made_at, origin: content.origin, tenant: content.tenant, keys })
    }
}

/// Into one buffer that is large enough from the start: one that grows leaves copies behind.
fn encode(content: &Content) -> Zeroizing<Vec<u8>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(room(content)));
    serde_json::to_writer(&mut *bytes, content).expect("texts must encode");
    bytes
}

/// The most that it takes: every quote of a text takes two bytes, and beside it are the names of the members.
fn room(content: &Content) -> usize {
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
    // What is wrong with a line is not quoted: it may be secret all the same.
    let parsed: Result<Vec<_>, _> = lines.map(str::parse).collect();
    match parsed {
        Ok(identities) if identities.is_empty() => Err(failed("there are none in it".to_owned())),
        Ok(identities) => Ok(identities),
        Err(_) => Err(failed("a line of it is neither a comment nor an X25519 identity".to_owned())),
    }
}

/// When a backup was last proven to hold what is in use: a file in the run directory, written by the drill and read by the agent.
pub struct Drill(PathBuf);

#[derive(Deserialize, Serialize)]
struct Drilled {
    drill: u32,
    at: jiff::Timestamp,
    keys: usize,
}

// === impl Drill ===

impl Drill {
    pub fn of(run_dir: &Path) -> Self {
        Self(run_dir.join("agent/last-drill.json"))
    }

    pub fn note(&self, at: jiff::Timestamp, keys: usize) -> std::io::Result<()> {
        let text =
            serde_json::to_string(&Drilled { drill: 1, at, keys }).expect("a number and a time must encode");
        files::write(&self.0, 0o644, text.as_bytes())
    }

    /// Nothing when there never was one here.
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
        assert!(bytes.len() <= room(&content));
        assert_eq!(bytes.capacity(), room(&content));
    }
}
