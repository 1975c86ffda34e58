//! The sealed copy: the keys at hand, encrypted on a disk of this machine, for a start while Vault is away.
//!
//! ```text
//! "keswarden sealed copy 1\n" ‖ salt (32) ‖ nonce (12) ‖ AES-256-GCM(key, nonce, JSON, AAD = the first line ‖ tenant)
//! key = HKDF-SHA-256(ikm = the wrapping key's file, salt, info = "keswarden sealed copy v1")
//! ```
//! The copy is written atomically after every verification that found a key well. The copy counts until its
//! `not_after`; each key counts for the same time from its own last verification. A copy cannot show that it
//! is the newest: an older copy in its place goes unseen until the older copy expires.
//!
//! A copy belongs to the key store that it was sealed from. A copy keeps every key: a key that has expired is
//! kept and no longer served, and another key under its name is kept beside the first. `key rescue
//! --from-copy` puts any of them back.

mod witness;

pub use witness::CopyWitness;

use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock},
    crypto::key_version::KeyVersion,
    files,
    keyring::Held,
    known::is_same,
    names::Name,
    secret::{self, Secret},
};
use aes_gcm::{Aes256Gcm, KeyInit, aead::AeadInOut};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use zeroize::{Zeroize, Zeroizing};

/// The settings of the sealed copy.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory of the copy; made when missing.
    pub dir: PathBuf,
    /// The file that the encryption key is derived from; at least 16 bytes.
    pub wrapping_key: PathBuf,
    /// The time for which a copy, and each key in it, counts.
    pub max_age: Duration,
    /// The tenant that the encryption is bound to: a copy of another tenant does not open. May be empty.
    pub tenant: String,
}

/// The sealed copy of one agent.
pub struct SealedCopy {
    config: Config,
    clock: Clock,
    /// The key store of this process, in words: equal words mean the same store.
    origin: Mutex<String>,
    /// The names of the keys held when this process last sealed. A key of these that is no longer held was
    /// deleted.
    sealed: Mutex<BTreeSet<String>>,
}

/// A key of a copy, expired or not.
pub struct Copied {
    /// The key.
    pub version: KeyVersion,
    /// The fingerprint of the key.
    pub fingerprint: String,
    /// The key no longer counts for its name.
    pub former: bool,
}

/// The content of a copy that counts.
pub struct Opened {
    /// The keys that still count.
    pub keys: Vec<CurrentKey>,
    /// The time since the copy was sealed.
    pub age: Duration,
    /// The key store that the copy was sealed from, in words.
    pub origin: String,
    /// The copy was sealed from the key store of this process.
    pub is_ours: bool,
}

/// A key of a copy that still counts.
pub struct CurrentKey {
    /// The name of the key.
    pub name: Name,
    /// The key.
    pub version: Arc<KeyVersion>,
    /// The time since the last good verification.
    pub age: Duration,
    /// The store had lost the key when the copy was sealed: the key opens, and seals no more.
    pub lost: bool,
}

/// The plaintext of a copy, as JSON. Times are in seconds since 1970.
#[derive(Deserialize, Serialize)]
struct Content {
    origin: String,
    sealed_at: u64,
    not_after: u64,
    /// Stored texts by name.
    keys: BTreeMap<String, Zeroizing<String>>,
    /// The last verification by name. A key that is not named was verified when the copy was sealed.
    #[serde(default)]
    since: BTreeMap<String, u64>,
    /// The names of keys that the store had lost.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    lost: BTreeSet<String>,
    /// The former keys of each name, as stored texts.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    former: BTreeMap<String, Vec<Zeroizing<String>>>,
}

const FILE: &str = "keys.sealed";
const FIRST_LINE: &[u8] = b"keswarden sealed copy 1\n";
/// The `info` of HKDF.
const HKDF_INFO: &[u8] = b"keswarden sealed copy v1";
const SALT_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
/// Bound of the seconds by which a time in the copy may be ahead of the clock.
const CLOCK_SET_BACK_MAX: u64 = 300;
/// Bound of the file, in bytes.
const FILE_MAX: u64 = 16 * 1024 * 1024;
/// Least length of the wrapping key, in bytes: a shorter one could be guessed.
const WRAPPING_KEY_MIN: usize = 16;

// === impl SealedCopy ===

impl SealedCopy {
    /// The copy of the keys of the key store that `origin` describes.
    pub fn new(config: Config, origin: String, clock: Clock) -> Self {
        Self { config, clock, origin: Mutex::new(origin), sealed: Mutex::default() }
    }

