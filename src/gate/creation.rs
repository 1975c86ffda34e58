//! The creation of the first key: only when no witness knows the name, and every witness could be asked.

use super::{
    Create,
    checks::{Checks, unexpected},
};
use crate::{
    cause::Finding,
    keyring::{Held, KeyringWriter},
    known::{self, Asked, Kind, Says, Statement, Verdict},
    names::Name,
    store::{Error, History},
};
use std::sync::Arc;

impl Checks<'_> {
    /// Creates a missing key, or says why none is created. `missing` is the store's own finding.
    pub(super) async fn create(
        &self,
        name: &Name,
        writer: &KeyringWriter,
        missing: Finding,
    ) -> Result<Arc<Held>, Finding> {
        let commands = &self.deps.memory.commands;
        let history = self.deps.store.history(name).await?;
        let mut statements = self.statements_on_missing(name, Some(history)).await;
        let (on_request, whatever_drives) = match self.settings.create {
            Create::Never | Create::IfNew => (false, false),
            Create::First => (true, false),
            Create::FirstWhateverDrives => (true, true),
        };
        if whatever_drives {
            statements.retain(|one| one.kind != Kind::Drives || one.knows_the_name());
        }
        let asked = Asked::Creation { on_request };
        match known::judge(asked, &statements) {
            Verdict::Other(_) => {
                let finding = known::missing(name, missing, &statements, commands, None);
                let seen = format!("{}, so it is not made anew", finding.seen);
                return Err(Finding { seen, ..finding });
            }
            Verdict::Unsure(silent) => return Err(known::unsure(name, missing, &silent, commands)),
            Verdict::Same | Verdict::First => {}
        }
        let now = self.deps.clock.timestamp();
        match writer.create(name, &self.settings.maker, now).await {
            Ok(held) => {
                tracing::warn!(key = %name, fingerprint = held.fingerprint, "the key was made: nothing shows that there ever was one");
                Ok(held)
            }
            // Another pod was faster: the key of that pod counts.
            Err(Error::Exists) => {
                writer.look(name).await.map_err(|error| error.into_finding(|| unexpected(name)))
            }
            Err(error) => Err(error.into_finding(|| unexpected(name))),
        }
    }

    /// The statements of every witness on a name without a usable key: the drives included, and the store's
    /// history where given.
    pub(super) async fn statements_on_missing(
        &self,
        name: &Name,
        history: Option<History>,
    ) -> Vec<Statement> {
        let mut statements = self.deps.memory.witnesses.ask(name).await;
        statements.extend(self.drives_know(name).await);
        statements.extend(history.map(|history| {
            let says = match history {
                History::Was => Says::WasInUse("a trace of the key".to_owned()),
                History::New => Says::New,
                History::Forgets(why) => Says::Forgets(why.to_owned()),
            };
            Statement::new(Kind::History, format!("the history of {}", self.deps.store.describe()), says)
        }));
        statements
    }
}
