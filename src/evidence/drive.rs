//! One drive: its state, its buckets, and MinIO's own files. No link is followed, and nothing is written.

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

/// A drive of a MinIO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// The path, as it was named.
    pub path: PathBuf,
    /// The state at the time of reading.
    pub state: State,
}

/// The state of a drive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// A mounted volume without `format.json`, which no MinIO ever used.
    New,
    /// A directory without `format.json` that is no mount point: a plain directory, or the place of an
    /// unmounted volume.
    Bare,
    /// A drive with `format.json`.
    Used,
    /// A drive that cannot be read, with the reason for people.
    Unreadable(String),
}

/// An erasure set: the deployment's id and the set's number. The drives of a set have the same metadata.
pub(super) type Set = (String, usize);

/// The folder of MinIO's own files.
const SYSTEM: &str = ".minio.sys";
/// The file of an object's metadata, in the object's folder.
const METADATA_FILE: &str = "xl.meta";
/// Bytes of a metadata file that are read first. Most metadata is shorter; inline data after the metadata is
/// not needed.
const FIRST_READ_BYTES: u64 = 4096;
/// Bytes of a metadata file that are read at most. Ten thousand versions are shorter.
const METADATA_BYTES_MAX: u64 = 32 << 20;
/// Bytes of one of MinIO's own files that are read at most.
const OWN_FILE_BYTES_MAX: u64 = 1 << 20;
/// Folders of MinIO's own files that are read at most.
const OWN_FOLDERS_MAX: usize = 256;
/// Drives that one name with numbers gives at most.
const DRIVES_PER_NAME_MAX: usize = 1024;

/// The drives that are named by path, by MinIO's `{1...4}`, or by pattern (`/export*`).
///
/// A name that no directory has is kept as a path, so that a drive that failed or is not mounted does not
/// hide the others.
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

/// The names of a pattern with MinIO's `{FIRST...LAST}`, any number of times. Leading zeros of FIRST give the
/// width. At most [`DRIVES_PER_NAME_MAX`].
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
    all.take(DRIVES_PER_NAME_MAX).collect()
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

    /// Whether the drive cannot be read. Every other drive is read: a new drive may be a used one without its
    /// `.minio.sys`.
    pub fn is_unreadable(&self) -> bool {
        matches!(self.state, State::Unreadable(_))
    }

    /// Whether the drive's state may change without MinIO: the drive cannot be read, or its volume may not be
    /// mounted yet.
    pub fn may_come(&self) -> bool {
        matches!(self.state, State::Unreadable(_) | State::Bare)
    }

    /// The drive's erasure set; nothing when `format.json` cannot be read.
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
        File::open(format_of(&self.path)).ok()?.take(OWN_FILE_BYTES_MAX).read_to_end(&mut json).ok()?;
        let Format { id, xl } = serde_json::from_slice(&json).ok()?;
        let number = xl.sets.iter().position(|set| set.contains(&xl.this))?;
        Some((id, number))
    }

    /// The name and folder of every bucket. Unreadable folders are counted in `skipped`.
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

    /// Adds the records of MinIO's own files: its configuration, users and policies. Every MinIO that was
    /// ever started with a KMS has such files.
    pub(super) fn own_files(&self, samples: &mut Samples) {
        let config = self.path.join(SYSTEM).join("config");
        own_file(&config.join("config.json"), Scheme::Config, "config.json", samples);
        let mut waiting = VecDeque::from([config.join("iam")]);
        let mut visited = 0;
        while let Some(folder) = waiting.pop_front().filter(|_| visited < OWN_FOLDERS_MAX) {
            visited += 1;
            let Some(path) = folder.strip_prefix(&config).ok().and_then(Path::to_str) else { continue };
            if !own_file(&folder, Scheme::Iam, path, samples) {
                waiting.extend(Folders::of(&folder, &mut samples.tally.skipped).map(|entry| entry.path()));
            }
        }
    }
}

/// Adds the record of a file below MinIO's `config`. False when the folder is no file's.
fn own_file(folder: &Path, scheme: Scheme, path: &str, samples: &mut Samples) -> bool {
    let bytes = match read(folder, |_| None, OWN_FILE_BYTES_MAX) {
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

/// Whether the path is a mount point, a bind mount included. Kernels before 5.8 have no attribute for mount
/// points, so the device numbers decide there.
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

/// Whether a folder's name can be a bucket's. MinIO's own folder and `lost+found` are no buckets.
fn is_bucket(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:".contains(&byte);
    !name.starts_with('.') && !name.is_empty() && name.bytes().all(allowed)
}

/// The metadata in an object's folder; nothing when the folder is no object's.
pub(super) fn metadata(folder: &Path) -> io::Result<Option<Vec<u8>>> {
    read(folder, xl_meta::needed, FIRST_READ_BYTES)
}

/// Reads `first` bytes of a folder's metadata file, and then up to the length that `needed` finds in those
/// bytes.
fn read(folder: &Path, needed: impl Fn(&[u8]) -> Option<u64>, first: u64) -> io::Result<Option<Vec<u8>>> {
    let path = folder.join(METADATA_FILE);
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
    let more = needed(&bytes).unwrap_or(0).min(METADATA_BYTES_MAX).saturating_sub(bytes.len() as u64);
    (&file).take(more).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// The folders in a folder, without links. Unreadable folders are counted in `skipped`.
pub(super) struct Folders<'a> {
    entries: Option<fs::ReadDir>,
    skipped: &'a mut u64,
}

// === impl Folders ===

impl<'a> Folders<'a> {
    pub(super) fn of(folder: &Path, skipped: &'a mut u64) -> Self {
        let entries = fs::read_dir(folder);
        // A missing folder was deleted since its parent was read, and is not counted.
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
                    // After an error the rest of the folder cannot be read.
                    self.entries = None;
                }
            }
        }
    }
}
