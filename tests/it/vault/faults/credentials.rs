//! Tokens, policies, roles and secret_ids that are revoked, taken away, deleted or wrong. A fault that a login can mend is mended by one
//! login. A fault that only a person can mend is told before the old token ends. No login of ours locks a role out.

use super::{Site, with_key};
use crate::harness::{Agent, Bao, SOON, eventually, http_get, key_text, policy, put_key, text};
use serde_json::{Value, json};
use std::fs;

const ROLE: &str = "auth/approle/role/minio-sidecar";
const FAILED: &str = "keswarden_key_verifications_total{outcome=\"failed\"}";

/// A fresh secret_id of the role, as it is now.
fn secret_id(bao: &Bao) -> String {
    bao.ok(&["write", "-f", "-field=secret_id", &format!("{ROLE}/secret-id")], "").trim().to_owned()
}

#[test]
fn a_token_that_is_revoked_and_a_mount_whose_tokens_all_are() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    let logins = site.logins();
    let refused = || site.metric("keswarden_vault_request_duration_seconds_count{code=\"403\",op=\"kv\"}");
    let kept = fs::read_to_string(site.agent.run_dir().join("agent/vault-token.json")).unwrap();
    let kept: Value = serde_json::from_str(&kept).unwrap();
    let look = ["token", "lookup", "-field=accessor", kept["token"].as_str().unwrap()];
    let accessor = site.bao.ok(&look, "").trim().to_owned();
    let token: &[&str] = &["token", "revoke", "-accessor", &accessor];
    let mount: &[&str] = &["lease", "revoke", "-prefix", "-force", "auth/approle/login"];
    for (revocations, command) in [(1.0, token), (2.0, mount)] {
        site.bao.ok(command, "");
        eventually(SOON, "a login follows", || site.logins() >= logins + revocations);
        site.recovers();
        assert_eq!(site.logins(), logins + revocations, "one login for each revocation");
        assert_eq!(refused(), revocations, "one request for the key is refused, and the next is not");
    }
    assert_eq!(site.metric(FAILED), 0.0, "no verification has failed for it");
    site.gate_passes();
}

#[test]
fn a_policy_that_is_taken_away_and_put_back() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    let logins = site.logins();
    let write = |policy: &str| drop(site.bao.ok(&["policy", "write", "minio-sidecar", "-"], policy));

    write(&policy(2).replace("kv/data/minio/*", "kv/data/other/*"));
    let told = site.goes_on_while("policy_missing");
    let stanza = "path \"kv/data/minio/my-key\" { capabilities = [\"read\"] }";
    assert!(told.contains(stanza), "{stanza} is not in\n{told}");
    write(&policy(2));
    site.recovers();

    // Without any right below the mount, Vault does not even say whether there is one; without any policy, nor what the token is worth.
    let token_only: Vec<_> =
        policy(2).lines().filter(|line| !line.contains("\"kv/")).map(str::to_owned).collect();
    write(&token_only.join("\n"));
    let told = site.goes_on_while("mount_missing");
    assert!(told.contains("or the policy grants nothing below it"), "{told}");
    site.bao.ok(&["policy", "delete", "minio-sidecar"], "");
    site.goes_on_while("mount_missing");
    write(&policy(2));
    site.recovers();
    site.gate_passes();
    assert_eq!(site.logins(), logins, "a policy is no reason to log in again");
}

/// The role, with a short token that cannot be renewed for ever, and a pair of a known name.
fn make_role(bao: &Bao) {
    let [rights, alone] = ["token_policies=minio-sidecar", "token_no_default_policy=true"];
    bao.ok(&["write", ROLE, rights, alone, "token_period=0", "token_ttl=15s", "token_max_ttl=1h"], "");
    bao.ok(&["write", &format!("{ROLE}/role-id"), "role_id=the-role"], "");
    bao.ok(&["write", &format!("{ROLE}/custom-secret-id"), "secret_id=the-secret"], "");
}

