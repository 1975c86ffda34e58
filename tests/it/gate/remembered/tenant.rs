//! A tenant whose key was in use once, and the one place that remembers the key.

use super::{Place, Store, Way};
use crate::harness::{Agent, Bao, KEY, Minio, SOON, eventually, fingerprint, key_text, succeeded};
use keswarden::{
    app::{self, Deps, doctor},
    cause::Finding,
    clock::Clock,
    config::{self, Inputs, Settings},
    health::Health,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};
use tempfile::TempDir;

/// The key of every tenant, and a drive on which a MinIO has started once with this key.
pub struct Written {
    pub key: String,
    pub drive: PathBuf,
    _dir: TempDir,
}

pub static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let (keys, key) = (dir.path().join("keys"), key_text());
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join(KEY), &key).unwrap();
    let settings = [("KESWARDEN_FS_DIR", keys.display().to_string()), ("KESWARDEN_KEY_NAME", KEY.to_owned())];
    let mut agent = Agent::new("first start", &settings);
    let mut minio = Minio::new("first start");
    agent.run();
    agent.ready();
    minio.set(agent.minio_vars(KEY));
    minio.start();
    minio.wait_live();
    minio.stop();
    let drive = dir.path().join("drive");
    let copied = Command::new("cp").arg("-a").arg(&minio.drives()[0]).arg(&drive).output().unwrap();
    succeeded("cp", &copied);
    Written { key, drive, _dir: dir }
});

/// A tenant whose key was in use once.
pub struct Remembered<'a> {
    pub bao: &'a Bao,
    pub store: Store,
    pub place: Place,
    pub prefix: String,
    pub dir: TempDir,
    agent: Option<Agent>,
}

// === impl Remembered ===

