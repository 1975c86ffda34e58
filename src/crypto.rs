//! Seal, open and HMAC with one key, exactly as KES 2025-03-12 does. No other module does crypto on keys.
//!
//! A message key K' is derived for each message from 16 random bytes (`iv`): HMAC-SHA-256(K, iv) for
//! AES-256-GCM, HChaCha20(K, iv) for ChaCha20-Poly1305. The nonce is 12 independent random bytes. The context
//! is the AAD.

pub mod envelope;
pub mod key_version;
pub mod usable;

use crate::{
    memory::Locked,
    secret::{self, Bytes32},
};
use aes_gcm::{Aes256Gcm, aead::AeadInOut};
use chacha20poly1305::ChaCha20Poly1305;
use envelope::{IV, NONCE, OVERHEAD, TAG};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, Zeroizing};

/// The algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// AES-256-GCM, with HMAC-SHA-256 as the KDF.
    Aes256,
    /// ChaCha20-Poly1305 (RFC 8439), with HChaCha20 as the KDF.
    ChaCha20,
}

/// A key that seals and opens. The bytes are on locked pages, and are wiped on drop.
pub struct Key(Locked<Parts>);

struct Parts {
    kind: Kind,
    bytes: Bytes32,
    hmac_key: Option<Bytes32>,
    /// HMAC-SHA-256 keyed with `bytes`: computed once, cloned for each message. The `hmac` crate wipes the
    /// state on drop.
    kdf: Hmac<Sha256>,
}

/// The error of a ciphertext that was not made with this key and context, or was changed since.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("decryption failed: ciphertext is not authentic")]
pub struct NotAuthentic;

/// A DEK in the clear, and sealed.
pub struct DataKey {
    /// The DEK in the clear.
    pub plaintext: Bytes32,
    /// The sealed DEK, 32 + 44 bytes.
    pub ciphertext: Vec<u8>,
}

/// The label that a fingerprint is computed over, before the key's kind. No label of this length is a KDF
/// input: IVs are shorter.
const FINGERPRINT_LABEL: &[u8] = b"keswarden key fingerprint v1\0";

// === impl Kind ===

impl Kind {
    /// The name in KES's answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aes256 => "AES256",
            Self::ChaCha20 => "ChaCha20",
        }
    }

    /// The kind of a name that KES accepts. Case matters.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "AES256" | "AES256-GCM_SHA256" => Some(Self::Aes256),
            "ChaCha20" | "XCHACHA20-POLY1305" => Some(Self::ChaCha20),
            _ => None,
        }
    }

    /// The kind of new keys on this machine: AES where the processor has instructions for AES, else ChaCha20.
    pub fn of_this_machine() -> Self {
        #[cfg(target_arch = "x86_64")]
        let fast =
            std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
        #[cfg(target_arch = "aarch64")]
        let fast = std::arch::is_aarch64_feature_detected!("aes");
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let fast = false;
        if fast { Self::Aes256 } else { Self::ChaCha20 }
    }
}

// === impl Key ===

impl Key {
    /// A key from its bytes, on locked pages.
    pub fn new(kind: Kind, bytes: Bytes32, hmac_key: Option<Bytes32>) -> Self {
        let kdf = keyed(&bytes);
        Self(Locked::new(Parts { kind, bytes, hmac_key, kdf }))
    }

    /// The algorithm.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Whether the key has an HMAC key.
    pub fn has_hmac(&self) -> bool {
        self.0.hmac_key.is_some()
    }

    /// Seals `plaintext` for `context`. The output is 44 bytes longer.
    pub fn seal(&self, plaintext: &[u8], context: &[u8]) -> Vec<u8> {
        let mut random = [0; IV + NONCE];
        secret::fill_random(&mut random);
        self.seal_with(&random, plaintext, context)
    }

    /// Seals with the given IV and nonce, for test vectors only.
    #[doc(hidden)]
    pub fn seal_with(&self, random: &[u8; IV + NONCE], plaintext: &[u8], context: &[u8]) -> Vec<u8> {
        let (iv, nonce) = split(random);
        let mut sealed = Vec::with_capacity(plaintext.len() + OVERHEAD);
        sealed.extend_from_slice(plaintext);
        let buffer = sealed.as_mut_slice().into();
        let message_key = self.message_key(iv);
        let tag = match self.0.kind {
            Kind::Aes256 => {
                Aes256Gcm::new((&*message_key).into()).encrypt_inout_detached(nonce.into(), context, buffer)
            }
            Kind::ChaCha20 => ChaCha20Poly1305::new((&*message_key).into()).encrypt_inout_detached(
                nonce.into(),
                context,
                buffer,
            ),
        };
        let tag = tag.expect("a request body must be shorter than the limits of the ciphers");
        sealed.extend_from_slice(&tag);
        sealed.extend_from_slice(random);
        sealed
    }

