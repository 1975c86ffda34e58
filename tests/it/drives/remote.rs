//! A gate before a KES that is the only store of keys, as the first step into an existing tenant: MinIO's own settings are enough for the
//! gate, and the key is known by the data that it opens. KES is keswarden's own server here; a real MinIO writes the data.

use crate::harness::{Agent, SOON, Tenant, key_text};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

const KEY: &str = "minio-default-key";

/// A gate before a KES that has a tenant's keys.
struct Remote {
    /// keswarden is KES here.
    tenant: Tenant,
    /// The gate: nothing is set but what MinIO has.
    gate: Agent,
    pins: TempDir,
}

// === impl Remote ===

impl Remote {
    fn with_data() -> Self {
        // A KES that takes any key that its store has.
        let mut tenant = Tenant::new("remote", KEY, &[("KESWARDEN_MEMORY", "off".to_owned())]);
        tenant.starts();
        tenant.fills("bucket", KEY);
        tenant.minio.stop();
        let gate = Agent::new("gate", &tenant.agent.minio_vars(KEY));
        Self { tenant, gate, pins: tempfile::tempdir().unwrap() }
    }

    fn with_key(&mut self, key: Option<&str>) {
        self.tenant.agent.drain();
        match key {
            Some(key) => fs::write(self.key(), key).unwrap(),
            None => fs::remove_file(self.key()).unwrap(),
        }
        self.tenant.agent.run();
        if key.is_some() {
            self.tenant.agent.ready();
        }
    }

    fn key(&self) -> PathBuf {
        self.tenant.key_file(KEY)
    }

    fn ends(&mut self, code: i32, says: &str) {
        let mut init = self.gate.init();
        let ended = init.wait(SOON);
        assert_eq!(ended, code, "{}", init.log());
        assert!(init.log().contains(says), "{says:?} is not in {}", init.log());
    }
}

#[test]
fn a_gate_in_front_of_kes_alone_knows_the_key_by_what_it_opens() {
    let mut remote = Remote::with_data();
    let right = fs::read_to_string(remote.key()).unwrap();
    remote.gate.set("KESWARDEN_GATE_TIMEOUT", "2s");
    // MinIO's own settings are enough.
    remote.ends(0, "has no canary");
    let pins = remote.pins.path().to_string_lossy().into_owned();
    let drives = remote.tenant.minio.drives()[0].clone();

    // The data prove the key, and its canary is made.
    remote.gate.set("KESWARDEN_DRIVES", &drives);
    remote.gate.set("KESWARDEN_PIN_DIR", &pins);
    remote.ends(0, "canary is made");
    let canary = remote.pins.path().join("canaries").join(KEY);
    assert!(!fs::read_to_string(&canary).unwrap().contains(right.trim()));
    remote.ends(0, "gate passed");

    // Another key: the data say so, and without them the canary does.
    remote.with_key(Some(&key_text()));
    remote.ends(65, "opens none of the");
    remote.gate.set("KESWARDEN_DRIVES", &remote.pins.path().to_string_lossy());
    remote.ends(65, "does not open the canary");
    remote.with_key(Some(&right));
    remote.ends(0, "gate passed");
    fs::write(&canary, "{}").unwrap();
    remote.ends(65, "pin_conflict");
    fs::remove_file(&canary).unwrap();
    remote.gate.set("KESWARDEN_PIN", "require");
    remote.gate.set("KESWARDEN_DRIVES", &drives);
    remote.ends(0, "canary is made");

    // `run` serves keys, and has no store of keys here.
    let run = remote.gate.output(&["run"]);
    assert_eq!(run.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&run.stderr).contains("store_unset"));
    let doctor = remote.gate.output(&["doctor"]);
    let table = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.code() == Some(0) && table.contains("by KES alone"), "{table}");
    remote.tenant.agent.drain();
    remote.ends(69, "kes_unreachable");
}
