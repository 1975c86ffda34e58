//! Witnesses that are damaged, moved, renamed or partly gone: each still says what it can, and what is printed cures.

use super::remembered::tenant::{WRITTEN, between, paste};
use crate::harness::{Agent, Bao, Client, KEY, Process, SOON, eventually, fingerprint, key_text, succeeded};
use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// A tenant over a key directory, whose key was in use once; the state directory remembers that.
struct Silenced {
    agent: Agent,
    dir: TempDir,
}

// === impl Silenced ===

impl Silenced {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("keys")).unwrap();
        let mut agent = Agent::new("silenced", &[]);
        agent.set("KESWARDEN_FS_DIR", &dir.path().join("keys").display().to_string());
        agent.set("KESWARDEN_STATE_DIR", &dir.path().join("state").display().to_string());
        agent.set("KESWARDEN_KEY_NAME", KEY);
        agent.set("KESWARDEN_GATE_TIMEOUT", "0");
        let tenant = Self { agent, dir };
        tenant.put(&WRITTEN.key);
        succeeded("init", &tenant.agent.output(&["init"]));
        tenant.forget_run_dir();
        tenant
    }

    /// A restart of the machine takes the run directory away.
    fn forget_run_dir(&self) {
        let _ = fs::remove_dir_all(self.agent.run_dir());
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, text: &str) {
        fs::write(self.path("keys").join(KEY), text).unwrap();
    }

    fn remove_key(&self) {
        fs::remove_file(self.path("keys").join(KEY)).unwrap();
    }

    fn entry(&self) -> PathBuf {
        let mut entries = fs::read_dir(self.path("state/known-keys")).unwrap();
        entries.next().unwrap().unwrap().path()
    }

    /// Another key is refused, and for a missing one no other is made.
    fn holds(&self, case: &str) {
        self.put(&key_text());
        refused(case, &self.agent.output(&["init"]), "key_replaced");
        self.forget_run_dir();
        self.remove_key();
        self.makes_none(case);
    }

    fn makes_none(&self, case: &str) {
        let output = self.agent.output(&["key", "create", "--first"]);
        assert!(!output.status.success(), "{case}: {}", everything_of(&output));
        self.forget_run_dir();
        assert!(!self.path("keys").join(KEY).exists(), "{case}: no key is made");
    }
}

fn everything_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn refused(case: &str, output: &Output, cause: &str) {
    let text = everything_of(output);
    assert!(!output.status.success() && text.contains(cause), "{case}: {text}");
}

