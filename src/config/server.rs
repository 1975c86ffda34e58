//! The settings of `keswarden server`: KES's own file, KES's flags over it, and ours for what KES does not know.

use super::{
    Inputs, MemorySettings, Problems, everywhere, kes_config,
    kes_yaml::{self, KesYaml, Purpose},
    memory,
    parse::Reader,
};
use crate::{kes, telemetry, verifier};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// Everything that was decided before the server starts.
pub struct ServerSettings {
    pub own: Own,
    pub address: SocketAddr,
    pub file: ConfigFile,
    /// What the file says now.
    pub first: KesYaml,
}

/// KES's file, to be read again.
#[derive(Clone)]
pub struct ConfigFile {
    pub path: PathBuf,
    environment: BTreeMap<String, String>,
}

/// What is wrong, in KES's words, or in ours for our own settings.
#[derive(Debug)]
pub struct Refused(pub Vec<String>);

// === impl ConfigFile ===

impl ConfigFile {
    /// Reads the file as it is now.
    pub fn read(&self) -> Result<KesYaml, Vec<String>> {
        kes_yaml::read(&self.path, &self.environment, Purpose::Server)
    }
}

/// Our own settings, apart from any file: what `server` and `server --dev` share.
pub struct Own {
    /// Wins over KES's file where it is set.
    pub log: telemetry::Level,
    pub log_is_set: bool,
    pub log_format: telemetry::Format,
    /// Health and metrics; `admin_demanded` when the operator said where, so that it must work.
    pub admin_address: SocketAddr,
    pub admin_demanded: bool,
    pub kes: kes::Config,
    pub memory: MemorySettings,
    pub verifier: verifier::Config,
    pub gate_timeout: Option<Duration>,
    pub drain_timeout: Duration,
    /// Where one process leaves its login to the next; nowhere unless the operator says where.
    pub run_dir: Option<PathBuf>,
    pub warnings: Vec<String>,
    environment: BTreeMap<String, String>,
}

/// Reads our own settings, beside KES's file at `path`.
pub fn own(inputs: Inputs, path: &Path) -> Result<Own, Refused> {
    let mut reader = Reader::new(inputs.environment);
    let run_dir = reader.path("KESWARDEN_RUN_DIR");
    let admin = reader.parsed("KESWARDEN_ADMIN_ADDR");
    let log = reader.parsed("KESWARDEN_LOG");
    let interval = reader.interval("KESWARDEN_VERIFY_INTERVAL");
    let log_format = reader.parsed_or_default("KESWARDEN_LOG_FORMAT");
    let own = Own {
        log: log.unwrap_or_default(),
        log_is_set: log.is_some(),
        log_format,
        admin_address: admin.unwrap_or(everywhere(7374)),
        admin_demanded: admin.is_some(),
        kes: kes_config(&mut reader, log_format, interval, None),
        memory: memory::of_server(&mut reader, run_dir.as_deref(), path),
        verifier: verifier::Config { interval },
        gate_timeout: reader.duration("KESWARDEN_GATE_TIMEOUT"),
        drain_timeout: reader.duration_or_default("KESWARDEN_DRAIN_TIMEOUT"),
        run_dir,
        warnings: Vec::new(),
        environment: reader.environment().clone(),
    };
    let (warnings, problems) = reader.finish();
    if problems.is_empty() { Ok(Own { warnings, ..own }) } else { Err(Refused::from(Problems(problems))) }
}

/// Reads everything for `server --config`.
pub fn load(inputs: Inputs, path: PathBuf, address: Option<&str>) -> Result<ServerSettings, Refused> {
    let own = own(inputs, &path)?;
    let file = ConfigFile { path, environment: own.environment.clone() };
    let first = file.read().map_err(Refused)?;
    let address = match address {
        Some(address) => kes_yaml::parse_address(address).map_err(|problem| Refused(vec![problem]))?,
        None => first.address,
    };
    Ok(ServerSettings { own, address, file, first })
}

// === impl Refused ===

impl From<Problems> for Refused {
    fn from(Problems(problems): Problems) -> Self {
        Self(problems.iter().map(ToString::to_string).collect())
    }
}
