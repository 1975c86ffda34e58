//! What state Vault is in: sealed, unsealed, or none that answers; of several nodes the one that is well, or the one that says most.

use super::{
    Client, Config,
    endpoints::{Call, Headers},
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
            Err(finding) => finding,
        };
        // At once: each may hang for as long as one.
        let others = turn.map(|at| async move { (at, self.seal_state(at, whole).await) });
        for (at, state) in futures_util::future::join_all(others).await {
            match state {
                Ok(()) => {
                    self.wire.prefer(at);
                    self.note_state(None);
                    return Ok(());
                }
                Err(finding) if telling(finding.cause) > telling(worst.cause) => worst = finding,
                Err(_) => {}
            }
        }
        Err(worst)
    }

    async fn seal_state(&self, at: usize, bound: Duration) -> Result<(), Finding> {
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
        let answer = answer.map_err(|failure| verdict::unreachable(&asked, &place, &failure));
        let result = answer.and_then(|answer| self.judge_seal_state(&asked, &place, &answer));
        self.note_state(result.as_ref().err().map(|finding| finding.cause));
        result
    }

    fn judge_seal_state(&self, asked: &Asked<'_>, place: &Config, answer: &Answer) -> Result<(), Finding> {
        if answer.status != 200 {
            return Err(verdict::of(asked, place, answer));
        }
        let status: Option<SealStatus> = answer.json();
        let Some(SealStatus { initialized: Some(initialized), sealed: Some(sealed), t, progress, .. }) =
            status
        else {
            return Err(verdict::not_vault(place, answer));
        };
        let address = &place.address;
        match (initialized, sealed) {
            (false, _) => Err(Cause::VaultUninitialised.seen(format!("Vault {address} is not initialised"))),
            (true, true) => Err(Cause::VaultSealed
                .seen(format!("Vault {address} is sealed (unseal progress {progress} of {t} keys)"))),
            (true, false) => Ok(()),
        }
    }

    /// What Vault last was: every answer says so, and so does none.
    pub(super) fn note_state(&self, trouble: Option<Cause>) {
        self.metrics.state.set(match trouble {
            Some(Cause::VaultSealed) => "sealed",
            Some(Cause::VaultUninitialised) => "uninitialised",
            Some(
                Cause::VaultUnreachable
                | Cause::VaultUnreachableRefused
                | Cause::VaultUnreachableTimeout
                | Cause::VaultUnreachableDns
                | Cause::VaultTlsUnknownCa
                | Cause::VaultTlsName
                | Cause::VaultTlsExpired
                | Cause::VaultTlsPlainHttp
                | Cause::VaultTlsOther,
            ) => "unreachable",
            _ => "unsealed",
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

/// Of several nodes that are not well, the one that says most.
fn telling(cause: Cause) -> u8 {
    match cause {
        Cause::VaultSealed => 3,
        Cause::VaultUninitialised => 2,
        Cause::VaultUnreachableRefused
        | Cause::VaultUnreachableTimeout
        | Cause::VaultUnreachableDns
        | Cause::VaultUnreachable => 0,
        _ => 1,
    }
}
