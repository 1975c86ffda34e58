//! Servers between keswarden and Vault, or in Vault's place: a mesh, a gateway or an ingress, whose answers say nothing about tokens and
//! keys; and nodes of which some hang. The scripted server fails on any request that its script does not have.

use crate::harness::{
    ScriptedVault, closed_port,
    scripted_vault::{LEADER, LOGIN, MOUNT, UNSEALED, UNSET, init, says},
};
use std::{net::TcpListener, sync::atomic::Ordering, time::Instant};

const LOGIN_PATH: &str = "POST /v1/auth/approle/login";
const KEY_PATH: &str = "GET /v1/kv/data/my-key?version=1";
const SEAL_STATUS: &str = "GET /v1/sys/seal-status";

#[test]
fn a_403_of_a_mesh_is_no_word_about_the_token() {
    for body in ["RBAC: access denied", "<html>forbidden</html>", "{\"code\":403}"] {
        let vault = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, (KEY_PATH, (403, body))]);
        says(vault.init(&[]), 69, &["vault_unhealthy: ", "not Vault's"]);
        assert_eq!(vault.logins.load(Ordering::SeqCst), 1, "the token is kept, and used on");
        let kept = std::fs::read_to_string(vault.run_dir().join("agent/vault-token.json")).unwrap();
        assert!(kept.contains("s.secret-token"), "the token is left to the next process");
        let login = ScriptedVault::good([UNSEALED, (LOGIN_PATH, (403, body))]);
        says(login.init(&[]), 69, &["vault_unhealthy: ", "not Vault's"]);
        let sealed = ScriptedVault::good([(SEAL_STATUS, (403, body))]);
        says(sealed.init(&[]), 69, &["vault_unhealthy: ", "not Vault's"]);
    }
}

#[test]
fn a_404_of_a_gateway_is_no_word_about_the_key() {
    for body in [
        r#"{"code":404,"data":null,"message":"no route"}"#,
        r#"{"errors":[{"status":"404","title":"Not Found"}]}"#,
        r#"{"errors":"none"}"#,
        "404 page not found",
        "",
    ] {
        let vault = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, (KEY_PATH, (404, body))]);
        let (code, text) = vault.init(&[("KESWARDEN_KEY_CREATE", "if-new")]);
        assert!(code == 69 && text.contains("not Vault's") && !text.contains("key_missing"), "{text}");
    }
}

#[test]
fn a_200_or_400_of_something_else_is_no_word_about_the_seal_or_the_credentials() {
    for body in [r#"{"status":"ok"}"#, "{}", r#"{"initialized":true}"#, "[]"] {
        says(
            ScriptedVault::good([(SEAL_STATUS, (200, body))]).init(&[]),
            69,
            &["vault_unhealthy: ", "not Vault's"],
        );
    }
    let vault = ScriptedVault::good([UNSEALED, (LOGIN_PATH, (400, "<html>Bad request</html>"))]);
    says(vault.init(&[]), 69, &["vault_unhealthy: ", "not Vault's"]);
    assert!(!vault.run_dir().join("agent/vault-refused.json").exists(), "nobody has refused the pair");
    // A refusal of the source address is no refusal of the pair: the pair does not rest for a quarter of an hour.
    let cidr = r#"{"errors":["source address \"10.0.0.1\" unauthorized by CIDR restrictions on the role"]}"#;
    let vault = ScriptedVault::good([UNSEALED, (LOGIN_PATH, (400, cidr))]);
    says(vault.init(&[]), 77, &["login_refused", "CIDR"]);
    assert!(!vault.run_dir().join("agent/vault-refused.json").exists());
}

#[test]
fn a_redirect_says_what_it_is() {
    let to: &'static str = "https://sso.example.com/login?next=/v1/kv";
    let sso = ScriptedVault::good([(SEAL_STATUS, (307, to))]);
    says(sso.init(&[]), 69, &["vault_unhealthy: ", "sso.example.com", "single sign-on"]);
    let leader: &'static str = "https://10.1.2.3:8200/v1/auth/approle/login";
    let standby = ScriptedVault::good([UNSEALED, (LOGIN_PATH, (307, leader))]);
    says(standby.init(&[]), 69, &["vault_standby_without_leader", "10.1.2.3:8200", "KESWARDEN_VAULT_ADDR"]);
}

