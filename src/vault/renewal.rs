//! Keeping the token alive: renewals, a login when one is needed, and a look at the nodes that are not asked now.

use super::{
    Client,
    endpoints::{Call, Headers},
    lease::{Action, Failed},
    login,
    seal_status::HASTE,
    token::Grant,
    verdict::{self, Asked},
};
use crate::{
    cause::{Cause, Finding},
    clock::Instant,
    shutdown::Hangups,
};
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

/// How often an idle lease is looked at: no timer runs while a machine is suspended, and tokens end all the same.
const LOOK: Duration = Duration::from_secs(60);
/// How often the addresses that are not asked now are looked at.
const LOOK_AROUND: Duration = Duration::from_secs(60);
/// Between lines that say the same.
const REMIND: Duration = Duration::from_secs(60);

/// Why the login could not be renewed, as last logged, and when.
#[derive(Default)]
pub(super) struct RenewalLog(Mutex<HashMap<(&'static str, Cause), Instant>>);

// === impl RenewalLog ===

impl RenewalLog {
    /// Whether a line is due: at once for a new cause, and then once in a while.
    fn is_due(&self, what: &'static str, cause: Cause, now: Instant) -> bool {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((what, cause), now);
        before.is_none_or(|at| now - at >= REMIND)
    }
}

// === impl Client ===

impl Client {
    /// Keeps the token alive: renews it, and logs in anew when that fails. A SIGHUP has refused credentials tried again. Runs until
    /// it is dropped.
    pub async fn keep(&self) {
        futures_util::future::join(self.keep_alive(), self.keep_looking()).await;
    }

    /// What should be known before it stops anything: beside the lease, since Vault may answer slowly.
    async fn keep_looking(&self) {
        loop {
            tokio::time::sleep(LOOK_AROUND.min(self.until_inspection()).max(Duration::from_secs(1))).await;
            self.inspect().await;
            self.look_around().await;
        }
    }

    async fn keep_alive(&self) {
        let mut hangups = Hangups::listen().ok();
        loop {
            let action = self.token.next(self.clock.theirs());
            match action {
                Action::Wait(delay) => {
                    let hangup = async {
                        match &mut hangups {
                            Some(hangups) => hangups.next().await,
                            None => std::future::pending().await,
                        }
                    };
                    tokio::select! {
                        () = tokio::time::sleep(delay.min(LOOK)) => {}
                        // A login on the way of a request has changed it.
                        () = self.token.changed() => {}
                        () = hangup => self.try_again(),
                    }
                }
                Action::Renew => self.renew().await,
                Action::Login => {
                    if let Err(finding) = self.login().await {
                        self.say("cannot renew the login", &finding);
                        self.token.login_failed(self.clock.theirs(), (self.chance)());
                    }
                }
            }
        }
    }

    /// Nodes that are not asked may be well again, or no longer.
    async fn look_around(&self) {
        let call = Call::get("sys/seal-status");
        let bound = HASTE.min(self.config.timeout);
        let others = self.wire.turn().skip(1).map(|at| {
            let call = &call;
            async move { drop(self.wire.send_within(bound, at, call, &Headers::none()).await) }
        });
        futures_util::future::join_all(others).await;
    }

    /// Somebody says that what was refused is worth another try.
    fn try_again(&self) {
        self.handover.drop_refusal();
        self.refusals.clear();
        self.logins.forget_failure();
    }

    async fn renew(&self) {
        let Some(token) = self.token.any() else { return };
        let headers = Headers::with(Some(token.clone()), self.config.namespace.clone());
        let asked = Asked { what: "renewing the token", path: "auth/token/renew-self" };
        let empty = serde_json::json!({});
        let sent = self.clock.theirs();
        let granted = match self.send(&asked, Call::post(asked.path, &empty), &headers).await {
            Ok(answer) if answer.status == 200 => match answer.json::<login::Answered>() {
                Some(answered) => Ok(answered.auth),
                None => Err((verdict::not_vault(&self.config, &answer), Failed::Away)),
            },
            Ok(answer) => {
                let why = if verdict::is_away(&answer) { Failed::Away } else { Failed::Refused };
                Err((verdict::of(&asked, &self.config, &answer), why))
            }
            Err(finding) => Err((finding, Failed::Away)),
        };
        match granted {
            Ok(granted) => {
                let grant = Grant { sent, ttl: granted.ttl(), renewable: granted.renewable };
                if self.token.renewed(&token, grant, (self.chance)()) {
                    self.metrics.last_renewal.set(self.clock.unix_seconds());
                    self.metrics.expires(&self.clock, granted.ttl());
                }
            }
            Err((finding, why)) => {
                if !self.token.renewal_failed(&token, self.clock.theirs(), why, (self.chance)()) {
                    return;
                }
                self.say(
                    match why {
                        Failed::Away => "cannot renew the token, trying again",
                        Failed::Refused => "cannot renew the token, logging in anew",
                    },
                    &finding,
                );
            }
        }
    }

    fn say(&self, what: &'static str, finding: &Finding) {
        if self.renewal_log.is_due(what, finding.cause, self.clock.now()) {
            tracing::warn!(cause = finding.cause.id(), "{what}: {finding}");
        }
    }
}
