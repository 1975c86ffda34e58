//! The mount of the keys is throttled, in a namespace that is sealed or locked, disabled, or of another version of K/V than a moment ago.

use super::{Site, with_key};
use crate::harness::{Bao, SOON, eventually, http_get, key_text, policy, put_key, text};

/// A login's rights in the folder `minio` of a mount, of either version of K/V.
fn places(mount: &str) -> String {
    let both = [policy(1), policy(2)].concat();
    let lines = both.lines().filter(|line| line.contains("\"kv/"));
    lines.map(|line| line.replace("\"kv/", &format!("\"{mount}/")) + "\n").collect()
}

/// How many requests for keys Vault has answered with 429.
fn refusals(site: &Site) -> f64 {
    let page = text(&http_get(site.agent.admin_port(), "/metrics").unwrap().1);
    let lines = page.lines().filter(|line| {
        line.starts_with("keswarden_vault_request_duration_seconds_count{")
            && line.contains("op=\"kv\"")
            && line.contains("code=\"429\"")
    });
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn a_rate_limit() {
    let (bao, pair) = with_key();
    let site = Site::serving(bao, &pair);
    let failed = || site.metric("keswarden_key_verifications_total{outcome=\"failed\"}");
    site.bao.ok(&["write", "sys/quotas/config", "enable_rate_limit_response_headers=true"], "");
    site.bao.ok(&["write", "sys/quotas/rate-limit/slow", "path=kv/", "rate=1", "interval=15s"], "");

    // For the rest of the fifteen seconds every request is refused, and a client that keeps the pause sends none.
    eventually(SOON, "Vault answers 429", || refusals(&site) > 0.0);
    let (drawn, before) = (refusals(&site), failed());
    eventually(SOON, "the key is to be verified several times", || failed() >= before + 6.0);
    assert_eq!(refusals(&site), drawn, "Retry-After is kept");
    let told = site.goes_on_while("vault_rate_limited");
    assert!(told.contains("429"), "{told}");

    site.bao.ok(&["delete", "sys/quotas/rate-limit/slow"], "");
    site.recovers();
    site.gate_passes();
}

/// A key in a K/V v2 of its own, in this namespace.
fn key_in(bao: &Bao, namespace: &str) {
    let namespace = format!("-namespace={namespace}");
    bao.ok(&["secrets", "enable", &namespace, "-path=kv", "-version=2", "kv"], "");
    // A fresh mount upgrades itself for a moment.
    eventually(SOON, "the mount takes the key", || {
        let put: [&str; 6] = ["kv", "put", &namespace, "-mount=kv", "minio/my-key", "my-key=-"];
        let output = bao.cli_with(&put, &key_text());
        if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
    });
}

#[test]
fn a_namespace_that_is_sealed_or_locked() {
    let bao = Bao::unsealed();
    let made =
        bao.ok(&["namespace", "create", "-key-shares=1", "-key-threshold=1", "-format=json", "team"], "");
    let made: serde_json::Value = serde_json::from_str(&made).unwrap();
    let share = made["key_shares"][0].as_str().unwrap_or_else(|| panic!("no share is told: {made}"));
    bao.ok(&["namespace", "unseal", "team", share], "");
    key_in(&bao, "team");
    let rights = [policy(2), places("team/kv"), places("later/kv")].concat();
    let mut login = bao.approle_pair(&rights);
    login.push(("KESWARDEN_VAULT_NAMESPACE", "team".to_owned()));
    login.push(("KESWARDEN_VAULT_AUTH_NAMESPACE", "/".to_owned()));
    let mut site = Site::serving(bao, &login);
    let health = |site: &Site| site.bao.api("GET", "sys/health", None, None).0;

    site.bao.ok(&["namespace", "seal", "team"], "");
    site.goes_on_while("namespace_sealed");
    assert_eq!(health(&site), 200, "the health page is green all the while");
    // A login in this namespace fails as well, and for the same reason.
    site.settings.push(("KESWARDEN_VAULT_AUTH_NAMESPACE", "team".to_owned()));
    site.gate_says("namespace_sealed");
    site.settings.pop();
    site.bao.ok(&["namespace", "unseal", "team", share], "");
    site.recovers();

    let locked = site.bao.ok(&["namespace", "lock", "team"], "");
    let key = locked.lines().find_map(|line| line.strip_prefix("Unlock Key: "));
    let key = key.unwrap_or_else(|| panic!("no key is told: {locked}")).trim();
    let told = site.goes_on_while("namespace_locked");
    assert!(told.contains("team/") && told.contains("bao namespace unlock"), "{told}");
    assert_eq!(health(&site), 200, "the health page is green all the while");
    site.bao.ok(&["namespace", "unlock", &format!("-unlock-key={key}"), "team"], "");
    site.recovers();

    site.settings.push(("KESWARDEN_VAULT_NAMESPACE", "later".to_owned()));
    site.gate_says("namespace_missing");
    site.bao.ok(&["namespace", "create", "later"], "");
    key_in(&site.bao, "later");
    site.gate_passes();
}

#[test]
fn a_mount_that_is_disabled_or_changes_its_version() {
    let (bao, key) = (Bao::unsealed(), key_text());
    bao.setup_kv(2, "kv");
    put_key(&bao, &key);
    for mount in ["old", "older"] {
        bao.setup_kv(1, mount);
        bao.ok(&["kv", "put", &format!("-mount={mount}"), "minio/my-key", "my-key=-"], &key);
    }
    let pair = bao.approle_pair(&[policy(2), places("old"), places("older")].concat());
    let on = |mount: &str, version: &str| {
        let more = [
            ("KESWARDEN_VAULT_KV_MOUNT", mount.to_owned()),
            ("KESWARDEN_VAULT_KV_VERSION", version.to_owned()),
        ];
        [&pair[..], &more].concat()
    };

    let site = Site::serving(bao, &pair);
    site.bao.ok(&["secrets", "disable", "kv"], "");
    let told = site.goes_on_while("mount_missing");
    assert!(told.contains("bao secrets enable -path=kv -version=2 kv"), "{told}");
    site.bao.setup_kv(2, "kv");
    put_key(&site.bao, &key);
    site.recovers();
    site.gate_passes();
    let Site { bao, mut agent, .. } = site;
    agent.drain();

    // The mount is upgraded from v1 to v2: an agent that has detected the version by itself detects the new version.
    let mut site = Site::serving(bao, &on("old", "auto"));
    site.bao.ok(&["kv", "enable-versioning", "old"], "");
    site.agent.process().says(SOON, "mount_version_mismatch");
    site.recovers();
    site.gate_passes();
    let Site { bao, mut agent, .. } = site;
    agent.drain();

    // An agent with the version in its settings waits for other settings, and goes on with the key that it holds.
    let mut site = Site::serving(bao, &on("older", "1"));
    site.bao.ok(&["kv", "enable-versioning", "older"], "");
    let told = site.goes_on_while("mount_version_mismatch");
    assert!(told.contains("KESWARDEN_VAULT_KV_VERSION=auto"), "{told}");
    site.settings.push(("KESWARDEN_VAULT_KV_VERSION", "auto".to_owned()));
    site.gate_passes();
    site.agent.drain();
    site.agent.set("KESWARDEN_VAULT_KV_VERSION", "auto");
    site.agent.run();
    site.agent.ready();
    site.serves("once it is told");
}
