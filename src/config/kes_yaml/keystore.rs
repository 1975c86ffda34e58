//! The `keystore` section: exactly one of the stores that KES knows, of which `fs` and `vault` are implemented.

use super::super::{
    Store,
    yaml::{Node, Reader, Section, Value},
};
use crate::{
    keystore::{
        self,
        vault::{Transit, Version},
    },
    names::vault_path,
    secret::Secret,
    vault::{
        self,
        login::{Login, Source},
    },
};
use sha2::{Digest, Sha256};
use std::{path::PathBuf, sync::Arc, time::Duration};

/// The bound of one request to Vault; KES's own is 60 s, which is longer than any of its clients waits.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What KES can keep keys in, and this program cannot.
const OTHERS: &[&str] = &["fortanix", "gemalto", "gcp", "aws", "azure", "entrust"];

/// The store, and a digest of everything that decides it.
pub(super) fn read(reader: &mut Reader<'_>, node: Option<&Node>) -> (Option<Store>, [u8; 32]) {
    let mut section = reader.section(node, "keystore");
    let (fs, vault) = (section.get("fs"), section.get("vault"));
    // Parsed by KES, and no key store for it.
    section.get("kes");
    let others: Vec<_> = OTHERS.iter().filter(|name| section.get(name).is_some()).collect();
    reader.done(section);
    let count = usize::from(fs.is_some()) + usize::from(vault.is_some()) + others.len();
    let store = match (fs, vault, others.first()) {
        _ if count > 1 => {
            reader.problem("kesconf: invalid keystore config: more than once keystore specified");
            None
        }
        (Some(fs), ..) => read_fs(reader, fs),
        (_, Some(vault), _) => read_vault(reader, vault),
        (_, _, Some(other)) => {
            reader.problem(format!(
                "keystore.{other} is not implemented by keswarden: fs and vault are; move the keys with `kes migrate` first"
            ));
            None
        }
        _ => {
            reader.problem("kesconf: no keystore specified");
            None
        }
    };
    let digest = node.map_or([0; 32], |node| digest(reader, node));
    (store, digest)
}

/// A digest of everything below a node, with references replaced.
pub(super) fn digest(reader: &mut Reader<'_>, node: &Node) -> [u8; 32] {
    let mut digest = Sha256::new();
    add(reader, node, &mut digest);
    digest.finalize().into()
}

/// Everything below a node, references replaced, into a digest that equals another only for the same configuration.
fn add(reader: &mut Reader<'_>, node: &Node, digest: &mut Sha256) {
    let mut part = |kind: u8, bytes: &[u8]| {
        digest.update([kind]);
        digest.update((bytes.len() as u64).to_be_bytes());
        digest.update(bytes);
    };
    match &node.value {
        Value::Null => part(0, b""),
        Value::Scalar { .. } => {
            // What is missing was reported when it was read.
            let (problems, warnings) = (reader.problems.len(), reader.warnings.len());
            let text = reader.text(Some(node));
            reader.problems.truncate(problems);
            reader.warnings.truncate(warnings);
            part(1, text.map_or(Arc::default(), |text| text.text).expose().as_bytes());
        }
        Value::List(items) => {
            part(2, &items.len().to_be_bytes());
            items.iter().for_each(|item| add(reader, item, digest));
        }
        Value::Map(entries) => {
            part(3, &entries.len().to_be_bytes());
            for entry in entries {
                digest.update((entry.name.len() as u64).to_be_bytes());
                digest.update(&entry.name);
                add(reader, &entry.node, digest);
            }
        }
    }
}

fn read_fs(reader: &mut Reader<'_>, node: &Node) -> Option<Store> {
    let mut section = reader.section(Some(node), "keystore.fs");
    let path = reader.word(section.get("path"));
    reader.done(section);
    if path.is_empty() {
        reader.problem("kesconf: invalid fs keystore: no path specified");
        return None;
    }
    Some(Store::Fs(path.into()))
}

fn invalid(reader: &mut Reader<'_>, what: &str) {
    reader.problem(format!("kesconf: invalid vault keystore: {what}"));
}

fn read_vault(reader: &mut Reader<'_>, node: &Node) -> Option<Store> {
    let before = reader.problems.len();
    let mut section = reader.section(Some(node), "keystore.vault");
    let address = endpoint(reader, &mut section);
    let mount = path(reader, &mut section, "engine", "kv");
    let version = version(reader, &mut section);
    let namespace = optional(reader, &mut section, "namespace");
    let prefix = match section.get("prefix") {
        node if reader.word(node).trim_matches('/').is_empty() => String::new(),
        _ => path(reader, &mut section, "prefix", ""),
    };
    let transit = transit(reader, section.get("transit"));
    let login = login(reader, &mut section);
    let (ca, client_certificate) = tls(reader, section.get("tls"));
    let mut status = reader.section(section.get("status"), "keystore.vault.status");
    reader.nanoseconds(status.get("ping"));
    reader.done(status);
    reader.done(section);
    let (login, auth_namespace) = login?;
    if reader.problems.len() > before {
        return None;
    }
    let config = vault::Config {
        addresses: vec![address.clone()],
        address,
        ca,
        client_certificate,
        namespace,
        auth_namespace,
        timeout: TIMEOUT,
        login,
        state_dir: None,
    };
    let store = keystore::vault::Config { mount, version: Some(version), prefix, transit };
    Some(Store::Vault(Box::new((config, store))))
}

