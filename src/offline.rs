//! The sealed copy: the keys at hand, encrypted on a disk of this machine, for a start while Vault is away.
//!
//! ```text
//! "keswarden sealed copy 1\n" ‖ salt (32) ‖ nonce (12) ‖ AES-256-GCM(key, nonce, JSON, AAD = the first line ‖ tenant)
//! key = HKDF-SHA-256(ikm = the wrapping key's file, salt, info = "keswarden sealed copy v1")
//! ```
//! It is written whole or not at all, after every verification that found a key well, and counts until its `not_after`; each
//! key counts from its own last verification. It cannot know whether it is the newest: somebody who puts an older one in its
//! place goes unseen until that one's end.

use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock},
    crypto::key_version::KeyVersion,
    keyring::Held,
    names::Name,
    secret::{self, Secret},
    tls::mint,
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
    /// What this process had at hand when it last sealed: of these, what is no longer at hand was deleted.
    sealed: Mutex<BTreeSet<String>>,
}

/// What a copy held.
pub struct Opened {
    pub keys: Vec<Kept>,
    /// How long ago it was sealed.
    pub age: Duration,
    /// Where the keys came from, in words.
    pub origin: String,
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

/// Vault is away, and not: somebody else, another key, or no permission. Only then may a copy stand in.
pub fn stands_in_for(cause: Cause) -> bool {
    matches!(
        cause,
        Cause::VaultUnreachable
            | Cause::VaultUnreachableRefused
            | Cause::VaultUnreachableTimeout
            | Cause::VaultUnreachableDns
            | Cause::VaultSealed
            | Cause::NamespaceSealed
            | Cause::VaultUninitialised
            | Cause::VaultNoLeader
            | Cause::VaultUnhealthy
            | Cause::VaultBehindGreenHealth
            | Cause::VaultRateLimited
            | Cause::StoreUnavailable
    )
}

// === impl SealedCopy ===

impl SealedCopy {
    pub fn new(config: Config, clock: Clock) -> Self {
        Self { config, clock, sealed: Mutex::default() }
    }

    fn path(&self) -> PathBuf {
        self.config.dir.join(FILE)
    }

    fn unusable(&self, why: impl std::fmt::Display) -> Finding {
        Cause::CopyUnusable.seen(format!("the sealed copy {}: {why}", self.path().display()))
    }

    /// Seals these keys in place of what was there, each for as long as its own last verification counts: one that fails must not
    /// cost the others their copy. What the copy before had, and nobody has used since this process started, is kept for as long
    /// as it counts: a restart must not shrink the copy to the keys of its first minute.
    pub fn save<'a>(
        &self,
        keys: impl Iterator<Item = (&'a Name, &'a Held)>,
        origin: &str,
    ) -> Result<(), Finding> {
        let now = clock::unix(self.clock.wall()) as u64;
        let mut content = Content {
            origin: origin.to_owned(),
            sealed_at: now,
            not_after: now + self.config.max_age.as_secs(),
            keys: BTreeMap::new(),
            since: BTreeMap::new(),
            lost: BTreeSet::new(),
        };
        let mut at_hand = BTreeSet::new();
        for (name, held) in keys {
            at_hand.insert(name.to_string());
            let age = self.clock.boot().saturating_sub(held.verified);
            if age <= self.config.max_age {
                let text = Zeroizing::new(held.version.to_text().expose().to_owned());
                content.keys.insert(name.to_string(), text);
                content.since.insert(name.to_string(), now.saturating_sub(age.as_secs()));
                if held.lost {
                    content.lost.insert(name.to_string());
                }
            }
        }
        self.keep_former(&mut content, &at_hand, now);
        if content.keys.is_empty() {
            return Ok(());
        }
        let mut sealed = encode(&content);
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
        mint::write(&self.path(), 0o600, &bytes).map_err(|error| self.unusable(error))?;
        *self.sealed.lock().unwrap_or_else(PoisonError::into_inner) = at_hand;
        Ok(())
    }

    fn keep_former(&self, content: &mut Content, at_hand: &BTreeSet<String>, now: u64) {
        let Ok(former) = self.read() else { return };
        let sealed = self.sealed.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, text) in former.keys {
            let since = former.since.get(&name).copied().unwrap_or(former.sealed_at);
            let counts = since <= now && now <= since + self.config.max_age.as_secs();
            if counts && !at_hand.contains(&name) && !sealed.contains(&name) {
                content.since.insert(name.clone(), since);
                if former.lost.contains(&name) {
                    content.lost.insert(name.clone());
                }
                content.keys.insert(name, text);
            }
        }
    }

    /// Opens the copy, when there is one that counts.
    pub fn open(&self) -> Result<Opened, Finding> {
        let content = self.read()?;
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
        Ok(Opened { keys, age: self.age(content.sealed_at, now), origin: content.origin.clone() })
    }

    /// How long ago that was. A clock that was set back makes nothing fresh.
    fn age(&self, since: u64, now: u64) -> Duration {
        match since > now + SKEW {
            true => self.config.max_age,
            false => Duration::from_secs(now.saturating_sub(since)),
        }
    }

    /// Whether a copy has this key, however old it is. One that cannot be opened may have it: that is an error.
    pub fn has(&self, name: &Name) -> Result<bool, Finding> {
        match self.path().try_exists() {
            Ok(false) => Ok(false),
            Ok(true) => Ok(self.read()?.keys.contains_key(name.as_str())),
            Err(error) => Err(self.unusable(error)),
        }
    }

    fn read(&self) -> Result<Content, Finding> {
        use std::io::Read;
        let mut bytes = Zeroizing::new(Vec::new());
        std::fs::File::open(self.path())
            .and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes))
            .map_err(|error| self.unusable(error))?;
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

/// Into one buffer that is large enough from the start: one that grows leaves copies behind.
fn encode(content: &Content) -> Zeroizing<Vec<u8>> {
    let texts: usize = content.keys.iter().map(|(name, text)| name.len() * 2 + text.len() + 64).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(texts + content.origin.len() * 2 + 1024));
    serde_json::to_writer(&mut *bytes, content).expect("texts must encode");
    bytes
}
