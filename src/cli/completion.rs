//! `keswarden completion`: the script with which a shell completes commands and flags.

use super::{Cli, output};
use clap::{Args, CommandFactory, ValueEnum};

#[derive(Args)]
pub(super) struct Options {
    shell: Shell,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

pub(super) fn main(options: Options) -> u8 {
    let shell = match options.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    // The script goes through a buffer, since the generator panics on a broken pipe.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keswarden", &mut script);
    output::code_of(output::print(&String::from_utf8_lossy(&script)))
}
