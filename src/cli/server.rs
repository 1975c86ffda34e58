//! `keswarden server`: KES's own server command, flag for flag, so that only the image of a deployment must
//! change.

use super::{block_on, serve};
use crate::{
    app::{self, Deps},
    config::{
        Inputs,
        server::{self, Refused, ServerSettings},
    },
    identity::ApiKey,
    keystore::memory::MemoryStore,
    telemetry,
    tls::mint::RunDir,
    version,
};
use clap::Args;
use std::{
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Args)]
pub(super) struct Options {
    /// The address of the server (default `[::]:7373`, which is all interfaces, IPv4 and IPv6)
    #[arg(long, value_name = "IP:PORT")]
    addr: Option<String>,
    /// The server's configuration file
    #[arg(long, value_name = "FILE", conflicts_with = "dev")]
    config: Option<PathBuf>,
    /// Development mode: keys in memory, lost at the end, and an API key made on the spot
    #[arg(long)]
    dev: bool,
    /// Remember no key: a wrong one under an old name is served after a restart
    #[arg(long)]
    no_memory: bool,
    /// Ignored: the file says it
    #[arg(long, value_name = "FILE")]
    key: Option<PathBuf>,
    /// Ignored: the file says it
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Ignored: the file says it
    #[arg(long, value_name = "on|off")]
    auth: Option<String>,
}

/// The exit code of any failure, as in KES.
const FAILED: u8 = 1;

pub(super) fn main(options: Options) -> u8 {
    let ignored = [("key", options.key.is_some()), ("cert", options.cert.is_some())];
    for (flag, given) in ignored.into_iter().chain([("auth", options.auth.is_some())]) {
        if given {
            eprintln!("Warning: '--{flag}' is ignored: the configuration file says it");
        }
    }
    let inputs = Inputs::of_process(None, None);
    if options.dev {
        return dev(inputs, options.addr.as_deref());
    }
    let path = options.config.unwrap_or_default();
    match server::load(inputs, path, options.addr.as_deref()) {
        Ok(mut settings) => {
            if options.no_memory {
                settings.own.memory.dirs.clear();
            }
            start(settings, Deps::default(), None)
        }
        Err(refused) => failed(&refused),
    }
}

fn failed(Refused(problems): &Refused) -> u8 {
    for problem in problems {
        eprintln!("Error: {problem}");
    }
    FAILED
}

fn start(mut settings: ServerSettings, deps: Deps, api_key: Option<&ApiKey>) -> u8 {
    let own = &mut settings.own;
    let level = if own.log_is_set { own.log } else { telemetry::Level::of_slog(settings.first.log.error) };
    telemetry::init(own.log_format, level);
    if settings.first.log.audit > 0 {
        own.kes.audit = crate::kes::audit::Output::Off;
    }
    for warning in own.warnings.iter().chain(&settings.first.warnings) {
        tracing::warn!("{warning}");
    }
    banner(&settings, api_key);
    // Printed at any log level: `error: off` must not hide why the server ended.
    let build = || app::build_server(settings, deps).inspect_err(|stopped| eprintln!("Error: {stopped}"));
    let code = block_on(serve(build, |_| {}, None));
    if code == 0 {
        // On a thread of its own: a reader of stdout that has stopped must not delay the exit.
        if let Ok(out) = telemetry::Lines::to_stdout("goodbye") {
            let _ = out.send(b"\n=> Stopping server... Goodbye.\n".to_vec());
        }
    }
    code.min(FAILED)
}

/// Prints what is started on standard output, for people. No known program reads KES's layout.
fn banner(settings: &ServerSettings, api_key: Option<&ApiKey>) {
    let admin = match settings.first.policies.admin.as_str() {
        hash if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => hash,
        _ => "<disabled>",
    };
    println!("{:<12}keswarden {} commit={}", "Version", version::VERSION, version::COMMIT);
    println!("{:<12}Apache-2.0", "License");
    println!("{:<12}https://{}", "API", settings.address);
    println!("{:<12}{admin}", "Admin");
    if let Some(api_key) = api_key {
        println!("{:<12}{}", "API Key", api_key.to_text().expose());
    }
    println!("{:<12}error=stderr audit=stdout", "Logs");
}

/// Runs the development mode: keys in memory, a fresh certificate, and a fresh API key of the admin.
fn dev(inputs: Inputs, address: Option<&str>) -> u8 {
    let api_key = ApiKey::generate();
    let dir = match prepare(&api_key, address) {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("Error: cannot set up the development mode: {error}");
            return FAILED;
        }
    };
    let deps = Deps { store: Some(Arc::new(MemoryStore::new())), clock: None };
    let code = match server::load(inputs, dir.join(CONFIG_FILE), address) {
        Ok(mut settings) => {
            // Keys that end with the process are not remembered.
            settings.own.memory.dirs.clear();
            start(settings, deps, Some(&api_key))
        }
        Err(refused) => failed(&refused),
    };
    let _ = fs::remove_dir_all(&dir);
    code
}

/// The configuration file's name in the directory of the development mode.
const CONFIG_FILE: &str = "server-config.yaml";

/// Makes a directory with a certificate and a configuration, for the life of the server.
fn prepare(api_key: &ApiKey, address: Option<&str>) -> io::Result<PathBuf> {
    let mut name = [0; 8];
    crate::secret::fill_random(&mut name);
    let dir = std::env::temp_dir().join(format!("keswarden-{}", crate::secret::hex(&name)));
    fs::DirBuilder::new().mode(0o700).create(&dir)?;
    let host = address.and_then(|address| address.parse::<std::net::SocketAddr>().ok());
    let host = host.map(|address| address.ip()).filter(|ip| !ip.is_unspecified());
    let names: Vec<_> = host.iter().map(ToString::to_string).collect();
    let now = crate::clock::unix(crate::clock::Clock::system().wall()) as i64;
    RunDir::new(dir.clone(), &names).ensure(now).map_err(io::Error::other)?;
    fs::write(dir.join(CONFIG_FILE), configuration(&dir, api_key))?;
    Ok(dir)
}

fn configuration(dir: &Path, api_key: &ApiKey) -> String {
    let path = |file: &str| serde_json::Value::from(dir.join(file).display().to_string());
    format!(
        "version: v1\nadmin: {{ identity: {} }}\ntls: {{ key: {}, cert: {} }}\nkeystore: {{ fs: {{ path: {} }} }}\n",
        api_key.identity(),
        path("server.key"),
        path("server.crt"),
        path("keys"),
    )
}
