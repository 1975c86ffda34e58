//! Keys in a directory, one file a key, in KES's layout: file name = key name, content = the stored text,
//! mode 0600.
//!
//! A key file is created atomically: written under a hidden name, synced, and linked into place, which fails
//! when the name is taken. A call on a disk that hangs fails after a bound, and delays nothing else.

use crate::{
    cause::{Cause, Finding},
    files,
    known::shell_word,
    names::Name,
    secret::Secret,
    store::{Error, History, KeyStore, SetAside},
};
use async_trait::async_trait;
use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::Semaphore;

/// A key store in a directory.
pub struct FsStore {
    dir: Dir,
    /// Bounds the concurrent calls, those that hang included.
    calls: Arc<Semaphore>,
    /// The hidden files of former processes are removed.
    swept: Arc<AtomicBool>,
}

/// The directory, for calls on blocking threads.
#[derive(Clone)]
struct Dir {
    path: PathBuf,
    /// A missing directory counts as an empty one, and is made with the first file.
    on_demand: bool,
}

/// Bound of a key file, in bytes. KES has the same bound.
const FILE_MAX: u64 = 1024 * 1024;

/// Bound of the time of one call.
const CALL_MAX: Duration = Duration::from_secs(10);
/// Bound of the number of concurrent calls.
const CONCURRENT_CALLS_MAX: usize = 16;

// === impl FsStore ===

impl FsStore {
    /// The store in a directory, which must exist.
    pub fn new(dir: PathBuf) -> Self {
        // Absolute, since the store's description must tell two directories of one relative path apart.
        let dir = Dir { path: std::path::absolute(&dir).unwrap_or(dir), on_demand: false };
        Self { dir, calls: Arc::new(Semaphore::new(CONCURRENT_CALLS_MAX)), swept: Arc::default() }
    }

    /// The same store for a directory that is made with the first file.
    pub fn made_on_demand(self) -> Self {
        Self { dir: Dir { on_demand: true, ..self.dir }, ..self }
    }

    /// Runs a call on a blocking thread, for a bounded time.
    async fn call<T: Send + 'static>(
        &self,
        what: &str,
        call: impl FnOnce(&Dir) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (dir, calls) = (self.dir.clone(), self.calls.clone());
        let done = async move {
            let turn = calls.acquire_owned().await;
            let blocking = move || {
                let _turn = turn;
                call(&dir)
            };
            tokio::task::spawn_blocking(blocking).await
        };
        match tokio::time::timeout(CALL_MAX, done).await {
            Ok(Ok(result)) => result,
            Ok(Err(error)) => Err(self.dir.failed(what, &io::Error::other(error))),
            Err(_) => Err(self.dir.failed(what, &ErrorKind::TimedOut.into())),
        }
    }
}

// === impl Dir ===

impl Dir {
    fn failed(&self, what: &str, error: &io::Error) -> Error {
        Error::Failed(self.finding(what, error))
    }

    fn finding(&self, what: &str, error: &io::Error) -> Finding {
        Cause::StoreUnavailable.seen(format!("{what} in {} failed: {error}", self.path.display()))
    }

    fn read(&self, name: &Name) -> Result<Secret, Error> {
        let path = self.path.join(name.as_str());
        let bytes = match files::read(&path, FILE_MAX) {
            Ok(bytes) => bytes,
            Err(error)
                if error.kind() == ErrorKind::NotFound
                    && files::is_absent(&path)
                    && (self.on_demand || self.path.is_dir()) =>
            {
                return Err(Error::Missing(
                    Cause::KeyMissing.seen(format!("there is no key file {}", path.display())).fix(format!(
                        "mount the disk of {}, if it is on one of its own",
                        self.path.display()
                    )),
                ));
            }
            Err(error) if error.kind() == ErrorKind::FileTooLarge => {
                let seen = format!("the key file {} is no key: {error}", path.display());
                return Err(Error::Failed(Cause::KeyMalformed.seen(seen)));
            }
            Err(error) => return Err(self.failed(&format!("reading the key '{name}'"), &error)),
        };
        let text = std::str::from_utf8(&bytes).map_err(|_| {
            Error::Failed(Cause::KeyMalformed.seen(format!("the key file {} is no text", path.display())))
        })?;
        Ok(Secret::new(text.to_owned()))
    }

