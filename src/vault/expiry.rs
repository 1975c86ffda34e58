//! What our login is worth: its rights over itself, how often it may be used, and when the secret_id behind it ends. Looked at once for
//! each token and then each hour, so that nothing lapses unforeseen; what cannot be known for want of a right is said once.

use super::{Client, endpoints::Call, login::Credentials, verdict::Asked};
use crate::{
    cause::{Cause, Finding},
    clock::Instant,
    secret::Secret,
    tls,
};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// What `lookup-self` says, as far as it concerns us.
#[derive(Default, Deserialize)]
#[serde(default)]
struct LookedUp {
    num_uses: u64,
    meta: Option<Meta>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Meta {
    role_name: String,
}

/// What `secret-id/lookup` says, as far as it concerns us.
#[derive(Default, Deserialize)]
#[serde(default)]
struct SecretId {
    expiration_time: String,
    secret_id_num_uses: u64,
    secret_id_ttl: u64,
}

const LOOK_UP: &str = "auth/token/lookup-self";
const RENEW: &str = "auth/token/renew-self";
/// A gate has other things to ask at first, and may be done by then.
const SETTLED: Duration = Duration::from_secs(5);
/// When Vault did not answer.
const SOON: Duration = Duration::from_secs(60);
/// How often it is looked at.
const AGAIN: Duration = Duration::from_secs(3600);
/// A secret_id that ends within so long is told of.
const AHEAD: Duration = Duration::from_secs(14 * 86_400);
/// So are so few uses that are left.
const FEW: u64 = 3;

/// What was seen of the login's standing, and of which token.
#[derive(Default)]
pub(super) struct Inspections(Mutex<State>);

#[derive(Default)]
struct State {
    /// The token that was looked at last, and when the next look is due.
    inspected: Option<(Arc<Secret>, Instant)>,
    /// The warnings that were logged last.
    logged: Vec<Finding>,
}

// === impl Inspections ===

impl Inspections {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the next look at a token is due, if the token was looked at.
    fn due(&self, token: &Arc<Secret>) -> Option<Instant> {
        self.lock().inspected.as_ref().filter(|(known, _)| Arc::ptr_eq(known, token)).map(|(_, due)| *due)
    }
}

// === impl Client ===

impl Client {
    /// What a person should mend before it stops anything. A failure to find out is none: whoever needs Vault says that better.
    pub async fn standing(&self) -> Vec<Finding> {
        self.look_at_standing().await.0
    }

    /// And whether Vault answered at all.
    async fn look_at_standing(&self) -> (Vec<Finding>, bool) {
        let mut findings = self.certificates();
        findings.extend(self.rights_over_itself().await);
        let looked_up = self.look_up().await;
        let answered = looked_up.is_some();
        let LookedUp { num_uses, meta } = looked_up.flatten().unwrap_or_default();
        if num_uses > 0 {
            findings.push(
                Cause::TokenUsesLimited
                    .seen(format!("the token may be used {num_uses} times more, and every request is one")),
            );
        }
        findings.extend(self.secret_id_ahead(meta.unwrap_or_default().role_name).await);
        (findings, answered)
    }

    /// Vault's certificate, as it was last shown, and our own.
    fn certificates(&self) -> Vec<Finding> {
        let own = self.config.client_certificate.as_ref().and_then(|(certificate, _)| {
            let chain = tls::read_certificates(certificate).ok()?;
            Some((
                format!("our certificate for Vault, {},", certificate.display()),
                tls::Validity::of(&chain[0])?,
            ))
        });
        self.metrics.own_certificate.set(own.as_ref().map_or(0.0, |(_, validity)| validity.ends as f64));
        let theirs = self.ends.last();
        self.metrics.certificate.set(theirs.map_or(0.0, |validity| validity.ends as f64));
        let theirs =
            theirs.map(|validity| (format!("the certificate of Vault {}", self.config.address), validity));
        let now = self.clock.unix_seconds();
        let both = theirs.into_iter().chain(own);
        both.filter_map(|(what, validity)| validity.look_ahead(&what, now).err()).collect()
    }

    /// How long until a token is to be looked at.
    pub(super) fn until_inspection(&self) -> Duration {
        let Some(token) = self.token.any() else { return AGAIN };
        let due = match (self.inspections.due(&token), self.token.granted_at(&token)) {
            (Some(due), _) => due,
            (None, Some(at)) => at + SETTLED,
            (None, None) => return Duration::ZERO,
        };
        due.saturating_duration_since(self.clock.theirs())
    }

    /// Looks at a fresh token when it has settled, and at any each hour; says what is new.
    pub(super) async fn inspect(&self) {
        if !self.until_inspection().is_zero() {
            return;
        }
        let Some(token) = self.token.any() else { return };
        let (findings, answered) = self.look_at_standing().await;
        // Without an answer nothing is known: it is asked again in a while.
        let now = self.clock.theirs();
        self.inspections.lock().inspected = Some((token, if answered { now + AGAIN } else { now + SOON }));
        if !answered {
            return;
        }
        let mut state = self.inspections.lock();
        for finding in findings.iter().filter(|finding| !state.logged.contains(finding)) {
            tracing::warn!(cause = finding.cause.id(), "{finding}");
        }
        state.logged = findings;
    }

