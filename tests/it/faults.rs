//! Faults of a real OpenBao and of the network before it: the gate says which, within ten seconds, and an agent that has its key goes on
//! sealing and opening, and verifies again once the fault is over.

use crate::{
    harness::{Client, KEY, key_text},
    peers::{Agent, Bao, Proxy, SOON, Var, Wire, eventually, http_get, policy, text},
};
use std::time::{Duration, Instant};

struct Site {
    bao: Bao,
    proxy: Proxy,
    agent: Agent,
    sealed: String,
}

impl Site {
    /// An agent with its key, which reaches its Vault through the proxy.
    fn serving(bao: Bao, more: &[Var]) -> Self {
        let port = bao.addr().rsplit(':').next().unwrap().parse().unwrap();
        let proxy = Proxy::before(port);
        let mut settings = vec![
            ("KESWARDEN_VAULT_ADDR", format!("https://127.0.0.1:{}", proxy.port)),
            ("KESWARDEN_VAULT_CACERT", bao.ca_path().to_string_lossy().into_owned()),
            ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
            ("KESWARDEN_VAULT_TIMEOUT", "1s".to_owned()),
            ("KESWARDEN_VERIFY_INTERVAL", "300ms".to_owned()),
            ("KESWARDEN_KEY_NAME", KEY.to_owned()),
        ];
        settings.extend_from_slice(more);
        let mut agent = Agent::new("faults", &settings);
        agent.run();
        agent.ready();
        let sealed = Client::of(&agent).generate(KEY, "{}").1;
        Self { bao, proxy, agent, sealed }
    }

    fn metric(&self, line: &str) -> f64 {
        let page = text(&http_get(self.agent.admin_port(), "/metrics").unwrap().1);
        let value = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{line} is not in\n{page}"))
    }

    /// The agent notices, the gate names this cause, and what MinIO asks for is answered all the while.
    fn goes_on_while(&self, cause: &str) {
        let failed = || self.metric("keswarden_key_verifications_total{outcome=\"failed\"}");
        let before = failed();
        eventually(SOON, &format!("{cause}: a verification fails"), || failed() > before);
        let begun = Instant::now();
        let doctor = self.agent.output(&["doctor"]);
        let told = text(&doctor.stdout);
        assert!(told.contains(&format!("{cause}: ")) && told.contains("fix: "), "{cause}: {told}");
        assert!(begun.elapsed() < Duration::from_secs(10), "{cause}: told after {:?}", begun.elapsed());
        let client = Client::of(&self.agent);
        assert_eq!(client.decrypt(KEY, &self.sealed, "{}").status, 200, "{cause}");
        client.generate(KEY, "{}");
    }

    fn recovers(&self) {
        let ok = || self.metric("keswarden_key_verifications_total{outcome=\"ok\"}");
        let before = ok();
        eventually(SOON, "the key is verified again", || ok() > before);
    }

    fn logins(&self) -> f64 {
        self.metric("keswarden_vault_login_total{method=\"approle\",outcome=\"ok\"}")
    }
}

fn with_key() -> (Bao, [Var; 2]) {
    let bao = Bao::unsealed();
    bao.setup_kv(2, "kv");
    bao.ok(&["kv", "put", "-cas=0", "-mount=kv", "minio/my-key", "my-key=-"], &key_text());
    let (role_id, secret_id) = bao.setup_approle(&policy(2));
    (bao, [("KESWARDEN_VAULT_ROLE_ID", role_id), ("KESWARDEN_VAULT_SECRET_ID", secret_id)])
}

#[test]
fn a_network_that_swallows_drips_cuts_or_ends_stops_nobody_who_has_the_key() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    for (wire, cause) in [
        (Wire::BlackHole, "vault_unreachable_timeout"),
        (Wire::Drip(Duration::from_millis(200)), "vault_unreachable_timeout"),
        (Wire::CutAfter(40), "vault"),
        (Wire::CutAfter(2000), "vault"),
        (Wire::Ended, "vault"),
    ] {
        site.proxy.set(wire);
        match cause {
            "vault" => {
                // Whether TLS or HTTP is cut depends on the byte: it is never taken for an answer.
                let doctor = text(&site.agent.output(&["doctor"]).stdout);
                assert!(doctor.contains("FAILED") && doctor.contains("vault_"), "{wire:?}: {doctor}");
                assert_eq!(Client::of(&site.agent).decrypt(KEY, &site.sealed, "{}").status, 200, "{wire:?}");
            }
            cause => site.goes_on_while(cause),
        }
        site.proxy.set(Wire::Good);
        site.recovers();
    }
    assert_eq!(
        site.metric("keswarden_key_fingerprint_mismatch{key=\"my-key\"}"),
        0.0,
        "half an answer is none"
    );
    assert!(site.proxy.connections() > 5, "connections are thrown away after a timeout");
}

