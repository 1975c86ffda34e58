//! One drive: what it is, what its files say, and how they are read: no link is followed, nothing is written.

use super::{
    Samples, Scheme, context,
    xl_meta::{self, Own},
};
use serde::Deserialize;
use std::{
    collections::VecDeque,
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
    /// A mounted volume without `format.json`: no MinIO has ever used it.
    New,
    /// The same, and no mount point: a plain directory, or the place of a volume that is not mounted.
    Bare,
    Used,
    /// It could not be looked at.
    Unreadable(String),
}

/// The drives of an erasure set hold the same metadata.
pub(super) type Set = (String, usize);

const SYSTEM: &str = ".minio.sys";
const FILE: &str = "xl.meta";
/// Most metadata is shorter; inline data behind it is of no interest.
const FIRST: u64 = 4096;
/// Ten thousand versions are shorter.
const MOST: u64 = 32 << 20;
const MOST_CONFIG: u64 = 1 << 20;
/// How many folders of MinIO's own are looked at.
const MOST_OWN: usize = 256;
/// How many drives one name with numbers stands for.
const MOST_DRIVES: usize = 1024;

/// The drives that are named by path, by MinIO's own `{1...4}`, or by pattern (`/export*`). A name that no directory has is kept as it is:
/// the drive that failed, or is not mounted, must not silence the others.
///
/// # Errors
/// When a pattern cannot be understood.
pub fn expand(patterns: &[String]) -> Result<Vec<PathBuf>, String> {
    let mut drives = Vec::new();
    for pattern in patterns.iter().flat_map(|pattern| numbered(pattern)) {
        let before = drives.len();
        let found = glob::glob(&pattern).map_err(|error| format!("{pattern}: {error}"))?;
        drives.extend(found.flatten().filter(|path| path.is_dir()));
        if drives.len() == before {
            drives.push(PathBuf::from(pattern));
        }
    }
    Ok(drives)
}

/// The names behind MinIO's `{FIRST...LAST}`, which may come more than once; leading zeros count as digits. At most [`MOST_DRIVES`].
fn numbered(pattern: &str) -> Vec<String> {
    let parts = pattern.split_once('{').and_then(|(before, rest)| {
        let (range, after) = rest.split_once('}')?;
        let (first, last) = range.split_once("...")?;
        let numbers = (first.parse::<u32>().ok()?, last.parse::<u32>().ok()?);
        Some((before, numbers, first.len(), after))
    });
    let Some((before, (first, last), width, after)) = parts else { return vec![pattern.to_owned()] };
    let tails = numbered(after);
    let all = (first..=last)
        .flat_map(|number| tails.iter().map(move |tail| format!("{before}{number:0width$}{tail}")));
    all.take(MOST_DRIVES).collect()
}

// === impl Drive ===

impl Drive {
    pub(super) fn look(path: &Path) -> Self {
        let state =
            match fs::read_dir(path).and_then(|_| fs::symlink_metadata(format_of(path))) {
                Ok(_) => State::Used,
                Err(error) if error.kind() == ErrorKind::NotFound && path.is_dir() => {
                    if is_mount_point(path) { State::New } else { State::Bare }
                }
                Err(error) => State::Unreadable(error.to_string()),
            };
        Self { path: path.to_owned(), state }
    }

    /// Any other is looked at: a new one may be an old one whose `.minio.sys` somebody removed.
    pub fn is_unreadable(&self) -> bool {
        matches!(self.state, State::Unreadable(_))
    }

    /// It may be another one at the next look: it could not be read, or its volume may not be mounted.
    pub fn may_come(&self) -> bool {
        matches!(self.state, State::Unreadable(_) | State::Bare)
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

    /// The evidence that every MinIO leaves that was ever started with a KMS: its configuration, its users and policies.
    pub(super) fn own_files(&self, samples: &mut Samples) {
        let config = self.path.join(SYSTEM).join("config");
        own_file(&config.join("config.json"), Scheme::Config, "config.json", samples);
        let mut waiting = VecDeque::from([config.join("iam")]);
        let mut looked = 0;
        while let Some(folder) = waiting.pop_front().filter(|_| looked < MOST_OWN) {
            looked += 1;
            let Some(path) = folder.strip_prefix(&config).ok().and_then(Path::to_str) else { continue };
            if !own_file(&folder, Scheme::Iam, path, samples) {
                waiting.extend(Folders::of(&folder, &mut samples.tally.skipped).map(|entry| entry.path()));
            }
        }
    }
}

/// Takes what a file below MinIO's `config` says of its key. False when the folder is that of none.
fn own_file(folder: &Path, scheme: Scheme, path: &str, samples: &mut Samples) -> bool {
    let bytes = match read(folder, |_| None, MOST_CONFIG) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return false,
        Err(_) => {
            samples.tally.skipped += 1;
            return true;
        }
    };
    samples.tally.files += 1;
    samples.tally.bytes += bytes.len() as u64;
    match xl_meta::own(&bytes) {
        Ok(Own::Sealed(mtime, sealed)) => {
            let legacy = (scheme == Scheme::Iam).then(|| context::of_own(&format!("config/{path}")));
            let now = context::of_own(&format!("{SYSTEM}/config/{path}"));
            samples.own_shown.insert(path.to_owned());
            samples.add(sealed, scheme, (now, legacy), mtime);
        }
        Ok(Own::Elsewhere) => drop(samples.own_elsewhere.insert(path.to_owned())),
        Ok(Own::Plain) => drop(samples.own_shown.insert(path.to_owned())),
        Err(_) => samples.tally.skipped += 1,
    }
    true
}

/// Whether something is mounted there, a bind mount included. Kernels before 5.8 do not say: there the device decides.
fn is_mount_point(path: &Path) -> bool {
    use rustix::fs::{AtFlags, CWD, StatxAttributes, StatxFlags, statx};
    let about = |path: &Path| statx(CWD, path, AtFlags::empty(), StatxFlags::BASIC_STATS);
    let Ok(found) = about(path) else { return false };
    if found.stx_attributes_mask.contains(StatxAttributes::MOUNT_ROOT) {
        return found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT);
    }
    let device = |about: &rustix::fs::Statx| (about.stx_dev_major, about.stx_dev_minor);
    about(&path.join("..")).is_ok_and(|parent| device(&parent) != device(&found))
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
