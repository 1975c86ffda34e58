//! TLS: the one crypto provider, server and client configurations, trust, and what a failure means.

pub mod mint;
pub mod pem_password;
pub mod server;
pub mod trust;

use crate::cause::{Cause, Finding};
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

// === impl Error ===

impl Error {
    /// What it means for a file of the run directory: what is deleted there is made anew.
    pub fn of_run_dir(&self) -> Finding {
        let finding = Cause::RunDirUnusable.seen(self.to_string());
        match self {
            Self::Read { path, .. } | Self::NoCertificate(path) => {
                finding.fix(format!("make {path} readable for this process, or delete it: it is made anew"))
            }
            Self::Unusable(_) => {
                finding.fix("delete server.crt and server.key in KESWARDEN_RUN_DIR: they are made anew")
            }
            Self::Write { .. } => finding,
        }
    }
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

/// From when to when a certificate counts, in seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub begins: i64,
    pub ends: i64,
}

/// A certificate that ends within so long is told of, unless it lives so shortly that this is as it should be.
const AHEAD: f64 = 7.0 * 86_400.0;

// === impl Validity ===

impl Validity {
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        use x509_parser::prelude::{FromDer, X509Certificate};
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let validity = parsed.validity();
        Some(Self { begins: validity.not_before.timestamp(), ends: validity.not_after.timestamp() })
    }

    /// When it ends, in words; a finding when that is soon, or was before `now`. Who renews certificates does so with a third of
    /// their life left, so a quarter is soon, and a week at the most.
    pub fn look_ahead(self, what: &str, now: f64) -> Result<String, Finding> {
        let ends = jiff::Timestamp::from_second(self.ends)
            .map_or_else(|_| self.ends.to_string(), |at| at.to_string());
        let soon = AHEAD.min((self.ends - self.begins) as f64 / 4.0);
        match self.ends as f64 - now {
            left if left <= 0.0 => {
                Err(Cause::CertificateExpiring.seen(format!("{what} has ended at {ends}")))
            }
            left if left < soon => Err(Cause::CertificateExpiring.seen(format!("{what} ends at {ends}"))),
            _ => Ok(format!("{what} ends at {ends}")),
        }
    }
}

/// What a failed handshake means to a person.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    UnknownCa,
    WrongName,
    /// Expired, or not valid yet.
    Expired,
    /// What listens there speaks something else.
    NoTls,
    /// The peer does not take our certificate, or misses one.
    OurCertificate,
    Other,
}

/// What kind of TLS trouble an error is, if it is any, and rustls's own words for it.
pub fn trouble(error: &(dyn std::error::Error + 'static)) -> Option<(Trouble, String)> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(tls) = error.downcast_ref::<rustls::Error>() {
            return Some((kind_of(tls), dates(tls).unwrap_or_else(|| tls.to_string())));
        }
        let inner = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inner.map(|inner| inner as _).or_else(|| error.source());
    }
    None
}

/// What went wrong, in the words closest to it.
pub fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    // Where rustls's manual explains it is of no use to who reads a log at night.
    let words = last.to_string();
    words.split(": https://docs.rs/").next().unwrap_or(&words).to_owned()
}

/// A certificate's dates and this machine's, as people read them: rustls tells seconds since 1970.
fn dates(error: &rustls::Error) -> Option<String> {
    use rustls::CertificateError as Bad;
    let at = |time: &rustls::pki_types::UnixTime| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).map_or_else(|_| seconds.to_string(), |at| at.to_string())
    };
    let hour = |time: &rustls::pki_types::UnixTime| at(time).chars().take(13).collect::<String>() + "h UTC";
    match error {
        // The clock is told to the hour: what is seen must not change each second.
        rustls::Error::InvalidCertificate(Bad::ExpiredContext { time, not_after }) => Some(format!(
            "certificate expired: it ended at {}, and this machine's clock says {}",
            at(not_after),
            hour(time)
        )),
        rustls::Error::InvalidCertificate(Bad::NotValidYetContext { time, not_before }) => Some(format!(
            "certificate not valid yet: it begins at {}, and this machine's clock says {}",
            at(not_before),
            hour(time)
        )),
        _ => None,
    }
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
            // As a plain `openssl req -x509` makes them: a CA that nobody has listed.
            Bad::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => Trouble::UnknownCa,
            _ => Trouble::Other,
        },
        rustls::Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType) => Trouble::NoTls,
        rustls::Error::AlertReceived(alert) => {
            use rustls::AlertDescription as Alert;
            match alert {
                Alert::UnknownCA
                | Alert::BadCertificate
                | Alert::UnsupportedCertificate
                | Alert::CertificateRevoked
                | Alert::CertificateExpired
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::AccessDenied => Trouble::OurCertificate,
                _ => Trouble::Other,
            }
        }
        _ => Trouble::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_told_of_ahead_and_one_that_lives_shortly_is_not_told_of_for_ever() {
        const DAY: i64 = 86_400;
        let left = |lives: i64, left: f64| {
            let validity = Validity { begins: 0, ends: lives * DAY };
            validity.look_ahead("it", lives as f64 * DAY as f64 - left * DAY as f64).is_ok()
        };
        assert_eq!([8.0, 6.9, -1.0].map(|days| left(90, days)), [true, false, false]);
        assert_eq!([0.3, 0.2].map(|days| left(1, days)), [true, false]);
    }
}
