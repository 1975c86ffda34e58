//! KES's own `server-config.yaml` (kes-spec §6.1–6.3): read as KES reads it, with its words for what is wrong, and with a
//! warning for everything that KES would silently ignore.

mod keystore;
mod policies;

use super::{
    Store, everywhere,
    yaml::{self, Node, Reader, Section},
};
use crate::{
    kes::{policy::Policies, routes},
    names::Name,
    secret::Secret,
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// What the file decides.
pub struct KesYaml {
    pub address: SocketAddr,
    pub policies: Policies,
    /// Absent only where the file is read for its key store.
    pub tls: Option<Tls>,
    pub cache: Cache,
    pub routes: routes::Settings,
    pub log: Log,
    /// Keys that must be there before anything is served.
    pub keys: Vec<Name>,
    pub store: Store,
    /// What the key store was configured with: equal means that nothing about it changed.
    pub store_digest: [u8; 32],
    digest: [u8; 32],
    pub warnings: Vec<String>,
}

/// The server's own certificate, and whom it lets in.
#[derive(Clone)]
pub struct Tls {
    pub certificate: PathBuf,
    pub key: PathBuf,
    pub password: Option<Arc<Secret>>,
    /// Client certificates are verified, against `ca` and the system's roots.
    pub verify: bool,
    pub ca: Option<PathBuf>,
}

/// How long keys may be at hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    pub any: Duration,
    pub unused: Duration,
    pub offline: Duration,
}

/// The least severe line of each log, as slog counts: DEBUG is -4, INFO 0, WARN 4, ERROR 8.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Log {
    pub error: i64,
    pub audit: i64,
}

/// What the file is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// `server`: all of it.
    Server,
    /// `run`, `init`, `migrate`: where the keys are, and the policies as far as they can be read.
    KeyStore,
}

// === impl KesYaml ===

impl KesYaml {
    /// A digest of everything that the file decides: equal means that a reload would change nothing.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The files of the server's certificate, whose content counts as the configuration's own.
    pub fn tls_files(&self) -> Vec<PathBuf> {
        let files = self.tls.iter().flat_map(|Tls { certificate, key, ca, .. }| {
            [Some(certificate.clone()), Some(key.clone()), ca.clone()]
        });
        files.flatten().collect()
    }

    /// The files that the key store is opened with; the JWT is read at each login anyway.
    pub fn store_files(&self) -> Vec<PathBuf> {
        let Store::Vault(configs) = &self.store else { return Vec::new() };
        let pair = configs.0.client_certificate.iter();
        let pair = pair.flat_map(|(certificate, key)| [certificate.clone(), key.clone()]);
        configs.0.ca.clone().into_iter().chain(pair).collect()
    }
}

pub(super) type Environment = BTreeMap<String, String>;

/// Reads the file, or says everything that is wrong with it.
pub fn read(path: &Path, environment: &Environment, purpose: Purpose) -> Result<KesYaml, Vec<String>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| vec![format!("open {}: {}", path.display(), words(&error))])?;
    parse(&text, environment, purpose)
}

/// The operating system's words, as Go prints them.
fn words(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}

pub fn parse(text: &str, environment: &Environment, purpose: Purpose) -> Result<KesYaml, Vec<String>> {
    let document = yaml::parse(text).map_err(|error| vec![error])?.ok_or_else(|| vec!["EOF".to_owned()])?;
    let mut reader = Reader::new(environment);
    let mut file = reader.section(Some(&document), "");
    version(&mut reader, file.get("version"));
    // Where only the key store matters, a policy may refer to what only the KES pod knows.
    reader.strict = purpose == Purpose::Server;
    let address = address(&mut reader, file.get("address"));
    let admin = admin(&mut reader, &mut file, purpose);
    let (tls, proxies) = tls(&mut reader, file.get("tls"), &admin, purpose);
    let policies = policies::policies(&mut reader, file.get("policy"), admin, &proxies);
    let cache = cache(&mut reader, file.get("cache"));
    let routes = api(&mut reader, file.get("api"));
    let log = log(&mut reader, file.get("log"));
    let keys = keys(&mut reader, file.get("keys"));
    reader.strict = true;
    let (store, store_digest) = keystore::read(&mut reader, file.get("keystore"));
    let digest = keystore::digest(&mut reader, &document);
    if file.get("root").is_some() {
        reader.warnings.push("root is the old name of admin, and is ignored, as KES does".to_owned());
    }
    reader.done(file);
    let (problems, warnings) = reader.finish();
    match store {
        Some(store) if problems.is_empty() => Ok(KesYaml {
            address,
            policies,
            tls,
            cache,
            routes,
            log,
            keys,
            store,
            store_digest,
            digest,
            warnings,
        }),
        _ => Err(problems),
    }
}

