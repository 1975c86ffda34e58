//! The ledger of a state directory: one small file for each key that was ever in use under a name.
//!
//! ```text
//! DIR/known-keys/NAME.DIGEST     DIGEST = first 16 hex digits of SHA-256 over fingerprint, store and tenant
//! { "known_key": 1, "name": NAME, "fingerprint": hex, "store": words, "tenant": text, "first_seen": RFC 3339, "last_seen": RFC 3339 }
//! ```
//! Files are written atomically. A change of key adds a file. `last_seen` is written again once a day at
//! most.

use super::{Kind, Known, Says, Witness, is_same};
use crate::{
    cause::{Cause, Finding},
    clock::Clock,
    files::{self, Blocking},
    names::Name,
    secret,
};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

/// One state directory as a witness.
pub struct Ledger {
    files: Files,
    blocking: Blocking,
    clock: Clock,
}

/// The files, for calls on blocking threads.
#[derive(Clone)]
struct Files {
    dir: PathBuf,
    /// The key store of this process, in words.
    store: String,
    /// The tenant of this process: entries of another store count for the same tenant only.
    tenant: String,
    /// The directory belongs to another process: only entries of this store count, and nothing is written.
    same_store: bool,
}

/// The entries of a name.
#[derive(Default)]
struct Found {
    entries: Vec<(PathBuf, Entry)>,
    /// The finding of the first file that could not be read.
    unreadable: Option<Finding>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
struct Entry {
    /// The version of this form.
    known_key: u32,
    name: String,
    fingerprint: String,
    store: String,
    #[serde(default)]
    tenant: String,
    first_seen: Timestamp,
    last_seen: Timestamp,
}

/// The folder below a state directory.
const FOLDER: &str = "known-keys";
/// The version of the form that is written. A reader takes this version and every earlier one.
const VERSION: u32 = 1;
/// Bound of an entry's file, in bytes.
const FILE_MAX: u64 = 16 * 1024;
/// Least age of `last_seen` before `last_seen` is written again, in seconds.
const LAST_SEEN_AGE_MIN: i64 = 86_400;
/// Hexadecimal digits in the last part of a file name.
const DIGEST_DIGITS: usize = 16;

// === impl Ledger ===

impl Ledger {
    /// The ledger below the state directory `dir`, for the keys of `store`. `tenant` may be empty.
    pub fn new(dir: &Path, store: String, tenant: String, clock: Clock) -> Self {
        let files = Files { dir: dir.join(FOLDER), store, tenant, same_store: false };
        Self { files, blocking: Blocking::default(), clock }
    }

    /// The ledger of a state directory of another process, read only: entries of `store` count, and no
    /// others.
    pub fn of_another(dir: &Path, store: String, clock: Clock) -> Self {
        let files = Files { dir: dir.join(FOLDER), store, tenant: String::new(), same_store: true };
        Self { files, blocking: Blocking::default(), clock }
    }

    fn now(&self) -> Timestamp {
        self.clock.timestamp()
    }

    async fn call<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Files) -> Result<T, Finding> + Send + 'static,
    ) -> Result<T, Finding> {
        let files = self.files.clone();
        let done = self.blocking.run(move || call(&files)).await;
        done.unwrap_or_else(|hangs| Err(self.files.unusable(&hangs)))
    }
}

#[async_trait]
impl Witness for Ledger {
    fn kind(&self) -> Kind {
        Kind::Ledger
    }

    fn place(&self) -> String {
        self.files.place()
    }

    /// Another process's directory that knows nothing of this store is no witness.
    async fn says(&self, name: &Name) -> Option<Says> {
        let name = name.clone();
        match self.call(move |files| files.entries_of(&name)).await {
            Ok(found) if self.files.same_store && found.entries.is_empty() => None,
            Ok(found) => Some(self.files.says(found)),
            Err(_) if self.files.same_store => None,
            Err(finding) => Some(Says::CannotTell(finding)),
        }
    }

    async fn remember(&self, name: &Name, fingerprint: &str) -> Result<(), Finding> {
        if self.files.same_store {
            return Ok(());
        }
        let (name, fingerprint, now) = (name.clone(), fingerprint.to_owned(), self.now());
        self.call(move |files| files.write(&name, &fingerprint, now)).await
    }

    async fn forget(&self, name: &Name, was: &str, is: Option<&str>) -> Result<(), Finding> {
        let (name, was, is, now) = (name.clone(), was.to_owned(), is.map(str::to_owned), self.now());
        self.call(move |files| {
            match is {
                Some(is) if !files.same_store => {
                    files.write(&name, &is, now)?;
                    // Entries of other stores stay: the new entry of this store counts before them.
                    files.remove(&name, &was, |entry| entry.store == files.store)
                }
                Some(_) | None => files.remove(&name, &was, |_| true),
            }
        })
        .await
    }
}

// === impl Files ===

impl Files {
    fn place(&self) -> String {
        format!("the state directory {}", self.dir.parent().unwrap_or(&self.dir).display())
    }

    fn unusable(&self, why: &dyn std::fmt::Display) -> Finding {
        Cause::MemoryUnusable.seen(format!("{}: {why}", self.place()))
    }

    fn failed(&self, path: &Path, error: &io::Error) -> Finding {
        self.unusable(&format_args!("{}: {error}", path.display()))
    }

