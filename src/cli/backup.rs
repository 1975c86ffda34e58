//! `keswarden key backup`, `restore` and `verify`: keys for the day on which the key store is gone.

use super::{block_on, code_of, load_without_key};
use crate::{
    app::{self, Checked, Restoring},
    backup::{Backup, Recipients, Restored, Standing},
    cause::Finding,
    config::{Inputs, Settings},
    evidence::Verdict,
    exit,
    names::Name,
};
use clap::Args;
use std::path::PathBuf;

#[derive(Args)]
pub(super) struct Options {
    /// Where to; no file may be there
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// For whom it is encrypted: `age1…`, as age-keygen prints it; may be given more than once
    #[arg(long, value_name = "AGE", required = true)]
    recipient: Vec<String>,
    #[command(flatten)]
    store: Store,
    /// Only these keys
    names: Vec<String>,
}

#[derive(Args)]
pub(super) struct RestoreOptions {
    /// The backup
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// The age identities of one of its recipients
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Take keys that another key store's backup has and nobody here knows: the tenant's store was lost, or
    /// has moved
    #[arg(long)]
    other_store: bool,
    #[command(flatten)]
    store: Store,
    /// Only these keys
    names: Vec<String>,
}

#[derive(Args)]
pub(super) struct VerifyOptions {
    /// The backup
    #[arg(long, value_name = "FILE")]
    backup: PathBuf,
    /// The age identities of one of its recipients
    #[arg(long, value_name = "FILE")]
    identity: PathBuf,
    #[command(flatten)]
    store: Store,
}

#[derive(Args)]
struct Store {
    /// KES's own configuration file: the key store of it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn backup(options: Options) -> u8 {
    with_store(options.store, |settings| {
        let names = parse(&options.names)?;
        let recipients = Recipients::parse(&options.recipient).map_err(|finding| refused(&finding))?;
        let (backup, left_out) =
            block_on(app::back_up(settings, names)).map_err(|stopped| code_of(Err(stopped)))?;
        let code = exit::worst(left_out.iter().map(|(name, finding)| failed(name, finding)));
        if backup.keys.is_empty() {
            eprintln!("keswarden: no backup was made: there is no key to back up in {}", backup.origin);
            return Err(if code == exit::DONE { exit::UNAVAILABLE } else { code });
        }
        backup.write(&options.to, &recipients).map_err(|finding| refused(&finding))?;
        for (name, kept) in &backup.keys {
            println!("{name} {} {}", kept.fingerprint, if kept.pinned { "pinned" } else { "unpinned" });
        }
        eprintln!(
            "keswarden: {} keys of {} are in {}, for {} recipients, {} left out; prove it now and then: \
             `keswarden key verify --backup`",
            backup.keys.len(),
            backup.origin,
            options.to.display(),
            recipients.len(),
            left_out.len()
        );
        if code == exit::DONE { Ok(()) } else { Err(code) }
    })
}

pub(super) fn restore(options: RestoreOptions) -> u8 {
    with_store(options.store, |settings| {
        let names = parse(&options.names)?;
        let backup = read(&options.from, &options.identity)?;
        if let Some(name) = names.iter().find(|name| !backup.keys.contains_key(name.as_str())) {
            eprintln!("keswarden: there is no key '{name}' in {}", options.from.display());
            return Err(exit::UNAVAILABLE);
        }
        let restoring = Restoring { dry_run: options.dry_run, other_store: options.other_store };
        let results = block_on(app::restore(settings, &backup, &names, restoring));
        let results = results.map_err(|stopped| code_of(Err(stopped)))?;
        let mut code = exit::DONE;
        for (name, result) in &results {
            match result {
                Ok(restored) => println!("{name} {} {}", backup.keys[name].fingerprint, words(*restored)),
                Err(finding) => code = exit::worst([code, failed(name, finding)]),
            }
        }
        if code == exit::DONE { Ok(()) } else { Err(code) }
    })
}

pub(super) fn verify(options: VerifyOptions) -> u8 {
    with_store(options.store, |settings| {
        let backup = read(&options.backup, &options.identity)?;
        eprintln!("keswarden: a backup of {}, made {}", backup.origin, backup.made_at);
        let checked = block_on(app::drill(settings, &backup)).map_err(|stopped| code_of(Err(stopped)))?;
        let code = report(&backup, &checked);
        if code != exit::DONE {
            return Err(code);
        }
        println!("the backup holds every key that is in use");
        checked.note(settings).unwrap_or_else(|finding| {
            eprintln!(
                "keswarden: the drill passed, and its time was not noted for the agent's metric: {finding}"
            );
        });
        Ok(())
    })
}

fn report(backup: &Backup, checked: &Checked) -> u8 {
    let mut code = exit::DONE;
    for (name, standing) in &checked.keys {
        let fingerprint = &backup.keys[name].fingerprint;
        match standing {
            Ok(Standing::Same) => println!("{name} {fingerprint} the same in the store"),
            Ok(Standing::Missing) => {
                println!("{name} {fingerprint} MISSING in the store: `keswarden key restore` puts it back");
                code = exit::worst([code, exit::UNAVAILABLE]);
            }
            Ok(Standing::Other { fingerprint: other }) => {
                println!("{name} {fingerprint} ANOTHER KEY in the store: {other}");
                code = exit::worst([code, exit::DATA]);
            }
            Err(finding) => code = exit::worst([code, failed(name, finding)]),
        }
    }
    for name in &checked.not_backed_up {
        println!("{name} NOT IN THE BACKUP");
        code = exit::worst([code, exit::UNAVAILABLE]);
    }
    for finding in &checked.evidence {
        let (key, opened, tried) =
            (finding.key.escape_default(), finding.opened, finding.opened + finding.failed);
        match finding.verdict {
            Verdict::NoneOpen | Verdict::Mixed => {
                println!(
                    "{key} OPENS {opened} of {tried} objects tried on the drives: another key sealed the rest"
                );
                code = exit::worst([code, exit::DATA]);
            }
            Verdict::MissingKey => {
                println!("{key} NOT IN THE BACKUP: {} objects on the drives need it", finding.records);
                code = exit::worst([code, exit::UNAVAILABLE]);
            }
            _ => println!("{key} opens {opened} of {tried} objects tried on the drives"),
        }
    }
    code
}

fn with_store(store: Store, work: impl FnOnce(&Settings) -> Result<(), u8>) -> u8 {
    match load_without_key(Inputs::of_process(store.config, None)).and_then(|settings| work(&settings)) {
        Ok(()) => exit::DONE,
        Err(code) => code,
    }
}

fn parse(names: &[String]) -> Result<Vec<Name>, u8> {
    let parsed = names.iter().map(|name| Name::parse(name));
    parsed.collect::<Result<_, _>>().map_err(|error| {
        eprintln!("keswarden: the key name {error}");
        exit::SETTINGS
    })
}

fn read(backup: &std::path::Path, identity: &std::path::Path) -> Result<Backup, u8> {
    Backup::read(backup, identity).map_err(|finding| refused(&finding))
}

fn refused(finding: &Finding) -> u8 {
    eprintln!("keswarden: {finding}");
    finding.cause.exit_code()
}

fn failed(name: &Name, finding: &Finding) -> u8 {
    eprintln!("keswarden: {name}: {finding}");
    finding.cause.exit_code()
}

fn words(restored: Restored) -> &'static str {
    match restored {
        Restored::Written => "restored",
        Restored::Absent => "would be restored",
        Restored::There => "there already",
    }
}
