//! The files that a configuration is made of: whether they have changed, stayed changed, and can be used.
//!
//! What two looks agreed on is what is used: the file is not read again, and what it names must still be the same after it was
//! read. Only regular files of a sane size are read.

use super::server_config;
use crate::{
    cause::{Cause, Finding},
    config::{kes_yaml::KesYaml, server::ConfigFile},
    files::{self, Blocking},
    shutdown::Hangups,
};
use rustls::ServerConfig;
use sha2::{Digest, Sha256};
use std::{path::PathBuf, pin::pin, sync::Arc, time::Duration};

/// A configuration that can be used, as far as it does not concern the key store.
pub(super) struct Loaded {
    pub(super) config: Arc<KesYaml>,
    pub(super) tls: Arc<ServerConfig>,
    /// What its key store is opened with, the files included.
    pub(super) store_content: [u8; 32],
}

/// What was seen of the files.
pub(super) struct Watched {
    file: Arc<ConfigFile>,
    blocking: Blocking,
    /// What the last change was made of.
    taken: [u8; 32],
    /// What the last look saw.
    seen: [u8; 32],
    /// Somebody wants them read again, changed or not.
    asked: bool,
}

/// How often the files are looked at: a change is in force after two looks that see the same.
const LOOK: Duration = Duration::from_secs(1);
/// The system's own roots in one file are a quarter of a megabyte.
const FILE_MAX: u64 = 4 * 1024 * 1024;

// === impl Loaded ===

impl Loaded {
    /// Reads and validates the files that this configuration names.
    pub(super) fn of(config: Arc<KesYaml>) -> Result<Self, Finding> {
        let store_content = store_content(&config)?;
        Ok(Self { tls: server_config(&config)?, config, store_content })
    }
}

// === impl Watched ===

impl Watched {
    /// `first` is in force.
    pub(super) fn new(file: ConfigFile, first: &KesYaml) -> Result<Self, Finding> {
        let (file, blocking, content) = (Arc::new(file), Blocking::default(), content_of(first)?);
        Ok(Self { file, blocking, taken: content, seen: content, asked: false })
    }

    /// The next change, or why it cannot be used: two looks have seen the same, and it is not what was taken last, or somebody
    /// asked. Nothing is lost when this is dropped and called again.
    pub(super) async fn next(&mut self, hangups: &mut Hangups) -> Result<Loaded, String> {
        loop {
            self.pause(hangups).await;
            let file = self.file.clone();
            let look = self.blocking.run(move || look(&file)).await;
            let look = look.unwrap_or_else(|hangs| Err(hangs.to_string()));
            let content = look.as_ref().map_or_else(|problem| digest(problem), |(_, content)| *content);
            let twice = std::mem::replace(&mut self.seen, content) == content;
            if !twice || (content == self.taken && !self.asked) {
                continue;
            }
            let (loaded, content) = match look {
                Err(problem) => (Err(problem), content),
                Ok((config, _)) => match self.blocking.run(move || load(config, content)).await {
                    // The next look sees what they are now.
                    Ok(None) => continue,
                    Ok(Some(loaded)) => (loaded.map_err(|finding| finding.seen), content),
                    // It was not the files' content: the same one is new once it can be read.
                    Err(hangs) => (Err(hangs.to_string()), digest(&hangs.to_string())),
                },
            };
            (self.taken, self.asked) = (content, false);
            return loaded;
        }
    }

    /// What is there is to be taken, changed or not.
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// Until the next look. A wish hurries nothing: a half-written file is not taken because somebody asked too soon.
    async fn pause(&mut self, hangups: &mut Hangups) {
        let mut pause = pin!(tokio::time::sleep(LOOK));
        loop {
            tokio::select! {
                () = hangups.next() => self.asked = true,
                () = &mut pause => return,
            }
        }
    }
}

/// What the file describes now, and a digest of it and of all that it names; or why it cannot be used.
fn look(file: &ConfigFile) -> Result<(Arc<KesYaml>, [u8; 32]), String> {
    files::read_regular(&file.path, FILE_MAX).map_err(|problem| problem.to_string())?;
    let config = file.read().map_err(|problems| problems.join("; "))?;
    let content = content_of(&config).map_err(|finding| finding.seen)?;
    Ok((Arc::new(config), content))
}

/// What the file names, for a configuration that was seen; nothing when it changed while it was read.
fn load(config: Arc<KesYaml>, seen: [u8; 32]) -> Option<Result<Loaded, Finding>> {
    let loaded = Loaded::of(config.clone());
    content_of(&config).is_ok_and(|content| content == seen).then_some(loaded)
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text).into()
}

/// What every file says that a configuration is made of.
fn content_of(config: &KesYaml) -> Result<[u8; 32], Finding> {
    let mut digest = Sha256::new();
    digest.update(config.digest());
    digest.update(digest_of(&config.tls_files())?);
    digest.update(store_content(config)?);
    Ok(digest.finalize().into())
}

/// What a key store is opened with: its section of the file, and the files that it names.
fn store_content(config: &KesYaml) -> Result<[u8; 32], Finding> {
    let mut digest = Sha256::new();
    digest.update(config.store_digest);
    digest.update(digest_of(&config.store_files())?);
    Ok(digest.finalize().into())
}

/// A digest of files, and of every file of a folder.
fn digest_of(paths: &[PathBuf]) -> Result<[u8; 32], Finding> {
    files::digest(paths, FILE_MAX)
        .map_err(|problem| Cause::TlsFileUnusable.seen(format!("kesconf: {problem}")))
}
