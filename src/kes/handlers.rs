//! What each route does, once the caller may do it.

use super::{
    Parts, Peer, audit, empty, json,
    messages::{Known, Members, bytes_object, quoted},
    policy::{Policies, Policy},
    refusal::{Doing, Refusal},
    routes::{Op, ROUTES, Route},
};
use crate::{
    cause::Finding,
    crypto::{Kind, NotAuthentic},
    http::Body,
    keyring::Held,
    metrics,
    names::{Name, Pattern},
    version,
};
use http_body_util::{BodyExt, Limited};
use hyper::{
    Request, Response,
    body::{Body as _, Incoming},
    header::{self, HeaderValue},
};
use jiff::Timestamp;
use std::sync::Arc;
use zeroize::Zeroizing;

type Answer = Result<Response<Body>, Refusal>;

pub(super) async fn handle(
    parts: &Parts,
    route: &'static Route,
    name: &str,
    peer: &Peer,
    policies: &Policies,
    request: Request<Incoming>,
) -> Answer {
    match route.op {
        Op::Version => {
            Ok(json(format!("{{\"version\":\"{}\",\"commit\":\"{}\"}}\n", version::VERSION, version::COMMIT)))
        }
        Op::Ready => ready(parts).await,
        Op::Status => Ok(status(parts).await),
        Op::Metrics => Ok(metrics_page(parts)),
        Op::Api => Ok(api()),
        Op::Create => create(parts, route, name, peer).await,
        Op::Import => import(parts, route, name, peer, request).await,
        Op::Describe => describe(parts, name).await,
        Op::ListKeys => list_keys(parts, name).await,
        Op::Delete => delete(parts, route, name, peer).await,
        Op::Generate => generate(parts, route, name, request).await,
        Op::Encrypt => encrypt(parts, route, name, request).await,
        Op::Decrypt => decrypt(parts, route, name, request).await,
        Op::Hmac => hmac(parts, route, name, request).await,
        Op::DescribePolicy => describe_policy(policies, name, false),
        Op::ReadPolicy => describe_policy(policies, name, true),
        Op::ListPolicies => list(name, policies.policies.keys().map(String::as_str), "names"),
        Op::DescribeIdentity => describe_identity(policies, name),
        Op::ListIdentities => {
            let assigned = policies.assigned.keys().map(|identity| identity.as_str());
            list(name, assigned.chain([policies.admin.as_str()]), "identities")
        }
        Op::SelfDescribe => self_describe(policies, peer),
    }
}

// === what the server says of itself ===

async fn ready(parts: &Parts) -> Answer {
    parts.keyring.status().await.map(|_| empty()).map_err(Refusal::NotReady)
}

/// Both `keystore_unreachable` and `keystore_unavailable`: clients reject one without the other.
async fn status(parts: &Parts) -> Response<Body> {
    let store = match parts.keyring.status().await {
        Ok(latency) => format!(",\"keystore_latency\":{}", latency.as_millis().max(1)),
        Err(Finding { .. }) => ",\"keystore_unavailable\":true,\"keystore_unreachable\":true".to_owned(),
    };
    let up = (parts.clock.now() - parts.started).as_secs_f64().round();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    json(format!(
        "{{\"version\":\"{}\",\"os\":\"{}\",\"arch\":\"{}\",\"uptime\":{up},\"num_cpu\":{cpus},\"num_cpu_used\":{cpus},\
         \"mem_heap_used\":{},\"mem_stack_used\":0{store}}}\n",
        version::VERSION,
        std::env::consts::OS,
        go_arch(),
        super::resident_bytes(),
    ))
}

/// The architecture as Go calls it.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn metrics_page(parts: &Parts) -> Response<Body> {
    let up = (parts.clock.now() - parts.started).as_secs_f64();
    let mut response = Response::new(Body::from(parts.metrics.text(up)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::TEXT));
    response
}

fn api() -> Response<Body> {
    let rows: Vec<_> = ROUTES.iter().map(Route::describe).collect();
    json(format!("[{}]\n", rows.join(",")))
}

// === keys ===

async fn create(parts: &Parts, route: &Route, name: &str, peer: &Peer) -> Answer {
    let name = key_name(name)?;
    let created = parts.keyring.create(&name, peer.caller.shown(), now(parts)).await;
    created.map_err(|error| Refusal::of(Doing::Create, error))?;
    audit::changed(route, &route.path_of(name.as_str()), peer, &format!("secret key '{name}' created"));
    Ok(empty())
}

