//! The sealed copy: the keys at hand, encrypted on a disk of this machine, for a start while Vault is away.
//!
//! ```text
//! "keswarden sealed copy 1\n" ‖ salt (32) ‖ nonce (12) ‖ AES-256-GCM(key, nonce, JSON, AAD = the first line ‖ tenant)
//! key = HKDF-SHA-256(ikm = the wrapping key's file, salt, info = "keswarden sealed copy v1")
//! ```
//! It is written whole or not at all, after every verification that found a key well, and counts until its `not_after`; each
//! key counts from its own last verification. It cannot know whether it is the newest: somebody who puts an older one in its
//! place goes unseen until that one's end.
//!
//! A copy belongs to the key store that it was sealed from. It never loses a key that it has: one whose time is over is kept and no longer
//! served, and another key under its name goes beside it, not over it. `key rescue --from-copy` gives any of them back.

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

/// Where the copy is, and for how long one counts.
#[derive(Clone, Debug)]
pub struct Config {
    pub dir: PathBuf,
    /// What the encryption key is derived from; at least 16 bytes.
    pub wrapping_key: PathBuf,
    pub max_age: Duration,
    /// A copy of another tenant's is refused.
    pub tenant: String,
}

/// The copy of one agent.
pub struct SealedCopy {
    config: Config,
    clock: Clock,
    /// The key store that it is of, in words: the same words are the same store.
    origin: Mutex<String>,
    /// What this process had at hand when it last sealed: of these, what is no longer at hand was deleted.
    sealed: Mutex<BTreeSet<String>>,
}

/// A key that a copy has, whether or not it still counts.
pub struct Copied {
    pub version: KeyVersion,
    pub fingerprint: String,
    /// Another key of the name is the one that counts.
    pub former: bool,
}

/// What a copy held.
pub struct Opened {
    pub keys: Vec<Kept>,
    /// How long ago it was sealed.
    pub age: Duration,
    /// Where the keys came from, in words.
    pub origin: String,
    /// That is the key store of this process.
    pub is_ours: bool,
}

/// A key of a copy.
pub struct Kept {
    pub name: Name,
    pub version: Arc<KeyVersion>,
    /// How long ago it was last verified.
    pub age: Duration,
    /// The store had lost it by then: it opens, and seals nothing.
    pub lost: bool,
}

#[derive(Deserialize, Serialize)]
struct Content {
    origin: String,
    /// Seconds since 1970.
    sealed_at: u64,
    not_after: u64,
    /// Stored texts by name.
    keys: BTreeMap<String, Zeroizing<String>>,
    /// When each was last verified; one that is not named, when the copy was sealed.
    #[serde(default)]
    since: BTreeMap<String, u64>,
    /// Those that the store had lost.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    lost: BTreeSet<String>,
    /// Other keys of these names, that were here before.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    former: BTreeMap<String, Vec<Zeroizing<String>>>,
}

const FILE: &str = "keys.sealed";
const FIRST_LINE: &[u8] = b"keswarden sealed copy 1\n";
const INFO: &[u8] = b"keswarden sealed copy v1";
const SALT: usize = 32;
const NONCE: usize = 12;
/// Seconds that a clock may be set back by and still be believed.
const SKEW: u64 = 300;
/// A larger file is none of ours.
const MAX_FILE: u64 = 16 * 1024 * 1024;
/// A shorter wrapping key could be guessed.
const LEAST_WRAPPING_KEY: usize = 16;

// === impl SealedCopy ===

impl SealedCopy {
    /// Of the keys of `origin`.
    pub fn new(config: Config, origin: String, clock: Clock) -> Self {
        Self { config, clock, origin: Mutex::new(origin), sealed: Mutex::default() }
    }

    /// The keys are in another store from now on, which has every one of them.
    pub fn moves_to(&self, origin: String) {
        *self.origin.lock().unwrap_or_else(PoisonError::into_inner) = origin;
    }

    fn origin(&self) -> String {
        self.origin.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a copy is of this key store. Versions before this one did not name the namespace.
    pub fn is_ours(&self, origin: &str) -> bool {
        let ours = self.origin();
        let nameless = ours.split_once(", namespace ").and_then(|(address, rest)| {
            let (_, place) = rest.split_once(", ")?;
            Some(format!("{address}, {place}"))
        });
        origin == ours || nameless.is_some_and(|nameless| origin == nameless)
    }

    /// Which one it is, for people.
    pub fn place(&self) -> String {
        format!("the sealed copy {}", self.path().display())
    }

    fn path(&self) -> PathBuf {
        self.config.dir.join(FILE)
    }

    fn unusable(&self, why: impl std::fmt::Display) -> Finding {
        Cause::CopyUnusable.seen(format!("the sealed copy {}: {why}", self.path().display()))
    }

    /// Seals these keys, each for as long as its own last verification counts: one that fails must not cost the others their copy. What
    /// the copy had before, and nobody has used since this process started, stays: a restart must not shrink the copy to the keys of
    /// its first minute.
    ///
    /// # Errors
    /// When the copy there is another store's, or it cannot be written: what was there stays.
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
                // Without the wrapping key nothing could be written in its place.
                self.cipher(&[0; SALT])?;
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
        let mut head = [0; SALT + NONCE];
        secret::fill_random(&mut head);
        let (salt, nonce) = head.split_at(SALT);
        let nonce: &[u8; NONCE] = nonce.try_into().expect("what follows the salt must be a nonce");
        let cipher = self.cipher(salt)?;
        cipher
            .encrypt_in_place(nonce.into(), &self.bound_to(), &mut *sealed)
            .map_err(|_| self.unusable("it is too large"))?;
        let bytes = [FIRST_LINE, &head, &sealed].concat();
        std::fs::create_dir_all(&self.config.dir).map_err(|error| self.unusable(error))?;
        files::write(&self.path(), 0o600, &bytes).map_err(|error| self.unusable(error))?;
        files::belongs_to_its_folder(&self.path());
        Ok(())
    }

