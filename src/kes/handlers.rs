//! The operation of each route, for a caller that a policy allows.

use super::{
    Parts, Peer, State,
    audit::Change,
    empty, json,
    messages::{self, bytes_object},
    policy::{Policies, Policy},
    refusal::{Doing, Refusal},
    routes::{Op, ROUTES, Route, Settings},
};
use crate::{
    cause::{Cause, Finding},
    crypto::{Kind, NotAuthentic},
    go::{
        self,
        json::{self, Object, Wanted},
    },
    http::Body,
    keyring::Held,
    metrics,
    names::{Name, Pattern},
    version,
};
use http_body_util::BodyExt;
use hyper::{
    Request, Response,
    body::{Body as _, Bytes, Incoming},
    header::{self, HeaderValue},
};
use jiff::Timestamp;
use std::sync::Arc;
use zeroize::Zeroizing;

type Answer = Result<Response<Body>, Refusal>;

pub(super) async fn handle(
    parts: &Parts,
    state: &State,
    route: &'static Route,
    name: &str,
    peer: &Peer,
    request: &mut Request<Incoming>,
) -> Answer {
    let policies = &state.policies;
    match route.op {
        Op::Version => {
            Ok(json(format!("{{\"version\":\"{}\",\"commit\":\"{}\"}}\n", version::VERSION, version::COMMIT)))
        }
        Op::Ready => ready(state).await,
        Op::Status => Ok(status(parts, state).await),
        Op::Metrics => Ok(metrics_page(parts)),
        Op::Api => Ok(api(&state.routes)),
        Op::Create => create(parts, state, name, peer).await,
        Op::Import => import(parts, state, route, name, peer, request).await,
        Op::Describe => describe(state, name).await,
        Op::ListKeys => list_keys(state, name).await,
        Op::Delete => delete(parts, state, name).await,
        Op::Generate => generate(parts, state, route, name, request).await,
        Op::Encrypt => encrypt(parts, state, route, name, request).await,
        Op::Decrypt => decrypt(parts, state, route, name, request).await,
        Op::Hmac => hmac(parts, state, route, name, request).await,
        Op::DescribePolicy => describe_policy(policies, name, false),
        Op::ReadPolicy => describe_policy(policies, name, true),
        Op::ListPolicies => list(name, policies.policies.keys().map(String::as_str), "names"),
        Op::DescribeIdentity => describe_identity(policies, name),
        Op::ListIdentities => {
            let assigned = policies.assigned.keys().map(String::as_str);
            list(name, assigned.chain([policies.admin.as_str()]), "identities")
        }
        Op::SelfDescribe => self_describe(policies, peer),
        Op::ErrorLog => Ok(stream(parts.audit.errors())),
        Op::AuditLog => Ok(stream(parts.audit.changes())),
    }
}

// === the server's own state ===

async fn ready(state: &State) -> Answer {
    state.keyring.status().await.map(|_| empty()).map_err(Refusal::NotReady)
}

/// The status. A failing store sets both `keystore_unreachable` and `keystore_unavailable`: clients reject
/// one without the other.
async fn status(parts: &Parts, state: &State) -> Response<Body> {
    let store = match state.keyring.status().await {
        Ok(latency) => format!(",\"keystore_latency\":{}", latency.as_millis().max(1)),
        Err(Finding { .. }) => ",\"keystore_unavailable\":true,\"keystore_unreachable\":true".to_owned(),
    };
    let up = (parts.clock.now() - parts.started).as_secs_f64().round();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    json(format!(
        "{{\"version\":\"{}\",\"os\":\"{}\",\"arch\":\"{}\",\"uptime\":{up},\"num_cpu\":{cpus},\"num_cpu_used\":{cpus},\
         \"mem_heap_used\":{},\"mem_stack_used\":{}{store}}}\n",
        version::VERSION,
        std::env::consts::OS,
        go::arch(),
        super::resident_bytes(),
        super::process_status("VmStk:").saturating_mul(1024),
    ))
}

