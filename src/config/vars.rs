//! The complete list of settings, a line each: docs/reference/settings.md is held to it by a test.

/// The type of a setting's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A text that the reader of the setting parses by itself, such as a name or an address of the web.
    Text,
    /// `on` or `off`; also `true`, `yes`, `1` and their opposites.
    Switch,
    /// One of these words, the default first.
    Word(&'static [&'static str]),
    /// A duration such as `500ms`, `5m`, `72h`, `7d`.
    Duration,
    /// A path on this machine.
    Path,
    /// Segments of a path in Vault.
    VaultPath,
    /// A host and a port.
    Address,
    /// Texts with commas between.
    List,
}

/// A setting.
#[derive(Debug)]
pub struct Var {
    pub kind: Kind,
    pub name: &'static str,
    /// The name that operators already have, read when ours is not set.
    pub also: Option<&'static str>,
    /// The value that counts when none is given. Empty: there is none.
    pub default: &'static str,
    pub doc: &'static str,
    /// May be given as a file: `NAME_FILE`.
    pub secret: bool,
}

const fn var(kind: Kind, name: &'static str, default: &'static str, doc: &'static str) -> Var {
    Var { kind, name, also: None, default, doc, secret: false }
}

const fn secret(name: &'static str, doc: &'static str) -> Var {
    Var { kind: Kind::Text, name, also: None, default: "", doc, secret: true }
}

const fn also(kind: Kind, name: &'static str, also: &'static str, doc: &'static str) -> Var {
    Var { kind, name, also: Some(also), default: "", doc, secret: false }
}