#[test]
fn ttls_that_nobody_lives_to_see_are_no_reason_to_panic() {
    let forever = r#"{"auth":{"client_token":"s.secret-token","lease_duration":18446744073709551615,"renewable":true}}"#;
    let denied = (403, r#"{"errors":["1 error occurred:\n\t* permission denied\n\n"]}"#);
    let vault = ScriptedVault::good([
        UNSEALED,
        (LOGIN_PATH, (200, forever)),
        MOUNT,
        (KEY_PATH, denied),
        ("GET /v1/auth/token/lookup-self", (200, r#"{"data":{"ttl":1200}}"#)),
    ]);
    says(vault.init(&[]), 77, &["policy_missing"]);
}

/// A server that accepts connections and never answers.
fn silent() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("https://{}", listener.local_addr().unwrap());
    (listener, address)
}

#[test]
fn a_node_that_hangs_is_left_for_one_that_does_not() {
    let refused = (400, r#"{"errors":["invalid role or secret ID"]}"#);
    let well = ScriptedVault::good([UNSEALED, LEADER, (LOGIN_PATH, refused)]);
    let ((_one, first), (_two, second)) = (silent(), silent());
    let closed = format!("https://127.0.0.1:{}", closed_port());
    let good = format!("https://127.0.0.1:{}", well.port);
    for addresses in [[&first, &good], [&good, &first], [&closed, &good]] {
        let addresses = addresses.map(String::as_str).join(",");
        let more = [("KESWARDEN_VAULT_ADDR", addresses.as_str()), ("KESWARDEN_GATE_TIMEOUT", "3s")];
        let dir = tempfile::tempdir().unwrap();
        let ca = well.ca();
        let more = [more[0], more[1], ("KESWARDEN_VAULT_CACERT", ca.to_str().unwrap())];
        says(init(dir.path(), &more), 77, &["login_refused"]);
    }
    // No node answers: the gate says so in the time that one node takes.
    let all = format!("{first},{second},{first}");
    let dir = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let bounds = [("KESWARDEN_VAULT_TIMEOUT", "5s"), ("KESWARDEN_GATE_TIMEOUT", "1s")];
    let said = init(dir.path(), &[("KESWARDEN_VAULT_ADDR", &all), bounds[0], bounds[1]]);
    says(said, 69, &["vault_unreachable_timeout"]);
    assert!(begun.elapsed().as_secs() < 10, "told after {:?}", begun.elapsed());
}

#[test]
fn of_several_nodes_the_one_that_says_most_is_told_of_and_not_by_turns() {
    let sealed = ScriptedVault::good([(
        SEAL_STATUS,
        (200, r#"{"initialized":true,"sealed":true,"t":3,"progress":1}"#),
    )]);
    let empty = ScriptedVault::good([(SEAL_STATUS, (200, r#"{"initialized":false,"sealed":true}"#))]);
    let both = format!(
        "{}{}",
        std::fs::read_to_string(sealed.ca()).unwrap(),
        std::fs::read_to_string(empty.ca()).unwrap()
    );
    let dir = tempfile::tempdir().unwrap();
    let ca = dir.path().join("both.crt");
    std::fs::write(&ca, both).unwrap();
    let addresses = format!("https://127.0.0.1:{},https://127.0.0.1:{}", empty.port, sealed.port);
    let more = [
        ("KESWARDEN_VAULT_ADDR", addresses.as_str()),
        ("KESWARDEN_VAULT_CACERT", ca.to_str().unwrap()),
        ("KESWARDEN_GATE_TIMEOUT", "4s"),
    ];
    let (code, text) = init(dir.path(), &more);
    assert_eq!(code, 69, "{text}");
    let told: Vec<_> = text.lines().filter(|line| line.contains("waiting")).collect();
    assert_eq!(told.len(), 1, "{text}");
    let which = format!("https://127.0.0.1:{} is sealed (unseal progress 1 of 3 keys)", sealed.port);
    assert!(told[0].contains("vault_sealed") && told[0].contains(&which), "{text}");
}

#[test]
fn what_goes_on_is_not_said_each_second_and_not_asked_each_moment() {
    let expired = ScriptedVault::start("127.0.0.1", (-9, -2), [].into());
    let (_, text) = expired.init(&[("KESWARDEN_GATE_TIMEOUT", "4s")]);
    assert_eq!(text.matches("waiting").count(), 1, "{text}");
    let broken = ScriptedVault::good([
        UNSEALED,
        (LOGIN_PATH, (500, r#"{"errors":["internal error"]}"#)),
        (LEADER.0, (503, "{}")),
    ]);
    let (_, text) = broken.init(&[("KESWARDEN_GATE_TIMEOUT", "6s")]);
    assert_eq!(text.matches("waiting").count(), 1, "{text}");
    let logins = broken.logins.load(Ordering::SeqCst);
    assert!((2..=8).contains(&logins), "{logins} logins in six seconds");
}

/// A standby may not know a fresh pair. Each refusal counts towards the lockout, so the pair is not sent again, and the line says so.
#[test]
fn a_pair_that_a_standby_refuses_rests_and_the_line_says_that_it_may_be_new() {
    let refused = (400, r#"{"errors":["invalid role or secret ID"]}"#);
    let standby = (LEADER.0, (200, r#"{"initialized":true,"sealed":false,"standby":true}"#));
    let vault = ScriptedVault::good([UNSEALED, standby, (LOGIN_PATH, refused)]);
    says(vault.init(&[]), 77, &["login_refused", "the node is a standby", "SIGHUP"]);
    assert_eq!(vault.logins.load(Ordering::SeqCst), 1);
}

/// A token from the settings is not looked up again and again in its last second.
#[test]
fn a_given_token_in_its_last_second_is_dead() {
    let last = r#"{"data":{"ttl":0,"expire_time":"2026-01-01T00:00:00Z","renewable":false}}"#;
    let vault = ScriptedVault::good([UNSEALED, ("GET /v1/auth/token/lookup-self", (200, last))]);
    let token = [
        ("KESWARDEN_VAULT_TOKEN", "s.secret-token"),
        ("KESWARDEN_VAULT_ROLE_ID", UNSET),
        ("KESWARDEN_VAULT_SECRET_ID", UNSET),
        ("KESWARDEN_GATE_TIMEOUT", "3s"),
    ];
    says(vault.init(&token), 77, &["token_dead", "ends within a second"]);
    let asked =
        vault.asked.lock().unwrap().iter().filter(|(request, _)| request.contains("lookup-self")).count();
    assert!(asked <= 6, "{asked} look-ups in three seconds");
}
