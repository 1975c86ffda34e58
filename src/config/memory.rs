//! What remembers keys: state directories, pins, the sealed copy.
//!
//! A state directory is there by default, so that a wrong key never passes only because nobody has set anything up: systemd's own, or one
//! below `/var/lib` that is called like the run directory below `/run`, and the agent's part of the run directory in any case.

use super::{parse::Reader, safety::offline_settings};
use crate::{keystore, names::Name, offline, pins};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

/// Where keys are remembered.
#[derive(Clone, Default)]
pub struct MemorySettings {
    /// Whose keys they are; may be empty.
    pub tenant: String,
    /// State directories.
    pub dirs: Vec<StateDir>,
    pub mode: pins::Mode,
    /// Pins that the settings state.
    pub stated: BTreeMap<String, String>,
    /// A directory of pins.
    pub pin_dir: Option<PathBuf>,
    /// A K/V path of pins, in the Vault of the keys.
    pub pin_kv: Option<keystore::vault::Config>,
    pub offline: Option<offline::Config>,
    /// KES's own file, when that is the set-up.
    pub config: Option<PathBuf>,
    /// Where a `server` with that file keeps its memory and its control socket, unless it was told otherwise.
    pub server_dir: Option<PathBuf>,
    /// The state directories of other configuration files on this machine: what they know of the same key store counts.
    pub neighbours: Vec<PathBuf>,
}

/// A directory in which keys are remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    pub path: PathBuf,
    /// Nobody has named it: where it neither is nor can be made, there is none.
    pub by_default: bool,
    /// It outlives this machine's next start, or this pod, as far as its path tells.
    pub lasts: bool,
}

/// Where run directories are that a restart of the machine takes away.
const VOLATILE: &[&str] = &["/run", "/var/run", "/dev/shm"];
/// Where state is kept that outlives it.
const LASTING: &str = "/var/lib";
/// What state is called that no run directory gives a name.
const OURS: &str = "keswarden";
/// How the name of a `server`'s state directory begins.
const SERVER: &str = "server-";
/// How many state directories of other configuration files are asked.
const MOST_NEIGHBOURS: usize = 32;

/// The memory of `init`, `run` and the commands beside them.
pub(super) fn of_agent(reader: &mut Reader, run_dir: &Path, config: Option<PathBuf>) -> MemorySettings {
    let part = StateDir { lasts: lasts(run_dir), path: run_dir.join("agent"), by_default: true };
    let named = named(reader);
    let parallel = || {
        let below = VOLATILE.iter().find_map(|top| run_dir.strip_prefix(top).ok());
        let below = below.filter(|below| !below.as_os_str().is_empty())?;
        Some(StateDir { path: Path::new(LASTING).join(below), by_default: true, lasts: true })
    };
    let server_dir = config.as_deref().and_then(|config| dir_of_server(reader, config));
    // What a `server` of the same file remembers is asked as well, where there is one.
    let theirs = server_dir.clone().filter(|dir| dir.exists());
    let theirs = theirs.map(|path| StateDir { path, by_default: true, lasts: true });
    // A command beside a `server` must not write into what the agents of this machine share by default.
    let beside_server =
        theirs.is_some() && named.is_none() && !reader.environment().contains_key("KESWARDEN_RUN_DIR");
    let mut neighbours = server_dir.as_deref().map(neighbours).unwrap_or_default();
    let dirs = match beside_server {
        true => {
            // An agent with this file may have been here before: its directories are asked, and not written to.
            neighbours.extend(parallel().into_iter().chain([part]).map(|dir| dir.path));
            theirs.into_iter().collect()
        }
        false => named.or_else(parallel).into_iter().chain([part]).chain(theirs).collect(),
    };
    MemorySettings { server_dir, neighbours, ..settings(reader, dirs, config) }
}

/// The memory of `server`: without a word from anybody, one directory for each configuration file.
pub(super) fn of_server(reader: &mut Reader, run_dir: Option<&Path>, config: &Path) -> MemorySettings {
    let part = run_dir.map(|dir| StateDir { path: dir.join("agent"), by_default: false, lasts: lasts(dir) });
    let by_default = dir_of_server(reader, config);
    let dir = named(reader)
        .or(part)
        .or_else(|| Some(StateDir { path: by_default.clone()?, by_default: true, lasts: true }));
    let neighbours = by_default.as_deref().map(neighbours).unwrap_or_default();
    MemorySettings { neighbours, ..settings(reader, dir.into_iter().collect(), Some(config.to_owned())) }
}

