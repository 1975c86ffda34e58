//! The sealed copy: the keys at hand, encrypted on a disk of this machine, for a start while Vault is away.
//!
//! ```text
//! "keswarden sealed copy 1\n" ‖ salt (32) ‖ nonce (12) ‖ AES-256-GCM(key, nonce, JSON, AAD = the first line ‖ tenant)
//! key = HKDF-SHA-256(ikm = the wrapping key's file, salt, info = "keswarden sealed copy v1")
//! ```
//! It is written whole or not at all, after every verification that found all well, and counts until its `not_after`. It
//! cannot know whether it is the newest: somebody who puts an older one in its place goes unseen until that one's end.

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
use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};
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
}

/// What a copy held.
pub struct Opened {
    pub keys: Vec<(Name, Arc<KeyVersion>)>,
    /// How long ago it was sealed.
    pub age: Duration,
    /// Where the keys came from, in words.
    pub origin: String,
}

#[derive(Deserialize, Serialize)]
struct Content {
    origin: String,
    /// Seconds since 1970.
    sealed_at: u64,
    not_after: u64,
    /// Stored texts by name.
    keys: BTreeMap<String, Zeroizing<String>>,
}

const FILE: &str = "keys.sealed";
const FIRST_LINE: &[u8] = b"keswarden sealed copy 1\n";
const INFO: &[u8] = b"keswarden sealed copy v1";
const SALT: usize = 32;
const NONCE: usize = 12;
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
            | Cause::VaultUninitialised
            | Cause::VaultNoLeader
            | Cause::VaultUnhealthy
            | Cause::VaultRateLimited
            | Cause::StoreUnavailable
    )
}

// === impl SealedCopy ===

impl SealedCopy {
    pub fn new(config: Config, clock: Clock) -> Self {
        Self { config, clock }
    }

    fn path(&self) -> PathBuf {
        self.config.dir.join(FILE)
    }

    fn unusable(&self, why: impl std::fmt::Display) -> Finding {
        Cause::CopyUnusable.seen(format!("the sealed copy {}: {why}", self.path().display()))
    }

    /// Seals these keys in place of what was there.
    pub fn save<'a>(
        &self,
        keys: impl Iterator<Item = (&'a Name, &'a Held)>,
        origin: &str,
    ) -> Result<(), Finding> {
        let now = clock::unix(self.clock.wall()) as u64;
        let texts = keys.filter(|(_, held)| !held.lost).map(|(name, held)| {
            (name.to_string(), Zeroizing::new(held.version.to_text().expose().to_owned()))
        });
        let content = Content {
            origin: origin.to_owned(),
            sealed_at: now,
            not_after: now + self.config.max_age.as_secs(),
            keys: texts.collect(),
        };
        let mut sealed = Zeroizing::new(serde_json::to_vec(&content).expect("texts must encode"));
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
        mint::write(&self.path(), 0o600, &bytes).map_err(|error| self.unusable(error))
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
            let name = Name::parse(name).map_err(|error| self.unusable(error))?;
            let version = KeyVersion::parse(text.as_bytes()).map_err(|error| self.unusable(error))?;
            keys.push((name, Arc::new(version)));
        }
        let age = Duration::from_secs(now.saturating_sub(content.sealed_at));
        Ok(Opened { keys, age, origin: content.origin.clone() })
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
