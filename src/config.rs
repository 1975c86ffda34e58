//! Settings: the environment, flags and KES's own file in, typed settings or every problem at once out.
//!
//! The environment is an argument. A flag wins over the environment, which wins over the file.

pub mod kes_yaml;
mod login;
mod memory;
pub mod minio_env;
mod parse;
mod pod;
mod safety;
pub mod server;
pub mod vars;
mod yaml;

use crate::{
    gate::{self, Create},
    identity::{ApiKey, Identity},
    kes, keystore, kubernetes,
    names::Name,
    s3::Sse,
    secret::Secret,
    sse, telemetry, tls, vault, verifier,
};
use kes_yaml::{KesYaml, Purpose};
use login::login;
pub use memory::{MemorySettings, StateDir};
use minio_env::MinioEnv;
use parse::Reader;
use safety::{limits, makeable};
use std::{
    ffi::OsString,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Everything that was decided before the program starts.
pub struct Settings {
    pub log: telemetry::Level,
    pub log_format: telemetry::Format,
    pub store: Store,
    pub key: Name,
    pub create: Create,
    pub gate_timeout: Option<Duration>,
    pub run_dir: PathBuf,
    pub tls_names: Vec<String>,
    pub address: SocketAddr,
    pub admin_address: SocketAddr,
    pub identities: Vec<Identity>,
    pub kes: kes::Config,
    /// Policies and admin of KES's own file.
    pub policies: kes::policy::Policies,
    pub verifier: verifier::Config,
    pub minio: Minio,
    pub memory: MemorySettings,
    pub drives: Vec<String>,
    pub exit_on_lost: bool,
    pub drain_timeout: Duration,
    /// Where Events are posted; nowhere outside a pod.
    pub events: Option<kubernetes::Config>,
    pub termination_log: PathBuf,
    /// Loud, not fatal: what is probably a mistake.
    pub warnings: Vec<String>,
}

/// Where the keys are.
pub enum Store {
    Vault(Box<(vault::Config, keystore::vault::Config)>),
    Fs(PathBuf),
    /// A KES has them, and gives none away.
    InKes,
}

/// What is known of MinIO, some of it to be read again while waiting.
#[derive(Clone)]
pub struct Minio {
    pub env: MinioEnv,
    pub endpoint: Option<String>,
    pub access_key: Option<Arc<Secret>>,
    pub secret_key: Option<Arc<Secret>>,
    pub ca: Option<PathBuf>,
    pub sse: Option<sse::Config>,
}

/// One setting that cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// The full name, as the operator wrote it.
    pub name: String,
    /// Absent for secrets, and for what is not set.
    pub value: Option<String>,
    pub reason: String,
}

/// Every setting that cannot be used.
#[derive(Debug)]
pub struct Problems(pub Vec<Problem>);

/// What is read, besides the process's own files.
pub struct Inputs {
    pub environment: Vec<(OsString, OsString)>,
    /// `--config`
    pub config: Option<PathBuf>,
    /// `--key`
    pub key: Option<String>,
}

// === impl Inputs ===

impl Inputs {
    /// The process's own environment, with bytes that are not Unicode left in.
    pub fn of_process(config: Option<PathBuf>, key: Option<String>) -> Self {
        Self { environment: std::env::vars_os().collect(), config, key }
    }
}

/// Reads all settings, or says everything that is wrong with them.
pub fn load(inputs: Inputs) -> Result<Settings, Problems> {
    load_with(inputs, true)
}

/// The same for commands that concern every key: none need be named.
pub fn load_without_key(inputs: Inputs) -> Result<Settings, Problems> {
    load_with(inputs, false)
}

