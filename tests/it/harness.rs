//! What every test starts with: keswarden in this process ([`App`]) or as a process of its own ([`Agent`], [`Server`]), real peers
//! ([`Bao`], [`Minio`], [`Mc`]), a tenant of all of them ([`Tenant`]), and a Vault that answers by a script ([`ScriptedVault`]).
//!
//! Waiting is [`eventually`]: for a condition, until a deadline.

#[path = "../peers/mod.rs"]
mod peers;

mod app;
mod client;
mod gate;
pub mod http2;
pub mod scripted_vault;
mod server;
mod tenant;

pub use self::{
    app::App,
    client::{Client, Reply, config_of, health, metric, minio_pair, pair_of},
    gate::{TOLD, names_its_cause, put_key},
    peers::{
        Agent, Bao, Holder, IN_PROCESS, Mc, Minio, Process, Proxy, SOON, Var, Wire, answers, eventually,
        faketime, finish, free_port, http_get, policy, succeeded, text, three_nodes,
    },
    scripted_vault::ScriptedVault,
    server::{Launch, QUIET, Server, folder_with_one_key, make_certificate, server_yaml, vault_yaml},
    tenant::Tenant,
};

use keswarden::{
    clock::Clock,
    config::Inputs,
    crypto::{Kind, key_version::KeyVersion},
    identity::ApiKey,
};
use std::{ffi::OsString, path::Path};

/// The key of most tests.
pub const KEY: &str = "my-key";

/// Settings as text, over what every test needs.
pub fn environment(run_dir: &Path, more: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    let run_dir = run_dir.to_str().unwrap().to_owned();
    let mut environment = vec![
        ("KESWARDEN_FS_DIR".to_owned(), "/nonexistent".to_owned()),
        ("KESWARDEN_KEY_NAME".to_owned(), KEY.to_owned()),
        ("KESWARDEN_RUN_DIR".to_owned(), run_dir),
        ("KESWARDEN_ADDR".to_owned(), "127.0.0.1:0".to_owned()),
        ("KESWARDEN_ADMIN_ADDR".to_owned(), "127.0.0.1:0".to_owned()),
        ("KESWARDEN_AUDIT".to_owned(), "off".to_owned()),
    ];
    for (name, value) in more {
        environment.retain(|(other, _)| other != name);
        environment.push(((*name).to_owned(), (*value).to_owned()));
    }
    environment.into_iter().map(|(name, value)| (name.into(), value.into())).collect()
}

pub fn inputs(run_dir: &Path, more: &[(&str, &str)]) -> Inputs {
    Inputs { environment: environment(run_dir, more), config: None, key: None }
}

/// The text of a fresh key, as the store holds it.
pub fn key_text() -> String {
    KeyVersion::generate(Kind::Aes256, jiff::Timestamp::UNIX_EPOCH, "me".to_owned())
        .to_text()
        .expose()
        .to_owned()
}

/// The fingerprint of a key's text.
pub fn fingerprint(text: &str) -> String {
    KeyVersion::parse(text.as_bytes()).unwrap().key.fingerprint()
}

/// A fixed API key, which may do everything that a server's file lets its admin do.
pub fn admin_key() -> ApiKey {
    api_key(0xad)
}

/// A fixed API key.
pub fn api_key(seed: u8) -> ApiKey {
    let bytes = [&[0][..], &[seed; 32]].concat();
    ApiKey::parse(&base64(&bytes)).unwrap()
}

/// Seconds since 1970.
pub fn now() -> i64 {
    Clock::system().unix_seconds() as i64
}

pub fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Runs one future on a runtime that every test of this binary shares, so that connections can be reused.
pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> = std::sync::LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    RUNTIME.block_on(work)
}

/// A port on which nobody listens.
pub fn closed_port() -> u16 {
    free_port()
}
