//! Ways to log in: a token, an AppRole (plain or wrapped), a Kubernetes service account, a JWT, a client certificate; from the environment or
//! from files.

use super::{Config, verdict::Answer};
use crate::{
    cause::{Cause, Finding},
    secret::Secret,
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

pub(super) type Fingerprint = [u8; 32];

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

    /// Which they are, and at which place: what one Vault, or one mount, refuses is nobody else's word.
    pub(super) fn fingerprint(&self, place: &Config) -> Fingerprint {
        let (kind, mount, who, secret) = match self {
            Self::Token(token) => ("token", "", "", token.expose()),
            Self::AppRole { mount, role_id, secret_id } => {
                ("approle", &**mount, role_id.expose(), secret_id.expose())
            }
            Self::Wrapped { mount, role_id, wrapping_token } => {
                ("wrapped", &**mount, role_id.expose(), wrapping_token.expose())
            }
            Self::Kubernetes { mount, role, jwt } => ("kubernetes", &**mount, &**role, jwt.expose()),
            Self::Jwt { mount, role, jwt } => ("jwt", &**mount, &**role, jwt.expose()),
            Self::Certificate { mount, role } => ("cert", &**mount, role.as_deref().unwrap_or_default(), ""),
        };
        let namespace = place.auth_namespace.as_deref().or(place.namespace.as_deref()).unwrap_or_default();
        let mut digest = Sha256::new();
        for part in [&*place.address, namespace, kind, mount, who, secret] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

// === impl Auth ===

impl Auth {
    pub(super) fn ttl(&self) -> Option<Duration> {
        (self.lease_duration > 0).then(|| seconds(self.lease_duration))
    }
}

/// No token lives longer than ten years, as far as we count.
fn seconds(count: u64) -> Duration {
    Duration::from_secs(count.min(10 * 365 * 86_400))
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
        ttl: u64,
        #[serde(default)]
        expire_time: Option<String>,
        #[serde(default)]
        renewable: bool,
    }
    match answer.status {
        200 => {
            let Lookup { data: Data { ttl, expire_time, renewable } } = answer.json()?;
            // In its last second a token has 0 left; one that never expires has no end.
            if ttl == 0 && expire_time.is_some() {
                return Some(Err(Cause::TokenDead.seen("the token ends within a second")));
            }
            let ttl = (ttl > 0).then(|| seconds(ttl));
            Some(Ok(Granted { token, ttl, renewable }))
        }
        // It lives, but may not look itself up: it is used as it is, and `standing` says what that costs.
        403 if answer.errors().iter().any(|error| error.contains("1 error occurred")) => {
            Some(Ok(Granted { token, ttl: None, renewable: false }))
        }
        403 if answer.is_vaults() => Some(Err(
            Cause::TokenDead.seen("Vault does not know the given token (403 on auth/token/lookup-self)")
        )),
        _ => None,
    }
}
