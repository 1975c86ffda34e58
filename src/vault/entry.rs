//! Logging in: the token of the process before, or credentials as they are now; one at a time, and a failure is everybody's who waited.

use super::{
    Client, chance,
    endpoints::{Call, Headers},
    lease::Lease,
    login,
    verdict::{self, Answer, Asked},
};
use crate::{
    cause::{Cause, Finding},
    clock::Instant,
    secret::Secret,
};
use std::sync::Arc;

impl Client {
    /// The token at hand, or a new one.
    pub(super) async fn token(&self) -> Result<Arc<Secret>, Finding> {
        let held = self.held_token();
        match held {
            Some(token) => Ok(token),
            None => self.login().await,
        }
    }

    fn held_token(&self) -> Option<Arc<Secret>> {
        let session = self.lock();
        let expired = session.lease.has_expired(self.clock.now());
        session.token.clone().filter(|_| !expired)
    }

    /// Logs in, unless somebody else just did; a failure is everybody's who waited for it.
    pub(super) async fn login(&self) -> Result<Arc<Secret>, Finding> {
        let (before, queued) = (self.lock().token.clone(), self.clock.now());
        let _one_at_a_time = self.logging_in.lock().await;
        {
            let session = self.lock();
            if let Some(token) = &session.token
                && before.as_ref().is_none_or(|before| !Arc::ptr_eq(before, token))
            {
                return Ok(token.clone());
            }
            if let Some((at, finding)) = &session.failed
                && *at > queued
            {
                return Err(finding.clone());
            }
        }
        let result = match self.inherit().await {
            Ok(Some(token)) => Ok(token),
            Err(finding) => Err(finding),
            Ok(None) => {
                let result = self.log_in_once().await;
                let outcome = if result.is_ok() { "ok" } else { "failed" };
                self.metrics.logins.with_label_values(&[self.config.login.method(), outcome]).inc();
                result
            }
        };
        self.lock().failed = result.as_ref().err().map(|finding| (self.clock.now(), finding.clone()));
        result
    }

    async fn log_in_once(&self) -> Result<Arc<Secret>, Finding> {
        let credentials = self.config.login.read()?;
        self.lock().refused.check(&credentials, self.clock.now())?;
        let credentials = self.unwrapped(credentials).await?;
        let namespace = self.auth_namespace();
        let sent = self.clock.now();
        let granted = match &credentials {
            login::Credentials::Token(token) => {
                let headers = Headers::with(Some(token.clone()), self.config.namespace.clone());
                let asked = Asked { what: "looking up the given token", path: "auth/token/lookup-self" };
                let answer = self.send(&asked, Call::get(asked.path), &headers).await?;
                let granted = login::from_lookup(token.clone(), &answer)
                    .unwrap_or_else(|| Err(verdict::of(&asked, &self.config, &answer)));
                if let Err(finding) = &granted {
                    self.refused(&credentials, &answer, finding);
                }
                granted?
            }
            other => {
                let (path, body) = other.request();
                let asked = Asked { what: "logging in", path: &path };
                let answer =
                    self.send(&asked, Call::post(&path, &body), &Headers::with(None, namespace)).await?;
                if answer.status != 200 {
                    let method = self.config.login.method();
                    let finding = verdict::of_login(method, &path, &self.config, &answer);
                    self.refused(&credentials, &answer, &finding);
                    return Err(finding);
                }
                login::from_login(&answer).ok_or_else(|| verdict::not_vault(&self.config, &answer))?
            }
        };
        self.heritage.drop_refusal();
        self.heritage.keep_token(&granted.token);
        Ok(self.take(granted, sent))
    }

    fn take(&self, granted: login::Granted, sent: Instant) -> Arc<Secret> {
        let mut session = self.lock();
        session.refused = login::Refused::default();
        session.token = Some(granted.token.clone());
        session.lease = Lease::granted(sent, granted.ttl, granted.renewable, chance());
        self.metrics.expires(&self.clock, granted.ttl);
        granted.token
    }

