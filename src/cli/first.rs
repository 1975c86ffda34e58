//! `keswarden key create --first`: creates a tenant's first key, for a Job or a person. Pods in production
//! never create keys.

use super::{SetUp, block_on, code_of, with_settings};
use crate::{app, exit, gate::Create};
use std::path::PathBuf;

/// Creates each key in turn, or the default key when no name is given.
pub(super) fn main(names: Vec<String>, config: Option<PathBuf>, no_drives: bool) -> u8 {
    let names = if names.is_empty() { vec![None] } else { names.into_iter().map(Some).collect() };
    let codes = names.into_iter().map(|key| one(SetUp { config: config.clone(), key }, no_drives));
    exit::worst(codes.collect::<Vec<_>>())
}

fn one(set_up: SetUp, no_drives: bool) -> u8 {
    with_settings(set_up, |mut settings| {
        settings.create = if no_drives { Create::FirstWhateverDrives } else { Create::First };
        let name = settings.key.clone();
        match block_on(app::create_first(settings)) {
            Ok(fingerprint) => {
                println!("{name} {fingerprint}");
                exit::DONE
            }
            Err(stopped) => code_of(Err(stopped)),
        }
    })
}
