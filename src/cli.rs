//! The command line: arguments in, an exit code out.

mod backup;
mod client;
mod completion;
mod dev;
mod doctor;
mod evidence;
mod first;
mod forget;
mod health;
mod identity;
mod key;
mod log;
mod ls;
mod metric;
mod migrate;
mod output;
mod pin;
mod policy;
mod rescue;
mod server;
mod status;

use crate::{
    app::{self, Deps, Stopped},
    clock::Clock,
    config::{self, Inputs, Settings},
    exit,
    health::{Health, History},
    memory,
    shutdown::{Hangups, Signals},
    telemetry, version,
};
use clap::{Args, Parser, Subcommand, error::ErrorKind};
use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
};

#[derive(Parser)]
#[command(name = "keswarden", version, about, after_help = after_help(), disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Wait until the key store is unsealed and the default key is there and works; exit 0 when MinIO may
    /// start
    Init(SetUp),
    /// Wait as init does, then serve the KES API, verify keys, look after bucket defaults, export metrics
    Run(SetUp),
    /// KES's own server, from its own configuration file
    Server(server::Options),
    /// Try it out: keys in a local directory, everything else made on the spot
    Dev(dev::Options),
    /// Every check once, as a table: what is wrong, and what to do about it
    Doctor(doctor::Options),
    /// Which keys the drives of a MinIO name, and whether the keys at hand open what they sealed
    Evidence(evidence::Options),
    /// Ask the running agent whether it is ready: exit 0 or 1
    Health(health::Options),
    /// Keys of a server, and new keys by hand
    Key(key::Options),
    /// API keys and identities
    Identity(identity::Options),
    /// Policies of a server
    Policy(policy::Options),
    /// List keys, identities or policies of a server
    Ls(ls::Options),
    /// Follow the audit or error log of a server
    Log(log::Options),
    /// Show what a server says of itself
    Status(status::Options),
    /// Follow the metrics of a server
    Metric(metric::Options),
    /// Copy keys from one key store to another
    Migrate(migrate::Options),
    /// Print what a shell needs to complete our commands
    Completion(completion::Options),
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

/// The commands of KES's own command line, which end with KES's exit codes.
const KES_COMMANDS: &[&str] =
    &["server", "key", "identity", "policy", "ls", "log", "status", "metric", "migrate", "completion"];

/// Runs a command line, the program's name first, and returns the exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let of_kes =
        arguments.get(1).and_then(|first| first.to_str()).is_some_and(|first| KES_COMMANDS.contains(&first));
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) if of_kes => return misused(&error),
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
        Command::Evidence(options) => evidence::main(options),
        Command::Health(options) => health::main(options),
        Command::Key(options) => key::main(options),
        Command::Identity(options) => identity::main(options),
        Command::Policy(options) => policy::main(options),
        Command::Ls(options) => ls::main(options),
        Command::Log(options) => log::main(options),
        Command::Status(options) => status::main(options),
        Command::Metric(options) => metric::main(options),
        Command::Migrate(options) => migrate::main(options),
        Command::Completion(options) => completion::main(options),
        Command::Version => {
            println!("keswarden {} ({})", version::VERSION, version::COMMIT);
            exit::DONE
        }
    }
}

/// Answers a wrong command line as KES does: usage and errors go to stderr.
fn misused(error: &clap::Error) -> u8 {
    let text = without_api_keys(&error.render().to_string());
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand => {
            output::say(&text);
            output::USAGE
        }
        _ => {
            let reason = text.strip_prefix("error: ").unwrap_or(&text).trim_end();
            output::code_of(Err(output::Failure::Because(reason.to_owned())))
        }
    }
}

/// The text with each API key cut out: an API key in the wrong place must not be printed.
fn without_api_keys(text: &str) -> String {
    let is_base64 = |character: char| character.is_ascii_alphanumeric() || "+/=".contains(character);
    let mut parts = text.split("kes:v1:");
    let mut shown = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        shown.push_str("kes:v1:…");
        shown.push_str(part.trim_start_matches(is_base64));
    }
    shown
}

fn with_settings(set_up: SetUp, run: impl FnOnce(Settings) -> u8) -> u8 {
    match load(Inputs::of_process(set_up.config, set_up.key)) {
        Ok(settings) => run(settings),
        Err(code) => code,
    }
}

/// Loads the settings and starts logging. On failure every problem is printed; the error is the exit code.
fn load(inputs: Inputs) -> Result<Settings, u8> {
    loaded(config::load(inputs))
}

/// The same for commands that concern every key.
fn load_without_key(inputs: Inputs) -> Result<Settings, u8> {
    loaded(config::load_without_key(inputs))
}

