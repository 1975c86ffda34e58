//! A client of the KES API, with MinIO's identity: generate, decrypt, and the round trip of both.

use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock},
    identity::{ApiKey, Certificate},
    names::Name,
    secret::Secret,
    tls::{
        self, Pair, Trouble,
        trust::{PeerEnds, Trust},
    },
};
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::{
    future::join_all,
    stream::{FuturesUnordered, StreamExt},
};
use serde::Deserialize;
use serde_json::json;
use std::{path::PathBuf, sync::Arc, time::Duration};
use zeroize::Zeroizing;

/// The endpoints of a KES, and MinIO's identity for them.
#[derive(Clone)]
pub struct Config {
    /// `https://host:port` of each endpoint. The answer of any endpoint counts.
    pub endpoints: Vec<String>,
    /// A file or directory of PEM certificates, trusted beside the system's roots.
    pub ca: Option<PathBuf>,
    /// MinIO's identity.
    pub identity: ClientIdentity,
    /// The CA of keswarden's own server, which distinguishes an agent from another KES.
    pub ours: PathBuf,
    /// The bound of one request.
    pub timeout: Duration,
}

/// The proof of MinIO's identity.
#[derive(Clone)]
pub enum ClientIdentity {
    /// An API key in KES's text form.
    ApiKey(Arc<Secret>),
    /// A certificate and its key.
    Certificate {
        /// The PEM file of the certificate.
        certificate: PathBuf,
        /// The PEM file of the key.
        key: PathBuf,
    },
}

/// A client of one KES.
pub struct Client {
    http: reqwest::Client,
    /// The client that trusts only keswarden's own CA; absent without that CA.
    ours: Option<reqwest::Client>,
    /// MinIO's identity, for people.
    identity: Option<String>,
    config: Config,
}

#[derive(Deserialize)]
struct Generated {
    plaintext: Zeroizing<String>,
    ciphertext: String,
}

#[derive(Deserialize)]
struct Decrypted {
    plaintext: Zeroizing<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Message {
    message: String,
}

/// The context of keswarden's own DEKs, which no object of MinIO has.
pub const CONTEXT: &str = "{\"keswarden\":\"gate\"}";

/// MinIO's operations with a key that an empty request tries without effect.
const OPERATIONS: [(reqwest::Method, &str); 3] = [
    (reqwest::Method::PUT, "generate"),
    (reqwest::Method::PUT, "decrypt"),
    (reqwest::Method::GET, "describe"),
];
/// The rule of a policy in KES for MinIO's identity.
const MINIO_ALLOW_RULE: &str = "allow: [/v1/key/create/*, /v1/key/generate/*, /v1/key/decrypt/*, /v1/key/describe/*, \
                             /v1/key/list/*, /v1/status, /v1/api]";

// === impl Client ===

impl Client {
    /// A client of the KES in `config`. No request is sent.
    ///
    /// # Errors
    /// `kes_tls` when the CA cannot be read; `kes_identity_unknown` when MinIO's identity cannot be read or
    /// used.
    pub fn new(config: Config, clock: &Clock) -> Result<Self, Finding> {
        Self::noting(config, clock, &PeerEnds::default())
    }

    /// A client that notes the validity of KES's certificate in `ends`.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn noting(config: Config, clock: &Clock, ends: &PeerEnds) -> Result<Self, Finding> {
        // MinIO trusts the system's roots beside its CAPATH.
        let trust = Trust::system_and(config.ca.as_deref())
            .map_err(|error| Cause::KesTls.seen(format!("MinIO's CA for KES cannot be used: {error}")))?;
        let pair = || config.identity.pair(clock);
        let identity =
            Certificate::parse(&pair()?.chain[0]).ok().map(|certificate| certificate.identity.to_string());
        let http = connect(trust.noting(ends), pair()?, config.timeout)?;
        let ours = match Trust::only(&config.ours) {
            Ok(trust) => Some(connect(trust, pair()?, config.timeout)?),
            Err(_) => None,
        };
        Ok(Self { http, ours, identity, config })
    }

    /// Whether an endpoint shows a certificate of keswarden's own CA. The gate then does not wait for the
    /// endpoint.
    pub async fn is_ours(&self) -> bool {
        let Some(ours) = &self.ours else { return false };
        let asked = self.config.endpoints.iter().map(|endpoint| async move {
            ours.get(format!("{}/version", endpoint.trim_end_matches('/'))).send().await.is_ok()
        });
        join_all(asked).await.contains(&true)
    }

    /// Makes a TLS handshake with every endpoint, and a request that needs no policy.
    pub async fn greet(&self) {
        let asked = self.config.endpoints.iter().map(|endpoint| async move {
            let _ = self.http.get(format!("{}/version", endpoint.trim_end_matches('/'))).send().await;
        });
        join_all(asked).await;
    }