    /// Without these two rights a token ends unforeseen, or sooner than it must.
    async fn rights_over_itself(&self) -> Option<Finding> {
        let asked =
            Asked { what: "asking for the token's rights over itself", path: "sys/capabilities-self" };
        let answer = self.post(&asked, &json!({ "paths": [LOOK_UP, RENEW] })).await.ok()?;
        let missing: Vec<_> = if answer.status == 200 {
            let rights: Value = answer.json()?;
            let may = |path: &str, right: &str| {
                let list =
                    rights.pointer("/data").and_then(|data| data.get(path)).or_else(|| rights.get(path));
                let mut list = list.and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
                list.any(|has| has == right || has == "root")
            };
            let needs = [(LOOK_UP, "read"), (RENEW, "update")];
            needs.into_iter().filter(|(path, right)| !may(path, right)).collect()
        } else {
            // Not even this may be asked: the other one tells by being refused.
            let asked = Asked { what: "looking up the token", path: LOOK_UP };
            let answer = self.get(&asked, None).await.ok()?;
            if answer.status == 403 { vec![(LOOK_UP, "read")] } else { Vec::new() }
        };
        let (first, _) = missing.first()?;
        let stanzas: Vec<_> = missing
            .iter()
            .map(|(path, right)| format!("path \"{path}\" {{ capabilities = [\"{right}\"] }}"))
            .collect();
        let seen = format!("the token has no right to {first}: it ends unforeseen");
        Some(Cause::TokenRightsMissing.seen(seen).fix(format!("add to the policy: {}", stanzas.join("; "))))
    }

    /// Nothing without an answer; nothing in it without the right.
    async fn look_up(&self) -> Option<Option<LookedUp>> {
        #[derive(Deserialize)]
        struct Answered {
            data: LookedUp,
        }
        let asked = Asked { what: "looking up the token", path: LOOK_UP };
        let answer = self.get(&asked, None).await.ok()?;
        let answered = if answer.status == 200 { answer.json::<Answered>() } else { None };
        Some(answered.map(|answered| answered.data))
    }

    /// When the secret_id ends, where the role may be asked.
    async fn secret_id_ahead(&self, role: String) -> Option<Finding> {
        let (mount, secret_id) = match self.config.login.read() {
            Ok(Credentials::AppRole { mount, secret_id, .. }) => (mount, secret_id),
            // What was in the wrapping, as long as this process has opened it.
            Ok(credentials @ Credentials::Wrapped { .. }) => {
                let fingerprint = credentials.fingerprint(&self.config);
                let Credentials::Wrapped { mount, .. } = credentials else { return None };
                (mount, self.logins.secret_id_of(&fingerprint)?)
            }
            _ => return None,
        };
        // A role's name comes from Vault, and becomes part of a path.
        let is_name = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        if role.is_empty() || !role.chars().all(is_name) || role.starts_with('.') {
            return None;
        }
        let path = format!("auth/{mount}/role/{role}/secret-id/lookup");
        let asked = Asked { what: "looking up the secret_id", path: &path };
        let body = json!({ "secret_id": secret_id.expose() });
        let answer = self.ask_in(self.auth_namespace(), &asked, Call::post(&path, &body)).await.ok()?;
        match answer.status {
            200 => {
                #[derive(Deserialize)]
                struct Answered {
                    data: SecretId,
                }
                let Answered { data } = answer.json()?;
                self.weigh(&role, &data)
            }
            204 => {
                self.metrics.secret_id_expiry.set(self.clock.unix_seconds());
                Some(Cause::SecretIdExpiring.seen(format!(
                "the role '{role}' does not know its secret_id any more: expired or used up; the token lives on, and no login will follow it"
                )))
            }
            _ => {
                tracing::debug!(
                    "when the secret_id ends is not known: the policy does not allow `update` on {path}"
                );
                None
            }
        }
    }

    fn weigh(&self, role: &str, secret_id: &SecretId) -> Option<Finding> {
        let ends = secret_id.expiration_time.parse::<jiff::Timestamp>().ok();
        // One that never ends is given the year 1.
        let ends = ends.filter(|ends| secret_id.secret_id_ttl > 0 && ends.as_second() > 0);
        self.metrics.secret_id_expiry.set(ends.map_or(0.0, |ends| ends.as_second() as f64));
        let is_near = |ends: &jiff::Timestamp| {
            ends.as_second() as f64 - self.clock.unix_seconds() < AHEAD.as_secs_f64()
        };
        if let Some(ends) = ends.filter(is_near) {
            return Some(
                Cause::SecretIdExpiring.seen(format!("the secret_id of the role '{role}' ends at {ends}")),
            );
        }
        match secret_id.secret_id_num_uses {
            // Without a limit.
            0 => None,
            uses if uses <= FEW => Some(
                Cause::SecretIdExpiring
                    .seen(format!("the secret_id of the role '{role}' can be used {uses} times more")),
            ),
            _ => None,
        }
    }
}
