//! The model: the answer that KES's specification demands for a request.

use super::{
    NO_CERTIFICATE, NOT_ALLOWED, Who,
    answers::{Content, Wanted, done, json_of, refused},
    requests::{Sent, Then},
};
use serde_json::json;
use std::collections::BTreeSet;

/// What a route does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
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
    Log,
}

/// A line of KES's table of routes: path, method, the largest body, the deadline.
pub struct Row {
    pub path: &'static str,
    pub method: &'static str,
    pub max_body: u64,
    pub seconds: u64,
    pub does: Does,
}

const fn row(path: &'static str, method: &'static str, max_body: u64, seconds: u64, does: Does) -> Row {
    Row { path, method, max_body, seconds, does }
}

pub const ROWS: [Row; 22] = [
    row("/version", "GET", 0, 10, Does::Version),
    row("/v1/ready", "GET", 0, 15, Does::Ready),
    row("/v1/status", "GET", 0, 15, Does::Status),
    row("/v1/metrics", "GET", 0, 15, Does::Metrics),
    row("/v1/api", "GET", 0, 10, Does::Api),
    row("/v1/key/create/", "PUT", 0, 15, Does::Create),
    row("/v1/key/import/", "PUT", 1_000_000, 15, Does::Import),
    row("/v1/key/describe/", "GET", 0, 15, Does::Describe),
    row("/v1/key/list/", "GET", 0, 15, Does::ListKeys),
    row("/v1/key/delete/", "DELETE", 0, 15, Does::Delete),
    row("/v1/key/generate/", "PUT", 1_000_000, 15, Does::Generate),
    row("/v1/key/encrypt/", "PUT", 1_000_000, 15, Does::Encrypt),
    row("/v1/key/decrypt/", "PUT", 1_000_000, 15, Does::Decrypt),
    row("/v1/key/hmac/", "PUT", 1_000_000, 15, Does::Hmac),
    row("/v1/policy/describe/", "GET", 0, 15, Does::DescribePolicy),
    row("/v1/policy/read/", "GET", 0, 15, Does::ReadPolicy),
    row("/v1/policy/list/", "GET", 0, 15, Does::ListPolicies),
    row("/v1/identity/describe/", "GET", 0, 15, Does::DescribeIdentity),
    row("/v1/identity/list/", "GET", 0, 15, Does::ListIdentities),
    row("/v1/identity/self/describe", "GET", 0, 15, Does::SelfDescribe),
    row("/v1/log/error", "GET", 0, 0, Does::Log),
    row("/v1/log/audit", "GET", 0, 0, Does::Log),
];

/// The last method is not defined by HTTP.
pub const METHODS: [&str; 8] = ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"];

/// A request, and the keys that are stored when it comes.
pub struct Call<'a> {
    pub row: &'a Row,
    pub who: Who,
    pub method: &'a str,
    /// Decoded.
    pub name: &'a str,
    pub body: &'a Sent,
    /// The keys that the key store holds now.
    pub keys: &'a BTreeSet<String>,
}

pub fn takes(row: &Row, method: &str) -> bool {
    method == row.method || (row.method == "PUT" && method == "POST")
}

fn in_alphabet(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'-' | b'_')
}

pub fn is_name(text: &str) -> bool {
    let length = (1..=80).contains(&text.len());
    let ends = !text.starts_with('-') && !text.ends_with('-');
    length && ends && text != "_" && text.bytes().all(in_alphabet)
}

fn is_pattern(text: &str) -> bool {
    if text.is_empty() || text == "*" {
        return true;
    }
    let ends = !text.starts_with('-') && !text.ends_with('-');
    let (last, others) = text.as_bytes().split_last().unwrap();
    let letters = others.iter().copied().all(in_alphabet) && (*last == b'*' || in_alphabet(*last));
    text.len() <= 80 && ends && text != "_" && letters
}

