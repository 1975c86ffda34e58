//! `keswarden migrate`: copies keys from one key store to another, and proves each copy.
//!
//! A key is copied when the target's key opens what the source's key has sealed. A run that was cut short can
//! be repeated: a key that the target has already stays, and another key of the name is never overwritten
//! without `--force`.

use super::block_on;
use crate::{
    app::{Opened, open_store},
    config::{
        Inputs,
        kes_yaml::{self, Purpose},
    },
    crypto::key_version::KeyVersion,
    names::Name,
    secret::Secret,
    store::{Error, KeyStore},
    telemetry,
};
use clap::Args;
use std::{
    collections::BTreeMap,
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
};

#[derive(Args)]
pub(super) struct Options {
    /// The configuration file of the key store that has the keys
    #[arg(long, value_name = "FILE")]
    from: Option<PathBuf>,
    /// The configuration file of the key store that gets them
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
    /// Replace keys of the target that are other keys
    #[arg(short, long)]
    force: bool,
    /// Leave keys of the target that are other keys
    #[arg(long, conflicts_with = "force")]
    merge: bool,
    /// Prove for each key that the target opens what the source sealed
    #[arg(long, value_name = "BOOL", default_value_t = true, num_args = 0..=1, default_missing_value = "true", action = clap::ArgAction::Set)]
    verify: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Into MinIO KMS: not implemented
    #[arg(short, long, value_name = "HOST")]
    server: Option<String>,
    /// Into MinIO KMS: not implemented
    #[arg(short, long, value_name = "NAME")]
    enclave: Option<String>,
    /// Into MinIO KMS: not implemented
    #[arg(short, long, value_name = "KEY")]
    api_key: Option<String>,
    /// Which keys: `*`, `?` and `[…]` are wildcards
    #[arg(default_value = "*")]
    pattern: String,
}

/// The action for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Copy,
    /// The target has the same key.
    Done,
    Replace,
    /// The target has another key, which stays.
    Skip,
    /// The target has another key, and neither `--force` nor `--merge` is set.
    Conflict,
}

#[derive(Default)]
struct Tally {
    copied: usize,
    there: usize,
    skipped: usize,
    failed: usize,
}

/// The exit code of any failure, as in KES.
const FAILED: u8 = 1;

pub(super) fn main(options: Options) -> u8 {
    telemetry::init(telemetry::Format::Text, telemetry::Level::of_slog(4));
    match block_on(migrate(options)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error}");
            FAILED
        }
    }
}

async fn migrate(options: Options) -> Result<u8, String> {
    if options.server.is_some() || options.enclave.is_some() || options.api_key.is_some() {
        return Err(
            "keys are not migrated into MinIO KMS: --from and --to name two KES key stores".to_owned()
        );
    }
    let (Some(from), Some(to)) = (&options.from, &options.to) else {
        return Err("no key store specified: both --from and --to are needed".to_owned());
    };
    let pattern =
        glob::Pattern::new(&options.pattern).map_err(|error| format!("invalid pattern: {error}"))?;
    let (Opened { keys: source, .. }, Opened { keys: target, advice, .. }) =
        (open(from).await?, open(to).await?);
    if let Some(advice) = advice {
        for warning in advice.on_writing().await.map_err(|finding| finding.to_string())? {
            eprintln!("Warning: {}: {}; {}", target.describe(), warning.seen, warning.cause.meaning());
        }
    }
    let mut names: Vec<_> = source.list().await.map_err(|finding| finding.to_string())?;
    names.retain(|name| pattern.matches(name));
    names.sort_unstable();
    let mut tally = Tally::default();
    for (number, name) in names.iter().enumerate() {
        progress(&options, number, names.len(), name);
        let done = match Name::parse(name) {
            Ok(name) => Job { source: &*source, target: &*target, options: &options, name }.run().await,
            Err(error) => Err(format!("the name {error}")),
        };
        match done {
            Ok(plan) => tally.count(plan),
            Err(error) => {
                clear(&options);
                eprintln!("Error: {name}: {error}");
                tally.failed += 1;
            }
        }
    }
    clear(&options);
    Ok(tally.report(options.dry_run))
}

async fn open(path: &Path) -> Result<Opened, String> {
    let environment = Inputs::of_process(None, None).environment.into_iter();
    let environment: BTreeMap<_, _> = environment
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let file = kes_yaml::read(path, &environment, Purpose::KeyStore)
        .map_err(|problems| format!("{}: {}", path.display(), problems.join("; ")))?;
    let opened = open_store(&file.store).map_err(|finding| finding.to_string())?;
    let ready = opened.keys.ready().await;
    ready.map_err(|finding| format!("{}: {finding}", opened.keys.describe()))?;
    Ok(opened)
}