fn metrics_page(parts: &Parts) -> Response<Body> {
    let up = (parts.clock.now() - parts.started).as_secs_f64();
    let mut response = Response::new(Body::from(parts.metrics.text(up)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(metrics::TEXT_OF_KES));
    response
}

fn api(settings: &Settings) -> Response<Body> {
    let rows: Vec<_> = ROUTES.iter().map(|route| route.describe(settings)).collect();
    json(format!("[{}]\n", rows.join(",")))
}

/// An answer of JSON lines without an end.
fn stream(lines: Body) -> Response<Body> {
    let mut response = Response::new(lines);
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

// === keys ===

async fn create(parts: &Parts, state: &State, name: &str, peer: &Peer) -> Answer {
    let name = key_name(name)?;
    may_be_made(parts, state, &name)?;
    let created = state.keyring.create(&name, peer.caller.name(), now(parts)).await;
    created.map_err(|error| Refusal::of(Doing::Create, error))?;
    Ok(changed(Change::Created(name)))
}

async fn import(
    parts: &Parts,
    state: &State,
    route: &Route,
    name: &str,
    peer: &Peer,
    request: &mut Request<Incoming>,
) -> Answer {
    let name = key_name(name)?;
    let body = body(route, request).await;
    let members = body.and_then(|body| json::first(&body, messages::IMPORT));
    let members = members.ok_or(Refusal::InvalidImportBody)?;
    let cipher = members.text("cipher");
    let kind = Kind::parse(cipher).ok_or_else(|| Refusal::Algorithm(cipher.to_owned()))?;
    let bytes: [u8; 32] = members.bytes("key").try_into().map_err(|_| Refusal::KeySize(cipher.to_owned()))?;
    let bytes = Zeroizing::new(bytes);
    may_be_made(parts, state, &name)?;
    let imported = state.keyring.import(&name, kind, bytes, peer.caller.name(), now(parts)).await;
    imported.map_err(|error| Refusal::of(Doing::Create, error))?;
    Ok(changed(Change::Imported(name)))
}

/// Refuses a name that the API may not create, with the answer of a failing store: MinIO then ends with an
/// error, and would start without the key after a 403 or `key already exists`. A name that is held passes,
/// for the keyring to refuse.
fn may_be_made(parts: &Parts, state: &State, name: &Name) -> Result<(), Refusal> {
    if parts.settings.makeable.allows(name) || state.keyring.held(name.as_str()).is_some() {
        return Ok(());
    }
    let finding = Cause::KeyMissing
        .seen(format!("somebody asked the API to make the key '{name}', which is not made that way"))
        .fix("bring the former key back, if there was one; else make it once: `keswarden key create --first`, or allow the name with KESWARDEN_CREATE_NAMES");
    Err(Refusal::Store { doing: Doing::Create, finding })
}

/// An empty answer that carries the change to the audit trail.
fn changed(change: Change) -> Response<Body> {
    let mut response = empty();
    response.extensions_mut().insert(change);
    response
}

async fn describe(state: &State, name: &str) -> Answer {
    let name = key_name(name)?;
    let held = load(state, &name).await?;
    let by = match held.version.created_by.as_str() {
        "" => String::new(),
        by => format!(",\"created_by\":{}", go::quoted(by)),
    };
    let algorithm = held.version.key.kind().name();
    Ok(json(format!(
        "{{\"name\":\"{name}\",\"algorithm\":\"{algorithm}\",\"created_at\":\"{}\"{by}}}\n",
        held.version.created_at
    )))
}

/// All names in one answer, because clients drop the names of a second page.
async fn list_keys(state: &State, pattern: &str) -> Answer {
    let parsed = Pattern::parse(pattern).ok_or_else(|| Refusal::InvalidPattern(pattern.to_owned()))?;
    let names = state.keyring.list().await.map_err(|error| Refusal::of(Doing::List, error))?;
    let names: Vec<_> =
        names.iter().filter(|name| parsed.matches(name)).map(|name| go::quoted(name)).collect();
    Ok(json(format!("{{\"names\":[{}]}}\n", names.join(","))))
}

async fn delete(parts: &Parts, state: &State, name: &str) -> Answer {
    let name = key_name(name)?;
    if !parts.settings.allow_delete {
        return Err(Refusal::NotAllowed);
    }
    state.keyring.delete(&name).await.map_err(|error| Refusal::of(Doing::Delete, error))?;
    Ok(changed(Change::Deleted(name)))
}

async fn generate(
    parts: &Parts,
    state: &State,
    route: &Route,
    name: &str,
    request: &mut Request<Incoming>,
) -> Answer {
    let name = key_name(name)?;
    // No body at all means an empty context. A body without bytes is a client's mistake: sealing for an empty
    // context would then make an object that nobody can read.
    let members = match request.body().is_end_stream() {
        true => None,
        false => Some(members(route, request, messages::GENERATE).await?),
    };
    let held = sealing(parts, load(state, &name).await?)?;
    let made = held.version.key.generate(members.as_ref().map_or(&[], |members| members.bytes("context")));
    Ok(json(bytes_object(&[("plaintext", &made.plaintext[..]), ("ciphertext", &made.ciphertext)])))
}

async fn encrypt(
    parts: &Parts,
    state: &State,
    route: &Route,
    name: &str,
    request: &mut Request<Incoming>,
) -> Answer {
    let name = key_name(name)?;
    let members = members(route, request, messages::ENCRYPT).await?;
    let held = sealing(parts, load(state, &name).await?)?;
    let ciphertext = held.version.key.seal(members.bytes("plaintext"), members.bytes("context"));
    Ok(json(bytes_object(&[("ciphertext", &ciphertext)])))
}

async fn decrypt(
    parts: &Parts,
    state: &State,
    route: &Route,
    name: &str,
    request: &mut Request<Incoming>,
) -> Answer {
    let name = key_name(name)?;
    let members = members(route, request, messages::DECRYPT).await?;
    let held = opening(parts, load(state, &name).await?)?;
    let opened = held.version.key.open(members.bytes("ciphertext"), members.bytes("context"));
    let plaintext = opened.map_err(|NotAuthentic| Refusal::NotAuthentic)?;
    Ok(json(bytes_object(&[("plaintext", &plaintext)])))
}

async fn hmac(
    parts: &Parts,
    state: &State,
    route: &Route,
    name: &str,
    request: &mut Request<Incoming>,
) -> Answer {
    let name = key_name(name)?;
    let members = members(route, request, messages::HMAC).await?;
    let held = opening(parts, load(state, &name).await?)?;
    let mac = held.version.key.hmac(members.bytes("message")).ok_or(Refusal::NoHmac)?;
    Ok(json(bytes_object(&[("hmac", &mac)])))
}

fn key_name(name: &str) -> Result<Name, Refusal> {
    Name::parse(name).map_err(|_| Refusal::InvalidName { what: "key name", name: name.to_owned() })
}

async fn load(state: &State, name: &Name) -> Result<Arc<Held>, Refusal> {
    state.keyring.get(name).await.map_err(|error| Refusal::of(Doing::Read, error))
}

/// The key, if the key may seal. A lost key does not seal, because nobody could open the result after a
/// restart. A stale key does not seal.
fn sealing(parts: &Parts, held: Arc<Held>) -> Result<Arc<Held>, Refusal> {
    match () {
        () if held.lost && !parts.settings.seal_lost => Err(Refusal::KeyLost),
        () if !held.may_seal(&parts.settings.limits, parts.clock.boot()) => Err(Refusal::Stale),
        () => Ok(held),
    }
}

/// The key, if the key may open. A stale key does not open.
fn opening(parts: &Parts, held: Arc<Held>) -> Result<Arc<Held>, Refusal> {
    if held.may_open(&parts.settings.limits, parts.clock.boot()) { Ok(held) } else { Err(Refusal::Stale) }
}

/// The body up to the route's limit; nothing when the connection broke. Bytes beyond the limit are no error,
/// because a JSON value that ends within the limit counts.
async fn body(route: &Route, request: &mut Request<Incoming>) -> Option<Zeroizing<Vec<u8>>> {
    let body = request.body_mut();
    let announced =
        usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX).min(PREALLOCATED_BYTES_MAX);
    let mut read = Zeroizing::new(Vec::with_capacity(announced));
    while let Some(frame) = body.frame().await {
        let data: Bytes = frame.ok()?.into_data().unwrap_or_default();
        let room = route.max_body - read.len();
        read.extend_from_slice(&data[..data.len().min(room)]);
        if data.len() > room {
            break;
        }
    }
    Some(read)
}

/// Bytes that are allocated at most for a body's announced length. A longer body allocates as bytes arrive.
const PREALLOCATED_BYTES_MAX: usize = 16 * 1024;

async fn members(route: &Route, request: &mut Request<Incoming>, wanted: Wanted) -> Result<Object, Refusal> {
    let body = body(route, request).await.ok_or(Refusal::InvalidBody)?;
    json::first(&body, wanted).ok_or(Refusal::InvalidBody)
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

/// Appends `,"allow":{…},"deny":{…}`, each absent when empty, with patterns in the order of their bytes.
fn rules(answer: &mut String, policy: &Policy) {
    for (member, patterns) in [("allow", &policy.allow), ("deny", &policy.deny)] {
        let mut patterns: Vec<_> =
            patterns.iter().map(|pattern| format!("{}:{{}}", go::quoted(pattern))).collect();
        patterns.sort_unstable();
        if !patterns.is_empty() {
            answer.push_str(&format!(",\"{member}\":{{{}}}", patterns.join(",")));
        }
    }
}

fn made(policies: &Policies) -> String {
    format!(",\"created_at\":\"{}\",\"created_by\":{}", policies.since, go::quoted(&policies.admin))
}

fn list<'a>(pattern: &str, names: impl Iterator<Item = &'a str>, member: &str) -> Answer {
    let parsed = Pattern::parse(pattern).ok_or_else(|| Refusal::InvalidPattern(pattern.to_owned()))?;
    let mut names: Vec<_> = names.filter(|name| parsed.matches(name)).map(go::quoted).collect();
    names.sort_unstable();
    Ok(json(format!("{{\"{member}\":[{}],\"continue_at\":\"\"}}\n", names.join(","))))
}

fn describe_identity(policies: &Policies, name: &str) -> Answer {
    let valid =
        Name::parse(name).map_err(|_| Refusal::InvalidName { what: "identity", name: name.to_owned() })?;
    if policies.admin == valid.as_str() {
        return Ok(json(format!("{{\"admin\":true,\"created_at\":\"{}\"}}\n", policies.since)));
    }
    let policy = policies.assigned.get(valid.as_str()).ok_or(Refusal::IdentityMissing)?;
    Ok(json(format!("{{\"policy\":{}{}}}\n", go::quoted(policy), made(policies))))
}

/// The caller's identity and policy, with `policy`, `allow` and `deny` at the top level, where the KES SDK
/// reads them.
fn self_describe(policies: &Policies, peer: &Peer) -> Answer {
    let identity = peer.caller.identity().map_err(|_| Refusal::IdentityMissing)?;
    if policies.is_admin(identity) {
        return Ok(json(format!(
            "{{\"identity\":\"{identity}\",\"admin\":true,\"created_at\":\"{}\"}}\n",
            policies.since
        )));
    }
    let (name, policy) = policies.policy_of(identity).ok_or(Refusal::IdentityMissing)?;
    let mut answer = format!("{{\"identity\":\"{identity}\",\"policy\":{}", go::quoted(name));
    rules(&mut answer, policy);
    answer.push_str(&made(policies));
    Ok(json(answer + "}\n"))
}

fn now(parts: &Parts) -> Timestamp {
    parts.clock.timestamp()
}
