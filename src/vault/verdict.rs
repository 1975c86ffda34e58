//! What an answer of Vault, or none, means: status and body in, finding out. Facts were seen on OpenBao 2.7.2.

use super::{
    Config,
    transport::{Failure, FailureKind},
};
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
    /// The health page was green when this came.
    pub(super) behind_green_health: bool,
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
            behind_green_health: false,
            body: Zeroizing::new(response.into_body()),
        }
    }

    /// The body, when it is JSON of that shape.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// The body is an answer of Vault's: a JSON object with `errors`, a list of texts, or with `data`, an object; `data` may be null
    /// where there are warnings. The page of an ingress, or the error object of a gateway, is not.
    pub fn is_vaults(&self) -> bool {
        use serde_json::Value;
        let Some(Value::Object(body)) = self.json() else { return false };
        match (body.get("errors"), body.get("data")) {
            (Some(Value::Array(errors)), _) => errors.iter().all(Value::is_string),
            (None | Some(Value::Null), Some(Value::Object(_))) => true,
            (None | Some(Value::Null), Some(Value::Null)) => body.contains_key("warnings"),
            _ => false,
        }
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
        let line = plain(&self.errors().join("; "));
        if line.is_empty() { format!("{}", self.status) } else { format!("{} {line}", self.status) }
    }

    /// An error of Vault's own that says nothing of its cause, as when an audit device is full.
    pub(super) fn may_be_behind_green_health(&self) -> bool {
        self.status >= 500 && self.status != 503 && !self.says("not active")
    }

    /// A node that neither leads nor knows who does; it has done nothing.
    pub(super) fn knows_no_leader(&self) -> bool {
        self.status == 500 && self.says("active cluster node not found")
    }

    pub(super) fn says(&self, text: &str) -> bool {
        self.errors().iter().any(|error| error.contains(text))
    }
}

/// A peer's words in one line, without anything that moves a cursor.
pub fn plain(words: &str) -> String {
    let line = words.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().filter(|character| !character.is_control()).take(300).collect()
}

/// The kind of operation, for a metric label: a closed set.
pub fn operation(path: &str) -> &'static str {
    match path {
        "sys/seal-status" => "seal_status",
        "auth/token/lookup-self" => "token_lookup",
        "auth/token/renew-self" => "token_renew",
        _ if path.starts_with("auth/") && path.ends_with("/lookup") => "secret_id_lookup",
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
    match failure.kind {
        FailureKind::Refused => Cause::VaultUnreachableRefused.seen(seen),
        FailureKind::Timeout | FailureKind::ConnectTimeout => Cause::VaultUnreachableTimeout
            .seen(format!("{} at Vault {address} got {}", asked.what, failure.words)),
        FailureKind::Dns => Cause::VaultUnreachableDns.seen(seen),
        FailureKind::Tls(Trouble::UnknownCa) => Cause::VaultTlsUnknownCa.seen(seen),
        FailureKind::Tls(Trouble::WrongName) => Cause::VaultTlsName.seen(seen),
        FailureKind::Tls(Trouble::Expired) => Cause::VaultTlsExpired.seen(seen),
        FailureKind::Tls(Trouble::NoTls) => Cause::VaultTlsPlainHttp
            .seen(format!("{} at Vault {address}: what listens there speaks no TLS", asked.what))
            .fix("give the port of Vault's TLS listener; only a Vault without TLS is http:// in KESWARDEN_VAULT_ADDR"),
        FailureKind::Tls(Trouble::OurCertificate) => Cause::LoginRefused.seen(seen).fix(
            "Vault does not take our client certificate, or wants one: look at KESWARDEN_VAULT_CLIENT_CERT and its dates, which is \
             read again by itself",
        ),
        FailureKind::Tls(Trouble::Other) => Cause::VaultTlsOther.seen(seen),
        FailureKind::Other => Cause::VaultUnreachable.seen(seen),
    }
}

