//! The caller of the API: the identity of the certificate whose key made the handshake.

use super::refusal::Refusal;
use crate::identity::{Certificate, Identity};
use rustls::pki_types::CertificateDer;

/// The caller, by the certificates of the connection.
pub enum Caller {
    /// The client showed one certificate that is no CA's.
    Known(Identity),
    /// The client showed no certificate, a CA's, or an unreadable one.
    NoCertificate,
    /// The client showed more than one certificate that is no CA's.
    TooManyCertificates,
}

// === impl Caller ===

impl Caller {
    /// The caller of a connection, from the client's certificates, leaf first.
    ///
    /// Only the leaf gives the identity, because the handshake proves the leaf's key only. KES takes any
    /// single non-CA certificate of the chain; honest clients see no difference.
    pub fn of(chain: &[CertificateDer<'_>]) -> Self {
        let Some((leaf, others)) = chain.split_first() else { return Self::NoCertificate };
        let Ok(Certificate { identity, is_ca: false }) = Certificate::parse(leaf) else {
            return Self::NoCertificate;
        };
        let is_no_ca = |der: &CertificateDer<'_>| !Certificate::parse(der).is_ok_and(|found| found.is_ca);
        if others.iter().any(is_no_ca) { Self::TooManyCertificates } else { Self::Known(identity) }
    }

    /// The identity of the caller.
    ///
    /// # Errors
    /// `NoCertificate` or `TooManyCertificates` when the certificates give no identity.
    pub fn identity(&self) -> Result<&Identity, Refusal> {
        match self {
            Self::Known(identity) => Ok(identity),
            Self::NoCertificate => Err(Refusal::NoCertificate),
            Self::TooManyCertificates => Err(Refusal::TooManyCertificates),
        }
    }

    /// The identity as KES writes the identity into keys and audit lines; empty when unknown.
    pub fn name(&self) -> &str {
        self.identity().map_or("", Identity::as_str)
    }
}
