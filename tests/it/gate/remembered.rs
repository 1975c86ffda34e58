//! The memory of keys under attack: way of loss × place of memory × command × store. Each cell is refused with its cause and what is known,
//! or it says why nothing could know.

use crate::{
    harness::{KEY, key_text},
    peers::{Agent, Bao, Minio, SOON, eventually, succeeded},
};
use keswarden::{
    app::{self, Deps, doctor},
    cause::{Cause, Finding},
    clock::Clock,
    config::{self, Inputs, Settings},
    crypto::key_version::KeyVersion,
    exit,
    health::Health,
};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::LazyLock,
};
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    Directory,
    KvVersion1,
    KvVersion2,
}

/// The only place that remembers the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    StateDirectory,
    SealedCopy,
    PinDirectory,
    PinPath,
    StatedPin,
    Drives,
    RunningAgent,
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// No trace is left where the store can do that.
    Deleted,
    /// K/V v2: what can be undone.
    SoftDeleted,
    Destroyed,
    Replaced,
    /// The settings name a place where nothing is.
    MovedToNothing,
    /// The settings name another tenant's place, with a key of this name.
    MovedToAnothers,
}

const PLACES: [Place; 8] = [
    Place::StateDirectory,
    Place::SealedCopy,
    Place::PinDirectory,
    Place::PinPath,
    Place::StatedPin,
    Place::Drives,
    Place::RunningAgent,
    Place::Nowhere,
];

const WAYS: [Way; 6] = [
    Way::Deleted,
    Way::SoftDeleted,
    Way::Destroyed,
    Way::Replaced,
    Way::MovedToNothing,
    Way::MovedToAnothers,
];

// === impl Way ===

impl Way {
    /// Another key is there afterwards, rather than none.
    fn replaces(self) -> bool {
        matches!(self, Self::Replaced | Self::MovedToAnothers)
    }

    fn can_be_done_to(self, store: Store) -> bool {
        store == Store::KvVersion2 || !matches!(self, Self::SoftDeleted | Self::Destroyed)
    }

    /// The store itself shows that there was a key.
    fn leaves_a_trace(self) -> bool {
        matches!(self, Self::SoftDeleted | Self::Destroyed)
    }
}

/// The key of every tenant, and a drive that a MinIO has used with it: its first start, and nothing else.
struct Written {
    key: String,
    drive: PathBuf,
    _dir: TempDir,
}

