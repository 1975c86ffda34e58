//! The command line: arguments in, an exit code out.

mod dev;
mod doctor;
mod health;
mod identity;
mod key;
mod server;

use crate::{
    app::{self, Deps, Stopped},
    config::{self, Inputs, Settings},
    exit,
    shutdown::{Hangups, Signals},
    telemetry, version,
};
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "keswarden", version, about, after_help = after_help(), disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Wait until the key store is unsealed and the default key is there and works; exit 0 when MinIO may start
    Init(SetUp),
    /// Wait as init does, then serve the KES API, verify keys, look after bucket defaults, export metrics
    Run(SetUp),
    /// KES's own server, from its own configuration file
    Server(server::Options),
    /// Try it out: keys in a local directory, everything else made on the spot
    Dev(dev::Options),
    /// Every check once, as a table: what is wrong, and what to do about it
    Doctor(doctor::Options),
    /// Ask the running agent whether it is ready: exit 0 or 1
    Health(health::Options),
    /// Keys by hand
    Key(key::Options),
    /// API keys and identities
    Identity(identity::Options),
    /// What this build is called
    Version,
}

/// The set-up of `init`, `run` and `doctor`; everything else comes from the environment.
#[derive(Args, Clone)]
struct SetUp {
    /// KES's own configuration file: the key store and the policies of it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Name of the default key
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

/// Runs a command line.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { exit::SETTINGS } else { exit::DONE };
        }
    };
    match cli.command {
        Command::Init(set_up) => with_settings(set_up, |settings| block_on(init(settings))),
        Command::Run(set_up) => with_settings(set_up, |settings| block_on(run(settings, |_| {}))),
        Command::Server(options) => server::main(options),
        Command::Dev(options) => dev::main(options),
        Command::Doctor(options) => doctor::main(options),
        Command::Health(options) => health::main(options),
        Command::Key(options) => key::main(options),
        Command::Identity(options) => identity::main(options),
        Command::Version => {
            println!("keswarden {} ({})", version::VERSION, version::COMMIT);
            exit::DONE
        }
    }
}

fn with_settings(set_up: SetUp, run: impl FnOnce(Settings) -> u8) -> u8 {
    match load(Inputs::of_process(set_up.config, set_up.key)) {
        Ok(settings) => run(settings),
        Err(code) => code,
    }
}

/// The settings, with logging as they say; or every problem printed.
fn load(inputs: Inputs) -> Result<Settings, u8> {
    match config::load(inputs) {
        Ok(settings) => {
            telemetry::init(settings.log_format, settings.log);
            for warning in &settings.warnings {
                tracing::warn!("{warning}");
            }
            Ok(settings)
        }
        Err(problems) => {
            eprintln!("keswarden: {problems}");
            Err(exit::SETTINGS)
        }
    }
}

/// Runs on one thread: what is done here is little, and memory is dear in a sidecar.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the operating system must give a runtime").block_on(work)
}

async fn init(settings: Settings) -> u8 {
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return cannot_listen(&error),
    };
    tokio::select! {
        result = app::init(settings, Deps::default()) => code_of(result),
        signal = signals.next() => {
            tracing::warn!("{signal}: the gate did not pass");
            exit::UNAVAILABLE
        }
    }
}

async fn run(settings: Settings, bound: impl FnOnce(&app::Bound)) -> u8 {
    serve(|| app::build(settings, Deps::default()), bound).await
}

/// Serves until a signal; a second one ends it at once. `bound` hears where.
async fn serve(build: impl FnOnce() -> Result<app::Bound, Stopped>, bound: impl FnOnce(&app::Bound)) -> u8 {
    // From here on a SIGHUP is a wish to read files again, and no reason to die.
    let listening = Signals::listen().and_then(|signals| Ok((signals, Hangups::listen()?)));
    let (mut signals, _hangups) = match listening {
        Ok(listening) => listening,
        Err(error) => return cannot_listen(&error),
    };
    let app = match build() {
        Ok(app) => app,
        Err(stopped) => return code_of(Err(stopped)),
    };
    bound(&app);
    let trigger = app.trigger.clone();
    let aborted = async {
        let first = signals.next().await;
        tracing::info!("{first}: draining; a second signal ends it at once");
        trigger.drain();
        signals.next().await
    };
    tokio::select! {
        result = app.run() => {
            if result.is_ok() {
                tracing::info!("drained");
            }
            code_of(result)
        }
        signal = aborted => {
            tracing::warn!("{signal}: ended at once");
            exit::DONE
        }
    }
}

fn code_of(result: Result<(), Stopped>) -> u8 {
    match result {
        Ok(()) => exit::DONE,
        Err(stopped) => {
            tracing::error!("{stopped}");
            stopped.exit_code()
        }
    }
}

fn cannot_listen(error: &std::io::Error) -> u8 {
    tracing::error!("cannot listen for signals: {error}");
    exit::OS
}

fn after_help() -> String {
    let rows: Vec<_> = exit::TABLE.iter().map(|row| format!("  {:>2}  {}", row.code, row.meaning)).collect();
    format!(
        "Settings are environment variables, all named KESWARDEN_…: see README.md.\n\nExit codes:\n{}",
        rows.join("\n")
    )
}
