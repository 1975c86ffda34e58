//! The complete list of settings, a line each: docs/reference/settings.md is held to it by a test.

/// A setting.
#[derive(Debug)]
pub struct Var {
    pub name: &'static str,
    /// The name that operators already have, read when ours is not set.
    pub also: Option<&'static str>,
    pub default: &'static str,
    pub doc: &'static str,
    /// May be given as a file: `NAME_FILE`.
    pub secret: bool,
}

const fn var(name: &'static str, default: &'static str, doc: &'static str) -> Var {
    Var { name, also: None, default, doc, secret: false }
}

const fn secret(name: &'static str, doc: &'static str) -> Var {
    Var { name, also: None, default: "", doc, secret: true }
}

const fn also(name: &'static str, also: &'static str, doc: &'static str) -> Var {
    Var { name, also: Some(also), default: "", doc, secret: false }
}

#[rustfmt::skip]
pub const VARS: &[Var] = &[
    also("KESWARDEN_KEY_NAME", "MINIO_KMS_KES_KEY_NAME", "name of the default EK"),
    var("KESWARDEN_KEY_CREATE", "never", "`never`, or `if-new`: make the default EK when the store has no trace of it"),
    var("KESWARDEN_CREATE_NAMES", "", "names of keys that may be made or imported through the API, comma-separated, a `*` at the end stands for any ending; `none`; without it, all but the default EK, and with `server` all that the policies allow"),
    var("KESWARDEN_STATE_DIR", "", "directory in which the fingerprints of keys are remembered; without it systemd's own (`STATE_DIRECTORY`), or the directory below `/var/lib` that is called like the run directory below `/run`; the agent's part of the run directory remembers as well; `server`: one for each configuration file, below `XDG_STATE_HOME` or `/var/lib/keswarden`"),
    var("KESWARDEN_MEMORY", "on", "`off`: no state directory remembers keys; pins and the sealed copy do, where they are set"),
    var("KESWARDEN_PIN", "warn", "`warn`: a key without a pin passes the gate, and gets one where pins can be written; `require`: it does not pass; `off`: no pins"),
    var("KESWARDEN_PINS", "", "pins that are stated here, `NAME=FINGERPRINT`, comma-separated; `doctor` prints fingerprints"),
    var("KESWARDEN_PIN_DIR", "", "directory of pins, a file for each key; best on a volume that outlives the pod"),
    var("KESWARDEN_PIN_KV", "", "K/V path of pins in the same Vault, `MOUNT/PATH`, apart from the keys; the agent needs `create` and `read` there"),
    var("KESWARDEN_TENANT", "", "name of the tenant, when pins of several share a directory or path"),
    var("KESWARDEN_DRIVES", "", "the tenant's own drives, paths or patterns such as `/export*`, comma-separated: the keys must open what they hold"),
    var("KESWARDEN_GATE_ON_LOST", "wait", "what the gate does when a key is lost or another one: `wait`, or `exit` with 65"),
    var("KESWARDEN_ON_KEY_LOST", "stop-sealing", "what the agent does when a key that it holds is lost from the store: `stop-sealing`, or `serve` as before"),
    var("KESWARDEN_STALE_OPEN_MAX", "unlimited", "how long a key opens after its last good verification"),
    var("KESWARDEN_STALE_SEAL_MAX", "72h", "how long a key seals after its last good verification"),
    var("KESWARDEN_OFFLINE_DIR", "", "directory of the sealed copy, for a start while Vault is away; without it there is none"),
    var("KESWARDEN_OFFLINE_KEY_FILE", "", "file that the copy's encryption key is derived from; not on the same disk"),
    var("KESWARDEN_OFFLINE_MAX", "72h", "how long a sealed copy counts"),
    var("KESWARDEN_OUTAGE", "open", "`closed`: Vault off means data off: both limits are twice KESWARDEN_VERIFY_INTERVAL"),
    var("KESWARDEN_GATE_TIMEOUT", "", "how long the gate waits; without it, for ever"),
    also("KESWARDEN_VAULT_ADDR", "VAULT_ADDR", "address of Vault or OpenBao, `https://host:8200`; several nodes of one cluster, comma-separated, stand in for one another"),
    also("KESWARDEN_VAULT_CACERT", "VAULT_CACERT", "PEM file or directory of the CA of Vault's certificate; without it, the system's roots"),
    also("KESWARDEN_VAULT_NAMESPACE", "VAULT_NAMESPACE", "namespace of the keys"),
    var("KESWARDEN_VAULT_AUTH_NAMESPACE", "", "namespace of the login, when it is another; `/` is the root"),
    secret("KESWARDEN_VAULT_TOKEN", "log in with this token"),
    secret("KESWARDEN_VAULT_ROLE_ID", "log in by AppRole, with the secret_id"),
    secret("KESWARDEN_VAULT_SECRET_ID", "secret_id of the AppRole"),
    secret("KESWARDEN_VAULT_WRAPPED_SECRET_ID", "or a response-wrapping token with the secret_id in it; it can be opened once, so better not where a pod must restart by itself"),
    var("KESWARDEN_VAULT_APPROLE_MOUNT", "approle", "mount of the AppRole method"),
    var("KESWARDEN_VAULT_KUBERNETES_ROLE", "", "log in by Kubernetes service account, with this role"),
    var("KESWARDEN_VAULT_KUBERNETES_JWT_FILE", "/var/run/secrets/kubernetes.io/serviceaccount/token", "the service account's token, read at each login"),
    var("KESWARDEN_VAULT_KUBERNETES_MOUNT", "kubernetes", "mount of the Kubernetes method"),
    var("KESWARDEN_VAULT_JWT_ROLE", "", "log in by JWT, with this role: Vault needs no Kubernetes API for it"),
    var("KESWARDEN_VAULT_JWT_FILE", "/var/run/secrets/kubernetes.io/serviceaccount/token", "the JWT, read at each login"),
    var("KESWARDEN_VAULT_JWT_MOUNT", "jwt", "mount of the JWT method"),
    var("KESWARDEN_VAULT_CERT_LOGIN", "off", "`on`: log in by the client certificate"),
    var("KESWARDEN_VAULT_CERT_ROLE", "", "name of the certificate role; without it, any that fits"),
    var("KESWARDEN_VAULT_CERT_MOUNT", "cert", "mount of the certificate method"),
    var("KESWARDEN_VAULT_CLIENT_CERT", "", "PEM file of a client certificate for Vault"),
    var("KESWARDEN_VAULT_CLIENT_KEY", "", "PEM file of its key"),
    var("KESWARDEN_VAULT_KV_MOUNT", "kv", "mount of the K/V engine"),
    var("KESWARDEN_VAULT_KV_VERSION", "auto", "`auto`, `1` or `2`"),
    var("KESWARDEN_VAULT_KV_PREFIX", "", "folder of the keys below the mount"),
    var("KESWARDEN_VAULT_TRANSIT_KEY", "", "transit key that wraps the keys"),
    var("KESWARDEN_VAULT_TRANSIT_MOUNT", "transit", "mount of the transit engine"),
    var("KESWARDEN_VAULT_TIMEOUT", "5s", "bound of one request to Vault"),
    var("KESWARDEN_FS_DIR", "", "directory of keys, in place of Vault"),
    var("KESWARDEN_ADDR", "127.0.0.1:7373", "where the KES API listens, with TLS"),
    var("KESWARDEN_ADMIN_ADDR", "[::]:7374", "where health and metrics listen, plain HTTP; `[::]` is all interfaces, IPv4 and IPv6"),
    var("KESWARDEN_RUN_DIR", "/run/keswarden", "certificates, made at the first start and reused, and the login that one process leaves to the next; `server` has only the latter there, and only when this is set"),
    var("KESWARDEN_TLS_NAMES", "", "more names or addresses for the server certificate, comma-separated"),
    var("KESWARDEN_IDENTITIES", "", "more identities that may do what MinIO may, comma-separated"),
    secret("KESWARDEN_API_KEY", "an API key whose identity may do what MinIO may"),
    var("KESWARDEN_ALLOW_DELETE", "off", "`on`: keys may be deleted through the API"),
    var("KESWARDEN_VERIFY_INTERVAL", "5m", "how often every key is fetched again and compared"),
    var("KESWARDEN_DRAIN_TIMEOUT", "10s", "how long requests under way may take at shutdown"),
    var("KESWARDEN_MINIO_ENV_FILE", "", "MinIO's environment file; may be written while the gate waits"),
    also("KESWARDEN_KES_ENDPOINT", "MINIO_KMS_KES_ENDPOINT", "the KES that MinIO uses, checked by the gate unless it is ours"),
    Var { name: "KESWARDEN_KES_API_KEY", also: Some("MINIO_KMS_KES_API_KEY"), default: "", doc: "MinIO's API key for it", secret: true },
    also("KESWARDEN_KES_CERT_FILE", "MINIO_KMS_KES_CERT_FILE", "or MinIO's client certificate for it"),
    also("KESWARDEN_KES_KEY_FILE", "MINIO_KMS_KES_KEY_FILE", "and its key"),
    also("KESWARDEN_KES_CAPATH", "MINIO_KMS_KES_CAPATH", "CA file or directory of that KES"),
    var("KESWARDEN_MINIO_ENDPOINT", "", "MinIO's S3 endpoint: switches bucket defaults on"),
    Var { name: "KESWARDEN_MINIO_ACCESS_KEY", also: Some("MINIO_ROOT_USER"), default: "", doc: "as whom to call MinIO", secret: true },
    Var { name: "KESWARDEN_MINIO_SECRET_KEY", also: Some("MINIO_ROOT_PASSWORD"), default: "", doc: "its secret key", secret: true },
    var("KESWARDEN_MINIO_CACERT", "", "PEM file or directory of the CA of MinIO's certificate"),
    var("KESWARDEN_SSE_DEFAULT", "sse-kms", "`sse-kms`, `sse-s3` or `off`: what a bucket without a default gets"),
    var("KESWARDEN_SSE_KEY", "", "key of `sse-kms`; without it, the default EK"),
    var("KESWARDEN_SSE_INTERVAL", "2s", "how often buckets are looked at"),
    var("KESWARDEN_EVENTS", "auto", "`auto`: in a pod, why it waits is posted as Events on it, if the service account may; or `off`"),
    var("KESWARDEN_POD", "", "name of the pod; without it, the host name"),
    var("KESWARDEN_KUBERNETES_DIR", "/var/run/secrets/kubernetes.io/serviceaccount", "the service account that posts them"),
    var("KESWARDEN_TERMINATION_LOG", "/dev/termination-log", "where a container that ends leaves the reason, if the file is there"),
    var("KESWARDEN_AUDIT", "on", "`off`: no audit lines on standard output; `/v1/log/audit` has them all the same"),
    var("KESWARDEN_LOG", "info", "`error`, `warn`, `info`, `debug` or `trace`"),
    var("KESWARDEN_LOG_FORMAT", "text", "`text` or `json`"),
];

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
