//! The routes of the API, one line per path, and KES's rules for finding a route.

use hyper::Method;
use percent_encoding::percent_decode_str;
use std::{borrow::Cow, time::Duration};

/// A path of the API.
#[derive(Debug)]
pub struct Route {
    /// The operation.
    pub op: Op,
    /// The path, which ends with `/` when the rest of the path is a name.
    pub path: &'static str,
    /// The method.
    pub method: &'static str,
    /// Bytes of a body that are read at most.
    pub max_body: usize,
    /// The default timeout of a request in seconds; 0 for none.
    seconds: u64,
}

/// The operator's settings of each route. Cheap to share, not to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings(Vec<Setting>);

/// The operator's settings of one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Whether every caller may use the route (KES's `skip_auth`).
    pub open: bool,
    /// The time a request may take; no limit when absent.
    pub timeout: Option<Duration>,
}

/// The operation of a route. [`ROUTES`] has the path of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Answers the version and the commit.
    Version,
    /// Answers whether the key store answers.
    Ready,
    /// Answers the state of the server and its key store.
    Status,
    /// Answers KES's metrics.
    Metrics,
    /// Lists the routes.
    Api,
    /// Creates a key.
    Create,
    /// Imports a key.
    Import,
    /// Describes a key.
    Describe,
    /// Lists the names of keys.
    ListKeys,
    /// Deletes a key.
    Delete,
    /// Generates a DEK.
    Generate,
    /// Seals a plaintext.
    Encrypt,
    /// Opens a ciphertext.
    Decrypt,
    /// Computes an HMAC.
    Hmac,
    /// Describes a policy without its rules.
    DescribePolicy,
    /// Describes a policy with its rules.
    ReadPolicy,
    /// Lists the names of policies.
    ListPolicies,
    /// Describes an identity.
    DescribeIdentity,
    /// Lists the identities.
    ListIdentities,
    /// Describes the caller.
    SelfDescribe,
    /// Streams error lines.
    ErrorLog,
    /// Streams audit lines.
    AuditLog,
}

const MB: usize = 1_000_000;

/// Every route, in the order of [`Op`], with KES's paths, methods and limits.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    Route { op: Op::Version,          path: "/version",                   method: "GET",    max_body: 0,  seconds: 10 },
    Route { op: Op::Ready,            path: "/v1/ready",                  method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::Status,           path: "/v1/status",                 method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::Metrics,          path: "/v1/metrics",                method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::Api,              path: "/v1/api",                    method: "GET",    max_body: 0,  seconds: 10 },
    Route { op: Op::Create,           path: "/v1/key/create/",            method: "PUT",    max_body: 0,  seconds: 15 },
    Route { op: Op::Import,           path: "/v1/key/import/",            method: "PUT",    max_body: MB, seconds: 15 },
    Route { op: Op::Describe,         path: "/v1/key/describe/",          method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::ListKeys,         path: "/v1/key/list/",              method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::Delete,           path: "/v1/key/delete/",            method: "DELETE", max_body: 0,  seconds: 15 },
    Route { op: Op::Generate,         path: "/v1/key/generate/",          method: "PUT",    max_body: MB, seconds: 15 },
    Route { op: Op::Encrypt,          path: "/v1/key/encrypt/",           method: "PUT",    max_body: MB, seconds: 15 },
    Route { op: Op::Decrypt,          path: "/v1/key/decrypt/",           method: "PUT",    max_body: MB, seconds: 15 },
    Route { op: Op::Hmac,             path: "/v1/key/hmac/",              method: "PUT",    max_body: MB, seconds: 15 },
    Route { op: Op::DescribePolicy,   path: "/v1/policy/describe/",       method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::ReadPolicy,       path: "/v1/policy/read/",           method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::ListPolicies,     path: "/v1/policy/list/",           method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::DescribeIdentity, path: "/v1/identity/describe/",     method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::ListIdentities,   path: "/v1/identity/list/",         method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::SelfDescribe,     path: "/v1/identity/self/describe", method: "GET",    max_body: 0,  seconds: 15 },
    Route { op: Op::ErrorLog,         path: "/v1/log/error",              method: "GET",    max_body: 0,  seconds: 0 },
    Route { op: Op::AuditLog,         path: "/v1/log/audit",              method: "GET",    max_body: 0,  seconds: 0 },
];

/// Names of the operations that are measured as cryptographic.
pub const CRYPTO: [&str; 4] = ["generate", "encrypt", "decrypt", "hmac"];

/// The result of finding a path's route.
#[derive(Debug)]
pub enum Found<'a> {
    /// A route, and the decoded name after the route's path; empty for a path without a name.
    Route(&'static Route, Cow<'a, str>),
    /// The decoded path that the client is redirected to.
    Moved(String),
    /// The percent-encoding of the path is broken.
    Malformed,
    /// No route has this path.
    Nothing,
}

// === impl Settings ===

