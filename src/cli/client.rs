//! The connection of client commands to a KES server: KES's environment, one HTTPS client, one request at a
//! time.

mod insecure;
mod own;

use super::{
    block_on,
    output::{self, Failure, Outcome},
};
use crate::{
    secret::Secret,
    tls::{self, Pair, Trouble, trust::Trust},
};
use clap::Args;
pub(super) use own::{ask, private_key};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Method, Response};
use rustls::ClientConfig;
use std::{path::PathBuf, time::Duration};
use url::Url;
use zeroize::Zeroizing;

// `Connection` and `Remote` have no doc comments: clap would print them as the description of each command
// with these flags.

#[derive(Args)]
pub(super) struct Connection {
    /// Skip the verification of the server's certificate
    #[arg(short = 'k', long)]
    insecure: bool,
    /// Trust these PEM certificates beside the system's (also: MINIO_KMS_KES_CAPATH)
    #[arg(long, value_name = "FILE|DIR")]
    ca: Option<PathBuf>,
}

#[derive(Args)]
pub(super) struct Remote {
    #[command(flatten)]
    pub(super) connection: Connection,
    /// Accepted for old scripts, and ignored: there are no enclaves
    #[arg(short, long, value_name = "NAME")]
    enclave: Option<String>,
}

/// Values of flags that override the environment.
#[derive(Default)]
pub(super) struct Given {
    pub(super) server: Option<String>,
    pub(super) api_key: Option<Secret>,
}

/// A client of the servers that flags or the environment name.
pub(super) struct Client {
    http: reqwest::Client,
    servers: Vec<Url>,
}

/// The answer of a server.
pub(super) struct Answer {
    /// `host:port`
    pub(super) server: String,
    pub(super) body: Zeroizing<Vec<u8>>,
}

const SERVER: &[&str] = &["MINIO_KES_SERVER", "KES_SERVER", "MINIO_KMS_KES_ENDPOINT"];
const CA_PATH: &[&str] = &["MINIO_KMS_KES_CAPATH"];

/// Bound of one request that is no stream.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Bound of a connection attempt, after which the next server is tried.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The characters that are escaped in a name or pattern as a path segment.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'*');

/// Runs a command that asks a server, and returns the exit code.
pub(super) fn with_client<F>(connection: &Connection, command: impl FnOnce(Client) -> F) -> u8
where
    F: Future<Output = Outcome>,
{
    with_given(connection, Given::default(), command)
}

/// As `with_client`, where flags name the server or the API key.
pub(super) fn with_given<F>(connection: &Connection, given: Given, command: impl FnOnce(Client) -> F) -> u8
where
    F: Future<Output = Outcome>,
{
    let client = match Client::new(connection, given) {
        Ok(client) => client,
        Err(failure) => return output::code_of(Err(failure)),
    };
    let work = command(client);
    output::code_of(block_on(async {
        tokio::select! {
            outcome = work => outcome,
            Ok(()) = tokio::signal::ctrl_c() => Err(Failure::Quiet),
        }
    }))
}

/// A name or pattern as the last segment of a path.
pub(super) fn path(operation: &str, name: &str) -> String {
    format!("/v1/{operation}/{}", utf8_percent_encode(name, ESCAPED))
}

// === impl Client ===

