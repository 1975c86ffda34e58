//! `keswarden key`: keys of a server, and new keys by hand.

use super::{
    backup,
    client::{self, Client, Remote},
    first, forget,
    ls::{self, Kind, Listing},
    output::{self, Color, Failure, Outcome},
    pin, rescue,
};
use crate::{clock::Clock, crypto, crypto::key_version::KeyVersion, exit, go::json, names::Name};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, Subcommand};
use reqwest::Method;
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
};
use zeroize::Zeroizing;

#[derive(Args)]
pub(super) struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Create keys on the server; with --first, a tenant's first key, straight in the key store
    Create(Creation),
    /// Import a key of 32 bytes
    Import {
        name: String,
        /// The key, in base64
        key: String,
        #[command(flatten)]
        remote: Remote,
    },
    /// Say what the server knows of a key
    Info {
        name: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// When to use colour
        #[arg(long, value_enum, default_value_t = Color::Auto)]
        color: Color,
        #[command(flatten)]
        remote: Remote,
    },
    /// List keys
    Ls(Listing),
    /// Delete keys: what they sealed is lost
    Rm(Names),
    /// Encrypt a message
    Encrypt {
        name: String,
        /// The message, as it is
        message: OsString,
        #[command(flatten)]
        remote: Remote,
    },
    /// Decrypt a ciphertext
    Decrypt {
        name: String,
        /// The ciphertext, in base64
        ciphertext: String,
        /// The context that it was encrypted with, in base64
        context: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Make a data encryption key
    Dek {
        name: String,
        /// A context to bind it to, in base64
        context: Option<String>,
        #[command(flatten)]
        remote: Remote,
    },
    /// Print a whole new key, HMAC key included, in the form in which KES and keswarden store it; asks no
    /// server
    New {
        /// Tell its fingerprint, for this name
        name: Option<String>,
    },
    /// Pin the key that is in the store: from now on no other passes for it; asks no server
    Pin(pin::Options),
    /// Encrypt keys, pins and all, into a file for people outside; asks no server
    Backup(backup::Options),
    /// Put keys of a backup back into the key store, never over others; asks no server
    Restore(backup::RestoreOptions),
    /// Hold a backup against the key store, the pins and the drives; asks no server
    Verify(backup::VerifyOptions),
    /// Put a key that the running agent or the sealed copy has, and the key store has lost, back into the
    /// store; asks no server
    Rescue(rescue::Options),
    /// Let a key that was replaced on purpose pass: forget the former one wherever it is remembered; asks no
    /// server
    Forget(forget::Options),
}

#[derive(Args)]
struct Creation {
    /// Names of keys
    #[arg(required_unless_present = "first")]
    names: Vec<String>,
    /// Make a tenant's first key in the key store of the settings, if nothing shows that there ever was one;
    /// asks no server
    #[arg(long)]
    first: bool,
    /// With --first: do not ask the drives, which are new or never had encryption
    #[arg(long, requires = "first")]
    no_drives: bool,
    /// With --first: KES's own configuration file, the key store of it
    #[arg(long, value_name = "FILE", requires = "first")]
    config: Option<PathBuf>,
    #[command(flatten)]
    remote: Remote,
}

#[derive(Args)]
struct Names {
    /// Names of keys
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    remote: Remote,
}

/// KES's answer to `encrypt`.
#[derive(Deserialize, Serialize)]
struct EncryptAnswer {
    ciphertext: String,
}

/// KES's answer to `decrypt`.
#[derive(Deserialize, Serialize)]
struct DecryptAnswer {
    plaintext: Zeroizing<String>,
}

/// KES's answer to `generate`.
#[derive(Deserialize, Serialize)]
struct GenerateAnswer {
    plaintext: Zeroizing<String>,
    ciphertext: String,
}

/// KES's answer to `describe`.
#[derive(Deserialize, Serialize)]
struct KeyDescription {
    name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    algorithm: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_at: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    created_by: String,
}

pub(super) fn main(options: Options) -> u8 {
    match options.command {
        Command::Create(Creation { names, first: true, no_drives, config, .. }) => {
            first::main(names, config, no_drives)
        }
        Command::Create(Creation { names, remote, .. }) => {
            client::with_client(&remote.connection, |client| create(client, names))
        }
        Command::Import { name, key, remote } => {
            let key = Zeroizing::new(key);
            client::with_client(&remote.connection, |client| import(client, name, key))
        }
        Command::Info { name, json, color, remote } => {
            client::with_client(&remote.connection, |client| info(client, name, json, color))
        }
        Command::Pin(options) => pin::main(options),
        Command::Rescue(options) => rescue::main(options),
        Command::Forget(options) => forget::main(options),
        Command::Backup(options) => backup::backup(options),
        Command::Restore(options) => backup::restore(options),
        Command::Verify(options) => backup::verify(options),
        Command::Ls(listing) => ls::listing(Kind::Keys, listing),
        Command::Rm(Names { names, remote }) => {
            client::with_client(&remote.connection, |client| remove(client, names))
        }
        Command::Encrypt { name, message, remote } => {
            client::with_client(&remote.connection, |client| encrypt(client, name, message))
        }
        Command::Decrypt { name, ciphertext, context, remote } => {
            client::with_client(&remote.connection, |client| decrypt(client, name, ciphertext, context))
        }
        Command::Dek { name, context, remote } => {
            client::with_client(&remote.connection, |client| data_key(client, name, context))
        }
        Command::New { name } => new(name),
    }
}

async fn create(client: Client, names: Vec<String>) -> Outcome {
    for name in names {
        client
            .call(Method::POST, &client::path("key/create", &name), None)
            .await
            .map_err(|reason| format!("failed to create key '{name}': {reason}"))?;
    }
    Ok(())
}

