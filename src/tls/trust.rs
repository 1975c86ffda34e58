//! Whom a client trusts: the system's roots, or exactly the certificates of a file or directory.
//!
//! A listed certificate that *is* the server's own leaf is trusted too, name and dates checked: the MinIO operator
//! gives MinIO KES's leaf as its CA file, and Go accepts that.

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

/// Whom a client trusts.
pub struct Trust {
    certificates: Vec<CertificateDer<'static>>,
    ends: PeerEnds,
}

/// From when to when the certificate counts that a peer has last shown, trusted or not. Shared by its clones.
#[derive(Clone, Debug, Default)]
pub struct PeerEnds(Arc<Mutex<Option<Validity>>>);

// === impl PeerEnds ===

impl PeerEnds {
    /// Nothing before the first handshake.
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
    /// No server at all.
    pub fn nobody() -> Self {
        Self::of(Vec::new())
    }

    /// The roots of the machine (or of `SSL_CERT_FILE`); a scratch image has none.
    pub fn system() -> Self {
        Self::of(rustls_native_certs::load_native_certs().certs)
    }

    fn of(certificates: Vec<CertificateDer<'static>>) -> Self {
        Self { certificates, ends: PeerEnds::default() }
    }

    /// The same, and what the peer shows is noted there.
    pub fn noting(self, ends: &PeerEnds) -> Self {
        Self { ends: ends.clone(), ..self }
    }

    /// Exactly the certificates of a PEM file, or of the readable PEM files of a directory.
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

    /// The file or directory where one is named, else the system's roots.
    pub fn from_setting(path: Option<&Path>) -> Result<Self, Error> {
        path.map_or_else(|| Ok(Self::system()), Self::only)
    }

    /// The system's roots, and a file or directory beside them: as Go's clients of KES do, and its server with `tls.ca`.
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

    /// Nobody but whom `other` trusts is trusted.
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

/// A certificate that nobody else judges is within its dates.
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
    /// The leaf itself is listed: check its name and dates, which nobody else has.
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