/// The names that a pattern lists, as JSON.
fn listed<'a>(pattern: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    let prefix = pattern.strip_suffix('*').unwrap_or(pattern);
    let names: BTreeSet<_> = names.into_iter().filter(|name| name.starts_with(prefix)).collect();
    let names: Vec<_> = names.iter().map(|name| format!("\"{name}\"")).collect();
    names.join(",")
}

/// Checks route, method, caller, name, body, key and operation in this order: the first objection is the answer.
pub fn expect(call: &Call<'_>) -> Wanted {
    let Call { row, who, method, name, body, keys } = *call;
    if !takes(row, method) {
        let wanted = refused(405, &format!("received method '{method}' expected '{}'", row.method));
        return Wanted { accept: Some(row.method), ..wanted };
    }
    if !matches!(row.does, Does::Version | Does::Ready | Does::SelfDescribe) {
        match who {
            Who::Nobody => return refused(400, NO_CERTIFICATE),
            Who::Stranger | Who::Denied | Who::Unmentioned => return refused(403, NOT_ALLOWED),
            Who::Allowed | Who::Admin => {}
        }
    }
    let bad = "is empty, too long or contains invalid characters";
    let what = match row.does {
        Does::DescribePolicy | Does::ReadPolicy => Some("policy name"),
        Does::DescribeIdentity => Some("identity"),
        Does::Create | Does::Import | Does::Describe | Does::Delete => Some("key name"),
        Does::Generate | Does::Encrypt | Does::Decrypt | Does::Hmac => Some("key name"),
        _ => None,
    };
    if let Some(what) = what.filter(|_| !is_name(name)) {
        return refused(400, &format!("{what} '{name}' {bad}"));
    }
    let lists = matches!(row.does, Does::ListKeys | Does::ListPolicies | Does::ListIdentities);
    if lists && !is_pattern(name) {
        return refused(400, &format!("listing pattern '{name}' is empty, too long or is invalid"));
    }
    let admin = Who::Admin.identity();
    match row.does {
        Does::Version => json_of("{\"version\":\"⟨word⟩\",\"commit\":\"⟨word⟩\"}\n"),
        Does::Ready => done(),
        Does::Status => json_of(concat!(
            "{\"version\":\"⟨word⟩\",\"os\":\"linux\",\"arch\":\"⟨word⟩\",\"uptime\":⟨number⟩,\"num_cpu\":⟨number⟩,",
            "\"num_cpu_used\":⟨number⟩,\"mem_heap_used\":⟨number⟩,\"mem_stack_used\":⟨number⟩,",
            "\"keystore_latency\":⟨number⟩}\n"
        )),
        Does::Metrics => Wanted { content: Content::Metrics, ..done() },
        Does::Api => Wanted { content: Content::Rows, ..done() },
        Does::Create if keys.contains(name) => refused(400, "key already exists"),
        Does::Create => done(),
        Does::Import => match body.then {
            Then::Invalid => refused(400, "invalid import key request body"),
            Then::NotAcceptable(message) => refused(406, message),
            _ if keys.contains(name) => refused(400, "key already exists"),
            _ => done(),
        },
        Does::Describe if !keys.contains(name) => refused(404, "key does not exist"),
        Does::Describe => match name {
            "broken" => refused(502, "failed to read key"),
            "legacy" => json_of(
                "{\"name\":\"legacy\",\"algorithm\":\"AES256\",\"created_at\":\"2021-01-02T03:04:05.1Z\"}\n",
            ),
            _ => {
                let algorithm = if name == "kept-chacha" { "ChaCha20" } else { "AES256" };
                json_of(format!(
                    "{{\"name\":\"{name}\",\"algorithm\":\"{algorithm}\",\"created_at\":\"2023-11-14T22:13:20Z\",\
                     \"created_by\":\"someone\"}}\n"
                ))
            }
        },
        Does::ListKeys => {
            let names = listed(name, keys.iter().map(String::as_str));
            json_of(format!("{{\"names\":[{names}]}}\n"))
        }
        // Deletion is off unless a setting allows it, unlike KES: no client can destroy data by default.
        Does::Delete => refused(403, NOT_ALLOWED),
        Does::Generate | Does::Encrypt | Does::Decrypt | Does::Hmac => match (name, body.then) {
            (_, Then::Invalid) => refused(400, "invalid request body"),
            (name, _) if !keys.contains(name) => refused(404, "key does not exist"),
            ("broken", _) => refused(502, "failed to read key"),
            ("legacy", _) if row.does == Does::Hmac => refused(409, "key does not support HMAC"),
            (_, Then::Says(template)) => json_of(template),
            (_, Then::Unauthentic) => refused(400, "decryption failed: ciphertext is not authentic"),
            (_, other) => unreachable!("{other:?} is about importing"),
        },
        Does::DescribePolicy | Does::ReadPolicy => {
            let (allow, deny) = match name {
                "app" => (json!({ "/v1/*": {} }), None),
                "beaten" => (json!({ "/v1/*": {} }), Some(json!({ "/v1/*": {} }))),
                "narrow" => (json!({ "/v1/elsewhere/*": {}, "/v1/key": {} }), None),
                _ => return refused(404, "policy does not exist"),
            };
            if row.does == Does::DescribePolicy {
                return json_of(format!(
                    "{{\"name\":\"{name}\",\"created_at\":\"⟨time⟩\",\"created_by\":\"{admin}\"}}\n"
                ));
            }
            let mut members = json!({ "name": name, "created_by": admin, "allow": allow });
            if let Some(deny) = deny {
                members["deny"] = deny;
            }
            Wanted { content: Content::Members(members), ..done() }
        }
        Does::ListPolicies => {
            let names = listed(name, ["app", "beaten", "narrow"]);
            json_of(format!("{{\"names\":[{names}],\"continue_at\":\"\"}}\n"))
        }
        Does::DescribeIdentity => {
            let assigned = [(Who::Allowed, "app"), (Who::Denied, "beaten"), (Who::Unmentioned, "narrow")];
            let found = assigned.iter().find(|(who, _)| who.identity() == name);
            match found {
                _ if name == admin => json_of("{\"admin\":true,\"created_at\":\"⟨time⟩\"}\n"),
                None => refused(404, "identity does not exist"),
                Some((_, policy)) => json_of(format!(
                    "{{\"policy\":\"{policy}\",\"created_at\":\"⟨time⟩\",\"created_by\":\"{admin}\"}}\n"
                )),
            }
        }
        Does::ListIdentities => {
            let known = [Who::Admin, Who::Allowed, Who::Denied, Who::Unmentioned].map(Who::identity);
            let identities = listed(name, known.iter().map(String::as_str));
            json_of(format!("{{\"identities\":[{identities}],\"continue_at\":\"\"}}\n"))
        }
        Does::SelfDescribe => {
            let everything = json!({ "/v1/*": {} });
            let mut members = match who {
                Who::Nobody | Who::Stranger => return refused(404, "identity does not exist"),
                Who::Admin => {
                    return json_of(format!(
                        "{{\"identity\":\"{admin}\",\"admin\":true,\"created_at\":\"⟨time⟩\"}}\n"
                    ));
                }
                Who::Allowed => json!({ "policy": "app", "allow": everything }),
                Who::Denied => json!({ "policy": "beaten", "allow": everything, "deny": everything }),
                Who::Unmentioned => {
                    json!({ "policy": "narrow", "allow": { "/v1/elsewhere/*": {}, "/v1/key": {} } })
                }
            };
            members["identity"] = who.identity().into();
            members["created_by"] = admin.into();
            Wanted { content: Content::Members(members), ..done() }
        }
        Does::Log => unreachable!("a stream without an end is not asked for"),
    }
}
