//! `keswarden key pin`: pins the stored key, at the word of a person who knows that the key is the right one.

use super::{SetUp, block_on, code_of, with_settings};
use crate::{app, exit};
use clap::Args;

#[derive(Args)]
pub(super) struct Options {
    /// The key; without it, the default key
    name: Option<String>,
    /// KES's own configuration file: the key store
    #[arg(long, value_name = "FILE")]
    config: Option<std::path::PathBuf>,
}

pub(super) fn main(options: Options) -> u8 {
    let set_up = SetUp { config: options.config, key: options.name };
    with_settings(set_up, |settings| {
        let name = settings.key.clone();
        match block_on(app::pin(settings)) {
            Ok(fingerprint) => {
                println!("{name} {fingerprint}");
                exit::DONE
            }
            Err(stopped) => code_of(Err(stopped)),
        }
    })
}