impl Default for Settings {
    fn default() -> Self {
        let usual = |route: &Route| Setting {
            open: false,
            timeout: Some(Duration::from_secs(route.seconds)).filter(|timeout| !timeout.is_zero()),
        };
        Self(ROUTES.iter().map(usual).collect())
    }
}

impl Settings {
    /// The settings of a route.
    pub fn of(&self, route: &Route) -> Setting {
        self.0[route.op as usize]
    }

    /// The settings of a path that is spelt as in [`ROUTES`]; nothing for any other path.
    pub fn of_path(&mut self, path: &str) -> Option<&mut Setting> {
        let route = ROUTES.iter().find(|route| route.path == path)?;
        Some(&mut self.0[route.op as usize])
    }

    /// Whether any route is open. The handshake then cannot demand a client certificate.
    pub fn any_open(&self) -> bool {
        self.0.iter().any(|setting| setting.open)
    }
}

// === impl Route ===

impl Route {
    /// Whether the route takes a method. POST counts as PUT, because clients send either.
    pub fn takes(&self, method: &Method) -> bool {
        method.as_str() == self.method || (self.method == "PUT" && method == Method::POST)
    }

    /// The decoded path of a request for `name`, which policies match.
    pub fn path_of<'a>(&self, name: &str) -> Cow<'a, str> {
        if name.is_empty() { Cow::Borrowed(self.path) } else { Cow::Owned([self.path, name].concat()) }
    }

    /// Whether requests are counted in KES's metrics. KES counts the same routes.
    pub fn counted(&self) -> bool {
        !matches!(self.op, Op::Version | Op::Ready | Op::Status | Op::Metrics | Op::Api) && !self.streams()
    }

    /// Whether the answer is a stream without an end.
    pub fn streams(&self) -> bool {
        matches!(self.op, Op::ErrorLog | Op::AuditLog)
    }

    /// The name in [`CRYPTO`], for a cryptographic operation.
    pub fn crypto(&self) -> Option<&'static str> {
        match self.op {
            Op::Generate => Some(CRYPTO[0]),
            Op::Encrypt => Some(CRYPTO[1]),
            Op::Decrypt => Some(CRYPTO[2]),
            Op::Hmac => Some(CRYPTO[3]),
            _ => None,
        }
    }

    /// The route's row of `/v1/api`, as JSON.
    pub fn describe(&self, settings: &Settings) -> String {
        let Self { path, method, max_body, .. } = self;
        let seconds = settings.of(self).timeout.map_or(0, |timeout| timeout.as_secs());
        format!(r#"{{"method":"{method}","path":"{path}","max_body":{max_body},"timeout":{seconds}}}"#)
    }
}

/// Finds the route of a percent-encoded path.
pub fn find(path: &str) -> Found<'_> {
    if !is_well_encoded(path) {
        return Found::Malformed;
    }
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    if let Some(clean) = cleaned(&decoded) {
        return Found::Moved(clean);
    }
    let found = ROUTES.iter().find(|route| match route.path.ends_with('/') {
        true => decoded.starts_with(route.path),
        false => decoded == route.path,
    });
    match found {
        Some(route) => Found::Route(route, after(decoded, route.path.len())),
        // Clients omit the slash when they list without a prefix. KES redirects; answering at once saves a
        // round trip.
        None if decoded.starts_with("/v1/") && decoded.ends_with("/list") => {
            let listed = ROUTES.iter().find(|route| route.path.strip_suffix('/') == Some(&decoded));
            listed.map_or(Found::Nothing, |route| Found::Route(route, Cow::Borrowed("")))
        }
        None if ROUTES.iter().any(|route| route.path.strip_suffix('/') == Some(&decoded)) => {
            Found::Moved(format!("{decoded}/"))
        }
        None => Found::Nothing,
    }
}

/// Whether every `%` is followed by two hexadecimal digits.
fn is_well_encoded(path: &str) -> bool {
    path.split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}

/// The path without its first `length` bytes.
fn after(path: Cow<'_, str>, length: usize) -> Cow<'_, str> {
    match path {
        Cow::Borrowed(path) => Cow::Borrowed(&path[length..]),
        Cow::Owned(path) => Cow::Owned(path[length..].to_owned()),
    }
}

/// The path without empty, `.` and `..` segments; nothing when the path has none.
fn cleaned(path: &str) -> Option<String> {
    let rest = path.strip_prefix('/').unwrap_or(path);
    let body = rest.strip_suffix('/').unwrap_or(rest);
    let odd = |segment: &str| matches!(segment, "" | "." | "..");
    if path.starts_with('/') && (rest.is_empty() || !body.split('/').any(odd)) {
        return None;
    }
    let mut kept = Vec::new();
    for segment in rest.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    let slash = if rest.ends_with('/') && !kept.is_empty() { "/" } else { "" };
    Some(format!("/{}{slash}", kept.join("/")))
}