/// A file of a state directory that cannot be read hides none of the others.
#[test]
fn damaged_entries_hide_no_good_one() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 4] = [
        ("an empty file", |path| fs::write(path, "").unwrap()),
        ("garbage", |path| fs::write(path, "no entry at all").unwrap()),
        ("a later form", |path| fs::write(path, r#"{"known_key":2}"#).unwrap()),
        ("a folder", |path| fs::create_dir(path).unwrap()),
    ];
    for (case, damage) in damages {
        let tenant = Silenced::new();
        damage(&tenant.path("state/known-keys").join(format!("{KEY}.ffffffffffffffff")));
        tenant.holds(case);
    }
}

/// An entry that has changed since it was written is no word against the right key.
#[test]
fn a_changed_entry_stops_nobody() {
    let tenant = Silenced::new();
    let entry = tenant.entry();
    let right = fingerprint(&WRITTEN.key);
    let changed = format!("{}{}", if right.starts_with('0') { '1' } else { '0' }, &right[1..]);
    fs::write(&entry, fs::read_to_string(&entry).unwrap().replace(&right, &changed)).unwrap();
    let output = tenant.agent.output(&["init"]);
    succeeded("init", &output);
    assert!(everything_of(&output).contains("is damaged"), "{}", everything_of(&output));
    tenant.forget_run_dir();
    tenant.remove_key();
    tenant.makes_none("an entry that cannot be read may know the name");
}

/// What a store had counts, whatever the tenant is called.
#[test]
fn a_tenant_s_new_name_is_no_new_tenant() {
    let mut tenant = Silenced::new();
    tenant.agent.set("KESWARDEN_TENANT", "acme");
    tenant.holds("KESWARDEN_TENANT");
}

/// A link to a volume that is not mounted leads nowhere: a witness that cannot be asked, and none that knows nothing.
#[test]
fn dangling_links_are_no_new_places() {
    for linked in ["state", "state/known-keys"] {
        let tenant = Silenced::new();
        fs::rename(tenant.path(linked), tenant.path("volume")).unwrap();
        symlink(tenant.path("not-mounted"), tenant.path(linked)).unwrap();
        tenant.remove_key();
        tenant.makes_none(linked);
        fs::remove_file(tenant.path(linked)).unwrap();
        symlink(tenant.path("volume"), tenant.path(linked)).unwrap();
        tenant.put(&key_text());
        refused(linked, &tenant.agent.output(&["init"]), "key_replaced");
    }
    let mut tenant = Silenced::new();
    tenant.agent.set("KESWARDEN_MEMORY", "off");
    tenant.agent.set("KESWARDEN_PIN_DIR", &tenant.path("pins").display().to_string());
    symlink(tenant.path("not-mounted"), tenant.path("pins")).unwrap();
    tenant.remove_key();
    tenant.makes_none("the pins");
}

/// Drives that are given by their names, and one of them has failed: the others still decide.
#[test]
fn a_drive_that_is_gone_silences_no_other_one() {
    let drive = |names: &str| {
        let mut tenant = Silenced::new();
        tenant.agent.set("KESWARDEN_MEMORY", "off");
        let copied = Command::new("cp").arg("-a").arg(&WRITTEN.drive).arg(tenant.path("d1")).output();
        succeeded("cp", &copied.unwrap());
        let names = names.replace("DIR", &tenant.dir.path().display().to_string());
        tenant.agent.set("KESWARDEN_DRIVES", &names);
        tenant
    };
    for names in ["DIR/d1,DIR/d2", "DIR/d2,DIR/d1", "DIR/d{1...2}", "DIR/d*,DIR/d2", "DIR/d{1...1}"] {
        drive(names).holds(names);
    }
    let tenant = drive("DIR/d1,DIR/file");
    fs::write(tenant.path("file"), "").unwrap();
    tenant.holds("a file in a drive's place");
    // Drives that name the key count whatever a person says of those that cannot be read.
    let output = tenant.agent.output(&["key", "create", "--first", "--no-drives"]);
    refused("--no-drives", &output, "is known from the drives");
}

/// A client asks for a new key under a name that the drives know, and that is lost from the store.
#[test]
fn a_client_gets_no_other_key_under_a_name_that_the_drives_know() {
    let mut tenant = Silenced::new();
    tenant.agent.set("KESWARDEN_MEMORY", "off");
    tenant.agent.set("KESWARDEN_DRIVES", &WRITTEN.drive.display().to_string());
    tenant.agent.set("KESWARDEN_KEY_NAME", "another-default");
    tenant.remove_key();
    fs::write(tenant.path("keys/another-default"), key_text()).unwrap();
    tenant.agent.run();
    tenant.agent.ready();
    let client = Client::of(&tenant.agent);
    let made = client.call("PUT", &format!("/v1/key/create/{KEY}"), None);
    assert_ne!(made.status, 200, "{}", made.body);
    assert!(!tenant.path("keys").join(KEY).exists(), "no key is made");
    let made = client.call("PUT", "/v1/key/create/whole-new", None);
    assert_eq!(made.status, 200, "{}", made.body);
    // The right key comes back, and is used.
    tenant.put(&WRITTEN.key);
    client.generate(KEY, "{}");
    tenant.agent.drain();
}

/// A `server` whose file is a ConfigMap's, a link to today's copy: its memory outlives the next copy, and another file's for the store.
#[test]
fn a_server_s_memory_outlives_the_copies_of_its_file() {
    let tenant = Silenced::new();
    let agent = &tenant.agent;
    let home = tenant.path("home");
    let (map, keys) = (tenant.path("map"), tenant.path("keys").display().to_string());
    let certificate = tenant.path("tls");
    fs::create_dir(&certificate).unwrap();
    let made = agent.shell(
        "keswarden identity new --cert tls.crt --key tls.key --ip 127.0.0.1 localhost",
        &certificate,
        &[],
    );
    succeeded("identity new", &made);
    let file = |folder: &str| {
        fs::create_dir_all(map.join(folder)).unwrap();
        let yaml = format!(
            "address: 127.0.0.1:0\nadmin:\n  identity: disabled\ntls:\n  key: {dir}/tls.key\n  cert: {dir}/tls.crt\nkeys:\n- name: {KEY}\n\
             keystore:\n  fs:\n    path: {keys}\n",
            dir = certificate.display()
        );
        fs::write(map.join(folder).join("config.yaml"), yaml).unwrap();
    };
    for folder in ["..one", "..two", "other"] {
        file(folder);
    }
    symlink("..one", map.join("..data")).unwrap();
    symlink("..data/config.yaml", map.join("config.yaml")).unwrap();
    let starts = |config: PathBuf, wanted: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
        command.env_clear().args(["server", "--config"]).arg(&config);
        command.env("XDG_STATE_HOME", &home).env("KESWARDEN_ADMIN_ADDR", "127.0.0.1:0");
        let mut server = Process::spawn("the server", command, tenant.path("log"));
        server.says(SOON, wanted);
    };
    starts(map.join("config.yaml"), "serving");
    fs::remove_file(map.join("..data")).unwrap();
    symlink("..two", map.join("..data")).unwrap();
    tenant.put(&key_text());
    starts(map.join("config.yaml"), "key_replaced");
    starts(map.join("other/config.yaml"), "key_replaced");
    tenant.put(&WRITTEN.key);
    starts(map.join("other/config.yaml"), "serving");
}

