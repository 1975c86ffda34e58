//! Backups of the settings' key store: made, put back, and held against the store, the pins and the drives.

use super::{Base, OpenStore, Stopped};
use crate::{
    backup::{self, Backup, Drill, Restored, Standing},
    cause::{Cause, Finding},
    config::Settings,
    evidence::{self, Limits, Opened},
    known::{Asked, Commands, Verdict, Witnesses, judge},
    memory,
    names::Name,
    store::KeyStore,
};
use std::collections::HashSet;

/// How a backup is put back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Restoring {
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Take keys of another store's backup, whoever knows them.
    pub other_store: bool,
}

/// What a drill found.
pub struct Checked {
    /// How each key of the backup stands in the store.
    pub keys: Vec<(Name, Result<Standing, Finding>)>,
    /// Keys of the store that the backup lacks.
    pub not_backed_up: Vec<String>,
    /// What the backup's keys open of what is on the drives.
    pub evidence: Vec<evidence::Finding>,
}

/// Reads these keys, or all; with each that is left out, the reason.
pub async fn back_up(
    settings: &Settings,
    names: Vec<Name>,
) -> Result<(Backup, Vec<(Name, Finding)>), Stopped> {
    let (base, OpenStore { store, memory, .. }) = open(settings)?;
    store.ready().await?;
    let names = match names.is_empty() {
        true => store.list().await?.iter().filter_map(|name| Name::parse(name).ok()).collect(),
        false => names,
    };
    Ok(backup::collect(&*store, &memory.witnesses, names, base.now(), settings.memory.tenant.clone()).await)
}

/// Puts these keys of a backup back, or all: each where there is none, and never over another. A key of another store's backup that
/// nobody here knows needs `other_store`: two tenants may have a key of one name.
pub async fn restore(
    settings: &Settings,
    backup: &Backup,
    names: &[Name],
    Restoring { dry_run, other_store }: Restoring,
) -> Result<Vec<(Name, Result<Restored, Finding>)>, Stopped> {
    let (_, OpenStore { store, memory, .. }) = open(settings)?;
    store.ready().await?;
    let mut results = Vec::new();
    for (name, kept) in backup.keys.iter().filter(|(name, _)| names.is_empty() || names.contains(name)) {
        let is_bound = other_store || backup.origin == store.describe() || {
            let statements = memory.witnesses.ask(name).await;
            judge(Asked::Key(&kept.fingerprint), &statements) == Verdict::Same
        };
        let result = match backup::restore(&*store, name, kept, dry_run || !is_bound).await {
            Ok(Restored::Absent) if !is_bound => Err(is_anothers(backup, name, &*store, &memory.commands)),
            result => result,
        };
        results.push((name.clone(), result));
    }
    Ok(results)
}

fn is_anothers(backup: &Backup, name: &Name, store: &dyn KeyStore, commands: &Commands) -> Finding {
    let command = commands.of(&format!("key restore --from FILE --identity IDENTITY {name} --other-store"));
    Cause::BackupUnusable
        .seen(format!(
            "the backup is of {}, the key store here is {}, and nobody here knows its key '{name}'",
            backup.origin,
            store.describe()
        ))
        .fix(format!(
            "nothing was written; if this is the same tenant, whose key store was lost or has moved, say so: `{command}`"
        ))
}

/// Holds a backup against the store, the pins and the drives; writes nothing but when it was done.
pub async fn drill(settings: &Settings, backup: &Backup) -> Result<Checked, Stopped> {
    let (_, OpenStore { store, memory, .. }) = open(settings)?;
    let ready = store.ready().await;
    let mut keys = Vec::new();
    for (name, kept) in &backup.keys {
        let standing = match &ready {
            Ok(()) => stands(&*store, &memory.witnesses, name, kept).await,
            Err(finding) => Err(finding.clone()),
        };
        keys.push((name.clone(), standing));
    }
    let there = match ready {
        Ok(()) => store.list().await?,
        Err(_) => Vec::new(),
    };
    let backed_up: HashSet<_> = backup.keys.keys().map(Name::as_str).collect();
    let not_backed_up = there.into_iter().filter(|name| !backed_up.contains(name.as_str())).collect();
    Ok(Checked { keys, not_backed_up, evidence: evidence_for(settings, backup)? })
}

async fn stands(
    store: &dyn KeyStore,
    witnesses: &Witnesses,
    name: &Name,
    kept: &backup::Kept,
) -> Result<Standing, Finding> {
    backup::is_known(witnesses, name, &kept.fingerprint, "the backup").await?;
    backup::standing(store, name, kept).await
}

fn evidence_for(settings: &Settings, backup: &Backup) -> Result<Vec<evidence::Finding>, Stopped> {
    if settings.drives.is_empty() {
        return Ok(Vec::new());
    }
    let drives = evidence::expand(&settings.drives).map_err(|error| Cause::DrivesUnreadable.seen(error))?;
    let samples = evidence::sample(&drives, &Limits::default(), &crate::clock::Clock::system());
    Ok(evidence::judge(&samples, |name, ciphertext, context| match backup.keys.get(name) {
        None => Opened::NoSuchKey,
        Some(kept) if kept.version.key.open(ciphertext, context).is_ok() => Opened::Yes,
        Some(_) => Opened::No,
    }))
}

fn open(settings: &Settings) -> Result<(Base, OpenStore), Finding> {
    memory::protect();
    let base = Base::beside(None, settings);
    let opened = base.open_beside(settings)?;
    Ok((base, opened))
}

// === impl Checked ===

impl Checked {
    /// Notes in the run directory that a drill has succeeded now.
    pub fn note(&self, settings: &Settings) -> Result<(), Finding> {
        let base = Base::new(None, settings.drain_timeout);
        Drill::of(&settings.run_dir)
            .note(base.now(), self.keys.len())
            .map_err(|error| Cause::RunDirUnusable.seen(error.to_string()))
    }
}
