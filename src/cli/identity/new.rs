//! `keswarden identity new`: an Ed25519 key as an API key, and as a private key and a certificate file.

use crate::{
    cli::{
        client,
        output::{self, Failure, Outcome},
    },
    clock::{self, Clock},
    files,
    identity::ApiKey,
    tls::{mint, pem_password},
};
use clap::Args;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::{net::IpAddr, path::PathBuf, time::Duration};
use time::OffsetDateTime;
use zeroize::Zeroizing;

#[derive(Args)]
pub(super) struct Options {
    /// Common name of the certificate; the identity when absent
    subject: Option<String>,
    /// Write the private key to this file
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Write the certificate to this file
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// An address that the certificate is for
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    ip: Vec<IpAddr>,
    /// A domain name that the certificate is for
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    dns: Vec<String>,
    /// How long the certificate is valid
    #[arg(long, value_name = "DURATION", default_value = "720h", value_parser = output::go_duration)]
    expiry: Duration,
    /// Put the private key under a password, which is asked for
    #[arg(long, requires = "key")]
    encrypt: bool,
    /// Overwrite files that are there
    #[arg(short, long)]
    force: bool,
}

pub(super) fn run(options: Options) -> Outcome {
    let key = ApiKey::generate();
    if let (Some(key_file), Some(certificate_file)) = (&options.key, &options.cert) {
        if key_file == certificate_file {
            return Err("the private key and the certificate need a file each".into());
        }
        for file in [key_file, certificate_file] {
            if !options.force && file.exists() {
                let file = file.display();
                return Err(Failure::Because(format!(
                    "{file} is there already: use --force to overwrite it"
                )));
            }
        }
        let certificate = certificate(&key, &options)?;
        let private = private_key(&key, options.encrypt)?;
        files::write(key_file, 0o600, private.as_bytes()).map_err(|error| error.to_string())?;
        files::write(certificate_file, 0o644, certificate.as_bytes()).map_err(|error| error.to_string())?;
    }
    super::print_with_identity(&key)?;
    match (&options.key, &options.cert) {
        (Some(key), Some(certificate)) => output::print(&format!(
            "\nThe private key is in {}, the certificate in {}.\n",
            key.display(),
            certificate.display()
        )),
        _ => Ok(()),
    }
}

/// The self-signed certificate of a key, for a client and for a server, as PEM.
fn certificate(key: &ApiKey, options: &Options) -> Result<String, Failure> {
    let names: Vec<String> = options.ip.iter().map(IpAddr::to_string).chain(options.dns.clone()).collect();
    if let Some(name) = names.iter().find(|name| !mint::is_name(name.strip_prefix("*.").unwrap_or(name))) {
        return Err(Failure::Because(format!("'{name}' is no domain name")));
    }
    let unusable = |error: rcgen::Error| format!("the certificate cannot be made: {error}");
    let mut params = CertificateParams::new(names).map_err(unusable)?;
    let subject = options.subject.clone().unwrap_or_else(|| key.identity().to_string());
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, subject);
    (params.not_before, params.not_after) = validity(options.expiry)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    let pair = KeyPair::from_pkcs8_der_and_sign_algo(
        &PrivatePkcs8KeyDer::from(pkcs8(key).to_vec()),
        &rcgen::PKCS_ED25519,
    );
    let certificate = params.self_signed(&pair.map_err(unusable)?).map_err(unusable)?;
    Ok(certificate.pem())
}

fn validity(expiry: Duration) -> Result<(OffsetDateTime, OffsetDateTime), Failure> {
    let now = clock::unix(Clock::system().wall()) as i64;
    let end = now.saturating_add(i64::try_from(expiry.as_secs()).unwrap_or(i64::MAX));
    let at = |seconds| {
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| "the expiry is too far away".to_owned())
    };
    Ok((at(now)?, at(end)?))
}

/// The private key as PEM, encrypted under a password when `encrypt` is set.
fn private_key(key: &ApiKey, encrypt: bool) -> Result<Zeroizing<String>, Failure> {
    let der = pkcs8(key);
    if !encrypt {
        let block = pem::Pem::new("PRIVATE KEY", der.to_vec());
        let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        return Ok(Zeroizing::new(pem::encode_config(&block, lines)));
    }
    let password = client::ask("Enter password for private key: ")?;
    if password.is_empty() {
        return Err("an empty password protects nothing".into());
    }
    if client::ask("Confirm password for private key: ")? != password {
        return Err("the passwords differ".into());
    }
    Ok(Zeroizing::new(pem_password::encrypt(&der, &password)))
}

fn pkcs8(key: &ApiKey) -> Zeroizing<Vec<u8>> {
    let (_, private) = key.certificate(clock::unix(Clock::system().wall()) as i64);
    Zeroizing::new(private.secret_der().to_vec())
}
