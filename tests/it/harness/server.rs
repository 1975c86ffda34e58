//! `keswarden server` as a process of its own, and the files that the server reads.

use super::{
    Client, IN_PROCESS, KEY, Process, SOON, Var, admin_key, answers, block_on, eventually, finish, free_port,
    health, key_text, metric, now, succeeded,
};
use keswarden::{identity::ApiKey, tls::mint::RunDir};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Command,
};
use tempfile::TempDir;

/// A running `keswarden server`, started as `kes server` is; killed when dropped.
pub struct Server {
    pub process: Process,
    pub api: SocketAddr,
    pub admin: SocketAddr,
    /// The folder of `server-config.yaml`.
    dir: PathBuf,
    _owned: Option<TempDir>,
}

/// How a [`Server`] is started.
pub struct Launch {
    name: String,
    command: Command,
    config: PathBuf,
    owned: Option<TempDir>,
    settings: Vec<Var>,
    port: Option<u16>,
    unread: bool,
}

/// Further sections of YAML: no line of a log for each bad client.
pub const QUIET: &str = "log: { error: off, audit: off }\n";

// === impl Launch ===

impl Launch {
    /// For the folder's `server-config.yaml`; the server's certificate is made there.
    pub fn in_folder(dir: TempDir) -> Self {
        RunDir::new(dir.path().to_owned(), &[]).ensure(now()).unwrap();
        let config = dir.path().join("server-config.yaml");
        Self { owned: Some(dir), ..Self::with_file("server", &config) }
    }

    /// For a file that other servers may have as well.
    pub fn with_file(name: &str, config: &Path) -> Self {
        let command = Command::new(env!("CARGO_BIN_EXE_keswarden"));
        let (name, config) = (name.to_owned(), config.to_owned());
        Self { name, command, config, owned: None, settings: Vec::new(), port: None, unread: false }
    }

    /// By another program, which gets the command line of `keswarden server` as its last arguments.
    pub fn by(self, command: Command) -> Self {
        Self { command, ..self }
    }

    pub fn set(mut self, settings: &[Var]) -> Self {
        self.settings.extend_from_slice(settings);
        self
    }

    /// On this port; otherwise on a free one.
    pub fn on(self, port: Option<u16>) -> Self {
        Self { port, ..self }
    }

    /// With both outputs in pipes that nobody reads yet.
    pub fn unread(self) -> Self {
        Self { unread: true, ..self }
    }

    /// Starts the server, which may have to wait.
    pub fn start(self) -> Server {
        let Self { name, command, config, owned, settings, port, unread } = self;
        let address = |port: u16| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let (api, admin) = (address(port.unwrap_or_else(free_port)), address(free_port()));
        let mut command = with_arguments(command, &config, api, admin);
        command.envs(settings);
        let (shown, log) = (format!("keswarden {name}"), config.with_file_name(format!("{name}.log")));
        let process = match unread {
            true => Process::unread(&shown, command),
            false => Process::spawn(&shown, command, log),
        };
        let dir = config.parent().expect("a file must be in a folder").to_owned();
        Server { process, api, admin, dir, _owned: owned }
    }

    /// Starts the server, and waits until `/readyz` says so.
    pub fn ready(self) -> Server {
        let mut server = self.start();
        server.ready();
        server
    }
}

// === impl Server ===

impl Server {
    /// A server over a folder with one key, with these further sections of YAML.
    pub fn over_one_key(more: &str) -> Self {
        Launch::in_folder(folder_with_one_key(more)).ready()
    }

    /// Waits until `/readyz` says so.
    pub fn ready(&mut self) {
        let port = self.admin.port();
        self.process.until(SOON, "is ready", || answers(port, "/readyz", 200));
    }

