//! What one process leaves to the next in the agent's part of the run directory: its token, so that a secret_id that can be used once
//! serves `init` and `run`, and the credentials that Vault refused, so that a restart does not lock a role out.

use super::{
    Config,
    login::{Fingerprint, Login},
    refusals::Refusal,
};
use crate::{
    cause::Cause,
    clock::{self, Clock},
    files,
    secret::{self, Secret},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use zeroize::Zeroizing;

/// The folder, and who we are there; without a folder nothing is left.
pub(super) struct Handover {
    dir: Option<PathBuf>,
    config: Config,
    clock: Clock,
    /// That nothing can be left was said.
    told: AtomicBool,
}

/// A token, as the next process finds it. Unknown members are ignored: the next version may write more.
#[derive(Deserialize, Serialize)]
struct KeptToken {
    session: u32,
    /// Of whom: a token of another role, or of another Vault, is not taken.
    who: String,
    token: Zeroizing<String>,
}

#[derive(Deserialize, Serialize)]
struct KeptRefusal {
    refused: u32,
    /// SHA-256 of the credentials, hex.
    credentials: String,
    /// Seconds since 1970.
    until: u64,
    /// The identifier; absent in the files of earlier versions.
    #[serde(default)]
    cause: String,
    seen: String,
}

const TOKEN: &str = "vault-token.json";
const REFUSED: &str = "vault-refused.json";
/// The longest rest of a refusal, whatever the file says.
const REST_MAX_SECONDS: u64 = 30 * 60;

// === impl Handover ===

impl Handover {
    pub(super) fn new(config: &Config, clock: Clock) -> Self {
        // A given token is the operator's to keep.
        let dir = config.state_dir.clone().filter(|_| !matches!(config.login, Login::Token(_)));
        Self { dir, config: config.clone(), clock, told: AtomicBool::new(false) }
    }

    /// Who we are now: the file of a role_id may have come since.
    fn who(&self) -> String {
        let Config { namespace, auth_namespace, login, address, .. } = &self.config;
        let namespaces = [namespace, auth_namespace].map(|name| name.as_deref().unwrap_or_default());
        let (mount, role) = match login {
            Login::Token(_) => ("", String::new()),
            Login::AppRole { mount, role_id, .. } | Login::WrappedAppRole { mount, role_id, .. } => {
                (&**mount, role_id.read().map(|role| role.expose().to_owned()).unwrap_or_default())
            }
            Login::Kubernetes { mount, role, .. } | Login::Jwt { mount, role, .. } => {
                (&**mount, role.clone())
            }
            Login::Certificate { mount, role } => (&**mount, role.clone().unwrap_or_default()),
        };
        let mut digest = Sha256::new();
        for part in [&**address, namespaces[0], namespaces[1], login.method(), mount, &*role] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        secret::hex(&digest.finalize()[..16])
    }

    fn path(&self, file: &str) -> Option<PathBuf> {
        Some(self.dir.as_deref()?.join(file))
    }

    /// The token of the process before, when it was ours.
    pub(super) fn token(&self) -> Option<Arc<Secret>> {
        let text = Zeroizing::new(std::fs::read(self.path(TOKEN)?).ok()?);
        let kept: KeptToken = serde_json::from_slice(&text).ok()?;
        let token = Secret::new(kept.token.to_string());
        (kept.who == self.who() && !token.expose().is_empty()).then(|| Arc::new(token))
    }

    pub(super) fn keep_token(&self, token: &Secret) {
        let kept =
            KeptToken { session: 1, who: self.who(), token: Zeroizing::new(token.expose().to_owned()) };
        let text = Zeroizing::new(serde_json::to_vec(&kept).expect("a token must encode"));
        self.write(TOKEN, &text);
    }

    pub(super) fn drop_token(&self) {
        self.remove(TOKEN);
    }

    /// What Vault refused a while ago.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        let kept: KeptRefusal = serde_json::from_slice(&std::fs::read(self.path(REFUSED)?).ok()?).ok()?;
        let now = clock::unix(self.clock.wall()) as u64;
        // A clock that was set makes nobody wait longer than the rule says.
        let rest = kept.until.checked_sub(now).filter(|rest| *rest > 0)?.min(REST_MAX_SECONDS);
        let credentials = parse_hex(&kept.credentials)?;
        let cause = Cause::ALL.iter().find(|cause| cause.id() == kept.cause).copied();
        let finding = cause.unwrap_or(Cause::LoginRefused).seen(kept.seen);
        Some(Refusal { credentials, rest: Duration::from_secs(rest), finding })
    }

    pub(super) fn keep_refusal(&self, Refusal { credentials, rest, finding }: &Refusal) {
        let kept = KeptRefusal {
            refused: 1,
            credentials: secret::hex(credentials),
            until: clock::unix(self.clock.wall()) as u64 + rest.as_secs(),
            cause: finding.cause.id().to_owned(),
            seen: finding.seen.clone(),
        };
        self.write(REFUSED, &serde_json::to_vec(&kept).expect("a refusal must encode"));
    }

    pub(super) fn drop_refusal(&self) {
        self.remove(REFUSED);
    }

    fn write(&self, file: &str, bytes: &[u8]) {
        let Some(path) = self.path(file) else { return };
        let dir = path.parent().unwrap_or(&path);
        let _ = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        if let Err(error) = files::write_lightly(&path, 0o600, bytes) {
            // Once: each login would say it again.
            if !self.told.swap(true, Ordering::Relaxed) {
                let finding = Cause::RunDirUnusable.seen(format!(
                    "the login is not left to the next process, so a secret_id that is good for one login serves this one only: {error}"
                ));
                tracing::warn!(cause = finding.cause.id(), "{finding}");
            }
        }
    }

    fn remove(&self, file: &str) {
        if let Some(path) = self.path(file).filter(|path| Path::new(path).exists()) {
            let _ = std::fs::remove_file(path);
        }
    }
}

fn parse_hex(text: &str) -> Option<Fingerprint> {
    let digits: Vec<_> = text.chars().map(|digit| digit.to_digit(16)).collect::<Option<_>>()?;
    let bytes: Vec<_> = digits.chunks_exact(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
    bytes.try_into().ok()
}
