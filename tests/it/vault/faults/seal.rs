//! A Vault that is not initialised, sealed, or started sealed. A gate that waits says how far the unsealing is. An agent that has its key
//! goes on. A token outlives a seal, or one login follows.

use super::{Site, with_key};
use crate::harness::{Agent, Bao, KEY, Proxy, SOON, TOLD, Var, eventually, key_text, policy, put_key};
use std::{
    fs,
    time::{Duration, Instant},
};

/// A gate that waits for nothing but the last key share passes within this time.
const AT_ONCE: Duration = Duration::from_secs(5);
const FAILED_LOGINS: &str = "keswarden_vault_login_total{method=\"approle\",outcome=\"failed\"}";
const TOKEN_ENDS: &str = "keswarden_vault_token_expiry_timestamp_seconds";
const TOKEN_RENEWED: &str = "keswarden_vault_token_last_renewal_timestamp_seconds";

#[test]
fn not_initialised_then_sealed_then_unsealed() {
    let mut bao = Bao::uninitialised();
    let secrets = tempfile::tempdir().unwrap();
    let file = |name: &str| secrets.path().join(name).to_string_lossy().into_owned();
    let settings: [Var; 6] = [
        ("KESWARDEN_VAULT_ADDR", bao.addr()),
        ("KESWARDEN_VAULT_CACERT", bao.ca_path().to_string_lossy().into_owned()),
        ("KESWARDEN_VAULT_ROLE_ID_FILE", file("role-id")),
        ("KESWARDEN_VAULT_SECRET_ID_FILE", file("secret-id")),
        ("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()),
        ("KESWARDEN_KEY_NAME", KEY.to_owned()),
    ];
    let mut pod = Agent::new("first pod", &settings);
    let begun = Instant::now();
    let mut init = pod.init();
    init.says(SOON, ": vault_uninitialised: ");
    assert!(begun.elapsed() < TOLD, "told after {:?}\n{}", begun.elapsed(), init.log());
    bao.init();
    init.says(SOON, "(unseal progress 0 of 2 keys)");
    assert!(init.log().contains(": vault_sealed: "), "{}", init.log());
    bao.unseal_one(0);
    init.says(SOON, "(unseal progress 1 of 2 keys)");
    bao.unseal();
    // Vault is unsealed, and empty. The operator stores the key, and then hands out the pod's credentials.
    init.says(SOON, ": credential_unreadable: ");
    assert_eq!(init.ended(), None, "it must wait\n{}", init.log());
    bao.setup_kv(2, "kv");
    put_key(&bao, &key_text());
    for (name, value) in bao.approle_pair(&policy(2)) {
        let name = if name == "KESWARDEN_VAULT_ROLE_ID" { "role-id" } else { "secret-id" };
        fs::write(file(name), value).unwrap();
    }
    assert_eq!(init.wait(SOON), 0, "{}", init.log());

    // Once more, with everything in place: the gate waits for nothing but the last share.
    bao.seal();
    let mut pod = Agent::new("second pod", &settings);
    let mut init = pod.init();
    init.says(SOON, "(unseal progress 0 of 2 keys)");
    bao.unseal_one(0);
    init.says(SOON, "(unseal progress 1 of 2 keys)");
    let begun = Instant::now();
    bao.unseal();
    assert_eq!(init.wait(SOON), 0, "{}", init.log());
    assert!(begun.elapsed() < AT_ONCE, "it passed after {:?}\n{}", begun.elapsed(), init.log());
}

#[test]
fn sealed_while_serving() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    let logins = site.logins();
    site.bao.seal();
    let told = site.goes_on_while("vault_sealed");
    for words in ["(unseal progress 0 of 2 keys)", "bao operator unseal"] {
        assert!(told.contains(words), "{words:?} is not in\n{told}");
    }
    site.bao.unseal();
    site.recovers();
    site.gate_passes();
    assert_eq!(site.logins(), logins, "the token outlives a seal");
    assert_eq!(site.metric(FAILED_LOGINS), 0.0, "nobody logs in to a sealed Vault with a token in hand");
}

#[test]
fn killed_and_started_sealed() {
    let (bao, pair) = with_key();
    let address = bao.addr();
    // Without the proxy: the proxy accepts connections while OpenBao is down.
    let proxy = Proxy::before(address.rsplit(':').next().unwrap().parse().unwrap());
    let mut site = Site::at(bao, proxy, &address, &pair);
    let logins = site.logins();
    site.bao.stop();
    site.goes_on_while("vault_unreachable_refused");
    site.bao.start();
    site.goes_on_while("vault_sealed");
    site.bao.unseal();
    site.recovers();
    site.gate_passes();
    assert_eq!(site.logins(), logins, "the token outlives a kill");
    assert_eq!(site.metric(FAILED_LOGINS), 0.0, "nobody logs in with a token in hand");
}

#[test]
fn sealed_for_longer_than_the_token_lives() {
    let (bao, pair) = with_key();
    let role = "auth/approle/role/minio-sidecar";
    bao.ok(&["write", role, "token_period=0", "token_ttl=5s", "token_max_ttl=1h"], "");
    let site = Site::serving(bao, &pair);
    eventually(SOON, "the token is renewed", || site.metric(TOKEN_RENEWED) > 0.0);
    assert_eq!(site.logins(), 1.0, "in health there is one login");
    site.bao.seal();
    let now = || keswarden::clock::Clock::system().unix_seconds();
    eventually(SOON, "the token has ended", || site.metric(TOKEN_ENDS) < now());
    // The agent cannot know yet whether the token has ended, and does not say so.
    site.goes_on_while("vault_sealed");
    assert!(!site.agent.logs().contains("token_dead"), "{}", site.agent.logs());
    site.bao.unseal();
    site.recovers();
    site.gate_passes();
    let logins = site.logins();
    assert!((2.0..=3.0).contains(&logins), "{logins} logins: one follows, or two that have met");
    // No further logins, for as long as the token can be renewed.
    let renewed = site.metric(TOKEN_RENEWED);
    eventually(SOON, "the new token is renewed", || site.metric(TOKEN_RENEWED) > renewed);
    site.recovers();
    assert_eq!(site.logins(), logins);
}
