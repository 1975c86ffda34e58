//! Attacks on a tenant's key, on real OpenBao: deleted, replaced, looked for elsewhere, rolled back. No key is ever made or
//! taken in its place, the cause is right, and with the right bytes back everything reads.

use crate::harness::{Agent, Bao, Client, KEY, SOON, key_text, policy, succeeded};
use std::{fs, path::Path};
use tempfile::TempDir;

/// Rounds of each attack; `KESWARDEN_TEST_ROUNDS=25` for more by hand.
fn rounds() -> usize {
    std::env::var("KESWARDEN_TEST_ROUNDS").map_or(3, |rounds| rounds.parse().expect("must be a number"))
}

/// A tenant whose key is attacked in its Vault.
struct Attacked {
    version: u8,
    bao: Bao,
    agent: Agent,
    /// The text that is stored under the key's name.
    key: String,
    sealed: String,
    _pins: TempDir,
}

// === impl Attacked ===

impl Attacked {
    /// An agent that made its key at its first start, as a fresh tenant's may, and that is allowed to make a first key again.
    fn new(version: u8) -> Self {
        let bao = Bao::with_kv(version);
        bao.setup_kv(2, "pins");
        let pins = "\npath \"pins/data/keswarden/*\" { capabilities = [\"create\", \"read\"] }\n\
                    path \"pins/metadata/keswarden/*\" { capabilities = [\"read\"] }\n";
        let dir = tempfile::tempdir().unwrap();
        let mut settings = bao.approle_vars(&(policy(version) + pins));
        settings.extend([
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
            ("KESWARDEN_KEY_CREATE", "if-new".to_owned()),
            ("KESWARDEN_PIN_KV", "pins/keswarden".to_owned()),
            ("KESWARDEN_PIN_DIR", dir.path().to_string_lossy().into_owned()),
            ("KESWARDEN_VERIFY_INTERVAL", "200ms".to_owned()),
        ]);
        let agent = Agent::new("attacked", &settings);
        let mut tenant = Self { version, bao, agent, key: String::new(), sealed: String::new(), _pins: dir };
        if version == 1 {
            // K/V v1 forgets deleted keys, so a person has to ask for a first key.
            tenant.agent.run();
            tenant.agent.process().says(SOON, "keswarden key create --first my-key");
            let made = succeeded("key create", &tenant.agent.output(&["key", "create", "--first"]));
            let again = succeeded("key create", &tenant.agent.output(&["key", "create", "--first", KEY]));
            assert_eq!(made, again, "what is there stays");
        } else {
            tenant.agent.run();
        }
        tenant.agent.ready();
        tenant.key = tenant.stored().expect("the first key must be stored");
        tenant.sealed = tenant.client().generate(KEY, "{}").1;
        tenant
    }

    fn client(&self) -> Client {
        Client::of(&self.agent)
    }

    /// The text that is stored under the key's name, if there is one.
    fn stored(&self) -> Option<String> {
        let output = self.bao.cli(&["kv", "get", "-mount=kv", &format!("-field={KEY}"), "minio/my-key"]);
        output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
    }

    fn put(&self, key: &str) {
        let mut arguments = vec!["kv", "put"];
        if self.version == 2 {
            arguments.push("-cas=0");
        }
        self.bao.ok(&[&arguments[..], &["-mount=kv", "minio/my-key", "my-key=-"]].concat(), key);
    }

    /// Removes every trace of the key from its store.
    fn delete(&self) {
        let what: &[&str] = if self.version == 2 { &["kv", "metadata", "delete"] } else { &["kv", "delete"] };
        self.bao.ok(&[what, &["-mount=kv", "minio/my-key"]].concat(), "");
    }

    fn opens_what_it_sealed(&self) {
        assert_eq!(self.client().decrypt(KEY, &self.sealed, "{}").status, 200);
    }

    /// The agent starts anew, waits for this cause, and takes nothing in the key's place.
    fn starts_anew_and_waits(&mut self, cause: &str) {
        self.agent.kill();
        self.agent.run();
        let before = self.stored();
        self.agent.process().says(SOON, cause);
        assert_eq!(self.agent.process().ended(), None);
        assert_eq!(self.stored(), before, "nothing is written");
    }

