//! What state Vault is in: sealed, unsealed, or none that answers; of several nodes the one that is well, or the one that says most.

use super::{
    Client, Config,
    endpoints::{Call, Headers},
    transport::{Failure, FailureKind},
    verdict::{self, Answer, Asked},
};
use crate::cause::{Cause, Finding};
use std::time::Duration;

/// What `sys/seal-status` says, and `sys/health`, as far as each does.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default)]
pub(super) struct SealStatus {
    initialized: Option<bool>,
    sealed: Option<bool>,
    t: u64,
    progress: u64,
    pub(super) standby: bool,
}

/// How long a node is asked for its seal status while others may be well.
pub(super) const HASTE: Duration = Duration::from_secs(2);
/// The bound of a look at the health page, which costs nothing to answer.
const HEALTH: Duration = Duration::from_secs(1);

/// The state of a node, in the order of what the state says: of several nodes, the highest is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NodeState {
    /// The node serves.
    Unsealed,
    /// No answer came.
    Unreachable,
    /// TLS did not lead to a node that can be trusted.
    Untrusted,
    /// The node answers, and not with a seal status.
    InTrouble,
    Uninitialised,
    Sealed,
}

// === impl NodeState ===

impl NodeState {
    /// The state of a node that gave no answer.
    pub(super) fn without_answer(failure: &Failure) -> Self {
        match failure.kind {
            FailureKind::Tls(_) => Self::Untrusted,
            FailureKind::Refused
            | FailureKind::Timeout
            | FailureKind::ConnectTimeout
            | FailureKind::Dns
            | FailureKind::Other => Self::Unreachable,
        }
    }
}

// === impl Client ===

impl Client {
    /// Reachable, initialised and unsealed: the node that answered last, or another one when it is not.
    pub async fn unsealed(&self) -> Result<(), Finding> {
        let mut turn = self.wire.turn();
        let first = turn.next().expect("there must be an address");
        let whole = self.config.timeout;
        // While there are others, one that hangs is not waited for to the end.
        let bound = if turn.len() > 0 { HASTE.min(whole) } else { whole };
        let mut worst = match self.seal_state(first, bound).await {
            Ok(()) => return Ok(()),
            Err(trouble) => trouble,
        };
        // At once: each may hang for as long as one.
        let others = turn.map(|at| async move { (at, self.seal_state(at, whole).await) });
        for (at, state) in futures_util::future::join_all(others).await {
            match state {
                Ok(()) => {
                    self.wire.prefer(at);
                    self.note_state(NodeState::Unsealed);
                    return Ok(());
                }
                Err(trouble) if trouble.0 > worst.0 => worst = trouble,
                Err(_) => {}
            }
        }
        Err(worst.1)
    }

    async fn seal_state(&self, at: usize, bound: Duration) -> Result<(), (NodeState, Finding)> {
        let asked = Asked { what: "asking for the seal status", path: "sys/seal-status" };
        let call = Call::get(asked.path);
        let begun = self.clock.now();
        let answer = match bound < self.config.timeout {
            true => self.wire.send_within(bound, at, &call, &Headers::none()).await,
            // The transport has this bound of its own, and learns from it.
            false => self.wire.send_to(at, &call, &Headers::none()).await,
        };
        self.observe(&asked, begun, &answer);
        let place = Config { address: self.wire.address(at).to_owned(), ..self.config.clone() };
        let result = match answer {
            Ok(answer) => judge_seal_state(&asked, &place, &answer),
            Err(failure) => {
                Err((NodeState::without_answer(&failure), verdict::unreachable(&asked, &place, &failure)))
            }
        };
        self.note_state(result.as_ref().err().map_or(NodeState::Unsealed, |(state, _)| *state));
        result
    }

    /// The gauge of the state in which Vault was last seen: every answer sets the gauge, and so does every failure to get one.
    pub(super) fn note_state(&self, state: NodeState) {
        self.metrics.state.set(match state {
            NodeState::Unreachable | NodeState::Untrusted => "unreachable",
            NodeState::Unsealed | NodeState::InTrouble => "unsealed",
            NodeState::Uninitialised => "uninitialised",
            NodeState::Sealed => "sealed",
        });
    }

    /// The health page says active or standby, and unsealed. It takes neither a token nor a namespace, and no audit device hears of it.
    pub(super) async fn health_is_green(&self, at: usize) -> bool {
        let health = self.health(at).await;
        health.is_some_and(|health| health.initialized == Some(true) && health.sealed == Some(false))
    }

    pub(super) async fn health(&self, at: usize) -> Option<SealStatus> {
        let call = Call::get("sys/health").query(Some("standbyok=true&perfstandbyok=true"));
        self.wire.send_within(HEALTH, at, &call, &Headers::none()).await.ok()?.json()
    }
}

/// The seal status as one node's answer gives it.
fn judge_seal_state(asked: &Asked<'_>, place: &Config, answer: &Answer) -> Result<(), (NodeState, Finding)> {
    if answer.status != 200 {
        return Err((NodeState::InTrouble, verdict::of(asked, place, answer)));
    }
    let status: Option<SealStatus> = answer.json();
    let Some(SealStatus { initialized: Some(initialized), sealed: Some(sealed), t, progress, .. }) = status
    else {
        return Err((NodeState::InTrouble, verdict::not_vault(place, answer)));
    };
    let address = &place.address;
    match (initialized, sealed) {
        (false, _) => Err((
            NodeState::Uninitialised,
            Cause::VaultUninitialised.seen(format!("Vault {address} is not initialised")),
        )),
        (true, true) => Err((
            NodeState::Sealed,
            Cause::VaultSealed
                .seen(format!("Vault {address} is sealed (unseal progress {progress} of {t} keys)")),
        )),
        (true, false) => Ok(()),
    }
}
