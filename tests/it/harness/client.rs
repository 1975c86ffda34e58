//! A client of the KES API, and of the health server.

use super::{Agent, base64, block_on, now};
use keswarden::{
    identity::ApiKey,
    tls::{self, Pair, trust::Trust},
};
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

/// Status and body of a page of a health server; 0 without an answer.
pub fn health(address: SocketAddr, path: &str) -> (u16, String) {
    block_on(async {
        let client = tls::plain_http_client(Duration::from_secs(5)).unwrap();
        match client.get(format!("http://{address}{path}")).send().await {
            Ok(answer) => (answer.status().as_u16(), answer.text().await.unwrap()),
            Err(_) => (0, String::new()),
        }
    })
}

/// The value of a metric line that starts with `line`.
pub fn metric(address: SocketAddr, line: &str) -> Option<f64> {
    let (_, page) = health(address, "/metrics");
    let found = page.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' ').map(str::to_owned));
    found.and_then(|value| value.parse().ok())
}

/// A client of the KES API.
pub struct Client {
    pub http: reqwest::Client,
    base: String,
}

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub body: String,
    pub headers: std::collections::BTreeMap<String, String>,
    pub version: String,
}

impl Client {
    pub fn new(mut config: rustls::ClientConfig, http1: bool, server: SocketAddr) -> Self {
        if !http1 {
            config.alpn_protocols = vec![b"h2".to_vec()];
        }
        let builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(20));
        let builder = if http1 { builder.http1_only() } else { builder };
        Self { http: builder.build().unwrap(), base: format!("https://{server}") }
    }

    /// A client of an agent that runs or will, with MinIO's own identity.
    pub fn of(agent: &Agent) -> Self {
        Self::of_run_dir(&agent.run_dir(), agent.kes_port())
    }

    /// The same for an agent that listens on `port`, with the certificates of its run directory.
    pub fn of_run_dir(run_dir: &Path, port: u16) -> Self {
        let trust = Trust::only(&run_dir.join("ca.crt")).unwrap();
        let config = tls::client_config(trust, Some(minio_pair(run_dir))).unwrap();
        Self::new(config, false, SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    }

    /// A client with the certificate of an API key, of the server at `api` whose CA is in `dir`.
    pub fn with_api_key(who: &ApiKey, dir: &Path, http1: bool, api: SocketAddr) -> Self {
        Self::new(config_of(who, dir), http1, api)
    }

    pub async fn send(&self, method: &str, path: &str, body: Option<&str>) -> Result<Reply, reqwest::Error> {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let mut request = self.http.request(method, format!("{}{path}", self.base));
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body.to_owned());
        }
        let answer = request.send().await?;
        let headers = answer.headers().iter();
        let headers =
            headers.map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned())).collect();
        let (status, version) = (answer.status().as_u16(), format!("{:?}", answer.version()));
        Ok(Reply { status, headers, version, body: answer.text().await? })
    }

    /// An answer that is still being received.
    pub async fn get(&self, path: &str) -> Result<reqwest::Response, reqwest::Error> {
        self.http.get(format!("{}{path}", self.base)).send().await
    }

    pub fn call(&self, method: &str, path: &str, body: Option<&str>) -> Reply {
        block_on(self.send(method, path, body)).unwrap_or_else(|error| panic!("{method} {path}: {error:?}"))
    }

    /// Plaintext and ciphertext of a fresh data key, base64.
    pub fn generate(&self, key: &str, context: &str) -> (String, String) {
        let body = serde_json::json!({ "context": base64(context.as_bytes()) }).to_string();
        let reply = self.call("POST", &format!("/v1/key/generate/{key}"), Some(&body));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let value: serde_json::Value = serde_json::from_str(&reply.body).unwrap();
        (value["plaintext"].as_str().unwrap().to_owned(), value["ciphertext"].as_str().unwrap().to_owned())
    }

    pub fn decrypt(&self, key: &str, ciphertext: &str, context: &str) -> Reply {
        let body = serde_json::json!({ "ciphertext": ciphertext, "context": base64(context.as_bytes()) })
            .to_string();
        self.call("POST", &format!("/v1/key/decrypt/{key}"), Some(&body))
    }
}

/// TLS with the certificate of an API key, for a server whose CA is in `dir`.
pub fn config_of(who: &ApiKey, dir: &Path) -> rustls::ClientConfig {
    let trust = Trust::only(&dir.join("ca.crt")).unwrap();
    tls::client_config(trust, Some(pair_of(who))).unwrap()
}

/// The certificate that an API key makes for itself.
pub fn pair_of(who: &ApiKey) -> Pair {
    let (certificate, key) = who.certificate(now());
    Pair { chain: vec![certificate], key }
}

/// MinIO's certificate and key, from a run directory.
pub fn minio_pair(run_dir: &Path) -> Pair {
    Pair::read(&run_dir.join("client.crt"), &run_dir.join("client.key")).unwrap()
}