    /// Has an endpoint generate and open a DEK of the key. All endpoints are asked at once; one success is
    /// enough.
    ///
    /// # Errors
    /// The finding of one endpoint, when no endpoint succeeds.
    pub async fn round_trip(&self, key: &Name) -> Result<(), Finding> {
        any(self.config.endpoints.iter().map(|endpoint| self.round_trip_at(endpoint, key))).await
    }

    /// A fresh DEK from any endpoint, in the clear and sealed for [`CONTEXT`].
    ///
    /// # Errors
    /// The finding of one endpoint, when no endpoint succeeds.
    pub async fn generate(&self, key: &Name) -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), Finding> {
        let context = STANDARD.encode(CONTEXT);
        let asked = self.config.endpoints.iter();
        let asked = asked
            .map(|endpoint| self.post::<Generated>(endpoint, "generate", key, json!({ "context": context })));
        let generated = any(asked).await?;
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| not_kes(&self.config.endpoints));
        Ok((Zeroizing::new(decode(&generated.plaintext)?), decode(&generated.ciphertext)?))
    }

    /// The plaintext of a ciphertext that was sealed for `context`, opened by any endpoint.
    ///
    /// # Errors
    /// The finding of one endpoint, when no endpoint succeeds.
    pub async fn decrypt(
        &self,
        key: &Name,
        ciphertext: &[u8],
        context: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Finding> {
        let body = json!({ "ciphertext": STANDARD.encode(ciphertext), "context": STANDARD.encode(context) });
        let asked = self.config.endpoints.iter();
        let asked = asked.map(|endpoint| self.post::<Decrypted>(endpoint, "decrypt", key, body.clone()));
        let opened = any(asked).await?;
        let plaintext = STANDARD.decode(&*opened.plaintext);
        plaintext.map(Zeroizing::new).map_err(|_| not_kes(&self.config.endpoints))
    }

    async fn round_trip_at(&self, endpoint: &str, key: &Name) -> Result<(), Finding> {
        let context = STANDARD.encode(CONTEXT);
        let generated: Generated =
            self.post(endpoint, "generate", key, json!({ "context": context })).await?;
        let sealed = json!({ "ciphertext": generated.ciphertext, "context": context });
        let opened: Decrypted = self.post(endpoint, "decrypt", key, sealed).await?;
        match opened.plaintext == generated.plaintext
            && STANDARD.decode(&*opened.plaintext).is_ok_and(|key| key.len() == 32)
        {
            true => Ok(()),
            false => Err(Cause::KesRoundTripFailed
                .seen(format!("KES {endpoint} opened a data key of '{key}' to other bytes"))),
        }
    }

    async fn post<T: serde::de::DeserializeOwned>(
        &self,
        endpoint: &str,
        operation: &str,
        key: &Name,
        body: serde_json::Value,
    ) -> Result<T, Finding> {
        let path = format!("/v1/key/{operation}/{key}");
        let request = self.http.post(format!("{}{path}", endpoint.trim_end_matches('/')));
        let request = request.header("content-type", "application/json").body(body.to_string());
        let answer = request.send().await.map_err(|error| unreachable(endpoint, &error))?;
        let status = answer.status().as_u16();
        let body =
            Zeroizing::new(answer.bytes().await.map_err(|error| unreachable(endpoint, &error))?.to_vec());
        match status {
            200 => serde_json::from_slice(&body).map_err(|_| {
                Cause::KesUnreachable
                    .seen(format!("{endpoint}{path} answered 200, but not as KES does"))
                    .fix("check that the endpoint is a KES server")
            }),
            403 => Err(self.denied(endpoint, key, refused(endpoint, &path, status, &body, key)).await),
            _ => Err(refused(endpoint, &path, status, &body, key)),
        }
    }

    /// Refines the finding of a 403, which KES answers both to an unknown identity and to one that lacks a
    /// right. An identity that is denied every operation is taken for unknown.
    async fn denied(&self, endpoint: &str, key: &Name, finding: Finding) -> Finding {
        let mut denied = Vec::new();
        for (method, operation) in OPERATIONS {
            let url = format!("{}/v1/key/{operation}/{key}", endpoint.trim_end_matches('/'));
            // The body is an empty object, so that KES does nothing but check the policy.
            let asked = self.http.request(method.clone(), url).body("{}").send().await;
            match asked {
                Ok(answer) if answer.status().as_u16() == 403 => denied.push(operation),
                Ok(_) => {}
                Err(_) => return finding,
            }
        }
        let identity = self.identity.as_deref().unwrap_or("of MinIO");
        if denied.len() == OPERATIONS.len() {
            return Cause::KesIdentityUnknown
                .seen(format!(
                    "{}; nor does it let the identity {identity} do anything else with the key",
                    finding.seen
                ))
                .fix(format!(
                    "add the identity {identity} to a policy in KES, or, if it is in one, the name of this key to the paths of that one: \
                     {MINIO_ALLOW_RULE}"
                ));
        }
        let lacks: Vec<_> = denied.iter().map(|operation| format!("/v1/key/{operation}/{key}")).collect();
        finding.fix(format!(
            "the policy of identity {identity} in KES lacks {}; MinIO needs {MINIO_ALLOW_RULE}",
            lacks.join(", ")
        ))
    }
}

