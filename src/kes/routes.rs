//! The routes of the API: one line per path, and KES's rules for finding one.

use hyper::Method;
use percent_encoding::percent_decode_str;
use std::{borrow::Cow, time::Duration};

/// A path of the API.
#[derive(Debug)]
pub struct Route {
    pub op: Op,
    /// Ends with `/` when the rest of the path is a name.
    pub path: &'static str,
    pub method: &'static str,
    /// Bytes of body that are read; 0: none are.
    pub max_body: usize,
    /// How long it may take, unless the operator says otherwise; 0: for ever.
    seconds: u64,
}

/// What the operator decided for each route. Cheap to share, not to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings(Vec<Setting>);

/// What the operator decided for one route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Anybody may call it (`skip_auth`).
    pub open: bool,
    /// How long it may take; absent: for ever.
    pub timeout: Option<Duration>,
}

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    Version,
    Ready,
    Status,
    Metrics,
    Api,
    Create,
    Import,
    Describe,
    ListKeys,
    Delete,
    Generate,
    Encrypt,
    Decrypt,
    Hmac,
    DescribePolicy,
    ReadPolicy,
    ListPolicies,
    DescribeIdentity,
    ListIdentities,
    SelfDescribe,
    ErrorLog,
    AuditLog,
}

const MB: usize = 1_000_000;

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

/// The operations that are measured as cryptographic.
pub const CRYPTO: [&str; 4] = ["generate", "encrypt", "decrypt", "hmac"];

/// What a path leads to.
#[derive(Debug)]
pub enum Found<'a> {
    /// A route, and the decoded name behind it; empty for a path without one.
    Route(&'static Route, Cow<'a, str>),
    Moved(String),
    /// The percent-encoding is broken.
    Malformed,
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
    pub fn of(&self, route: &Route) -> Setting {
        self.0[route.op as usize]
    }

    /// What is decided for a path as the table spells it; nothing for a path that is not in it.
    pub fn of_path(&mut self, path: &str) -> Option<&mut Setting> {
        let route = ROUTES.iter().find(|route| route.path == path)?;
        Some(&mut self.0[route.op as usize])
    }

    /// Some route is open, so that a client certificate cannot be demanded of everybody.
    pub fn any_open(&self) -> bool {
        self.0.iter().any(|setting| setting.open)
    }
}

// === impl Route ===

impl Route {
    /// Clients send POST where the table says PUT.
    pub fn takes(&self, method: &Method) -> bool {
        method.as_str() == self.method || (self.method == "PUT" && method == Method::POST)
    }

    /// The decoded path of a request for `name`: what policies are held against.
    pub fn path_of<'a>(&self, name: &str) -> Cow<'a, str> {
        if name.is_empty() { Cow::Borrowed(self.path) } else { Cow::Owned([self.path, name].concat()) }
    }

    /// KES counts these and no others.
    pub fn counted(&self) -> bool {
        !matches!(self.op, Op::Version | Op::Ready | Op::Status | Op::Metrics | Op::Api) && !self.streams()
    }

    /// The answer is a stream without an end.
    pub fn streams(&self) -> bool {
        matches!(self.op, Op::ErrorLog | Op::AuditLog)
    }

    pub fn crypto(&self) -> Option<&'static str> {
        match self.op {
            Op::Generate => Some(CRYPTO[0]),
            Op::Encrypt => Some(CRYPTO[1]),
            Op::Decrypt => Some(CRYPTO[2]),
            Op::Hmac => Some(CRYPTO[3]),
            _ => None,
        }
    }

    /// The members of one row of `/v1/api`.
    pub fn describe(&self, settings: &Settings) -> String {
        let Self { path, method, max_body, .. } = self;
        let seconds = settings.of(self).timeout.map_or(0, |timeout| timeout.as_secs());
        format!(r#"{{"method":"{method}","path":"{path}","max_body":{max_body},"timeout":{seconds}}}"#)
    }
}

/// Finds the route of a request's path, which is still percent-encoded.
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
        // Listing with no prefix comes without the slash; KES redirects, and this spares the round trip.
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

/// Every `%` is followed by two hexadecimal digits.
fn is_well_encoded(path: &str) -> bool {
    path.split('%')
        .skip(1)
        .all(|rest| rest.len() >= 2 && rest.bytes().take(2).all(|byte| byte.is_ascii_hexdigit()))
}

fn after(path: Cow<'_, str>, length: usize) -> Cow<'_, str> {
    match path {
        Cow::Borrowed(path) => Cow::Borrowed(&path[length..]),
        Cow::Owned(path) => Cow::Owned(path[length..].to_owned()),
    }
}

/// The path without empty, `.` and `..` segments, when it has any.
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
