//! `keswarden evidence`: the keys that the drives of a MinIO name, and whether the keys of the key store open
//! the evidence.

mod print;

use super::{block_on, load_without_key};
use crate::{
    app::open_store,
    cause::Finding as Trouble,
    clock::Clock,
    config::Inputs,
    crypto::{key_version::KeyVersion, usable::Usable},
    evidence::{self, Census, Finding, Limits, Opened, Samples, Verdict},
    exit,
    names::Name,
    store::{Error, KeyStore},
};
use clap::Args;
use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
};

#[derive(Args)]
pub(super) struct Options {
    /// The drives, as MinIO's command line names them
    #[arg(value_name = "DRIVE", required = true)]
    drives: Vec<PathBuf>,
    /// Read everything, and count what is encrypted how, by bucket
    #[arg(long)]
    all: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
    /// KES's own configuration file: the key store of it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only this key
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

/// The key that the key store has under each name that the drives name. Absent when there is no such key.
type Keys = BTreeMap<String, Option<KeyVersion>>;

/// The environment variables that configure a key store.
const STORE_VARIABLES: &[&str] = &["KESWARDEN_FS_DIR", "KESWARDEN_VAULT_ADDR", "VAULT_ADDR"];

pub(super) fn main(options: Options) -> u8 {
    let mut census = walk(&options);
    if let Some(key) = &options.key {
        census.samples.keys.retain(|name, _| name == key);
    }
    let keys = match keys(&options, &census.samples) {
        Ok(keys) => keys,
        Err(code) => return code,
    };
    let findings = evidence::judge(&census.samples, |name, ciphertext, context| {
        match keys.as_ref().and_then(|keys| keys.get(name)) {
            None => Opened::Unknown,
            Some(None) => Opened::NoSuchKey,
            Some(Some(held)) if held.key.open(ciphertext, context).is_ok() => Opened::Yes,
            Some(Some(_)) => Opened::No,
        }
    });
    let report = print::Report { census: &census, findings: &findings, all: options.all };
    if options.json {
        report.json()
    } else {
        report.table()
    }
    code(&findings, &census.samples)
}

fn walk(options: &Options) -> Census {
    if options.all {
        return evidence::census(&options.drives);
    }
    let samples = evidence::sample(&options.drives, &Limits::default(), &Clock::system());
    Census { samples, ..Census::default() }
}

/// The exit code. A wrong key comes before a missing key, and a missing key before an unreadable drive.
fn code(findings: &[Finding], samples: &Samples) -> u8 {
    let is = |wanted: &[Verdict]| findings.iter().any(|finding| wanted.contains(&finding.verdict));
    let is_unreadable = samples.drives.iter().any(|drive| drive.is_unreadable());
    if is(&[Verdict::NoneOpen, Verdict::Mixed]) {
        exit::DATA
    } else if is(&[Verdict::MissingKey]) {
        exit::UNAVAILABLE
    } else if is_unreadable {
        exit::OS
    } else {
        exit::DONE
    }
}

/// The keys that the drives name. Absent when the drives name none, or no key store is configured.
fn keys(options: &Options, samples: &Samples) -> Result<Option<Keys>, u8> {
    if samples.keys.is_empty() {
        return Ok(None);
    }
    let inputs = Inputs::of_process(options.config.clone(), options.key.clone());
    let names: HashSet<_> = inputs.environment.iter().filter_map(|(name, _)| name.to_str()).collect();
    let names_a_store = STORE_VARIABLES.iter().any(|name| names.contains(name));
    if options.config.is_none() && !names_a_store {
        return Ok(None);
    }
    let settings = load_without_key(inputs)?;
    let fetched = block_on(async {
        let store = open_store(&settings.store)?.keys;
        store.ready().await?;
        fetch(&*store, samples).await
    });
    fetched.map(Some).map_err(|trouble: Trouble| {
        eprintln!("keswarden: {trouble}");
        trouble.cause.exit_code()
    })
}

async fn fetch(store: &dyn KeyStore, samples: &Samples) -> Result<Keys, Trouble> {
    let mut keys = Keys::new();
    for named in samples.keys.keys() {
        // No key store has a key of an invalid name.
        let held = match Name::parse(named) {
            Ok(name) => get(store, &name).await?,
            Err(_) => None,
        };
        keys.insert(named.clone(), held);
    }
    Ok(keys)
}

/// A key of the store. Absent when there is no such key.
async fn get(store: &dyn KeyStore, name: &Name) -> Result<Option<KeyVersion>, Trouble> {
    match store.get(name).await.map_err(Error::finding) {
        Ok(text) => Ok(Some(Usable::read(name, &text, &format!("in {}", store.describe()))?.version)),
        Err(trouble) if trouble.cause.is_no_key() => {
            eprintln!("keswarden: {trouble}");
            Ok(None)
        }
        Err(trouble) => Err(trouble),
    }
}
