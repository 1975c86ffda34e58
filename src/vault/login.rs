//! How we log in: a token, an AppRole or a Kubernetes service account, from the environment or from files.

use super::{session::Refusal, verdict::Answer};
use crate::{
    cause::{Cause, Finding},
    clock::{self, Instant},
    secret::{self, Secret},
};
use rustify::endpoint::Endpoint;
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::{path::PathBuf, sync::Arc, time::Duration};
use vaultrs::api::auth::{
    approle::requests::LoginWithApproleRequest, kubernetes::requests::LoginWithKubernetesRequest,
};
use zeroize::Zeroizing;

/// A secret that is given, or stands in a file that is read again at every login.
#[derive(Clone)]
pub enum Source {
    Value(Arc<Secret>),
    File(PathBuf),
}

/// How to log in.
#[derive(Clone)]
pub enum Login {
    Token(Source),
    AppRole {
        mount: String,
        role_id: Source,
        secret_id: Source,
    },
    /// An AppRole whose secret_id is in a response-wrapping token, which can be opened once.
    WrappedAppRole {
        mount: String,
        role_id: Source,
        wrapping_token: Source,
    },
    Kubernetes {
        mount: String,
        role: String,
        jwt: Source,
    },
    Jwt {
        mount: String,
        role: String,
        jwt: Source,
    },
    /// By the client certificate of the connection.
    Certificate {
        mount: String,
        role: Option<String>,
    },
}

/// Credentials, read now.
pub(super) enum Credentials {
    Token(Arc<Secret>),
    AppRole {
        mount: String,
        role_id: Arc<Secret>,
        secret_id: Arc<Secret>,
    },
    /// What is in the wrapping token is still to be fetched.
    Wrapped {
        mount: String,
        role_id: Arc<Secret>,
        wrapping_token: Arc<Secret>,
    },
    Kubernetes {
        mount: String,
        role: String,
        jwt: Arc<Secret>,
    },
    Jwt {
        mount: String,
        role: String,
        jwt: Arc<Secret>,
    },
    Certificate {
        mount: String,
        role: Option<String>,
    },
}

/// A token that Vault gave us, or that we were given and Vault knows.
pub(super) struct Granted {
    pub(super) token: Arc<Secret>,
    /// Absent: it never expires.
    pub(super) ttl: Option<Duration>,
    pub(super) renewable: bool,
}

/// The part of a login or renewal answer that we read.
#[derive(Deserialize)]
pub(super) struct Answered {
    pub(super) auth: Auth,
}

#[derive(Deserialize)]
pub(super) struct Auth {
    #[serde(default)]
    client_token: Zeroizing<String>,
    #[serde(default)]
    lease_duration: u64,
    #[serde(default)]
    pub(super) renewable: bool,
}

/// Credentials that Vault refused: they are not sent again soon, unless they change. Five refusals of an AppRole lock a
/// whole role out, and a Kubernetes login costs a TokenReview.
#[derive(Default)]
pub(super) struct Refused(Option<Rest>);

struct Rest {
    credentials: Fingerprint,
    until: Instant,
    next: Duration,
    finding: Finding,
}

pub(super) type Fingerprint = [u8; 32];

/// How long refused credentials rest unless they change: as long as OpenBao's lockout.
const REST: Duration = Duration::from_secs(15 * 60);
/// How long any other refusal rests, doubled each time: nothing in a login's status is final.
const LEAST: Duration = Duration::from_secs(2);
const MOST: Duration = Duration::from_secs(30);

// === impl Login ===

impl Login {
    /// The labels of every method.
    pub const METHODS: [&'static str; 5] = ["token", "approle", "kubernetes", "jwt", "cert"];

    pub fn method(&self) -> &'static str {
        match self {
            Self::Token(_) => Self::METHODS[0],
            Self::AppRole { .. } | Self::WrappedAppRole { .. } => Self::METHODS[1],
            Self::Kubernetes { .. } => Self::METHODS[2],
            Self::Jwt { .. } => Self::METHODS[3],
            Self::Certificate { .. } => Self::METHODS[4],
        }
    }

    /// Whether another login may give another token.
    pub(super) fn can_repeat(&self) -> bool {
        !matches!(self, Self::Token(Source::Value(_)))
    }