/// The directories of other files' servers beside this one's.
fn neighbours(of: &Path) -> Vec<PathBuf> {
    let entries = of.parent().and_then(|home| std::fs::read_dir(home).ok()).into_iter().flatten().flatten();
    let is_one = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        path != of && name.is_some_and(|name| name.starts_with(SERVER))
    };
    let mut found: Vec<_> = entries.map(|entry| entry.path()).filter(is_one).take(MOST_NEIGHBOURS).collect();
    found.sort();
    found
}

fn dir_of_server(reader: &Reader, config: &Path) -> Option<PathBuf> {
    Some(state_home(reader)?.join(OURS).join(format!("{SERVER}{}", digest_of(config))))
}

/// The directory that somebody has named: an operator, or systemd.
fn named(reader: &mut Reader) -> Option<StateDir> {
    let ours = reader.path("KESWARDEN_STATE_DIR");
    let of_systemd = reader.environment().get("STATE_DIRECTORY");
    let of_systemd = of_systemd.and_then(|dirs| dirs.split(':').next()).filter(|dir| !dir.is_empty());
    let path = ours.or_else(|| of_systemd.map(PathBuf::from))?;
    Some(StateDir { lasts: lasts(&path), path, by_default: false })
}

/// Where a user's programs keep their state; root's is the machine's.
fn state_home(reader: &Reader) -> Option<PathBuf> {
    let variable =
        |name: &str| reader.environment().get(name).filter(|value| value.starts_with('/')).map(PathBuf::from);
    variable("XDG_STATE_HOME").or_else(|| match rustix::process::geteuid().is_root() {
        true => Some(PathBuf::from(LASTING)),
        false => Some(variable("HOME")?.join(".local/state")),
    })
}

fn lasts(dir: &Path) -> bool {
    !VOLATILE.iter().any(|top| dir.starts_with(top))
}

/// A short name for a file, by its absolute path as it was given: a link to the release, or ConfigMap, of today leads elsewhere tomorrow.
fn digest_of(file: &Path) -> String {
    use sha2::{Digest, Sha256};
    use std::os::unix::ffi::OsStrExt;
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    crate::secret::hex(&Sha256::digest(file.as_os_str().as_bytes())[..8])
}

fn settings(reader: &mut Reader, dirs: Vec<StateDir>, config: Option<PathBuf>) -> MemorySettings {
    let remembers = reader.switch("KESWARDEN_MEMORY");
    let tenant = reader.vault_path("KESWARDEN_TENANT").unwrap_or_default();
    let pin_dir = reader.path("KESWARDEN_PIN_DIR").map(|dir| dir.join(&tenant));
    let keys =
        reader.environment().get("KESWARDEN_VAULT_KV_MOUNT").map_or("kv", |mount| mount.trim_matches('/'));
    let keys = keys.to_owned();
    let pin_kv = reader.vault_path("KESWARDEN_PIN_KV").map(|path| {
        // A mount may have slashes in its name: that of the keys is known.
        let below = path.strip_prefix(&keys).and_then(|rest| rest.strip_prefix('/'));
        let (mount, prefix) = match below {
            Some(below) => (keys.as_str(), below),
            None => path.split_once('/').unwrap_or((&path, "keswarden-pins")),
        };
        let prefix =
            [prefix, &tenant].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        keystore::vault::Config { mount: mount.to_owned(), version: None, prefix, transit: None }
    });
    let mode = match reader.word("KESWARDEN_PIN") {
        "require" => pins::Mode::Require,
        "off" => pins::Mode::Off,
        _ => pins::Mode::Warn,
    };
    MemorySettings {
        tenant,
        dirs: if remembers { dirs } else { Vec::new() },
        mode,
        stated: stated(reader),
        pin_dir,
        pin_kv,
        offline: offline_settings(reader),
        config,
        server_dir: None,
        neighbours: Vec::new(),
    }
}

fn stated(reader: &mut Reader) -> BTreeMap<String, String> {
    let mut stated = BTreeMap::new();
    for item in reader.list("KESWARDEN_PINS") {
        match item.split_once('=') {
            Some((name, fingerprint)) if Name::parse(name).is_ok() && !fingerprint.is_empty() => {
                stated.insert(name.to_owned(), fingerprint.trim().to_owned());
            }
            _ => reader.problem("KESWARDEN_PINS", Some(&item), "is not NAME=FINGERPRINT"),
        }
    }
    stated
}
