//! TLS: the one crypto provider, server and client configurations, trust, and what a failure means.

pub mod mint;
pub mod pem_password;
pub mod server;
pub mod trust;

use rustls::{
    ClientConfig, ServerConfig,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use std::{path::Path, sync::Arc};
use trust::Trust;

/// A certificate chain, leaf first, and its key.
pub struct Pair {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

/// A file that cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot read {path}: {reason}")]
    Read { path: String, reason: String },
    #[error("{0} holds no PEM certificate")]
    NoCertificate(String),
    #[error("the certificate and key cannot be used: {0}")]
    Unusable(rustls::Error),
    #[error("cannot write {path}: {reason}")]
    Write { path: String, reason: String },
}

/// The TLS provider of every connection, in and out.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A server that takes any client certificate, and demands one when `mandatory`.
///
/// Nothing about the certificate is checked but that the peer holds its key: as KES does by default.
pub fn server_config(pair: Pair, mandatory: bool) -> Result<Arc<ServerConfig>, Error> {
    server::config(pair, server::ClientAuth { mandatory, trusted: None })
}

/// A client with the given trust, and a certificate of its own where there is one.
pub fn client_config(trust: Trust, own: Option<Pair>) -> Result<ClientConfig, Error> {
    let provider = provider();
    let config = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(Error::Unusable)?
        .dangerous()
        .with_custom_certificate_verifier(trust.verifier(provider)?);
    match own {
        None => Ok(config.with_no_client_auth()),
        Some(Pair { chain, key }) => config.with_client_auth_cert(chain, key).map_err(Error::Unusable),
    }
}

/// A client for plain HTTP on this machine: it trusts nobody.
pub fn plain_http_client(timeout: std::time::Duration) -> Result<reqwest::Client, reqwest::Error> {
    let tls = client_config(Trust::nobody(), None).expect("an empty trust must be usable");
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().timeout(timeout).build()
}

// === impl Pair ===

impl Pair {
    /// Reads a certificate chain and the first private key from PEM files.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, Error> {
        let chain = read_certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|error| Error::Read { path: key.display().to_string(), reason: error.to_string() })?;
        Ok(Self { chain, key })
    }
}

/// Every certificate in a PEM file; at least one.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unreadable = |reason: String| Error::Read { path: path.display().to_string(), reason };
    let pem = std::fs::read(path).map_err(|error| unreadable(error.to_string()))?;
    let certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>();
    match certificates.map_err(|error| unreadable(error.to_string()))? {
        none if none.is_empty() => Err(Error::NoCertificate(path.display().to_string())),
        certificates => Ok(certificates),
    }
}

/// What a failed handshake means to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    UnknownCa,
    WrongName,
    /// Expired, or not valid yet.
    Expired,
    Other,
}

/// What kind of TLS trouble an error is, if it is any, and rustls's own words for it.
pub fn trouble(error: &(dyn std::error::Error + 'static)) -> Option<(Trouble, String)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some((kind_of(tls), tls.to_string()));
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as _).or_else(|| error.source());
    }
    None
}

fn kind_of(error: &rustls::Error) -> Trouble {
    use rustls::CertificateError as Bad;
    match error {
        rustls::Error::InvalidCertificate(bad) => match bad {
            Bad::UnknownIssuer | Bad::BadSignature => Trouble::UnknownCa,
            Bad::NotValidForName | Bad::NotValidForNameContext { .. } => Trouble::WrongName,
            Bad::Expired | Bad::ExpiredContext { .. } | Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
                Trouble::Expired
            }
            _ => Trouble::Other,
        },
        _ => Trouble::Other,
    }
}
