//! Mistakes of common clients of Vault, which ours must not make: each was seen with `vaultrs` and `reqwest` as they come. More of them are
//! held elsewhere: versions and deletion times in `answers`, renewal and Retry-After in `lease`, certificates that are read again in
//! `login`.

use crate::harness::{
    KEY, ScriptedVault,
    scripted_vault::{LEADER, LOGIN, MOUNT, UNSEALED, UNSET, init, says},
};
use std::{
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

const DENIED: (u16, &str) = (400, r#"{"errors":["invalid role or secret ID"]}"#);
const LOGIN_PATH: &str = "POST /v1/auth/approle/login";
const KEY_PATH: &str = "GET /v1/kv/data/my-key?version=1";
/// OpenBao's health page: the member `performance_standby`, which some clients demand, is not in it.
const GREEN: (&str, (u16, &str)) = (
    "GET /v1/sys/health?standbyok=true&perfstandbyok=true",
    (
        200,
        r#"{"initialized":true,"sealed":false,"standby":false,"server_time_utc":1795425183,"version":"2.7.2"}"#,
    ),
);

#[test]
fn members_that_are_new_or_not_there_are_no_reason_to_fail() {
    for body in [
        r#"{"initialized":true,"sealed":false}"#,
        r#"{"type":"shamir","initialized":true,"sealed":false,"t":3,"n":5,"new":{"a":[1]},"commit_date":"x"}"#,
    ] {
        let vault =
            ScriptedVault::good([("GET /v1/sys/seal-status", (200, body)), LEADER, (LOGIN_PATH, DENIED)]);
        says(vault.init(&[]), 77, &["login_refused"]);
    }
    let trouble = (KEY_PATH, (500, r#"{"errors":["internal error"]}"#));
    let vault = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, GREEN, trouble]);
    says(
        vault.init(&[]),
        69,
        &["vault_unhealthy_behind_green_health", "internal error", "sys/health is green"],
    );
    // A health page that is red is the cause by itself.
    let red = (GREEN.0, (503, r#"{"initialized":true,"sealed":true}"#));
    let vault = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, red, trouble]);
    says(vault.init(&[]), 69, &["vault_unhealthy: "]);
}

#[test]
fn a_namespace_goes_where_it_belongs_and_never_to_the_health_page() {
    let trouble = (KEY_PATH, (500, r#"{"errors":["internal error"]}"#));
    let namespaces = [("KESWARDEN_VAULT_NAMESPACE", "team"), ("KESWARDEN_VAULT_AUTH_NAMESPACE", "people")];
    let vault = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, GREEN, trouble]);
    says(vault.init(&namespaces), 69, &["vault_unhealthy_behind_green_health"]);
    let asked = vault.asked.lock().unwrap();
    for (request, namespace) in asked.iter() {
        let expected = match request.as_str() {
            "GET /v1/sys/seal-status" => None,
            request if request == GREEN.0 => None,
            LOGIN_PATH => Some("people"),
            _ => Some("team"),
        };
        assert_eq!(namespace.as_deref(), expected, "{request}");
    }
    for path in [GREEN.0, LOGIN_PATH, KEY_PATH, MOUNT.0, UNSEALED.0] {
        assert!(asked.iter().any(|(request, _)| request == path), "{path} was asked");
    }
}

#[test]
fn a_token_is_sent_to_nobody_whom_a_redirect_names() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let there = format!("https://{}/v1/kv/data/my-key", stranger.local_addr().unwrap());
    let there: &'static str = Box::leak(there.into_boxed_str());
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    thread::spawn(move || {
        for _ in stranger.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let vault = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, (KEY_PATH, (307, there))]);
    says(vault.init(&[]), 69, &["vault_standby_without_leader"]);
    let vault = ScriptedVault::good([UNSEALED, (LOGIN_PATH, (307, there))]);
    says(vault.init(&[]), 69, &["vault_unhealthy: ", "answered 307, to https://"]);
    // A redirect to another path of the same host is not followed either.
    let vault = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, (KEY_PATH, (307, "/v1/kv/data/other"))]);
    says(vault.init(&[]), 69, &["vault_unhealthy: ", "/v1/kv/data/other"]);
    assert_eq!(connections.load(Ordering::SeqCst), 0, "nobody else is even asked");
}

