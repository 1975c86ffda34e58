//! The checks of keys in a KES without a key store of ours. KES gives no key away, so a key is checked by
//! what it opens: a round trip, the tenant's data, and a canary.
//!
//! A canary is a data key that KES once made: its ciphertext, and the SHA-256 of its plaintext. Only the key
//! that sealed the canary opens the canary to the same bytes.
//!
//! ```text
//! { "canary": 1, "ciphertext": base64, "sha256": hex, "made_at": RFC 3339 }
//! ```

use super::checks::Checks;
use crate::{
    cause::{Cause, Finding},
    evidence::{self, Opened, Samples, Verdict},
    kes_client::{CONTEXT, Client},
    names::Name,
    pins,
    secret::{self, Secret},
    store::{Error, KeyStore},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{collections::HashMap, sync::Arc};

#[derive(Deserialize, Serialize)]
struct Canary {
    /// The version of this form.
    canary: u32,
    /// Base64.
    ciphertext: String,
    /// SHA-256 of the plaintext, in hex.
    sha256: String,
    /// RFC 3339.
    made_at: String,
}

/// The version of the form that is written. A reader takes this version and every earlier one.
const VERSION: u32 = 1;

impl Checks<'_> {
    /// Every demanded key works at KES, opens the evidence of the drives, and opens its canary.
    pub(super) async fn keys_at_kes(&self, client: &Client) -> Result<String, Finding> {
        // Drives that cannot be read are no witness, and stop no start.
        let samples = self.samples().await.unwrap_or_else(|finding| {
            self.log_error_once(&finding, "the drives are not asked");
            None
        });
        let (mut says, mut proven) = (Vec::new(), Vec::new());
        if let Some(samples) = &samples {
            let findings = self.try_at_kes(client, samples).await?;
            let tried = self.drive_statements(samples, &findings, |_| None);
            for finding in &findings {
                match finding.verdict {
                    Verdict::NoneOpen | Verdict::Mixed => return Err(tried.refutes(finding)),
                    Verdict::Opens => proven.push(finding.key.clone()),
                    _ => {}
                }
            }
            tried.notes.iter().for_each(|note| self.log_error_once(note, "the key passes"));
            says.extend(tried.says);
        }
        let is_new = samples.is_some_and(|samples| samples.is_new());
        for name in &self.settings.keys {
            let may_trust = is_new || proven.iter().any(|key| key == name.as_str());
            self.check_canary(name, client, may_trust).await?;
        }
        let names: Vec<_> = self.settings.keys.iter().map(|name| format!("'{name}'")).collect();
        says.insert(0, format!("{} by KES alone, which gives no key away", names.join(", ")));
        Ok(says.join("; "))
    }

    /// Tries the keys of KES on the evidence of the drives.
    async fn try_at_kes(
        &self,
        client: &Client,
        samples: &Samples,
    ) -> Result<Vec<evidence::Finding>, Finding> {
        let mut opened = HashMap::new();
        for (key, records) in &samples.keys {
            let Ok(name) = Name::parse(key) else { continue };
            for record in records.each() {
                for context in record.contexts() {
                    let result = match client.decrypt(&name, &record.ciphertext, context).await {
                        Ok(_) => Opened::Yes,
                        Err(finding) => match finding.cause {
                            Cause::KesRoundTripFailed => Opened::No,
                            Cause::KesKeyMissing => Opened::NoSuchKey,
                            // MinIO's identity may have no right to another key than its default key.
                            Cause::KesDenied => Opened::Unknown,
                            _ => return Err(finding),
                        },
                    };
                    opened.insert((key.as_str(), record.ciphertext.as_slice(), context), result);
                    if result != Opened::No {
                        break;
                    }
                }
            }
        }
        Ok(evidence::judge(samples, |key, ciphertext, context| {
            opened.get(&(key, ciphertext, context)).copied().unwrap_or(Opened::Unknown)
        }))
    }

    /// KES opens the key's canary. A key without a canary gets one when `may_trust`, else a warning or a
    /// refusal.
    async fn check_canary(&self, name: &Name, client: &Client, may_trust: bool) -> Result<(), Finding> {
        let Some(canaries) =
            self.deps.canaries.as_deref().filter(|_| self.deps.memory.mode() != pins::Mode::Off)
        else {
            return self.without_canary(name);
        };
        match canaries.get(name).await {
            Ok(text) => open_canary(name, &text, client).await,
            Err(Error::Missing(_)) if may_trust && !self.is_read_only => {
                self.make_canary(name, client, canaries).await
            }
            Err(Error::Missing(_)) => self.without_canary(name),
            Err(error) => Err(error.finding()),
        }
    }

    fn without_canary(&self, name: &Name) -> Result<(), Finding> {
        let finding = Cause::KeyUnpinned
            .seen(format!("the key '{name}' at KES has no canary: another key under the name at the next start would go unnoticed"))
            .fix("set KESWARDEN_PIN_DIR, and KESWARDEN_DRIVES: once the tenant's data prove the key, its canary is made");
        match self.deps.memory.mode() {
            pins::Mode::Require => Err(finding),
            pins::Mode::Warn if self.is_new_line(&finding.seen) => {
                tracing::warn!(cause = finding.cause.id(), "{finding}");
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn make_canary(
        &self,
        name: &Name,
        client: &Client,
        canaries: &dyn KeyStore,
    ) -> Result<(), Finding> {
        let (plaintext, ciphertext) = client.generate(name).await?;
        let canary = Canary {
            canary: VERSION,
            ciphertext: STANDARD.encode(ciphertext),
            sha256: secret::hex(&Sha256::digest(&*plaintext)),
            made_at: self.deps.clock.timestamp().to_string(),
        };
        let text = Secret::new(serde_json::to_string(&canary).expect("a canary must encode"));
        match canaries.create(name, &text).await {
            Ok(()) => {
                tracing::info!(key = %name, "the key's canary is made: from now on no other key passes for it");
                Ok(())
            }
            // Another pod was faster: the canary of that pod counts.
            Err(Error::Exists) => {
                let text = canaries.get(name).await.map_err(Error::finding)?;
                open_canary(name, &text, client).await
            }
            Err(error) => {
                let finding = error.finding();
                tracing::warn!(key = %name, cause = finding.cause.id(), "no canary was made: {finding}");
                self.without_canary(name)
            }
        }
    }
}

/// KES opens the canary to the plaintext that it was made with.
async fn open_canary(name: &Name, text: &Secret, client: &Client) -> Result<(), Finding> {
    let broken =
        || Cause::PinConflict.seen(format!("the text kept as the canary of the key '{name}' is no canary"));
    let canary: Canary = serde_json::from_str(text.expose().trim()).map_err(|_| broken())?;
    if !(1..=VERSION).contains(&canary.canary) {
        return Err(broken().fix("run the version that wrote it, or a later one"));
    }
    let ciphertext = STANDARD.decode(&canary.ciphertext).map_err(|_| broken())?;
    let other = || {
        Cause::KeyReplaced.seen(format!(
            "KES does not open the canary of the key '{name}', made at {}: it has another key under this name now",
            canary.made_at
        ))
    };
    match client.decrypt(name, &ciphertext, CONTEXT.as_bytes()).await {
        Ok(plaintext) if secret::hex(&Sha256::digest(&*plaintext)) == canary.sha256 => Ok(()),
        Ok(_) => Err(other()),
        Err(finding) if finding.cause == Cause::KesRoundTripFailed => Err(other()),
        Err(finding) => Err(finding),
    }
}

/// The place of canaries, one text a key. Absent: no canaries are kept.
pub type Canaries = Option<Arc<dyn KeyStore>>;
