//! Requests to a real KES, and its answers: the recorded exchanges of `tests/vectors`.

use crate::harness::{App, Client, admin_key, api_key, base64, block_on};
use keswarden::identity::ApiKey;
use serde_json::Value;
use std::collections::BTreeMap;

/// Requests that we answer otherwise on purpose: the differences in docs/reference/differences.md that this recording touches.
fn differs_on_purpose(method: &str, path: &str) -> Option<&'static str> {
    match (method, path) {
        (_, "/version" | "/v1/status" | "/v1/metrics") => Some("versions, uptimes and sizes vary"),
        ("DELETE", path) if path.starts_with("/v1/key/delete/") => Some("keys are not deleted by default"),
        (_, path) if path.contains("/../") => {
            Some("the client at hand cleans such a path by itself: see api.rs")
        }
        ("GET", "/v1/key/list/app-*") => Some("a trailing * is a wildcard, as in the other lists"),
        ("GET", "/v1/api") => Some("the order of routes is random in KES"),
        ("GET", "/v1/identity/self/describe") => Some("KES knows nobody but the admin"),
        (_, "/v1/key/list" | "/v1/policy/list" | "/v1/identity/list") => Some("answered without a redirect"),
        _ => None,
    }
}

fn clients(kes: &App, http1: bool) -> BTreeMap<&'static str, Client> {
    let who = [("admin", admin_key()), ("app", api_key(1)), ("reader", api_key(2)), ("nobody", api_key(3))];
    who.into_iter().map(|(name, key)| (name, kes.client(Some(&key), http1))).collect()
}

/// Identities stand as `<admin>`, `<app>`, `<reader>` in the recording; times are any.
fn told_apart(text: &str) -> String {
    let mut text = text.to_owned();
    for (name, key) in [("<admin>", admin_key()), ("<app>", api_key(1)), ("<reader>", api_key(2))] {
        text = text.replace(key.identity().as_str(), name);
    }
    let mut rest = text.as_str();
    let mut out = String::new();
    while let Some(at) = rest.find("\"created_at\":\"") {
        let start = at + "\"created_at\":\"".len();
        let end = start + rest[start..].find('"').unwrap_or(0);
        // The year 1 stands for a key file without a time.
        let time = if rest[start..end].starts_with("0001-") { &rest[start..end] } else { "<time>" };
        out = out + &rest[..start] + time;
        rest = &rest[end..];
    }
    sorted(&(out + rest))
}

/// Lists of identities are in the order of real hashes, which the recording does not have.
fn sorted(text: &str) -> String {
    let Ok(mut value) = serde_json::from_str::<Value>(text) else { return text.to_owned() };
    let Some(Value::Array(identities)) = value.get_mut("identities") else { return text.to_owned() };
    identities.sort_by_key(ToString::to_string);
    value.to_string()
}

fn identity(key: &ApiKey) -> String {
    key.identity().to_string()
}

fn serving(recording: &Value) -> App {
    let config = recording["config"].as_str().unwrap();
    let (_, policy) = config.split_once("policy:").unwrap();
    let (policy, _) = policy.split_once("keystore:").unwrap();
    let policy = format!("policy:{policy}")
        .replace("<app>", &identity(&api_key(1)))
        .replace("<reader>", &identity(&api_key(2)));
    let kes = App::server(&policy);
    let admin = kes.admin_client(false);
    for name in recording["keys"]["made by create"].as_array().unwrap() {
        let name = name.as_str().unwrap();
        let made = admin.call("PUT", &format!("/v1/key/create/{name}"), None);
        assert!(made.status == 200 || name == "predefined", "{name}: {}", made.body);
    }
    let bytes = |first: u8| base64(&(first..first + 32).collect::<Vec<u8>>());
    for (name, first, cipher) in [("app-imported", 0, "AES256"), ("app-chacha", 0x20, "ChaCha20")] {
        let body = serde_json::json!({ "key": bytes(first), "cipher": cipher }).to_string();
        assert_eq!(admin.call("PUT", &format!("/v1/key/import/{name}"), Some(&body)).status, 200);
    }
    let legacy = |byte: u8, length: usize| base64(&vec![byte; length]);
    kes.store.put("app-legacy", &format!("{{\"bytes\":\"{}\"}}", legacy(7, 32)));
    let chacha = format!("{{\"bytes\":\"{}\",\"algorithm\":\"ChaCha20\"}}", legacy(8, 32));
    kes.store.put("app-legacy2", &chacha);
    kes.store.put("app-broken", "{not json");
    kes.store.put("app-short", &format!("{{\"bytes\":\"{}\"}}", legacy(7, 31)));
    kes
}

fn replay(http1: bool) {
    let recording: Value =
        serde_json::from_str(include_str!("../../vectors/kes-transcript.json")).expect("must be JSON");
    let kes = serving(&recording);
    let clients = clients(&kes, http1);
    let mut wrong = Vec::new();
    let exchanges = recording["exchanges"].as_array().unwrap();
    for exchange in exchanges {
        let text = |name: &str| exchange[name].as_str().unwrap_or_default();
        let (who, method) = (text("identity"), text("method"));
        let path = ["<admin>", "<app>", "<reader>"]
            .iter()
            .zip([admin_key(), api_key(1), api_key(2)])
            .fold(text("path").to_owned(), |path, (name, key)| path.replace(name, &identity(&key)));
        if differs_on_purpose(method, &path).is_some()
            && exchange["status"] != 403
            && exchange["status"] != 405
        {
            continue;
        }
        let body = exchange["body"].as_str();
        let got = match block_on(clients[who].send(method, &path, body)) {
            Ok(got) => got,
            Err(error) => {
                wrong.push(format!("{who} {method} {path}: {error:?}"));
                continue;
            }
        };
        // Go 1.26 redirects with 307 where the KES that people run (Go 1.24) says 301.
        let moved = |text: &str| text.replace("Temporary Redirect", "Moved Permanently");
        let status = match exchange["status"].as_u64().unwrap() {
            307 => 301,
            status => status,
        };
        let random = ["generate", "encrypt"].iter().any(|op| path.contains(&format!("/key/{op}/")));
        let expected = moved(&told_apart(text("response")));
        let mut problems = Vec::new();
        if u64::from(got.status) != status {
            problems.push(format!("status {} for {status}", got.status));
        }
        let body = told_apart(&got.body);
        if !(random && status == 200) && body != expected {
            problems.push(format!("body {body:?} for {expected:?}"));
        }
        for name in ["content-type", "location", "accept", "x-content-type-options"] {
            let theirs = exchange["headers"][name].as_str();
            if got.headers.get(name).map(String::as_str) != theirs {
                problems.push(format!("{name}: {:?} for {theirs:?}", got.headers.get(name)));
            }
        }
        if !problems.is_empty() {
            wrong.push(format!("{who} {method} {path}: {}", problems.join(", ")));
        }
    }
    assert!(exchanges.len() > 200, "only {} exchanges", exchanges.len());
    assert!(wrong.is_empty(), "{} differences:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn recorded_exchanges_over_http1() {
    replay(true);
}

#[test]
fn recorded_exchanges_over_http2() {
    replay(false);
}
