//! Writing: readers see the former file or the whole new one, even after a power cut.

use super::belongs_to_its_folder;
use crate::secret;
use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// For how long a file may be in the making: an older one was left behind by a process that was killed.
const MAKING_MAX: Duration = Duration::from_secs(60);
/// Hexadecimal digits in the name of a file in the making, `.FILE.DIGITS`.
const DIGITS: usize = 16;
/// Digits in the names that earlier versions gave, `STEM.DIGITS.new`.
const FORMER_DIGITS: usize = 8;

/// How a file comes to its place, and whose it is.
#[derive(Clone, Copy)]
struct Making {
    /// The file and its name are on the disk when the call returns.
    durable: bool,
    /// The file belongs to the owner of its folder, whoever makes it.
    for_owner: bool,
    /// A file that is there already stays.
    only_new: bool,
}

/// Writes a file in the place of the former one, and has it on the disk.
///
/// # Errors
/// When any step fails; the former file stays then.
pub fn write(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    put(path, mode, bytes, Making { durable: true, for_owner: false, only_new: false })
}

/// As [`write()`], for what is made anew when it is not whole: nobody waits for the disk.
///
/// # Errors
/// As for [`write()`].
pub fn write_lightly(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    put(path, mode, bytes, Making { durable: false, for_owner: false, only_new: false })
}

/// As [`write()`], for a file that the owner of its folder must be able to read, though root writes it.
///
/// # Errors
/// As for [`write()`].
pub fn write_for_owner(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    put(path, mode, bytes, Making { durable: true, for_owner: true, only_new: false })
}

/// As [`write_for_owner`], where no file is yet.
///
/// # Errors
/// [`io::ErrorKind::AlreadyExists`] when a file is there, which stays as it is; otherwise as for [`write()`].
pub fn create_for_owner(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    put(path, mode, bytes, Making { durable: true, for_owner: true, only_new: true })
}

/// Writes a file where none is yet, on any file system: one without hard links, such as a memory stick's, may show a part of the file
/// meanwhile.
///
/// # Errors
/// As for [`create_for_owner`]; nothing is left behind.
pub fn create_anywhere(path: &Path, mode: u32, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    let written = file.write_all(bytes).and_then(|()| file.sync_all()).and_then(|()| sync_folder(path));
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}

fn put(path: &Path, mode: u32, bytes: &[u8], making: Making) -> io::Result<()> {
    // Two processes may write the same file: each makes its own, and the last one counts.
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    let made = path.with_file_name(format!(".{file}.{}", secret::hex(&secret::random::<{ DIGITS / 2 }>())));
    let placed = make(&made, mode, bytes, making).and_then(|()| match making.only_new {
        true => fs::hard_link(&made, path),
        false => fs::rename(&made, path),
    });
    // After a rename it is gone.
    let _ = fs::remove_file(&made);
    placed?;
    if !making.durable {
        return Ok(());
    }
    match sync_folder(path) {
        // Some file systems sync no folders, and some folders cannot be opened: the file is whole all the same.
        Err(error) if !making.only_new && is_unsupported(&error) => Ok(()),
        synced => synced,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
    matches!(error.kind(), InvalidInput | PermissionDenied | Unsupported)
}

fn make(path: &Path, mode: u32, bytes: &[u8], making: Making) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
    // Whatever the umask is: some files are for others to read. Some file systems know no modes.
    let _ = file.set_permissions(Permissions::from_mode(mode));
    file.write_all(bytes)?;
    if making.durable {
        file.sync_all()?;
    }
    if making.for_owner {
        belongs_to_its_folder(path, &file);
    }
    Ok(())
}

/// Has the name of a file on the disk.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Removes what was left in the making by processes that were killed, which may hold a key. True when nothing is in the making any more.
pub fn sweep(folder: &Path) -> bool {
    let Ok(entries) = fs::read_dir(folder) else { return false };
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut in_the_making: Vec<PathBuf> = paths.filter(|path| is_in_the_making(path)).collect();
    in_the_making.retain(|path| !(is_left_behind(path) && fs::remove_file(path).is_ok()));
    in_the_making.is_empty()
}

/// `.FILE.DIGITS`, or `STEM.DIGITS.new` as earlier versions had it.
fn is_in_the_making(path: &Path) -> bool {
    let Some(file) = path.file_name().and_then(|file| file.to_str()) else { return false };
    let is_hex =
        |text: &str, digits: usize| text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hidden = file.strip_prefix('.').and_then(|rest| rest.rsplit_once('.'));
    let former = file.strip_suffix(".new").and_then(|rest| rest.rsplit_once('.'));
    hidden.is_some_and(|(of, tail)| !of.is_empty() && is_hex(tail, DIGITS))
        || former.is_some_and(|(of, tail)| !of.is_empty() && is_hex(tail, FORMER_DIGITS))
}

fn is_left_behind(path: &Path) -> bool {
    let age = fs::symlink_metadata(path).and_then(|about| about.modified()).map(|at| at.elapsed());
    matches!(age, Ok(Ok(age)) if age > MAKING_MAX)
}