fn load_with(inputs: Inputs, demands_key: bool) -> Result<Settings, Problems> {
    let mut reader = Reader::new(inputs.environment);
    let file = inputs.config.as_deref().map(|path| kes_file(&mut reader, path));
    let (file_store, file_policies, file_warnings) = match file {
        None => Default::default(),
        // What is wrong with the file was said: no store of it is missed as well.
        Some(None) => (Some(FileStore::Unusable), Default::default(), Vec::new()),
        Some(Some(file)) => (Some(FileStore::Named(file.store)), file.policies, file.warnings),
    };
    let log_format = reader.parsed_or_default("KESWARDEN_LOG_FORMAT");
    let interval = reader.interval("KESWARDEN_VERIFY_INTERVAL");
    let minio_env = reader.minio_env();
    let key = reader.key_name(inputs.key, &minio_env, demands_key);
    let run_dir = reader.path_or_default("KESWARDEN_RUN_DIR");
    let settings = Settings {
        log: reader.parsed_or_default("KESWARDEN_LOG"),
        log_format,
        // Without a store that can be used there is a problem, and no settings.
        store: store(&mut reader, file_store, &minio_env).unwrap_or(Store::InKes),
        create: create(&mut reader),
        gate_timeout: reader.duration("KESWARDEN_GATE_TIMEOUT"),
        run_dir: run_dir.clone(),
        tls_names: tls_names(&mut reader),
        address: reader.parsed_or_default("KESWARDEN_ADDR"),
        admin_address: reader.parsed_or_default("KESWARDEN_ADMIN_ADDR"),
        identities: identities(&mut reader),
        kes: kes_config(&mut reader, log_format, interval, key.as_ref()),
        policies: file_policies,
        verifier: verifier::Config { interval },
        minio: minio(&mut reader, minio_env, &key),
        memory: memory::of_agent(&mut reader, &run_dir, inputs.config),
        drives: reader.list("KESWARDEN_DRIVES"),
        exit_on_lost: reader.word("KESWARDEN_GATE_ON_LOST") == "exit",
        drain_timeout: reader.duration_or_default("KESWARDEN_DRAIN_TIMEOUT"),
        events: pod::events(&mut reader),
        termination_log: pod::termination_log(&mut reader),
        key: key.unwrap_or_else(|| Name::parse("unset").expect("a constant name must be valid")),
        warnings: Vec::new(),
    };
    let (warnings, problems) = reader.finish();
    let warnings = file_warnings.into_iter().chain(warnings).collect();
    if problems.is_empty() { Ok(Settings { warnings, ..settings }) } else { Err(Problems(problems)) }
}

/// The key store of KES's own file.
enum FileStore {
    Named(Store),
    /// The file cannot be used, as a problem says.
    Unusable,
}

/// KES's own file, for its keystore and policies.
fn kes_file(reader: &mut Reader, path: &Path) -> Option<KesYaml> {
    match kes_yaml::read(path, reader.environment(), Purpose::KeyStore) {
        Ok(file) => Some(file),
        Err(reasons) => {
            for reason in reasons {
                reader.problem("--config", Some(&path.display().to_string()), &reason);
            }
            None
        }
    }
}

