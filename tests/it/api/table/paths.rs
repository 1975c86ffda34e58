//! Paths: percent encoding, redirects to the clean path and to the slash, and paths that are not there.

use super::{
    AES_KEY, NOT_ALLOWED, STORED, Who,
    answers::{Findings, Wanted, json_of, none_of, refused},
    clients,
    model::{Call, METHODS, ROWS, expect},
    requests::UNREAD,
    serving, version_of,
};
use crate::harness::{App, Reply, api_key, block_on};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::{collections::BTreeSet, net::SocketAddr, sync::Arc};

fn kept_described() -> Wanted {
    json_of(concat!(
        "{\"name\":\"kept\",\"algorithm\":\"AES256\",\"created_at\":\"2023-11-14T22:13:20Z\",",
        "\"created_by\":\"someone\"}\n"
    ))
}

#[test]
fn percent_encoding_is_decoded_before_routing_and_before_judging() {
    let (picky, wary) = (api_key(20), api_key(21));
    let kes = App::server(&format!(
        "policy:
  picky:
    allow: [/v1/key/describe/kept]
    identities: [\"{}\"]
  wary:
    allow: [\"/v1/*\"]
    deny: [/v1/key/describe/kept]
    identities: [\"{}\"]
",
        picky.identity().as_str(),
        wary.identity().as_str()
    ));
    kes.store.put("kept", AES_KEY);
    let mut findings = Findings::default();
    for http1 in [true, false] {
        let admin = kes.admin_client(http1);
        let bad_name = |name: &str| {
            refused(400, &format!("key name '{name}' is empty, too long or contains invalid characters"))
        };
        for (path, wanted) in [
            ("/v1/key/describe/%6b%65%70%74", kept_described()),
            ("/v1/key/describe/%6Bept", kept_described()),
            ("/v1/%6Bey/describe/kept", kept_described()),
            ("/%76%31/key/describe%2Fkept", kept_described()),
            ("/v1/key/describe/kept?name=other&x=%2F", kept_described()),
            ("/v1/key/list/%2A", json_of("{\"names\":[\"kept\"]}\n")),
            ("/v1/key/list/ke%2A", json_of("{\"names\":[\"kept\"]}\n")),
            ("/v1/key/describe/a%2Fb", bad_name("a/b")),
            ("/v1/key/describe/%2A", bad_name("*")),
            // Decoded once, never twice.
            ("/v1/key/describe/%256Bept", bad_name("%6Bept")),
        ] {
            findings.check((&admin, http1), ("GET", path, None), &wanted);
        }
        for path in ["/v1/key/describe/kept", "/v1/key/describe/%6Bept", "/v1/%6bey/describe/kept"] {
            let (picky, wary) = (kes.client(Some(&picky), http1), kes.client(Some(&wary), http1));
            findings.check((&picky, http1), ("GET", path, None), &kept_described());
            findings.check((&wary, http1), ("GET", path, None), &refused(403, NOT_ALLOWED));
        }
    }
    none_of(&findings.0);
}

/// Sends a path exactly as it is spelt: URL libraries remove `..` before they send.
fn verbatim(api: SocketAddr, http1: bool, method: &str, path: &str) -> Reply {
    let mut config = rustls::ClientConfig::builder_with_provider(keswarden::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = vec![if http1 { b"http/1.1".to_vec() } else { b"h2".to_vec() }];
    let uri = if http1 { path.to_owned() } else { format!("https://{api}{path}") };
    let mut request = hyper::Request::builder().method(method).uri(uri);
    if http1 {
        request = request.header("host", api.to_string());
    }
    let request = request.body(http_body_util::Empty::<hyper::body::Bytes>::new()).unwrap();
    block_on(async {
        let stream = tokio::net::TcpStream::connect(api).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
        let io = hyper_util::rt::TokioIo::new(stream);
        // The sender lives until the body is here: dropping the sender may end the connection.
        if http1 {
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            whole(sender.send_request(request).await.unwrap()).await
        } else {
            let executor = hyper_util::rt::TokioExecutor::new();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io).await.unwrap();
            tokio::spawn(connection);
            whole(sender.send_request(request).await.unwrap()).await
        }
    })
}

async fn whole(answer: hyper::Response<hyper::body::Incoming>) -> Reply {
    let (head, body) = answer.into_parts();
    let body = http_body_util::BodyExt::collect(body).await.unwrap().to_bytes();
    let headers = head.headers.iter();
    Reply {
        status: head.status.as_u16(),
        body: String::from_utf8(body.to_vec()).unwrap(),
        headers: headers
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()))
            .collect(),
        version: format!("{:?}", head.version),
    }
}

/// Trusts every server: these tests are about paths.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        keswarden::tls::provider().signature_verification_algorithms.supported_schemes()
    }
}