#[test]
fn faults_of_a_vault_are_named_and_pass_by_themselves() {
    let (bao, pair) = with_key();
    let mut site = Site::serving(bao, &pair);

    site.bao.seal();
    site.goes_on_while("vault_sealed");
    let before = site.logins();
    site.bao.unseal();
    site.recovers();
    assert_eq!(site.logins(), before, "the token outlives a seal");

    site.bao.ok(&["lease", "revoke", "-prefix", "-force", "auth/approle/login"], "");
    eventually(SOON, "one login follows", || site.logins() > before);
    site.recovers();
    assert_eq!(site.logins(), before + 1.0, "one login for each revocation");

    let token_only = policy(2).lines().filter(|line| !line.contains("\"kv/")).collect::<Vec<_>>().join("\n");
    site.bao.ok(&["policy", "write", "minio-sidecar", "-"], &token_only);
    site.goes_on_while("mount_missing");
    let data_missing = policy(2).replace("kv/data/minio/*", "kv/data/other/*");
    site.bao.ok(&["policy", "write", "minio-sidecar", "-"], &data_missing);
    site.goes_on_while("policy_missing");
    assert_eq!(site.logins(), before + 1.0, "a policy is no reason to log in again");
    site.bao.ok(&["policy", "write", "minio-sidecar", "-"], &policy(2));
    site.recovers();

    site.bao.ok(&["write", "sys/quotas/rate-limit/slow", "path=kv/", "rate=1", "interval=5s"], "");
    site.goes_on_while("vault_rate_limited");
    site.bao.ok(&["delete", "sys/quotas/rate-limit/slow"], "");
    site.recovers();

    // Somebody writes over the key: version 1 is what counts, so nothing stops, and somebody is told.
    site.bao.ok(&["kv", "put", "-cas=1", "-mount=kv", "minio/my-key", "my-key=-"], &key_text());
    site.agent.process().says(SOON, "key_overwritten");
    assert_eq!(site.metric("keswarden_key_overwritten{key=\"my-key\"}"), 1.0);
    assert_eq!(site.metric("keswarden_key_fingerprint_mismatch{key=\"my-key\"}"), 0.0);
    assert_eq!(Client::of(&site.agent).decrypt(KEY, &site.sealed, "{}").status, 200);
    Client::of(&site.agent).generate(KEY, "{}");
    site.agent.drain();
    site.agent.run();
    site.agent.ready();
    assert_eq!(Client::of(&site.agent).decrypt(KEY, &site.sealed, "{}").status, 200);
}

#[test]
fn a_namespace_that_is_sealed_is_named_though_vault_is_healthy() {
    let bao = Bao::unsealed();
    let made =
        bao.ok(&["namespace", "create", "-key-shares=1", "-key-threshold=1", "-format=json", "team"], "");
    let share = find_share(&serde_json::from_str(&made).unwrap()).expect("the share must be told");
    bao.ok(&["namespace", "unseal", "team", &share], "");
    bao.ok(&["secrets", "enable", "-namespace=team", "-path=kv", "-version=2", "kv"], "");
    eventually(SOON, "the mount is there", || {
        let put = ["kv", "put", "-namespace=team", "-mount=kv", "minio/my-key", "my-key=-"];
        let output = bao.cli_with(&put, &key_text());
        if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
    });
    let policy = policy(2).replace("\"kv/", "\"team/kv/").replace("\"sys/cap", "\"team/sys/cap");
    let (role_id, secret_id) = bao.setup_approle(&policy);
    let site = Site::serving(
        bao,
        &[
            ("KESWARDEN_VAULT_ROLE_ID", role_id),
            ("KESWARDEN_VAULT_SECRET_ID", secret_id),
            ("KESWARDEN_VAULT_NAMESPACE", "team".to_owned()),
            ("KESWARDEN_VAULT_AUTH_NAMESPACE", "/".to_owned()),
        ],
    );
    site.bao.ok(&["namespace", "seal", "team"], "");
    site.goes_on_while("namespace_sealed");
    site.bao.ok(&["namespace", "unseal", "team", &share], "");
    site.recovers();
}

/// The first text that may be a share, in whatever shape it is told.
fn find_share(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Object(members) => members.iter().find_map(|(name, inner)| match inner {
            serde_json::Value::Array(shares) if name.contains("shares") || name.contains("keys") => {
                shares.first()?.as_str().map(str::to_owned)
            }
            inner => find_share(inner),
        }),
        _ => None,
    }
}
