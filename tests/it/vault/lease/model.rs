//! A model of Vault in simulated time, for several pods of one role: tokens that end and are revoked, outages of every kind, a standby
//! that is late, and an AppRole that is locked out after five refused logins. The model counts each pod's requests.

use async_trait::async_trait;
use keswarden::{
    tls::Trouble,
    vault::transport::{Failure, FailureKind, Transport},
};
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::time::Instant;

/// What is wrong with Vault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    Sealed,
    Refused,
    /// No answer comes.
    Silent,
    /// Every request is answered 500, and the health page is green.
    Internal,
    RateLimited,
    Tls,
}

pub const FAULTS: [Fault; 6] =
    [Fault::Sealed, Fault::Refused, Fault::Silent, Fault::Internal, Fault::RateLimited, Fault::Tls];

/// Five refused logins lock a role out for this long (OpenBao's default).
const LOCKOUT: Duration = Duration::from_secs(15 * 60);
const LOCKED_AFTER: usize = 5;

struct Token {
    pod: usize,
    /// From when on the node that is asked knows the token.
    from: Duration,
    expires: Duration,
    /// No renewal goes beyond.
    end: Duration,
    revoked: bool,
}

/// The requests of one pod.
#[derive(Default)]
pub struct Seen {
    /// Logins that were granted.
    pub logins: Vec<Duration>,
    /// Every login, whatever came of it.
    pub login_tries: Vec<Duration>,
    /// Refused logins, with their secret_id.
    pub refused: Vec<(Duration, String)>,
    /// Reads with a token that had been revoked.
    pub with_revoked: usize,
    /// Reads with a token after its end.
    pub after_the_end: usize,
    /// Reads with a token that the node does not know yet.
    pub too_soon: usize,
    /// Requests during a pause that was asked for.
    pub during_pause: usize,
    /// How often a living token of the pod was revoked.
    pub revocations: usize,
    /// From when an answer that asked for a pause has arrived, to its end.
    pause: Option<(Duration, Duration)>,
}

pub struct Model {
    started: Instant,
    /// How long the machines of all pods were suspended in all.
    pub suspended: Duration,
    pub ttl: Duration,
    pub most: Duration,
    pub faults: Vec<(Duration, Duration, Fault)>,
    /// The secret_id that is good now.
    pub secret_id: String,
    /// How long a standby is behind.
    pub lag: Duration,
    tokens: Vec<Token>,
    bad_logins: Vec<Duration>,
    locked_until: Option<Duration>,
    pub was_locked: bool,
    pub seen: Vec<Seen>,
}

/// The model, as one pod reaches Vault.
pub struct Pod {
    pub number: usize,
    pub model: Arc<Mutex<Model>>,
}

// === impl Model ===

impl Model {
    pub fn new(pods: usize, ttl: Duration, most: Duration) -> Self {
        Self {
            started: Instant::now(),
            suspended: Duration::ZERO,
            ttl,
            most,
            faults: Vec::new(),
            secret_id: "first".to_owned(),
            lag: Duration::ZERO,
            tokens: Vec::new(),
            bad_logins: Vec::new(),
            locked_until: None,
            was_locked: false,
            seen: (0..pods).map(|_| Seen::default()).collect(),
        }
    }

    /// Since the start, suspensions included.
    pub fn now(&self) -> Duration {
        self.started.elapsed() + self.suspended
    }

    fn fault(&self) -> Option<Fault> {
        let now = self.now();
        self.faults.iter().find(|(from, to, _)| (*from..*to).contains(&now)).map(|(.., fault)| *fault)
    }

    /// Every token is revoked.
    pub fn revoke(&mut self) {
        let now = self.now();
        for token in self.tokens.iter_mut().filter(|token| !token.revoked && now < token.expires) {
            token.revoked = true;
            self.seen[token.pod].revocations += 1;
        }
    }

    fn log_in(&mut self, pod: usize, request: &http::Request<Vec<u8>>) -> (u16, Value) {
        let now = self.now();
        if self.locked_until.is_some_and(|until| now < until) {
            return (403, errors("permission denied"));
        }
        let body: Value = serde_json::from_slice(request.body()).unwrap();
        let given = body["secret_id"].as_str().unwrap_or_default().to_owned();
        if given != self.secret_id {
            self.bad_logins.retain(|at| now - *at < LOCKOUT);
            self.bad_logins.push(now);
            if self.bad_logins.len() >= LOCKED_AFTER {
                (self.locked_until, self.was_locked) = (Some(now + LOCKOUT), true);
            }
            self.seen[pod].refused.push((now, given));
            return (400, errors("invalid role or secret ID"));
        }
        self.bad_logins.clear();
        let token = format!("s.{}", self.tokens.len());
        let (ttl, most) = (self.ttl.min(self.most), self.most);
        let from = now + self.lag;
        self.tokens.push(Token { pod, from, expires: now + ttl, end: now + most, revoked: false });
        self.seen[pod].logins.push(now);
        let auth = json!({ "client_token": token, "lease_duration": ttl.as_secs(), "renewable": true });
        (200, json!({ "auth": auth }))
    }

