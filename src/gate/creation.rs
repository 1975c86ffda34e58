//! The first key: made only when no witness knows the name, and everyone who might could be asked.

use super::{
    Create,
    checks::{Checks, unexpected},
};
use crate::{
    cause::Finding,
    keyring::{Held, KeyringWriter},
    known::{self, Asked, Kind, Known, Says, Statement, Verdict},
    names::Name,
    store::{Error, History},
};
use std::sync::Arc;

impl Checks<'_> {
    pub(super) async fn create(
        &self,
        name: &Name,
        writer: &KeyringWriter,
        missing: Finding,
    ) -> Result<Arc<Held>, Finding> {
        let commands = &self.config.memory.commands;
        let history = self.store.history(name).await?;
        let statements = self.all_know(name, Some(history)).await;
        let asked = Asked::Creation { on_request: self.config.create == Create::First };
        match known::judge(asked, &statements) {
            Verdict::Other(_) => {
                let finding = known::missing(name, missing, &statements, commands);
                let seen = format!("{}, so it is not made anew", finding.seen);
                return Err(Finding { seen, ..finding });
            }
            Verdict::Unsure(silent) => return Err(known::unsure(name, missing, &silent, commands)),
            Verdict::Same | Verdict::First => {}
        }
        let now = jiff::Timestamp::try_from(self.clock.wall()).unwrap_or_default();
        match writer.create(name, &self.config.maker, now).await {
            Ok(held) => {
                tracing::warn!(key = %name, fingerprint = held.fingerprint, "the key was made: nothing shows that there ever was one");
                Ok(held)
            }
            // Another pod was faster: its key is the key.
            Err(Error::Exists) => {
                writer.look(name).await.map_err(|error| error.into_finding(|| unexpected(name)))
            }
            Err(error) => Err(error.into_finding(|| unexpected(name))),
        }
    }

    /// What every witness knows of a name under which nothing is stored, the drives included; the store's own history where it was asked.
    pub(super) async fn all_know(&self, name: &Name, history: Option<History>) -> Vec<Statement> {
        let mut statements = self.config.memory.witnesses.ask(name).await;
        statements.extend(self.drives_know(name).await);
        statements.extend(history.map(|history| {
            let says = match history {
                History::Was => Says::Known(vec![Known::Another("a trace of it".to_owned())]),
                History::New => Says::New,
                History::Forgets(why) => Says::Forgets(why.to_owned()),
            };
            Statement::new(Kind::History, format!("the history of {}", self.store.describe()), says)
        }));
        statements
    }
}
