//! The certificates that a client trusts: the system's roots, or exactly those of a file or directory.
//!
//! A listed certificate that *is* the server's leaf is trusted too, after a check of its name and dates: the
//! MinIO operator gives MinIO KES's leaf as the CA file, and Go accepts the leaf.

use super::{Error, Validity, read_certificates};
use rustls::{
    CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::ParsedCertificate,
};
use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};
use x509_parser::prelude::FromDer;

/// The certificates that a client trusts.
pub struct Trust {
    certificates: Vec<CertificateDer<'static>>,
    ends: PeerEnds,
}

/// The validity of the certificate that a peer has last shown, trusted or not. Clones share the value.
#[derive(Clone, Debug, Default)]
pub struct PeerEnds(Arc<Mutex<Option<Validity>>>);

// === impl PeerEnds ===

impl PeerEnds {
    /// The validity; nothing before the first handshake.
    pub fn last(&self) -> Option<Validity> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, leaf: &CertificateDer<'_>) {
        if let Some(validity) = Validity::of(leaf) {
            *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(validity);
        }
    }
}

// === impl Trust ===

impl Trust {
    /// A trust without certificates, which accepts no server.
    pub fn nobody() -> Self {
        Self::of(Vec::new())
    }

    /// The roots of the machine, or of `SSL_CERT_FILE`. A scratch image has no roots.
    pub fn system() -> Self {
        Self::of(rustls_native_certs::load_native_certs().certs)
    }

    fn of(certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { certificates, ends: PeerEnds::default() }
    }

    /// The trust, with the validity of the peer's certificate noted in `ends`.
    pub fn noting(self, ends: &PeerEnds) -> Self {
        Self { ends: ends.clone(), ..self }
    }

    /// Exactly the certificates of a PEM file, or of the readable PEM files of a directory.
    ///
    /// # Errors
    /// When the file or directory cannot be read, or has no certificate.
    pub fn only(path: &Path) -> Result<Self, Error> {
        if !path.is_dir() {
            return Ok(Self::of(read_certificates(path)?));
        }
        let unreadable = |error: std::io::Error| Error::Read {
            path: path.display().to_string(),
            reason: error.to_string(),
        };
        let mut certificates = Vec::new();
        for entry in std::fs::read_dir(path).map_err(unreadable)? {
            certificates.extend(read_certificates(&entry.map_err(unreadable)?.path()).unwrap_or_default());
        }
        match certificates.is_empty() {
            true => Err(Error::NoCertificate(path.display().to_string())),
            false => Ok(Self::of(certificates)),
        }
    }

    /// The certificates of a file or directory; without a path, the system's roots.
    ///
    /// # Errors
    /// As [`Trust::only`].
    pub fn from_setting(path: Option<&Path>) -> Result<Self, Error> {
        path.map_or_else(|| Ok(Self::system()), Self::only)
    }

    /// The system's roots and the certificates of a file or directory, as for KES's clients, and for KES's
    /// server with `tls.ca`.
    ///
    /// # Errors
    /// As [`Trust::only`].
    pub fn system_and(path: Option<&Path>) -> Result<Self, Error> {
        let mut trust = Self::system();
        if let Some(path) = path {
            trust.certificates.extend(Self::only(path)?.certificates);
        }
        Ok(trust)
    }

    pub(super) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// Whether `other` has every certificate of this trust.
    pub fn is_within(&self, other: &Trust) -> bool {
        self.certificates.iter().all(|certificate| other.certificates.contains(certificate))
    }

    pub(super) fn verifier(
        self,
        provider: Arc<CryptoProvider>,
    ) -> Result<Arc<dyn ServerCertVerifier>, Error> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(self.certificates.iter().cloned());
        let chains = match roots.is_empty() {
            true => None,
            false => Some(
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|error| Error::Unusable(rustls::Error::General(error.to_string())))?,
            ),
        };
        Ok(Arc::new(Verifier { chains, pinned: self.certificates, ends: self.ends, provider }))
    }
}

/// Checks that a certificate outside every chain is valid at `now`.
pub(super) fn check_dates(leaf: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(leaf)
        .map_err(|_| CertificateError::BadEncoding)?;
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if seconds > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    if seconds < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    Ok(())
}

#[derive(Debug)]
struct Verifier {
    chains: Option<Arc<WebPkiServerVerifier>>,
    pinned: Vec<CertificateDer<'static>>,
    ends: PeerEnds,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    /// Checks the name and dates of a leaf that is listed, which no chain checks.
    fn verify_pinned(
        leaf: &CertificateDer<'_>,
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_name(&ParsedCertificate::try_from(leaf)?, name)?;
        check_dates(leaf, now)?;
        Ok(ServerCertVerified::assertion())
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.ends.note(leaf);
        if self.pinned.iter().any(|pinned| pinned == leaf) {
            return Self::verify_pinned(leaf, name, now);
        }
        match &self.chains {
            Some(chains) => chains.verify_server_cert(leaf, intermediates, name, ocsp, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
