//! KES's own `server-config.yaml`: the key store and the policies of it, with `${NAME}` replaced from the environment.

use super::{
    Store,
    parse::{duration, vault_path},
};
use crate::{
    identity::Identity,
    kes::policy::{self, Policies, Policy},
    keystore::{
        self,
        vault::{Transit, Version},
    },
    secret::Secret,
    vault::{
        self,
        login::{Login, Source},
    },
};
use serde::Deserialize;
use serde_json::Value;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

/// What the file decides.
#[derive(Default)]
pub struct KesYaml {
    pub store: Option<Store>,
    pub policies: Policies,
    pub warnings: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    version: Option<String>,
    admin: Admin,
    policy: BTreeMap<String, PolicyEntry>,
    keystore: Option<BTreeMap<String, Value>>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Admin {
    identity: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PolicyEntry {
    allow: Vec<String>,
    deny: Vec<String>,
    identities: Vec<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FsEntry {
    path: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct VaultEntry {
    endpoint: String,
    engine: Option<String>,
    version: Option<String>,
    namespace: Option<String>,
    prefix: Option<String>,
    transit: Option<TransitEntry>,
    approle: Option<AppRoleEntry>,
    kubernetes: Option<KubernetesEntry>,
    tls: TlsEntry,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TransitEntry {
    engine: Option<String>,
    key: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct AppRoleEntry {
    engine: Option<String>,
    namespace: Option<String>,
    id: String,
    secret: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KubernetesEntry {
    engine: Option<String>,
    namespace: Option<String>,
    role: String,
    jwt: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TlsEntry {
    key: Option<String>,
    cert: Option<String>,
    ca: Option<String>,
}

type Environment = BTreeMap<String, String>;

/// Reads the file, or says everything that is wrong with it.
pub fn read(path: &Path, environment: &Environment) -> Result<KesYaml, Vec<String>> {
    let text = std::fs::read_to_string(path).map_err(|error| vec![format!("cannot be read: {error}")])?;
    parse(&text, environment)
}

pub fn parse(text: &str, environment: &Environment) -> Result<KesYaml, Vec<String>> {
    let mut problems = Vec::new();
    // The parser's own text is not shown whole: it may quote the line, which may hold a secret.
    let unreadable = |error: &serde_saphyr::Error| {
        let at = error.location().map(|at| format!(" at line {}", at.line())).unwrap_or_default();
        vec![format!("is not YAML as KES reads it{at}")]
    };
    let mut tree: Value = serde_saphyr::from_str(text).map_err(|error| unreadable(&error))?;
    substitute(&mut tree, environment, &mut problems);
    let file: File = match tree {
        Value::Null => return Err(vec!["is empty".to_owned()]),
        tree => serde_json::from_value(tree)
            .map_err(|error| vec![format!("has a value of the wrong kind: {}", shape(&error))])?,
    };
    if file.version.as_deref().is_some_and(|version| version != "v1") {
        problems.push("version: is not v1".to_owned());
    }
    let mut warnings = Vec::new();
    let policies = policies(&file, &mut problems, &mut warnings);
    let store = file.keystore.and_then(|keystore| store(keystore, &mut problems));
    if problems.is_empty() { Ok(KesYaml { store, policies, warnings }) } else { Err(problems) }
}

/// The error's kind and place, without the value that it quotes.
fn shape(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let expected = text.split_once("expected ").map(|(_, expected)| expected).unwrap_or("another type");
    format!("expected {expected}")
}

/// A scalar that is `${NAME}` as a whole becomes the variable's value.
fn substitute(tree: &mut Value, environment: &Environment, problems: &mut Vec<String>) {
    match tree {
        Value::String(text) => {
            let trimmed = text.trim();
            if let Some(name) = trimmed.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')) {
                match environment.get(name.trim()) {
                    Some(value) => *text = value.clone(),
                    None => {
                        problems.push(format!("refers to the variable '{}', which is not set", name.trim()))
                    }
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| substitute(item, environment, problems)),
        Value::Object(members) => {
            members.values_mut().for_each(|member| substitute(member, environment, problems))
        }
        _ => {}
    }
}

fn policies(file: &File, problems: &mut Vec<String>, warnings: &mut Vec<String>) -> Policies {
    let mut policies = Policies { admin: file.admin.identity.clone(), ..Policies::default() };
    for (name, entry) in &file.policy {
        if !policy::is_policy_name(name) {
            problems.push(format!("policy.{name}: is no policy name"));
        }
        let policy = Policy { allow: entry.allow.clone(), deny: entry.deny.clone() };
        for pattern in policy.ineffective() {
            warnings.push(format!("policy.{name}: the pattern {pattern:?} has a wildcard inside, which KES takes literally: it matches nothing"));
        }
        for identity in &entry.identities {
            match Identity::parse(identity) {
                Ok(known) if policies.assigned.insert(known.clone(), name.clone()).is_some() => {
                    problems.push(format!("policy.{name}.identities: {identity} has a policy already"));
                }
                Ok(_) => {}
                Err(error) => warnings.push(format!("policy.{name}.identities: {identity:?} {error}")),
            }
        }
        policies.policies.insert(name.clone(), policy);
    }
    policies
}

fn store(keystore: BTreeMap<String, Value>, problems: &mut Vec<String>) -> Option<Store> {
    let mut stores = keystore.into_iter().filter(|(_, value)| !value.is_null());
    let (kind, value) = stores.next()?;
    if let Some((other, _)) = stores.next() {
        problems.push(format!("keystore: names both {kind} and {other}; the keys are in one place only"));
        return None;
    }
    match kind.as_str() {
        "fs" => {
            let FsEntry { path } = entry(value, "keystore.fs", problems)?;
            if path.is_empty() {
                problems.push("keystore.fs.path: is missing".to_owned());
            }
            Some(Store::Fs(path.into()))
        }
        "vault" => vault(entry(value, "keystore.vault", problems)?, problems),
        other => {
            problems.push(format!("keystore.{other}: is not implemented; fs and vault are"));
            None
        }
    }
}

fn entry<T: serde::de::DeserializeOwned>(value: Value, path: &str, problems: &mut Vec<String>) -> Option<T> {
    serde_json::from_value(value).map_err(|error| problems.push(format!("{path}: {}", shape(&error)))).ok()
}

fn vault(entry: VaultEntry, problems: &mut Vec<String>) -> Option<Store> {
    let VaultEntry { endpoint, engine, version, namespace, prefix, transit, approle, kubernetes, tls } =
        entry;
    let before = problems.len();
    let mut problem = |text: &str| problems.push(format!("keystore.vault.{text}"));
    let address = endpoint.trim().trim_end_matches('/').to_owned();
    if !url::Url::parse(&address).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
    {
        problem("endpoint: is no address such as https://vault:8200");
    }
    let version = match version.as_deref() {
        None | Some("" | "v1") => Version::V1,
        Some("v2") => Version::V2,
        Some(_) => {
            problem("version: is neither v1 nor v2");
            Version::V1
        }
    };
    let mut path = |name: &str, value: Option<String>, default: &str| {
        let value = value.filter(|value| !value.is_empty());
        vault_path(value.as_deref().unwrap_or(default)).unwrap_or_else(|| {
            problem(&format!("{name}: is no path"));
            String::new()
        })
    };
    let mount = path("engine", engine, "kv");
    let prefix = match prefix.filter(|prefix| !prefix.trim_matches('/').is_empty()) {
        None => String::new(),
        prefix => path("prefix", prefix, ""),
    };
    let transit = transit.map(|TransitEntry { engine, key }| Transit {
        mount: path("transit.engine", engine, "transit"),
        key: path("transit.key", Some(key), ""),
    });
    let secret = |text: String| Source::Value(Arc::new(Secret::new(text)));
    let (login, auth_namespace) = match (approle, kubernetes) {
        (Some(AppRoleEntry { engine, namespace, id, secret: secret_id }), None) => {
            let mount = path("approle.engine", engine, "approle");
            for (name, value) in [("approle.id", &id), ("approle.secret", &secret_id)] {
                if value.trim().is_empty() {
                    problem(&format!("{name}: is missing"));
                }
            }
            (Login::AppRole { mount, role_id: secret(id), secret_id: secret(secret_id) }, namespace)
        }
        (None, Some(KubernetesEntry { engine, namespace, role, jwt })) => {
            let mount = path("kubernetes.engine", engine, "kubernetes");
            let jwt = if jwt.contains('/') { Source::File(jwt.into()) } else { secret(jwt) };
            (Login::Kubernetes { mount, role, jwt }, namespace)
        }
        (None, None) => {
            problem("approle: is missing, and so is kubernetes: as whom to log in?");
            return None;
        }
        (Some(_), Some(_)) => {
            problem("approle: and kubernetes are both there; one way to log in");
            return None;
        }
    };
    let TlsEntry { key, cert, ca } = tls;
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    let config = vault::Config {
        address,
        ca: some(ca).map(Into::into),
        client_certificate: some(cert).zip(some(key)).map(|(cert, key)| (cert.into(), key.into())),
        namespace: some(namespace),
        auth_namespace: some(auth_namespace),
        timeout: duration("5s").unwrap_or(Duration::from_secs(5)),
        login,
    };
    let store = keystore::vault::Config { mount, version: Some(version), prefix, transit };
    (problems.len() == before).then(|| Store::Vault(Box::new((config, store))))
}
