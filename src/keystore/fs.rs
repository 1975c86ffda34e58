//! Keys in a directory, one file a key, in KES's layout: file name = key name, content = the stored text, mode 0600.
//!
//! A key file is whole or not there: it is written under a hidden name, synced, and linked into place, which fails
//! when the name is taken.

use crate::{
    cause::{Cause, Finding},
    names::Name,
    secret::Secret,
    store::{Error, KeyStore},
};
use async_trait::async_trait;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};
use zeroize::Zeroizing;

/// Keys in a directory.
pub struct FsStore {
    dir: PathBuf,
    /// A directory that is not there is an empty one: it is made with the first file.
    on_demand: bool,
}

/// A larger file is no key (KES reads as much).
const MAX_FILE: u64 = 1024 * 1024;

// === impl FsStore ===

impl FsStore {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, on_demand: false }
    }

    /// The same for a directory that need not be there yet.
    pub fn made_on_demand(self) -> Self {
        Self { on_demand: true, ..self }
    }

    fn failed(&self, what: &str, error: &io::Error) -> Error {
        Error::Failed(self.finding(what, error))
    }

    fn finding(&self, what: &str, error: &io::Error) -> Finding {
        Cause::StoreUnavailable.seen(format!("{what} in {} failed: {error}", self.dir.display()))
    }

    fn read(&self, name: &Name) -> Result<Secret, Error> {
        let path = self.dir.join(name.as_str());
        let mut bytes = Zeroizing::new(Vec::with_capacity(1024));
        let read = File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound && (self.on_demand || self.dir.is_dir()) => {
                return Err(Error::Missing(
                    Cause::KeyMissing
                        .seen(format!("there is no key file {}", path.display()))
                        .fix(format!("create it once: {}", self.how_to_create(name))),
                ));
            }
            Err(error) => return Err(self.failed(&format!("reading the key '{name}'"), &error)),
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            Error::Failed(Cause::KeyMalformed.seen(format!("the key file {} is no text", path.display())))
        })?;
        Ok(Secret::new(text.to_owned()))
    }

    /// Writes the whole key under a hidden name, and lets `place` put it where it belongs.
    fn write(
        &self,
        name: &Name,
        text: &Secret,
        place: impl Fn(&Path, &Path) -> io::Result<()>,
    ) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir)?;
        let hidden =
            self.dir.join(format!(".{name}.{}", crate::secret::hex(&crate::secret::random32()[..8])));
        let result = (|| {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&hidden)?;
            file.write_all(text.expose().as_bytes())?;
            file.sync_all()?;
            place(&hidden, &self.dir.join(name.as_str()))
        })();
        let _ = fs::remove_file(&hidden);
        result?;
        File::open(&self.dir)?.sync_all()
    }
}

#[async_trait]
impl KeyStore for FsStore {
    fn describe(&self) -> String {
        format!("Filesystem: {}", self.dir.display())
    }

    async fn ready(&self) -> Result<(), Finding> {
        match fs::metadata(&self.dir) {
            Ok(found) if found.is_dir() => Ok(()),
            Ok(_) => Err(Cause::StoreUnavailable.seen(format!("{} is not a directory", self.dir.display()))),
            Err(error) => Err(self.finding("looking for the keys", &error)),
        }
    }

    async fn get(&self, name: &Name) -> Result<Secret, Error> {
        self.read(name)
    }

    async fn has_trace(&self, name: &Name) -> Result<bool, Finding> {
        match fs::symlink_metadata(self.dir.join(name.as_str())) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(self.finding(&format!("looking for the key '{name}'"), &error)),
        }
    }

    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        match self.write(name, text, |hidden, place| fs::hard_link(hidden, place)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(Error::Exists),
            Err(error) => return Err(self.failed(&format!("creating the key '{name}'"), &error)),
            Ok(()) => {}
        }
        match self.read(name)?.same(text) {
            true => Ok(()),
            false => Err(Error::Exists),
        }
    }

    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.write(name, text, |hidden, place| fs::rename(hidden, place))
            .map_err(|error| self.failed(&format!("replacing the key '{name}'"), &error))
    }

    async fn delete(&self, name: &Name) -> Result<(), Error> {
        self.read(name)?;
        fs::remove_file(self.dir.join(name.as_str()))
            .map_err(|error| self.failed(&format!("deleting the key '{name}'"), &error))
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        let unreadable = |error: io::Error| self.finding("listing the keys", &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            if !fs::metadata(entry.path()).is_ok_and(|found| found.is_file()) {
                continue;
            }
            if let Some(name) = entry.file_name().to_str().filter(|name| Name::parse(name).is_ok()) {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn how_to_create(&self, name: &Name) -> String {
        format!("`(umask 077; set -C; keswarden key new > {})`", shell_word(&self.dir.join(name.as_str())))
    }
}

fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte));
    if plain { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
