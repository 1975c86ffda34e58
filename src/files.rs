//! Files: read within a bound, written whole or not at all, swept, digested, and read aside where a file system may hang.

mod aside;
mod read;
mod write;

pub use aside::{Blocking, Hangs};
pub use read::{digest, read, read_regular};
pub use write::{create, create_anywhere, sweep, sync_folder, write, write_lightly};

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, chown},
    path::Path,
};

/// Gives a file or folder that this process has just made to the owner of the folder that it is in. Only root can, and only root needs
/// to: a command that a person runs as root must not leave files that the agent's own user cannot read.
/// Where the system does not allow it, as on a share, or for a root without CAP_CHOWN, the file stays as it was made: what is written
/// matters more than whose it is.
pub fn belongs_to_its_folder(path: &Path) {
    if rustix::process::geteuid().is_root()
        && let Err(error) = hand_over(path)
    {
        tracing::warn!("{} belongs to root, and not to the owner of its folder: {error}", path.display());
    }
}

fn hand_over(path: &Path) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let (ours, theirs) = (fs::symlink_metadata(path)?, fs::metadata(folder)?);
    if (ours.uid(), ours.gid()) == (theirs.uid(), theirs.gid()) {
        return Ok(());
    }
    chown(path, Some(theirs.uid()), Some(theirs.gid()))
}

/// Makes a folder and what is missing above it, mode 0700, each belonging to the owner of the folder that it is in.
///
/// # Errors
/// When it cannot be made.
pub fn make_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let missing: Vec<_> =
        dir.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    missing.into_iter().rev().for_each(belongs_to_its_folder);
    Ok(())
}

/// Whether nothing is at a path, and nothing is missing that should lead there: a link to a volume that is not mounted is no absence.
pub fn is_absent(path: &Path) -> bool {
    let first = path.ancestors().find_map(|path| Some((path, fs::symlink_metadata(path).ok()?)));
    first.is_none_or(|(there, found)| there != path && !(found.is_symlink() && fs::metadata(there).is_err()))
}
