//! The witnesses at hand: asked all at once, each for a bounded time, and told of a key before it is first used.

use super::{Kind, Says, Statement};
use crate::{
    cause::{Cause, Finding},
    clock,
    names::Name,
};
use async_trait::async_trait;
use futures_util::future::join_all;
use std::{sync::Arc, time::Duration};

/// A place that may know which keys were in use.
#[async_trait]
pub trait Witness: Send + Sync {
    fn kind(&self) -> Kind;

    /// Which one it is, for people.
    fn place(&self) -> String;

    /// What it knows of a name. Absent: there is no such place now, as when no agent runs.
    async fn says(&self, name: &Name) -> Option<Says>;

    /// How a person has the witness put a key that it knows back into the store: words and a command. Most cannot.
    fn gives_back(&self, _name: &Name) -> Option<String> {
        None
    }

    /// Writes down that a key is in use, where nothing else is written down for the name. Most places are not written to by us.
    ///
    /// # Errors
    /// When it is not written down, and should be.
    async fn remember(&self, _name: &Name, _fingerprint: &str) -> Result<(), Finding> {
        Ok(())
    }

    /// Forgets that the key `was` had this name; `is` has it now, when any has.
    ///
    /// # Errors
    /// When the place knows `was`, and still will; the fix has what a person does about it.
    async fn forget(&self, _name: &Name, _was: &str, _is: Option<&str>) -> Result<(), Finding> {
        Ok(())
    }
}

/// Every witness that this process has. Cheap to clone.
#[derive(Clone, Default)]
pub struct Witnesses(Vec<Arc<dyn Witness>>);

/// The bound of one witness: whoever does not answer by then cannot tell.
const PATIENCE: Duration = Duration::from_secs(8);

// === impl Witnesses ===

impl Witnesses {
    pub fn new(witnesses: Vec<Arc<dyn Witness>>) -> Self {
        Self(witnesses)
    }

    /// The same with one more.
    pub fn and(mut self, witness: Arc<dyn Witness>) -> Self {
        self.0.push(witness);
        self
    }

    /// The same without those of a kind.
    pub fn without(&self, kind: Kind) -> Self {
        Self(self.0.iter().filter(|witness| witness.kind() != kind).cloned().collect())
    }

    /// Asks all of them at once.
    pub async fn ask(&self, name: &Name) -> Vec<Statement> {
        let asked = self.0.iter().map(|witness| async move {
            let says = match tokio::time::timeout(PATIENCE, witness.says(name)).await {
                Ok(says) => says?,
                Err(_) => {
                    let late =
                        format!("{} did not answer within {}", witness.place(), clock::human(PATIENCE));
                    Says::CannotTell(Cause::MemoryUnusable.seen(late))
                }
            };
            let gives_back = witness.gives_back(name);
            Some(Statement { gives_back, ..Statement::new(witness.kind(), witness.place(), says) })
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Tells each place that is written to and does not know the key, by these statements; what could not be written down stops nobody,
    /// and is returned.
    pub async fn remember(&self, name: &Name, fingerprint: &str, statements: &[Statement]) -> Vec<Finding> {
        // A state directory notes as well when a key was last seen.
        let knows = |witness: &&Arc<dyn Witness>| {
            let is_its = |one: &&Statement| one.kind == witness.kind() && one.place == witness.place();
            witness.kind() != Kind::Ledger
                && statements.iter().find(is_its).is_some_and(|one| one.knows(fingerprint))
        };
        let told = self.0.iter().filter(|witness| !knows(witness)).map(|witness| async move {
            match tokio::time::timeout(PATIENCE, witness.remember(name, fingerprint)).await {
                Ok(result) => result.err(),
                Err(_) => {
                    let late =
                        format!("{} did not answer within {}", witness.place(), clock::human(PATIENCE));
                    Some(Cause::MemoryUnusable.seen(late))
                }
            }
        });
        join_all(told).await.into_iter().flatten().collect()
    }

    /// Lets each place forget a key that was replaced on purpose; what each said.
    pub async fn forget(
        &self,
        name: &Name,
        was: &str,
        is: Option<&str>,
    ) -> Vec<(String, Result<(), Finding>)> {
        let told = self
            .0
            .iter()
            .map(|witness| async move { (witness.place(), witness.forget(name, was, is).await) });
        join_all(told).await
    }

    /// The places that keep what they are told, in words; nothing when there is none.
    pub fn places(&self) -> Vec<String> {
        let keeps =
            |witness: &&Arc<dyn Witness>| matches!(witness.kind(), Kind::Ledger | Kind::Pin | Kind::Copy);
        self.0.iter().filter(keeps).map(|witness| witness.place()).collect()
    }
}