    /// Keeps what the copy before had: keys that are not at hand, and other keys of the names that are.
    fn keep(&self, content: &mut Content, before: Content) -> Result<(), Finding> {
        let is_its = |name: &String, text: &Zeroizing<String>| {
            content.keys.get(name).map(|ours| fingerprint(ours) == fingerprint(text))
        };
        let agree: Vec<_> = before.keys.iter().filter_map(|(name, text)| is_its(name, text)).collect();
        if !self.is_ours(&before.origin) && (agree.contains(&false) || !agree.contains(&true)) {
            return Err(self.is_anothers(&before.origin, &content.origin));
        }
        let sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        // A lost key that somebody has forgotten stays a former one, though a process still holds it.
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
                // It was at hand here, and is no longer: somebody deleted it.
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

    /// That a copy is of another key store.
    pub fn is_anothers(&self, theirs: &str, ours: &str) -> Finding {
        self.unusable(format!("it is of {theirs}, and the key store here is {ours}")).fix(
            "give each key store a copy of its own: set KESWARDEN_OFFLINE_DIR to another directory; if the key store has only moved, the \
             copy is taken over once both have a key of the same name and fingerprint",
        )
    }

    /// What cannot be opened may hold the last of a key: it makes room, and stays.
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

    /// Opens the copy, when there is one that counts.
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
            keys.push(Kept { name, version: Arc::new(version), age, lost });
        }
        let is_ours = self.is_ours(&content.origin);
        Ok(Opened { keys, age: self.age(content.sealed_at, now), origin: content.origin.clone(), is_ours })
    }

    /// How long ago that was. A clock that was set back makes nothing fresh.
    fn age(&self, since: u64, now: u64) -> Duration {
        match since > now + SKEW {
            true => self.config.max_age,
            false => Duration::from_secs(now.saturating_sub(since)),
        }
    }

    /// Every key of a name that the copy has, however old it is, and the store that it is of. Nothing when there is no copy.
    ///
    /// # Errors
    /// When there is a copy that cannot be opened: it may have the key.
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

    /// The key `was` no longer counts for its name: it stays in the copy as a former one.
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
        let bytes = match files::read(&self.path(), MAX_FILE) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound && files::is_absent(&self.path()) => {
                return Err(Unread::Absent);
            }
            Err(error) => return Err(Unread::Failed(self.unusable(error))),
        };
        self.decode(&bytes).map_err(Unread::Failed)
    }

    fn decode(&self, bytes: &[u8]) -> Result<Content, Finding> {
        let whole = bytes.strip_prefix(FIRST_LINE).and_then(|rest| rest.split_at_checked(SALT + NONCE));
        let (head, sealed) = whole.ok_or_else(|| self.unusable("it is no sealed copy of this version"))?;
        let (salt, nonce) = head.split_at(SALT);
        let nonce: &[u8; NONCE] = nonce.try_into().expect("what follows the salt must be a nonce");
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
        if wrapping.expose().len() < LEAST_WRAPPING_KEY {
            return Err(self.unusable(format!("its wrapping key is shorter than {LEAST_WRAPPING_KEY} bytes")));
        }
        let mut key = [0; 32];
        hkdf::Hkdf::<sha2::Sha256>::new(Some(salt), wrapping.expose().as_bytes())
            .expand(INFO, &mut key)
            .expect("32 bytes must be derivable");
        let cipher = Aes256Gcm::new(&key.into());
        key.zeroize();
        Ok(cipher)
    }
}

/// Why there is nothing of a copy.
enum Unread {
    /// There is none.
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

/// Of a stored text; nothing when it is no key.
fn fingerprint(text: &Zeroizing<String>) -> Option<String> {
    KeyVersion::parse(text.as_bytes()).ok().map(|version| version.key.fingerprint())
}

/// Into one buffer that is large enough from the start: one that grows leaves copies behind.
fn encode(content: &Content) -> Zeroizing<Vec<u8>> {
    let former = content.former.iter().flat_map(|(name, texts)| texts.iter().map(move |text| (name, text)));
    let texts: usize =
        content.keys.iter().chain(former).map(|(name, text)| name.len() * 2 + text.len() + 64).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(texts + content.origin.len() * 2 + 1024));
    serde_json::to_writer(&mut *bytes, content).expect("texts must encode");
    bytes
}
