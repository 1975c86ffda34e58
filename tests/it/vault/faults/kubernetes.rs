//! The Kubernetes API, which OpenBao asks about a service account's token at each login and each renewal, is away, hangs or refuses. No
//! Kubernetes runs here: a scripted API answers this one request, and any other request fails the test.

use super::Site;
use crate::harness::{Bao, Var, free_port, key_text, policy, put_key};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::Path,
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

/// How the Kubernetes API answers a token review.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    Good,
    /// The token is nobody's, as when the service account was deleted.
    SaysNo,
    /// Vault may not review tokens.
    Forbids,
    Fails,
    Hangs,
    Down,
}

struct Kubernetes {
    port: u16,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

struct Shared {
    api: Mutex<Api>,
    /// Requests that the script does not have.
    odd: Mutex<Vec<String>>,
}

/// The service account, and the start of the one question.
const NAME: &str = "minio-sa";
const NAMESPACE: &str = "minio-tenant";
const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const QUESTION: &str = "POST /apis/authentication.k8s.io/v1/tokenreviews HTTP/1.1\r\n";
/// Pause between two looks at the mode of the API.
const PAUSE: Duration = Duration::from_millis(20);

/// A token as Kubernetes projects it, with a signature that no peer checks here.
fn jwt() -> String {
    let header = json!({ "alg": "RS256", "kid": "test" });
    let claims = json!({
        "iss": "https://kubernetes.default.svc.cluster.local",
        "sub": account(),
        "aud": ["vault"],
        "iat": 1_600_000_000_u64,
        "nbf": 1_600_000_000_u64,
        "exp": 4_000_000_000_u64,
        "kubernetes.io": { "namespace": NAMESPACE, "serviceaccount": { "name": NAME, "uid": UID } },
    });
    let parts = [header.to_string(), claims.to_string(), "signature".to_owned()];
    parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

fn account() -> String {
    format!("system:serviceaccount:{NAMESPACE}:{NAME}")
}

// === impl Kubernetes ===

impl Kubernetes {
    fn start() -> Self {
        let shared = Shared { api: Mutex::new(Api::Down), odd: Mutex::default() };
        let mut kubernetes = Self { port: free_port(), shared: Arc::new(shared), listener: None };
        kubernetes.set(Api::Good);
        kubernetes
    }

    /// Sets the API's mode. No unexpected request has come until now.
    fn set(&mut self, api: Api) {
        self.was_asked_nothing_odd();
        *self.shared.api.lock().unwrap() = api;
        let address = (Ipv4Addr::LOCALHOST, self.port);
        self.listener = match (api, self.listener.take()) {
            (Api::Down, Some(listener)) => {
                // The listening thread ends at the next connection.
                drop(TcpStream::connect(address).unwrap());
                listener.join().unwrap();
                None
            }
            (Api::Down, None) => None,
            (_, None) => {
                let socket = TcpListener::bind(address).unwrap();
                let shared = self.shared.clone();
                Some(thread::spawn(move || listen(&socket, &shared)))
            }
            (_, listener) => listener,
        };
    }

    fn was_asked_nothing_odd(&self) {
        let odd = self.shared.odd.lock().unwrap();
        assert!(odd.is_empty(), "the Kubernetes API is asked for reviews only: {odd:?}");
    }

    /// Logins by the service account, whose token is in this file; they must be repeated every three seconds.
    fn logins_at(&self, bao: &Bao, token: &Path) -> Vec<Var> {
        let host = format!("kubernetes_host=http://127.0.0.1:{}", self.port);
        // OpenBao demands a CA, and does not use it over plain HTTP.
        let ca = format!("kubernetes_ca_cert=@{}", bao.ca_path().display());
        bao.ok(&["policy", "write", "minio-sidecar", "-"], &policy(2));
        bao.ok(&["auth", "enable", "kubernetes"], "");
        bao.ok(&["write", "auth/kubernetes/config", &host, &ca, "disable_local_ca_jwt=true"], "");
        bao.ok(
            &[
                "write",
                "auth/kubernetes/role/minio-sidecar",
                &format!("bound_service_account_names={NAME}"),
                &format!("bound_service_account_namespaces={NAMESPACE}"),
                "audience=vault",
                "token_policies=minio-sidecar",
                "token_no_default_policy=true",
                "token_ttl=3s",
                "token_max_ttl=3s",
            ],
            "",
        );
        vec![
            ("KESWARDEN_VAULT_KUBERNETES_ROLE", "minio-sidecar".to_owned()),
            ("KESWARDEN_VAULT_KUBERNETES_JWT_FILE", token.to_string_lossy().into_owned()),
        ]
    }
}

// === impl Shared ===

impl Shared {
    fn api(&self) -> Api {
        *self.api.lock().unwrap()
    }
}

/// Answers until the API is down.
fn listen(socket: &TcpListener, shared: &Arc<Shared>) {
    for stream in socket.incoming().map_while(Result::ok) {
        if shared.api() == Api::Down {
            return;
        }
        let shared = shared.clone();
        thread::spawn(move || answer(stream, &shared));
    }
}

fn answer(stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head)? == 0 {
            return Ok(());
        }
    }
    let lower = head.to_ascii_lowercase();
    let mut lengths = lower.lines().filter_map(|line| line.strip_prefix("content-length:"));
    let length = lengths.next().and_then(|length| length.trim().parse::<usize>().ok());
    let mut body = vec![0; length.unwrap_or_default()];
    stream.read_exact(&mut body)?;
    let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
    if !head.starts_with(QUESTION) || asked["spec"] != json!({ "token": jwt(), "audiences": ["vault"] }) {
        shared.odd.lock().unwrap().push(format!("{head}{asked}"));
    }
    let (status, answer) = match shared.api() {
        Api::Good => {
            let user = json!({ "username": account(), "uid": UID, "groups": ["system:serviceaccounts"] });
            (201, review(&json!({ "authenticated": true, "user": user, "audiences": ["vault"] })))
        }
        Api::SaysNo => (201, review(&json!({ "authenticated": false, "error": "nobody's token" }))),
        Api::Forbids => (403, refusal(403)),
        Api::Fails => (500, refusal(500)),
        Api::Hangs => {
            while shared.api() == Api::Hangs {
                thread::sleep(PAUSE);
            }
            return Ok(());
        }
        Api::Down => return Ok(()),
    };
    let answer = answer.to_string();
    let (kind, length) = ("Content-Type: application/json", answer.len());
    write!(
        stream.get_mut(),
        "HTTP/1.1 {status} -\r\n{kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
    )
}

fn review(status: &Value) -> Value {
    json!({ "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "status": status })
}

fn refusal(code: u16) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code })
}

#[test]
fn a_kubernetes_api_that_is_down() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    fs::write(&token, jwt()).unwrap();
    let mut kubernetes = Kubernetes::start();
    let bao = Bao::with_kv(2);
    put_key(&bao, &key_text());
    let login = kubernetes.logins_at(&bao, &token);
    let site = Site::serving(bao, &login);

    // Vault gives one answer for all of these, so the message names both places that a person can check.
    for api in [Api::Down, Api::Fails, Api::Forbids, Api::SaysNo] {
        kubernetes.set(api);
        let log = site.goes_on_while("kubernetes_review_failed");
        for possible in ["system:auth-delegator", "that the service account is there"] {
            assert!(log.contains(possible), "{api:?}: {log}");
        }
        kubernetes.set(Api::Good);
        site.recovers();
    }
    site.gate_passes();

    kubernetes.set(Api::Hangs);
    site.goes_on_while("vault_unhealthy_behind_green_health");
    kubernetes.set(Api::Good);
    site.recovers();
    site.gate_passes();
    kubernetes.was_asked_nothing_odd();
}