/// A redirect as Go writes it. The headers of HEAD about a body are left open: KES's specification has those of GET and of the others.
fn is_redirect(got: &Reply, method: &str, location: &str) -> bool {
    let header = |name: &str| got.headers.get(name).map(String::as_str);
    let content = match method {
        "GET" => {
            got.body == format!("<a href=\"{location}\">Moved Permanently</a>.\n\n")
                && header("content-type") == Some("text/html; charset=utf-8")
                && header("content-length").is_none_or(|length| length == got.body.len().to_string())
        }
        "HEAD" => got.body.is_empty(),
        _ => {
            let unlabelled = header("content-type").is_none();
            got.body.is_empty() && unlabelled && header("content-length") == Some("0")
        }
    };
    got.status == 301 && header("location") == Some(location) && content
}

#[test]
fn paths_that_are_not_clean_are_redirected_to_the_clean_one() {
    let kes = serving();
    let mut findings = Findings::default();
    // No permission is needed, so a client without a certificate asks.
    for http1 in [true, false] {
        for (path, location) in [
            ("/v1//status", "/v1/status"),
            ("//v1/status", "/v1/status"),
            ("/v1/./status", "/v1/status"),
            ("/v1/status/.", "/v1/status"),
            ("/v1/key/../status", "/v1/status"),
            ("/../v1/status", "/v1/status"),
            ("/v1/key/list/../describe/kept", "/v1/key/describe/kept"),
            ("/v1/key/create//kept", "/v1/key/create/kept"),
            ("/v1/key/create//", "/v1/key/create/"),
            ("/v1//nowhere", "/v1/nowhere"),
            // Encoded or not is the same, since paths are decoded first.
            ("/v1/%2e%2e/v1/status", "/v1/status"),
            ("/v1/key/describe/a%2F%2Fb", "/v1/key/describe/a/b"),
        ] {
            for method in METHODS {
                let got = verbatim(kes.api, http1, method, path);
                if !is_redirect(&got, method, location) {
                    let version = version_of(http1);
                    findings.0.push(format!("{method} {path} over {version}, to {location}: got {got:?}"));
                }
            }
        }
    }
    none_of(&findings.0);
}

#[test]
fn paths_that_lack_their_slash_are_redirected_and_lists_are_answered() {
    let kes = serving();
    let mut findings = Findings::default();
    for who in [Who::Nobody, Who::Stranger, Who::Denied, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            for row in ROWS.iter().filter(|row| row.path.ends_with('/') && !row.path.ends_with("/list/")) {
                let path = row.path.strip_suffix('/').unwrap();
                for method in METHODS {
                    let about = format!("by {who:?}, to {}", row.path);
                    findings.judge((&client, http1), (method, path), &about, |got| {
                        is_redirect(got, method, row.path)
                    });
                }
            }
        }
    }
    // The list of a client that asks for no prefix comes at once, under the same rules as with the slash.
    let keys: BTreeSet<_> = STORED.iter().map(|(name, _)| (*name).to_owned()).collect();
    for who in [Who::Nobody, Who::Stranger, Who::Denied, Who::Unmentioned, Who::Allowed, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            for row in ROWS.iter().filter(|row| row.path.ends_with("/list/")) {
                for method in METHODS {
                    let wanted = expect(&Call { row, who, method, name: "", body: &UNREAD[0], keys: &keys });
                    let path = row.path.strip_suffix('/').unwrap();
                    findings.check((&client, http1), (method, path, None), &wanted);
                }
            }
        }
    }
    none_of(&findings.0);
}

#[test]
fn unknown_paths_are_not_found_by_anybody() {
    let kes = serving();
    let mut findings = Findings::default();
    for who in [Who::Nobody, Who::Stranger, Who::Denied, Who::Allowed, Who::Admin] {
        for (client, http1) in clients(&kes, who) {
            for path in [
                "/",
                "/v1",
                "/v1/",
                "/v1/key",
                "/v1/key/",
                "/v2/status",
                "/V1/status",
                "/version/",
                "/v1/version",
                "/v1/ready/",
                "/v1/status/",
                "/v1/status/x",
                "/v1/metrics/",
                "/v1/api/",
                "/v1/log",
                "/v1/log/error/",
                "/v1/log/audit/trace",
                "/v1/identity/self/describe/",
                "/v1/identity/self",
                // Routes of older versions of KES.
                "/v1/key/bulk/decrypt/kept",
                "/v1/policy/write/app",
                "/v1/identity/assign/app",
                "/v1/enclave/create/x",
                "/v1/secret/read/x",
            ] {
                for method in METHODS {
                    let body = if method == "HEAD" { "" } else { "404 page not found\n" };
                    findings.judge((&client, http1), (method, path), &format!("by {who:?}"), |got| {
                        let header = |name: &str| got.headers.get(name).map(String::as_str);
                        (got.status, got.body.as_str()) == (404, body)
                            && header("content-type") == Some("text/plain; charset=utf-8")
                            && header("x-content-type-options") == Some("nosniff")
                            && header("content-length") == Some("19")
                            && header("accept").is_none()
                    });
                }
            }
        }
    }
    none_of(&findings.0);
}
