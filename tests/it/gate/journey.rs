//! The main job, end to end, on real OpenBao, MinIO and `mc`, for both versions of the K/V engine: MinIO starts when its
//! key can be had and not before, reads on while Vault and the agent come and go, and shares its keys with a second host.

use crate::harness::{Agent, Bao, Mc, Minio, SOON, Var, answers, http_get, policy, succeeded, text};
use base64::{Engine, engine::general_purpose::STANDARD};
use std::{
    fs::File,
    io::Read,
    time::{Duration, Instant},
};

const KEY: &str = "minio-default-key";
const BUCKET: &str = "letters";
const OBJECT: &str = "letters/2026/first.txt";
const CONTENT: &str = "Dear reader, nobody but us reads this.\n";

/// A tenant's parts, as one host has them, over a Vault.
struct Journey {
    /// The version of the K/V engine.
    version: u8,
    bao: Bao,
    agent: Agent,
    minio: Minio,
    mc: Mc,
    /// How an agent reaches the keys.
    vault: Vec<Var>,
    /// Texts that no log may ever hold.
    secrets: Vec<String>,
}

#[test]
fn a_tenant_on_kv_version_1() {
    journey(1);
}

#[test]
fn a_tenant_on_kv_version_2() {
    journey(2);
}

fn journey(version: u8) {
    let mut tenant = Journey::sealed(version);
    tenant.init_waits_says_why_and_passes();
    tenant.minio_starts_and_encrypts();
    if version == 2 {
        tenant.a_key_in_the_older_form_works();
    }
    tenant.new_buckets_get_a_default();
    let link = tenant.mc.share(OBJECT);
    tenant.the_agent_is_killed_and_comes_back(&link);
    tenant.minio_reads_and_writes_while_vault_is_sealed();
    tenant.an_agent_that_starts_while_vault_is_sealed_waits(&link);
    tenant.a_second_host_uses_a_new_key_at_once();
    tenant.agent.drain();
    tenant.no_secret_was_logged_by(&tenant.agent);
}

// === impl Journey ===

impl Journey {
    /// Everything is set up but the key; OpenBao runs, sealed, and nothing else.
    fn sealed(version: u8) -> Self {
        let bao = Bao::with_kv(version);
        let mut vault = bao.approle_vars(&policy(version));
        let secret_id = vault.iter().find(|(name, _)| *name == "KESWARDEN_VAULT_SECRET_ID");
        let secret_id = secret_id.expect("the pair must be there").1.clone();
        bao.seal();
        vault.push(("KESWARDEN_VAULT_KV_MOUNT", "kv".to_owned()));
        vault.push(("KESWARDEN_KEY_NAME", KEY.to_owned()));
        let agent = Agent::new("first", &vault);
        let minio = Minio::new("first");
        let mc = minio.mc("first");
        Self { version, bao, agent, minio, mc, vault, secrets: vec![secret_id] }
    }

    fn init_waits_says_why_and_passes(&mut self) {
        let mut init = self.agent.init();
        init.says(SOON, "vault_sealed");
        self.bao.unseal_one(0);
        init.says(SOON, "1 of 2");
        self.bao.unseal();
        init.says(SOON, "key_missing");
        // The command that makes the key.
        init.says(SOON, &format!("keswarden key create --first {KEY}"));
        assert_eq!(init.ended(), None, "the gate must wait for the key\n{}", init.tail());

        let key = succeeded("keswarden key new", &self.agent.output(&["key", "new", KEY]));
        self.store(KEY, key.trim());
        let stored = Instant::now();
        let code = init.wait(Duration::from_secs(5));
        assert_eq!(code, 0, "the gate must pass {:?} after the key came\n{}", stored.elapsed(), init.tail());
    }

    /// Stores a key by hand, as KES keeps it: in the field of its own name.
    fn store(&mut self, name: &str, key: &str) {
        assert_eq!(key.lines().count(), 1, "a key must be one line");
        let (place, field) = (format!("minio/{name}"), format!("{name}=-"));
        let mut arguments = vec!["kv", "put"];
        if self.version == 2 {
            arguments.push("-cas=0");
        }
        arguments.extend_from_slice(&["-mount=kv", &place, &field]);
        self.bao.ok(&arguments, key);
        self.secrets.push(key.to_owned());
    }

    fn minio_starts_and_encrypts(&mut self) {
        self.agent.run();
        self.agent.ready();
        self.minio.set(self.agent.minio_vars(KEY));
        self.minio.start();
        self.minio.wait_live();
        assert_eq!(self.mc.key_works(KEY), Ok(()));

        self.mc.make_bucket(BUCKET);
        self.mc.set_default_key(BUCKET, KEY);
        self.mc.put(OBJECT, CONTENT);
        encrypted_with(&self.mc, OBJECT, KEY);
        assert_eq!(self.mc.cat(OBJECT), CONTENT);
    }

