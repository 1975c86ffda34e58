//! KES alone, as the first step into an existing tenant: MinIO's own settings are a whole set-up for the gate, and what the key is shows
//! in what it opens. KES is keswarden's own server here; a real MinIO writes the data.

use crate::{
    harness::key_text,
    peers::{Agent, Minio, SOON},
};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

const KEY: &str = "minio-default-key";

struct Tenant {
    kes: Agent,
    keys: TempDir,
    minio: Minio,
    /// The gate: nothing is set but what MinIO has.
    gate: Agent,
    pins: TempDir,
}

impl Tenant {
    fn with_data() -> Self {
        let (keys, pins) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(keys.path().join(KEY), key_text()).unwrap();
        let settings = [
            ("KESWARDEN_FS_DIR", keys.path().to_string_lossy().into_owned()),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
            // A KES that takes whatever its store has.
            ("KESWARDEN_MEMORY", "off".to_owned()),
        ];
        let mut kes = Agent::new("as KES", &settings);
        kes.run();
        kes.ready();
        let mut minio = Minio::new("remote");
        minio.set(kes.minio_vars(KEY));
        minio.start();
        minio.wait_live();
        let mc = minio.mc("remote");
        mc.make_bucket("bucket");
        mc.set_default_key("bucket", KEY);
        for object in ["a", "b", "c", "d"] {
            mc.put(&format!("bucket/{object}"), "content");
        }
        minio.stop();
        let gate = Agent::new("gate", &kes.minio_vars(KEY));
        Self { kes, keys, minio, gate, pins }
    }

    fn with_key(&mut self, key: Option<&str>) {
        self.kes.drain();
        match key {
            Some(key) => fs::write(self.key(), key).unwrap(),
            None => fs::remove_file(self.key()).unwrap(),
        }
        self.kes.run();
        if key.is_some() {
            self.kes.ready();
        }
    }

    fn key(&self) -> PathBuf {
        self.keys.path().join(KEY)
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
    let mut tenant = Tenant::with_data();
    let right = fs::read_to_string(tenant.key()).unwrap();
    tenant.gate.set("KESWARDEN_GATE_TIMEOUT", "2s");
    // MinIO's own settings are enough.
    tenant.ends(0, "has no canary");
    let pins = tenant.pins.path().to_string_lossy().into_owned();
    let drives = tenant.minio.drives()[0].clone();

    // The data prove the key, and its canary is made.
    tenant.gate.set("KESWARDEN_DRIVES", &drives);
    tenant.gate.set("KESWARDEN_PIN_DIR", &pins);
    tenant.ends(0, "canary is made");
    let canary = tenant.pins.path().join("canaries").join(KEY);
    assert!(!fs::read_to_string(&canary).unwrap().contains(right.trim()));
    tenant.ends(0, "gate passed");

    // Another key: the data say so, and without them the canary does.
    tenant.with_key(Some(&key_text()));
    tenant.ends(65, "opens none of the");
    tenant.gate.set("KESWARDEN_DRIVES", &tenant.pins.path().to_string_lossy());
    tenant.ends(65, "does not open the canary");
    tenant.with_key(Some(&right));
    tenant.ends(0, "gate passed");
    fs::write(&canary, "{}").unwrap();
    tenant.ends(65, "pin_conflict");
    fs::remove_file(&canary).unwrap();
    tenant.gate.set("KESWARDEN_PIN", "require");
    tenant.gate.set("KESWARDEN_DRIVES", &drives);
    tenant.ends(0, "canary is made");

    // `run` serves keys, and here there are none to be served.
    let run = tenant.gate.output(&["run"]);
    assert_eq!(run.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&run.stderr).contains("store_unset"));
    let doctor = tenant.gate.output(&["doctor"]);
    let table = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(doctor.status.code() == Some(0) && table.contains("by KES alone"), "{table}");
    tenant.kes.drain();
    tenant.ends(69, "kes_unreachable");
}
