//! `keswarden key rescue`: the last copy of a key may be in the running agent's memory; this puts it back into the store.

use crate::{control, exit};
use clap::Args;
use std::{
    io::{self, BufRead, IsTerminal, Read, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
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
}

const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn main(options: Options) -> u8 {
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

fn rescue(options: &Options) -> io::Result<u8> {
    let keys = ask(options, "keys")?;
    let Some(name) = &options.name else {
        println!("{}", keys.replace("; ", "\n"));
        return Ok(exit::DONE);
    };
    if !options.yes && !is_confirmed(name, &keys)? {
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
    let mut stream = UnixStream::connect(control::socket(&options.run_dir))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{request}")?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply)?;
    Ok(reply.trim_end().to_owned())
}

fn is_confirmed(name: &str, keys: &str) -> io::Result<bool> {
    if !io::stdin().is_terminal() {
        eprintln!("keswarden: this writes into the key store: say --yes");
        return Ok(false);
    }
    let told = keys.split("; ").find(|key| key.split(' ').next() == Some(name)).unwrap_or("not at hand");
    eprint!("The agent holds: {told}\nWrite it back into the key store, if nothing is there? [y/N] ");
    io::stderr().flush()?;
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}
