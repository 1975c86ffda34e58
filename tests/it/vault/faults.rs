//! The fault matrix: a real OpenBao, and the network before it, in every state that an operator may find them in. In each row a gate that
//! starts now names the cause within ten seconds, and an agent that has its key goes on sealing and opening; once the fault is over, it
//! verifies again by itself. Each test says which rows of the matrix it holds; `every_row_has_its_test` holds that none is left out.

mod audit;
mod cluster;
mod credentials;
mod kes;
mod keys;
mod kubernetes;
mod mounts;
mod network;
mod seal;
mod tls;
mod transit;

use crate::{
    harness::{Client, KEY, key_text},
    peers::{Agent, Bao, Process, Proxy, SOON, Var, eventually, http_get, policy, text},
};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// A gate that starts names its cause within so long.
const TOLD: Duration = Duration::from_secs(10);

/// An OpenBao, an agent that reaches it through a proxy and has its key, and what that key has sealed.
struct Site {
    bao: Bao,
    proxy: Proxy,
    agent: Agent,
    sealed: String,
    settings: Vec<Var>,
}

/// An OpenBao with `my-key` in K/V v2 below `kv/minio`, and the settings of an AppRole that may read it.
fn with_key() -> (Bao, Vec<Var>) {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv");
    put_key(&bao, &key_text());
    let pair = approle(&bao, &policy(2));
    (bao, pair)
}

fn put_key(bao: &Bao, value: &str) {
    bao.ok(&["kv", "put", "-cas=0", "-mount=kv", "minio/my-key", "my-key=-"], value);
}

fn approle(bao: &Bao, policy: &str) -> Vec<Var> {
    let (role_id, secret_id) = bao.setup_approle(policy);
    vec![("KESWARDEN_VAULT_ROLE_ID", role_id), ("KESWARDEN_VAULT_SECRET_ID", secret_id)]
}

/// A gate of these settings names this cause within ten seconds, says what to do, and goes on waiting.
fn names_its_cause(pod: &mut Agent, cause: &str) -> Process {
    let begun = Instant::now();
    let mut init = pod.init();
    init.says(SOON, &format!(": {cause}: "));
    let took = begun.elapsed();
    let log = init.log();
    assert!(took < TOLD, "{cause}: told after {took:?}\n{log}");
    assert!(log.contains("fix: "), "{cause}: without a fix\n{log}");
    assert_eq!(init.ended(), None, "{cause}: it must wait\n{log}");
    init
}

// === impl Site ===

impl Site {
    /// An agent with its key, which reaches its Vault through the proxy and logs in as `login` says.
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
        let page = text(&http_get(self.agent.admin_port(), "/metrics").unwrap().1);
        let value = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{line} is not in\n{page}"))
    }

    fn logins(&self) -> f64 {
        self.metric("keswarden_vault_login_total{method=\"approle\",outcome=\"ok\"}")
    }

    /// What MinIO asks for is answered: an old ciphertext opens, a new data key is sealed.
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

    /// The gate of a pod that starts now names this cause. What it said.
    fn gate_says(&self, cause: &str) -> String {
        names_its_cause(&mut self.pod(), cause).log()
    }

    /// A pod that starts now passes the gate.
    fn gate_passes(&self) {
        let mut pod = self.pod();
        let mut init = pod.init();
        assert_eq!(init.wait(SOON), 0, "{}", init.log());
    }

    /// The agent notices, a gate names this cause, and what MinIO asks for is answered all the while.
    fn goes_on_while(&self, cause: &str) -> String {
        let failed = || self.metric("keswarden_key_verifications_total{outcome=\"failed\"}");
        let before = failed();
        eventually(SOON, &format!("{cause}: a verification fails"), || failed() > before);
        let log = self.gate_says(cause);
        self.serves(cause);
        log
    }

    /// The key is verified again, without anybody's hand.
    fn recovers(&self) {
        let ok = || self.metric("keswarden_key_verifications_total{outcome=\"ok\"}");
        let before = ok();
        eventually(SOON, "the key is verified again", || ok() > before);
        self.serves("afterwards");
    }
}

/// Each row of the matrix, by its number, and the test that holds it.
const ROWS: &[(u8, &str, &str)] = &[
    (1, "seal", "not_initialised_then_sealed_then_unsealed"),
    (2, "seal", "sealed_while_serving"),
    (3, "seal", "killed_and_started_sealed"),
    (4, "network", "a_vault_that_hangs"),
    (5, "seal", "sealed_for_longer_than_the_token_lives"),
    (6, "credentials", "a_token_that_is_revoked_and_a_mount_whose_tokens_all_are"),
    (7, "credentials", "a_policy_that_is_taken_away_and_put_back"),
    (8, "credentials", "a_role_that_is_deleted"),
    (9, "credentials", "a_bad_secret_id_never_locks_the_role_out_with_four_pods"),
    (10, "keys", "a_key_that_is_made_while_the_gate_waits"),
    (11, "keys", "a_key_that_is_deleted_and_undeleted"),
    (12, "keys", "a_key_that_is_destroyed"),
    (13, "keys", "a_key_that_is_removed_and_made_anew"),
    (14, "keys", "a_key_that_is_written_over_once_and_often"),
    (15, "keys", "something_that_is_no_key"),
    (16, "keys", "four_pods_that_make_the_first_key_at_once"),
    (17, "network", "a_network_that_swallows"),
    (18, "network", "a_network_that_is_slow"),
    (19, "network", "half_answers"),
    (20, "cluster", "leaders_that_die_hang_and_step_down_and_a_lost_quorum"),
    (21, "mounts", "a_rate_limit"),
    (22, "audit", "an_audit_device_that_stalls_behind_a_green_health_page"),
    (23, "mounts", "a_namespace_that_is_sealed_or_locked"),
    (24, "tls", "server_certificates_that_expire_are_wrong_or_are_replaced"),
    (25, "tls", "client_certificates_that_expire_and_are_replaced"),
    (26, "tls", "a_clock_that_is_wrong"),
    (27, "keys", "a_snapshot_from_before_the_key"),
    (28, "mounts", "a_mount_that_is_disabled_or_changes_its_version"),
    (29, "transit", "a_transit_key_that_is_rotated_retired_or_deleted"),
    (30, "kubernetes", "a_kubernetes_api_that_is_down"),
];

#[test]
fn every_row_has_its_test() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/vault/faults");
    for (at, (row, file, test)) in ROWS.iter().enumerate() {
        assert_eq!(usize::from(*row), at + 1, "the rows are counted");
        let content = std::fs::read_to_string(folder.join(format!("{file}.rs"))).unwrap();
        assert!(content.contains(&format!("#[test]\nfn {test}()")), "row {row}: {file}.rs has no {test}");
    }
}