async fn import(parts: &Parts, route: &Route, name: &str, peer: &Peer, request: Request<Incoming>) -> Answer {
    let name = key_name(name)?;
    let body = body(route, request).await.map_err(|_| Refusal::InvalidImportBody)?;
    let members = Members::parse(&body, Known(&["key", "cipher"])).ok_or(Refusal::InvalidImportBody)?;
    let kind = Kind::parse(&members.cipher).ok_or_else(|| Refusal::Algorithm(members.cipher.clone()))?;
    let bytes: [u8; 32] =
        members.key.as_slice().try_into().map_err(|_| Refusal::KeySize(kind.name().to_owned()))?;
    let imported =
        parts.keyring.import(&name, kind, Zeroizing::new(bytes), peer.caller.shown(), now(parts)).await;
    imported.map_err(|error| Refusal::of(Doing::Create, error))?;
    audit::changed(route, &route.path_of(name.as_str()), peer, &format!("secret key '{name}' imported"));
    Ok(empty())
}

async fn describe(parts: &Parts, name: &str) -> Answer {
    let (name, held) = key(parts, name).await?;
    let by = match held.version.created_by.as_str() {
        "" => String::new(),
        by => format!(",\"created_by\":{}", quoted(by)),
    };
    let algorithm = held.version.key.kind().name();
    Ok(json(format!(
        "{{\"name\":\"{name}\",\"algorithm\":\"{algorithm}\",\"created_at\":\"{}\"{by}}}\n",
        held.version.created_at
    )))
}

/// All names in one answer: clients drop what a second page would hold.
async fn list_keys(parts: &Parts, pattern: &str) -> Answer {
    let parsed = Pattern::parse(pattern).ok_or_else(|| Refusal::InvalidPattern(pattern.to_owned()))?;
    let names = parts.keyring.list().await.map_err(|error| Refusal::of(Doing::List, error))?;
    let names: Vec<_> = names.iter().filter(|name| parsed.matches(name)).map(|name| quoted(name)).collect();
    Ok(json(format!("{{\"names\":[{}]}}\n", names.join(","))))
}

async fn delete(parts: &Parts, route: &Route, name: &str, peer: &Peer) -> Answer {
    let name = key_name(name)?;
    if !parts.settings.allow_delete {
        return Err(Refusal::NotAllowed);
    }
    parts.keyring.delete(&name).await.map_err(|error| Refusal::of(Doing::Delete, error))?;
    audit::changed(route, &route.path_of(name.as_str()), peer, &format!("secret key '{name}' deleted"));
    Ok(empty())
}

async fn generate(parts: &Parts, route: &Route, name: &str, request: Request<Incoming>) -> Answer {
    let known = Known(&["context", "version"]);
    let valid = key_name(name)?;
    // No body at all is an empty context; a body that turns out to be empty is a client's mistake, and sealing for
    // "no context" then would make an object that nobody can read.
    let members = match request.body().is_end_stream() {
        true => Members::default(),
        false => members(route, request, known).await?,
    };
    let held = sealing(load(parts, &valid).await?)?;
    let made = held.version.key.generate(&members.context);
    Ok(json(bytes_object(&[("plaintext", &made.plaintext[..]), ("ciphertext", &made.ciphertext)])))
}

async fn encrypt(parts: &Parts, route: &Route, name: &str, request: Request<Incoming>) -> Answer {
    let valid = key_name(name)?;
    let members = members(route, request, Known(&["plaintext", "context", "version"])).await?;
    let held = sealing(load(parts, &valid).await?)?;
    let ciphertext = held.version.key.seal(&members.plaintext, &members.context);
    Ok(json(bytes_object(&[("ciphertext", &ciphertext)])))
}

async fn decrypt(parts: &Parts, route: &Route, name: &str, request: Request<Incoming>) -> Answer {
    let valid = key_name(name)?;
    let members = members(route, request, Known(&["ciphertext", "context", "version"])).await?;
    let held = load(parts, &valid).await?;
    let opened = held.version.key.open(&members.ciphertext, &members.context);
    let plaintext = opened.map_err(|NotAuthentic| Refusal::NotAuthentic)?;
    Ok(json(bytes_object(&[("plaintext", &plaintext)])))
}

async fn hmac(parts: &Parts, route: &Route, name: &str, request: Request<Incoming>) -> Answer {
    let valid = key_name(name)?;
    let members = members(route, request, Known(&["message", "version"])).await?;
    let held = load(parts, &valid).await?;
    let mac = held.version.key.hmac(&members.message).ok_or(Refusal::NoHmac)?;
    Ok(json(bytes_object(&[("hmac", &mac)])))
}

fn key_name(name: &str) -> Result<Name, Refusal> {
    Name::parse(name).map_err(|_| Refusal::InvalidName { what: "key name", name: name.to_owned() })
}