/// No answer came, and the health page is green.
pub(super) fn behind_green_health(asked: &Asked<'_>, config: &Config, failure: &Failure) -> Finding {
    let Finding { seen, .. } = unreachable(asked, config, failure);
    Cause::VaultBehindGreenHealth.seen(format!("{seen}; sys/health is green all the while"))
}

/// Whoever answers so cannot do anything for now: sealed, without a leader, overloaded, in trouble. Anything else is a no.
pub(super) fn is_away(answer: &Answer) -> bool {
    (answer.status >= 500 && !is_a_no(answer)) || matches!(answer.status, 301..=308 | 412 | 429 | 472 | 473)
}

/// A 500 that no other node would answer otherwise: the role is gone, or our certificate has ended.
fn is_a_no(answer: &Answer) -> bool {
    answer.status == 500
        && (answer.says("does not exist during renewal") || answer.says("certificate has expired"))
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
    if (301..=308).contains(&answer.status) {
        return redirected(asked, config, answer);
    }
    // An ingress, a mesh or a firewall refuses as well, and knows nothing of policies.
    if matches!(answer.status, 403 | 404) && !answer.is_vaults() {
        return not_vault(config, answer);
    }
    let seen = format!("{what} at Vault {} answered {} (path {path})", config.address, answer.words());
    let cause = match answer.status {
        503 if answer.says("namespace is sealed") => Cause::NamespaceSealed,
        503 if answer.says("has been locked") => Cause::NamespaceLocked,
        503 if answer.says("sealed") => Cause::VaultSealed,
        429 => Cause::VaultRateLimited,
        404 if answer.says("namespace not found") => Cause::NamespaceMissing,
        404 if answer.says("no handler for route") && operation(path) == "transit" => {
            return Cause::MountMissing.seen(seen).fix(
                "correct KESWARDEN_VAULT_TRANSIT_MOUNT, or bring the transit engine back with its keys: a fresh one opens nothing",
            );
        }
        404 if answer.says("no handler for route") => Cause::MountMissing,
        404 if answer.says("Invalid path for a versioned") => Cause::MountVersionMismatch,
        // Vault reviews a service account's token at each renewal, too.
        403 if answer.says("during renewal") => Cause::KubernetesReviewFailed,
        403 if *path == "auth/token/renew-self" && answer.errors() == ["permission denied"] => {
            Cause::TokenDead
        }
        403 => return policy_missing(path, seen),
        _ if answer.knows_no_leader() => Cause::VaultNoLeader,
        500 if answer.says("certificate has expired") => {
            return Cause::LoginRefused.seen(seen).fix(RENEW_CERTIFICATE);
        }
        500 if answer.says("does not exist during renewal") => {
            return Cause::LoginRefused
                .seen(seen)
                .fix("make the role again: its tokens live on, and end without it");
        }
        _ if answer.behind_green_health => {
            return Cause::VaultBehindGreenHealth.seen(format!("{seen}; sys/health is green all the while"));
        }
        400 if plain_http(answer) => Cause::VaultTlsPlainHttp,
        400 if operation(path) == "transit" => return transit(path, answer, seen),
        _ => Cause::VaultUnhealthy,
    };
    cause.seen(seen)
}

/// Sent elsewhere, where nobody goes: a standby names its leader, which is none of ours or dead; or it is no Vault.
fn redirected(asked: &Asked<'_>, config: &Config, answer: &Answer) -> Finding {
    let Asked { what, path } = asked;
    let to = plain(answer.location.as_deref().filter(|to| !to.is_empty()).unwrap_or("nowhere"));
    let seen = format!("{what} at Vault {} answered {}, to {to}", config.address, answer.status);
    let is_ours = config.addresses.iter().any(|address| to.starts_with(&format!("{address}/")));
    let is_https_of_ours = config.addresses.iter().any(|address| {
        address.strip_prefix("http://").is_some_and(|host| to.starts_with(&format!("https://{host}/")))
    });
    if is_https_of_ours {
        return Cause::VaultTlsPlainHttp.seen(seen);
    }
    match to.contains(&format!("/v1/{path}")) || to == "nowhere" {
        true if is_ours || to == "nowhere" => Cause::VaultNoLeader.seen(seen),
        true => Cause::VaultNoLeader.seen(seen).fix(
            "if that is the leader's address, add it to KESWARDEN_VAULT_ADDR: nothing is sent to an address that is not there; if the \
             leader is dead, wait for the election",
        ),
        false => Cause::VaultUnhealthy.seen(seen).fix(
            "check that the address is Vault's API, not an ingress or a single sign-on in front of it",
        ),
    }
}

