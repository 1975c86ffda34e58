//! The transit key that wraps the keys is rotated, retired, deleted, lost, made anew, or not allowed. None of these is a lost key: an
//! agent seals and opens on, and verifies again once the transit key is back.

use super::Site;
use crate::harness::{Bao, KEY, SOON, policy};

/// The policy of a login, with these operations of the transit key `wrap`.
fn with_transit(operations: &[&str]) -> String {
    let stanza =
        |operation: &&str| format!("path \"transit/{operation}/wrap\" {{ capabilities = [\"update\"] }}\n");
    policy(2) + &operations.iter().map(stanza).collect::<String>()
}

/// The text that the store holds under a name.
fn stored(site: &Site, name: &str) -> String {
    site.bao.ok(&["kv", "get", "-mount=kv", &format!("-field={name}"), &format!("minio/{name}")], "")
}

/// An agent that has made its key, wrapped by the first version of the transit key `wrap`; and a backup of the transit key's two versions.
fn wrapped_and_rotated() -> (Site, String) {
    let bao = Bao::with_kv(2);
    bao.ok(&["secrets", "enable", "transit"], "");
    bao.ok(&["write", "transit/keys/wrap", "exportable=true", "allow_plaintext_backup=true"], "");
    let mut login = bao.approle_pair(&with_transit(&["encrypt", "decrypt"]));
    login.push(("KESWARDEN_VAULT_TRANSIT_KEY", "wrap".to_owned()));
    login.push(("KESWARDEN_KEY_CREATE", "if-new".to_owned()));
    let site = Site::serving(bao, &login);
    assert!(stored(&site, KEY).starts_with("vault:v1:"));
    site.bao.ok(&["write", "-f", "transit/keys/wrap/rotate"], "");
    site.bao.ok(&["write", "transit/keys/wrap/config", "deletion_allowed=true"], "");
    let backup = site.bao.ok(&["read", "-field=backup", "transit/backup/wrap"], "");
    (site, backup)
}

#[test]
fn a_transit_key_that_is_rotated_retired_or_deleted() {
    let (site, backup) = wrapped_and_rotated();
    site.recovers();
    site.gate_passes();
    // Keys that are made from now on are wrapped by the new version.
    let mut pod = site.pod();
    pod.set("KESWARDEN_KEY_NAME", "later");
    let mut init = pod.init();
    assert_eq!(init.wait(SOON), 0, "{}", init.log());
    assert!(stored(&site, "later").starts_with("vault:v2:"));

    let oldest = |version: u8| {
        let version = format!("min_decryption_version={version}");
        site.bao.ok(&["write", "transit/keys/wrap/config", &version], "");
    };
    oldest(2);
    let told = site.goes_on_while("transit_version_refused");
    assert!(told.contains("bao write transit/keys/wrap/config min_decryption_version=1"), "{told}");
    oldest(1);
    site.recovers();

    site.bao.ok(&["delete", "transit/keys/wrap/soft-delete"], "");
    let told = site.goes_on_while("transit_key_deleted");
    assert!(told.contains("bao write -f transit/keys/wrap/soft-delete-restore"), "{told}");
    site.bao.ok(&["write", "-f", "transit/keys/wrap/soft-delete-restore"], "");
    site.recovers();

    // The transit key is gone; then another transit key gets its name, and opens nothing; then the backup is restored.
    site.bao.ok(&["delete", "transit/keys/wrap"], "");
    let told = site.goes_on_while("transit_key_missing");
    assert!(told.contains("KESWARDEN_VAULT_TRANSIT_KEY"), "{told}");
    site.bao.ok(&["write", "-f", "transit/keys/wrap"], "");
    let told = site.goes_on_while("transit_failed");
    assert!(told.contains("message authentication failed"), "{told}");
    site.bao.ok(&["write", "transit/restore/wrap", "force=true", "backup=-"], &backup);
    site.recovers();
    site.gate_passes();
    assert_eq!(site.metric("keswarden_key_fingerprint_mismatch{key=\"my-key\"}"), 0.0, "it was never lost");
}

#[test]
fn what_the_policy_lacks_for_transit_is_spelt_out_and_no_reason_to_log_in_again() {
    let (mut site, _) = wrapped_and_rotated();
    let allow = |site: &Site, operations: &[&str]| {
        site.bao.ok(&["policy", "write", "minio-sidecar", "-"], &with_transit(operations));
    };
    let before = site.logins();
    allow(&site, &["encrypt"]);
    let told = site.goes_on_while("policy_missing");
    assert!(told.contains("path \"transit/decrypt/wrap\" { capabilities = [\"update\"] }"), "{told}");
    allow(&site, &["encrypt", "decrypt"]);
    site.recovers();
    assert_eq!(site.logins(), before);

    // Making the first key takes the right to encrypt.
    allow(&site, &["decrypt"]);
    site.settings.push(("KESWARDEN_KEY_NAME", "later".to_owned()));
    let told = site.gate_says("policy_missing");
    assert!(told.contains("path \"transit/encrypt/wrap\" { capabilities = [\"update\"] }"), "{told}");
    allow(&site, &["encrypt", "decrypt"]);
    site.gate_passes();
    assert!(stored(&site, "later").starts_with("vault:v2:"));
}