#[test]
fn a_role_that_is_deleted() {
    let (bao, _) = with_key();
    make_role(&bao);
    let pair = [
        ("KESWARDEN_VAULT_ROLE_ID", "the-role".to_owned()),
        ("KESWARDEN_VAULT_SECRET_ID", "the-secret".to_owned()),
    ];
    let mut site = Site::serving(bao, &pair);
    let logins = site.logins();
    site.bao.ok(&["delete", ROLE], "");
    // The token lives on, and cannot be renewed. The agent says so before the token ends.
    site.agent.process().says(SOON, "cannot renew the login: login_refused: ");
    let left = site.metric("keswarden_vault_token_expiry_timestamp_seconds")
        - keswarden::clock::Clock::system().unix_seconds();
    assert!(left > 0.0, "told {left} s before the end\n{}", site.agent.logs());
    assert_eq!(site.metric(FAILED), 0.0, "the old token serves to its end\n{}", site.agent.logs());
    let told = site.goes_on_while("login_refused");
    assert!(told.contains("invalid role or secret ID"), "{told}");

    make_role(&site.bao);
    // A refused pair rests for a quarter of an hour, unless a person asks for another try.
    site.agent.process().signal("HUP");
    site.recovers();
    site.gate_passes();
    assert_eq!(site.logins(), logins + 1.0, "one login follows");
}

/// How many logins of a pod Vault has refused with 400: Vault counts these before a lockout of the role.
fn refusals(pod: &Agent) -> f64 {
    let page = text(&http_get(pod.admin_port(), "/metrics").unwrap().1);
    let name = "keswarden_vault_request_duration_seconds_count{code=\"400\",op=\"login\"} ";
    page.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or(0.0)
}

#[test]
fn a_bad_secret_id_never_locks_the_role_out_with_four_pods() {
    let bao = Bao::with_kv(2);
    put_key(&bao, &key_text());
    bao.ok(&["policy", "write", "minio-sidecar", "-"], &policy(2));
    bao.ok(&["auth", "enable", "approle"], "");
    bao.ok(&["write", ROLE, "token_policies=minio-sidecar", "token_period=20m"], "");
    let role_id = bao.ok(&["read", "-field=role_id", &format!("{ROLE}/role-id")], "").trim().to_owned();
    let secrets = tempfile::tempdir().unwrap();
    let file = secrets.path().join("secret-id");
    let good = secret_id(&bao);
    fs::write(&file, &good).unwrap();
    let pair = [
        ("KESWARDEN_VAULT_ROLE_ID", role_id.clone()),
        ("KESWARDEN_VAULT_SECRET_ID_FILE", file.to_string_lossy().into_owned()),
    ];
    let site = Site::serving(bao, &pair);
    let root = site.bao.root_token();
    let locked = || site.bao.api("GET", "sys/locked-users", None, Some(root)).1["data"]["total"].clone();
    let log_in = |secret_id: &str| {
        let body = json!({ "role_id": role_id, "secret_id": secret_id });
        site.bao.api("POST", "auth/approle/login", Some(&body), None).0
    };

    // A bad secret_id is rolled out, and every pod restarts over and over.
    fs::write(&file, "2b2d7d2c-0000-0000-0000-000000000002").unwrap();
    let mut pods = [(); 4].map(|()| site.pod());
    let mut tries = 0.0;
    for round in 0..3 {
        for pod in &mut pods {
            pod.run();
            pod.process().says(SOON, ": login_refused: ");
            if round > 0 {
                pod.process().says(SOON, "the same pair is not sent again for");
            }
            tries += refusals(pod);
            pod.kill();
        }
    }
    assert_eq!(tries, 4.0, "each pod has tried it once");
    assert_eq!(locked(), json!(0), "and five lock the role out");
    pods.iter_mut().for_each(Agent::run);
    fs::write(&file, &good).unwrap();
    pods.iter_mut().for_each(Agent::ready);

    // A secret_id that has expired, and a secret_id that is used up: both look like a bad secret_id.
    site.bao.ok(&["write", ROLE, "secret_id_ttl=1s"], "");
    let expired = secret_id(&site.bao);
    let (path, body) = (format!("{ROLE}/secret-id/lookup"), json!({ "secret_id": expired }));
    let look = || site.bao.api("POST", &path, Some(&body), Some(root)).0;
    eventually(SOON, "the secret_id has expired", || look() == 204);
    fs::write(&file, &expired).unwrap();
    site.gate_says("login_refused");
    site.bao.ok(&["write", ROLE, "secret_id_ttl=0", "secret_id_num_uses=1"], "");
    let used = secret_id(&site.bao);
    assert_eq!(log_in(&used), 200);
    fs::write(&file, &used).unwrap();
    site.gate_says("login_refused");
    site.serves("whatever the secret_id is worth");

    // The lockout was on all along: enough tries cause it, and then the right pair is refused, too.
    eventually(SOON, "the role is locked out", || log_in("bad") == 403);
    assert_eq!(locked(), json!(1));
    fs::write(&file, &good).unwrap();
    let told = site.gate_says("login_locked_out");
    assert!(told.contains("sys/locked-users"), "{told}");
    site.serves("while its role is locked out");
}
