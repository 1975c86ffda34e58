//! `keswarden key rescue`: puts a key that the running agent or the sealed copy has back into a key store
//! that has lost the key.

use super::{SetUp, block_on, code_of, with_settings};
use crate::{app, control, exit};
use clap::Args;
use std::{
    io::{self, BufRead, IsTerminal, Write},
    path::PathBuf,
};

#[derive(Args)]
pub(super) struct Options {
    /// The key; without it, what the agent holds is told
    name: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// The run directory of the agent
    #[arg(long, value_name = "DIR", env = "KESWARDEN_RUN_DIR", default_value = "/run/keswarden")]
    run_dir: PathBuf,
    /// Take the key from the sealed copy of the settings, not from an agent
    #[arg(long, requires = "name")]
    from_copy: bool,
    /// With --from-copy: which key of the name, when the copy has several
    #[arg(long, value_name = "HEX", requires = "from_copy")]
    fingerprint: Option<String>,
    /// With --from-copy: KES's own configuration file, the key store of it
    #[arg(long, value_name = "FILE", requires = "from_copy")]
    config: Option<PathBuf>,
}

pub(super) fn main(options: Options) -> u8 {
    if options.from_copy {
        return from_copy(options);
    }
    match rescue(&options) {
        Ok(code) => code,
        Err(error) => {
            let socket = control::socket(&options.run_dir);
            eprintln!(
                "keswarden: no agent answers at {}: {error}; run this as the agent's user, on its host or in its container",
                socket.display()
            );
            exit::UNAVAILABLE
        }
    }
}

fn from_copy(Options { name, yes, fingerprint, config, .. }: Options) -> u8 {
    let question = "Write the key of the sealed copy into the key store, if nothing is there?";
    if !yes && !is_confirmed(question).unwrap_or_default() {
        eprintln!("keswarden: nothing was done");
        return exit::SETTINGS;
    }
    with_settings(SetUp { config, key: name }, |settings| {
        match block_on(app::rescue_from_copy(settings, fingerprint.as_deref())) {
            Ok(said) => {
                println!("{said}");
                exit::DONE
            }
            Err(stopped) => code_of(Err(stopped)),
        }
    })
}

fn rescue(options: &Options) -> io::Result<u8> {
    let keys = ask(options, "keys")?;
    let Some(name) = &options.name else {
        println!("{}", keys.replace("; ", "\n"));
        return Ok(exit::DONE);
    };
    let held = keys.split("; ").find(|key| key.split(' ').next() == Some(name)).unwrap_or("not at hand");
    let question = format!("The agent holds: {held}\nWrite it back into the key store, if nothing is there?");
    if !options.yes && !is_confirmed(&question)? {
        eprintln!("keswarden: nothing was done");
        return Ok(exit::SETTINGS);
    }
    let reply = ask(options, &format!("rescue {name}"))?;
    match reply.strip_prefix("ok: ") {
        Some(said) => {
            println!("{said}");
            Ok(exit::DONE)
        }
        None => {
            eprintln!("keswarden: {}", reply.strip_prefix("error: ").unwrap_or(&reply));
            Ok(exit::UNAVAILABLE)
        }
    }
}

fn ask(options: &Options, request: &str) -> io::Result<String> {
    block_on(control::ask(&options.run_dir, request))
}

fn is_confirmed(question: &str) -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        eprintln!("keswarden: this writes into the key store: say --yes");
        return Ok(false);
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
