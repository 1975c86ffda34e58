//! What happens, as Events on our own pod: `kubectl describe pod` says why it waits. Without the right to post, one line says so.

use crate::{
    health::{Happening, Severity},
    tls::{self, trust::Trust},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{path::PathBuf, time::Duration};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use zeroize::Zeroizing;

/// Where the API is, and who we are there.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:port`
    pub api: String,
    /// The folder of the service account: `token`, `ca.crt`, `namespace`.
    pub dir: PathBuf,
    /// Our own pod.
    pub pod: String,
}

/// Posts until nobody has anything to say any more.
pub struct Poster {
    config: Config,
    namespace: String,
    http: reqwest::Client,
    uid: Option<String>,
    /// Posting did not work, and that was said.
    told: bool,
}

const PATIENCE: Duration = Duration::from_secs(5);
/// A message of an Event may have so many bytes (core/v1, Event.message).
const MOST: usize = 1024;

// === impl Poster ===

impl Poster {
    /// Nothing when this is no pod, or a pod without a service account's token.
    pub fn new(config: Config) -> Option<Self> {
        let namespace = std::fs::read_to_string(config.dir.join("namespace")).ok()?.trim().to_owned();
        config.dir.join("token").exists().then_some(())?;
        let trust = Trust::only(&config.dir.join("ca.crt")).ok()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(trust, None).ok()?)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(PATIENCE)
            .build()
            .ok()?;
        Some(Self { config, namespace, http, uid: None, told: false })
    }

    /// One Event for each happening; a burst that cannot be posted in time is cut short.
    pub async fn run(mut self, mut happenings: Receiver<Happening>) {
        loop {
            match happenings.recv().await {
                Ok(happening) => self.post(&happening).await,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn post(&mut self, happening: &Happening) {
        if self.uid.is_none() {
            self.uid = self.own_uid().await;
        }
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let posted = match self.request(reqwest::Method::POST, &path) {
            Ok(request) => {
                let body = self.event(happening).to_string();
                request.header("content-type", "application/json").body(body).send().await
            }
            Err(error) => return self.tell(&format!("the service account's token cannot be read: {error}")),
        };
        match posted {
            Ok(answer) if answer.status().is_success() => {}
            Ok(answer) => {
                self.tell(&format!("the Kubernetes API answered {} to POST {path}", answer.status()))
            }
            Err(error) => {
                self.tell(&format!("the Kubernetes API at {} does not answer: {error}", self.config.api))
            }
        }
    }

    /// Who sees the Events of a pod looks for its uid; without the right to read it there is still the name.
    async fn own_uid(&self) -> Option<String> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.config.pod);
        let answer = self.request(reqwest::Method::GET, &path).ok()?.send().await.ok()?;
        let pod: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        pod.pointer("/metadata/uid")?.as_str().map(str::to_owned)
    }

    /// The token is read each time: the kubelet replaces it.
    fn request(&self, method: reqwest::Method, path: &str) -> std::io::Result<reqwest::RequestBuilder> {
        let token = Zeroizing::new(std::fs::read_to_string(self.config.dir.join("token"))?);
        Ok(self.http.request(method, format!("{}{path}", self.config.api)).bearer_auth(token.trim()))
    }

    fn event(&self, Happening { at, severity, reason, says }: &Happening) -> Value {
        let at = Timestamp::from_second(at.as_second()).unwrap_or_default().to_string();
        let mut end = says.len().min(MOST);
        while !says.is_char_boundary(end) {
            end -= 1;
        }
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": self.config.pod,
        });
        if let Some(uid) = &self.uid {
            pod["uid"] = json!(uid);
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "generateName": format!("{}.", self.config.pod), "namespace": self.namespace },
            "involvedObject": pod,
            "reason": camel_case(reason),
            "message": says[..end],
            "type": match severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
            "source": { "component": "keswarden" },
            "reportingComponent": "keswarden",
            "reportingInstance": self.config.pod,
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        })
    }

    fn tell(&mut self, what: &str) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::info!(
                "no Events on the pod: {what}; allow `create` on events for the service account, or set KESWARDEN_EVENTS=off"
            );
        }
    }
}

/// As Kubernetes writes reasons: `vault_sealed` is `VaultSealed`.
fn camel_case(reason: &str) -> String {
    let capital = |word: &str| {
        let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        first.to_ascii_uppercase() + rest
    };
    reason.split('_').map(capital).collect()
}
