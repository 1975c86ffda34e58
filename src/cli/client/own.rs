//! The client's own identity towards a server: an API key, or a certificate and its key.

use super::first_set;
use crate::{
    cli::output::Failure,
    clock::{self, Clock},
    identity::ApiKey,
    secret::Secret,
    tls::{self, Pair, pem_password},
};
use rustls::pki_types::PrivateKeyDer;
use std::path::Path;
use zeroize::Zeroizing;

const API_KEY: &[&str] = &["MINIO_KES_API_KEY", "KES_API_KEY", "MINIO_KMS_KES_API_KEY"];
const KEY_FILE: &[&str] = &["MINIO_KES_KEY_FILE", "KES_CLIENT_KEY", "MINIO_KES_CLIENT_KEY"];
const CERT_FILE: &[&str] = &["MINIO_KES_CERT_FILE", "KES_CLIENT_CERT", "MINIO_KES_CLIENT_CERT"];

/// The client's certificate and key: of the given API key, or as the environment says.
pub(super) fn pair(given: Option<Secret>) -> Result<Pair, Failure> {
    if let Some(key) = given {
        return of_api_key(&key);
    }
    let api_key = first_set(API_KEY).map(Secret::new);
    match (api_key, first_set(KEY_FILE), first_set(CERT_FILE)) {
        (Some(key), None, None) => of_api_key(&key),
        (Some(_), ..) => {
            Err("both an API key and a key or certificate file are set: which one counts?".into())
        }
        (None, Some(key), Some(certificate)) => {
            let chain = tls::read_certificates(Path::new(&certificate)).map_err(|error| error.to_string())?;
            Ok(Pair { chain, key: private_key(Path::new(&key))? })
        }
        (None, None, None) => {
            Err("nothing says who you are: set KES_API_KEY, or KES_CLIENT_KEY and KES_CLIENT_CERT".into())
        }
        (None, Some(_), None) => Err("KES_CLIENT_KEY is set, but KES_CLIENT_CERT is not".into()),
        (None, None, Some(_)) => Err("KES_CLIENT_CERT is set, but KES_CLIENT_KEY is not".into()),
    }
}

fn of_api_key(text: &Secret) -> Result<Pair, Failure> {
    let key = ApiKey::parse(text.expose().trim()).map_err(|error| format!("the API key {error}"))?;
    let (certificate, key) = key.certificate(clock::unix(Clock::system().wall()) as i64);
    Ok(Pair { chain: vec![certificate], key })
}

/// The private key of a PEM file. Asks for the password when the key is encrypted.
pub(in crate::cli) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, Failure> {
    let text = std::fs::read_to_string(file)
        .map(Zeroizing::new)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let password = match pem_password::is_encrypted(&text) {
        true => ask("Enter password for private key: ")?,
        false => Zeroizing::default(),
    };
    pem_password::decrypt(&text, &password)
        .map_err(|reason| Failure::Because(format!("{}: {reason}", file.display())))
}

/// Asks for a password on the terminal.
pub(in crate::cli) fn ask(prompt: &str) -> Result<Zeroizing<String>, Failure> {
    rpassword::prompt_password(prompt)
        .map(Zeroizing::new)
        .map_err(|error| Failure::Because(format!("cannot ask for the password: {error}")))
}