fn version(reader: &mut Reader<'_>, node: Option<&Node>) {
    let Some(node) = node else { return };
    match &node.value {
        yaml::Value::Scalar { text, .. } if matches!(text.expose(), "v1" | "") => {}
        yaml::Value::Scalar { text, .. } => {
            let shown: String = text.expose().chars().take(20).collect();
            reader.problem(format!("edge: invalid server config version '{shown}'"));
        }
        _ => reader.problem(format!("kesconf: invalid config version at line '{}'", node.line)),
    }
}

/// `ip:port`; the address of all interfaces when it is absent.
fn address(reader: &mut Reader<'_>, node: Option<&Node>) -> SocketAddr {
    let text = reader.word(node);
    parse_address(&text).unwrap_or_else(|problem| {
        reader.problem(problem);
        everywhere(PORT)
    })
}

/// KES's own.
const PORT: u16 = 7373;

/// An `ip:port`, `:port` or nothing, as KES takes it from `--addr` and `address`.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let any = everywhere(PORT);
    if text.is_empty() {
        return Ok(any);
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err(format!("address {text}: missing port in address"));
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let ip = match host {
        "" => any.ip(),
        host => host.parse::<IpAddr>().map_err(|_| format!("'{host}' is not a valid IP address"))?,
    };
    let port = port.parse().map_err(|_| format!("address {text}: invalid port"))?;
    Ok(SocketAddr::new(ip, port))
}

fn admin(reader: &mut Reader<'_>, file: &mut Section<'_>, purpose: Purpose) -> String {
    let mut section = reader.section(file.get("admin"), "admin");
    let identity = reader.word(section.get("identity"));
    reader.done(section);
    if identity.is_empty() && purpose == Purpose::Server {
        reader.problem("kesconf: invalid admin identity: no admin identity");
    }
    identity
}

fn tls(
    reader: &mut Reader<'_>,
    node: Option<&Node>,
    admin: &str,
    purpose: Purpose,
) -> (Option<Tls>, Vec<String>) {
    let mut section = reader.section(node, "tls");
    let key = reader.word(section.get("key"));
    let certificate = reader.word(section.get("cert"));
    let password = reader.text(section.get("password")).map(|text| text.text);
    let auth = reader.word(section.get("auth"));
    let ca = reader.word(section.get("ca"));
    let proxies = proxies(reader, section.get("proxy"));
    reader.done(section);
    if purpose == Purpose::KeyStore {
        return (None, Vec::new());
    }
    for (missing, what) in [(key.is_empty(), "private key"), (certificate.is_empty(), "certificate")] {
        if missing {
            reader.problem(format!("kesconf: invalid tls config: no {what}"));
        }
    }
    let verify = match auth.to_ascii_lowercase().as_str() {
        "" | "off" => false,
        "on" => true,
        _ => {
            reader.problem(format!("kesconf: invalid tls config: invalid auth '{{ {auth}}}'"));
            false
        }
    };
    for proxy in &proxies {
        if proxy == admin {
            reader.problem(format!("kesconf: invalid tls proxy: identity '{proxy}' is already admin"));
        }
    }
    if !proxies.is_empty() {
        let warning = "tls.proxy is not applied, as in KES since 2023-10: requests through a proxy are judged by the proxy's own certificate";
        reader.warnings.push(warning.to_owned());
    }
    let some = |path: String| Some(path).filter(|path| !path.is_empty()).map(PathBuf::from);
    let tls = Tls { certificate: certificate.into(), key: key.into(), password, verify, ca: some(ca) };
    (Some(tls), proxies)
}

/// Identities of TLS proxies; the placeholder that KES's own sample has is nobody.
fn proxies(reader: &mut Reader<'_>, node: Option<&Node>) -> Vec<String> {
    let mut section = reader.section(node, "tls.proxy");
    let mut proxies = Vec::new();
    for item in reader.items(section.get("identities")) {
        proxies.push(reader.word(Some(item)));
    }
    let mut header = reader.section(section.get("header"), "tls.proxy.header");
    reader.word(header.get("cert"));
    reader.done(header);
    reader.done(section);
    proxies.retain(|proxy| !proxy.is_empty());
    proxies
}

fn cache(reader: &mut Reader<'_>, node: Option<&Node>) -> Cache {
    let mut section = reader.section(node, "cache");
    let mut expiry = reader.section(section.get("expiry"), "cache.expiry");
    let mut read = |name: &'static str, words: &str, default: u64| {
        let nanoseconds = reader.nanoseconds(expiry.get(name));
        match nanoseconds.map(u64::try_from) {
            None => Duration::from_secs(default),
            Some(Ok(nanoseconds)) => Duration::from_nanos(nanoseconds),
            Some(Err(_)) => {
                let shown = nanoseconds.map(go_text).unwrap_or_default();
                reader.problem(format!("kesconf: invalid {words} '{shown}'"));
                Duration::ZERO
            }
        }
    };
    let cache = Cache {
        any: read("any", "cache expiry", 300),
        unused: read("unused", "cache unused expiry", 30),
        offline: read("offline", "offline cache expiry", 0),
    };
    reader.done(expiry);
    reader.done(section);
    cache
}