    fn answer(&mut self, pod: usize, request: &http::Request<Vec<u8>>) -> (u16, Value) {
        let path = request.uri().path().trim_start_matches("/v1/").to_owned();
        match path.as_str() {
            "auth/approle/login" => return self.log_in(pod, request),
            "sys/health" => return (200, json!({ "initialized": true, "sealed": false, "standby": false })),
            _ => {}
        }
        let (now, ttl) = (self.now(), self.ttl);
        let header = request.headers().get("x-vault-token").and_then(|value| value.to_str().ok());
        let number = header.and_then(|token| token.strip_prefix("s.")?.parse::<usize>().ok());
        let token = number.and_then(|number| self.tokens.get_mut(number));
        let is_read = path.starts_with("kv/");
        let seen = &mut self.seen[pod];
        let Some(token) = token.filter(|token| now >= token.from && now < token.expires && !token.revoked)
        else {
            let token = number.and_then(|number| self.tokens.get(number));
            match token.filter(|_| is_read) {
                Some(token) if token.revoked => seen.with_revoked += 1,
                Some(token) if now < token.from => seen.too_soon += 1,
                Some(_) => seen.after_the_end += 1,
                None => {}
            }
            return (403, errors("permission denied"));
        };
        match path.as_str() {
            "auth/token/lookup-self" => {
                let ttl = (token.expires - now).as_secs();
                let meta = json!({ "role_name": "minio" });
                (200, json!({ "data": { "ttl": ttl, "renewable": true, "num_uses": 0, "meta": meta } }))
            }
            "auth/token/renew-self" => {
                token.expires = (now + ttl).min(token.end);
                let granted = (token.expires - now).as_secs();
                (
                    200,
                    json!({ "auth": { "client_token": header, "lease_duration": granted, "renewable": true } }),
                )
            }
            "sys/capabilities-self" => {
                let rights =
                    json!({ "auth/token/lookup-self": ["read"], "auth/token/renew-self": ["update"] });
                (200, json!({ "data": rights }))
            }
            "auth/approle/role/minio/secret-id/lookup" => (403, errors("1 error occurred")),
            "kv/data/minio/my-key" => (200, json!({ "data": { "data": { "my-key": "text" } } })),
            other => panic!("nobody asks for {other}"),
        }
    }

    /// The answer to a request, and its delay.
    fn meet(
        &mut self,
        pod: usize,
        request: &http::Request<Vec<u8>>,
    ) -> (Duration, Result<Reply, FailureKind>) {
        let (now, path) = (self.now(), request.uri().path().trim_start_matches("/v1/"));
        let seen = &mut self.seen[pod];
        if path == "auth/approle/login" {
            seen.login_tries.push(now);
        }
        seen.during_pause += usize::from(seen.pause.is_some_and(|(from, until)| from < now && now < until));
        let soon = Duration::from_millis(20);
        let is_health = path == "sys/health";
        match self.fault() {
            Some(Fault::Refused) => (Duration::ZERO, Err(FailureKind::Refused)),
            Some(Fault::Tls) => (Duration::ZERO, Err(FailureKind::Tls(Trouble::Expired))),
            Some(Fault::Silent) => (Duration::from_secs(5), Err(FailureKind::Timeout)),
            Some(Fault::Sealed) if is_health => {
                (soon, Ok((503, json!({ "initialized": true, "sealed": true }), None)))
            }
            Some(Fault::Sealed) => (soon, Ok((503, errors("Vault is sealed"), None))),
            Some(Fault::Internal) if !is_health => (soon, Ok((500, errors("internal error"), None))),
            Some(Fault::RateLimited) if !is_health => {
                self.seen[pod].pause = Some((now + soon, now + soon + Duration::from_secs(3)));
                (soon, Ok((429, errors("request path rate limited"), Some("3"))))
            }
            _ => {
                let (status, body) = self.answer(pod, request);
                (soon, Ok((status, body, None)))
            }
        }
    }
}

/// Status, body, and Retry-After.
type Reply = (u16, Value, Option<&'static str>);

fn errors(text: &str) -> Value {
    json!({ "errors": [text] })
}

#[async_trait]
impl Transport for Pod {
    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, Failure> {
        let (after, reply) = self.model.lock().unwrap().meet(self.number, &request);
        tokio::time::sleep(after).await;
        let (status, body, retry_after) =
            reply.map_err(|kind| Failure { kind, words: "as the model says".to_owned() })?;
        let mut response = http::Response::new(body.to_string().into_bytes());
        *response.status_mut() = status.try_into().unwrap();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert("retry-after", seconds.parse().unwrap());
        }
        Ok(response)
    }
}