    pub(super) fn read(&self) -> Result<Credentials, Finding> {
        Ok(match self {
            Self::Token(token) => Credentials::Token(token.read()?),
            Self::AppRole { mount, role_id, secret_id } => Credentials::AppRole {
                mount: mount.clone(),
                role_id: role_id.read()?,
                secret_id: secret_id.read()?,
            },
            Self::WrappedAppRole { mount, role_id, wrapping_token } => Credentials::Wrapped {
                mount: mount.clone(),
                role_id: role_id.read()?,
                wrapping_token: wrapping_token.read()?,
            },
            Self::Kubernetes { mount, role, jwt } => {
                Credentials::Kubernetes { mount: mount.clone(), role: role.clone(), jwt: jwt.read()? }
            }
            Self::Jwt { mount, role, jwt } => {
                Credentials::Jwt { mount: mount.clone(), role: role.clone(), jwt: jwt.read()? }
            }
            Self::Certificate { mount, role } => {
                Credentials::Certificate { mount: mount.clone(), role: role.clone() }
            }
        })
    }
}

// === impl Source ===

impl Source {
    pub(super) fn read(&self) -> Result<Arc<Secret>, Finding> {
        match self {
            Self::Value(secret) => Ok(secret.clone()),
            Self::File(path) => Secret::read(path)
                .map(Arc::new)
                .map_err(|error| Cause::CredentialUnreadable.seen(error.to_string())),
        }
    }
}

// === impl Credentials ===

impl Credentials {
    /// The path and body of the login request; `vaultrs` has the shapes.
    pub(super) fn request(&self) -> (String, serde_json::Value) {
        fn of(endpoint: &impl Endpoint) -> (String, serde_json::Value) {
            let body = endpoint.body().ok().flatten().unwrap_or_default();
            let body = serde_json::from_slice(&Zeroizing::new(body)).unwrap_or_default();
            (endpoint.path().trim_matches(['/', '\t']).to_owned(), body)
        }
        match self {
            Self::Token(_) | Self::Wrapped { .. } => unreachable!("neither must be sent to a login path"),
            Self::Jwt { mount, role, jwt } => {
                (format!("auth/{mount}/login"), json!({ "role": role, "jwt": jwt.expose() }))
            }
            Self::Certificate { mount, role } => {
                let body = role.as_ref().map_or_else(|| json!({}), |role| json!({ "name": role }));
                (format!("auth/{mount}/login"), body)
            }
            Self::AppRole { mount, role_id, secret_id } => of(&LoginWithApproleRequest::builder()
                .mount(mount)
                .role_id(role_id.expose())
                .secret_id(secret_id.expose())
                .build()
                .expect("every field must be set")),
            Self::Kubernetes { mount, role, jwt } => of(&LoginWithKubernetesRequest::builder()
                .mount(mount)
                .role(role)
                .jwt(jwt.expose())
                .build()
                .expect("every field must be set")),
        }
    }

    /// A role_id with something that is used up, or locks the role out.
    pub(super) fn is_pair(&self) -> bool {
        matches!(self, Self::AppRole { .. } | Self::Wrapped { .. })
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        let digest = Sha256::new();
        let digest = match self {
            Self::Token(token) => digest.chain_update(token.expose()),
            Self::AppRole { role_id, secret_id, .. } => {
                digest.chain_update(role_id.expose()).chain_update([0]).chain_update(secret_id.expose())
            }
            Self::Wrapped { role_id, wrapping_token, .. } => {
                digest.chain_update(role_id.expose()).chain_update([1]).chain_update(wrapping_token.expose())
            }
            Self::Kubernetes { role, jwt, .. } | Self::Jwt { role, jwt, .. } => {
                digest.chain_update(role).chain_update([0]).chain_update(jwt.expose())
            }
            Self::Certificate { role, .. } => digest.chain_update(role.as_deref().unwrap_or_default()),
        };
        digest.finalize().into()
    }
}

// === impl Refused ===

impl Refused {
    /// Refuses in Vault's stead what Vault refused a while ago.
    pub(super) fn check(&self, credentials: &Credentials, now: Instant) -> Result<(), Finding> {
        let Some(Rest { credentials: refused, until, finding, .. }) = &self.0 else { return Ok(()) };
        if *refused != credentials.fingerprint() || now >= *until {
            return Ok(());
        }
        // What rests for a moment is no news; what rests for long is said, so that nobody waits in vain.
        Err(match finding.cause {
            Cause::LoginRefused | Cause::SecretIdUsed if credentials.is_pair() => {
                let left = clock::human(*until - now);
                finding.clone().fix(format!(
                    "{}; the same pair is not sent again for {left}, unless the file changes, lest Vault lock the role out",
                    finding.cause.usual_fix()
                ))
            }
            _ => finding.clone(),
        })
    }