/// A number of nanoseconds as Go prints a duration, in its plainest unit.
fn go_text(nanoseconds: i64) -> String {
    let seconds = nanoseconds / 1_000_000_000;
    match nanoseconds % 1_000_000_000 {
        0 if seconds % 3600 == 0 => format!("{}h0m0s", seconds / 3600),
        0 if seconds % 60 == 0 => format!("{}m0s", seconds / 60),
        0 => format!("{seconds}s"),
        _ => format!("{nanoseconds}ns"),
    }
}

fn api(reader: &mut Reader<'_>, node: Option<&Node>) -> routes::Settings {
    /// The routes that KES's documentation lets skip authentication.
    const HARMLESS: &[&str] = &["/version", "/v1/ready", "/v1/status", "/v1/metrics", "/v1/api"];
    let mut routes = routes::Settings::default();
    let entries = node.map_or(&[][..], |node| reader.entries(node, "APIs"));
    for entry in entries {
        let path = entry.name.as_str();
        let mut section = reader.section(Some(&entry.node), &format!("api.{path}"));
        let open = reader.switch(section.get("skip_auth"));
        let timeout = reader.nanoseconds(section.get("timeout"));
        reader.done(section);
        if let Some(timeout) = timeout.filter(|timeout| *timeout < 0) {
            reader.problem(format!("kesconf: invalid timeout '{timeout}' for API '{path}'"));
        }
        let Some(setting) = routes.of_path(path) else {
            let known =
                routes::ROUTES.iter().map(|route| (super::vars::distance(route.path, path), route.path));
            let meant = known.min().map(|(_, path)| format!("; did you mean {path}?")).unwrap_or_default();
            reader.warnings.push(format!("api.{path} is no path of the API, and is ignored{meant}"));
            continue;
        };
        setting.open = open;
        if let Some(timeout) =
            timeout.and_then(|timeout| u64::try_from(timeout).ok()).filter(|timeout| *timeout > 0)
        {
            setting.timeout = Some(Duration::from_nanos(timeout));
        }
        if open && !HARMLESS.contains(&path) {
            reader
                .warnings
                .push(format!("api.{path}.skip_auth: anybody who reaches the port may use this path"));
        }
    }
    routes
}

fn log(reader: &mut Reader<'_>, node: Option<&Node>) -> Log {
    let mut section = reader.section(node, "log");
    let mut level = |name: &'static str| match reader.word(section.get(name)) {
        text if text.is_empty() => 0,
        text => parse_level(&text).unwrap_or_else(|problem| {
            reader.problem(problem);
            0
        }),
    };
    let log = Log { error: level("error"), audit: level("audit") };
    reader.done(section);
    log
}

/// `on`, `off`, a number, or a slog level with an optional offset.
fn parse_level(text: &str) -> Result<i64, String> {
    const LEVELS: [(&str, i64); 4] = [("DEBUG", -4), ("INFO", 0), ("WARN", 4), ("ERROR", 8)];
    let upper = text.trim().to_ascii_uppercase();
    if let Ok(number) = upper.parse() {
        return Ok(number);
    }
    match upper.as_str() {
        "ON" => return Ok(0),
        "OFF" => return Ok(9),
        _ => {}
    }
    for (name, level) in LEVELS {
        match upper.strip_prefix(name) {
            Some("") => return Ok(level),
            Some(suffix) if suffix.starts_with(['+', '-']) => {
                let offset: i64 = suffix
                    .parse()
                    .map_err(|_| format!("kesconf: invalid log level suffix '{suffix}': it is no number"))?;
                return Ok(level.saturating_add(offset));
            }
            _ => {}
        }
    }
    Err(format!("kesconf: invalid log level '{upper}'"))
}

fn keys(reader: &mut Reader<'_>, node: Option<&Node>) -> Vec<Name> {
    let mut keys: Vec<Name> = Vec::new();
    for item in reader.items(node) {
        let mut section = reader.section(Some(item), "keys");
        let name = reader.word(section.get("name"));
        reader.done(section);
        match Name::parse(&name) {
            Err(_) if name.is_empty() && !reader.strict => {}
            Err(error) => reader.problem(format!("kesconf: invalid key config: the name {error}")),
            Ok(name) if keys.contains(&name) => {
                reader
                    .problem(format!("kesconf: invalid key config: key '{name}' is defined multiple times"));
            }
            Ok(name) => keys.push(name),
        }
    }
    keys
}