/// On a real OpenBao: the key is lost in each way that leaves something in its place, and the printed commands bring it back.
#[test]
fn what_is_left_of_a_key_is_set_aside_and_the_key_comes_back_by_what_is_printed() {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv");
    let put = |place: &str, text: &str, cas: &str| {
        bao.ok(&["kv", "put", "-mount=kv", &format!("-cas={cas}"), place, &format!("{KEY}=-")], text)
    };
    for case in [
        "destroyed",
        "garbled",
        "another field",
        "pushed down",
        "replaced, and the right one written after it",
        "replaced, each version with an end",
        "replaced, and a later one deleted",
    ] {
        println!("{case}");
        let prefix = case.split([' ', ',']).collect::<Vec<_>>().join("-");
        let place = format!("{prefix}/{KEY}");
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("copy")).unwrap();
        fs::write(dir.path().join("wrapping.key"), "0123456789abcdef0123456789abcdef").unwrap();
        let settings = [
            ("KESWARDEN_VAULT_ADDR", bao.addr()),
            ("KESWARDEN_VAULT_CACERT", bao.ca_path().display().to_string()),
            ("KESWARDEN_VAULT_TOKEN", bao.root_token().to_owned()),
            ("KESWARDEN_VAULT_KV_PREFIX", prefix),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
            ("KESWARDEN_OFFLINE_DIR", dir.path().join("copy").display().to_string()),
            ("KESWARDEN_OFFLINE_KEY_FILE", dir.path().join("wrapping.key").display().to_string()),
        ];
        let mut agent = Agent::new(case, &settings);
        put(&place, &WRITTEN.key, "0");
        agent.run();
        agent.ready();
        eventually(SOON, "the copy is written", || dir.path().join("copy/keys.sealed").exists());
        agent.kill();

        let _ = match case {
            "destroyed" => bao.ok(&["kv", "destroy", "-mount=kv", "-versions=1", &place], ""),
            _ => bao.ok(&["kv", "metadata", "delete", "-mount=kv", &place], ""),
        };
        match case {
            "garbled" => drop(put(&place, "no key at all", "0")),
            "another field" => {
                drop(bao.ok(&["kv", "put", "-mount=kv", "-cas=0", &place, "other=-"], &WRITTEN.key));
            }
            "pushed down" => {
                bao.ok(&["write", "kv/config", "max_versions=1"], "");
                put(&place, &WRITTEN.key, "0");
                put(&place, &WRITTEN.key, "1");
                bao.ok(&["write", "kv/config", "max_versions=100"], "");
            }
            "destroyed" => {}
            "replaced, and a later one deleted" => {
                put(&place, &key_text(), "0");
                put(&place, &WRITTEN.key, "1");
                bao.ok(&["kv", "delete", "-mount=kv", "-versions=2", &place], "");
            }
            _ => {
                if case.ends_with("an end") {
                    bao.ok(&["kv", "metadata", "put", "-mount=kv", "-delete-version-after=1h", &place], "");
                }
                put(&place, &key_text(), "0");
                put(&place, &WRITTEN.key, "1");
                fs::remove_dir_all(dir.path().join("copy")).unwrap();
                fs::create_dir(dir.path().join("copy")).unwrap();
            }
        }
        agent.run();
        agent.process().says(SOON, "set aside what is");
        let line = agent.process().log();
        let aside = &line[line.rfind("set aside what is").unwrap()..];
        paste(&agent, &bao, between(aside, "`", "`, then"), dir.path());
        let back = match case {
            "replaced, and the right one written after it" | "replaced, each version with an end" => {
                between(aside, "put version 2 back as the first one: `", "`")
            }
            _ => between(aside, "sealed copy, which has it: `", "`"),
        };
        if case == "replaced, and a later one deleted" {
            let saved = fs::read_to_string(dir.path().join(format!("{KEY}.set-aside.2"))).unwrap();
            assert!(saved.contains(&WRITTEN.key), "a version that can be undeleted is not lost");
        }
        paste(&agent, &bao, back, dir.path());
        agent.ready();
        let stored = bao.ok(&["kv", "get", "-mount=kv", &format!("-field={KEY}"), &place], "");
        assert_eq!(fingerprint(stored.trim()), fingerprint(&WRITTEN.key), "{case}");
        agent.drain();
    }
}
