//! The sealed copy as a witness.

use super::SealedCopy;
use crate::{
    cause::{Cause, Finding},
    files::Blocking,
    known::{Commands, Kind, Known, Says, Witness},
    names::Name,
};
use async_trait::async_trait;
use std::sync::Arc;

/// The sealed copy as a witness. Expired keys are known as well.
pub struct CopyWitness {
    copy: Arc<SealedCopy>,
    commands: Commands,
    blocking: Blocking,
}

// === impl CopyWitness ===

impl CopyWitness {
    /// The copy as a witness; `commands` are for the way to put a key back.
    pub fn new(copy: Arc<SealedCopy>, commands: Commands) -> Self {
        Self { copy, commands, blocking: Blocking::default() }
    }
}

#[async_trait]
impl Witness for CopyWitness {
    fn kind(&self) -> Kind {
        Kind::Copy
    }

    fn place(&self) -> String {
        self.copy.place()
    }

    fn gives_back(&self, name: &Name) -> Option<String> {
        let command = self.commands.of(&format!("key rescue {name} --from-copy --yes"));
        Some(format!("put it back from the sealed copy, which has it: `{command}`"))
    }

    /// A copy of another store cannot tell: its key of the name may be another tenant's, or the key that was
    /// in use here.
    async fn says(&self, name: &Name) -> Option<Says> {
        let (copy, wanted) = (self.copy.clone(), name.clone());
        let looked = self.blocking.run(move || copy.keys_of(&wanted)).await;
        let looked = looked.unwrap_or_else(|hangs| Err(Cause::CopyUnusable.seen(hangs.to_string())));
        Some(match looked {
            Err(finding) => Says::CannotTell(finding),
            Ok(None) => return None,
            Ok(Some((origin, _))) if !self.copy.is_ours(&origin) => {
                Says::CannotTell(self.copy.is_anothers(&origin, &self.copy.origin()))
            }
            Ok(Some((_, keys))) => {
                let current = keys.into_iter().filter(|key| !key.former);
                let current: Vec<_> =
                    current.map(|key| Known::Fingerprint(key.fingerprint, String::new())).collect();
                if current.is_empty() { Says::New } else { Says::Known(current) }
            }
        })
    }

    async fn forget(&self, name: &Name, was: &str, _: Option<&str>) -> Result<(), Finding> {
        let (copy, name, was) = (self.copy.clone(), name.clone(), was.to_owned());
        let done = self.blocking.run(move || copy.forget(&name, &was)).await;
        done.unwrap_or_else(|hangs| Err(Cause::CopyUnusable.seen(hangs.to_string())))
    }
}
