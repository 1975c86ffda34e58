//! Real MinIO, and its client.

use super::{
    SOON, Var, answers, binary, free_port,
    process::{Process, clean, finish, succeeded},
    text,
};
use serde_json::Value;
use std::{collections::BTreeMap, fs, process::Output};
use tempfile::TempDir;

/// MinIO with one drive, or a node of a cluster. Its ports are known before it starts, and stay.
pub struct Minio {
    process: Option<Process>,
    name: String,
    port: u16,
    console: u16,
    /// The drives, as the command line names them.
    drives: Vec<String>,
    env: BTreeMap<String, String>,
    starts: u32,
    dir: TempDir,
}

/// MinIO's client, with one alias and a folder of its own.
pub struct Mc {
    alias: String,
    url: String,
    dir: TempDir,
}

// === impl Minio ===

impl Minio {
    pub const USER: &'static str = "test-root";
    pub const PASSWORD: &'static str = "test-root-password";

    /// Not yet started.
    pub fn new(name: &str) -> Self {
        let dir = TempDir::new().expect("a temporary folder must be made");
        let drive = dir.path().join("drive");
        fs::create_dir(&drive).expect("a temporary folder must be made");
        let drives = vec![drive.to_string_lossy().into_owned()];
        let root = [
            ("MINIO_ROOT_USER", Self::USER),
            ("MINIO_ROOT_PASSWORD", Self::PASSWORD),
            ("MINIO_BROWSER", "off"),
        ];
        let env = root.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let name = format!("MinIO {name}");
        Self { process: None, name, port: free_port(), console: free_port(), drives, env, starts: 0, dir }
    }

    /// Two nodes of one cluster, with two drives each, not yet started. Neither serves before the other has started.
    pub fn cluster(names: [&str; 2]) -> [Self; 2] {
        let mut nodes = names.map(Self::new);
        let mut drives = Vec::new();
        for node in &nodes {
            for drive in ["drive-1", "drive-2"] {
                let drive = node.dir.path().join(drive);
                fs::create_dir(&drive).expect("a temporary folder must be made");
                drives.push(format!("{}{}", node.endpoint(), drive.display()));
            }
        }
        for node in &mut nodes {
            let local = format!("127.0.0.1:{}", node.port);
            node.drives.clone_from(&drives);
            node.set(vec![
                // Without this variable, MinIO's clusters use no folder of the root file system.
                ("MINIO_CI_CD", "1".to_owned()),
                // Without this variable, MinIO in a container waits for a node whose address is no loopback address.
                ("_MINIO_SERVER_LOCAL", local),
            ]);
        }
        nodes
    }

    /// Adds to MinIO's environment, for the next start.
    pub fn set(&mut self, vars: Vec<Var>) {
        self.env.extend(vars.into_iter().map(|(name, value)| (name.to_owned(), value)));
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// MinIO's drives, as the command line names them.
    pub fn drives(&self) -> &[String] {
        &self.drives
    }

    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Starts MinIO on its drives; MinIO may end at once.
    pub fn start(&mut self) {
        self.starts += 1;
        let mut command = clean(binary("minio"), self.dir.path());
        command.envs(&self.env).arg("server");
        command.arg("--address").arg(format!("127.0.0.1:{}", self.port));
        command.arg("--console-address").arg(format!("127.0.0.1:{}", self.console));
        command.args(&self.drives);
        let log = self.dir.path().join(format!("minio-{}.log", self.starts));
        self.process = Some(Process::spawn(&self.name, command, log));
    }

    /// Kills MinIO. The drives stay.
    pub fn stop(&mut self) {
        self.process = None;
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Waits until MinIO serves S3.
    pub fn wait_live(&mut self) {
        let port = self.port;
        self.process().until(SOON, "serves", || answers(port, "/minio/health/cluster", 200));
    }

    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("MinIO must have been started")
    }

    /// A client as root.
    pub fn mc(&self, alias: &str) -> Mc {
        let url = format!("http://{}:{}@127.0.0.1:{}", Self::USER, Self::PASSWORD, self.port);
        let dir = TempDir::new().expect("a temporary folder must be made");
        Mc { alias: alias.to_owned(), url, dir }
    }
}

// === impl Mc ===

impl Mc {
    pub fn alias(&self) -> &str {
        &self.alias
    }

    /// `ALIAS/place`
    pub fn place(&self, place: &str) -> String {
        format!("{}/{place}", self.alias)
    }

