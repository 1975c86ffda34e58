//! Backups: the drill (a Vault is gone with its storage, a new Vault gets the keys, every object reads), and backups that are refused.

use crate::harness::{Agent, Bao, KEY, Minio, SOON, eventually, key_text, policy, text};
use age::secrecy::ExposeSecret;
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Output,
};
use tempfile::TempDir;

const SECOND: &str = "bucket-key";

/// A folder with an age identity, and room for backups.
struct Safe {
    dir: TempDir,
    recipient: String,
}

// === impl Safe ===

impl Safe {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let identity = age::x25519::Identity::generate();
        let file = format!("# made by a test\n{}\n", identity.to_string().expose_secret());
        fs::write(dir.path().join("identity"), file).unwrap();
        Self { dir, recipient: identity.to_public().to_string() }
    }

    fn file(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn back_up(&self, agent: &Agent, name: &str) -> Output {
        agent.output(&["key", "backup", "--to", &self.file(name), "--recipient", &self.recipient])
    }

    fn restore(&self, agent: &Agent, name: &str, more: &[&str]) -> Output {
        let (backup, identity) = (self.file(name), self.file("identity"));
        agent.output(&[&["key", "restore", "--from", &backup, "--identity", &identity], more].concat())
    }

    fn verify(&self, agent: &Agent, name: &str) -> Output {
        agent.output(&["key", "verify", "--backup", &self.file(name), "--identity", &self.file("identity")])
    }
}