/// All interfaces, those of IPv4 as well.
fn everywhere(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

fn kes_config(
    reader: &mut Reader,
    format: telemetry::Format,
    interval: Duration,
    key: Option<&Name>,
) -> kes::Config {
    use kes::audit::Output;
    kes::Config {
        allow_delete: reader.switch("KESWARDEN_ALLOW_DELETE"),
        audit: match reader.switch("KESWARDEN_AUDIT") {
            true => Output::Stdout(format),
            false => Output::Off,
        },
        limits: limits(reader, interval),
        seal_lost: reader.word("KESWARDEN_ON_KEY_LOST") == "serve",
        makeable: makeable(reader, key),
    }
}

/// The key store. Absent when the settings name none that can be used, which is among the problems then.
fn store(reader: &mut Reader, file: Option<FileStore>, minio: &MinioEnv) -> Option<Store> {
    let (dir, address) = (reader.path("KESWARDEN_FS_DIR"), reader.text("KESWARDEN_VAULT_ADDR"));
    match (dir, address, file) {
        (Some(_), Some(_), _) => {
            reader.problem(
                "KESWARDEN_FS_DIR",
                None,
                "is set beside KESWARDEN_VAULT_ADDR: the keys are in one place only",
            );
            None
        }
        (Some(dir), None, _) => Some(Store::Fs(dir)),
        (None, Some(address), _) => {
            let config = vault_config(reader, address);
            let store = kv_config(reader);
            config.map(|config| Store::Vault(Box::new((config, store))))
        }
        (None, None, Some(FileStore::Named(store))) => Some(store),
        (None, None, Some(FileStore::Unusable)) => None,
        // A KES, or a file that may name one: that is enough for a gate.
        (None, None, None) if minio.may_name_a_kes() => Some(Store::InKes),
        (None, None, None) => {
            reader.problem(
                "KESWARDEN_VAULT_ADDR",
                None,
                "is not set, and neither is KESWARDEN_FS_DIR, nor is there a --config with a keystore: where are the keys?",
            );
            None
        }
    }
}

fn vault_config(reader: &mut Reader, address: String) -> Option<vault::Config> {
    let given = address.split(',').map(str::trim).filter(|one| !one.is_empty());
    let addresses: Vec<_> =
        given.map(|one| reader.base_url("KESWARDEN_VAULT_ADDR", one.to_owned())).collect();
    let mut addresses = addresses.into_iter().collect::<Option<Vec<_>>>();
    if addresses.as_ref().is_some_and(Vec::is_empty) {
        reader.problem("KESWARDEN_VAULT_ADDR", Some(&address), "names no address");
        addresses = None;
    }
    let login = login(reader);
    Some(vault::Config {
        ca: reader.path("KESWARDEN_VAULT_CACERT"),
        client_certificate: reader.pair("KESWARDEN_VAULT_CLIENT_CERT", "KESWARDEN_VAULT_CLIENT_KEY"),
        namespace: reader.plain("KESWARDEN_VAULT_NAMESPACE"),
        auth_namespace: reader.plain("KESWARDEN_VAULT_AUTH_NAMESPACE"),
        timeout: reader.interval("KESWARDEN_VAULT_TIMEOUT"),
        address: addresses.as_ref()?.join(", "),
        addresses: addresses?,
        login: login?,
        state_dir: None,
    })
}

fn kv_config(reader: &mut Reader) -> keystore::vault::Config {
    use keystore::vault::Version;
    let version = match reader.text("KESWARDEN_VAULT_KV_VERSION").as_deref() {
        None | Some("auto") => None,
        Some("1" | "v1") => Some(Version::V1),
        Some("2" | "v2") => Some(Version::V2),
        Some(other) => {
            reader.problem("KESWARDEN_VAULT_KV_VERSION", Some(other), "is none of auto, 1, 2");
            None
        }
    };
    let transit = reader.vault_path("KESWARDEN_VAULT_TRANSIT_KEY");
    let transit_mount = reader.vault_path_or_default("KESWARDEN_VAULT_TRANSIT_MOUNT");
    keystore::vault::Config {
        mount: reader.vault_path_or_default("KESWARDEN_VAULT_KV_MOUNT"),
        version,
        prefix: reader.vault_path("KESWARDEN_VAULT_KV_PREFIX").unwrap_or_default(),
        transit: transit.map(|key| keystore::vault::Transit { mount: transit_mount, key }),
    }
}

fn create(reader: &mut Reader) -> Create {
    match reader.word("KESWARDEN_KEY_CREATE") {
        "if-new" => Create::IfNew,
        _ => Create::Never,
    }
}

fn tls_names(reader: &mut Reader) -> Vec<String> {
    let names = reader.list("KESWARDEN_TLS_NAMES");
    for name in &names {
        if !tls::mint::is_name(name) {
            reader.problem("KESWARDEN_TLS_NAMES", Some(name), "is neither a DNS name nor an IP address");
        }
    }
    names
}

fn identities(reader: &mut Reader) -> Vec<Identity> {
    let mut identities = Vec::new();
    for text in reader.list("KESWARDEN_IDENTITIES") {
        match Identity::parse(&text) {
            Ok(identity) => identities.push(identity),
            // What is no identity may be an API key that was pasted in the wrong place.
            Err(error) => {
                reader.problem("KESWARDEN_IDENTITIES", None, &format!("names something that {error}"))
            }
        }
    }
    if let Some(secret) = reader.secret_value("KESWARDEN_API_KEY") {
        match ApiKey::parse(secret.expose()) {
            Ok(key) => identities.push(key.identity()),
            Err(error) => reader.problem("KESWARDEN_API_KEY", None, &error.to_string()),
        }
    }
    identities
}

fn minio(reader: &mut Reader, env: MinioEnv, key: &Option<Name>) -> Minio {
    let endpoint = reader.text("KESWARDEN_MINIO_ENDPOINT");
    let endpoint = endpoint.and_then(|endpoint| reader.base_url("KESWARDEN_MINIO_ENDPOINT", endpoint));
    let sse_key = reader.plain("KESWARDEN_SSE_KEY").or_else(|| key.as_ref().map(|key| key.to_string()));
    let interval = reader.interval("KESWARDEN_SSE_INTERVAL");
    let wanted = match reader.text("KESWARDEN_SSE_DEFAULT").as_deref() {
        None | Some("sse-kms") => Some(Sse::Kms(sse_key.unwrap_or_default())),
        Some("sse-s3") => Some(Sse::S3),
        Some("off") => None,
        Some(other) => {
            reader.problem("KESWARDEN_SSE_DEFAULT", Some(other), "is none of sse-kms, sse-s3, off");
            None
        }
    };
    Minio {
        env,
        endpoint,
        access_key: reader.secret_value("KESWARDEN_MINIO_ACCESS_KEY"),
        secret_key: reader.secret_value("KESWARDEN_MINIO_SECRET_KEY"),
        ca: reader.path("KESWARDEN_MINIO_CACERT"),
        sse: wanted.map(|wanted| sse::Config { wanted, interval }),
    }
}

// === impl Settings ===

/// The bound of one request of the gate to KES.
const KES_TIMEOUT: Duration = Duration::from_secs(5);

impl Settings {
    /// The conditions of the gate.
    pub fn gate(&self) -> gate::Settings {
        gate::Settings {
            keys: vec![self.key.clone()],
            create: self.create,
            maker: "keswarden".to_owned(),
            exit_on_lost: self.exit_on_lost,
            drives: self.drives.clone(),
            kes_alone: matches!(self.store, Store::InKes),
            deadline: self.gate_timeout,
        }
    }

    /// The KES that MinIO was told to use, unless that is our own: our CA file shows which.
    pub fn kes_source(&self) -> gate::KesSource {
        let (env, ours) = (self.minio.env.clone(), self.run_dir.join("ca.crt"));
        Arc::new(move || env.kes(&ours, KES_TIMEOUT))
    }
}

// === impl Problems ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.value {
            None => write!(f, "{} {}", self.name, self.reason),
            Some(value) => write!(f, "{}={value:?} {}", self.name, self.reason),
        }
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(|problem| format!("  {problem}")).collect();
        write!(f, "these settings cannot be used:\n{}", lines.join("\n"))
    }
}

