//! Refusals of requests, with their statuses. No other place picks a status. The texts are KES's, byte for
//! byte.

use crate::{cause::Finding, crypto::NotAuthentic, http::Body, store::Error};
use hyper::{
    Method, Response, StatusCode,
    header::{self, HeaderValue},
};

/// The reason for a refused request.
#[derive(Debug)]
pub enum Refusal {
    /// The caller showed no client certificate.
    NoCertificate,
    /// The caller showed more than one client certificate.
    TooManyCertificates,
    /// No policy allows the path, or the operator allows no deletion.
    NotAllowed,
    /// The store has no key of this name.
    KeyMissing,
    /// The store has a key of this name already.
    KeyExists,
    /// No policy has this name.
    PolicyMissing,
    /// The identity has no policy and is not the admin.
    IdentityMissing,
    /// The ciphertext does not open with this key and context.
    NotAuthentic,
    /// `name` is no valid name of a `what`.
    InvalidName {
        /// The kind of name: `key name`, `policy name` or `identity`.
        what: &'static str,
        /// The client's text.
        name: String,
    },
    /// The client's text is no valid pattern for listing.
    InvalidPattern(String),
    /// The body cannot be read.
    InvalidBody,
    /// The body of an import cannot be read.
    InvalidImportBody,
    /// The route takes another method.
    Method {
        /// The client's method.
        got: String,
        /// The route's method.
        expected: &'static str,
    },
    /// The algorithm of an imported key, which is unknown.
    Algorithm(String),
    /// The algorithm of an imported key whose length is not 32 bytes.
    KeySize(String),
    /// The key has no HMAC key.
    NoHmac,
    /// The key store failed. The finding is for the log, never for the client.
    Store {
        /// The operation that failed.
        doing: Doing,
        /// The cause of the failure.
        finding: Finding,
    },
    /// The key store has lost the key: the key may not seal.
    KeyLost,
    /// The key could not be verified for longer than the operator allows.
    Stale,
    /// The agent is not ready, as `/v1/ready` answers.
    NotReady(Finding),
}

/// An operation of the key store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doing {
    /// A key is created or imported.
    Create,
    /// A key is read.
    Read,
    /// The names of keys are listed.
    List,
    /// A key is deleted.
    Delete,
}

/// Characters of a client's text that an answer repeats at most, so that strangers get short answers.
const ECHOED_CHARS_MAX: usize = 1024;

// === impl Refusal ===

impl Refusal {
    /// The refusal that an error of the store means for the client.
    pub fn of(doing: Doing, error: Error) -> Self {
        match error {
            Error::Missing(_) => Self::KeyMissing,
            Error::Exists => Self::KeyExists,
            Error::Failed(finding) => Self::Store { doing, finding },
        }
    }

    /// The HTTP status, as KES picks the status.
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

    /// The text for the client, as KES writes the text.
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
                format!(
                    "{what} '{name:.ECHOED_CHARS_MAX$}' is empty, too long or contains invalid characters"
                )
            }
            Self::InvalidPattern(pattern) => {
                format!("listing pattern '{pattern:.ECHOED_CHARS_MAX$}' is empty, too long or is invalid")
            }
            Self::InvalidBody => "invalid request body".to_owned(),
            Self::InvalidImportBody => "invalid import key request body".to_owned(),
            Self::Method { got, expected } => {
                format!("received method '{got:.ECHOED_CHARS_MAX$}' expected '{expected}'")
            }
            Self::Algorithm(name) => format!("algorithm '{name:.ECHOED_CHARS_MAX$}' is not supported"),
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

    /// The answer `{"message":"…"}`, with KES's line end before the closing brace.
    pub fn response(&self) -> Response<Body> {
        let message = crate::go::quoted(&self.message());
        let mut response = super::json(format!("{{\"message\":{message}\n}}"));
        *response.status_mut() = self.status();
        if let Self::Method { expected, .. } = self {
            response.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(expected));
        }
        response
    }
}

/// The answer for a path without a route, as Go's server writes the answer.
pub fn not_found() -> Response<Body> {
    let mut response = Response::new(Body::from("404 page not found\n"));
    *response.status_mut() = StatusCode::NOT_FOUND;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// The redirect to the path's clean spelling, as Go's server answers: with a page for GET. A location that is
/// longer than any path of the API is answered as not found.
pub fn moved(to: &str, query: Option<&str>, method: &Method) -> Response<Body> {
    let mut location = percent_encoding::utf8_percent_encode(to, PATH).to_string();
    if let Some(query) = query {
        location = format!("{location}?{query}");
    }
    if location.len() > ECHOED_CHARS_MAX {
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

/// The answer for an unreadable request line, as Go's server answers before HTTP handling.
pub fn malformed() -> Response<Body> {
    let mut response = Response::new(Body::from("400 Bad Request"));
    *response.status_mut() = StatusCode::BAD_REQUEST;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Characters that Go encodes in a path: all but letters, digits and the ones removed here.
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