    fn a_key_in_the_older_form_works(&mut self) {
        let mut bytes = [0; 32];
        let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
        random.expect("the OS must give randomness");
        let bytes = STANDARD.encode(bytes);
        self.store("by-hand", &format!(r#"{{"bytes":"{bytes}","algorithm":"AES256"}}"#));
        self.secrets.push(bytes);
        assert_eq!(self.mc.key_works("by-hand"), Ok(()));
    }

    /// The agent is started anew, with the enforcer on, beside a MinIO that runs on.
    fn new_buckets_get_a_default(&mut self) {
        self.agent.drain();
        self.agent.set("KESWARDEN_MINIO_ENDPOINT", &self.minio.endpoint());
        self.agent.set("KESWARDEN_MINIO_ACCESS_KEY", Minio::USER);
        self.agent.set("KESWARDEN_MINIO_SECRET_KEY", Minio::PASSWORD);
        self.agent.run();
        self.agent.ready();

        self.mc.make_bucket("fresh");
        let mc = &self.mc;
        self.agent.process().until(Duration::from_secs(5), "the new bucket has a default", || {
            match mc.default_key("fresh")?.as_str() {
                KEY => Ok(()),
                other => Err(format!("its default is {other:?}")),
            }
        });
        self.mc.put("fresh/first.txt", CONTENT);
        encrypted_with(&self.mc, "fresh/first.txt", KEY);
    }

    fn the_agent_is_killed_and_comes_back(&mut self, link: &str) {
        let probes = |agent: &Agent| {
            let output = agent.output(&["doctor", "--json"]);
            let rows: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            let rows = rows
                .as_array()
                .unwrap()
                .iter()
                .filter(|row| row["check"].as_str().unwrap().contains("probe"));
            rows.cloned().collect::<Vec<_>>()
        };
        assert!(probes(&self.agent).iter().all(|row| row["state"] == "ok"), "{:?}", probes(&self.agent));
        self.agent.kill();
        // MinIO lives, and gets no data key.
        let [live, ready] = &probes(&self.agent)[..] else { panic!("there are two probes") };
        assert_eq!((&live["state"], &ready["cause"]), (&"ok".into(), &"minio_not_ready".into()), "{ready}");
        self.agent.run();
        self.agent.ready();
        self.reads_again(link);
    }

    fn minio_reads_and_writes_while_vault_is_sealed(&mut self) {
        self.bao.seal();
        assert_eq!(self.mc.cat(OBJECT), CONTENT);
        let object = "letters/2026/second.txt";
        self.mc.put(object, CONTENT);
        encrypted_with(&self.mc, object, KEY);
        assert_eq!(self.mc.cat(object), CONTENT);
    }

    fn an_agent_that_starts_while_vault_is_sealed_waits(&mut self, link: &str) {
        self.agent.drain();
        self.agent.run();
        self.agent.process().says(SOON, "vault_sealed");
        let admin = self.agent.admin_port();
        self.agent.process().until(SOON, "has not started", || answers(admin, "/startupz", 503));
        if let Ok((status, body)) = http_get(self.minio.port(), link) {
            assert_ne!(status, 200, "nothing must be read without its key: {}", text(&body));
        }
        self.bao.unseal();
        self.agent.ready();
        self.reads_again(link);
    }

    fn reads_again(&mut self, link: &str) {
        let port = self.minio.port();
        let body = self.agent.process().until(SOON, "MinIO reads again", || match http_get(port, link)? {
            (200, body) => Ok(body),
            (status, body) => Err(format!("GET {OBJECT}: {status} {}", text(&body))),
        });
        assert_eq!(text(&body), CONTENT);
        assert_eq!(self.mc.cat(OBJECT), CONTENT);
    }

    fn a_second_host_uses_a_new_key_at_once(&mut self) {
        let mut agent = Agent::new("second", &self.vault);
        agent.run();
        agent.ready();
        let mut minio = Minio::new("second");
        minio.set(agent.minio_vars(KEY));
        minio.start();
        minio.wait_live();
        let mc = minio.mc("second");
        mc.make_bucket("parcels");

        self.mc.make_key("parcel-key");
        mc.set_default_key("parcels", "parcel-key");
        mc.put("parcels/first.txt", CONTENT);
        encrypted_with(&mc, "parcels/first.txt", "parcel-key");
        assert_eq!(mc.cat("parcels/first.txt"), CONTENT);

        agent.drain();
        self.no_secret_was_logged_by(&agent);
    }

    fn no_secret_was_logged_by(&self, agent: &Agent) {
        let logs = agent.logs();
        let told = self.secrets.iter().position(|secret| logs.contains(secret.as_str()));
        assert_eq!(told, None, "no secret must be logged (the number is its place in the list of them)");
    }
}

fn encrypted_with(mc: &Mc, place: &str, key: &str) {
    assert_eq!(mc.encryption_of(place), ("aws:kms".to_owned(), key.to_owned()), "the encryption of {place}");
}