static WRITTEN: LazyLock<Written> = LazyLock::new(|| {
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

fn fingerprint(text: &str) -> String {
    KeyVersion::parse(text.as_bytes()).unwrap().key.fingerprint()
}

/// A tenant whose key was in use once.
struct Tenant<'a> {
    bao: &'a Bao,
    store: Store,
    place: Place,
    prefix: String,
    dir: TempDir,
    agent: Option<Agent>,
}

// === impl Tenant ===

impl<'a> Tenant<'a> {
    fn new(bao: &'a Bao, store: Store, place: Place, prefix: String) -> Self {
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

    /// An agent of its own, not started yet.
    fn agent(&self, name: &str) -> Agent {
        let mut agent = Agent::new(name, &[]);
        for (name, value) in self.environment("") {
            // Its ports are its own, and it waits.
            if !matches!(name, "KESWARDEN_ADDR" | "KESWARDEN_ADMIN_ADDR" | "KESWARDEN_GATE_TIMEOUT") {
                agent.set(name, &value);
            }
        }
        agent
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn mount(&self) -> &'static str {
        if self.store == Store::KvVersion1 { "kv1" } else { "kv2" }
    }

    /// The settings of its gate, with its keys in this folder beside the usual one.
    fn environment(&self, elsewhere: &str) -> Vec<(&'static str, String)> {
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
            _ => settings.extend([
                ("KESWARDEN_VAULT_ADDR", self.bao.addr()),
                ("KESWARDEN_VAULT_CACERT", self.bao.ca_path().display().to_string()),
                ("KESWARDEN_VAULT_TOKEN", self.bao.root_token().to_owned()),
                ("KESWARDEN_VAULT_KV_MOUNT", self.mount().to_owned()),
                ("KESWARDEN_VAULT_KV_PREFIX", format!("{}{elsewhere}", self.prefix)),
            ]),
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

    fn settings(&self, elsewhere: &str, more: &[(&'static str, &str)]) -> Settings {
        let environment = self.environment(elsewhere).into_iter();
        let more = more.iter().map(|(name, value)| (*name, (*value).to_owned()));
        let environment = environment.chain(more).map(|(name, value)| (name.into(), value.into())).collect();
        let inputs = Inputs { environment, config: None, key: None };
        config::load(inputs).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn gate(&self, elsewhere: &str, more: &[(&'static str, &str)]) -> Result<(), Finding> {
        let health = Health::new(Clock::system());
        match block_on(app::init(self.settings(elsewhere, more), Deps::default(), health)) {
            Ok(()) => Ok(()),
            Err(app::Stopped::Gate(refused)) => Err(refused.finding),
            Err(stopped) => panic!("{stopped}"),
        }
    }

    fn init(&self, elsewhere: &str) -> Result<(), Finding> {
        self.gate(elsewhere, &[])
    }

    fn create_first(&self, elsewhere: &str) -> Result<String, Finding> {
        match block_on(app::create_first(self.settings(elsewhere, &[]))) {
            Ok(fingerprint) => Ok(fingerprint),
            Err(app::Stopped::Refused(finding)) => Err(finding),
            Err(stopped) => panic!("{stopped}"),
        }
    }

    /// The first row that failed.
    fn doctor(&self, elsewhere: &str) -> Result<(), Finding> {
        let rows = block_on(doctor::examine(self.settings(elsewhere, &[]), Deps::default())).unwrap();
        let failed = rows.into_iter().find_map(|row| match row.outcome {
            doctor::Outcome::Failed(finding) => Some(finding),
            _ => None,
        });
        failed.map_or(Ok(()), Err)
    }

    fn secret(&self, elsewhere: &str) -> String {
        format!("{}{elsewhere}/{KEY}", self.prefix)
    }

    fn stored(&self, elsewhere: &str) -> Option<String> {
        if self.store == Store::Directory {
            let folder = if elsewhere.is_empty() { "keys" } else { elsewhere };
            return fs::read_to_string(self.path(folder).join(KEY)).ok();
        }
        let (mount, field) = (format!("-mount={}", self.mount()), format!("-field={KEY}"));
        let output = self.bao.cli(&["kv", "get", &mount, &field, &self.secret(elsewhere)]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn put(&self, elsewhere: &str, text: &str) {
        if self.store == Store::Directory {
            let folder = if elsewhere.is_empty() { "keys" } else { elsewhere };
            return fs::write(self.path(folder).join(KEY), text).unwrap();
        }
        let (mount, field) = (format!("-mount={}", self.mount()), format!("{KEY}=-"));
        let cas: &[&str] = if self.store == Store::KvVersion2 { &["-cas=0"] } else { &[] };
        let secret = self.secret(elsewhere);
        self.bao.ok(&[&["kv", "put"], cas, &[&mount, &secret, &field]].concat(), text);
    }

    fn delete(&self) {
        let (mount, secret) = (format!("-mount={}", self.mount()), self.secret(""));
        match self.store {
            Store::Directory => fs::remove_file(self.path("keys").join(KEY)).unwrap(),
            Store::KvVersion1 => drop(self.bao.ok(&["kv", "delete", &mount, &secret], "")),
            Store::KvVersion2 => drop(self.bao.ok(&["kv", "metadata", "delete", &mount, &secret], "")),
        }
    }

    /// Loses the key; where the settings point from then on.
    fn loses(&self, way: Way, other: &str) -> &'static str {
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

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// What is said of a loss: what was known, and a way back that is none to a new key.
fn tells(cell: &str, finding: &Finding, way: Way, place: Place, other: &str) {
    let was = fingerprint(&WRITTEN.key);
    let Finding { cause, seen, fix } = finding;
    let cell = format!("{cell}: {finding}");
    if way.replaces() {
        assert_eq!(*cause, Cause::KeyReplaced, "{cell}");
        assert!(seen.contains(other), "the fingerprint of the other key: {cell}");
    } else {
        assert!(matches!(cause, Cause::KeyMissing | Cause::KeyDeleted | Cause::KeyDestroyed), "{cell}");
    }
    // Drives name a key, and nobody's fingerprint.
    if !matches!(place, Place::Drives | Place::Nowhere) {
        assert!(seen.contains(&was), "the fingerprint of the former key: {cell}");
    }
    assert!(!fix.contains("create") && !fix.contains("kv put"), "nobody is told to make another one: {cell}");
    let ways_back: &[&str] = match place {
        Place::RunningAgent => &["keswarden key rescue my-key --run-dir", "key restore"],
        Place::SealedCopy => &["keswarden key rescue my-key --from-copy --yes", "key restore"],
        _ => &["key restore"],
    };
    let places: Vec<_> =
        ways_back.iter().map(|part| fix.find(part).unwrap_or_else(|| panic!("{part}: {cell}"))).collect();
    assert!(places.is_sorted(), "{cell}");
    if way == Way::SoftDeleted {
        assert!(fix.contains("bao kv undelete"), "{cell}");
    }
}

fn cell(bao: &Bao, store: Store, place: Place, way: Way, number: usize) {
    let name = format!("{store:?}, {place:?}, {way:?}");
    println!("{name}");
    let tenant = Tenant::new(bao, store, place, format!("cell-{number}"));
    let other = key_text();
    let at = tenant.loses(way, &other);
    let before = tenant.stored(at);
    // The sealed copy is of one store, and does not know what another one had.
    let knows_elsewhere = !matches!(place, Place::SealedCopy) || at.is_empty();
    let knows = place != Place::Nowhere && knows_elsewhere;
    let commands: [(&str, Result<(), Finding>); 4] = [
        ("init", tenant.init(at)),
        ("doctor", tenant.doctor(at)),
        ("if-new", tenant.gate(at, &[("KESWARDEN_KEY_CREATE", "if-new")])),
        ("create --first", Ok(())),
    ];
    for (command, result) in &commands[..2] {
        let cell = format!("{name}, {command}");
        match result {
            Ok(()) => assert!(way.replaces() && !knows, "a wrong key passes: {cell}"),
            Err(finding) if knows || way.leaves_a_trace() => {
                let place = if knows { place } else { Place::Nowhere };
                tells(&cell, finding, way, place, &fingerprint(&other));
            }
            Err(finding) => assert_eq!(finding.cause, Cause::KeyMissing, "{cell}: {finding}"),
        }
    }
    let made = tenant.create_first(at).map(drop);
    for (command, result) in [(commands[2].0, &commands[2].1), (commands[3].0, &made)] {
        let cell = format!("{name}, {command}");
        let is_refused = knows || way.leaves_a_trace() || place == Place::SealedCopy && !way.replaces();
        match result {
            Ok(()) => assert!(!is_refused, "a key is made or taken in the place of another: {cell}"),
            Err(_) if is_refused || command == "if-new" => {}
            Err(finding) => panic!("nothing could know: {cell}: {finding}"),
        }
    }
    if knows || way.leaves_a_trace() || way.replaces() {
        assert_eq!(tenant.stored(at), before, "nothing is written: {name}");
    }
    // With the right bytes back in their place everything passes.
    if at.is_empty() && !way.leaves_a_trace() && place != Place::Nowhere {
        if tenant.stored("").is_some() {
            tenant.delete();
        }
        tenant.put("", &WRITTEN.key);
        tenant.init("").unwrap_or_else(|finding| panic!("the right key: {name}: {finding}"));
    }
}

fn table(store: Store) {
    let bao = Bao::unsealed();
    bao.setup_kv(1, "kv1");
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    let mut number = 0;
    for place in PLACES {
        if store == Store::Directory && place == Place::PinPath {
            continue;
        }
        for way in WAYS.into_iter().filter(|way| way.can_be_done_to(store)) {
            number += 1;
            cell(&bao, store, place, way, number);
        }
    }
    println!("{number} cells");
}

#[test]
fn keys_in_a_directory_are_remembered() {
    table(Store::Directory);
}

#[test]
fn keys_in_kv_version_1_are_remembered() {
    table(Store::KvVersion1);
}

#[test]
fn keys_in_kv_version_2_are_remembered() {
    table(Store::KvVersion2);
}

/// Four pods of one tenant, each with a memory of its own, and pins in Vault that all share: as the chart has it. A pod that is new
/// knows what the others know; without the pins it alone could not.
#[test]
fn four_pods_of_which_one_is_new() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    let tenant = Tenant::new(&bao, Store::KvVersion2, Place::StateDirectory, "four".to_owned());
    let pods: Vec<_> = (0..4).map(|_| tempfile::tempdir().unwrap()).collect();
    let gate = |pod: usize, pins: bool| {
        let run_dir = pods[pod].path().display().to_string();
        let mut more = vec![("KESWARDEN_RUN_DIR", run_dir.as_str())];
        if pins {
            more.push(("KESWARDEN_PIN_KV", "pins/four"));
        }
        tenant.gate("", &more)
    };
    for pod in 0..3 {
        gate(pod, true).unwrap();
    }
    tenant.delete();
    tenant.put("", &key_text());
    for pod in 0..4 {
        let finding = gate(pod, true).unwrap_err();
        assert_eq!(finding.cause, Cause::KeyReplaced, "{finding}");
        assert_eq!(finding.seen.contains("the state directory"), pod < 3, "{finding}");
        assert!(finding.seen.contains("the pins in Vault"), "{finding}");
    }
    gate(3, false).unwrap();
}

/// The sealed copy of an agent is no other agent's, whoever shares its directory and its wrapping key.
#[test]
fn two_agents_share_a_directory_of_copies() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    let first = Tenant::new(&bao, Store::KvVersion2, Place::SealedCopy, "first".to_owned());
    let copy = first.path("copy/keys.sealed");
    let sealed = fs::read(&copy).unwrap();
    let mut second = Tenant::new(&bao, Store::KvVersion2, Place::Nowhere, "second".to_owned());
    let other = key_text();
    second.delete();
    second.put("", &other);
    second.place = Place::SealedCopy;
    let shared = [
        ("KESWARDEN_OFFLINE_DIR", first.path("copy").display().to_string()),
        ("KESWARDEN_OFFLINE_KEY_FILE", first.path("wrapping.key").display().to_string()),
        ("KESWARDEN_VERIFY_INTERVAL", "200ms".to_owned()),
    ];
    let mut agent = second.agent("second");
    shared.iter().for_each(|(name, value)| agent.set(name, value));
    agent.run();
    agent.ready();
    agent.process().says(SOON, "it is of Vault");
    assert_eq!(fs::read(&copy).unwrap(), sealed, "the first one's copy is not written over");
    agent.drain();

    // Nor is it taken from the first one's copy by a person.
    second.delete();
    let more: Vec<_> = shared.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let rescued = block_on(app::rescue_from_copy(second.settings("", &more), None)).unwrap_err();
    assert!(rescued.to_string().contains("sealed_copy_unusable"), "{rescued}");
    assert_eq!(second.stored(""), None);
    second.put("", &other);

    bao.seal();
    first.init("").unwrap();
    let shared: Vec<_> = shared.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let finding = second.gate("", &shared).unwrap_err();
    assert!(finding.cause == Cause::VaultSealed || finding.cause == Cause::CopyUnusable, "{finding}");
    // It would be the first one's key: what the second one had is known to nobody.
    let named = second
        .gate("", &[&shared[..], &[("KESWARDEN_PINS", &format!("{KEY}={}", fingerprint(&other)))]].concat());
    assert_eq!(named.unwrap_err().cause, Cause::KeyReplaced);
    // The same keys after a move are another matter: somebody who knows them says so.
    let pin = format!("{KEY}={}", fingerprint(&WRITTEN.key));
    first.gate("elsewhere", &[("KESWARDEN_PINS", &pin)]).unwrap();
}

/// The last of a key may be in the sealed copy: no verification takes it away, and the printed commands bring it back.
#[test]
fn the_last_of_a_key_in_a_sealed_copy_comes_back_by_what_is_printed() {
    let bao = Bao::unsealed();
    for store in [Store::Directory, Store::KvVersion1, Store::KvVersion2] {
        if store != Store::Directory {
            let (version, mount) = if store == Store::KvVersion1 { (1, "kv1") } else { (2, "kv2") };
            bao.setup_kv(version, mount);
        }
        let tenant = Tenant::new(&bao, store, Place::SealedCopy, "last".to_owned());
        let sealed = fs::read(tenant.path("copy/keys.sealed")).unwrap();
        tenant.loses(Way::Replaced, &key_text());
        let mut agent = tenant.agent("on its copy");
        agent.run();
        agent.process().says(SOON, "key_replaced");
        assert_eq!(fs::read(tenant.path("copy/keys.sealed")).unwrap(), sealed, "it is as it was");
        let line = agent.process().log();
        paste(&agent, &bao, between(&line, "set aside what is stored now, `", "`, then"), tenant.dir.path());
        paste(&agent, &bao, between(&line, "sealed copy, which has it: `", "`"), tenant.dir.path());
        agent.ready();
        assert_eq!(tenant.stored("").map(|text| fingerprint(&text)), Some(fingerprint(&WRITTEN.key)));
        agent.drain();
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let start = text.find(from).unwrap_or_else(|| panic!("{from}: {text}")) + from.len();
    let rest = &text[start..];
    &rest[..rest.find(to).unwrap_or_else(|| panic!("{to}: {rest}"))]
}

/// Types a printed command as a person would who has the agent's settings, and Vault's.
fn paste(agent: &Agent, bao: &Bao, command: &str, dir: &Path) {
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

/// OpenBao is replaced by an empty one while the agent holds the key: everybody is told of the rescue, nobody makes another key.
#[test]
fn a_vault_that_is_empty_while_an_agent_holds_the_key() {
    for version in [1, 2] {
        let bao = Bao::unsealed();
        bao.setup_kv(version, "kv");
        let settings = [
            ("KESWARDEN_VAULT_ADDR", bao.addr()),
            ("KESWARDEN_VAULT_CACERT", bao.ca_path().display().to_string()),
            ("KESWARDEN_VAULT_TOKEN", bao.root_token().to_owned()),
            ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ];
        let mut agent = Agent::new("holds", &settings);
        succeeded("key create", &agent.output(&["key", "create", "--first"]));
        agent.run();
        agent.ready();
        bao.ok(&["secrets", "disable", "kv"], "");
        bao.setup_kv(version, "kv");
        let rescue = format!("keswarden key rescue {KEY} --run-dir {} --yes", agent.run_dir().display());
        let told = agent.output(&["doctor"]);
        let table = String::from_utf8_lossy(&told.stdout).into_owned();
        assert_eq!(told.status.code(), Some(i32::from(exit::UNAVAILABLE)), "{table}");
        assert!(table.contains(&rescue) && !table.contains("key create"), "{table}");
        for command in [&["key", "create", "--first"][..], &["init"]] {
            agent.set("KESWARDEN_GATE_TIMEOUT", "0");
            let told = agent.output(command);
            let text = String::from_utf8_lossy(&told.stderr).into_owned();
            assert_eq!(told.status.code(), Some(i32::from(exit::UNAVAILABLE)), "{text}");
            assert!(text.contains(&rescue) && !text.contains("key create"), "{text}");
        }
        assert!(!bao.cli(&["kv", "get", "-mount=kv", "minio/my-key"]).status.success(), "nothing was made");
        let dir = tempfile::tempdir().unwrap();
        paste(&agent, &bao, &rescue, dir.path());
        succeeded("doctor", &agent.output(&["doctor"]));
    }
}

/// Replaced on purpose: one command, with both fingerprints, and only the right ones.
#[test]
fn a_key_that_is_replaced_on_purpose_passes_once_the_former_one_is_forgotten() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    for place in [Place::StateDirectory, Place::SealedCopy, Place::PinDirectory, Place::PinPath] {
        let tenant = Tenant::new(&bao, Store::KvVersion2, place, format!("forget-{place:?}"));
        let other = key_text();
        tenant.loses(Way::Replaced, &other);
        let finding = tenant.init("").unwrap_err();
        let (was, is) = (fingerprint(&WRITTEN.key), fingerprint(&other));
        let command = format!("keswarden key forget {KEY} --was {was} --is {is} --yes");
        assert!(finding.fix.contains(&command), "{finding}");
        let forget = |was: &str, is: Option<&str>| block_on(app::forget(tenant.settings("", &[]), was, is));
        for (was, is) in
            [(is.as_str(), Some(is.as_str())), (was.as_str(), Some(was.as_str())), (was.as_str(), None)]
        {
            assert!(forget(was, is).is_err(), "{place:?}: nobody knows {was}, or {is:?} is not stored");
        }
        assert_eq!(
            tenant.init("").unwrap_err().cause,
            Cause::KeyReplaced,
            "{place:?}: nothing was forgotten"
        );
        for (at, result) in forget(&was, Some(&is)).unwrap() {
            result.unwrap_or_else(|finding| panic!("{place:?}, {at}: {finding}"));
        }
        tenant.init("").unwrap_or_else(|finding| panic!("{place:?}: {finding}"));
        // From now on the new one is the one that is remembered.
        if place != Place::SealedCopy {
            tenant.loses(Way::Replaced, &WRITTEN.key);
            assert_eq!(tenant.init("").unwrap_err().cause, Cause::KeyReplaced, "{place:?}");
        }
    }
}

/// By default, with nothing set that is not needed: MinIO never boots on a wrong key, whatever way the right one was lost.
#[test]
fn minio_never_boots_on_a_wrong_key() {
    for (store, ways) in [(Store::KvVersion1, &WAYS[..1]), (Store::KvVersion2, &WAYS[..])] {
        let bao = Bao::unsealed();
        bao.setup_kv(
            if store == Store::KvVersion1 { 1 } else { 2 },
            if store == Store::KvVersion1 { "kv1" } else { "kv2" },
        );
        let ways = ways.iter().chain(if store == Store::KvVersion1 { &WAYS[3..] } else { &[] });
        for (number, way) in ways.enumerate() {
            println!("{store:?}, {way:?}");
            let tenant = Tenant::new(&bao, store, Place::StateDirectory, format!("minio-{number}"));
            let mut agent = tenant.agent("by default");
            agent.set("KESWARDEN_KEY_CREATE", "if-new");
            agent.run();
            agent.ready();
            let mut minio = Minio::new("by default");
            let run_dir = |file: &str| tenant.path("run").join(file).display().to_string();
            minio.set(vec![
                ("MINIO_KMS_KES_ENDPOINT", format!("https://127.0.0.1:{}", agent.kes_port())),
                ("MINIO_KMS_KES_CERT_FILE", run_dir("client.crt")),
                ("MINIO_KMS_KES_KEY_FILE", run_dir("client.key")),
                ("MINIO_KMS_KES_CAPATH", run_dir("ca.crt")),
                ("MINIO_KMS_KES_KEY_NAME", KEY.to_owned()),
            ]);
            minio.start();
            minio.wait_live();
            let mc = minio.mc("by-default");
            mc.make_bucket("bucket");
            mc.set_default_key("bucket", KEY);
            mc.put("bucket/object", "written before");
            minio.stop();
            agent.kill();

            let other = key_text();
            let at = tenant.loses(*way, &other);
            if !at.is_empty() {
                agent.set("KESWARDEN_VAULT_KV_PREFIX", &format!("{}{at}", tenant.prefix));
            }
            agent.run();
            agent.process().says(
                SOON,
                match way {
                    Way::Replaced | Way::MovedToAnothers => "key_replaced",
                    Way::SoftDeleted => "key_deleted",
                    Way::Destroyed => "key_destroyed",
                    Way::Deleted | Way::MovedToNothing => "so it is not made anew",
                },
            );
            minio.start();
            assert_ne!(minio.process().wait(SOON), 0, "{way:?}: {}", minio.process().tail());
            agent.kill();
        }
    }
}

/// Two stores in one state directory: the second is not taken for the first, and what is forgotten for one is not forgotten for the other.
#[test]
fn two_stores_share_a_state_directory() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    let tenant = Tenant::new(&bao, Store::KvVersion2, Place::StateDirectory, "shared".to_owned());
    let other = key_text();
    tenant.put("elsewhere", &other);
    let finding = tenant.init("elsewhere").unwrap_err();
    assert_eq!(finding.cause, Cause::KeyReplaced);
    assert!(finding.seen.contains("KESWARDEN_TENANT"), "{finding}");
    // A tenant of its own needs nothing else.
    tenant.gate("elsewhere", &[("KESWARDEN_TENANT", "second")]).unwrap();
    let (was, is) = (fingerprint(&WRITTEN.key), fingerprint(&other));
    let forgotten = block_on(app::forget(tenant.settings("elsewhere", &[]), &was, Some(&is))).unwrap();
    forgotten.into_iter().for_each(|(at, result)| result.unwrap_or_else(|finding| panic!("{at}: {finding}")));
    tenant.init("elsewhere").unwrap();
    tenant.init("").unwrap();
    tenant.loses(Way::Replaced, &other);
    assert_eq!(tenant.init("").unwrap_err().cause, Cause::KeyReplaced, "the first one's memory is whole");
}

/// A person runs commands as root: what they write belongs to the agent's own user, whose folder it is in.
#[test]
fn what_root_writes_belongs_to_the_owner_of_its_folder() {
    use std::os::unix::fs::{MetadataExt, chown};
    const AGENT: u32 = 54_321;
    let bao = Bao::unsealed();
    let tenant = Tenant::new(&bao, Store::Directory, Place::Nowhere, String::new());
    let run = tenant.path("run-of-another");
    for dir in [run.clone(), run.join("agent"), tenant.path("pins"), tenant.path("keys")] {
        fs::create_dir_all(&dir).unwrap();
        chown(&dir, Some(AGENT), Some(AGENT)).unwrap();
    }
    fs::remove_file(tenant.path("keys").join(KEY)).unwrap();
    let (run_dir, pins) = (run.display().to_string(), tenant.path("pins").display().to_string());
    let more = [
        ("KESWARDEN_MEMORY", "on"),
        ("KESWARDEN_RUN_DIR", run_dir.as_str()),
        ("KESWARDEN_PIN_DIR", pins.as_str()),
    ];
    block_on(app::create_first(tenant.settings("", &more))).unwrap_or_else(|stopped| panic!("{stopped}"));
    let mut files =
        vec![run.join("agent/known-keys"), tenant.path("pins").join(KEY), tenant.path("keys").join(KEY)];
    files.extend(fs::read_dir(run.join("agent/known-keys")).unwrap().map(|entry| entry.unwrap().path()));
    assert!(files.len() > 3, "{files:?}");
    for file in files {
        let about = fs::metadata(&file).unwrap();
        assert_eq!((about.uid(), about.gid()), (AGENT, AGENT), "{}", file.display());
    }
}

/// Volumes that are mounted a moment after the gate starts: a key that nobody knows waits for them, and is not remembered before.
#[test]
fn drives_that_come_late_still_decide() {
    let bao = Bao::unsealed();
    let tenant = Tenant::new(&bao, Store::Directory, Place::StateDirectory, String::new());
    fs::remove_dir_all(tenant.path("run")).unwrap();
    fs::write(tenant.path("keys").join(KEY), key_text()).unwrap();
    let mut agent = tenant.agent("late");
    agent.set("KESWARDEN_DRIVES", &tenant.path("export*").display().to_string());
    agent.run();
    agent.process().says(SOON, "and the drives may: they are waited for");
    let copied =
        Command::new("cp").arg("-a").arg(&WRITTEN.drive).arg(tenant.path("export1")).output().unwrap();
    succeeded("cp", &copied);
    agent.process().says(SOON, "key_replaced");
    assert!(!tenant.path("run/agent/known-keys").exists(), "a key that does not pass is not remembered");
    fs::write(tenant.path("keys").join(KEY), &WRITTEN.key).unwrap();
    agent.ready();
}

/// A pin is demanded, and the pins are in the Vault that is sealed: the copy of the agent's own store is enough, as before.
#[test]
fn a_demanded_pin_in_a_sealed_vault_is_no_obstacle_to_the_copy() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    let tenant = Tenant::new(&bao, Store::KvVersion2, Place::SealedCopy, "require".to_owned());
    let more = [("KESWARDEN_PIN_KV", "pins/require"), ("KESWARDEN_PIN", "warn")];
    tenant.gate("", &more).unwrap();
    bao.seal();
    let more = [more[0], ("KESWARDEN_PIN", "require")];
    tenant.gate("", &more).unwrap_or_else(|finding| panic!("{finding}"));
}

/// An agent that still holds the former key says so, and its next copy does not bring it back.
#[test]
fn what_is_forgotten_beside_a_running_agent_stays_forgotten() {
    let bao = Bao::unsealed();
    let tenant = Tenant::new(&bao, Store::Directory, Place::SealedCopy, String::new());
    fs::write(tenant.path("keys/bucket-key"), key_text()).unwrap();
    let mut agent = tenant.agent("holds on");
    agent.set("KESWARDEN_VERIFY_INTERVAL", "200ms");
    agent.run();
    agent.ready();
    let client = |agent: &Agent| {
        use keswarden::tls::{self, Pair, trust::Trust};
        let file = |name: &str| tenant.path("run").join(name);
        let pair = Pair::read(&file("client.crt"), &file("client.key")).unwrap();
        let config = tls::client_config(Trust::only(&file("ca.crt")).unwrap(), Some(pair)).unwrap();
        crate::harness::Client::new(config, false, format!("127.0.0.1:{}", agent.kes_port()).parse().unwrap())
    };
    client(&agent).generate("bucket-key", "{}");
    let other = key_text();
    fs::write(tenant.path("keys").join(KEY), &other).unwrap();
    agent.process().says(SOON, "sealing with the key has stopped");
    let (was, is) = (fingerprint(&WRITTEN.key), fingerprint(&other));
    let told = block_on(app::forget(tenant.settings("", &[]), &was, Some(&is))).unwrap();
    let (held, others): (Vec<_>, Vec<_>) =
        told.into_iter().partition(|(at, _)| at.starts_with("the running agent"));
    assert!(held.iter().any(|(_, result)| result.is_err()), "it holds the key still");
    others.into_iter().for_each(|(at, result)| result.unwrap_or_else(|finding| panic!("{at}: {finding}")));
    let copy = tenant.path("copy/keys.sealed");
    for _ in 0..2 {
        let before = fs::read(&copy).unwrap();
        eventually(SOON, "the copy is sealed anew", || fs::read(&copy).unwrap() != before);
    }
    agent.kill();
    agent.run();
    agent.ready();
    client(&agent).generate(KEY, "{}");
}