    fn rescue(&self, code: i32, says: &str) {
        let output = self.agent.output(&["key", "rescue", KEY, "--yes"]);
        let told = [output.stdout, output.stderr].concat();
        let told = String::from_utf8_lossy(&told).into_owned();
        assert_eq!(output.status.code(), Some(code), "{told}");
        assert!(told.contains(says), "{told}");
    }

    fn recovers(&mut self) {
        self.agent.ready();
        self.opens_what_it_sealed();
        assert_eq!(self.stored().as_deref(), Some(self.key.as_str()));
    }
}

fn under_attack(version: u8) {
    let mut tenant = Attacked::new(version);
    let another = key_text();
    for round in 0..rounds() {
        println!("K/V v{version}, round {round}");
        tenant.delete();
        tenant.opens_what_it_sealed();
        let create = tenant.client().call("POST", "/v1/key/create/my-key", None);
        assert_ne!(create.status, 200, "no other key is made under the name of one in use");
        assert_eq!(tenant.stored(), None);
        // The only copy is in the agent's memory.
        tenant.rescue(0, "is back in");
        assert_eq!(tenant.stored().as_deref(), Some(tenant.key.as_str()));
        tenant.rescue(0, "there is nothing to rescue");
        tenant.delete();
        tenant.starts_anew_and_waits("so it is not made anew");
        let first = tenant.agent.output(&["key", "create", "--first"]);
        assert_eq!(first.status.code(), Some(69), "nobody makes another first key");
        assert_eq!(tenant.stored(), None);
        tenant.put(&tenant.key);
        tenant.recovers();

        tenant.delete();
        tenant.put(&another);
        tenant.agent.process().says(SOON, "sealing with the key has stopped");
        tenant.opens_what_it_sealed();
        let seal = tenant.client().call("POST", "/v1/key/generate/my-key", Some("{}"));
        assert_eq!((seal.status, seal.body.as_str()), (502, "{\"message\":\"failed to read key\"\n}"));
        tenant.rescue(69, "set aside what is left under the name");
        assert_eq!(tenant.stored().as_deref(), Some(another.as_str()), "nothing is written over");
        tenant.starts_anew_and_waits("key_replaced");
        tenant.delete();
        tenant.put(&tenant.key);
        tenant.recovers();

        tenant.agent.set("KESWARDEN_VAULT_KV_PREFIX", "minio/elsewhere");
        tenant.starts_anew_and_waits("so it is not made anew");
        tenant.agent.set("KESWARDEN_VAULT_KV_PREFIX", "minio");
        tenant.agent.kill();
        tenant.agent.run();
        tenant.recovers();
    }
    rolled_back(tenant);
}

/// A snapshot that is older than the key takes key and pin alike out of Vault: the pins in files still know the key.
fn rolled_back(mut tenant: Attacked) {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let with_key = file("with-key");
    tenant.bao.ok(&["operator", "raft", "snapshot", "save", &with_key], "");
    tenant.delete();
    tenant.bao.ok(&["kv", "metadata", "delete", "-mount=pins", "keswarden/my-key"], "");
    let without = file("without");
    tenant.bao.ok(&["operator", "raft", "snapshot", "save", &without], "");
    tenant.put(&tenant.key);
    restore(&tenant.bao, &without);
    tenant.starts_anew_and_waits("so it is not made anew");
    restore(&tenant.bao, &with_key);
    tenant.recovers();
}

fn restore(bao: &Bao, snapshot: &str) {
    assert!(fs::metadata(Path::new(snapshot)).is_ok_and(|file| file.len() > 0));
    bao.ok(&["operator", "raft", "snapshot", "restore", "-force", snapshot], "");
}

#[test]
fn a_tenant_on_kv_version_1_under_attack() {
    under_attack(1);
}

#[test]
fn a_tenant_on_kv_version_2_under_attack() {
    under_attack(2);
}
