//! The audit trail: one line for everything that changes keys, or was refused.

use super::{
    Peer,
    refusal::Refusal,
    routes::{Op, Route},
};

/// A key was made, imported or deleted.
pub fn changed(route: &Route, path: &str, peer: &Peer, what: &str) {
    let (ip, identity) = (peer.address.ip(), peer.caller.shown());
    tracing::info!(audit = true, req.method = route.method, req.path = path, req.ip = %ip, req.identity = identity, "{what}");
}

/// A request was refused, or failed.
pub fn refused(route: &Route, path: &str, peer: &Peer, refusal: &Refusal) {
    let (ip, identity, code) = (peer.address.ip(), peer.caller.shown(), refusal.status().as_u16());
    match refusal {
        Refusal::Store { finding, .. } | Refusal::NotReady(finding) => tracing::error!(
            req.method = route.method, req.path = path, req.ip = %ip, req.identity = identity, res.code = code,
            cause = finding.cause.id(), "{}: {finding}", refusal.message()
        ),
        // A missing key is how MinIO finds out that it has to make one, and what `describe` is for.
        Refusal::KeyMissing if route.op == Op::Describe => {}
        _ => tracing::info!(
            audit = true, req.method = route.method, req.path = path, req.ip = %ip, req.identity = identity,
            res.code = code, "refused: {}", refusal.message()
        ),
    }
}