    /// Makes `origin` the key store of this process, which has every key of the former one.
    pub fn moves_to(&self, origin: String) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = origin;
    }

    fn origin(&self) -> String {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a copy with this origin is of the key store of this process. Earlier versions did not name
    /// Vault's namespace.
    pub fn is_ours(&self, origin: &str) -> bool {
        let ours = self.origin();
        let nameless = ours.split_once(", namespace ").and_then(|(address, rest)| {
            let (_, place) = rest.split_once(", ")?;
            Some(format!("{address}, {place}"))
        });
        origin == ours || nameless.is_some_and(|nameless| origin == nameless)
    }

    /// The copy, for people: `the sealed copy FILE`.
    pub fn place(&self) -> String {
        format!("the sealed copy {}", self.path().display())
    }

    fn path(&self) -> PathBuf {
        self.config.dir.join(FILE)
    }

    fn unusable(&self, why: impl std::fmt::Display) -> Finding {
        Cause::CopyUnusable.seen(format!("the sealed copy {}: {why}", self.path().display()))
    }

    /// Seals these keys. Each counts from its own last verification: a key that fails verification does not
    /// expire the others. Keys of the former copy that this process has not held stay: a restart must not
    /// shrink the copy to the keys of its first minute.
    ///
    /// # Errors
    /// When the former copy is of another store, or the new one cannot be sealed or written. The former copy
    /// then stays.
    pub fn save<'a>(&self, keys: impl Iterator<Item = (&'a Name, &'a Held)>) -> Result<(), Finding> {
        let now = clock::unix(self.clock.wall()) as u64;
        let mut content = Content {
            origin: self.origin(),
            sealed_at: now,
            not_after: now + self.config.max_age.as_secs(),
            keys: BTreeMap::new(),
            since: BTreeMap::new(),
            lost: BTreeSet::new(),
            former: BTreeMap::new(),
        };
        for (name, held) in keys {
            let age = self.clock.boot().saturating_sub(held.verified);
            let text = Zeroizing::new(held.version.to_text().expose().to_owned());
            content.keys.insert(name.to_string(), text);
            content.since.insert(name.to_string(), now.saturating_sub(age.as_secs()));
            if held.lost {
                content.lost.insert(name.to_string());
            }
        }
        let at_hand: BTreeSet<_> = content.keys.keys().cloned().collect();
        match self.read() {
            Ok(before) => self.keep(&mut content, before)?,
            Err(Unread::Absent) => {}
            Err(Unread::Failed(finding)) => {
                // Fails without the wrapping key, before the former copy moves.
                self.cipher(&[0; SALT_BYTES])?;
                self.move_aside(now, &finding)?;
            }
        }
        if content.keys.is_empty() {
            return Ok(());
        }
        self.write(&content)?;
        *self.sealed.lock().unwrap_or_else(PoisonError::into_inner) = at_hand;
        Ok(())
    }

    fn write(&self, content: &Content) -> Result<(), Finding> {
        let mut sealed = encode(content);
        let mut head = [0; SALT_BYTES + NONCE_BYTES];
        secret::fill_random(&mut head);
        let (salt, nonce) = head.split_at(SALT_BYTES);
        let nonce: &[u8; NONCE_BYTES] = nonce.try_into().expect("what follows the salt must be a nonce");
        let cipher = self.cipher(salt)?;
        cipher
            .encrypt_in_place(nonce.into(), &self.bound_to(), &mut *sealed)
            .map_err(|_| self.unusable("it is too large"))?;
        let bytes = [FIRST_LINE, &head, &sealed].concat();
        std::fs::create_dir_all(&self.config.dir).map_err(|error| self.unusable(error))?;
        files::write_for_owner(&self.path(), 0o600, &bytes).map_err(|error| self.unusable(error))?;
        Ok(())
    }

    /// Adds the keys of the former copy: keys that are not held, and former keys of the names that are.
    fn keep(&self, content: &mut Content, before: Content) -> Result<(), Finding> {
        let is_its = |name: &String, text: &Zeroizing<String>| {
            content.keys.get(name).map(|ours| fingerprint(ours) == fingerprint(text))
        };
        let agree: Vec<_> = before.keys.iter().filter_map(|(name, text)| is_its(name, text)).collect();
        if !self.is_ours(&before.origin) && (agree.contains(&false) || !agree.contains(&true)) {
            return Err(self.is_anothers(&before.origin, &content.origin));
        }
        let sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        // A lost key that `key forget` has made a former one stays so, although this process still holds the
        // key.
        let mut forgotten = BTreeSet::new();
        for (name, texts) in &before.former {
            let ours = content.keys.get(name).filter(|_| content.lost.contains(name)).and_then(fingerprint);
            if ours.is_some() && texts.iter().any(|text| fingerprint(text) == ours) {
                content.keys.remove(name);
                content.since.remove(name);
                content.lost.remove(name);
                forgotten.insert(name.clone());
            }
        }
        for (name, texts) in before.former {
            content.former.entry(name).or_default().extend(texts);
        }
        for (name, text) in before.keys {
            match content.keys.get(&name) {
                Some(ours) if fingerprint(ours) == fingerprint(&text) => {}
                Some(_) => content.former.entry(name).or_default().push(text),
                // The key was held at the last sealing, and is no longer: it was deleted.
                None if sealed.contains(&name) && !forgotten.contains(&name) => {}
                None => {
                    let since = before.since.get(&name).copied().unwrap_or(before.sealed_at);
                    content.since.insert(name.clone(), since);
                    if before.lost.contains(&name) {
                        content.lost.insert(name.clone());
                    }
                    content.keys.insert(name, text);
                }
            }
        }
        Ok(())
    }

    /// The finding of a copy that is of another key store: `theirs` is the origin of the copy, `ours` the key
    /// store here.
    pub fn is_anothers(&self, theirs: &str, ours: &str) -> Finding {
        self.unusable(format!("it is of {theirs}, and the key store here is {ours}")).fix(
            "give each key store a copy of its own: set KESWARDEN_OFFLINE_DIR to another directory; if the key store has only moved, the \
             copy is taken over once both have a key of the same name and fingerprint",
        )
    }

    /// Renames a copy that cannot be opened. The copy may have the last bytes of a key, so no copy is
    /// deleted.
    fn move_aside(&self, now: u64, why: &Finding) -> Result<(), Finding> {
        let aside = self.config.dir.join(format!("{FILE}.{now}"));
        std::fs::rename(self.path(), &aside).map_err(|error| self.unusable(error))?;
        tracing::error!(
            cause = why.cause.id(),
            "the sealed copy that was there is kept as {}: {why}",
            aside.display()
        );
        Ok(())
    }

    /// Opens the copy: the keys that still count.
    ///
    /// # Errors
    /// When there is no copy, the copy has expired, or the copy cannot be read, opened or parsed.
    pub fn open(&self) -> Result<Opened, Finding> {
        let content = self.read().map_err(|unread| unread.finding(self))?;
        let now = clock::unix(self.clock.wall()) as u64;
        if now > content.not_after {
            let ago = clock::human(Duration::from_secs(now - content.not_after));
            return Err(
                Cause::CopyExpired.seen(format!("the sealed copy {} ended {ago} ago", self.path().display()))
            );
        }
        let mut keys = Vec::with_capacity(content.keys.len());
        for (name, text) in &content.keys {
            let age = self.age(content.since.get(name).copied().unwrap_or(content.sealed_at), now);
            if age > self.config.max_age {
                continue;
            }
            let lost = content.lost.contains(name);
            let name = Name::parse(name).map_err(|error| self.unusable(error))?;
            let version = KeyVersion::parse(text.as_bytes()).map_err(|error| self.unusable(error))?;
            keys.push(CurrentKey { name, version: Arc::new(version), age, lost });
        }
        let is_ours = self.is_ours(&content.origin);
        Ok(Opened { keys, age: self.age(content.sealed_at, now), origin: content.origin.clone(), is_ours })
    }

    /// The time since a time of the copy. A time too far ahead of the clock counts as expired: a clock that
    /// was set back renews no key.
    fn age(&self, since: u64, now: u64) -> Duration {
        match since > now + CLOCK_SET_BACK_MAX {
            true => self.config.max_age,
            false => Duration::from_secs(now.saturating_sub(since)),
        }
    }

    /// The origin of the copy, and every key of a name, however old. Absent when there is no copy.
    ///
    /// # Errors
    /// When the copy cannot be read or opened, and so may have the key.
    pub fn keys_of(&self, name: &Name) -> Result<Option<(String, Vec<Copied>)>, Finding> {
        let content = match self.read() {
            Ok(content) => content,
            Err(Unread::Absent) => return Ok(None),
            Err(Unread::Failed(finding)) => return Err(finding),
        };
        let now = content.keys.get(name.as_str()).map(|text| (text, false));
        let former = content.former.get(name.as_str()).into_iter().flatten().map(|text| (text, true));
        let keys = now.into_iter().chain(former).map(|(text, former)| {
            let version = KeyVersion::parse(text.as_bytes()).map_err(|error| self.unusable(error))?;
            let fingerprint = version.key.fingerprint();
            Ok(Copied { version, fingerprint, former })
        });
        Ok(Some((content.origin.clone(), keys.collect::<Result<_, Finding>>()?)))
    }

    /// Makes the key with the fingerprint `was` a former key of its name.
    fn forget(&self, name: &Name, was: &str) -> Result<(), Finding> {
        let mut content = match self.read() {
            Ok(content) => content,
            Err(Unread::Absent) => return Ok(()),
            Err(Unread::Failed(finding)) => return Err(finding),
        };
        let Some(text) = content.keys.get(name.as_str()) else { return Ok(()) };
        if !fingerprint(text).is_some_and(|fingerprint| is_same(was, &fingerprint)) {
            return Ok(());
        }
        let text = content.keys.remove(name.as_str()).expect("a key that was looked at must be there");
        content.former.entry(name.to_string()).or_default().push(text);
        content.since.remove(name.as_str());
        content.lost.remove(name.as_str());
        self.write(&content)
    }

    fn read(&self) -> Result<Content, Unread> {
        use std::io::ErrorKind;
        let bytes = match files::read(&self.path(), FILE_MAX) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound && files::is_absent(&self.path()) => {
                return Err(Unread::Absent);
            }
            Err(error) => return Err(Unread::Failed(self.unusable(error))),
        };
        self.decode(&bytes).map_err(Unread::Failed)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Content, Finding> {
        let whole =
            bytes.strip_prefix(FIRST_LINE).and_then(|rest| rest.split_at_checked(SALT_BYTES + NONCE_BYTES));
        let (head, sealed) = whole.ok_or_else(|| self.unusable("it is no sealed copy of this version"))?;
        let (salt, nonce) = head.split_at(SALT_BYTES);
        let nonce: &[u8; NONCE_BYTES] = nonce.try_into().expect("what follows the salt must be a nonce");
        let mut opened = Zeroizing::new(sealed.to_vec());
        let cipher = self.cipher(salt)?;
        cipher.decrypt_in_place(nonce.into(), &self.bound_to(), &mut *opened).map_err(|_| {
            self.unusable(
                "it does not open: it was changed, or sealed with another wrapping key or for another tenant",
            )
        })?;
        serde_json::from_slice(&opened).map_err(|_| self.unusable("it opens, and cannot be read"))
    }

    fn bound_to(&self) -> Vec<u8> {
        [FIRST_LINE, self.config.tenant.as_bytes()].concat()
    }

    fn cipher(&self, salt: &[u8]) -> Result<Aes256Gcm, Finding> {
        let wrapping = Secret::read(&self.config.wrapping_key)
            .map_err(|error| self.unusable(format!("its wrapping key cannot be read: {error}")))?;
        if wrapping.expose().len() < WRAPPING_KEY_MIN {
            return Err(self.unusable(format!("its wrapping key is shorter than {WRAPPING_KEY_MIN} bytes")));
        }
        let mut key = [0; 32];
        hkdf::Hkdf::<sha2::Sha256>::new(Some(salt), wrapping.expose().as_bytes())
            .expand(HKDF_INFO, &mut key)
            .expect("32 bytes must be derivable");
        let cipher = Aes256Gcm::new(&key.into());
        key.zeroize();
        Ok(cipher)
    }
}

/// Why a copy was not read.
enum Unread {
    /// There is no file.
    Absent,
    Failed(Finding),
}

// === impl Unread ===

impl Unread {
    fn finding(self, copy: &SealedCopy) -> Finding {
        match self {
            Self::Absent => copy.unusable("there is none"),
            Self::Failed(finding) => finding,
        }
    }
}

/// The fingerprint of a stored text. Absent when the text is no key.
fn fingerprint(text: &Zeroizing<String>) -> Option<String> {
    KeyVersion::parse(text.as_bytes()).ok().map(|version| version.key.fingerprint())
}

/// The content as JSON, in a buffer that is large enough from the start: a buffer that grows leaves copies of
/// keys in memory.
fn encode(content: &Content) -> Zeroizing<Vec<u8>> {
    let former = content.former.iter().flat_map(|(name, texts)| texts.iter().map(move |text| (name, text)));
    let texts: usize =
        content.keys.iter().chain(former).map(|(name, text)| name.len() * 2 + text.len() + 64).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(texts + content.origin.len() * 2 + 1024));
    serde_json::to_writer(&mut *bytes, content).expect("texts must encode");
    bytes
}
