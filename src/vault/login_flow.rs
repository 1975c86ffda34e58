//! Logging in: the token of the process before, or credentials as they are now; one at a time, and a failure is everybody's who waited.

use super::{
    Client,
    endpoints::{Call, Headers},
    login::{self, Credentials, Fingerprint},
    refusals::Why,
    token::Grant,
    verdict::{self, Answer, Asked},
};
use crate::{
    cause::{Cause, Finding},
    clock::Instant,
    secret::Secret,
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How logins come about: one at a time, and the first with what the process before left.
#[derive(Default)]
pub(super) struct LoginFlow {
    /// Serialises logins: one task logs in, the others wait for its token.
    one_at_a_time: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// When a login last failed, and why.
    failed: Option<(Instant, Finding)>,
    /// The token of the process before was tried.
    is_handover_done: bool,
    /// The secret_id of a wrapping token, which opens once, while the secret_id may be used often.
    unwrapped: Option<(Fingerprint, Arc<Secret>)>,
}

const LATE_STANDBY: &str = "the node is a standby, which does not know a pair that was issued a moment ago: a SIGHUP has it tried again";

// === impl LoginFlow ===

impl LoginFlow {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets that a login failed, for a person who says that it is worth another try.
    pub(super) fn forget_failure(&self) {
        self.lock().failed = None;
    }

    /// The secret_id of a wrapping token that this process has opened.
    pub(super) fn secret_id_of(&self, wrapped: &Fingerprint) -> Option<Arc<Secret>> {
        let unwrapped = self.lock().unwrapped.clone();
        unwrapped.filter(|(of, _)| of == wrapped).map(|(_, secret_id)| secret_id)
    }
}

// === impl Client ===

impl Client {
    /// The token at hand, or a new one.
    pub(super) async fn live_token(&self) -> Result<Arc<Secret>, Finding> {
        match self.token.live(self.clock.theirs()) {
            Some(token) => Ok(token),
            None => self.login().await,
        }
    }

    /// Logs in, unless somebody else just did; a failure is everybody's who waited for it.
    pub(super) async fn login(&self) -> Result<Arc<Secret>, Finding> {
        let (before, queued) = (self.token.any(), self.clock.theirs());
        let _one_at_a_time = self.logins.one_at_a_time.lock().await;
        if let Some(token) = self.token.any()
            && before.as_ref().is_none_or(|before| !Arc::ptr_eq(before, &token))
        {
            return Ok(token);
        }
        if let Some((at, finding)) = &self.logins.lock().failed
            && *at > queued
        {
            return Err(finding.clone());
        }
        let result = match self.take_over().await {
            Ok(Some(token)) => Ok(token),
            Err(finding) => Err(finding),
            Ok(None) => {
                self.may_log_in()?;
                self.log_in_once().await
            }
        };
        self.logins.lock().failed =
            result.as_ref().err().map(|finding| (self.clock.theirs(), finding.clone()));
        result
    }

    /// Tokens that die faster than they should are not replaced as fast.
    fn may_log_in(&self) -> Result<(), Finding> {
        let may = self.token.may_log_in(self.clock.theirs());
        may.map_err(|_| {
            Cause::TokenDeadAtOnce.seen(format!(
                "Vault {} grants tokens and knows none of them a moment later; the next login is tried in a while",
                self.config.address
            ))
        })
    }

    async fn log_in_once(&self) -> Result<Arc<Secret>, Finding> {
        let credentials = self.config.login.read()?;
        self.may_be_sent(&credentials)?;
        let credentials = self.unwrapped(credentials).await?;
        self.may_be_sent(&credentials)?;
        let sent = self.clock.theirs();
        let granted = match self.present(&credentials).await {
            Ok(granted) => granted,
            Err((Why::BadPair, finding)) if self.at_a_standby().await => {
                let seen = format!("{}; {LATE_STANDBY}", finding.seen);
                let finding = Finding { seen, ..finding };
                self.not_taken(&credentials, Why::BadPair, &finding);
                return Err(finding);
            }
            Err((why, finding)) => {
                self.not_taken(&credentials, why, &finding);
                return Err(finding);
            }
        };
        self.refusals.forget(&credentials.fingerprint(&self.config));
        self.handover.drop_refusal();
        self.handover.keep_token(&granted.token);
        // What is in the file now is our own.
        self.logins.lock().is_handover_done = true;
        Ok(self.take(granted, sent))
    }

    fn may_be_sent(&self, credentials: &Credentials) -> Result<(), Finding> {
        self.refusals.check(&credentials.fingerprint(&self.config), self.clock.theirs())
    }

    /// A standby judges a login by what it has heard of: a fresh role or secret_id is `invalid` there (in 12 of 40 logins that were sent
    /// right after it was issued, OpenBao 2.7.2), and no header makes it ask its leader. The pair rests all the same: each refusal
    /// counts towards a lockout, on a standby too.
    async fn at_a_standby(&self) -> bool {
        let at = self.wire.turn().next().unwrap_or_default();
        self.health(at).await.is_some_and(|health| health.standby)
    }

    /// Sends them; why they were not taken, and whether they may be sent again.
    async fn present(&self, credentials: &Credentials) -> Result<login::Granted, (Why, Finding)> {
        let method = self.config.login.method();
        let count = |outcome: &str| {
            self.metrics.logins.with_label_values(&[method, outcome]).inc();
        };
        let (path, body, headers) = match credentials {
            Credentials::Token(token) => (
                "auth/token/lookup-self".to_owned(),
                None,
                Headers::with(Some(token.clone()), self.config.namespace.clone()),
            ),
            other => {
                let (path, body) = other.request();
                (path, Some(body), Headers::with(None, self.auth_namespace()))
            }
        };
        let what = if body.is_some() { "logging in" } else { "looking up the given token" };
        let asked = Asked { what, path: &path };
        let call = body.map_or_else(|| Call::get(&path), |body| Call::post(&path, &body));
        let answer = self.send(&asked, call, &headers).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(finding) => {
                let was_sent = finding.cause.may_have_been_sent();
                if was_sent {
                    count("failed");
                }
                return Err((if was_sent { Why::Trouble } else { Why::NotSent }, finding));
            }
        };
        let granted = match credentials {
            Credentials::Token(token) => login::from_lookup(token.clone(), &answer),
            _ if answer.status == 200 => login::from_login(&answer).map(Ok),
            _ => None,
        };
        let refused = match granted {
            Some(Ok(granted)) => {
                count("ok");
                return Ok(granted);
            }
            Some(Err(finding)) => finding,
            None => verdict::of_login(&self.config, method, &asked, &answer),
        };
        count("failed");
        let why = match answer.status {
            400 if credentials.is_pair() && answer.says("invalid role or secret ID") => Why::BadPair,
            400 | 403 | 404 => Why::Refused,
            _ => Why::Trouble,
        };
        if refused.cause == Cause::LoginLockedOut {
            // Each node of OpenBao counts for itself what it has refused: another one may take it.
            self.wire.prefer(self.wire.turn().nth(1).unwrap_or_default());
        }
        Err((why, refused))
    }

    fn not_taken(&self, credentials: &Credentials, why: Why, finding: &Finding) {
        if why == Why::NotSent {
            return;
        }
        let (fingerprint, now) = (credentials.fingerprint(&self.config), self.clock.theirs());
        self.refusals.note(fingerprint, why, finding, now, (self.chance)());
        if let Some(refusal) = self.refusals.to_be_remembered(&fingerprint, now) {
            self.handover.keep_refusal(&refusal);
        }
    }

    fn take(&self, granted: login::Granted, sent: Instant) -> Arc<Secret> {
        let grant = Grant { sent, ttl: granted.ttl, renewable: granted.renewable };
        self.token.put(granted.token.clone(), grant, self.clock.theirs(), (self.chance)());
        self.metrics.expires(&self.clock, granted.ttl);
        granted.token
    }

    /// The token of the process before, if it lives: tried once.
    async fn take_over(&self) -> Result<Option<Arc<Secret>>, Finding> {
        let Some(token) = self.handover.token().filter(|_| !self.logins.lock().is_handover_done) else {
            return Ok(None);
        };
        let headers = Headers::with(Some(token.clone()), self.config.namespace.clone());
        let asked =
            Asked { what: "looking up the token of the process before", path: "auth/token/lookup-self" };
        let sent = self.clock.theirs();
        let answer = self.send(&asked, Call::get(asked.path), &headers).await?;
        match login::from_lookup(token, &answer) {
            // Nothing is known of it yet: it is tried again.
            None => Err(verdict::of(&asked, &self.config, &answer)),
            Some(Ok(granted)) => {
                self.logins.lock().is_handover_done = true;
                tracing::debug!("the token of the process before is used on");
                Ok(Some(self.take(granted, sent)))
            }
            Some(Err(_)) => {
                self.logins.lock().is_handover_done = true;
                self.handover.drop_token();
                Ok(None)
            }
        }
    }

    /// An AppRole's credentials with the secret_id that was in the wrapping token; any other as they are.
    async fn unwrapped(&self, credentials: Credentials) -> Result<Credentials, Finding> {
        let fingerprint = credentials.fingerprint(&self.config);
        let Credentials::Wrapped { mount, role_id, wrapping_token } = &credentials else {
            return Ok(credentials);
        };
        let secret_id = match self.logins.secret_id_of(&fingerprint) {
            Some(secret_id) => secret_id,
            None => {
                self.was_wrapped_for_us(mount, wrapping_token, &credentials).await?;
                let secret_id = self.open_wrapping(wrapping_token, &credentials).await?;
                self.logins.lock().unwrapped = Some((fingerprint, secret_id.clone()));
                secret_id
            }
        };
        Ok(Credentials::AppRole { mount: mount.clone(), role_id: role_id.clone(), secret_id })
    }

    /// The wrapping token was made for a secret_id of this mount, and by nobody who put something else into it.
    async fn was_wrapped_for_us(
        &self,
        mount: &str,
        token: &Secret,
        credentials: &Credentials,
    ) -> Result<(), Finding> {
        let asked = Asked { what: "looking up the wrapping token", path: "sys/wrapping/lookup" };
        let body = serde_json::json!({ "token": token.expose() });
        let headers = Headers::with(None, self.auth_namespace());
        let answer = self.send(&asked, Call::post(asked.path, &body), &headers).await?;
        let path = answer.json::<serde_json::Value>();
        let path =
            path.as_ref().and_then(|body| body.pointer("/data/creation_path")?.as_str()).unwrap_or_default();
        let is_ours = |path: &str| {
            let role = path.strip_prefix(&format!("auth/{mount}/role/"))?.strip_suffix("/secret-id")?;
            (!role.is_empty() && !role.contains('/')).then_some(())
        };
        match answer.status {
            200 if is_ours(path).is_some() => Ok(()),
            200 => Err(Cause::SecretIdUsed.seen(format!(
                "the wrapping token was made by '{}', not by auth/{mount}/role/…/secret-id: somebody may have put a token of \
                 their own in its place",
                verdict::plain(path)
            ))),
            _ => Err(self.not_wrapped(&asked, credentials, &answer)),
        }
    }

    async fn open_wrapping(
        &self,
        token: &Arc<Secret>,
        credentials: &Credentials,
    ) -> Result<Arc<Secret>, Finding> {
        let asked = Asked { what: "unwrapping the secret_id", path: "sys/wrapping/unwrap" };
        let headers = Headers::with(Some(token.clone()), self.auth_namespace());
        let answer = self.send(&asked, Call::post(asked.path, &serde_json::json!({})), &headers).await?;
        match (answer.status, login::from_wrapping(&answer)) {
            (200, Some(secret_id)) => Ok(Arc::new(secret_id)),
            _ => Err(self.not_wrapped(&asked, credentials, &answer)),
        }
    }

    fn not_wrapped(&self, asked: &Asked<'_>, credentials: &Credentials, answer: &Answer) -> Finding {
        if answer.status != 400 || !answer.is_vaults() {
            return verdict::of(asked, &self.config, answer);
        }
        let finding = Cause::SecretIdUsed.seen(format!(
            "{} at Vault {} answered 400: the wrapping token has expired, or was opened before",
            asked.what, self.config.address
        ));
        self.not_taken(credentials, Why::BadPair, &finding);
        finding
    }

    pub(super) fn auth_namespace(&self) -> Option<String> {
        self.config.auth_namespace.clone().or_else(|| self.config.namespace.clone())
    }
}
