//! Files that earlier versions have written, and that this version must read: pins, the sealed copy, the run directory. A version that
//! changes a form adds a folder to `tests/vectors/kept`; no folder is ever removed. The test reads a folder at the time in its
//! `written_at`: a sealed copy and certificates expire, and the test must not.

use crate::harness::{App, IN_PROCESS, KEY, eventually};
use keswarden::{cause::Cause, clock::Clock, keystore::memory::MemoryStore};
use std::{fs, path::Path, sync::Arc};

#[test]
fn every_version_s_files_are_read_by_this_one() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/kept");
    let mut versions = 0;
    for entry in fs::read_dir(kept).unwrap() {
        let from = entry.unwrap().path();
        // The test reads a copy, because this version writes to its run directory.
        let dir = tempfile::tempdir().unwrap();
        copy(&from, dir.path());
        let path = |name: &str| dir.path().join(name).display().to_string();
        let store = Arc::new(MemoryStore::new());
        store.fail(Some(Cause::VaultSealed.seen("Vault is sealed")));
        let (copy, wrapping, pins, run) = (path("copy"), path("wrapping.key"), path("pins"), path("run"));
        let ca = fs::read(dir.path().join("run/ca.crt")).unwrap();
        let written_at = fs::read_to_string(dir.path().join("written_at")).unwrap();
        let written_at: jiff::Timestamp = written_at.trim().parse().unwrap();
        let app = App::start_at(
            Clock::simulated(written_at.into()),
            store,
            &[
                ("KESWARDEN_OFFLINE_DIR", &copy),
                ("KESWARDEN_OFFLINE_KEY_FILE", &wrapping),
                ("KESWARDEN_PIN_DIR", &pins),
                ("KESWARDEN_PIN", "require"),
                ("KESWARDEN_TENANT", "corpus"),
                ("KESWARDEN_RUN_DIR", &run),
            ],
        );
        app.wait_ready();
        assert_eq!(fs::read(dir.path().join("run/ca.crt")).unwrap(), ca, "MinIO reads its CA once");
        let data_key: serde_json::Value =
            serde_json::from_slice(&fs::read(dir.path().join("data-key.json")).unwrap()).unwrap();
        let minio = app.minio_of(Path::new(&run), written_at);
        let opened = minio.decrypt(KEY, data_key["ciphertext"].as_str().unwrap(), "{}");
        assert_eq!(opened.status, 200, "{}", opened.body);
        assert!(opened.body.contains(data_key["plaintext"].as_str().unwrap()));
        eventually(IN_PROCESS, "the pin counts", || {
            (app.metric("keswarden_key_pinned{key=\"my-key\"}")? == 1.0).then_some(())
        });
        versions += 1;
    }
    assert!(versions > 0);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to.join(entry.file_name())),
            false => drop(fs::copy(entry.path(), to.join(entry.file_name())).unwrap()),
        }
    }
}