/// Why transit did not do it: its key, by name, and the command that mends it.
fn transit(path: &str, answer: &Answer, seen: String) -> Finding {
    let key = path.replacen("/decrypt/", "/keys/", 1).replacen("/encrypt/", "/keys/", 1);
    if answer.says("encryption key not found") {
        Cause::TransitKeyMissing.seen(seen)
    } else if answer.says("soft-deleted") {
        Cause::TransitKeyDeleted
            .seen(seen)
            .fix(format!("restore it: `bao write -f {key}/soft-delete-restore`"))
    } else if answer.says("disallowed by policy") {
        Cause::TransitVersionRefused.seen(seen).fix(format!(
            "allow its former versions again: `bao write {key}/config min_decryption_version=1`"
        ))
    } else if answer.says("version is too new") {
        Cause::TransitVersionRefused.seen(seen).fix(format!(
            "restore the transit key {key} from a backup that has the version: the one that is there is older than what it wrapped"
        ))
    } else {
        Cause::TransitFailed.seen(seen)
    }
}

const RENEW_CERTIFICATE: &str =
    "renew the client certificate (KESWARDEN_VAULT_CLIENT_CERT); it is read again by itself";

/// The stanza that the policy lacks.
fn policy_missing(path: &str, seen: String) -> Finding {
    let capability = match operation(path) {
        "transit" | "token_renew" => "update",
        _ if path.ends_with('/') || seen.contains("listing") => "list",
        _ => "read",
    };
    Cause::PolicyMissing.seen(seen).fix(format!(
        "add to the policy: path \"{path}\" {{ capabilities = [\"{capability}\"] }}, and check that the mount exists"
    ))
}

/// A login that was not granted. No answer is final: a lockout and a failed token review look like wrong credentials, and pass.
pub(super) fn of_login(config: &Config, method: &str, asked: &Asked<'_>, answer: &Answer) -> Finding {
    let Asked { what, path } = asked;
    let seen = format!("{what} at Vault {} ({path}) answered {}", config.address, answer.words());
    match answer.status {
        400 if plain_http(answer) => Cause::VaultTlsPlainHttp.seen(seen),
        400 | 403 if !answer.is_vaults() => not_vault(config, answer),
        400 if method == "approle" => Cause::LoginRefused.seen(seen),
        400 => Cause::LoginRefused.seen(seen).fix(match method {
            "cert" => "check that Vault's certificate role trusts the CA of KESWARDEN_VAULT_CLIENT_CERT, and its name in KESWARDEN_VAULT_CERT_ROLE",
            "jwt" => "check the role, and the JWT's audience, subject and dates against it: the answer says which; the file is read at each login",
            _ => "check the name of the role, and that the file of the JWT has one",
        }),
        403 if method == "kubernetes" && answer.errors() == ["permission denied"] => {
            Cause::KubernetesReviewFailed.seen(seen)
        }
        403 if method == "approle" => Cause::LoginLockedOut.seen(seen),
        403 if method == "kubernetes" => Cause::LoginDenied.seen(seen).fix(
            "give the role this service account, namespace and audience (bound_service_account_names, bound_service_account_namespaces, \
             audience), as the answer says; a projected token of that audience is read at each login",
        ),
        403 if method != "token" => Cause::LoginDenied.seen(seen),
        200 => not_vault(config, answer),
        _ => of(asked, config, answer),
    }
}

/// A TLS port that was spoken to in plain HTTP says so in text.
fn plain_http(answer: &Answer) -> bool {
    answer.body.starts_with(b"Client sent an HTTP request to an HTTPS server")
}
