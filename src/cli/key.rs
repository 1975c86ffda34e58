//! `keswarden key`: keys by hand.

use crate::{
    clock::Clock,
    crypto::{Kind, key_version::KeyVersion},
    exit,
    names::Name,
};
use clap::{Args, Subcommand};
use std::io::{IsTerminal, Write};

#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print a whole new key, HMAC key included, in the form in which KES and keswarden store it
    New {
        /// Say how to store it under this name
        name: Option<String>,
    },
}

pub(super) fn main(options: Options) -> u8 {
    match options.command {
        Command::New { name } => new(name),
    }
}

fn new(name: Option<String>) -> u8 {
    let name = match name.as_deref().map(Name::parse).transpose() {
        Ok(name) => name,
        Err(error) => {
            eprintln!("keswarden: the key name {error}");
            return exit::SETTINGS;
        }
    };
    let now = jiff::Timestamp::try_from(Clock::system().wall()).unwrap_or_default();
    let key = KeyVersion::generate(Kind::of_this_machine(), now, String::new());
    let text = key.to_text();
    if let Some(name) = name {
        eprintln!("store it once, in the field '{name}' of the secret [PREFIX/]{name}, and keep a backup:");
        eprintln!("  … | bao kv put -cas=0 -mount=kv [PREFIX/]{name} {name}=-");
        eprintln!("what it seals opens with nothing else; its fingerprint is {}", key.key.fingerprint());
    }
    let mut out = std::io::stdout().lock();
    // `bao kv put NAME=-` stores what it reads: no line end unless a person reads it.
    let end = if out.is_terminal() { "\n" } else { "" };
    match write!(out, "{}{end}", text.expose()).and_then(|()| out.flush()) {
        Ok(()) => exit::DONE,
        Err(error) => {
            eprintln!("keswarden: cannot print the key: {error}");
            exit::OS
        }
    }
}
