//! The files that a configuration is made of: whether they have changed, and stayed changed.

use crate::{clock::Instant, config::kes_yaml::KesYaml};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// What every file says that a configuration is made of.
pub(super) fn content_of(config: &KesYaml) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(config.digest());
    config.tls_files().iter().for_each(|path| add(&mut digest, path));
    digest.update(store_content(config));
    digest.finalize().into()
}

/// The same of a file as it was read now; `known` is what was last known of one that cannot be read.
pub(super) fn content(read: &Result<KesYaml, Vec<String>>, known: &KesYaml) -> [u8; 32] {
    match read {
        Ok(config) => content_of(config),
        Err(problems) => {
            let mut digest = Sha256::new();
            digest.update(problems.join("\n"));
            digest.update(content_of(known));
            digest.finalize().into()
        }
    }
}

/// What a key store is opened with: its section of the file, and the files that it names.
pub(super) fn store_content(file: &KesYaml) -> [u8; 32] {
    let mut digest = Sha256::new();
    digest.update(file.store_digest);
    file.store_files().iter().for_each(|path| add(&mut digest, path));
    digest.finalize().into()
}

/// A file's bytes, or those of every file of a directory, in the order of names.
fn add(digest: &mut Sha256, path: &Path) {
    let entries = std::fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()));
    let mut files: Vec<PathBuf> = match entries {
        Ok(entries) => entries.collect(),
        Err(_) => vec![path.to_owned()],
    };
    files.sort();
    for file in files {
        digest.update(file.as_os_str().as_encoded_bytes());
        let content = zeroize::Zeroizing::new(std::fs::read(&file).unwrap_or_default());
        digest.update((content.len() as u64).to_be_bytes());
        digest.update(&*content);
    }
}

/// What was seen of the files.
pub(super) struct Watched {
    /// What the last reload was made of.
    taken: [u8; 32],
    /// What the last look saw.
    seen: [u8; 32],
    /// Try again then, changed or not.
    pub(super) again_at: Option<Instant>,
}

// === impl Watched ===

impl Watched {
    pub(super) fn new(content: [u8; 32]) -> Self {
        Self { taken: content, seen: content, again_at: None }
    }

    /// Two looks have seen the same, and it is not what is in force.
    pub(super) fn has_changed(&mut self, content: [u8; 32], now: Instant) -> bool {
        let twice = std::mem::replace(&mut self.seen, content) == content;
        let due = self.again_at.is_some_and(|at| now >= at);
        twice && (content != self.taken || due)
    }

    pub(super) fn taken(&mut self, content: [u8; 32]) {
        (self.taken, self.again_at) = (content, None);
    }
}