fn loaded(settings: Result<Settings, config::Problems>) -> Result<Settings, u8> {
    match settings {
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

/// Runs the work on a runtime of one thread, since the work is little and a sidecar's memory is dear.
fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("the operating system must give a runtime");
    let done = runtime.block_on(work);
    // Without waiting for blocking threads: a disk that hangs must not delay the exit.
    runtime.shutdown_background();
    done
}

async fn init(settings: Settings) -> u8 {
    let log = settings.termination_log.clone();
    memory::protect();
    let mut signals = match Signals::listen() {
        Ok(signals) => signals,
        Err(error) => return cannot_listen(&error),
    };
    let health = Health::new(Clock::system());
    let history = health.looking_back();
    tokio::select! {
        result = app::init(settings, Deps::default(), health) => code_of(with_termination_log(result, &log)),
        signal = signals.next() => {
            log_interrupted_wait(signal, &history, &log);
            exit::UNAVAILABLE
        }
    }
}

/// Logs the signal that interrupted the gate, and the cause of the wait; also to the termination log.
fn log_interrupted_wait(signal: &str, history: &History, log: &Path) {
    let why = history.why_it_waits().map(|why| format!(": {why}"));
    let says = format!("{signal}: the gate did not pass{}", why.unwrap_or_default());
    tracing::warn!("{says}");
    write_termination_log(&says, log);
}

async fn run(settings: Settings, bound: impl FnOnce(&app::Bound)) -> u8 {
    let log = settings.termination_log.clone();
    serve(|| app::build(settings, Deps::default()), bound, Some(log)).await
}

/// The result, with an error written to the termination log.
fn with_termination_log(result: Result<(), Stopped>, log: &Path) -> Result<(), Stopped> {
    if let Err(stopped) = &result {
        write_termination_log(stopped, log);
    }
    result
}

/// Writes the file that Kubernetes shows as the container's termination message, where the file exists.
fn write_termination_log(words: &impl std::fmt::Display, log: &Path) {
    if let Ok(mut file) = std::fs::OpenOptions::new().write(true).truncate(true).open(log) {
        let _ = writeln!(file, "{words}");
    }
}

/// Serves until a signal, then drains; a second signal ends the process at once. `bound` gets the addresses
/// once they are bound.
async fn serve(
    build: impl FnOnce() -> Result<app::Bound, Stopped>,
    bound: impl FnOnce(&app::Bound),
    termination_log: Option<PathBuf>,
) -> u8 {
    let logged = |result| match &termination_log {
        Some(log) => with_termination_log(result, log),
        None => result,
    };
    // A SIGHUP ends no process from here on: a `server` reads its file again, and a login that Vault refused may be tried again.
    let listening = Signals::listen().and_then(|signals| Ok((signals, Hangups::listen()?)));
    let (mut signals, _hangups) = match listening {
        Ok(listening) => listening,
        Err(error) => return cannot_listen(&error),
    };
    memory::protect().say();
    let app = match build() {
        Ok(app) => app,
        Err(stopped) => return code_of(logged(Err(stopped))),
    };
    bound(&app);
    let (trigger, history) = (app.trigger.clone(), app.history());
    let log = termination_log.clone();
    let aborted = async {
        let first = signals.next().await;
        if let (Some(log), Some(_)) = (&log, history.why_it_waits()) {
            log_interrupted_wait(first, &history, log);
        }
        tracing::info!("{first}: draining; a second signal ends it at once");
        trigger.drain();
        signals.next().await
    };
    tokio::select! {
        result = app.run() => {
            if result.is_ok() {
                tracing::info!("drained");
            }
            code_of(logged(result))
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
        "Settings are environment variables, all named KESWARDEN_…: see docs/reference/settings.md.\n\nExit codes:\n{}",
        rows.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn api_keys_in_a_wrong_place_are_not_repeated() {
        let text = without_api_keys("unexpected argument 'kes:v1:AB+/c=' found");
        assert_eq!(text, "unexpected argument 'kes:v1:…' found");
    }

    #[test]
    fn kes_commands_end_as_kess_do() {
        let code = |line: &str| main(line.split(' ').map(OsString::from));
        for line in ["keswarden key", "keswarden key --help", "keswarden policy", "keswarden identity -h"] {
            assert_eq!(code(line), output::USAGE, "{line}");
        }
        for line in [
            "keswarden key create",
            "keswarden key what",
            "keswarden ls --no-such-flag",
            "keswarden log --audit --error",
        ] {
            assert_eq!(code(line), output::FAILED, "{line}");
        }
        assert_eq!(code("keswarden health --no-such-flag"), exit::SETTINGS);
    }
}
