//! The keswarden binary.

use super::{
    SOON, Var, answers, binary, free_port, http_get,
    process::{Process, clean, finish},
    text,
};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// The keswarden binary with its settings, ports and run directory, which outlive its processes.
pub struct Agent {
    process: Option<Process>,
    name: String,
    kes_port: u16,
    admin_port: u16,
    env: BTreeMap<String, String>,
    starts: u32,
    dir: TempDir,
}

// === impl Agent ===

impl Agent {
    /// Settings, ports and a run directory; nothing runs yet.
    pub fn new(name: &str, settings: &[Var]) -> Self {
        let dir = TempDir::new().expect("a temporary folder must be made");
        let (kes_port, admin_port) = (free_port(), free_port());
        let mut agent = Self {
            process: None,
            name: format!("keswarden {name}"),
            kes_port,
            admin_port,
            env: BTreeMap::new(),
            starts: 0,
            dir,
        };
        agent.set("KESWARDEN_ADDR", &format!("127.0.0.1:{kes_port}"));
        agent.set("KESWARDEN_ADMIN_ADDR", &format!("127.0.0.1:{admin_port}"));
        agent.set("KESWARDEN_RUN_DIR", &agent.run_dir().to_string_lossy());
        for (name, value) in settings {
            agent.set(name, value);
        }
        agent
    }

    /// A setting, for the next start.
    pub fn set(&mut self, name: &str, value: &str) {
        self.env.insert(name.to_owned(), value.to_owned());
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn admin_port(&self) -> u16 {
        self.admin_port
    }

    pub fn kes_port(&self) -> u16 {
        self.kes_port
    }

    /// MinIO's settings to use this agent.
    pub fn minio_vars(&self, key: &str) -> Vec<Var> {
        let file = |name: &str| self.run_dir().join(name).to_string_lossy().into_owned();
        vec![
            ("MINIO_KMS_KES_ENDPOINT", format!("https://127.0.0.1:{}", self.kes_port)),
            ("MINIO_KMS_KES_CERT_FILE", file("client.crt")),
            ("MINIO_KMS_KES_KEY_FILE", file("client.key")),
            ("MINIO_KMS_KES_CAPATH", file("ca.crt")),
            ("MINIO_KMS_KES_KEY_NAME", key.to_owned()),
        ]
    }

    /// Runs `keswarden ARGUMENTS` to its end.
    pub fn output(&self, arguments: &[&str]) -> Output {
        finish(&mut self.command(arguments), "", SOON)
    }

    /// Runs a shell's command line as a person would in a directory, with the agent's settings, `keswarden` and the peers on the path.
    pub fn shell(&self, line: &str, dir: &Path, more: &[Var]) -> Output {
        let mut command = clean("sh", self.dir.path());
        let path = std::env::var("PATH").unwrap_or_default();
        let ours = Path::new(env!("CARGO_BIN_EXE_keswarden")).parent().expect("a binary must be in a folder");
        let peers = binary("bao");
        let peers = peers.parent().expect("a binary must be in a folder");
        command.env("PATH", format!("{}:{}:{path}", ours.display(), peers.display()));
        command.envs(&self.env).envs(more.iter().map(|(name, value)| (name, value)));
        finish(command.arg("-c").arg(line).current_dir(dir), "", SOON)
    }

    /// Starts `keswarden init`.
    pub fn init(&mut self) -> Process {
        self.spawn("init")
    }

    /// Starts `keswarden run`, on the addresses and the run directory it had before.
    pub fn run(&mut self) {
        assert!(self.process.is_none(), "{} must not run twice", self.name);
        self.process = Some(self.spawn("run"));
    }

    /// Waits until `/readyz` says so.
    pub fn ready(&mut self) {
        let port = self.admin_port;
        self.process().until(SOON, "is ready", || answers(port, "/readyz", 200));
    }

    /// The running `keswarden run`.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("the agent must have been started")
    }

    /// The value of a metric line that starts with `line`.
    pub fn metric(&self, line: &str) -> f64 {
        let (status, page) =
            http_get(self.admin_port, "/metrics").unwrap_or_else(|error| panic!("/metrics: {error}"));
        assert_eq!(status, 200);
        let page = text(&page);
        let value = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("{line} is not in\n{page}"))
    }

    /// Ends the agent by SIGKILL.
    pub fn kill(&mut self) {
        let code = self.end("KILL");
        assert_eq!(code, 128 + 9, "SIGKILL must have ended it");
    }

    /// Ends the agent by SIGTERM: the agent must drain, and exit with 0.
    pub fn drain(&mut self) {
        let code = self.end("TERM");
        assert_eq!(code, 0, "{} must drain\n{}", self.name, self.logs());
    }

    /// The output of all starts.
    pub fn logs(&self) -> String {
        let logs = (1..=self.starts).map(|start| text(&fs::read(self.log(start)).unwrap_or_default()));
        logs.collect::<Vec<_>>().concat()
    }

    fn end(&mut self, signal: &str) -> i32 {
        let mut process = self.process.take().expect("the agent must have been started");
        process.signal(signal);
        process.wait(SOON)
    }

    fn spawn(&mut self, command: &str) -> Process {
        self.starts += 1;
        Process::spawn(&format!("{} {command}", self.name), self.command(&[command]), self.log(self.starts))
    }

    fn log(&self, start: u32) -> PathBuf {
        self.dir.path().join(format!("keswarden-{start}.log"))
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = clean(env!("CARGO_BIN_EXE_keswarden"), self.dir.path());
        command.envs(&self.env).args(arguments);
        command
    }
}
