//! What one process leaves to the next in the agent's part of the run directory: its token, so that a secret_id that can be used once
//! serves `init` and `run`, and the credentials that Vault refused, so that a restart does not lock a role out.

use super::login::{Fingerprint, Login};
use crate::{
    cause::{Cause, Finding},
    clock::{self, Clock},
    secret::{self, Secret},
    tls::mint,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use zeroize::Zeroizing;

/// The folder, and who we are there; without a folder nothing is left.
pub(super) struct Heritage {
    dir: Option<PathBuf>,
    who: String,
    clock: Clock,
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
    seen: String,
}

/// Credentials that were refused before this process started.
pub(super) struct Refusal {
    pub(super) credentials: Fingerprint,
    /// From now.
    pub(super) rest: Duration,
    pub(super) finding: Finding,
}

const TOKEN: &str = "vault-token.json";
const REFUSED: &str = "vault-refused.json";
/// No refusal rests longer.
const MOST: u64 = 30 * 60;

// === impl Heritage ===

impl Heritage {
    pub(super) fn new(config: &super::Config, clock: Clock) -> Self {
        let mut digest = Sha256::new();
        let namespace =
            [&config.namespace, &config.auth_namespace].map(|name| name.clone().unwrap_or_default());
        let (mount, role) = match &config.login {
            Login::Token(_) => (String::new(), String::new()),
            Login::AppRole { mount, role_id, .. } | Login::WrappedAppRole { mount, role_id, .. } => {
                (mount.clone(), role_id.read().map(|role| role.expose().to_owned()).unwrap_or_default())
            }
            Login::Kubernetes { mount, role, .. } | Login::Jwt { mount, role, .. } => {
                (mount.clone(), role.clone())
            }
            Login::Certificate { mount, role } => (mount.clone(), role.clone().unwrap_or_default()),
        };
        let method = config.login.method();
        for part in [&*config.address, &namespace[0], &namespace[1], method, &mount, &role] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        // A given token is the operator's to keep.
        let dir = config.state_dir.clone().filter(|_| !matches!(config.login, Login::Token(_)));
        Self { dir, who: secret::hex(&digest.finalize()[..16]), clock }
    }

    fn path(&self, file: &str) -> Option<PathBuf> {
        Some(self.dir.as_deref()?.join(file))
    }

    /// The token of the process before, when it was ours.
    pub(super) fn token(&self) -> Option<Arc<Secret>> {
        let text = Zeroizing::new(std::fs::read(self.path(TOKEN)?).ok()?);
        let kept: KeptToken = serde_json::from_slice(&text).ok()?;
        let token = Secret::new(kept.token.to_string());
        (kept.who == self.who && !token.expose().is_empty()).then(|| Arc::new(token))
    }

    pub(super) fn keep_token(&self, token: &Secret) {
        let kept =
            KeptToken { session: 1, who: self.who.clone(), token: Zeroizing::new(token.expose().to_owned()) };
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
        let rest = kept.until.checked_sub(now).filter(|rest| *rest > 0)?.min(MOST);
        let credentials = parse_hex(&kept.credentials)?;
        let finding = Cause::LoginRefused.seen(kept.seen);
        Some(Refusal { credentials, rest: Duration::from_secs(rest), finding })
    }

    pub(super) fn keep_refusal(&self, Refusal { credentials, rest, finding }: &Refusal) {
        let kept = KeptRefusal {
            refused: 1,
            credentials: secret::hex(credentials),
            until: clock::unix(self.clock.wall()) as u64 + rest.as_secs(),
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
        if let Err(error) = mint::write_lightly(&path, 0o600, bytes) {
            tracing::debug!("nothing is left to the next process: {error}");
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
