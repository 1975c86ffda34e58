//! Reading: never more than a bound, and digests of what was read.

use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Reads a whole file of at most `max` bytes.
///
/// # Errors
/// When the file cannot be read; [`io::ErrorKind::FileTooLarge`] when it is larger.
pub fn read(path: &Path, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len().min(max);
    // Enough from the start: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(size as usize + 1));
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        let kind = io::ErrorKind::FileTooLarge;
        return Err(io::Error::new(kind, format!("the file is larger than {max} bytes")));
    }
    Ok(bytes)
}

/// A digest of files, and of every file of a folder, in the order of names. A file that cannot be read counts as empty: whoever needs it
/// says that better.
///
/// # Errors
/// When a path is neither a file nor a folder, as a pipe, which may never end, or when a file is larger than `max` bytes.
pub fn digest(paths: &[PathBuf], max: u64) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    for path in paths {
        let entries = fs::read_dir(path).map(|entries| entries.flatten().map(|entry| entry.path()));
        let mut files: Vec<PathBuf> = match entries {
            Ok(entries) => entries.collect(),
            Err(_) => vec![path.clone()],
        };
        files.sort();
        for file in files {
            digest.update(file.as_os_str().as_encoded_bytes());
            let content = read_regular(&file, max)?;
            digest.update((content.len() as u64).to_be_bytes());
            digest.update(&*content);
        }
    }
    Ok(digest.finalize().into())
}

/// The bytes of a regular file; none of what cannot be read.
///
/// # Errors
/// When the path is neither a file nor a folder, or the file is larger than `max` bytes.
pub fn read_regular(path: &Path, max: u64) -> io::Result<Zeroizing<Vec<u8>>> {
    let wrong = |what: &str| io::Error::other(format!("{} {what}", path.display()));
    match fs::metadata(path) {
        Ok(found) if found.is_file() => match read(path, max) {
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(wrong(&format!("is larger than {} MiB: is it the right file?", max >> 20)))
            }
            read => Ok(read.unwrap_or_default()),
        },
        Ok(found) if !found.is_dir() => Err(wrong("is no regular file")),
        _ => Ok(Zeroizing::default()),
    }
}
