//! Identities of clients of the KES API, and the API keys and certificates that give them.
//!
//! An identity is the SHA-256 of a certificate's DER SubjectPublicKeyInfo, in lower-case hex. An API key is
//! the text `kes:v1:` and the base64 of a type byte (0, Ed25519) and a 32-byte seed (RFC 8032).

use crate::secret::{self, Bytes32, Secret};
use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::fmt;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

/// The SHA-256 of a public key, in 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(String);

/// An Ed25519 key in KES's text form.
pub struct ApiKey(Bytes32);

/// The error of a text that is no API key. The message never has the text.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "is no API key: `kes:v1:` and the base64 of 33 bytes, the first of them 0 (as `keswarden identity new` prints)"
)]
pub struct InvalidApiKey;

/// The error of a text that is no identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("is no identity: 64 hexadecimal digits, as `keswarden identity of` prints")]
pub struct InvalidIdentity;

/// The error of a certificate that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the certificate cannot be parsed")]
pub struct Unparsable;

/// The parts of a certificate that KES reads.
pub struct Certificate {
    /// The identity of the certificate's public key.
    pub identity: Identity,
    /// Whether BasicConstraints has `CA:TRUE`.
    pub is_ca: bool,
}

/// The prefix of an API key's text.
const API_KEY_PREFIX: &str = "kes:v1:";
/// The bytes before an Ed25519 seed in PKCS#8 (RFC 8410 §7).
const PKCS8_ED25519_PREFIX: &[u8] = &[0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

// === impl Identity ===

impl Identity {
    /// Reads an identity, in hex digits of either case.
    ///
    /// # Errors
    /// When the text is not 64 hex digits.
    pub fn parse(text: &str) -> Result<Self, InvalidIdentity> {
        let hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex { Ok(Self(text.to_ascii_lowercase())) } else { Err(InvalidIdentity) }
    }

    /// The identity of a public key, given as DER SubjectPublicKeyInfo.
    pub fn of_public_key(spki: &[u8]) -> Self {
        Self(secret::hex(&Sha256::digest(spki)))
    }

    /// The 64 lower-case hex digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl Certificate ===

impl Certificate {
    /// Reads a certificate in DER.
    ///
    /// # Errors
    /// When the bytes are no X.509 certificate.
    pub fn parse(der: &[u8]) -> Result<Self, Unparsable> {
        let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(der).map_err(|_| Unparsable)?;
        Ok(Self { identity: Identity::of_public_key(parsed.public_key().raw), is_ca: parsed.is_ca() })
    }
}

// === impl ApiKey ===

impl ApiKey {
    /// A fresh random key.
    pub fn generate() -> Self {
        Self(secret::random32())
    }

    /// Reads an API key. The prefix may be missing, as for KES.
    ///
    /// # Errors
    /// When the text is not the base64 of 33 bytes, the first of them 0.
    pub fn parse(text: &str) -> Result<Self, InvalidApiKey> {
        let encoded = text.strip_prefix(API_KEY_PREFIX).unwrap_or(text);
        let bytes = Zeroizing::new(STANDARD.decode(encoded).map_err(|_| InvalidApiKey)?);
        let seed = bytes.strip_prefix(&[0]).ok_or(InvalidApiKey)?;
        let mut key = Zeroizing::new([0; 32]);
        if seed.len() != key.len() {
            return Err(InvalidApiKey);
        }
        key.copy_from_slice(seed);
        Ok(Self(key))
    }

    /// The key in KES's text form, with the prefix.
    pub fn to_text(&self) -> Secret {
        let mut bytes = Zeroizing::new(vec![0]);
        bytes.extend_from_slice(&*self.0);
        let mut text = String::with_capacity(64);
        text.push_str(API_KEY_PREFIX);
        STANDARD.encode_string(&*bytes, &mut text);
        Secret::new(text)
    }

    /// The identity of the key.
    pub fn identity(&self) -> Identity {
        Identity::of_public_key(&self.key_pair().subject_public_key_info())
    }

    /// A self-signed client certificate of the key, valid for 90 days from `now` (seconds since 1970).
    pub fn certificate(&self, now: i64) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        const DAY: i64 = 86_400;
        let at = |seconds| time::OffsetDateTime::from_unix_timestamp(seconds).expect("now must be a date");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, self.identity().as_str());
        (params.not_before, params.not_after) = (at(now - 300), at(now + 90 * DAY));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.self_signed(&self.key_pair()).expect("an Ed25519 key must sign");
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(self.pkcs8()))
    }

    /// The key pair. Its PKCS#8 form has no public key (RFC 8410), so that every library reads the form.
    pub fn key_pair(&self) -> KeyPair {
        KeyPair::from_pkcs8_der_and_sign_algo(&self.pkcs8(), &rcgen::PKCS_ED25519)
            .expect("32 bytes must be an Ed25519 seed")
    }

    fn pkcs8(&self) -> PrivatePkcs8KeyDer<'static> {
        PrivatePkcs8KeyDer::from([PKCS8_ED25519_PREFIX, &self.0[..]].concat())
    }
}