    /// Runs `mc ARGUMENTS`.
    pub fn run(&self, arguments: &[&str]) -> Output {
        let mut command = clean(binary("mc"), self.dir.path());
        command.env(format!("MC_HOST_{}", self.alias), &self.url).env("MC_NO_COLOR", "1");
        command.arg("--config-dir").arg(self.dir.path().join("mc")).args(arguments);
        finish(&mut command, "", SOON)
    }

    /// Runs `mc --json ARGUMENTS`: its output, or its error.
    pub fn try_json(&self, arguments: &[&str]) -> Result<Vec<Value>, String> {
        let mut all = vec!["--json"];
        all.extend_from_slice(arguments);
        let output = self.run(&all);
        let told =
            || format!("mc {}: {} {}", arguments.join(" "), text(&output.stdout), text(&output.stderr));
        if !output.status.success() {
            return Err(told());
        }
        let values = serde_json::Deserializer::from_slice(&output.stdout).into_iter::<Value>();
        values.collect::<Result<Vec<_>, _>>().map_err(|error| format!("{}: {error}", told()))
    }

    /// The same for a command that must succeed.
    pub fn json(&self, arguments: &[&str]) -> Vec<Value> {
        self.try_json(arguments).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The same, when one row is expected.
    fn row(&self, arguments: &[&str]) -> Result<Value, String> {
        let rows = self.try_json(arguments)?;
        rows.into_iter().next().ok_or_else(|| format!("mc {} printed nothing", arguments.join(" ")))
    }

    pub fn make_bucket(&self, bucket: &str) {
        self.json(&["mb", &self.place(bucket)]);
    }

    /// Puts an object by `mc cp`.
    pub fn put(&self, place: &str, content: &str) {
        let file = self.dir.path().join("to-be-put");
        fs::write(&file, content).expect("a temporary file must be written");
        self.json(&["cp", &file.to_string_lossy(), &self.place(place)]);
    }

    /// Reads an object by `mc cat`.
    pub fn cat(&self, place: &str) -> String {
        succeeded(&format!("mc cat {place}"), &self.run(&["cat", &self.place(place)]))
    }

    /// How an object is encrypted: algorithm and key, as `mc stat` tells.
    pub fn encryption_of(&self, place: &str) -> (String, String) {
        let row = self.row(&["stat", &self.place(place)]).unwrap_or_else(|error| panic!("{error}"));
        let told = |name: &str| row["metadata"][name].as_str().unwrap_or_default().to_owned();
        let key = told("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id");
        (told("X-Amz-Server-Side-Encryption"), key.trim_start_matches("arn:aws:kms:").to_owned())
    }

    /// Sets a bucket's default encryption to SSE-KMS.
    pub fn set_default_key(&self, bucket: &str, key: &str) {
        self.json(&["encrypt", "set", "SSE-KMS", key, &self.place(bucket)]);
    }

    /// The key of a bucket's default encryption.
    pub fn default_key(&self, bucket: &str) -> Result<String, String> {
        let row = self.row(&["encrypt", "info", &self.place(bucket)])?;
        let told = row["encryption"]["keyId"].as_str().map(str::to_owned);
        told.ok_or_else(|| row.to_string())
    }

    /// MinIO seals and opens with the key.
    pub fn key_works(&self, key: &str) -> Result<(), String> {
        let row = self.row(&["admin", "kms", "key", "status", &self.alias, key])?;
        let failed = ["encryptionError", "decryptionError"].iter().any(|trouble| !row[*trouble].is_null());
        let good = row["status"] == "success" && row["keyId"] == key && !failed;
        if good { Ok(()) } else { Err(row.to_string()) }
    }

    pub fn make_key(&self, key: &str) {
        self.json(&["admin", "kms", "key", "create", &self.alias, key]);
    }

    /// A path at which anybody may GET the object for an hour: one request, without a client that tries again.
    pub fn share(&self, place: &str) -> String {
        let row = self.row(&["share", "download", "--expire", "1h", &self.place(place)]);
        let row = row.unwrap_or_else(|error| panic!("{error}"));
        let url = row["share"].as_str().unwrap_or_else(|| panic!("there must be a link: {row}"));
        let (_, path) = url
            .split_once("://")
            .and_then(|(_, rest)| rest.split_once('/'))
            .expect("a link must have a path");
        format!("/{path}")
    }
}
