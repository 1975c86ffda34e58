//! The S3 calls that bucket defaults need: list the buckets, read and set a bucket's default encryption.

use crate::{
    clock::Clock,
    secret::Secret,
    tls::{self, trust::Trust},
};
use aws_credential_types::Credentials;
use aws_sigv4::{
    http_request::{SignableBody, SignableRequest, SigningSettings, sign},
    sign::v4,
};
use serde::Deserialize;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// The address of a MinIO, and the credentials for requests.
#[derive(Clone)]
pub struct Config {
    /// `http://host:port` or `https://host:port`, without a path.
    pub endpoint: String,
    /// The access key of requests.
    pub access_key: Arc<Secret>,
    /// The secret key that signs requests.
    pub secret_key: Arc<Secret>,
    /// A file or directory of PEM certificates; the system's roots when absent.
    pub ca: Option<PathBuf>,
    /// The bound of one request.
    pub timeout: Duration,
}

/// A client of one MinIO.
pub struct Client {
    http: reqwest::Client,
    config: Config,
    clock: Clock,
}

/// The default encryption of a bucket's objects, for requests that name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sse {
    /// SSE-S3, with MinIO's default key.
    S3,
    /// SSE-KMS with the key of this name.
    Kms(String),
}

/// The failure of a call.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// MinIO gave no answer, or an answer that cannot be read.
    #[error("MinIO {endpoint} cannot be reached: {words}")]
    Unreachable {
        /// The endpoint of [`Config`].
        endpoint: String,
        /// The failure, for people.
        words: String,
    },
    /// MinIO answered an error, or a body that is not S3's.
    #[error("MinIO answered {status} {code} to {what}: {message}")]
    Refused {
        /// The request, for people.
        what: String,
        /// The HTTP status.
        status: u16,
        /// S3's code; empty when the answer has none.
        code: String,
        /// S3's message; empty when the answer has none.
        message: String,
    },
    /// The settings give no client or no request.
    #[error("the client for MinIO cannot be set up: {0}")]
    Setup(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Buckets {
    buckets: BucketList,
}

#[derive(Deserialize)]
struct BucketList {
    #[serde(rename = "Bucket", default)]
    bucket: Vec<Bucket>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Bucket {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Encryption {
    rule: Option<Rule>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Rule {
    apply_server_side_encryption_by_default: Option<ByDefault>,
}

#[derive(Deserialize)]
struct ByDefault {
    #[serde(rename = "SSEAlgorithm")]
    algorithm: Option<String>,
    #[serde(rename = "KMSMasterKeyID")]
    key: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Failure {
    code: String,
    message: String,
}

struct Answer {
    status: u16,
    body: String,
}

/// The prefix that MinIO adds to the names of keys in some answers.
const KEY_ARN_PREFIX: &str = "arn:aws:kms:";
/// The region of signatures.
const REGION: &str = "us-east-1";
/// Bytes of an answer at most. Ten thousand buckets take a quarter of this.
const ANSWER_BYTES_MAX: usize = 4 * 1024 * 1024;

// === impl Client ===

impl Client {
    /// A client for the MinIO of `config`. No request is sent.
    ///
    /// # Errors
    /// `Setup` when the certificates cannot be read.
    pub fn new(config: Config, clock: Clock) -> Result<Self, Error> {
        let http = connect(config.ca.as_deref(), config.timeout)?;
        Ok(Self { http, config, clock })
    }

    /// The names of all buckets.
    ///
    /// # Errors
    /// `Unreachable` without a readable answer, `Refused` when MinIO answers an error, `Setup` when the
    /// request cannot be signed.
    pub async fn buckets(&self) -> Result<Vec<String>, Error> {
        let answer = self.call("GET", "/", "", "").await?;
        let listed: Buckets = parse("the list of buckets", &answer)?;
        Ok(listed.buckets.bucket.into_iter().map(|bucket| bucket.name).collect())
    }

    /// The bucket's default encryption; nothing when the bucket has none, or one that is neither SSE-S3 nor
    /// SSE-KMS.
    ///
    /// # Errors
    /// As [`Client::buckets`].
    pub async fn encryption(&self, bucket: &str) -> Result<Option<Sse>, Error> {
        let answer = self.call("GET", &format!("/{bucket}"), "encryption=", "").await?;
        if answer.status == 404 && failure(&answer).code == "ServerSideEncryptionConfigurationNotFoundError" {
            return Ok(None);
        }
        let encryption: Encryption =
            parse(&format!("reading the default encryption of '{bucket}'"), &answer)?;
        let by_default = encryption.rule.and_then(|rule| rule.apply_server_side_encryption_by_default);
        Ok(by_default.and_then(|found| match (found.algorithm.as_deref(), found.key) {
            (Some("aws:kms"), key) => {
                let key = key.unwrap_or_default();
                Some(Sse::Kms(key.strip_prefix(KEY_ARN_PREFIX).unwrap_or(&key).to_owned()))
            }
            (Some("AES256"), _) => Some(Sse::S3),
            _ => None,
        }))
    }

    /// Sets the bucket's default encryption.
    ///
    /// # Errors
    /// As [`Client::buckets`].
    pub async fn set_encryption(&self, bucket: &str, sse: &Sse) -> Result<(), Error> {
        let rule = match sse {
            Sse::S3 => "<SSEAlgorithm>AES256</SSEAlgorithm>".to_owned(),
            Sse::Kms(key) => format!(
                "<SSEAlgorithm>aws:kms</SSEAlgorithm><KMSMasterKeyID>{}</KMSMasterKeyID>",
                quick_xml::escape::escape(key.as_str())
            ),
        };
        let body = format!(
            "<ServerSideEncryptionConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Rule>\
             <ApplyServerSideEncryptionByDefault>{rule}</ApplyServerSideEncryptionByDefault></Rule>\
             </ServerSideEncryptionConfiguration>"
        );
        let answer = self.call("PUT", &format!("/{bucket}"), "encryption=", &body).await?;
        match answer.status {
            200 | 204 => Ok(()),
            _ => Err(refused(&format!("setting the default encryption of '{bucket}'"), &answer)),
        }
    }

    async fn call(&self, method: &str, path: &str, query: &str, body: &str) -> Result<Answer, Error> {
        let Config { endpoint, access_key, secret_key, .. } = &self.config;
        let mark = if query.is_empty() { "" } else { "?" };
        let url = format!("{endpoint}{path}{mark}{query}");
        let setup = |error: &dyn std::fmt::Display| Error::Setup(error.to_string());
        let credentials =
            Credentials::new(access_key.expose(), secret_key.expose(), None, None, "settings").into();
        let params = v4::SigningParams::builder()
            .identity(&credentials)
            .region(REGION)
            .name("s3")
            .time(self.clock.wall())
            .settings(settings())
            .build()
            .map_err(|error| setup(&error))?
            .into();
        let signable =
            SignableRequest::new(method, &url, std::iter::empty(), SignableBody::Bytes(body.as_bytes()))
                .map_err(|error| setup(&error))?;
        let (instructions, _) = sign(signable, &params).map_err(|error| setup(&error))?.into_parts();
        let mut request = http::Request::builder()
            .method(method)
            .uri(&url)
            .body(body.to_owned())
            .map_err(|error| setup(&error))?;
        instructions.apply_to_request_http1x(&mut request);
        let request = reqwest::Request::try_from(request).map_err(|error| setup(&error))?;
        let answer = self.http.execute(request).await.map_err(|error| unreachable(endpoint, &error))?;
        let status = answer.status().as_u16();
        let body = text(endpoint, answer).await?;
        Ok(Answer { status, body })
    }
}

/// Calls a health probe of MinIO, without credentials, and returns the answer for people. Only the probes
/// show errors of the KMS.
///
/// # Errors
/// `Unreachable` without a readable answer, `Refused` when the status is not 200, `Setup` when the
/// certificates of `ca` cannot be read.
pub async fn probe(
    endpoint: &str,
    ca: Option<&Path>,
    path: &str,
    timeout: Duration,
) -> Result<String, Error> {
    let http = connect(ca, timeout)?;
    let answer = http.get(format!("{endpoint}{path}")).send().await;
    let answer = answer.map_err(|error| unreachable(endpoint, &error))?;
    let status = answer.status().as_u16();
    let server = answer.headers().get("x-minio-server-status").and_then(|value| value.to_str().ok());
    let server = server.map(|server| format!(", server status {server}")).unwrap_or_default();
    let body = text(endpoint, answer).await?;
    match status {
        200 => Ok(format!("{endpoint}{path} answered 200{server}")),
        _ => Err(refused(&format!("{path}{server}"), &Answer { status, body })),
    }
}

/// Reads a body of 4 MiB at most.
async fn text(endpoint: &str, mut answer: reqwest::Response) -> Result<String, Error> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(endpoint, &error))? {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            let words = format!("its answer is longer than {ANSWER_BYTES_MAX} bytes");
            return Err(Error::Unreachable { endpoint: endpoint.to_owned(), words });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(String::from_utf8_lossy(&body).into_owned())
}

fn connect(ca: Option<&Path>, timeout: Duration) -> Result<reqwest::Client, Error> {
    let setup = |error: tls::Error| Error::Setup(error.to_string());
    let trust = Trust::from_setting(ca).map_err(setup)?;
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls::client_config(trust, None).map_err(setup)?)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(timeout)
        .connect_timeout(timeout)
        .build()
        .map_err(|error| Error::Setup(error.to_string()))
}

fn unreachable(endpoint: &str, error: &reqwest::Error) -> Error {
    let words = match tls::trouble(error) {
        Some((_, words)) => words,
        None if error.is_timeout() => "no answer in time".to_owned(),
        None => tls::words(error),
    };
    Error::Unreachable { endpoint: endpoint.to_owned(), words }
}

/// The settings of S3 signatures: the hash of the body is in a header, and the path is signed unchanged.
fn settings() -> SigningSettings {
    use aws_sigv4::http_request::{PayloadChecksumKind, PercentEncodingMode, UriPathNormalizationMode};
    let mut settings = SigningSettings::default();
    settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
    settings.percent_encoding_mode = PercentEncodingMode::Single;
    settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
    settings
}

fn parse<T: serde::de::DeserializeOwned>(what: &str, answer: &Answer) -> Result<T, Error> {
    match answer.status {
        200 => quick_xml::de::from_str(&answer.body).map_err(|error| Error::Refused {
            what: what.to_owned(),
            status: 200,
            code: "Unreadable".to_owned(),
            message: error.to_string(),
        }),
        _ => Err(refused(what, answer)),
    }
}

fn failure(answer: &Answer) -> Failure {
    quick_xml::de::from_str(&answer.body).unwrap_or_default()
}

fn refused(what: &str, answer: &Answer) -> Error {
    let Failure { code, message } = failure(answer);
    Error::Refused { what: what.to_owned(), status: answer.status, code, message }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{Read, Write},
        net::TcpListener,
    };

    #[tokio::test]
    async fn an_answer_without_end_is_read_to_its_bound() {
        let dir = tempfile::tempdir().expect("a directory must be made");
        let run_dir = tls::mint::RunDir::new(dir.path().to_owned(), &[]);
        run_dir.ensure(1_800_000_000).expect("a CA must be made");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port must be given");
        let endpoint = format!("http://{}", listener.local_addr().expect("it must have an address"));
        let minio = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("somebody must ask");
            assert!(stream.read(&mut [0; 4096]).is_ok_and(|length| length > 0));
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("somebody must listen");
            // The write fails once the connection is closed.
            while stream.write_all(&[b'x'; 65536]).is_ok() {}
        });
        let probed = probe(&endpoint, Some(&run_dir.path("ca.crt")), "/", Duration::from_secs(60)).await;
        let error = probed.expect_err("it must be refused").to_string();
        assert!(error.contains("longer than 4194304 bytes"), "{error}");
        // The runtime of this thread closes the connection, so the wait is on another thread.
        let closed = tokio::task::spawn_blocking(move || minio.join()).await;
        closed.expect("it must be waited for").expect("the connection must be closed");
    }
}