async fn key(parts: &Parts, name: &str) -> Result<(Name, Arc<Held>), Refusal> {
    let name = key_name(name)?;
    let held = load(parts, &name).await?;
    Ok((name, held))
}

async fn load(parts: &Parts, name: &Name) -> Result<Arc<Held>, Refusal> {
    parts.keyring.get(name).await.map_err(|error| Refusal::of(Doing::Read, error))
}

/// Nothing is sealed with a key that the store no longer holds: nobody could open it after a restart.
fn sealing(held: Arc<Held>) -> Result<Arc<Held>, Refusal> {
    if held.lost { Err(Refusal::KeyLost) } else { Ok(held) }
}

async fn body(route: &Route, request: Request<Incoming>) -> Result<hyper::body::Bytes, Refusal> {
    let limited = Limited::new(request.into_body(), route.max_body);
    limited.collect().await.map(http_body_util::Collected::to_bytes).map_err(|_| Refusal::InvalidBody)
}

async fn members(route: &Route, request: Request<Incoming>, known: Known) -> Result<Members, Refusal> {
    let body = body(route, request).await?;
    Members::parse(&body, known).ok_or(Refusal::InvalidBody)
}

// === policies and identities ===

fn describe_policy(policies: &Policies, name: &str, whole: bool) -> Answer {
    let valid =
        Name::parse(name).map_err(|_| Refusal::InvalidName { what: "policy name", name: name.to_owned() })?;
    let policy = policies.policies.get(valid.as_str()).ok_or(Refusal::PolicyMissing)?;
    let mut answer = format!("{{\"name\":\"{valid}\"");
    if whole {
        rules(&mut answer, policy);
    }
    answer.push_str(&made(policies));
    Ok(json(answer + "}\n"))
}

/// `,"allow":{…},"deny":{…}`, each absent when empty, in the order of bytes.
fn rules(answer: &mut String, policy: &Policy) {
    for (member, patterns) in [("allow", &policy.allow), ("deny", &policy.deny)] {
        let mut patterns: Vec<_> =
            patterns.iter().map(|pattern| format!("{}:{{}}", quoted(pattern))).collect();
        patterns.sort_unstable();
        if !patterns.is_empty() {
            answer.push_str(&format!(",\"{member}\":{{{}}}", patterns.join(",")));
        }
    }
}

fn made(policies: &Policies) -> String {
    format!(",\"created_at\":\"{}\",\"created_by\":{}", policies.since, quoted(&policies.admin))
}

fn list<'a>(pattern: &str, names: impl Iterator<Item = &'a str>, member: &str) -> Answer {
    let parsed = Pattern::parse(pattern).ok_or_else(|| Refusal::InvalidPattern(pattern.to_owned()))?;
    let mut names: Vec<_> = names.filter(|name| parsed.matches(name)).map(quoted).collect();
    names.sort_unstable();
    Ok(json(format!("{{\"{member}\":[{}],\"continue_at\":\"\"}}\n", names.join(","))))
}

fn describe_identity(policies: &Policies, name: &str) -> Answer {
    let valid =
        Name::parse(name).map_err(|_| Refusal::InvalidName { what: "identity", name: name.to_owned() })?;
    if policies.admin == valid.as_str() {
        return Ok(json(format!("{{\"admin\":true,\"created_at\":\"{}\"}}\n", policies.since)));
    }
    let policy = crate::identity::Identity::parse(valid.as_str())
        .ok()
        .and_then(|identity| policies.assigned.get(&identity))
        .ok_or(Refusal::IdentityMissing)?;
    Ok(json(format!("{{\"policy\":{}{}}}\n", quoted(policy), made(policies))))
}

/// What the SDK reads: `policy`, `allow` and `deny` at the top.
fn self_describe(policies: &Policies, peer: &Peer) -> Answer {
    let identity = peer.caller.identity().map_err(|_| Refusal::IdentityMissing)?;
    if policies.is_admin(identity) {
        return Ok(json(format!(
            "{{\"identity\":\"{identity}\",\"admin\":true,\"created_at\":\"{}\"}}\n",
            policies.since
        )));
    }
    let (name, policy) = policies.policy_of(identity).ok_or(Refusal::IdentityMissing)?;
    let mut answer = format!("{{\"identity\":\"{identity}\",\"policy\":{}", quoted(name));
    rules(&mut answer, policy);
    answer.push_str(&made(policies));
    Ok(json(answer + "}\n"))
}

fn now(parts: &Parts) -> Timestamp {
    Timestamp::try_from(parts.clock.wall()).unwrap_or_default()
}