impl Client {
    fn new(connection: &Connection, given: Given) -> Result<Self, Failure> {
        let list = given.server.or_else(|| first_set(SERVER));
        let servers = servers(list.as_deref().unwrap_or("127.0.0.1:7373"))?;
        let tls = connection.tls(own::pair(given.api_key)?)?;
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT);
        // As in Go's clients: no proxy can reach a server on this machine.
        if servers.iter().all(is_local) {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| format!("cannot set up HTTPS: {error}"))?;
        Ok(Self { http, servers })
    }

    /// Sends a GET request to the first server that answers.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, String> {
        self.call(Method::GET, path, None).await
    }

    /// Sends one request to the first server that answers. The error is in KES's words where KES has given
    /// any.
    pub(super) async fn call(
        &self,
        method: Method,
        path: &str,
        body: Option<Zeroizing<String>>,
    ) -> Result<Answer, String> {
        let (server, response) = self.send(method, path, body.as_ref(), Some(REQUEST_TIMEOUT)).await?;
        let response = accepted(response).await?;
        let bytes = response.bytes().await.map_err(|error| format!("{server}: {}", reason(&error)))?;
        Ok(Answer { server, body: Zeroizing::new(bytes.to_vec()) })
    }

    /// Sends a GET request whose answer goes on until the server ends the stream.
    pub(super) async fn stream(&self, path: &str) -> Result<Response, String> {
        let (_, response) = self.send(Method::GET, path, None, None).await?;
        accepted(response).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<&Zeroizing<String>>,
        timeout: Option<Duration>,
    ) -> Result<(String, Response), String> {
        let mut reasons = Vec::new();
        for server in &self.servers {
            let address = address(server);
            let mut request = self.http.request(method.clone(), format!("https://{address}{path}"));
            if let Some(body) = body {
                request = request.header("content-type", "application/json").body(body.as_str().to_owned());
            }
            if let Some(timeout) = timeout {
                request = request.timeout(timeout);
            }
            match request.send().await {
                Ok(response) => return Ok((address, response)),
                Err(error) => reasons.push(format!("{address}: {}", reason(&error))),
            }
        }
        Err(reasons.join("; "))
    }
}

// === impl Answer ===

impl Answer {
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, String> {
        serde_json::from_slice(&self.body).map_err(|_| format!("{}: this is no answer of KES", self.server))
    }
}

// === impl Connection ===

impl Connection {
    fn tls(&self, own: Pair) -> Result<ClientConfig, Failure> {
        let config = match self.insecure {
            true => insecure::config(own),
            false => {
                let ca = self.ca.clone().or_else(|| first_set(CA_PATH).map(PathBuf::from));
                let trust = Trust::system_and(ca.as_deref()).map_err(|error| error.to_string())?;
                tls::client_config(trust, Some(own))
            }
        };
        config.map_err(|error| Failure::Because(error.to_string()))
    }
}

/// The value of the first variable that is set and not empty.
fn first_set(names: &[&str]) -> Option<String> {
    names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}

fn servers(list: &str) -> Result<Vec<Url>, Failure> {
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    let servers: Vec<_> = names.map(server).collect::<Result<_, _>>()?;
    if servers.is_empty() { Err("no server is named".into()) } else { Ok(servers) }
}

fn server(name: &str) -> Result<Url, Failure> {
    let bare = name.strip_prefix("http://").or_else(|| name.strip_prefix("https://")).unwrap_or(name);
    let url = Url::parse(&format!("https://{bare}")).ok().filter(Url::has_host);
    url.ok_or_else(|| Failure::Because(format!("'{}' is no server: write host:port", output::plain(name))))
}

/// `host:port`
fn address(server: &Url) -> String {
    format!("{}:{}", server.host_str().unwrap_or_default(), server.port().unwrap_or(443))
}

fn is_local(server: &Url) -> bool {
    match server.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

/// The answer when its status is 200, or else the server's message.
async fn accepted(response: Response) -> Result<Response, String> {
    let status = response.status();
    if status == reqwest::StatusCode::OK {
        return Ok(response);
    }
    let body = response.bytes().await.unwrap_or_default();
    let message = serde_json::from_slice::<serde_json::Value>(&body)
        .ok()
        .and_then(|json| json["error"].as_str().or_else(|| json["message"].as_str()).map(str::to_owned))
        .unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
    let message: String = output::plain(message.trim()).chars().take(1000).collect();
    Err(if message.is_empty() { format!("the server answered {status}") } else { message })
}

/// The reason why no answer came, in words.
fn reason(error: &reqwest::Error) -> String {
    match tls::trouble(error) {
        Some((Trouble::UnknownCa, words)) => {
            return format!("{words}: name the server's CA with --ca, or skip the check with -k");
        }
        Some((_, words)) => return words,
        None if error.is_timeout() => return "no answer in time".to_owned(),
        None => {}
    }
    tls::words(error)
}