// === impl Minio ===

impl Minio {
    /// As whom to call MinIO: our settings, or MinIO's own root user, as its environment file says now.
    pub fn credentials(&self) -> Option<(Arc<Secret>, Arc<Secret>)> {
        let own = |name: &str| self.env.get(name).map(|value| Arc::new(Secret::new(value)));
        let access_key = self.access_key.clone().or_else(|| own("MINIO_ROOT_USER"))?;
        let secret_key = self.secret_key.clone().or_else(|| own("MINIO_ROOT_PASSWORD"))?;
        Some((access_key, secret_key))
    }
}

/// Where the agent of this environment says how it is: on this machine.
pub fn admin_address() -> Result<SocketAddr, Problems> {
    let mut reader = Reader::new(Inputs::of_process(None, None).environment);
    let address = reader.parsed("KESWARDEN_ADMIN_ADDR").unwrap_or(SocketAddr::from(([127, 0, 0, 1], 7374)));
    let (_, problems) = reader.finish();
    let ours =
        problems.into_iter().filter(|problem| problem.name == "KESWARDEN_ADMIN_ADDR").collect::<Vec<_>>();
    // Who listens on all interfaces listens there, whether IPv6 is on or off.
    let host = match address.ip() {
        ip if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        ip => ip,
    };
    if ours.is_empty() { Ok(SocketAddr::new(host, address.port())) } else { Err(Problems(ours)) }
}