    /// Waits until the API says that the key store can be used.
    pub fn api_ready(&self) {
        eventually(IN_PROCESS, "the API is ready", || {
            let asked = block_on(self.admin_client(false).send("GET", "/v1/ready", None));
            asked.is_ok_and(|reply| reply.status == 200)
        });
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn file(&self) -> PathBuf {
        self.dir.join("server-config.yaml")
    }

    pub fn rewrite(&self, yaml: &str) {
        fs::write(self.file(), yaml).unwrap();
    }

    /// The command line of this server, to be run once more.
    pub fn command(&self) -> Command {
        with_arguments(Command::new(env!("CARGO_BIN_EXE_keswarden")), &self.file(), self.api, self.admin)
    }

    /// The health server's status page, once it is there.
    pub fn status(&self) -> String {
        health(self.admin, "/status").1
    }

    pub fn metric(&self, line: &str) -> Option<f64> {
        metric(self.admin, line)
    }

    pub fn client(&self, who: &ApiKey, http1: bool) -> Client {
        Client::with_api_key(who, &self.dir, http1, self.api)
    }

    pub fn admin_client(&self, http1: bool) -> Client {
        self.client(&admin_key(), http1)
    }
}

fn with_arguments(mut command: Command, config: &Path, api: SocketAddr, admin: SocketAddr) -> Command {
    command.args(["server", "--addr", &api.to_string(), "--config"]).arg(config);
    command.env_clear().env("KESWARDEN_ADMIN_ADDR", admin.to_string());
    command.env("XDG_STATE_HOME", config.with_file_name("state"));
    command
}

/// A folder with a server's file, and one key.
pub fn folder_with_one_key(more: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("server-config.yaml"), server_yaml(&dir, more)).unwrap();
    fs::create_dir(dir.path().join("keys")).unwrap();
    fs::write(dir.path().join("keys").join(KEY), key_text()).unwrap();
    dir
}

/// The whole of `server-config.yaml`, with the key store in the folder `keys` and these further sections.
pub fn server_yaml(dir: impl AsRef<Path>, more: &str) -> String {
    let path = |file: &str| dir.as_ref().join(file).display().to_string();
    format!(
        "version: v1\naddress: 127.0.0.1:7373\nadmin:\n  identity: {}\ntls:\n  key: {}\n  cert: {}\nkeystore:\n  \
         fs:\n    path: {}\n{more}",
        admin_key().identity(),
        path("server.key"),
        path("server.crt"),
        path("keys"),
    )
}

/// KES's own file, for the OpenBao that these settings reach, with the policy that MinIO's documentation gives.
pub fn vault_yaml(dir: &Path, settings: &[Var], identity: &str) -> String {
    let of = |wanted: &str| {
        let found = settings.iter().find(|(name, _)| *name == wanted);
        found.unwrap_or_else(|| panic!("{wanted} must be set")).1.as_str()
    };
    let (endpoint, ca) = (of("KESWARDEN_VAULT_ADDR"), of("KESWARDEN_VAULT_CACERT"));
    let (id, secret) = (of("KESWARDEN_VAULT_ROLE_ID"), of("KESWARDEN_VAULT_SECRET_ID"));
    let dir = dir.display();
    format!(
        r#"version: v1
address: 0.0.0.0:7373
admin:
  identity: disabled
tls:
  key: "{dir}/server.key"
  cert: "{dir}/server.crt"
policy:
  minio:
    allow:
      - /v1/key/create/*
      - /v1/key/generate/*
      - /v1/key/decrypt/*
      - /v1/key/describe/*
      - /v1/key/list/*
      - /v1/key/hmac/*
      - /v1/status
      - /v1/metrics
      - /v1/api
      - /v1/log/audit
      - /v1/log/error
    identities:
      - "{identity}"
keystore:
  vault:
    endpoint: "{endpoint}"
    engine: kv
    version: v2
    prefix: minio
    approle:
      id: "{id}"
      secret: "{secret}"
    tls:
      ca: "{ca}"
"#
    )
}

/// A self-signed certificate for 127.0.0.1 in `server.crt`, and its key in `server.key`.
pub fn make_certificate(dir: &Path) -> PathBuf {
    let line = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=kes \
                -addext subjectAltName=IP:127.0.0.1 -keyout server.key -out server.crt";
    let mut command = Command::new("openssl");
    let output = finish(command.current_dir(dir).args(line.split_whitespace()), "", SOON);
    succeeded(&format!("openssl {line}"), &output);
    dir.join("server.crt")
}
