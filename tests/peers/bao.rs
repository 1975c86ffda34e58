//! Real OpenBao.

use super::{
    SOON, Var, binary, eventually, free_port,
    http::parse,
    process::{Process, clean, finish, succeeded},
    text,
};
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};
use tempfile::TempDir;

/// OpenBao: raft storage, TLS, Shamir seal with three shares of which two are needed.
pub struct Bao {
    process: Option<Process>,
    port: u16,
    shares: Vec<String>,
    root_token: String,
    starts: u32,
    dir: TempDir,
}

/// The policy of K/V version 1 or 2 for the folder `minio` of the mount `kv`, with the making of keys.
pub fn policy(version: u8) -> String {
    let places = match version {
        1 => r#"path "kv/minio/*" { capabilities = ["create", "read", "list"] }"#,
        _ => concat!(
            r#"path "kv/data/minio/*" { capabilities = ["create", "read"] }"#,
            "\n",
            r#"path "kv/metadata/minio/*" { capabilities = ["read", "list"] }"#
        ),
    };
    format!("{places}\n{TOKEN_POLICY}")
}

/// A token's rights to itself; needed without the policy `default`.
const TOKEN_POLICY: &str = r#"path "auth/token/lookup-self" { capabilities = ["read"] }
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/revoke-self" { capabilities = ["update"] }
path "sys/capabilities-self" { capabilities = ["update"] }
path "auth/approle/role/minio-sidecar/secret-id/lookup" { capabilities = ["update"] }
"#;

const CERTIFICATES: &str = "[req]
distinguished_name = dn
prompt = no
[dn]
CN = keswarden test CA
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1
";

/// A CA (`ca.crt`) and a server certificate for 127.0.0.1 (`server.crt`, `server.key`).
fn make_certificates(dir: &Path) {
    let version = Command::new("openssl").arg("version").output();
    assert!(
        version.is_ok_and(|output| output.status.success()),
        "the program openssl is missing: it makes the certificates of the tests and speaks TLS to OpenBao; install it"
    );
    fs::write(dir.join("tls.cnf"), CERTIFICATES).expect("a temporary file must be written");
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -config tls.cnf";
    for line in [
        format!("req -new -x509 {key} -extensions ca -days 2 -keyout ca.key -out ca.crt"),
        format!("req -new {key} -subj /CN=127.0.0.1 -keyout server.key -out server.csr"),
        "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -set_serial 2 -days 2 -extfile tls.cnf -extensions server \
         -out server.crt"
            .to_owned(),
    ] {
        let mut command = clean("openssl", dir);
        let output = finish(command.current_dir(dir).args(line.split_whitespace()), "", SOON);
        succeeded(&format!("openssl {line}"), &output);
    }
}

// === impl Bao ===

impl Bao {
    const THRESHOLD: usize = 2;

    /// Running, and never initialised.
    pub fn uninitialised() -> Self {
        let mut bao = Self::prepared(None, "", "");
        bao.start();
        bao
    }