impl<'a> Remembered<'a> {
    pub fn new(bao: &'a Bao, store: Store, place: Place, prefix: String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("wrapping.key"), "0123456789abcdef0123456789abcdef").unwrap();
        for folder in ["keys", "elsewhere", "pins", "copy"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let mut tenant = Self { bao, store, place, prefix, dir, agent: None };
        tenant.put("", &WRITTEN.key);
        if place == Place::RunningAgent || place == Place::SealedCopy {
            let mut agent = tenant.agent("in use");
            agent.run();
            agent.ready();
            if place == Place::SealedCopy {
                let copy = tenant.path("copy/keys.sealed");
                eventually(SOON, "the copy is written", || copy.exists());
                agent.kill();
            } else {
                tenant.agent = Some(agent);
            }
        } else {
            tenant.init("").unwrap();
        }
        tenant
    }

    /// An agent of this tenant, not started yet.
    pub fn agent(&self, name: &str) -> Agent {
        let mut agent = Agent::new(name, &[]);
        for (name, value) in self.environment("") {
            // The agent has ports of its own, and waits at its gate.
            if !matches!(name, "KESWARDEN_ADDR" | "KESWARDEN_ADMIN_ADDR" | "KESWARDEN_GATE_TIMEOUT") {
                agent.set(name, &value);
            }
        }
        agent
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn mount(&self) -> &'static str {
        if self.store == Store::KvVersion1 { "kv1" } else { "kv2" }
    }

    /// The settings of its gate, with its keys in this folder beside the usual one.
    pub fn environment(&self, elsewhere: &str) -> Vec<(&'static str, String)> {
        let path = |name: &str| self.path(name).display().to_string();
        let mut settings = vec![
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
            ("KESWARDEN_RUN_DIR", path("run")),
            ("KESWARDEN_GATE_TIMEOUT", "0".to_owned()),
            ("KESWARDEN_ADMIN_ADDR", "127.0.0.1:0".to_owned()),
            ("KESWARDEN_ADDR", "127.0.0.1:0".to_owned()),
            ("KESWARDEN_EVENTS", "off".to_owned()),
        ];
        match self.store {
            Store::Directory => settings
                .push(("KESWARDEN_FS_DIR", path(if elsewhere.is_empty() { "keys" } else { elsewhere }))),
            _ => settings.extend(self.bao.vars().into_iter().chain([
                ("KESWARDEN_VAULT_TOKEN", self.bao.root_token().to_owned()),
                ("KESWARDEN_VAULT_KV_MOUNT", self.mount().to_owned()),
                ("KESWARDEN_VAULT_KV_PREFIX", format!("{}{elsewhere}", self.prefix)),
            ])),
        }
        if self.place != Place::StateDirectory {
            settings.push(("KESWARDEN_MEMORY", "off".to_owned()));
        }
        match self.place {
            Place::SealedCopy => settings.extend([
                ("KESWARDEN_OFFLINE_DIR", path("copy")),
                ("KESWARDEN_OFFLINE_KEY_FILE", path("wrapping.key")),
            ]),
            Place::PinDirectory => settings.push(("KESWARDEN_PIN_DIR", path("pins"))),
            Place::PinPath => settings.push(("KESWARDEN_PIN_KV", format!("pins/{}", self.prefix))),
            Place::StatedPin => {
                settings.push(("KESWARDEN_PINS", format!("{KEY}={}", fingerprint(&WRITTEN.key))))
            }
            Place::Drives => settings.push(("KESWARDEN_DRIVES", WRITTEN.drive.display().to_string())),
            Place::StateDirectory | Place::RunningAgent | Place::Nowhere => {}
        }
        settings
    }

    pub fn settings(&self, elsewhere: &str, more: &[(&'static str, &str)]) -> Settings {
        let environment = self.environment(elsewhere).into_iter();
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let environment = environment.chain(more).map(|(name, value)| (name.into(), value.into())).collect();
        let inputs = Inputs { environment, config: None, key: None };
        config::load(inputs).unwrap_or_else(|problems| panic!("{problems}"))
    }

    pub fn gate(&self, elsewhere: &str, more: &[(&'static str, &str)]) -> Result<(), Finding> {
        let health = Health::new(Clock::system());
        match on_own_runtime(app::init(self.settings(elsewhere, more), Deps::default(), health)) {
            Ok(()) => Ok(()),
            Err(app::Stopped::Gate(refused)) => Err(refused.finding),
            Err(stopped) => panic!("{stopped}"),
        }
    }

    pub fn init(&self, elsewhere: &str) -> Result<(), Finding> {
        self.gate(elsewhere, &[])
    }

    pub fn create_first(&self, elsewhere: &str) -> Result<String, Finding> {
        match on_own_runtime(app::create_first(self.settings(elsewhere, &[]))) {
            Ok(fingerprint) => Ok(fingerprint),
            Err(app::Stopped::Refused(finding)) => Err(finding),
            Err(stopped) => panic!("{stopped}"),
        }
    }

    /// The first row that failed.
    pub fn doctor(&self, elsewhere: &str) -> Result<(), Finding> {
        let rows = on_own_runtime(doctor::examine(self.settings(elsewhere, &[]), Deps::default())).unwrap();
        let failed = rows.into_iter().find_map(|row| match row.outcome {
            doctor::Outcome::Failed(finding) => Some(finding),
            _ => None,
        });
        failed.map_or(Ok(()), Err)
    }

    pub fn secret(&self, elsewhere: &str) -> String {
        format!("{}{elsewhere}/{KEY}", self.prefix)
    }

    pub fn stored(&self, elsewhere: &str) -> Option<String> {
        if self.store == Store::Directory {
            let folder = if elsewhere.is_empty() { "keys" } else { elsewhere };
            return fs::read_to_string(self.path(folder).join(KEY)).ok();
        }
        let (mount, field) = (format!("-mount={}", self.mount()), format!("-field={KEY}"));
        let output = self.bao.cli(&["kv", "get", &mount, &field, &self.secret(elsewhere)]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    pub fn put(&self, elsewhere: &str, text: &str) {
        if self.store == Store::Directory {
            let folder = if elsewhere.is_empty() { "keys" } else { elsewhere };
            return fs::write(self.path(folder).join(KEY), text).unwrap();
        }
        let (mount, field) = (format!("-mount={}", self.mount()), format!("{KEY}=-"));
        let cas: &[&str] = if self.store == Store::KvVersion2 { &["-cas=0"] } else { &[] };
        let secret = self.secret(elsewhere);
        self.bao.ok(&[&["kv", "put"], cas, &[&mount, &secret, &field]].concat(), text);
    }

    pub fn delete(&self) {
        let (mount, secret) = (format!("-mount={}", self.mount()), self.secret(""));
        match self.store {
            Store::Directory => fs::remove_file(self.path("keys").join(KEY)).unwrap(),
            Store::KvVersion1 => drop(self.bao.ok(&["kv", "delete", &mount, &secret], "")),
            Store::KvVersion2 => drop(self.bao.ok(&["kv", "metadata", "delete", &mount, &secret], "")),
        }
    }

    /// Loses the key; the folder that the settings name from then on.
    pub fn loses(&self, way: Way, other: &str) -> &'static str {
        let (mount, secret) = (format!("-mount={}", self.mount()), self.secret(""));
        match way {
            Way::Deleted => self.delete(),
            Way::SoftDeleted => drop(self.bao.ok(&["kv", "delete", &mount, &secret], "")),
            Way::Destroyed => drop(self.bao.ok(&["kv", "destroy", &mount, "-versions=1", &secret], "")),
            Way::Replaced => {
                self.delete();
                self.put("", other);
            }
            Way::MovedToNothing => return "elsewhere",
            Way::MovedToAnothers => {
                self.put("elsewhere", other);
                return "elsewhere";
            }
        }
        ""
    }
}

pub fn on_own_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

pub fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).unwrap_or_else(|| panic!("{from}: {text}")) + from.len();
    let rest = &text[start..];
    &rest[..rest.find(to).unwrap_or_else(|| panic!("{to}: {rest}"))]
}

/// Runs a printed command in a shell with the agent's settings, and Vault's.
pub fn paste(agent: &Agent, bao: &Bao, command: &str, dir: &Path) {
    println!("$ {command}");
    let output = agent.shell(
        command,
        dir,
        &[
            ("BAO_ADDR", bao.addr()),
            ("BAO_CACERT", bao.ca_path().display().to_string()),
            ("BAO_TOKEN", bao.root_token().to_owned()),
        ],
    );
    succeeded(command, &output);
}