    fn refused(&self, credentials: &login::Credentials, answer: &Answer, finding: &Finding) {
        let now = self.clock.now();
        let mut session = self.lock();
        session.refused.note(credentials, answer, finding, now);
        if let Some(refusal) = session.refused.to_be_remembered(now) {
            self.heritage.keep_refusal(&refusal);
        }
    }

    /// The token of the process before, if it lives: tried once.
    async fn inherit(&self) -> Result<Option<Arc<Secret>>, Finding> {
        let Some(token) = self.heritage.token().filter(|_| !self.lock().inherited) else { return Ok(None) };
        let headers = Headers::with(Some(token.clone()), self.config.namespace.clone());
        let asked =
            Asked { what: "looking up the token of the process before", path: "auth/token/lookup-self" };
        let sent = self.clock.now();
        let answer = self.send(&asked, Call::get(asked.path), &headers).await?;
        match login::from_lookup(token, &answer) {
            // Nothing is known of it yet: it is tried again.
            None => Err(verdict::of(&asked, &self.config, &answer)),
            Some(Ok(granted)) => {
                self.lock().inherited = true;
                tracing::debug!("the token of the process before is used on");
                Ok(Some(self.take(granted, sent)))
            }
            Some(Err(_)) => {
                self.lock().inherited = true;
                self.heritage.drop_token();
                Ok(None)
            }
        }
    }

    /// An AppRole's credentials with the secret_id that was in the wrapping token; any other as they are.
    async fn unwrapped(&self, credentials: login::Credentials) -> Result<login::Credentials, Finding> {
        let fingerprint = credentials.fingerprint();
        let login::Credentials::Wrapped { mount, role_id, wrapping_token } = &credentials else {
            return Ok(credentials);
        };
        let known = self.lock().unwrapped.clone().filter(|(of, _)| *of == fingerprint);
        let secret_id = match known {
            Some((_, secret_id)) => secret_id,
            None => {
                self.was_wrapped_for_us(mount, wrapping_token, &credentials).await?;
                let secret_id = self.open_wrapping(wrapping_token, &credentials).await?;
                self.lock().unwrapped = Some((fingerprint, secret_id.clone()));
                secret_id
            }
        };
        Ok(login::Credentials::AppRole { mount: mount.clone(), role_id: role_id.clone(), secret_id })
    }

    /// The wrapping token was made for a secret_id of this mount, and by nobody who put something else into it.
    async fn was_wrapped_for_us(
        &self,
        mount: &str,
        token: &Secret,
        credentials: &login::Credentials,
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
                "the wrapping token was made by '{path}', not by auth/{mount}/role/…/secret-id: somebody may have put a token of \
                 their own in its place"
            ))),
            _ => Err(self.not_wrapped(&asked, credentials, &answer)),
        }
    }

    async fn open_wrapping(
        &self,
        token: &Arc<Secret>,
        credentials: &login::Credentials,
    ) -> Result<Arc<Secret>, Finding> {
        let asked = Asked { what: "unwrapping the secret_id", path: "sys/wrapping/unwrap" };
        let headers = Headers::with(Some(token.clone()), self.auth_namespace());
        let answer = self.send(&asked, Call::post(asked.path, &serde_json::json!({})), &headers).await?;
        match (answer.status, login::from_wrapping(&answer)) {
            (200, Some(secret_id)) => Ok(Arc::new(secret_id)),
            _ => Err(self.not_wrapped(&asked, credentials, &answer)),
        }
    }

    fn not_wrapped(&self, asked: &Asked<'_>, credentials: &login::Credentials, answer: &Answer) -> Finding {
        if answer.status != 400 {
            return verdict::of(asked, &self.config, answer);
        }
        let finding = Cause::SecretIdUsed.seen(format!(
            "{} at Vault {} answered 400: the wrapping token has expired, or was opened before",
            asked.what, self.config.address
        ));
        self.refused(credentials, answer, &finding);
        finding
    }

    fn auth_namespace(&self) -> Option<String> {
        self.config.auth_namespace.clone().or_else(|| self.config.namespace.clone())
    }
}