/// The first success of any endpoint.
///
/// Without a success, the finding of an endpoint that answered is preferred to the finding of one that did
/// not. Once an endpoint has refused, the others have 1 s to answer.
async fn any<T>(
    asked: impl IntoIterator<Item = impl Future<Output = Result<T, Finding>>>,
) -> Result<T, Finding> {
    let mut asked: FuturesUnordered<_> = asked.into_iter().collect();
    let mut failure: Option<Finding> = None;
    let mut until = None;
    loop {
        let next = match until {
            None => asked.next().await,
            Some(until) => tokio::time::timeout_at(until, asked.next()).await.unwrap_or(None),
        };
        match next {
            Some(Ok(good)) => return Ok(good),
            Some(Err(finding)) => {
                let is_answer = finding.cause.is_an_answer();
                if is_answer && until.is_none() {
                    until = Some(clock::Instant::now() + WAIT_AFTER_REFUSAL);
                }
                if failure.as_ref().is_none_or(|failure| is_answer && !failure.cause.is_an_answer()) {
                    failure = Some(finding);
                }
            }
            None => {
                let no_endpoint =
                    || Cause::MinioEnvIncomplete.seen("MINIO_KMS_KES_ENDPOINT names no endpoint");
                return Err(failure.unwrap_or_else(no_endpoint));
            }
        }
    }
}

/// The wait for other endpoints after a refusal.
const WAIT_AFTER_REFUSAL: Duration = Duration::from_secs(1);

// === impl ClientIdentity ===

impl ClientIdentity {
    fn pair(&self, clock: &Clock) -> Result<Pair, Finding> {
        match self {
            Self::ApiKey(text) => {
                let key = ApiKey::parse(text.expose())
                    .map_err(|error| unusable(&format!("the API key {error}")))?;
                let (certificate, key) = key.certificate(clock::unix(clock.wall()) as i64);
                Ok(Pair { chain: vec![certificate], key })
            }
            Self::Certificate { certificate, key } => {
                Pair::read(certificate, key).map_err(|error| unusable(&error.to_string()))
            }
        }
    }
}

fn not_kes(endpoints: &[String]) -> Finding {
    Cause::KesUnreachable.seen(format!("{} answered 200, but not as KES does", endpoints.join(", ")))
}

fn unusable(reason: &str) -> Finding {
    Cause::KesIdentityUnknown.seen(format!("MinIO's identity for KES cannot be used: {reason}"))
}

fn connect(trust: Trust, pair: Pair, timeout: Duration) -> Result<reqwest::Client, Finding> {
    let tls = tls::client_config(trust, Some(pair)).map_err(|error| unusable(&error.to_string()))?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(timeout)
        .connect_timeout(timeout)
        .build()
        .map_err(|error| unusable(&error.to_string()))
}

fn unreachable(endpoint: &str, error: &reqwest::Error) -> Finding {
    if let Some((trouble, words)) = tls::trouble(error) {
        let cause = match trouble {
            Trouble::UnknownCa => Cause::KesTlsUnknownCa,
            Trouble::WrongName => Cause::KesTlsName,
            Trouble::Expired => Cause::KesTlsExpired,
            Trouble::NoTls => Cause::KesTlsPlainHttp,
            // A TLS 1.3 server refuses a missing or unwanted client certificate after the handshake.
            Trouble::OurCertificate => Cause::KesIdentityUnknown,
            Trouble::Other => Cause::KesTls,
        };
        return cause.seen(format!("KES {endpoint}: {words}"));
    }
    let words = if error.is_timeout() { "no answer in time".to_owned() } else { tls::words(error) };
    Cause::KesUnreachable.seen(format!("KES {endpoint} cannot be reached: {words}"))
}

fn refused(endpoint: &str, path: &str, status: u16, body: &[u8], key: &Name) -> Finding {
    let Message { message } = serde_json::from_slice(body).unwrap_or_default();
    let message: String = message.chars().filter(|character| !character.is_control()).take(200).collect();
    let seen = format!("KES {endpoint}{path} answered {status} {message}");
    match (status, message.as_str()) {
        (403, _) => Cause::KesDenied
            .seen(seen)
            .fix(format!("add to the policy of MinIO's identity in KES: {MINIO_ALLOW_RULE}")),
        (400, text) if text.contains("client certificate") => Cause::KesIdentityUnknown.seen(seen),
        (400, text) if text.contains("not authentic") => Cause::KesRoundTripFailed.seen(seen),
        (404, "key does not exist") => {
            Cause::KesKeyMissing.seen(seen).fix(format!("create the key: `kes key create {key}`"))
        }
        (500.., _) => Cause::KesBackendDown.seen(seen),
        _ => Cause::KesUnreachable.seen(seen).fix("check that the endpoint is a KES server"),
    }
}
