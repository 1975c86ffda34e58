//! `keswarden identity`: API keys, and the identities that KES knows clients by.

use crate::{
    exit,
    identity::{ApiKey, Certificate, Identity},
    tls,
};
use clap::{Args, Subcommand};
use std::path::Path;

#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a new API key on stdout, and its identity on stderr
    New,
    /// Print the identity of an API key, or of a PEM certificate file
    Of {
        /// An API key, or the path of a certificate file
        key_or_file: String,
    },
}

pub(super) fn main(options: Options) -> u8 {
    match options.command {
        Command::New => {
            let key = ApiKey::generate();
            println!("{}", key.to_text().expose());
            eprintln!("identity: {}", key.identity());
            exit::DONE
        }
        Command::Of { key_or_file } => match identity_of(&key_or_file) {
            Ok(identity) => {
                println!("{identity}");
                exit::DONE
            }
            Err(reason) => {
                eprintln!("keswarden: {reason}");
                exit::SETTINGS
            }
        },
    }
}

fn identity_of(key_or_file: &str) -> Result<Identity, String> {
    if let Ok(key) = ApiKey::parse(key_or_file) {
        return Ok(key.identity());
    }
    if key_or_file.starts_with("kes:") {
        return Err("the argument is no API key".to_owned());
    }
    let chain = tls::read_certificates(Path::new(key_or_file)).map_err(|error| error.to_string())?;
    let certificate = Certificate::parse(&chain[0]).map_err(|error| error.to_string())?;
    Ok(certificate.identity)
}
