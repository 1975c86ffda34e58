//! The fault matrix: a real OpenBao, and the network before it, in every state that an operator may find them in. A gate that starts
//! in such a state names the cause within ten seconds. An agent that has its key goes on sealing and opening. Once the fault is over, the
//! agent verifies again by itself. `every_situation_has_its_test` holds that no situation is left out.

mod audit;
mod cluster;
mod credentials;
mod keys;
mod kubernetes;
mod mounts;
mod network;
mod seal;
mod tls;
mod transit;

use crate::harness::{
    Agent, Bao, Client, KEY, Proxy, SOON, Var, eventually, key_text, names_its_cause, policy, put_key,
};
use std::path::PathBuf;

/// An OpenBao, an agent that reaches OpenBao through a proxy and has its key, and a ciphertext of this key.
struct Site {
    bao: Bao,
    proxy: Proxy,
    agent: Agent,
    sealed: String,
    settings: Vec<Var>,
}

/// An OpenBao with `my-key` in K/V v2 below `kv/minio`, and the settings of an AppRole that may read it.
fn with_key() -> (Bao, Vec<Var>) {
    let bao = Bao::with_kv(2);
    put_key(&bao, &key_text());
    let pair = bao.approle_pair(&policy(2));
    (bao, pair)
}

// === impl Site ===

impl Site {
    /// An agent with its key, which reaches Vault through the proxy and logs in as `login` says.
    fn serving(bao: Bao, login: &[Var]) -> Self {
        let port = bao.addr().rsplit(':').next().unwrap().parse().unwrap();
        let proxy = Proxy::before(port);
        let address = format!("https://127.0.0.1:{}", proxy.port);
        Self::at(bao, proxy, &address, login)
    }

    fn at(bao: Bao, proxy: Proxy, address: &str, login: &[Var]) -> Self {
        let mut settings = vec![
            ("KESWARDEN_VAULT_ADDR", address.to_owned()),
            ("KESWARDEN_VAULT_CACERT", bao.ca_path().to_string_lossy().into_owned()),
            ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
            ("KESWARDEN_VAULT_TIMEOUT", "1s".to_owned()),
            ("KESWARDEN_VERIFY_INTERVAL", "300ms".to_owned()),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ];
        for (name, value) in login {
            settings.retain(|(other, _)| other != name);
            settings.push((name, value.clone()));
        }
        let mut agent = Agent::new("faults", &settings);
        agent.run();
        agent.ready();
        let sealed = Client::of(&agent).generate(KEY, "{}").1;
        Self { bao, proxy, agent, sealed, settings }
    }

    fn metric(&self, line: &str) -> f64 {
        self.agent.metric(line)
    }

    fn logins(&self) -> f64 {
        self.metric("keswarden_vault_login_total{method=\"approle\",outcome=\"ok\"}")
    }

    /// MinIO's requests are answered: an old ciphertext opens, a new data key is sealed.
    fn serves(&self, when: &str) {
        self.opens(when);
        Client::of(&self.agent).generate(KEY, "{}");
    }

    /// An old ciphertext opens.
    fn opens(&self, when: &str) {
        assert_eq!(Client::of(&self.agent).decrypt(KEY, &self.sealed, "{}").status, 200, "{when}");
    }

    /// A data key is refused, as while the key is lost from the store.
    fn refuses_to_seal(&self, when: &str) {
        let path = format!("/v1/key/generate/{KEY}");
        eventually(SOON, &format!("{when}: sealing is refused"), || {
            let reply = Client::of(&self.agent).call("POST", &path, Some("{}"));
            if reply.status == 502 { Ok(()) } else { Err(format!("{} {}", reply.status, reply.body)) }
        });
    }

    /// Another pod, with the same settings and a run directory of its own.
    fn pod(&self) -> Agent {
        Agent::new("another pod", &self.settings)
    }

    /// The gate of a pod that starts now names this cause; its log.
    fn gate_says(&self, cause: &str) -> String {
        names_its_cause(&mut self.pod(), cause).log()
    }

