//! The sealed copy: an agent starts while its store is away, within the allowed age of the copy, and with no other agent's copy.

use crate::harness::{Agent, App, Bao, IN_PROCESS, KEY, Minio, SOON, eventually, key_text, policy};
use keswarden::{
    cause::Cause,
    clock::Clock,
    keystore::memory::MemoryStore,
    offline::{Config, Opened, SealedCopy},
};
use std::{fs, path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;

struct Copy {
    dir: TempDir,
    settings: Vec<(&'static str, String)>,
}

impl Copy {
    fn new(max: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let wrapping = dir.path().join("wrapping.key");
        fs::write(&wrapping, "0123456789abcdef0123456789abcdef\n").unwrap();
        let settings = vec![
            ("KESWARDEN_OFFLINE_DIR", dir.path().join("copy").display().to_string()),
            ("KESWARDEN_OFFLINE_KEY_FILE", wrapping.display().to_string()),
            ("KESWARDEN_OFFLINE_MAX", max.to_owned()),
            ("KESWARDEN_VERIFY_INTERVAL", "200ms".to_owned()),
        ];
        Self { dir, settings }
    }

    fn settings(&self) -> Vec<(&str, &str)> {
        self.settings.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }

    fn file(&self) -> std::path::PathBuf {
        self.dir.path().join("copy/keys.sealed")
    }

    /// The copy's content, when the copy is in force.
    fn open(&self) -> Option<Opened> {
        let config = Config {
            dir: self.dir.path().join("copy"),
            wrapping_key: self.dir.path().join("wrapping.key"),
            max_age: Duration::from_secs(10),
            tenant: String::new(),
        };
        SealedCopy::new(config, "In Memory".to_owned(), Clock::system()).open().ok()
    }

    /// An app that has left a copy: its store, and ciphertexts of two keys.
    fn left(&self) -> (Arc<MemoryStore>, [String; 2]) {
        let store = Arc::new(MemoryStore::new());
        store.put(KEY, &key_text());
        store.put("bucket-key", &key_text());
        let app = App::start(store.clone(), &self.settings());
        app.wait_ready();
        let minio = app.minio(false);
        let sealed = [KEY, "bucket-key"].map(|key| minio.generate(key, "{}").1);
        fs::remove_file(self.file()).ok();
        eventually(IN_PROCESS, "the copy is written, with both keys", || self.file().exists().then_some(()));
        app.stop().unwrap();
        (store, sealed)
    }
}

fn away(store: &MemoryStore, cause: Cause) {
    store.fail(Some(cause.seen("as the test says")));
}

/// The gate waits, and says this.
fn waits(app: &App, says: &str) {
    eventually(IN_PROCESS, says, || app.health("/status").1.contains(says).then_some(()));
    assert_eq!(app.health("/readyz").0, 503);
}

#[test]
fn a_start_while_vault_is_away_opens_what_was_sealed_before() {
    let copy = Copy::new("1h");
    let (store, sealed) = copy.left();
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(copy.file()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    for cause in [
        Cause::VaultSealed,
        Cause::VaultUnreachableRefused,
        Cause::VaultUnreachableTimeout,
        Cause::VaultUnhealthy,
    ] {
        away(&store, cause);
        let app = App::start(store.clone(), &copy.settings());
        app.wait_ready();
        let minio = app.minio(false);
        for (key, sealed) in [KEY, "bucket-key"].iter().zip(&sealed) {
            assert_eq!(minio.decrypt(key, sealed, "{}").status, 200, "{key}");
        }
        minio.generate(KEY, "{}");
        store.fail(None);
        eventually(IN_PROCESS, "Vault is back, and the key is verified", || {
            (app.metric("keswarden_key_verifications_total{outcome=\"ok\"}")? > 0.0).then_some(())
        });
    }
}

#[test]
fn the_copy_is_used_only_while_vault_is_absent() {
    let copy = Copy::new("1h");
    let (store, _) = copy.left();
    for cause in [Cause::VaultTlsUnknownCa, Cause::LoginRefused, Cause::PolicyMissing, Cause::MountMissing] {
        away(&store, cause);
        waits(&App::start(store.clone(), &copy.settings()), cause.id());
    }
    // Vault answers that the key is gone: the copy is not used.
    store.fail(None);
    store.remove(KEY);
    waits(&App::start(store.clone(), &copy.settings()), "key_missing");
}

/// After a restart while Vault is well, the copy keeps the keys that no client has used since.
#[test]
fn a_restart_does_not_shrink_the_copy() {
    let copy = Copy::new("1h");
    let (store, sealed) = copy.left();
    let first = fs::read(copy.file()).unwrap();
    let app = App::start(store.clone(), &copy.settings());
    app.wait_ready();
    eventually(IN_PROCESS, "the copy is written anew", || {
        (fs::read(copy.file()).ok()? != first).then_some(())
    });
    app.stop().unwrap();
    away(&store, Cause::NamespaceSealed);
    let app = App::start(store, &copy.settings());
    app.wait_ready();
    assert_eq!(app.minio(false).decrypt("bucket-key", &sealed[1], "{}").status, 200);
}

/// The age of a key in a copy that is in force.
fn age(opened: &Opened, key: &str) -> Option<Duration> {
    opened.keys.iter().find(|kept| kept.name.as_str() == key).map(|kept| kept.age)
}

#[test]
fn a_key_that_is_lost_costs_no_other_one_its_copy() {
    let copy = Copy::new("10s");
    let store = Arc::new(MemoryStore::new());
    store.put(KEY, &key_text());
    store.put("bad-key", &key_text());
    let app = App::start(store.clone(), &copy.settings());
    app.wait_ready();
    let minio = app.minio(false);
    let sealed = [KEY, "bad-key"].map(|key| minio.generate(key, "{}").1);
    store.put("bad-key", &key_text());
    // Each key's age counts from its own last verification.
    eventually(IN_PROCESS, "the copy goes on with both", || {
        let opened = copy.open()?;
        let (good, bad) = (age(&opened, KEY)?, age(&opened, "bad-key")?);
        (bad >= Duration::from_secs(3) && good <= Duration::from_secs(1)).then_some(())
    });
    eventually(IN_PROCESS, "what was verified too long ago has left it", || {
        let opened = copy.open()?;
        (opened.keys.len() == 1 && age(&opened, KEY)? <= Duration::from_secs(1)).then_some(())
    });
    app.stop().unwrap();
    away(&store, Cause::VaultSealed);
    let app = App::start(store, &copy.settings());
    app.wait_ready();
    assert_eq!(app.minio(false).decrypt(KEY, &sealed[0], "{}").status, 200);
}

/// A key that the store has lost seals nothing: its ciphertexts could not be opened once the copy has expired.
#[test]
fn a_key_that_was_lost_opens_from_the_copy_and_seals_nothing() {
    let copy = Copy::new("1h");
    let store = Arc::new(MemoryStore::new());
    store.put(KEY, &key_text());
    store.put("bad-key", &key_text());
    let app = App::start(store.clone(), &copy.settings());
    app.wait_ready();
    let sealed = app.minio(false).generate("bad-key", "{}").1;
    store.put("bad-key", &key_text());
    eventually(IN_PROCESS, "the copy knows that it is lost", || {
        let opened = copy.open()?;
        let bad = opened.keys.into_iter().find(|kept| kept.name.as_str() == "bad-key")?;
        bad.lost.then_some(())
    });
    app.stop().unwrap();
    away(&store, Cause::VaultSealed);
    let app = App::start(store, &copy.settings());
    app.wait_ready();
    let minio = app.minio(false);
    assert_eq!(minio.decrypt("bad-key", &sealed, "{}").status, 200);
    assert_eq!(minio.call("POST", "/v1/key/generate/bad-key", Some("{}")).status, 502);
    minio.generate(KEY, "{}");
}

#[test]
fn what_is_old_changed_or_not_ours_is_refused_and_says_why() {
    let copy = Copy::new("1h");
    let (store, _) = copy.left();
    away(&store, Cause::VaultSealed);
    let whole = fs::read(copy.file()).unwrap();
    let starts = |settings: &[(&str, &str)], says: &str| {
        waits(&App::start(store.clone(), settings), says);
    };
    for at in [0, 30, 60, whole.len() / 2, whole.len() - 1] {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(copy.file(), changed).unwrap();
        starts(&copy.settings(), "sealed_copy_unusable");
    }
    fs::write(copy.file(), &whole[..whole.len() / 2]).unwrap();
    starts(&copy.settings(), "sealed_copy_unusable");
    fs::write(copy.file(), &whole).unwrap();
    starts(&[&copy.settings()[..], &[("KESWARDEN_TENANT", "another")]].concat(), "sealed_copy_unusable");
    fs::write(copy.dir.path().join("wrapping.key"), "another wrapping key, as long as the first").unwrap();
    starts(&copy.settings(), "sealed_copy_unusable");
    starts(&[("KESWARDEN_VERIFY_INTERVAL", "200ms")], "vault_sealed");
}

#[test]
fn it_ends_when_it_was_to_end() {
    let copy = Copy::new("1s");
    let (store, _) = copy.left();
    away(&store, Cause::VaultSealed);
    let sealed = std::time::Instant::now();
    eventually(IN_PROCESS, "it is older than a second", || {
        (sealed.elapsed().as_millis() > 2500).then_some(())
    });
    waits(&App::start(store, &copy.settings()), "sealed_copy_expired");
}

#[test]
fn neither_the_keys_nor_their_names_are_readable_in_it() {
    let copy = Copy::new("1h");
    let (store, _) = copy.left();
    let bytes = fs::read(copy.file()).unwrap();
    let holds = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
    let text = store.text(KEY).unwrap();
    assert!(!holds(text.as_bytes()) && !holds(&text.as_bytes()[20..60]) && !holds(b"bucket-key"));
    assert!(Path::new(&copy.file()).exists());
}

#[test]
fn a_server_in_the_place_of_kes_starts_on_its_copy_too() {
    let copy = Copy::new("1h");
    let store = Arc::new(MemoryStore::new());
    store.put(KEY, &key_text());
    let kes = App::start_server(store.clone(), "", &copy.settings());
    kes.wait_ready();
    let (_, sealed) = kes.admin_client(false).generate(KEY, "{}");
    fs::remove_file(copy.file()).ok();
    eventually(IN_PROCESS, "the copy is written, with the key", || copy.file().exists().then_some(()));
    kes.stop().unwrap();
    away(&store, Cause::VaultSealed);
    let kes = App::start_server(store, "", &copy.settings());
    kes.wait_ready();
    assert_eq!(kes.admin_client(false).decrypt(KEY, &sealed, "{}").status, 200);
}

/// On real servers: OpenBao is down, the agent and MinIO start anew, and what was written before is read.
#[test]
fn minio_boots_on_the_sealed_copy_while_vault_is_down() {
    let mut bao = Bao::with_kv(2);
    let copy = Copy::new("1h");
    let mut settings = copy.settings.clone();
    settings.extend(bao.approle_vars(&policy(2)));
    settings.extend([("KESWARDEN_KEY_NAME", KEY.to_owned()), ("KESWARDEN_KEY_CREATE", "if-new".to_owned())]);
    let mut agent = Agent::new("cold start", &settings);
    agent.run();
    agent.ready();
    let mut minio = Minio::new("cold start");
    minio.set(agent.minio_vars(KEY));
    minio.start();
    minio.wait_live();
    let mc = minio.mc("cold");
    mc.make_bucket("bucket");
    mc.set_default_key("bucket", KEY);
    mc.put("bucket/object", "written before the outage");
    eventually(SOON, "the copy is written", || copy.file().exists());

    bao.stop();
    minio.stop();
    agent.kill();
    agent.run();
    agent.process().says(SOON, "starting on the sealed copy");
    agent.ready();
    minio.start();
    minio.wait_live();
    assert_eq!(mc.cat("bucket/object"), "written before the outage");
    mc.put("bucket/another", "written during it");
    assert_eq!(mc.cat("bucket/another"), "written during it");

    // Without the copy the agent waits, and names the cause.
    agent.kill();
    fs::remove_file(copy.file()).unwrap();
    agent.run();
    agent.process().says(SOON, "vault_unreachable_refused");
    assert_eq!(agent.process().ended(), None);
}

/// A disk that hangs is like a missing copy: the gate says so and goes on, and so do verifications.
#[test]
fn a_disk_that_hangs_holds_up_neither_the_gate_nor_verification() {
    let copy = Copy::new("1h");
    fs::create_dir_all(copy.file().parent().unwrap()).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(copy.file()).status().unwrap().success());
    let store = Arc::new(MemoryStore::new());
    away(&store, Cause::VaultSealed);
    let app = App::start(store.clone(), &copy.settings());
    waits(&app, "vault_sealed");
    store.put(KEY, &key_text());
    store.fail(None);
    app.wait_ready();
    let verified = || app.metric("keswarden_key_verifications_total{outcome=\"ok\"}");
    let before = verified();
    eventually(IN_PROCESS, "keys are verified all the same", || (verified() > before).then_some(()));
    // The reader of the pipe is released, so that the test can end.
    drop(fs::OpenOptions::new().write(true).open(copy.file()).unwrap());
}