#[rustfmt::skip]
pub const VARS: &[Var] = &[
    also(Kind::Text, "KESWARDEN_KEY_NAME", "MINIO_KMS_KES_KEY_NAME", "name of the default EK"),
    var(Kind::Word(&["never", "if-new"]), "KESWARDEN_KEY_CREATE", "never", "`never`, or `if-new`: make the default EK when the store has no trace of it"),
    var(Kind::List, "KESWARDEN_CREATE_NAMES", "", "names of keys that may be made or imported through the API, comma-separated, a `*` at the end stands for any ending; `none`; without it, all but the default EK, and with `server` all that the policies allow"),
    var(Kind::Path, "KESWARDEN_STATE_DIR", "", "directory in which the fingerprints of keys are remembered; without it systemd's own (`STATE_DIRECTORY`), or the directory below `/var/lib` that is called like the run directory below `/run`; the agent's part of the run directory remembers as well; `server`: one for each configuration file, below `XDG_STATE_HOME` or `/var/lib/keswarden`, and what those of other files know of the same key store counts"),
    var(Kind::Switch, "KESWARDEN_MEMORY", "on", "`off`: no state directory remembers keys; pins and the sealed copy do, where they are set"),
    var(Kind::Word(&["warn", "require", "off"]), "KESWARDEN_PIN", "warn", "`warn`: a key without a pin passes the gate, and gets one where pins can be written; `require`: it does not pass; `off`: no pins"),
    var(Kind::List, "KESWARDEN_PINS", "", "pins that are stated here, `NAME=FINGERPRINT`, comma-separated; `doctor` prints fingerprints"),
    var(Kind::Path, "KESWARDEN_PIN_DIR", "", "directory of pins, a file for each key; best on a volume that outlives the pod"),
    var(Kind::VaultPath, "KESWARDEN_PIN_KV", "", "K/V path of pins in the same Vault, `MOUNT/PATH`, apart from the keys; the agent needs `create` and `read` there"),
    var(Kind::VaultPath, "KESWARDEN_TENANT", "", "name of the tenant, when pins or state directories of several are shared; what a key store had counts for that store whatever its name"),
    var(Kind::List, "KESWARDEN_DRIVES", "", "the tenant's own drives, paths, `/export{1...4}` as MinIO has it, or patterns such as `/export*`, comma-separated: the keys must open what they hold"),
    var(Kind::Word(&["wait", "exit"]), "KESWARDEN_GATE_ON_LOST", "wait", "what the gate does when a key is lost or another one: `wait`, or `exit` with 65"),
    var(Kind::Word(&["stop-sealing", "serve"]), "KESWARDEN_ON_KEY_LOST", "stop-sealing", "what the agent does when a key that it holds is lost from the store: `stop-sealing`, or `serve` as before"),
    var(Kind::Duration, "KESWARDEN_STALE_OPEN_MAX", "unlimited", "how long a key opens after its last good verification"),
    var(Kind::Duration, "KESWARDEN_STALE_SEAL_MAX", "72h", "how long a key seals after its last good verification"),
    var(Kind::Path, "KESWARDEN_OFFLINE_DIR", "", "directory of the sealed copy, for a start while Vault is away; without it there is none"),
    var(Kind::Path, "KESWARDEN_OFFLINE_KEY_FILE", "", "file that the copy's encryption key is derived from; not on the same disk"),
    var(Kind::Duration, "KESWARDEN_OFFLINE_MAX", "72h", "how long a sealed copy counts"),
    var(Kind::Word(&["open", "closed"]), "KESWARDEN_OUTAGE", "open", "`closed`: Vault off means data off: both limits are twice KESWARDEN_VERIFY_INTERVAL"),
    var(Kind::Duration, "KESWARDEN_GATE_TIMEOUT", "", "how long the gate waits; without it, for ever"),
    also(Kind::List, "KESWARDEN_VAULT_ADDR", "VAULT_ADDR", "address of Vault or OpenBao, `https://host:8200`; several nodes of one cluster, comma-separated, stand in for one another"),
    also(Kind::Path, "KESWARDEN_VAULT_CACERT", "VAULT_CACERT", "PEM file or directory of the CA of Vault's certificate; without it, the system's roots"),
    also(Kind::Text, "KESWARDEN_VAULT_NAMESPACE", "VAULT_NAMESPACE", "namespace of the keys"),
    var(Kind::Text, "KESWARDEN_VAULT_AUTH_NAMESPACE", "", "namespace of the login, when it is another; `/` is the root"),
    secret("KESWARDEN_VAULT_TOKEN", "log in with this token"),
    secret("KESWARDEN_VAULT_ROLE_ID", "log in by AppRole, with the secret_id"),
    secret("KESWARDEN_VAULT_SECRET_ID", "secret_id of the AppRole"),
    secret("KESWARDEN_VAULT_WRAPPED_SECRET_ID", "or a response-wrapping token with the secret_id in it; it can be opened once, so better not where a pod must restart by itself"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_APPROLE_MOUNT", "approle", "mount of the AppRole method"),
    var(Kind::Text, "KESWARDEN_VAULT_KUBERNETES_ROLE", "", "log in by Kubernetes service account, with this role"),
    var(Kind::Path, "KESWARDEN_VAULT_KUBERNETES_JWT_FILE", "/var/run/secrets/kubernetes.io/serviceaccount/token", "the service account's token, read at each login"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_KUBERNETES_MOUNT", "kubernetes", "mount of the Kubernetes method"),
    var(Kind::Text, "KESWARDEN_VAULT_JWT_ROLE", "", "log in by JWT, with this role: Vault needs no Kubernetes API for it"),
    var(Kind::Path, "KESWARDEN_VAULT_JWT_FILE", "/var/run/secrets/kubernetes.io/serviceaccount/token", "the JWT, read at each login"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_JWT_MOUNT", "jwt", "mount of the JWT method"),
    var(Kind::Switch, "KESWARDEN_VAULT_CERT_LOGIN", "off", "`on`: log in by the client certificate"),
    var(Kind::Text, "KESWARDEN_VAULT_CERT_ROLE", "", "name of the certificate role; without it, any that fits"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_CERT_MOUNT", "cert", "mount of the certificate method"),
    var(Kind::Path, "KESWARDEN_VAULT_CLIENT_CERT", "", "PEM file of a client certificate for Vault"),
    var(Kind::Path, "KESWARDEN_VAULT_CLIENT_KEY", "", "PEM file of its key"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_KV_MOUNT", "kv", "mount of the K/V engine"),
    var(Kind::Word(&["auto", "1", "2", "v1", "v2"]), "KESWARDEN_VAULT_KV_VERSION", "auto", "`auto`, `1` or `2`"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_KV_PREFIX", "", "folder of the keys below the mount"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_TRANSIT_KEY", "", "transit key that wraps the keys"),
    var(Kind::VaultPath, "KESWARDEN_VAULT_TRANSIT_MOUNT", "transit", "mount of the transit engine"),
    var(Kind::Duration, "KESWARDEN_VAULT_TIMEOUT", "5s", "bound of one request to Vault"),
    var(Kind::Path, "KESWARDEN_FS_DIR", "", "directory of keys, in place of Vault"),
    var(Kind::Address, "KESWARDEN_ADDR", "127.0.0.1:7373", "where the KES API listens, with TLS"),
    var(Kind::Address, "KESWARDEN_ADMIN_ADDR", "[::]:7374", "where health and metrics listen, plain HTTP; `[::]` is all interfaces, IPv4 and IPv6"),
    var(Kind::Path, "KESWARDEN_RUN_DIR", "/run/keswarden", "certificates, made at the first start and reused, and the login that one process leaves to the next; `server` has only the latter there, and only when this is set"),
    var(Kind::List, "KESWARDEN_TLS_NAMES", "", "more names or addresses for the server certificate, comma-separated"),
    var(Kind::List, "KESWARDEN_IDENTITIES", "", "more identities that may do what MinIO may, comma-separated"),
    secret("KESWARDEN_API_KEY", "an API key whose identity may do what MinIO may"),
    var(Kind::Switch, "KESWARDEN_ALLOW_DELETE", "off", "`on`: keys may be deleted through the API"),
    var(Kind::Duration, "KESWARDEN_VERIFY_INTERVAL", "5m", "how often every key is fetched again and compared"),
    var(Kind::Duration, "KESWARDEN_DRAIN_TIMEOUT", "10s", "how long requests under way may take at shutdown"),
    var(Kind::Path, "KESWARDEN_MINIO_ENV_FILE", "", "MinIO's environment file; may be written while the gate waits"),
    also(Kind::Text, "KESWARDEN_KES_ENDPOINT", "MINIO_KMS_KES_ENDPOINT", "the KES that MinIO uses, checked by the gate unless it is ours"),
    Var { kind: Kind::Text, name: "KESWARDEN_KES_API_KEY", also: Some("MINIO_KMS_KES_API_KEY"), default: "", doc: "MinIO's API key for it", secret: true },
    also(Kind::Path, "KESWARDEN_KES_CERT_FILE", "MINIO_KMS_KES_CERT_FILE", "or MinIO's client certificate for it"),
    also(Kind::Path, "KESWARDEN_KES_KEY_FILE", "MINIO_KMS_KES_KEY_FILE", "and its key"),
    also(Kind::Path, "KESWARDEN_KES_CAPATH", "MINIO_KMS_KES_CAPATH", "CA file or directory of that KES"),
    var(Kind::Text, "KESWARDEN_MINIO_ENDPOINT", "", "MinIO's S3 endpoint: switches bucket defaults on"),
    Var { kind: Kind::Text, name: "KESWARDEN_MINIO_ACCESS_KEY", also: Some("MINIO_ROOT_USER"), default: "", doc: "as whom to call MinIO", secret: true },
    Var { kind: Kind::Text, name: "KESWARDEN_MINIO_SECRET_KEY", also: Some("MINIO_ROOT_PASSWORD"), default: "", doc: "its secret key", secret: true },
    var(Kind::Path, "KESWARDEN_MINIO_CACERT", "", "PEM file or directory of the CA of MinIO's certificate"),
    var(Kind::Word(&["sse-kms", "sse-s3", "off"]), "KESWARDEN_SSE_DEFAULT", "sse-kms", "`sse-kms`, `sse-s3` or `off`: what a bucket without a default gets"),
    var(Kind::Text, "KESWARDEN_SSE_KEY", "", "key of `sse-kms`; without it, the default EK"),
    var(Kind::Duration, "KESWARDEN_SSE_INTERVAL", "2s", "how often buckets are looked at"),
    var(Kind::Word(&["auto", "off"]), "KESWARDEN_EVENTS", "auto", "`auto`: in a pod, why it waits is posted as Events on it, if the service account may; or `off`"),
    var(Kind::Text, "KESWARDEN_POD", "", "name of the pod; without it, the host name"),
    var(Kind::Path, "KESWARDEN_KUBERNETES_DIR", "/var/run/secrets/kubernetes.io/serviceaccount", "the service account that posts them"),
    var(Kind::Path, "KESWARDEN_TERMINATION_LOG", "/dev/termination-log", "where a container that ends leaves the reason, if the file is there"),
    var(Kind::Switch, "KESWARDEN_AUDIT", "on", "`off`: no audit lines on standard output; `/v1/log/audit` has them all the same"),
    var(Kind::Word(&["info", "error", "warn", "debug", "trace"]), "KESWARDEN_LOG", "info", "`error`, `warn`, `info`, `debug` or `trace`"),
    var(Kind::Word(&["text", "json"]), "KESWARDEN_LOG_FORMAT", "text", "`text` or `json`"),
];

/// A setting of the table.
///
/// # Panics
/// When the table has no such name.
pub(super) fn var_named(name: &str) -> &'static Var {
    VARS.iter()
        .find(|var| var.name == name)
        .unwrap_or_else(|| panic!("{name} must be in the table of settings"))
}

/// What Kubernetes injects for a Service called keswarden.
pub fn is_kubernetes_service(name: &str) -> bool {
    let rest = name.strip_prefix("KESWARDEN_").unwrap_or(name);
    rest.starts_with("SERVICE_")
        || rest.starts_with("PORT_")
        || rest == "PORT"
        || rest.contains("_SERVICE_")
        || rest.contains("_PORT_")
        || rest.ends_with("_PORT")
}

/// The setting that a mistyped name was probably meant to be.
pub fn nearest(name: &str) -> Option<&'static str> {
    let candidates = VARS.iter().map(|var| (distance(name, var.name), var.name));
    candidates.min().filter(|(distance, _)| *distance <= 4).map(|(_, name)| name)
}

/// Edits from one text to the other (Levenshtein).
pub fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, b) in other.bytes().enumerate() {
            let replaced = corner + usize::from(a != b);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{go, names};
    use std::net::SocketAddr;

    #[test]
    fn every_default_is_a_value_of_its_type() {
        for Var { kind, name, default, .. } in VARS.iter().filter(|var| !var.default.is_empty()) {
            let is_one = match kind {
                Kind::Text | Kind::Path | Kind::List => true,
                Kind::Switch => matches!(*default, "on" | "off"),
                Kind::Word(words) => words.first() == Some(default),
                Kind::Duration => *default == "unlimited" || go::duration::parse_setting(default).is_some(),
                Kind::VaultPath => names::vault_path(default).as_deref() == Some(default),
                Kind::Address => default.parse::<SocketAddr>().is_ok(),
            };
            assert!(is_one, "{name}={default} is no {kind:?}");
        }
    }
}