    /// Opens a ciphertext of [`Key::seal`], or in any form that KES wrote, for the same context.
    ///
    /// # Errors
    /// When the ciphertext was not made with this key and context, or was changed since.
    pub fn open(&self, ciphertext: &[u8], context: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotAuthentic> {
        let ciphertext = envelope::normal_form(ciphertext);
        let (sealed, random) = ciphertext.split_last_chunk().ok_or(NotAuthentic)?;
        let (text, tag) = sealed.split_last_chunk::<TAG>().ok_or(NotAuthentic)?;
        let (iv, nonce) = split(random);
        let mut plaintext = Zeroizing::new(text.to_vec());
        let buffer = plaintext.as_mut_slice().into();
        let message_key = self.message_key(iv);
        let opened = match self.0.kind {
            Kind::Aes256 => Aes256Gcm::new((&*message_key).into()).decrypt_inout_detached(
                nonce.into(),
                context,
                buffer,
                tag.into(),
            ),
            Kind::ChaCha20 => ChaCha20Poly1305::new((&*message_key).into()).decrypt_inout_detached(
                nonce.into(),
                context,
                buffer,
                tag.into(),
            ),
        };
        opened.map(|()| plaintext).map_err(|_| NotAuthentic)
    }

    /// A fresh DEK of 32 random bytes, in the clear and sealed for `context`.
    pub fn generate(&self, context: &[u8]) -> DataKey {
        let plaintext = secret::random32();
        let ciphertext = self.seal(&*plaintext, context);
        DataKey { plaintext, ciphertext }
    }

    /// HMAC-SHA-256 of `message` under the HMAC key; nothing without an HMAC key.
    pub fn hmac(&self, message: &[u8]) -> Option<[u8; 32]> {
        let key = self.0.hmac_key.as_ref()?;
        Some(keyed(key).chain_update(message).finalize().into_bytes().into())
    }

    /// The fingerprint, which names the key and gives nothing away: 32 hex digits of HMAC-SHA-256 under the
    /// key over a versioned label and the kind. A key with an HMAC key has `-` and 32 more digits, computed
    /// under the HMAC key.
    pub fn fingerprint(&self) -> String {
        let of = |key: &Hmac<Sha256>| {
            let mac = key.clone().chain_update(FINGERPRINT_LABEL).chain_update(self.0.kind.name()).finalize();
            secret::hex(&mac.into_bytes()[..16])
        };
        match &self.0.hmac_key {
            None => of(&self.0.kdf),
            Some(hmac_key) => format!("{}-{}", of(&self.0.kdf), of(&keyed(hmac_key))),
        }
    }

    /// Whether both keys have the same kind and bytes, compared in constant time.
    pub fn same(&self, other: &Key) -> bool {
        let hmac = match (&self.0.hmac_key, &other.0.hmac_key) {
            (None, None) => true,
            (Some(one), Some(other)) => secret::same32(one, other),
            _ => false,
        };
        (self.0.kind == other.0.kind) & secret::same32(&self.0.bytes, &other.0.bytes) & hmac
    }

    /// Whether the key opens a DEK of its own, and refuses another context.
    pub fn works(&self) -> bool {
        const CONTEXT: &[u8] = b"{\"keswarden\":\"self-test\"}";
        let made = self.generate(CONTEXT);
        let opened = self.open(&made.ciphertext, CONTEXT);
        opened.is_ok_and(|opened| opened.as_slice() == &made.plaintext[..])
            && self.open(&made.ciphertext, b"{}") == Err(NotAuthentic)
    }

    pub(in crate::crypto) fn parts(&self) -> (&Bytes32, Option<&Bytes32>) {
        (&self.0.bytes, self.0.hmac_key.as_ref())
    }

    fn message_key(&self, iv: &[u8; IV]) -> Bytes32 {
        match self.0.kind {
            Kind::Aes256 => {
                let mut mac = self.0.kdf.clone().chain_update(iv).finalize().into_bytes();
                let key = Zeroizing::new(mac.into());
                mac.as_mut_slice().zeroize();
                key
            }
            Kind::ChaCha20 => {
                let mut derived = chacha20::hchacha::<chacha20::R20>((&*self.0.bytes).into(), iv.into());
                let key = Zeroizing::new(derived.into());
                derived.as_mut_slice().zeroize();
                key
            }
        }
    }
}

fn keyed(key: &Bytes32) -> Hmac<Sha256> {
    Hmac::new_from_slice(&**key).expect("HMAC must take a key of any length")
}

fn split(random: &[u8; IV + NONCE]) -> (&[u8; IV], &[u8; NONCE]) {
    let (iv, nonce) = random.split_first_chunk().expect("28 bytes must hold an IV");
    (iv, nonce.try_into().expect("what follows the IV must be a nonce"))
}
