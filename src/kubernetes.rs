//! What happens, as Events on our own pod: `kubectl describe pod` says why it waits. What happens again is counted on the Event that is
//! there, and a pod that flaps posts no more than Kubernetes' own components would. Without the right to post, one line says so.

use crate::{
    health::{Happening, Severity},
    tls::{self, trust::Trust},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::HashMap, path::PathBuf, time::Duration};
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
    /// What was posted last, by reason and words.
    posted: HashMap<(&'static str, String), Posted>,
    /// How many more may be posted, and when that was counted.
    allowance: (f64, Timestamp),
    /// Posting did not work, and that was said.
    told: bool,
}

/// An Event that is there.
struct Posted {
    /// Absent when the API did not tell.
    name: Option<String>,
    count: u32,
    /// When it was last written.
    at: Timestamp,
}

const PATIENCE: Duration = Duration::from_secs(5);
/// A message of an Event may have so many bytes (core/v1, Event.message).
const MOST: usize = 1024;
/// What happens again is written again after so many seconds.
const AGAIN: i64 = 60;
/// So many may be posted at once, and one more in each such time: as client-go's own recorder does.
const AT_ONCE: f64 = 25.0;
const EACH_SECONDS: f64 = 300.0;
/// So many are remembered.
const REMEMBERED: usize = 64;

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
        let (posted, allowance) = (HashMap::new(), (AT_ONCE, Timestamp::UNIX_EPOCH));
        Some(Self { config, namespace, http, uid: None, posted, allowance, told: false })
    }

    /// One Event for each that is new; a burst that cannot be posted in time is cut short.
    pub async fn run(mut self, mut happenings: Receiver<Happening>) {
        loop {
            match happenings.recv().await {
                Ok(happening) => self.happened(&happening).await,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    async fn happened(&mut self, happening: &Happening) {
        let known = (happening.reason, happening.says.clone());
        if let Some(posted) = self.posted.get_mut(&known) {
            posted.count += 1;
            if (happening.at.as_second() - posted.at.as_second()).abs() < AGAIN {
                return;
            }
            posted.at = happening.at;
            let (name, count) = (posted.name.clone(), posted.count);
            if let Some(name) = name
                && self.count(&name, count, happening.at).await
            {
                return;
            }
        }
        if !self.may_post(happening.at) {
            return tracing::debug!("one Event too many: {}", happening.reason);
        }
        let name = self.post(happening).await;
        if self.posted.len() >= REMEMBERED {
            let oldest =
                self.posted.iter().min_by_key(|(_, posted)| posted.at).map(|(known, _)| known.clone());
            oldest.map(|oldest| self.posted.remove(&oldest));
        }
        self.posted.insert(known, Posted { name, count: 1, at: happening.at });
    }

    /// A pod that flaps does not fill the cluster's store.
    fn may_post(&mut self, now: Timestamp) -> bool {
        let (left, at) = self.allowance;
        let earned = (now.as_second() - at.as_second()).max(0) as f64 / EACH_SECONDS;
        let left = (left + earned).min(AT_ONCE);
        self.allowance = (if left >= 1.0 { left - 1.0 } else { left }, now);
        left >= 1.0
    }

    /// Its name, when it was taken.
    async fn post(&mut self, happening: &Happening) -> Option<String> {
        if self.uid.is_none() {
            self.uid = self.own_uid().await;
        }
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let body = self.event(happening);
        let answer = self.send(reqwest::Method::POST, &path, "application/json", &body).await?;
        let status = answer.status();
        if !status.is_success() {
            self.tell(&format!("the Kubernetes API answered {status} to POST {path}"));
            return None;
        }
        let event: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        event.pointer("/metadata/name")?.as_str().map(str::to_owned)
    }

    /// Whether the Event is still there, and says now that it happened again; without the right to change it, it stays as it was.
    async fn count(&mut self, name: &str, count: u32, at: Timestamp) -> bool {
        let path = format!("/api/v1/namespaces/{}/events/{name}", self.namespace);
        let body = json!({ "count": count, "lastTimestamp": whole_seconds(at) });
        let answer = self.send(reqwest::Method::PATCH, &path, "application/merge-patch+json", &body).await;
        answer.is_none_or(|answer| answer.status() != reqwest::StatusCode::NOT_FOUND)
    }

    async fn send(
        &mut self,
        method: reqwest::Method,
        path: &str,
        kind: &str,
        body: &Value,
    ) -> Option<reqwest::Response> {
        let request = match self.request(method, path) {
            Ok(request) => request.header("content-type", kind).body(body.to_string()),
            Err(error) => {
                self.tell(&format!("the service account's token cannot be read: {error}"));
                return None;
            }
        };
        match request.send().await {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.tell(&format!("the Kubernetes API at {} does not answer: {error}", self.config.api));
                None
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
        let at = whole_seconds(*at);
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
                "no Events on the pod: {what}; allow `create` and `patch` on events for the service account, or set KESWARDEN_EVENTS=off"
            );
        }
    }
}

/// As `metav1.Time` has it.
fn whole_seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or_default().to_string()
}

/// As Kubernetes writes reasons: `vault_sealed` is `VaultSealed`.
fn camel_case(reason: &str) -> String {
    let capital = |word: &str| {
        let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        first.to_ascii_uppercase() + rest
    };
    reason.split('_').map(capital).collect()
}
