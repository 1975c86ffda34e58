//! The gate and the tenant's own data: the drives' proof counts more than any pin, and no key is made against it.

use crate::harness::{Agent, Client, SOON, Tenant, eventually, key_text, succeeded};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

const KEY: &str = "minio-default-key";
const BUCKET_KEY: &str = "bucket-key";

impl Tenant {
    /// A tenant with a few objects under two keys; its MinIO has stopped, and its next gate reads the drives.
    fn with_data() -> Self {
        let mut tenant = Self::new("proof", KEY, &[]);
        tenant.starts();
        tenant.mc.make_key(BUCKET_KEY);
        tenant.fills("one", KEY);
        tenant.fills("two", BUCKET_KEY);
        tenant.minio.stop();
        tenant.agent.drain();
        copy(&PathBuf::from(&tenant.minio.drives()[0]), &tenant.path("export1"));
        let (drives, pins) = (tenant.text("export*"), tenant.text("pins"));
        tenant.agent.set("KESWARDEN_DRIVES", &drives);
        tenant.agent.set("KESWARDEN_PIN_DIR", &pins);
        tenant
    }

    fn pin(&self, name: &str) -> PathBuf {
        self.path("pins").join(name)
    }

    /// Removes every memory of a key: the drives alone decide.
    fn forgets(&self) {
        for dir in ["agent/known-keys", "../state"] {
            let _ = fs::remove_dir_all(self.agent.run_dir().join(dir));
        }
    }

    fn passes_the_gate(&mut self) {
        self.agent.run();
        self.agent.ready();
        self.agent.drain();
    }

    fn waits_at_the_gate(&mut self, says: &str) {
        self.agent.run();
        self.agent.process().says(SOON, says);
        assert_eq!(self.agent.process().ended(), None);
        self.agent.kill();
    }
}

/// Copies a drive as MinIO wrote it.
fn copy(from: &PathBuf, to: &PathBuf) {
    let mut command = std::process::Command::new("cp");
    succeeded("cp", &command.arg("-a").arg(from).arg(to).output().unwrap());
}

#[test]
fn what_the_drives_hold_decides() {
    let mut tenant = Tenant::with_data();
    // The right keys: the data prove the keys, and the keys are pinned.
    tenant.passes_the_gate();
    for name in [KEY, BUCKET_KEY] {
        assert!(fs::read_to_string(tenant.pin(name)).unwrap().contains("fingerprint"), "{name}");
    }

    // Another key, even a pinned key.
    let right = fs::read(tenant.key_file(KEY)).unwrap();
    fs::write(tenant.key_file(KEY), key_text()).unwrap();
    fs::remove_file(tenant.pin(KEY)).unwrap();
    tenant.forgets();
    tenant.waits_at_the_gate("opens none of the");
    assert!(!tenant.pin(KEY).exists(), "a wrong key is not pinned");

    // No key at all, where a new tenant's would be made.
    fs::remove_file(tenant.key_file(KEY)).unwrap();
    tenant.agent.set("KESWARDEN_KEY_CREATE", "if-new");
    tenant.waits_at_the_gate("objects that were sealed with it, so it is not made anew");
    assert!(!tenant.key_file(KEY).exists());

    // A missing key of a bucket is told, and stops no start.
    fs::write(tenant.key_file(KEY), &right).unwrap();
    let bucket_key = fs::read(tenant.key_file(BUCKET_KEY)).unwrap();
    fs::remove_file(tenant.key_file(BUCKET_KEY)).unwrap();
    tenant.agent.run();
    tenant.agent.process().says(SOON, "objects under the key 'bucket-key', and there is no such key");
    tenant.agent.ready();
    tenant.agent.drain();

    // A wrong key of a bucket is not used, and keys of an attempt that did not pass are not kept.
    fs::write(tenant.key_file(BUCKET_KEY), key_text()).unwrap();
    fs::remove_file(tenant.pin(BUCKET_KEY)).unwrap();
    tenant.agent.run();
    tenant.agent.process().says(SOON, "key_replaced");
    fs::remove_file(tenant.key_file(BUCKET_KEY)).unwrap();
    tenant.agent.ready();
    let client = Client::of(&tenant.agent);
    let generate = || client.call("POST", "/v1/key/generate/bucket-key", Some("{}"));
    assert_eq!(generate().status, 404);
    fs::write(tenant.key_file(BUCKET_KEY), &bucket_key).unwrap();
    eventually(SOON, "the right key is used", || generate().status == 200);
    tenant.agent.drain();
    tenant.passes_the_gate();
    assert!(tenant.pin(BUCKET_KEY).exists());

    // A pin that cannot be written is no reason not to start.
    fs::remove_file(tenant.pin(KEY)).unwrap();
    tenant.agent.set("KESWARDEN_PIN_DIR", "/proc/keswarden-pins");
    tenant.agent.run();
    tenant.agent.process().says(SOON, "could not be remembered");
    tenant.agent.ready();
}

#[test]
fn a_drive_that_is_not_mounted_is_waited_for_and_a_new_one_is_no_obstacle() {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("keys")).unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let settings = [
        ("KESWARDEN_FS_DIR", path("keys")),
        ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ("KESWARDEN_KEY_CREATE", "if-new".to_owned()),
        ("KESWARDEN_DRIVES", path("export*")),
    ];
    let mut agent = Agent::new("new tenant", &settings);
    agent.run();
    agent.process().says(SOON, "drives_unreadable");
    assert!(!dir.path().join("keys").join(KEY).exists(), "nothing is made while nobody can look");
    // A mounted drive whose files cannot be read; then the same beside a readable drive.
    fs::create_dir(dir.path().join("export2")).unwrap();
    fs::write(dir.path().join("export2/.minio.sys"), "").unwrap();
    agent.process().says(SOON, "no drive can be read");
    fs::create_dir(dir.path().join("export0")).unwrap();
    agent.process().says(SOON, "what is sealed with it may be there");
    assert!(!dir.path().join("keys").join(KEY).exists());
    // Empty mount points, as a volume that is not mounted leaves them.
    fs::remove_file(dir.path().join("export2/.minio.sys")).unwrap();
    agent.process().says(SOON, "has no MinIO format and is no mount point: its volume may not be mounted");
    let first = agent.output(&["key", "create", "--first"]);
    let told = String::from_utf8_lossy(&first.stderr).into_owned();
    assert_eq!(first.status.code(), Some(71), "{told}");
    assert!(!dir.path().join("keys").join(KEY).exists(), "not for a person either: {told}");
    let mounted = ["export0", "export2"].map(|name| Mounted::on(dir.path().join(name)));
    agent.ready();
    assert!(dir.path().join("keys").join(KEY).exists());
    agent.kill();
    drop(mounted);
}

/// A volume of its own, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn on(path: PathBuf) -> Self {
        let mut command = std::process::Command::new("mount");
        succeeded("mount", &command.args(["-t", "tmpfs", "none"]).arg(&path).output().unwrap());
        Self(path)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
