//! `keswarden key forget`: has every witness forget a former key that was replaced on purpose, so that the
//! new key passes.

use super::{SetUp, block_on, code_of, with_settings};
use crate::{app, exit};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct Options {
    /// The key
    name: String,
    /// The fingerprint that is remembered, and is to be forgotten
    #[arg(long, value_name = "HEX")]
    was: String,
    /// The fingerprint of the key that is stored now; without it, none may be stored
    #[arg(long, value_name = "HEX")]
    is: Option<String>,
    /// Do it: what the former key sealed opens with nothing else
    #[arg(long)]
    yes: bool,
    /// KES's own configuration file: the key store of it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn main(Options { name, was, is, yes, config }: Options) -> u8 {
    if !yes {
        eprintln!(
            "keswarden: from then on another key passes as '{name}', and data that the key {was} sealed open with no other key: say --yes"
        );
        return exit::SETTINGS;
    }
    with_settings(SetUp { config, key: Some(name) }, |settings| {
        let places = match block_on(app::forget(settings, &was, is.as_deref())) {
            Ok(places) => places,
            Err(stopped) => return code_of(Err(stopped)),
        };
        let mut code = exit::DONE;
        for (place, result) in places {
            match result {
                Ok(()) => println!("{place}: forgotten, or never known"),
                Err(finding) => {
                    println!("{place}: NOT FORGOTTEN: {}; fix: {}", finding.seen, finding.fix);
                    code = exit::worst([code, finding.cause.exit_code()]);
                }
            }
        }
        eprintln!(
            "keswarden: each pod and host remembers by itself: run this in each; restart an agent that still holds the former key"
        );
        code
    })
}