fn endpoint(reader: &mut Reader<'_>, section: &mut Section<'_>) -> String {
    let address = reader.word(section.get("endpoint")).trim().trim_end_matches('/').to_owned();
    let usable =
        url::Url::parse(&address).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    match usable {
        true => {}
        false if address.is_empty() => invalid(reader, "no endpoint specified"),
        false => invalid(reader, "the endpoint is no address such as https://vault:8200"),
    }
    address
}

/// A path below Vault's root; stray slashes are dropped.
fn path(reader: &mut Reader<'_>, section: &mut Section<'_>, name: &'static str, default: &str) -> String {
    let text = reader.word(section.get(name));
    let text = if text.is_empty() { default } else { &text };
    vault_path(text).unwrap_or_else(|| {
        let shown = section.path_of(name);
        invalid(reader, &format!("{shown} is no path: letters, digits and -_. between single slashes"));
        String::new()
    })
}

fn optional(reader: &mut Reader<'_>, section: &mut Section<'_>, name: &'static str) -> Option<String> {
    Some(reader.word(section.get(name))).filter(|text| !text.is_empty())
}

fn version(reader: &mut Reader<'_>, section: &mut Section<'_>) -> Version {
    match reader.word(section.get("version")).as_str() {
        "" | "v1" => Version::V1,
        "v2" => Version::V2,
        other => {
            let shown: String = other.chars().take(20).collect();
            reader.problem(format!("vault: invalid engine API version '{shown}'"));
            Version::V1
        }
    }
}

fn transit(reader: &mut Reader<'_>, node: Option<&Node>) -> Option<Transit> {
    let mut section = reader.section(Some(node?), "keystore.vault.transit");
    let mount = path(reader, &mut section, "engine", "transit");
    let key = match reader.word(section.get("key")).is_empty() {
        true => {
            invalid(reader, "invalid transit config: no key name specified");
            String::new()
        }
        false => path(reader, &mut section, "key", ""),
    };
    reader.done(section);
    Some(Transit { mount, key })
}

/// Exactly one way to log in, and its namespace.
fn login(reader: &mut Reader<'_>, section: &mut Section<'_>) -> Option<(Login, Option<String>)> {
    // An empty section is as good as none, for KES.
    let approle = reader.section(section.get("approle"), "keystore.vault.approle");
    let kubernetes = reader.section(section.get("kubernetes"), "keystore.vault.kubernetes");
    match (approle.is_empty(), kubernetes.is_empty()) {
        (true, true) => {
            invalid(reader, "no authentication method specified");
            None
        }
        (false, false) => {
            invalid(reader, "more than one authentication method specified");
            None
        }
        (false, true) => by_approle(reader, approle),
        (true, false) => by_kubernetes(reader, kubernetes),
    }
}

/// A secret that must be there; a reference that leads nowhere was reported as that.
fn required(reader: &mut Reader<'_>, node: Option<&Node>, missing: &str) -> Option<Arc<Secret>> {
    let before = reader.problems.len();
    let text = reader.text(node).map(|text| text.text).filter(|text| !text.expose().is_empty());
    if text.is_none() && reader.problems.len() == before {
        invalid(reader, missing);
    }
    text
}

fn by_approle(reader: &mut Reader<'_>, mut section: Section<'_>) -> Option<(Login, Option<String>)> {
    let mount = path(reader, &mut section, "engine", "approle");
    let namespace = optional(reader, &mut section, "namespace");
    let id = required(reader, section.get("id"), "invalid approle config: no approle ID specified");
    let secret =
        required(reader, section.get("secret"), "invalid approle config: no approle secret specified");
    if section.get("retry").is_some() {
        reader.warnings.push("keystore.vault.approle.retry is ignored, as KES does".to_owned());
    }
    reader.done(section);
    let (role_id, secret_id) = (Source::Value(id?), Source::Value(secret?));
    Some((Login::AppRole { mount, role_id, secret_id }, namespace))
}

fn by_kubernetes(reader: &mut Reader<'_>, mut section: Section<'_>) -> Option<(Login, Option<String>)> {
    let mount = path(reader, &mut section, "engine", "kubernetes");
    let namespace = optional(reader, &mut section, "namespace");
    let role = reader.word(section.get("role"));
    let jwt = required(reader, section.get("jwt"), "invalid kubernetes config: no JWT specified");
    reader.done(section);
    let jwt = jwt?;
    let jwt = match jwt.expose() {
        file if file.contains('/') => {
            if let Err(error) = std::fs::File::open(file) {
                let words = super::words(&error);
                reader.problem(format!(
                    "kesconf: failed to read vault kubernetes JWT from '{file}': open {file}: {words}"
                ));
            }
            Source::File(file.into())
        }
        _ => Source::Value(jwt),
    };
    Some((Login::Kubernetes { mount, role, jwt }, namespace))
}

type ClientFiles = (Option<PathBuf>, Option<(PathBuf, PathBuf)>);

fn tls(reader: &mut Reader<'_>, node: Option<&Node>) -> ClientFiles {
    let mut section = reader.section(node, "keystore.vault.tls");
    let key = optional(reader, &mut section, "key");
    let certificate = optional(reader, &mut section, "cert");
    let ca = optional(reader, &mut section, "ca");
    reader.done(section);
    match (&certificate, &key) {
        (None, Some(_)) => invalid(reader, "invalid tls config: no TLS certificate provided"),
        (Some(_), None) => invalid(reader, "invalid tls config: no TLS private key provided"),
        _ => {}
    }
    let pair = certificate.zip(key).map(|(certificate, key)| (certificate.into(), key.into()));
    (ca.map(PathBuf::from), pair)
}
