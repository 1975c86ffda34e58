//! Files: read within a bound, written whole or not at all, swept, digested, and read aside where a file system may hang.

mod aside;
mod read;
mod write;

pub use aside::{Blocking, Hangs};
pub use read::{digest, read, read_regular};
pub use write::{
    create_anywhere, create_for_owner, sweep, sync_folder, write, write_for_owner, write_lightly,
};

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, fchown},
    path::Path,
};

/// Gives a file or folder that this process has just made, and has open, to the owner of the folder that it is in. Only root can, and only root needs
/// to: a command that a person runs as root must not leave files that the agent's own user cannot read.
/// Where the system does not allow it, as on a share, or for a root without CAP_CHOWN, the file stays as it was made: what is written
/// matters more than whose it is.
pub fn belongs_to_its_folder(path: &Path, made: &File) {
    if rustix::process::geteuid().is_root()
        && let Err(error) = hand_over(path, made)
    {
        tracing::warn!("{} belongs to root, and not to the owner of its folder: {error}", path.display());
    }
}

fn hand_over(path: &Path, made: &File) -> io::Result<()> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let (ours, theirs) = (made.metadata()?, fs::metadata(folder)?);
    if (ours.uid(), ours.gid()) == (theirs.uid(), theirs.gid()) {
        return Ok(());
    }
    fchown(made, Some(theirs.uid()), Some(theirs.gid()))
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
    for dir in missing.into_iter().rev() {
        belongs_to_its_folder(dir, &File::open(dir)?);
    }
    Ok(())
}

/// Whether nothing is at a path, and nothing is missing that should lead there: a link to a volume that is not mounted is no absence.
pub fn is_absent(path: &Path) -> bool {
    let first = path.ancestors().find_map(|path| Some((path, fs::symlink_metadata(path).ok()?)));
    first.is_none_or(|(there, found)| there != path && !(found.is_symlink() && fs::metadata(there).is_err()))
}