/// The command ended with this code, and printed all of this; its output.
#[track_caller]
fn ended(output: &Output, code: i32, says: &[&str]) -> String {
    let told = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{told}");
    for part in says {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
    told
}

/// How an agent reaches a Vault, for the next start.
fn point(agent: &mut Agent, bao: &Bao) {
    for (name, value) in [bao.vars(), bao.approle_pair(&policy(2))].concat() {
        agent.set(name, &value);
    }
}

fn last_drill(agent: &Agent) -> f64 {
    agent.metric("keswarden_backup_last_drill_timestamp_seconds")
}

#[test]
fn a_vault_that_is_gone_with_its_storage_is_made_good_by_a_backup() {
    let (safe, pins) = (Safe::new(), tempfile::tempdir().unwrap());
    let mut bao = Bao::with_kv(2);
    let mut agent = Agent::new(
        "drill",
        &[
            ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
            ("KESWARDEN_KEY_CREATE", "if-new".to_owned()),
            ("KESWARDEN_PIN_DIR", pins.path().to_string_lossy().into_owned()),
            ("KESWARDEN_VERIFY_INTERVAL", "200ms".to_owned()),
        ],
    );
    point(&mut agent, &bao);
    agent.run();
    agent.ready();
    let mut minio = Minio::new("drill");
    minio.set(agent.minio_vars(KEY));
    minio.start();
    minio.wait_live();
    let mc = minio.mc("drill");
    mc.make_key(SECOND);
    for (bucket, key) in [("one", KEY), ("two", SECOND)] {
        mc.make_bucket(bucket);
        mc.set_default_key(bucket, key);
        for number in 0..3 {
            mc.put(&format!("{bucket}/{number}"), &format!("{bucket} {number}"));
        }
    }
    agent.set("KESWARDEN_DRIVES", &minio.drives()[0]);

    let told = ended(&safe.back_up(&agent, "backup.age"), 0, &["2 keys of", "1 recipients, 0 left out"]);
    assert_eq!(told.matches(" pinned\n").count(), 2, "{told}");
    let file = fs::read(safe.path("backup.age")).unwrap();
    assert!(file.starts_with(b"age-encryption.org/v1\n"), "age itself must open it");
    assert!(!file.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "not even a name is to be seen");
    assert_eq!(fs::metadata(safe.path("backup.age")).unwrap().permissions().mode() & 0o777, 0o600);
    ended(&safe.back_up(&agent, "backup.age"), 65, &["no backup is ever overwritten"]);
    assert_eq!(fs::read(safe.path("backup.age")).unwrap(), file);

    assert_eq!(last_drill(&agent), 0.0);
    let drilled =
        ended(&safe.verify(&agent, "backup.age"), 0, &["the backup holds every key that is in use"]);
    for key in [KEY, SECOND] {
        assert!(drilled.contains(&format!("{key} opens ")), "by the drives: {drilled}");
    }
    eventually(SOON, "the agent tells of the drill", || match last_drill(&agent) {
        0.0 => Err("not yet".to_owned()),
        _ => Ok(()),
    });
    mc.make_key("later-key");
    ended(&safe.verify(&agent, "backup.age"), 69, &["later-key NOT IN THE BACKUP"]);

    minio.stop();
    agent.drain();
    bao.stop();
    ended(&safe.verify(&agent, "backup.age"), 69, &["vault_unreachable_refused", "my-key opens "]);

    bao = Bao::unsealed();
    bao.setup_kv(2, "kv");
    point(&mut agent, &bao);
    agent.run();
    agent.process().says(SOON, "so it is not made anew");
    ended(&safe.verify(&agent, "backup.age"), 69, &["my-key", "MISSING in the store"]);
    ended(&safe.restore(&agent, "backup.age", &["--dry-run"]), 0, &["would be restored"]);
    ended(&safe.restore(&agent, "backup.age", &[SECOND]), 0, &["bucket-key", " restored"]);
    assert_eq!(agent.process().ended(), None, "the default key is not there yet");
    ended(&safe.restore(&agent, "backup.age", &[]), 0, &["my-key", " restored", " there already"]);
    agent.ready();
    minio.start();
    minio.wait_live();
    for bucket in ["one", "two"] {
        for number in 0..3 {
            assert_eq!(mc.cat(&format!("{bucket}/{number}")), format!("{bucket} {number}"));
        }
    }
    ended(&safe.verify(&agent, "backup.age"), 0, &["the same in the store"]);
}

/// An agent with keys in a folder; it is not started.
fn over(dir: &Path) -> Agent {
    Agent::new("folder", &[("KESWARDEN_FS_DIR", dir.to_string_lossy().into_owned())])
}

#[test]
fn what_is_there_is_never_overwritten_and_what_was_changed_is_not_taken() {
    let (safe, from, to) = (Safe::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let put = |dir: &TempDir, name: &str, key: &str| fs::write(dir.path().join(name), key).unwrap();
    let keys = ["first", "second", "third"].map(|name| (name, key_text()));
    for (name, key) in &keys {
        put(&from, name, key);
    }
    put(&from, "garbled", "no key at all");
    let (source, target) = (over(from.path()), over(to.path()));
    ended(&safe.back_up(&source, "whole"), 65, &["garbled: key_malformed", "3 keys of", "1 left out"]);

    let other = key_text();
    put(&to, "second", &other);
    put(&to, "third", &keys[2].1);
    // Two stores may have keys of one name: a key that no witness here knows is written only with --other-store.
    let told =
        ended(&safe.restore(&target, "whole", &[]), 65, &["second: key_replaced", "first: backup_unusable"]);
    assert!(
        told.contains("first --other-store`") && told.contains("third") && !told.contains(" restored"),
        "{told}"
    );
    assert!(!to.path().join("first").exists());
    let told = ended(
        &safe.restore(&target, "whole", &["--other-store"]),
        65,
        &["second: key_replaced", "nothing was overwritten"],
    );
    assert!(told.contains(" restored") && told.contains(" there already"), "{told}");
    let stored = |name: &str| fs::read_to_string(to.path().join(name)).unwrap();
    assert_eq!(
        (stored("first"), stored("second"), stored("third")),
        (keys[0].1.clone(), other, keys[2].1.clone())
    );
    ended(&safe.verify(&target, "whole"), 65, &["second", "ANOTHER KEY in the store"]);
    ended(&safe.restore(&target, "whole", &["fourth"]), 69, &["there is no key 'fourth'"]);

    // A backup that is cut or changed anywhere is refused whole.
    let whole = fs::read(safe.path("whole")).unwrap();
    let empty = tempfile::tempdir().unwrap();
    let target = over(empty.path());
    for at in (0..whole.len()).step_by(whole.len() / 12) {
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(safe.path("changed"), changed).unwrap();
        fs::write(safe.path("cut"), &whole[..at]).unwrap();
        ended(&safe.restore(&target, "changed", &[]), 65, &["backup_unusable"]);
        ended(&safe.restore(&target, "cut", &[]), 65, &["backup_unusable"]);
    }
    assert_eq!(fs::read_dir(empty.path()).unwrap().count(), 0, "nothing was restored");

    // Another identity, and files without an identity.
    let stranger = Safe::new();
    fs::copy(safe.path("whole"), stranger.path("whole")).unwrap();
    ended(&stranger.restore(&target, "whole", &[]), 65, &["one of the recipients"]);
    fs::write(stranger.path("identity"), "AGE-SECRET-KEY-1NONSENSE\n").unwrap();
    let told =
        ended(&stranger.restore(&target, "whole", &[]), 71, &["neither a comment nor an X25519 identity"]);
    assert!(!told.contains("NONSENSE"), "{told}");
    let wrong = source.output(&["key", "backup", "--to", &safe.file("none"), "--recipient", "age1nonsense"]);
    ended(&wrong, 65, &["is no age recipient"]);
    assert!(!safe.path("none").exists());
}