    /// A pod that starts now passes the gate.
    fn gate_passes(&self) {
        let mut pod = self.pod();
        let mut init = pod.init();
        assert_eq!(init.wait(SOON), 0, "{}", init.log());
    }

    /// A verification of the agent fails, a gate names this cause, and MinIO's requests are answered all the while.
    fn goes_on_while(&self, cause: &str) -> String {
        let failed = || self.metric("keswarden_key_verifications_total{outcome=\"failed\"}");
        let before = failed();
        eventually(SOON, &format!("{cause}: a verification fails"), || failed() > before);
        let log = self.gate_says(cause);
        self.serves(cause);
        log
    }

    /// The agent verifies its key again by itself.
    fn recovers(&self) {
        let ok = || self.metric("keswarden_key_verifications_total{outcome=\"ok\"}");
        let before = ok();
        eventually(SOON, "the key is verified again", || ok() > before);
        self.serves("afterwards");
    }
}

/// Each situation of the matrix, and the test that holds it: its module, and its name.
const SITUATIONS: &[(&str, &str, &str)] = &[
    ("not initialised, then sealed, then unsealed", "seal", "not_initialised_then_sealed_then_unsealed"),
    ("sealed while an agent serves", "seal", "sealed_while_serving"),
    ("killed, and started sealed", "seal", "killed_and_started_sealed"),
    ("takes connections and answers nothing", "network", "a_vault_that_hangs"),
    ("sealed for longer than a token lives", "seal", "sealed_for_longer_than_the_token_lives"),
    ("tokens revoked", "credentials", "a_token_that_is_revoked_and_a_mount_whose_tokens_all_are"),
    ("policy taken away", "credentials", "a_policy_that_is_taken_away_and_put_back"),
    ("role deleted", "credentials", "a_role_that_is_deleted"),
    ("secret_id wrong, four pods", "credentials", "a_bad_secret_id_never_locks_the_role_out_with_four_pods"),
    ("key missing, made later", "keys", "a_key_that_is_made_while_the_gate_waits"),
    ("key deleted, then undeleted", "keys", "a_key_that_is_deleted_and_undeleted"),
    ("key destroyed", "keys", "a_key_that_is_destroyed"),
    ("key removed with its history, made anew", "keys", "a_key_that_is_removed_and_made_anew"),
    ("key written over", "keys", "a_key_that_is_written_over_once_and_often"),
    ("entry garbled", "keys", "something_that_is_no_key"),
    ("key missing, four pods make one", "keys", "four_pods_that_make_the_first_key_at_once"),
    ("packets lost", "network", "a_network_that_swallows"),
    ("answers slow", "network", "a_network_that_is_slow"),
    ("answers cut off", "network", "half_answers"),
    ("leader or quorum lost", "cluster", "leaders_that_die_hang_and_step_down_and_a_lost_quorum"),
    ("requests throttled", "mounts", "a_rate_limit"),
    ("audit device stalls", "audit", "an_audit_device_that_stalls_behind_a_green_health_page"),
    ("namespace sealed or locked", "mounts", "a_namespace_that_is_sealed_or_locked"),
    ("server certificate wrong or ended", "tls", "server_certificates_that_expire_are_wrong_or_are_replaced"),
    ("client certificate ended", "tls", "client_certificates_that_expire_and_are_replaced"),
    ("clock wrong", "tls", "a_clock_that_is_wrong"),
    ("storage rolled back", "keys", "a_snapshot_from_before_the_key"),
    ("mount disabled or of another version", "mounts", "a_mount_that_is_disabled_or_changes_its_version"),
    (
        "transit key rotated, retired or deleted",
        "transit",
        "a_transit_key_that_is_rotated_retired_or_deleted",
    ),
    ("Kubernetes API away", "kubernetes", "a_kubernetes_api_that_is_down"),
];

#[test]
fn every_situation_has_its_test() {
    assert_eq!(SITUATIONS.len(), 30);
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/vault/faults");
    for (situation, module, test) in SITUATIONS {
        let content = std::fs::read_to_string(folder.join(format!("{module}.rs"))).unwrap();
        assert!(content.contains(&format!("#[test]\nfn {test}()")), "{situation}: {module}.rs has no {test}");
    }
}
