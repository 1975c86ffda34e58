//! Who is calling: the identity of the certificate that the handshake was made with.

use super::refusal::Refusal;
use crate::identity::{Certificate, Identity};
use rustls::pki_types::CertificateDer;

/// Who is calling.
pub enum Caller {
    Known(Identity),
    NoCertificate,
    TooManyCertificates,
}

// === impl Caller ===

impl Caller {
    /// Certificate 0 is the one whose key the client proved to hold, so it alone is the identity (stricter than KES, which
    /// takes any single non-CA certificate of the chain; honest clients see no difference).
    pub fn of(chain: &[CertificateDer<'_>]) -> Self {
        let Some((leaf, others)) = chain.split_first() else { return Self::NoCertificate };
        let Ok(Certificate { identity, is_ca: false }) = Certificate::parse(leaf) else {
            return Self::NoCertificate;
        };
        let is_no_ca = |der: &CertificateDer<'_>| !Certificate::parse(der).is_ok_and(|found| found.is_ca);
        if others.iter().any(is_no_ca) { Self::TooManyCertificates } else { Self::Known(identity) }
    }

    pub fn identity(&self) -> Result<&Identity, Refusal> {
        match self {
            Self::Known(identity) => Ok(identity),
            Self::NoCertificate => Err(Refusal::NoCertificate),
            Self::TooManyCertificates => Err(Refusal::TooManyCertificates),
        }
    }

    /// The identity, or nothing: as KES writes it into keys and audit lines.
    pub fn name(&self) -> &str {
        self.identity().map_or("", Identity::as_str)
    }
}
