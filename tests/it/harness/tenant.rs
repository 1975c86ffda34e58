//! A tenant on one host, whose keys are in a folder.

use super::{Agent, Mc, Minio, Var, key_text};
use std::{fs, path::PathBuf};
use tempfile::TempDir;

/// keswarden over a folder of keys, MinIO, and `mc`.
pub struct Tenant {
    pub agent: Agent,
    pub minio: Minio,
    pub mc: Mc,
    /// The folder `keys`, and room for a test's files.
    pub dir: TempDir,
    default_key: &'static str,
}

// === impl Tenant ===

impl Tenant {
    /// Nothing runs yet; the default key is there.
    pub fn new(name: &str, default_key: &'static str, more: &[Var]) -> Self {
        let dir = TempDir::new().expect("a temporary folder must be made");
        let keys = dir.path().join("keys");
        fs::create_dir(&keys).expect("a temporary folder must be made");
        let settings = [
            ("KESWARDEN_FS_DIR", keys.to_string_lossy().into_owned()),
            ("KESWARDEN_KEY_NAME", default_key.to_owned()),
        ];
        let agent = Agent::new(name, &[&settings[..], more].concat());
        let minio = Minio::new(name);
        let mc = minio.mc("site");
        let tenant = Self { agent, minio, mc, dir, default_key };
        fs::write(tenant.key_file(default_key), key_text()).expect("a key file must be written");
        tenant
    }

    /// Starts keswarden and MinIO.
    pub fn starts(&mut self) {
        self.agent.run();
        self.agent.ready();
        self.minio.set(self.agent.minio_vars(self.default_key));
        self.minio.start();
        self.minio.wait_live();
    }

    /// Makes a bucket under a key, with four small objects.
    pub fn fills(&self, bucket: &str, key: &str) {
        self.mc.make_bucket(bucket);
        self.mc.set_default_key(bucket, key);
        for object in ["a", "b", "c", "d"] {
            self.mc.put(&format!("{bucket}/{object}"), "content");
        }
    }

    pub fn key_file(&self, name: &str) -> PathBuf {
        self.path("keys").join(name)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A path as text, for a setting.
    pub fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
}