    fn write(
        &self,
        name: &Name,
        text: &Secret,
        write: fn(&Path, u32, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.on_demand {
            self.make()?;
        }
        write(&self.path.join(name.as_str()), 0o600, text.expose().as_bytes())
    }

    /// Makes the directory and its missing parents, synced to the disk.
    fn make(&self) -> io::Result<()> {
        let parents = self.path.ancestors().filter(|dir| !dir.as_os_str().is_empty());
        let missing: Vec<_> = parents.take_while(|dir| !dir.exists()).collect();
        files::make_private(&self.path)?;
        for dir in missing {
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
        }
        Ok(())
    }

    fn list(&self) -> Result<Vec<String>, Error> {
        let unreadable = |error: io::Error| self.failed("listing the keys", &error);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(unreadable)? {
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

    /// The command that renames a key file. The new name has a dot, so it is no name of a key.
    fn how_to_set_aside(&self, name: &Name) -> String {
        let file = self.path.join(name.as_str()).display().to_string();
        let aside = shell_word(&format!("{file}.set-aside"));
        format!("`mv {} {aside}.$(date +%s)`", shell_word(&file))
    }
}

#[async_trait]
impl KeyStore for FsStore {
    fn describe(&self) -> String {
        format!("Filesystem: {}", self.dir.path.display())
    }

    fn unanswered(&self) -> Cause {
        Cause::StoreUnavailable
    }

    async fn ready(&self) -> Result<(), Finding> {
        let swept = self.swept.clone();
        let ready = move |dir: &Dir| match fs::metadata(&dir.path) {
            Ok(found) if found.is_dir() => {
                if !swept.load(Ordering::Relaxed) {
                    swept.store(files::sweep(&dir.path), Ordering::Relaxed);
                }
                Ok(())
            }
            Ok(_) => {
                let seen = format!("{} is not a directory", dir.path.display());
                Err(Error::Failed(Cause::StoreUnavailable.seen(seen)))
            }
            // The directory is never made here: an empty directory in place of a disk to be mounted would
            // look like a new tenant's.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let fix =
                    format!("mkdir -m 700 {}, or mount it", shell_word(&dir.path.display().to_string()));
                Err(Error::Failed(dir.finding("looking for the keys", &error).fix(fix)))
            }
            Err(error) => Err(dir.failed("looking for the keys", &error)),
        };
        self.call("looking for the keys", ready).await.map_err(Error::finding)
    }

    async fn get(&self, name: &Name) -> Result<Secret, Error> {
        let wanted = name.clone();
        self.call("reading a key", move |dir| dir.read(&wanted)).await
    }

    /// Never [`History::New`]: the directory of a disk that is not mounted is empty.
    async fn history(&self, name: &Name) -> Result<History, Finding> {
        let wanted = name.clone();
        let what = "looking for a key";
        let looked = self.call(what, move |dir| match fs::symlink_metadata(dir.path.join(wanted.as_str())) {
            Ok(_) => Ok(History::Was),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(History::Forgets(
                "a directory forgets what is deleted, and one whose disk is not mounted is empty",
            )),
            Err(error) => Err(dir.failed(what, &error)),
        });
        looked.await.map_err(Error::finding)
    }

    async fn create(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let (name, text) = (name.clone(), Secret::new(text.expose().to_owned()));
        let create = move |dir: &Dir| {
            match dir.write(&name, &text, files::create_for_owner) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => return Err(Error::Exists),
                Err(error) => return Err(dir.failed(&format!("creating the key '{name}'"), &error)),
                Ok(()) => {}
            }
            if dir.read(&name)?.same(&text) { Ok(()) } else { Err(Error::Exists) }
        };
        self.call("creating a key", create).await
    }

    async fn replace(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        let (name, text) = (name.clone(), Secret::new(text.expose().to_owned()));
        let replace = move |dir: &Dir| {
            dir.write(&name, &text, files::write_for_owner)
                .map_err(|error| dir.failed(&format!("replacing the key '{name}'"), &error))
        };
        self.call("replacing a key", replace).await
    }

    async fn delete(&self, name: &Name) -> Result<(), Error> {
        let name = name.clone();
        let delete = move |dir: &Dir| {
            dir.read(&name)?;
            fs::remove_file(dir.path.join(name.as_str()))
                .map_err(|error| dir.failed(&format!("deleting the key '{name}'"), &error))
        };
        self.call("deleting a key", delete).await
    }

    async fn list(&self) -> Result<Vec<String>, Finding> {
        self.call("listing the keys", |dir| dir.list()).await.map_err(Error::finding)
    }

    async fn vouch(&self, _: &Name, _: &str) -> Result<(), Finding> {
        Ok(())
    }

    async fn put_back(&self, name: &Name, text: &Secret) -> Result<(), Error> {
        self.create(name, text).await
    }

    async fn overwritten(&self, _: &Name) -> Result<Option<Finding>, Finding> {
        Ok(None)
    }

    async fn how_to_set_aside(&self, name: &Name) -> SetAside {
        SetAside { command: self.dir.how_to_set_aside(name), others: Vec::new() }
    }
}