/// Shows the progress on a terminal.
fn progress(options: &Options, number: usize, all: usize, name: &str) {
    if !options.dry_run && std::io::stderr().is_terminal() {
        eprint!("\r\u{1b}[K{}/{all} {name}", number + 1);
        let _ = std::io::stderr().flush();
    }
}

fn clear(options: &Options) {
    if !options.dry_run && std::io::stderr().is_terminal() {
        eprint!("\r\u{1b}[K");
    }
}

/// The migration of one key.
struct Job<'a> {
    source: &'a dyn KeyStore,
    target: &'a dyn KeyStore,
    options: &'a Options,
    name: Name,
}

// === impl Job ===

impl Job<'_> {
    async fn run(&self) -> Result<Plan, String> {
        let text = self.source.get(&self.name).await.map_err(|error| words(self.source, &error))?;
        let key = match KeyVersion::parse(text.expose().as_bytes()) {
            Ok(key) => Some(key),
            Err(error) if self.options.verify => {
                return Err(format!("{} has something that is no key: {error}", self.source.describe()));
            }
            Err(_) => None,
        };
        let plan = self.plan(&text, key.as_ref()).await?;
        if self.options.dry_run {
            println!("{:<9} {}", plan.words(), self.name);
            return Ok(plan);
        }
        match plan {
            Plan::Copy => match self.target.create(&self.name, &text).await {
                Ok(()) => {}
                Err(Error::Exists) => {
                    return Err("the key was made at the target meanwhile: run again".to_owned());
                }
                Err(error) => return Err(words(self.target, &error)),
            },
            Plan::Replace => {
                self.target.replace(&self.name, &text).await.map_err(|error| words(self.target, &error))?;
            }
            Plan::Conflict => {
                return Err(format!(
                    "{} has another key of this name: --force replaces it, --merge leaves it",
                    self.target.describe()
                ));
            }
            Plan::Done | Plan::Skip => {}
        }
        if self.options.verify && plan != Plan::Skip {
            self.verify(key.as_ref()).await?;
        }
        Ok(plan)
    }

    async fn plan(&self, text: &Secret, key: Option<&KeyVersion>) -> Result<Plan, String> {
        let there = match self.target.get(&self.name).await {
            Ok(there) => there,
            Err(Error::Missing(_)) => return Ok(Plan::Copy),
            Err(error) => return Err(words(self.target, &error)),
        };
        let same = match (key, KeyVersion::parse(there.expose().as_bytes())) {
            (Some(key), Ok(other)) => key.key.same(&other.key),
            _ => text.same(&there),
        };
        Ok(match (same, self.options.force, self.options.merge) {
            (true, ..) => Plan::Done,
            (false, true, _) => Plan::Replace,
            (false, _, true) => Plan::Skip,
            (false, false, false) => Plan::Conflict,
        })
    }

    /// Proves that the target's key opens what the source's key has sealed.
    async fn verify(&self, key: Option<&KeyVersion>) -> Result<(), String> {
        const CONTEXT: &[u8] = b"{\"keswarden\":\"migrate\"}";
        let Some(key) = key else { return Ok(()) };
        let there = self.target.get(&self.name).await.map_err(|error| words(self.target, &error))?;
        let there = KeyVersion::parse(there.expose().as_bytes()).map_err(|error| {
            format!("{} returns something that is no key: {error}", self.target.describe())
        })?;
        let sealed = key.key.generate(CONTEXT);
        match there.key.open(&sealed.ciphertext, CONTEXT) {
            Ok(opened) if opened.as_slice() == &sealed.plaintext[..] && there.key.same(&key.key) => Ok(()),
            _ => Err(format!("{} does not open what the source sealed", self.target.describe())),
        }
    }
}

fn words(store: &dyn KeyStore, error: &Error) -> String {
    format!("{}: {error}", store.describe())
}

// === impl Plan ===

impl Plan {
    fn words(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Done => "there",
            Self::Replace => "replace",
            Self::Skip => "skip",
            Self::Conflict => "conflict",
        }
    }
}

// === impl Tally ===

impl Tally {
    fn count(&mut self, plan: Plan) {
        match plan {
            Plan::Copy | Plan::Replace => self.copied += 1,
            Plan::Done => self.there += 1,
            Plan::Skip => self.skipped += 1,
            Plan::Conflict => self.failed += 1,
        }
    }

    fn report(&self, dry_run: bool) -> u8 {
        let Self { copied, there, skipped, failed } = self;
        let rest = format!("{there} there already, {skipped} skipped, {failed} failed");
        match (dry_run, failed) {
            (true, _) => println!("{copied} keys to migrate, {rest}"),
            (false, 0) => println!("Migrated {copied} keys successfully! ({rest})"),
            (false, _) => eprintln!("Error: migrated {copied} keys; {rest}"),
        }
        if *failed == 0 { 0 } else { FAILED }
    }
}
