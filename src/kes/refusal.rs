//! Why a request is refused: the only place that picks a status. The texts are KES's, byte for byte.

use crate::{cause::Finding, crypto::NotAuthentic, http::Body, store::Error};
use hyper::{
    Method, Response, StatusCode,
    header::{self, HeaderValue},
};

/// Why a request is refused.
#[derive(Debug)]
pub enum Refusal {
    NoCertificate,
    TooManyCertificates,
    NotAllowed,
    KeyMissing,
    KeyExists,
    PolicyMissing,
    IdentityMissing,
    NotAuthentic,
    InvalidName {
        what: &'static str,
        name: String,
    },
    InvalidPattern(String),
    InvalidBody,
    InvalidImportBody,
    Method {
        got: String,
        expected: &'static str,
    },
    Algorithm(String),
    KeySize(String),
    NoHmac,
    /// The key store failed; the finding is for the log, never for the client.
    Store {
        doing: Doing,
        finding: Finding,
    },
    /// The store holds another key under this name: nothing may be sealed with the one at hand.
    KeyLost,
    /// The key could not be verified for longer than the operator allows.
    Stale,
    /// `/v1/ready`.
    NotReady(Finding),
}

/// What was being done at the key store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    Create,
    Read,
    List,
    Delete,
}

/// As many characters of what a client wrote are sent back to it at most: strangers get short answers.
const SENT_BACK: usize = 1024;

// === impl Refusal ===

impl Refusal {
    /// What a failure of the store means for somebody who wanted a key.
    pub fn of(doing: Doing, error: Error) -> Self {
        match error {
            Error::Missing(_) => Self::KeyMissing,
            Error::Exists => Self::KeyExists,
            Error::Failed(finding) => Self::Store { doing, finding },
        }
    }

    pub fn status(&self) -> StatusCode {
        use StatusCode as Code;
        match self {
            Self::NotAllowed => Code::FORBIDDEN,
            Self::KeyMissing | Self::PolicyMissing | Self::IdentityMissing => Code::NOT_FOUND,
            Self::Method { .. } => Code::METHOD_NOT_ALLOWED,
            Self::Algorithm(_) | Self::KeySize(_) => Code::NOT_ACCEPTABLE,
            Self::NoHmac => Code::CONFLICT,
            Self::NotReady(finding) if finding.cause.is_store_unreachable() => Code::GATEWAY_TIMEOUT,
            Self::Store { .. } | Self::KeyLost | Self::Stale | Self::NotReady(_) => Code::BAD_GATEWAY,
            Self::NoCertificate
            | Self::TooManyCertificates
            | Self::KeyExists
            | Self::NotAuthentic
            | Self::InvalidName { .. }
            | Self::InvalidPattern(_)
            | Self::InvalidBody
            | Self::InvalidImportBody => Code::BAD_REQUEST,
        }
    }

    pub fn message(&self) -> String {
        match self {
            Self::NoCertificate => "tls: client certificate is required".to_owned(),
            Self::TooManyCertificates => "tls: received more than one client certificate".to_owned(),
            Self::NotAllowed => "not authorized: insufficient permissions".to_owned(),
            Self::KeyMissing => "key does not exist".to_owned(),
            Self::KeyExists => "key already exists".to_owned(),
            Self::PolicyMissing => "policy does not exist".to_owned(),
            Self::IdentityMissing => "identity does not exist".to_owned(),
            Self::NotAuthentic => NotAuthentic.to_string(),
            Self::InvalidName { what, name } => {
                format!("{what} '{name:.SENT_BACK$}' is empty, too long or contains invalid characters")
            }
            Self::InvalidPattern(pattern) => {
                format!("listing pattern '{pattern:.SENT_BACK$}' is empty, too long or is invalid")
            }
            Self::InvalidBody => "invalid request body".to_owned(),
            Self::InvalidImportBody => "invalid import key request body".to_owned(),
            Self::Method { got, expected } => {
                format!("received method '{got:.SENT_BACK$}' expected '{expected}'")
            }
            Self::Algorithm(name) => format!("algorithm '{name:.SENT_BACK$}' is not supported"),
            Self::KeySize(name) => format!("invalid key size for '{name}'"),
            Self::NoHmac => "key does not support HMAC".to_owned(),
            Self::Store { doing: Doing::Create, .. } => "failed to create key".to_owned(),
            Self::Store { doing: Doing::Read, .. } | Self::KeyLost | Self::Stale => {
                "failed to read key".to_owned()
            }
            Self::Store { doing: Doing::List, .. } => "failed to list keys".to_owned(),
            Self::Store { doing: Doing::Delete, .. } => "failed to delete key".to_owned(),
            Self::NotReady(finding) if finding.cause.is_store_unreachable() => {
                "key store is not reachable".to_owned()
            }
            Self::NotReady(_) => "key store is unavailable".to_owned(),
        }
    }

    /// The answer: `{"message":"…"` and a line end before the brace.
    pub fn response(&self) -> Response<Body> {
        let message = super::messages::quoted(&self.message());
        let mut response = super::json(format!("{{\"message\":{message}\n}}"));
        *response.status_mut() = self.status();
        if let Self::Method { expected, .. } = self {
            response.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(expected));
        }
        response
    }
}

/// No such path.
pub fn not_found() -> Response<Body> {
    let mut response = Response::new(Body::from("404 page not found\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The path is spelt differently: as Go's server answers, with a page for those who GET.
pub fn moved(to: &str, query: Option<&str>, method: &Method) -> Response<Body> {
    let mut location = percent_encoding::utf8_percent_encode(to, PATH).to_string();
    if let Some(query) = query {
        location = format!("{location}?{query}");
    }
    // No path of the API is nearly as long, however it is spelt.
    if location.len() > SENT_BACK {
        return not_found();
    }
    let mut response = match *method {
        Method::GET => {
            let shown = location.replace('&', "&amp;").replace('"', "&#34;").replace('\'', "&#39;");
            Response::new(Body::from(format!("<a href=\"{shown}\">Moved Permanently</a>.\n\n")))
        }
        _ => super::empty(),
    };
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    let headers = response.headers_mut();
    if matches!(*method, Method::GET | Method::HEAD) {
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
        headers.remove(header::CONTENT_LENGTH);
    }
    if let Ok(location) = HeaderValue::from_str(&location) {
        headers.insert(header::LOCATION, location);
    }
    response
}

/// The request line cannot be read: as Go's server answers, below HTTP.
pub fn malformed() -> Response<Body> {
    let mut response = Response::new(Body::from("400 Bad Request"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// What is left as it is in a path, as Go writes one.
const PATH: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b'/')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');
