//! What an answer of Vault, or none, means: status and body in, finding out. Facts were seen on OpenBao 2.7.2.

use super::{Config, transport::Failure, transport::FailureKind};
use crate::{
    cause::{Cause, Finding},
    tls::Trouble,
};
use jiff::fmt::rfc2822::DateTimeParser;
use std::time::Duration;
use zeroize::Zeroizing;

/// What was asked, in words for a person, and on which path below `/v1/`.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    pub what: &'a str,
    pub path: &'a str,
}

/// A whole answer. The body may hold secrets and is wiped.
pub struct Answer {
    pub status: u16,
    /// How long it asks not to be asked again (`Retry-After` in seconds).
    pub(super) retry_after: Option<Duration>,
    /// What time it is there.
    pub(super) date: Option<jiff::Timestamp>,
    /// Where it sends us.
    pub(super) location: Option<String>,
    body: Zeroizing<Vec<u8>>,
}

// === impl Answer ===

impl Answer {
    pub(super) fn new(response: http::Response<Vec<u8>>) -> Self {
        let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = header(http::header::RETRY_AFTER).and_then(|text| text.trim().parse().ok());
        let date = header(http::header::DATE);
        Self {
            status: response.status().as_u16(),
            retry_after: retry_after.map(Duration::from_secs),
            date: date.and_then(|text| DateTimeParser::new().parse_timestamp(text).ok()),
            location: header(http::header::LOCATION).map(str::to_owned),
            body: Zeroizing::new(response.into_body()),
        }
    }

    /// The body, when it is JSON of that shape.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The body is an answer of Vault's: a JSON object with `errors`, or with `data`. An ingress's page is not.
    pub fn is_vaults(&self) -> bool {
        let body: Option<serde_json::Value> = self.json();
        body.is_some_and(|body| {
            body.get("errors").is_some_and(serde_json::Value::is_array) || body.get("data").is_some()
        })
    }

    /// Vault's own words: the members of `errors`, or of `warnings`.
    pub fn errors(&self) -> Vec<String> {
        #[derive(Default, serde::Deserialize)]
        #[serde(default)]
        struct Words {
            errors: Vec<String>,
            warnings: Option<Vec<String>>,
        }
        let words: Words = self.json().unwrap_or_default();
        if words.errors.is_empty() { words.warnings.unwrap_or_default() } else { words.errors }
    }

    /// The same in one line.
    fn words(&self) -> String {
        let joined = self.errors().join("; ");
        let line = joined.split_whitespace().collect::<Vec<_>>().join(" ");
        let line: String = line.chars().filter(|character| !character.is_control()).take(300).collect();
        if line.is_empty() { format!("{}", self.status) } else { format!("{} {line}", self.status) }
    }

    fn says(&self, text: &str) -> bool {
        self.errors().iter().any(|error| error.contains(text))
    }
}

/// The kind of operation, for a metric label: a closed set.
pub fn operation(path: &str) -> &'static str {
    match path {
        "sys/seal-status" => "seal_status",
        "auth/token/lookup-self" => "token_lookup",
        "auth/token/renew-self" => "token_renew",
        _ if path.starts_with("auth/") => "login",
        _ if path.starts_with("sys/") => "sys",
        _ if path.contains("/decrypt/") || path.contains("/encrypt/") => "transit",
        _ => "kv",
    }
}

/// No answer came.
pub(super) fn unreachable(asked: &Asked<'_>, config: &Config, failure: &Failure) -> Finding {
    let address = &config.address;
    let seen = format!("{} at Vault {address} failed: {}", asked.what, failure.words);
    let timeout = || format!("{} at Vault {address} got no answer within {:?}", asked.what, config.timeout);
    match failure.kind {
        FailureKind::Refused => Cause::VaultUnreachableRefused.seen(seen),
        FailureKind::Timeout => Cause::VaultUnreachableTimeout.seen(timeout()),
        FailureKind::Dns => Cause::VaultUnreachableDns.seen(seen),
        FailureKind::Tls(Trouble::UnknownCa) => Cause::VaultTlsUnknownCa.seen(seen),
        FailureKind::Tls(Trouble::WrongName) => Cause::VaultTlsName.seen(seen),
        FailureKind::Tls(Trouble::Expired) => Cause::VaultTlsExpired.seen(seen),
        FailureKind::Tls(Trouble::Other) => Cause::VaultTlsOther.seen(seen),
        FailureKind::Other => Cause::VaultUnreachable.seen(seen),
    }
}

/// Something answered that is not Vault's API.
pub(super) fn not_vault(config: &Config, answer: &Answer) -> Finding {
    Cause::VaultUnhealthy
        .seen(format!("{} answered {} with a body that is not Vault's", config.address, answer.status))
        .fix("check that the address is Vault's API, not a proxy's error page or a user interface")
}

/// An answer that means nothing good, whatever was asked.
pub(super) fn of(asked: &Asked<'_>, config: &Config, answer: &Answer) -> Finding {
    let Asked { what, path } = asked;
    let seen = format!("{what} at Vault {} answered {} (path {path})", config.address, answer.words());
    let cause = match answer.status {
        503 if answer.says("namespace is sealed") => Cause::NamespaceSealed,
        503 if answer.says("has been locked") => Cause::NamespaceLocked,
        503 if answer.says("sealed") => Cause::VaultSealed,
        429 => Cause::VaultRateLimited,
        404 if answer.says("namespace not found") => Cause::NamespaceMissing,
        404 if answer.says("no handler for route") => Cause::MountMissing,
        404 if answer.says("Invalid path for a versioned") => Cause::MountVersionMismatch,
        403 => return policy_missing(path, seen),
        301..=308 => Cause::VaultNoLeader,
        500 if answer.says("active cluster node not found") => Cause::VaultNoLeader,
        400 if plain_http(answer) => Cause::VaultPlainHttp,
        400 if operation(path) == "transit" => Cause::TransitFailed,
        _ => Cause::VaultUnhealthy,
    };
    cause.seen(seen)
}

/// The stanza that the policy lacks.
fn policy_missing(path: &str, seen: String) -> Finding {
    let capability = match operation(path) {
        "transit" | "token_renew" => "update",
        _ => "read",
    };
    Cause::PolicyMissing.seen(seen).fix(format!(
        "add to the policy: path \"{path}\" {{ capabilities = [\"{capability}\"] }}, and check that the mount exists"
    ))
}

/// A login that was not granted. Nothing in it is final: see vault-facts on lockout and TokenReview.
pub(super) fn of_login(method: &str, path: &str, config: &Config, answer: &Answer) -> Finding {
    let seen = format!("logging in at Vault {} ({path}) answered {}", config.address, answer.words());
    match answer.status {
        400 if plain_http(answer) => Cause::VaultPlainHttp.seen(seen),
        400 => Cause::LoginRefused.seen(seen),
        403 if method == "kubernetes" && answer.errors() == ["permission denied"] => {
            Cause::KubernetesReviewFailed.seen(seen)
        }
        403 if method == "approle" => Cause::LoginLockedOut.seen(seen),
        403 => Cause::LoginDenied.seen(seen),
        500 if method == "cert" && answer.says("certificate has expired") => Cause::LoginRefused
            .seen(seen)
            .fix("renew the client certificate (KESWARDEN_VAULT_CLIENT_CERT); it is read again by itself"),
        _ => of(&Asked { what: "logging in", path }, config, answer),
    }
}

/// A TLS port that was spoken to in plain HTTP says so in text.
fn plain_http(answer: &Answer) -> bool {
    answer.body.starts_with(b"Client sent an HTTP request to an HTTPS server")
}