    /// Those that the process before was refused.
    pub(super) fn remembered(before: Option<Refusal>, now: Instant) -> Self {
        Self(before.map(|Refusal { credentials, rest, finding }| Rest {
            credentials,
            until: now + rest,
            next: LEAST,
            finding,
        }))
    }

    /// What the next process must know: a pair that rests.
    pub(super) fn to_be_remembered(&self, now: Instant) -> Option<Refusal> {
        let Rest { credentials, until, finding, .. } = self.0.as_ref()?;
        let rest = until.saturating_duration_since(now);
        let is_pairs = matches!(finding.cause, Cause::LoginRefused | Cause::SecretIdUsed) && rest >= REST;
        is_pairs.then(|| Refusal { credentials: *credentials, rest, finding: finding.clone() })
    }

    /// Vault answered a login with something other than a token.
    pub(super) fn note(
        &mut self,
        credentials: &Credentials,
        answer: &Answer,
        finding: &Finding,
        now: Instant,
    ) {
        let [jitter] = secret::random();
        if !matches!(answer.status, 400 | 403 | 404 | 429) {
            return;
        }
        let fingerprint = credentials.fingerprint();
        let (rest, next) = match (&self.0, answer.status, finding.cause) {
            (_, 400, Cause::LoginRefused | Cause::SecretIdUsed) if credentials.is_pair() => {
                // So many pods have the same pair: they do not come back in the same second.
                (REST + REST.mul_f64(f64::from(jitter) / 2.0 / 255.0), LEAST)
            }
            (Some(before), ..) if before.credentials == fingerprint => {
                (before.next, (before.next * 2).min(MOST))
            }
            _ => (LEAST, LEAST * 2),
        };
        self.0 = Some(Rest { credentials: fingerprint, until: now + rest, next, finding: finding.clone() });
    }
}

// === impl Auth ===

impl Auth {
    pub(super) fn ttl(&self) -> Option<Duration> {
        (self.lease_duration > 0).then(|| Duration::from_secs(self.lease_duration))
    }
}

pub(super) fn from_login(answer: &Answer) -> Option<Granted> {
    let Answered { auth } = answer.json()?;
    let (ttl, renewable) = (auth.ttl(), auth.renewable);
    let token = auth.client_token.to_string();
    (!token.is_empty()).then(|| Granted { token: Arc::new(Secret::new(token)), ttl, renewable })
}

/// What was in a wrapping token.
pub(super) fn from_wrapping(answer: &Answer) -> Option<Secret> {
    #[derive(Deserialize)]
    struct Unwrapped {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        secret_id: Zeroizing<String>,
    }
    let Unwrapped { data } = answer.json()?;
    (!data.secret_id.is_empty()).then(|| Secret::new(data.secret_id.to_string()))
}

/// A given token, as `lookup-self` describes it. Nothing when the answer is for the verdict to say.
pub(super) fn from_lookup(token: Arc<Secret>, answer: &Answer) -> Option<Result<Granted, Finding>> {
    #[derive(Deserialize)]
    struct Lookup {
        data: Data,
    }
    #[derive(Deserialize)]
    struct Data {
        #[serde(default)]
        ttl: u64,
        #[serde(default)]
        renewable: bool,
    }
    match answer.status {
        200 => {
            let Lookup { data: Data { ttl, renewable } } = answer.json()?;
            let ttl = (ttl > 0).then(|| Duration::from_secs(ttl));
            Some(Ok(Granted { token, ttl, renewable }))
        }
        // It lives, but may not look itself up: use it as it is, and say what that costs.
        403 if answer.errors().iter().any(|error| error.contains("1 error occurred")) => {
            tracing::warn!(
                "the token may not look itself up, so its end is unknown: allow read on auth/token/lookup-self"
            );
            Some(Ok(Granted { token, ttl: None, renewable: false }))
        }
        403 => Some(Err(
            Cause::TokenDead.seen("Vault does not know the given token (403 on auth/token/lookup-self)")
        )),
        _ => None,
    }
}