    /// Every entry of a name that counts here, the oldest first. A missing folder has none. An entry of this
    /// store counts, whoever wrote the entry; an entry of another store counts for the same tenant only.
    fn entries_of(&self, name: &Name) -> Result<Found, Finding> {
        let listed = match fs::read_dir(&self.dir) {
            Ok(listed) => listed,
            Err(error) if error.kind() == ErrorKind::NotFound && files::is_absent(&self.dir) => {
                return Ok(Found::default());
            }
            Err(error) => return Err(self.failed(&self.dir, &error)),
        };
        let mut all = Found::default();
        for found in listed {
            let path = found.map_err(|error| self.failed(&self.dir, &error))?.path();
            let is_its =
                path.file_name().and_then(|file| file.to_str()).is_some_and(|file| is_of(file, name));
            if !is_its {
                continue;
            }
            match self.read(&path) {
                Ok(entry) if entry.name != name.as_str() => {}
                Ok(entry)
                    if entry.store == self.store || (!self.same_store && entry.tenant == self.tenant) =>
                {
                    all.entries.push((path, entry));
                }
                Ok(_) => {}
                Err(finding) => all.unreadable = all.unreadable.or(Some(finding)),
            }
        }
        all.entries.sort_by_key(|(_, entry)| entry.first_seen);
        Ok(all)
    }

    fn read(&self, path: &Path) -> Result<Entry, Finding> {
        #[derive(Deserialize)]
        struct Form {
            known_key: u32,
        }
        let text = files::read(path, FILE_MAX).map_err(|error| self.failed(path, &error))?;
        let none = || self.unusable(&format_args!("{} is no entry of a key", path.display()));
        let form: Form = serde_json::from_slice(&text).map_err(|_| none())?;
        if !(1..=VERSION).contains(&form.known_key) {
            let newer = form.known_key;
            let newer = format!("{} is of version {newer}, and this program knows {VERSION}", path.display());
            return Err(self.unusable(&newer).fix("run the version that wrote it, or a later one"));
        }
        let entry: Entry = serde_json::from_slice(&text).map_err(|_| none())?;
        // The name of a file has a digest of the entry: an entry with a flipped bit is refused.
        match path.file_name() == Some(file_of(&entry).as_ref()) {
            true => Ok(entry),
            false => Err(self.unusable(&format_args!(
                "{} is damaged: the entry does not match the file's name",
                path.display()
            ))),
        }
    }

    /// The keys that this store had under the name; where there are none, the keys that another store of the
    /// same tenant had.
    fn says(&self, Found { entries, unreadable }: Found) -> Says {
        if entries.is_empty() {
            return unreadable.map_or(Says::New, Says::CannotTell);
        }
        let also = unreadable
            .map(|finding| format!("; not all could be read: {}", finding.seen))
            .unwrap_or_default();
        let of_ours = entries.iter().any(|(_, entry)| entry.store == self.store);
        let entries = entries.into_iter().filter(|(_, entry)| !of_ours || entry.store == self.store);
        let known = entries.map(|(_, entry)| {
            let Entry { fingerprint, store, first_seen, last_seen, .. } = entry;
            let day = |at: Timestamp| at.strftime("%F").to_string();
            let mut more = format!("first seen {}, last {}{also}", day(first_seen), day(last_seen));
            if !of_ours {
                more = format!("{more}, in {store}; two tenants of one state directory are told apart by KESWARDEN_TENANT");
            }
            Known::Fingerprint(fingerprint, more)
        });
        Says::Known(known.collect())
    }

    fn write(&self, name: &Name, fingerprint: &str, now: Timestamp) -> Result<(), Finding> {
        let mut entry = Entry {
            known_key: VERSION,
            name: name.to_string(),
            fingerprint: fingerprint.to_owned(),
            store: self.store.clone(),
            tenant: self.tenant.clone(),
            first_seen: now,
            last_seen: now,
        };
        let path = self.dir.join(file_of(&entry));
        if let Ok(former) = self.read(&path) {
            if now.as_second() - former.last_seen.as_second() < LAST_SEEN_AGE_MIN {
                return Ok(());
            }
            entry.first_seen = former.first_seen;
        }
        let text = serde_json::to_string(&entry).expect("an entry must encode");
        self.put(&path, text.as_bytes()).map_err(|error| self.failed(&path, &error))
    }

    fn put(&self, path: &Path, text: &[u8]) -> io::Result<()> {
        files::make_private(&self.dir)?;
        files::write_for_owner(path, 0o600, text)
    }

    fn remove(&self, name: &Name, fingerprint: &str, which: impl Fn(&Entry) -> bool) -> Result<(), Finding> {
        for (path, entry) in self.entries_of(name)?.entries {
            if is_same(&entry.fingerprint, fingerprint) && which(&entry) {
                fs::remove_file(&path).map_err(|error| self.failed(&path, &error))?;
            }
        }
        Ok(())
    }
}

/// The file name of an entry.
fn file_of(Entry { name, fingerprint, store, tenant, .. }: &Entry) -> String {
    let digest = Sha256::digest([fingerprint.as_str(), store, tenant].join("\0"));
    format!("{name}.{}", &secret::hex(&digest)[..DIGEST_DIGITS])
}

/// Whether a file name is that of an entry of a key. The name of a key has no dot.
fn is_of(file: &str, name: &Name) -> bool {
    file.strip_prefix(name.as_str())
        .and_then(|rest| rest.strip_prefix('.'))
        .is_some_and(|digest| digest.len() == DIGEST_DIGITS)
}
