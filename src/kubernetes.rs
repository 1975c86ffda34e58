//! Happenings as Events on this process's own pod, so that `kubectl describe pod` shows why the pod waits.
//!
//! A repeated happening is counted on its Event. A flapping pod posts no more Events than Kubernetes' own
//! components would. Without the right to post, one line is logged.

use crate::{
    health::{Happening, Severity},
    tls::{self, trust::Trust},
};
use jiff::Timestamp;
use serde_json::{Value, json};
use std::{collections::HashMap, path::PathBuf, time::Duration};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use zeroize::Zeroizing;

/// The Kubernetes API, and this process's identity there.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:port` of the API.
    pub api: String,
    /// The folder of the service account: `token`, `ca.crt`, `namespace`.
    pub dir: PathBuf,
    /// The name of this process's pod.
    pub pod: String,
}

/// The task that posts Events.
pub struct Poster {
    config: Config,
    namespace: String,
    http: reqwest::Client,
    uid: Option<String>,
    /// The last Events, by reason and message.
    posted: HashMap<(&'static str, String), Posted>,
    /// The number of Events that may be posted, and the time of that count.
    allowance: (f64, Timestamp),
    /// Whether a failure to post was logged.
    failure_logged: bool,
}

/// An Event that was posted.
struct Posted {
    /// The Event's name; absent when the API did not take the Event.
    name: Option<String>,
    count: u32,
    /// The time of the last write.
    at: Timestamp,
}

/// The bound of one request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of an Event's message at most (core/v1, Event.message).
const MESSAGE_BYTES_MAX: usize = 1024;
/// Seconds between two writes of a repeated happening.
const REWRITE_SECONDS: i64 = 60;
/// Events that may be posted at once, as in client-go's recorder.
const BURST_MAX: f64 = 25.0;
/// Seconds until one more Event may be posted, as in client-go's recorder.
const SECONDS_PER_EVENT: f64 = 300.0;
/// Events that are kept for counting, at most.
const POSTED_MAX: usize = 64;

// === impl Poster ===

impl Poster {
    /// A poster for the pod of `config`; nothing outside a pod, or in a pod without a service account's
    /// token.
    pub fn new(config: Config) -> Option<Self> {
        let namespace = std::fs::read_to_string(config.dir.join("namespace")).ok()?.trim().to_owned();
        config.dir.join("token").exists().then_some(())?;
        let trust = Trust::only(&config.dir.join("ca.crt")).ok()?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls::client_config(trust, None).ok()?)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(REQUEST_TIMEOUT)
            .build()
            .ok()?;
        let (posted, allowance) = (HashMap::new(), (BURST_MAX, Timestamp::UNIX_EPOCH));
        Some(Self { config, namespace, http, uid: None, posted, allowance, failure_logged: false })
    }

    /// Posts one Event for each new happening, until the channel closes. Happenings of a burst that overflows
    /// the channel are not posted.
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
            if (happening.at.as_second() - posted.at.as_second()).abs() < REWRITE_SECONDS {
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
        if self.posted.len() >= POSTED_MAX {
            let oldest =
                self.posted.iter().min_by_key(|(_, posted)| posted.at).map(|(known, _)| known.clone());
            oldest.map(|oldest| self.posted.remove(&oldest));
        }
        self.posted.insert(known, Posted { name, count: 1, at: happening.at });
    }

    /// Takes one Event from the allowance, so that a flapping pod does not fill the cluster's store.
    fn may_post(&mut self, now: Timestamp) -> bool {
        let (left, at) = self.allowance;
        let earned = (now.as_second() - at.as_second()).max(0) as f64 / SECONDS_PER_EVENT;
        let left = (left + earned).min(BURST_MAX);
        self.allowance = (if left >= 1.0 { left - 1.0 } else { left }, now);
        left >= 1.0
    }

    /// Posts an Event, and returns the Event's name; nothing when the API did not take the Event.
    async fn post(&mut self, happening: &Happening) -> Option<String> {
        if self.uid.is_none() {
            self.uid = self.own_uid().await;
        }
        let path = format!("/api/v1/namespaces/{}/events", self.namespace);
        let body = self.event(happening);
        let answer = self.send(reqwest::Method::POST, &path, "application/json", &body).await?;
        let status = answer.status();
        if !status.is_success() {
            self.log_failure(&format!("the Kubernetes API answered {status} to POST {path}"));
            return None;
        }
        let event: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        event.pointer("/metadata/name")?.as_str().map(str::to_owned)
    }

    /// Writes a repetition to an Event. False when the Event is gone; a refusal leaves the Event as before,
    /// and counts as written.
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
                self.log_failure(&format!("the service account's token cannot be read: {error}"));
                return None;
            }
        };
        match request.send().await {
            Ok(answer) => Some(answer),
            Err(error) => {
                self.log_failure(&format!(
                    "the Kubernetes API at {} does not answer: {error}",
                    self.config.api
                ));
                None
            }
        }
    }

    /// The uid of this process's pod, by which `kubectl describe pod` finds Events; nothing without the right
    /// to read the pod. Events then have the name only.
    async fn own_uid(&self) -> Option<String> {
        let path = format!("/api/v1/namespaces/{}/pods/{}", self.namespace, self.config.pod);
        let answer = self.request(reqwest::Method::GET, &path).ok()?.send().await.ok()?;
        let pod: Value = serde_json::from_slice(&answer.bytes().await.ok()?).ok()?;
        pod.pointer("/metadata/uid")?.as_str().map(str::to_owned)
    }

    /// A request with the service account's token. Each request reads the token again, because the kubelet
    /// replaces the file.
    fn request(&self, method: reqwest::Method, path: &str) -> std::io::Result<reqwest::RequestBuilder> {
        let token = Zeroizing::new(std::fs::read_to_string(self.config.dir.join("token"))?);
        Ok(self.http.request(method, format!("{}{path}", self.config.api)).bearer_auth(token.trim()))
    }

    fn event(&self, Happening { at, severity, reason, says }: &Happening) -> Value {
        let at = whole_seconds(*at);
        let mut end = says.len().min(MESSAGE_BYTES_MAX);
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

    /// Logs the first failure to post.
    fn log_failure(&mut self, what: &str) {
        if !std::mem::replace(&mut self.failure_logged, true) {
            tracing::info!(
                "no Events on the pod: {what}; allow `create` and `patch` on events for the service account, or set KESWARDEN_EVENTS=off"
            );
        }
    }
}

/// A time in the form of `metav1.Time`, which has whole seconds.
fn whole_seconds(at: Timestamp) -> String {
    Timestamp::from_second(at.as_second()).unwrap_or_default().to_string()
}

/// A reason in Kubernetes' form: `VaultSealed` for `vault_sealed`.
fn camel_case(reason: &str) -> String {
    let capital = |word: &str| {
        let (first, rest) = word.split_at_checked(1).unwrap_or((word, ""));
        first.to_ascii_uppercase() + rest
    };
    reason.split('_').map(capital).collect()
}