    /// Not started yet, with more lines for its storage and for the whole of its configuration. A further node of a cluster has the
    /// certificates, the key shares and the root token of the first node.
    pub(super) fn prepared(first: Option<&Self>, storage: &str, lines: &str) -> Self {
        let dir = TempDir::new().expect("a temporary folder must be made");
        match first {
            None => make_certificates(dir.path()),
            Some(first) => {
                for file in ["ca.crt", "server.crt", "server.key"] {
                    let copied = fs::copy(first.dir.path().join(file), dir.path().join(file));
                    copied.expect("a certificate must be copied");
                }
            }
        }
        fs::create_dir(dir.path().join("data")).expect("a temporary folder must be made");
        let (port, raft) = (free_port(), free_port());
        let folder = dir.path().display();
        let config = format!(
            r#"storage "raft" {{
  path                   = "{folder}/data"
  node_id                = "n{port}"
  performance_multiplier = 1
{storage}}}
listener "tcp" {{
  address         = "127.0.0.1:{port}"
  cluster_address = "127.0.0.1:{raft}"
  tls_cert_file   = "{folder}/server.crt"
  tls_key_file    = "{folder}/server.key"
}}
api_addr     = "https://127.0.0.1:{port}"
cluster_addr = "https://127.0.0.1:{raft}"
{lines}"#
        );
        fs::write(dir.path().join("bao.hcl"), config).expect("a temporary file must be written");
        let (shares, root_token) =
            first.map(|first| (first.shares.clone(), first.root_token.clone())).unwrap_or_default();
        Self { process: None, port, shares, root_token, starts: 0, dir }
    }

    /// Initialised, and still sealed.
    pub fn sealed() -> Self {
        let mut bao = Self::uninitialised();
        bao.init();
        bao
    }

    /// Unsealed, with K/V of this version below `kv`.
    pub fn with_kv(version: u8) -> Self {
        let bao = Self::unsealed();
        bao.setup_kv(version, "kv");
        bao
    }

    /// Initialised, unsealed and active.
    pub fn unsealed() -> Self {
        let bao = Self::sealed();
        bao.unseal();
        bao
    }

    /// The same, with more lines in its configuration.
    pub fn unsealed_with(lines: &str) -> Self {
        let mut bao = Self::prepared(None, "", lines);
        bao.start();
        bao.init();
        bao.unseal();
        bao
    }

    /// Starts OpenBao on its data, and waits until it listens.
    pub fn start(&mut self) {
        self.starts += 1;
        let mut command = clean(binary("bao"), self.dir.path());
        command.arg("server").arg(format!("-config={}", self.dir.path().join("bao.hcl").display()));
        let log = self.dir.path().join(format!("bao-{}.log", self.starts));
        let mut process = Process::spawn("OpenBao", command, log);
        process.until(SOON, "answers", || self.try_api("GET", "sys/seal-status", None, None));
        self.process = Some(process);
    }

    /// Kills OpenBao. The data stay.
    pub fn stop(&mut self) {
        self.process = None;
    }

    /// The running server.
    pub fn process(&mut self) -> &mut Process {
        self.process.as_mut().expect("OpenBao must have been started")
    }

    /// Makes the key shares and the root token.
    pub fn init(&mut self) {
        let body = json!({ "secret_shares": 3, "secret_threshold": Self::THRESHOLD });
        let (status, answer) = self.api("PUT", "sys/init", Some(&body), None);
        assert_eq!(status, 200, "initialising must work: {answer}");
        let share = |value: &Value| value.as_str().expect("a share must be text").to_owned();
        self.shares =
            answer["keys_base64"].as_array().expect("there must be shares").iter().map(share).collect();
        self.root_token = answer["root_token"].as_str().expect("there must be a root token").to_owned();
    }

    /// Gives one of the three key shares.
    pub fn unseal_one(&self, share: usize) {
        let body = json!({ "key": self.shares[share] });
        let (status, answer) = self.api("PUT", "sys/unseal", Some(&body), None);
        assert_eq!(status, 200, "a key share must be taken: {answer}");
    }

    /// Gives as many shares as are needed, and waits until OpenBao is active. A share may have been given before.
    pub fn unseal(&self) {
        self.unseal_until("sys/health");
    }

    /// The same for a node of a cluster, which may be a standby then.
    pub fn unseal_node(&self) {
        self.unseal_until("sys/health?standbyok=true");
    }

    fn unseal_until(&self, healthy: &str) {
        for share in 0..Self::THRESHOLD {
            self.unseal_one(share);
        }
        eventually(SOON, "OpenBao is active", || match self.try_api("GET", healthy, None, None)? {
            (200, _) => Ok(()),
            (status, answer) => Err(format!("sys/health: {status} {answer}")),
        });
    }

    pub fn seal(&self) {
        let (status, answer) = self.api("PUT", "sys/seal", None, Some(&self.root_token));
        assert_eq!(status, 204, "sealing must work: {answer}");
        let (status, _) = self.api("GET", "sys/health", None, None);
        assert_eq!(status, 503, "it must be sealed now");
    }

    /// Sends a signal to its process, such as `STOP`.
    pub fn signal(&mut self, signal: &str) {
        self.process().signal(signal);
    }

    /// Its folder: `ca.crt`, `ca.key`, `server.crt`, `server.key`, `tls.cnf`, and its data.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    pub fn addr(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn ca_path(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// A request to `/v1/PATH`: status and JSON (null for an empty body).
    pub fn api(&self, method: &str, path: &str, body: Option<&Value>, token: Option<&str>) -> (u16, Value) {
        self.try_api(method, path, body, token).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// The same, where OpenBao may be away. `openssl` speaks TLS; HTTP is simple enough.
    pub fn try_api(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        token: Option<&str>,
    ) -> Result<(u16, Value), String> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let token = token.map(|token| format!("X-Vault-Token: {token}\r\n")).unwrap_or_default();
        let request = format!(
            "{method} /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nConnection: close\r\n{token}Content-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        let mut command = clean("openssl", self.dir.path());
        command.args([
            "s_client",
            "-quiet",
            "-verify_quiet",
            "-verify_return_error",
            "-verify_ip",
            "127.0.0.1",
        ]);
        command.arg("-CAfile").arg(self.ca_path()).arg("-connect").arg(format!("127.0.0.1:{}", self.port));
        let output = finish(&mut command, &request, SOON);
        let (status, body) = parse(&output.stdout)
            .ok_or_else(|| format!("no answer: {:?} {:?}", text(&output.stdout), text(&output.stderr)))?;
        match body.iter().all(u8::is_ascii_whitespace) {
            true => Ok((status, Value::Null)),
            false => serde_json::from_slice(&body)
                .map(|answer| (status, answer))
                .map_err(|error| format!("{status}, and the body is no JSON: {error}")),
        }
    }

    /// Runs `bao ARGUMENTS` as root.
    pub fn cli(&self, arguments: &[&str]) -> Output {
        self.cli_with(arguments, "")
    }

    /// The same, with something on stdin.
    pub fn cli_with(&self, arguments: &[&str], input: &str) -> Output {
        let mut command = clean(binary("bao"), self.dir.path());
        command.env("BAO_ADDR", self.addr()).env("BAO_CACERT", self.ca_path());
        command.env("BAO_TOKEN", &self.root_token).args(arguments);
        finish(&mut command, input, SOON)
    }

    /// The same for a command that must succeed; its stdout.
    pub fn ok(&self, arguments: &[&str], input: &str) -> String {
        succeeded(&format!("bao {}", arguments.join(" ")), &self.cli_with(arguments, input))
    }

    /// Mounts a K/V engine, as an operator who loses nothing does.
    pub fn setup_kv(&self, version: u8, mount: &str) {
        self.ok(&["secrets", "enable", &format!("-path={mount}"), &format!("-version={version}"), "kv"], "");
        if version == 2 {
            let config = format!("{mount}/config");
            // A fresh mount upgrades itself for a moment.
            eventually(SOON, "the K/V mount takes its settings", || {
                let output = self.cli(&["write", &config, "cas_required=true", "max_versions=100"]);
                if output.status.success() { Ok(()) } else { Err(text(&output.stderr)) }
            });
        }
    }

    /// An AppRole with this policy and no other: role_id and secret_id.
    pub fn setup_approle(&self, policy: &str) -> (String, String) {
        const ROLE: &str = "auth/approle/role/minio-sidecar";
        self.ok(&["policy", "write", "minio-sidecar", "-"], policy);
        self.ok(&["auth", "enable", "approle"], "");
        self.ok(&["auth", "tune", "-user-lockout-disable=true", "approle/"], "");
        let policy = "token_policies=minio-sidecar";
        self.ok(&["write", ROLE, policy, "token_no_default_policy=true", "token_period=20m"], "");
        let role_id = self.ok(&["read", "-field=role_id", &format!("{ROLE}/role-id")], "");
        let secret_id = self.ok(&["write", "-f", "-field=secret_id", &format!("{ROLE}/secret-id")], "");
        (role_id.trim().to_owned(), secret_id.trim().to_owned())
    }

    /// How keswarden reaches the server.
    pub fn vars(&self) -> Vec<Var> {
        vec![
            ("KESWARDEN_VAULT_ADDR", self.addr()),
            ("KESWARDEN_VAULT_CACERT", self.ca_path().to_string_lossy().into_owned()),
        ]
    }

    /// How keswarden reaches its keys in the folder `minio`, with an AppRole of this policy.
    pub fn approle_vars(&self, policy: &str) -> Vec<Var> {
        let mut vars = [self.vars(), self.approle_pair(policy)].concat();
        vars.push(("KESWARDEN_VAULT_KV_PREFIX", "minio".to_owned()));
        vars
    }

    /// The pair of an AppRole with this policy: the role_id, then the secret_id.
    pub fn approle_pair(&self, policy: &str) -> Vec<Var> {
        let (role_id, secret_id) = self.setup_approle(policy);
        vec![("KESWARDEN_VAULT_ROLE_ID", role_id), ("KESWARDEN_VAULT_SECRET_ID", secret_id)]
    }
}
