//! One drive: what it is, what its files say, and how they are read: no link is followed, nothing is written.

use super::{Samples, Scheme, xl_meta};
use serde::Deserialize;
use std::{
    fs::{self, DirEntry, File},
    io::{self, ErrorKind, Read},
    path::{Path, PathBuf},
};

/// A drive, as it was named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    pub path: PathBuf,
    pub state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no `format.json`: no MinIO has ever used it.
    New,
    Used,
    /// It could not be looked at.
    Unreadable(String),
}

/// The drives of an erasure set hold the same metadata.
pub(super) type Set = (String, usize);

const SYSTEM: &str = ".minio.sys";
const CONFIG_CONTEXT: &[u8] = br#"{".minio.sys":".minio.sys/config/config.json"}"#;
const FILE: &str = "xl.meta";
/// Most metadata is shorter; inline data behind it is of no interest.
const FIRST: u64 = 4096;
/// Ten thousand versions are shorter.
const MOST: u64 = 32 << 20;
const MOST_CONFIG: u64 = 1 << 20;

/// The drives that there are now, by path or pattern (`/export*`). A pattern that matches no directory is a volume that is not
/// mounted: that is an error.
pub fn expand(patterns: &[String]) -> Result<Vec<PathBuf>, String> {
    let mut drives = Vec::new();
    for pattern in patterns {
        let before = drives.len();
        let found = glob::glob(pattern).map_err(|error| format!("{pattern}: {error}"))?;
        drives.extend(found.flatten().filter(|path| path.is_dir()));
        if drives.len() == before {
            return Err(format!("there is no directory {pattern}"));
        }
    }
    Ok(drives)
}

// === impl Drive ===

impl Drive {
    pub(super) fn look(path: &Path) -> Self {
        let state = match fs::read_dir(path).and_then(|_| fs::symlink_metadata(format_of(path))) {
            Ok(_) => State::Used,
            Err(error) if error.kind() == ErrorKind::NotFound && path.is_dir() => State::New,
            Err(error) => State::Unreadable(error.to_string()),
        };
        Self { path: path.to_owned(), state }
    }

    /// Any other is looked at: a new one may be an old one whose `.minio.sys` somebody removed.
    pub fn is_unreadable(&self) -> bool {
        matches!(self.state, State::Unreadable(_))
    }

    /// Which erasure set it belongs to, when that can be read.
    pub(super) fn set(&self) -> Option<Set> {
        #[derive(Deserialize)]
        struct Format {
            id: String,
            xl: Xl,
        }
        #[derive(Deserialize)]
        struct Xl {
            this: String,
            sets: Vec<Vec<String>>,
        }
        let mut json = Vec::new();
        File::open(format_of(&self.path)).ok()?.take(MOST_CONFIG).read_to_end(&mut json).ok()?;
        let Format { id, xl } = serde_json::from_slice(&json).ok()?;
        let number = xl.sets.iter().position(|set| set.contains(&xl.this))?;
        Some((id, number))
    }

    /// Name and folder of every bucket; what cannot be read is counted.
    pub(super) fn buckets(&self, skipped: &mut u64) -> Vec<(String, PathBuf)> {
        let mut buckets = Vec::new();
        for folder in Folders::of(&self.path, skipped) {
            if let Ok(name) = folder.file_name().into_string()
                && is_bucket(&name)
            {
                buckets.push((name, folder.path()));
            }
        }
        buckets
    }

    /// The evidence that every MinIO leaves that was ever started with a KMS.
    pub(super) fn config(&self, samples: &mut Samples) {
        let folder = self.path.join(SYSTEM).join("config").join("config.json");
        let bytes = match read(&folder, |_| None, MOST_CONFIG) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return,
            Err(_) => {
                samples.tally.skipped += 1;
                return;
            }
        };
        samples.tally.files += 1;
        samples.tally.bytes += bytes.len() as u64;
        match xl_meta::config(&bytes) {
            Ok(Some((mtime, sealed))) => samples.add(sealed, Scheme::Config, CONFIG_CONTEXT.to_vec(), mtime),
            Ok(None) => {}
            Err(_) => samples.tally.skipped += 1,
        }
    }
}

fn format_of(drive: &Path) -> PathBuf {
    drive.join(SYSTEM).join("format.json")
}

/// MinIO's own folder, `lost+found` and the like are none.
fn is_bucket(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    !name.starts_with('.') && !name.is_empty() && name.bytes().all(allowed)
}

/// The metadata in an object's folder; nothing when it is no object's folder.
pub(super) fn metadata(folder: &Path) -> io::Result<Option<Vec<u8>>> {
    read(folder, xl_meta::needed, FIRST)
}

/// `first` bytes of the file, and as many more as they say are needed.
fn read(folder: &Path, needed: impl Fn(&[u8]) -> Option<u64>, first: u64) -> io::Result<Option<Vec<u8>>> {
    let path = folder.join(FILE);
    match fs::symlink_metadata(&path) {
        // A link is not followed, and a pipe might never end.
        Ok(about) if !about.is_file() => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    }
    let file = File::open(&path)?;
    let mut bytes = Vec::new();
    (&file).take(first).read_to_end(&mut bytes)?;
    let more = needed(&bytes).unwrap_or(0).min(MOST).saturating_sub(bytes.len() as u64);
    (&file).take(more).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The folders in a folder; links are none. What cannot be read is counted.
pub(super) struct Folders<'a> {
    entries: Option<fs::ReadDir>,
    skipped: &'a mut u64,
}

// === impl Folders ===

impl<'a> Folders<'a> {
    pub(super) fn of(folder: &Path, skipped: &'a mut u64) -> Self {
        let entries = fs::read_dir(folder);
        // It may have been deleted a moment ago, which is nobody's fault.
        if entries.as_ref().is_err_and(|error| error.kind() != ErrorKind::NotFound) {
            *skipped += 1;
        }
        Self { entries: entries.ok(), skipped }
    }
}

impl Iterator for Folders<'_> {
    type Item = DirEntry;

    fn next(&mut self) -> Option<DirEntry> {
        loop {
            match self.entries.as_mut()?.next()? {
                Ok(entry) if entry.file_type().is_ok_and(|kind| kind.is_dir()) => return Some(entry),
                Ok(_) => {}
                Err(_) => {
                    *self.skipped += 1;
                    // The rest of it cannot be read either.
                    self.entries = None;
                }
            }
        }
    }
}
