//! Keys in a directory: a disk that is not mounted, and files that a crash has left.

use crate::harness::{Agent, IN_PROCESS, KEY, Launch, SOON, eventually, key_text, server_yaml, succeeded};
use std::fs;

fn agent(keys: &std::path::Path) -> Agent {
    let settings = [
        ("KESWARDEN_FS_DIR", keys.to_string_lossy().into_owned()),
        ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ("KESWARDEN_KEY_CREATE", "if-new".to_owned()),
    ];
    Agent::new("directory", &settings)
}

#[test]
fn an_empty_directory_is_no_proof_that_a_key_is_new() {
    let dir = tempfile::tempdir().unwrap();
    let (keys, mounted) = (dir.path().join("keys"), dir.path().join("mounted"));
    fs::create_dir(&keys).unwrap();
    let mut agent = agent(&keys);
    let advice = format!("keswarden key create --first {KEY}");
    agent.run();
    agent.process().says(SOON, &advice);
    assert!(!keys.join(KEY).exists(), "somebody has to ask for it");
    succeeded("key create", &agent.output(&["key", "create", "--first"]));
    agent.ready();
    agent.drain();
    let key = fs::read(keys.join(KEY)).unwrap();

    // The disk is not mounted when the machine starts.
    fs::rename(&keys, &mounted).unwrap();
    fs::create_dir(&keys).unwrap();
    agent.run();
    agent.process().says(SOON, "so it is not made anew; fix: mount the disk");
    assert!(!keys.join(KEY).exists(), "no other key is made under the name");
    assert!(!agent.process().log().contains(&advice), "nobody is told to make another one");
    fs::remove_dir(&keys).unwrap();
    fs::rename(&mounted, &keys).unwrap();
    agent.ready();
    assert_eq!(fs::read(keys.join(KEY)).unwrap(), key);

    // The same holds for the keys that KES's own file names.
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let yaml = server_yaml(&dir, &format!("keys: [{{ name: {KEY} }}]\n"));
    fs::write(dir.path().join("server-config.yaml"), yaml).unwrap();
    let server = Launch::in_folder(dir).start();
    eventually(IN_PROCESS, "it waits, and says for what", || server.status().contains(&advice).then_some(()));
    assert!(!keys.join(KEY).exists());
    fs::write(keys.join(KEY), key_text()).unwrap();
    server.api_ready();
}

#[test]
fn a_directory_that_is_not_there_is_waited_for_and_never_made() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    let mut agent = agent(&keys);
    agent.run();
    agent.process().says(SOON, &format!("mkdir -m 700 {}, or mount it", keys.display()));
    assert!(!keys.exists());
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join(KEY), key_text()).unwrap();
    agent.ready();
}

#[test]
fn what_a_killed_process_left_of_a_key_is_removed_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    fs::create_dir(&keys).unwrap();
    let file = |name: &str, is_old: bool| {
        let path = keys.join(name);
        fs::write(&path, key_text()).unwrap();
        if is_old {
            let long_ago = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000);
            fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        }
        path
    };
    let old = file(".my-key.0123456789abcdef", true);
    let kept = [
        file(KEY, true),
        // Another process may be writing this file now.
        file(".my-key.fedcba9876543210", false),
        file(".my-key.swp", true),
        file(".0123456789abcdef", true),
    ];
    let mut agent = agent(&keys);
    agent.run();
    agent.ready();
    assert!(!old.exists());
    for path in kept {
        assert!(path.exists(), "{}", path.display());
    }
}

/// A directory of pins that is made on demand, several folders deep.
#[test]
fn pins_are_kept_in_a_directory_that_is_made_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let keys = dir.path().join("keys");
    fs::create_dir(&keys).unwrap();
    fs::write(keys.join(KEY), key_text()).unwrap();
    let pins = dir.path().join("a/b/pins");
    let mut agent = agent(&keys);
    agent.set("KESWARDEN_PIN_DIR", &pins.to_string_lossy());
    succeeded("key pin", &agent.output(&["key", "pin"]));
    assert!(pins.join(KEY).exists());
}
