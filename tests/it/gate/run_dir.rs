//! The run directory: damaged files are made anew, and MinIO can read its own files.

use crate::harness::{KEY, key_text};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Output},
};

/// `keswarden init` under the umask of a careful host.
fn init(dir: &Path) -> Output {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", "umask 077; exec \"$0\" init", env!("CARGO_BIN_EXE_keswarden")]).env_clear();
    let settings = [("FS_DIR", "keys"), ("RUN_DIR", "run"), ("TERMINATION_LOG", "termination-log")];
    for (name, file) in settings {
        command.env(format!("KESWARDEN_{name}"), dir.join(file));
    }
    command.env("KESWARDEN_KEY_NAME", KEY).env("KESWARDEN_GATE_TIMEOUT", "20s").output().unwrap()
}

fn passes(dir: &Path) {
    let output = init(dir);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn files_of_zeros_are_made_anew_and_minio_can_read_what_is_for_it_whatever_the_umask_is() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("keys")).unwrap();
    fs::write(dir.path().join("keys").join(KEY), key_text()).unwrap();
    let run = dir.path().join("run");
    passes(dir.path());
    for (file, mode) in [
        ("", 0o755),
        ("ca.crt", 0o644),
        ("ca.key", 0o600),
        ("server.key", 0o600),
        ("client.crt", 0o644),
        ("client.key", 0o640),
    ] {
        let found = fs::metadata(run.join(file)).unwrap().permissions().mode() & 0o777;
        assert_eq!(found, mode, "{file:?} is {found:o}");
    }
    // Files as a power cut leaves them.
    for file in ["server.key", "client.crt", "ca.key"] {
        fs::write(run.join(file), [0; 227]).unwrap();
        passes(dir.path());
        assert!(fs::read_to_string(run.join(file)).unwrap().starts_with("-----BEGIN"), "{file}");
    }
    // Damage that cannot be mended is told with the file's path.
    fs::remove_file(run.join("ca.key")).unwrap();
    fs::create_dir(run.join("ca.key")).unwrap();
    let output = init(dir.path());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(71), "{text}");
    assert!(text.contains(&format!("make {} readable", run.join("ca.key").display())), "{text}");
}