#[test]
fn nobody_is_trusted_beside_the_ca_that_was_named() {
    let (vault, other) = (ScriptedVault::good([]), ScriptedVault::good([]));
    let (own, others) = (vault.ca(), other.ca());
    let (own, others) = (own.to_str().unwrap(), others.to_str().unwrap());
    // The system trusts this CA, and no variable of the environment switches the check off.
    for more in [("SSL_CERT_FILE", own), ("VAULT_SKIP_VERIFY", "true"), ("VAULT_TLS_SERVER_NAME", "x")] {
        says(vault.init(&[("KESWARDEN_VAULT_CACERT", others), more]), 69, &["vault_tls_unknown_ca"]);
    }
}

#[test]
fn nothing_of_the_environment_is_used_unsaid() {
    let vault = ScriptedVault::good([UNSEALED, LEADER, (LOGIN_PATH, DENIED)]);
    says(vault.init(&[("VAULT_TOKEN", "s.secret-token")]), 77, &["login_refused"]);
    let (dir, ca) = (tempfile::tempdir().unwrap(), vault.ca());
    let address = format!("https://127.0.0.1:{}", vault.port);
    let only_theirs = [
        ("KESWARDEN_VAULT_ADDR", address.as_str()),
        ("KESWARDEN_VAULT_CACERT", ca.to_str().unwrap()),
        ("KESWARDEN_VAULT_ROLE_ID", UNSET),
        ("KESWARDEN_VAULT_SECRET_ID", UNSET),
        ("VAULT_TOKEN", "s.secret-token"),
    ];
    let (code, text) = init(dir.path(), &only_theirs);
    assert!(code == 64 && text.contains("as whom to log in"), "{text}");
}

#[test]
fn odd_tokens_and_namespaces_are_refused_and_never_shown() {
    let vault = ScriptedVault::good([UNSEALED]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret-id");
    for content in ["the-secret-id\nmore", "the-secret-id\r\nX-Evil: 1", "the-secret-id\0"] {
        std::fs::write(&file, content).unwrap();
        let given = [
            ("KESWARDEN_VAULT_SECRET_ID_FILE", file.to_str().unwrap()),
            ("KESWARDEN_VAULT_SECRET_ID", UNSET),
        ];
        says(vault.init(&given), 71, &["credential_unreadable", "is not text"]);
    }
    for namespace in ["team\nX-Evil: 1", "team\u{1}"] {
        let (code, text) = vault.init(&[("KESWARDEN_VAULT_NAMESPACE", namespace)]);
        assert!(code == 64 && text.contains("KESWARDEN_VAULT_NAMESPACE"), "{code} {text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// `init` of the scripted server's tests looks for secrets in all that is printed.
#[test]
fn neither_a_trace_nor_a_backtrace_shows_a_secret_or_our_own_inside() {
    for more in [("KESWARDEN_LOG", "trace"), ("RUST_BACKTRACE", "full")] {
        let refused = ScriptedVault::good([UNSEALED, LEADER, (LOGIN_PATH, DENIED)]);
        let garbled = ScriptedVault::good([UNSEALED, LOGIN, MOUNT, (KEY_PATH, (200, "{\"data\":{\"da"))]);
        for (vault, cause) in [(&refused, "login_refused"), (&garbled, "vault_unhealthy")] {
            let (_, text) = vault.init(&[more]);
            assert!(text.contains(cause), "{text}");
            for inside in ["stack backtrace", "src/vault", "ClientError", "RequestError"] {
                assert!(!text.contains(inside), "{inside:?} is in {text}");
            }
        }
    }
    assert_eq!(KEY, "my-key");
}