async fn import(client: Client, name: String, key: Zeroizing<String>) -> Outcome {
    let key = base64("key", &key)?;
    let body = Zeroizing::new(format!("{{\"key\":\"{}\",\"cipher\":\"AES256\"}}", *key));
    client
        .call(Method::POST, &client::path("key/import", &name), Some(body))
        .await
        .map_err(|reason| format!("failed to import key '{name}': {reason}"))?;
    Ok(())
}

async fn info(client: Client, name: String, json: bool, color: Color) -> Outcome {
    let failed = |reason: String| format!("failed to describe key '{name}': {reason}");
    let answer = client.get(&client::path("key/describe", &name)).await.map_err(failed)?;
    let key: KeyDescription = answer.json().map_err(failed)?;
    if json {
        return output::print_json(&key);
    }
    let mut rows = vec![("Name", key.name)];
    if !key.algorithm.is_empty() {
        rows.push(("Algorithm", key.algorithm));
    }
    rows.push(("Date", output::date(&key.created_at)));
    if !key.created_by.is_empty() {
        rows.push(("Owner", key.created_by));
    }
    output::print(&output::columns(&rows, color))?;
    if output::is_terminal() { output::print("\n") } else { Ok(()) }
}

async fn remove(client: Client, names: Vec<String>) -> Outcome {
    for name in names {
        client
            .call(Method::DELETE, &client::path("key/delete", &name), None)
            .await
            .map_err(|reason| format!("failed to delete key '{name}': {reason}"))?;
    }
    Ok(())
}

async fn encrypt(client: Client, name: String, message: OsString) -> Outcome {
    let failed = |reason: String| format!("failed to encrypt with key '{name}': {reason}");
    let plaintext = Zeroizing::new(STANDARD.encode(message.as_bytes()));
    let body = Zeroizing::new(format!("{{\"plaintext\":\"{}\"}}", *plaintext));
    let path = client::path("key/encrypt", &name);
    let answer = client.call(Method::POST, &path, Some(body)).await.map_err(failed)?;
    let sealed: EncryptAnswer = answer.json().map_err(failed)?;
    match output::is_terminal() {
        true => output::print(&format!("ciphertext: {}\n", output::plain(&sealed.ciphertext))),
        false => output::print(&output::to_json(&sealed)?),
    }
}

async fn decrypt(client: Client, name: String, ciphertext: String, context: Option<String>) -> Outcome {
    let failed = |reason: String| format!("failed to decrypt with key '{name}': {reason}");
    let ciphertext = base64("ciphertext", &ciphertext)?;
    let context = base64("context", context.as_deref().unwrap_or_default())?;
    let body = format!("{{\"ciphertext\":\"{}\",\"context\":\"{}\"}}", *ciphertext, *context);
    let path = client::path("key/decrypt", &name);
    let answer = client.call(Method::POST, &path, Some(Zeroizing::new(body))).await.map_err(failed)?;
    let opened: DecryptAnswer = answer.json().map_err(failed)?;
    match output::is_terminal() {
        true => output::print(&format!("plaintext: {}\n", output::plain(&opened.plaintext))),
        false => output::print(&Zeroizing::new(output::to_json(&opened)?)),
    }
}

async fn data_key(client: Client, name: String, context: Option<String>) -> Outcome {
    let failed = |reason: String| format!("failed to generate a data key with key '{name}': {reason}");
    let context = base64("context", context.as_deref().unwrap_or_default())?;
    let body = Zeroizing::new(format!("{{\"context\":\"{}\"}}", *context));
    let path = client::path("key/generate", &name);
    let answer = client.call(Method::POST, &path, Some(body)).await.map_err(failed)?;
    let made: GenerateAnswer = answer.json().map_err(failed)?;
    if !output::is_terminal() {
        return output::print(&Zeroizing::new(output::to_json(&made)?));
    }
    let (plaintext, ciphertext) = (output::plain(&made.plaintext), output::plain(&made.ciphertext));
    output::print(&format!("plaintext:  {plaintext}\nciphertext: {ciphertext}\n"))
}

/// Base64 as Go reads base64, encoded anew, so that any input is valid in JSON.
fn base64(what: &str, text: &str) -> Result<Zeroizing<String>, Failure> {
    let bytes = json::base64(text.as_bytes()).ok_or_else(|| format!("the {what} is not base64"))?;
    Ok(Zeroizing::new(STANDARD.encode(&*bytes)))
}

fn new(name: Option<String>) -> u8 {
    let name = match name.as_deref().map(Name::parse).transpose() {
        Ok(name) => name,
        Err(error) => {
            eprintln!("keswarden: the key name {error}");
            return exit::SETTINGS;
        }
    };
    let now = Clock::system().timestamp();
    let key = KeyVersion::generate(crypto::Kind::of_this_machine(), now, String::new());
    let text = key.to_text();
    if let Some(name) = name {
        eprintln!(
            "the command for a tenant's first key is `keswarden key create --first {name}`, which checks that there never was one"
        );
        eprintln!(
            "data that this key seals open with no other key; its fingerprint is {}",
            key.key.fingerprint()
        );
    }
    let mut out = std::io::stdout().lock();
    // `bao kv put NAME=-` stores its input as it is, so a line end is printed on a terminal only.
    let end = if out.is_terminal() { "\n" } else { "" };
    match write!(out, "{}{end}", text.expose()).and_then(|()| out.flush()) {
        Ok(()) => exit::DONE,
        Err(error) => {
            eprintln!("keswarden: cannot print the key: {error}");
            exit::OS
        }
    }
}
