//! The witnesses of this process: asked concurrently, each with a bound, and told to remember a key before
//! its first use.

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
    /// The kind of the place.
    fn kind(&self) -> Kind;

    /// The place, for people: `the state directory /var/lib/keswarden`.
    fn place(&self) -> String;

    /// The knowledge of the place of a name. Absent: the place does not exist now, as when no agent runs.
    async fn says(&self, name: &Name) -> Option<Says>;

    /// The way to put a key back from this place into the store: words and a command. Absent for places that
    /// have no keys.
    fn gives_back(&self, _name: &Name) -> Option<String> {
        None
    }

    /// Remembers that a key is in use under the name. Places that keswarden does not write to do nothing.
    ///
    /// # Errors
    /// When the place should remember the key, and cannot.
    async fn remember(&self, _name: &Name, _fingerprint: &str) -> Result<(), Finding> {
        Ok(())
    }

    /// Forgets that the key with the fingerprint `was` had this name. `is` is the fingerprint of the key that
    /// has the name now; absent when none has.
    ///
    /// # Errors
    /// When the place goes on knowing `was`. The fix says what a person does about it.
    async fn forget(&self, _name: &Name, _was: &str, _is: Option<&str>) -> Result<(), Finding> {
        Ok(())
    }
}

/// Every witness of this process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Witnesses(Vec<Arc<dyn Witness>>);

/// Bound of the answer of one witness. A witness that has not answered by then cannot tell.
const ANSWER_MAX: Duration = Duration::from_secs(8);

// === impl Witnesses ===

impl Witnesses {
    /// A set of witnesses.
    pub fn new(witnesses: Vec<Arc<dyn Witness>>) -> Self {
        Self(witnesses)
    }

    /// The same set with one more witness.
    pub fn and(mut self, witness: Arc<dyn Witness>) -> Self {
        self.0.push(witness);
        self
    }

    /// The same set without the witnesses of a kind.
    pub fn without(&self, kind: Kind) -> Self {
        Self(self.0.iter().filter(|witness| witness.kind() != kind).cloned().collect())
    }

    /// Asks every witness about a name, concurrently. Places that do not exist now make no statement.
    pub async fn ask(&self, name: &Name) -> Vec<Statement> {
        let asked = self.0.iter().map(|witness| async move {
            let says = match tokio::time::timeout(ANSWER_MAX, witness.says(name)).await {
                Ok(says) => says?,
                Err(_) => {
                    let late =
                        format!("{} did not answer within {}", witness.place(), clock::human(ANSWER_MAX));
                    Says::CannotTell(Cause::MemoryUnusable.seen(late))
                }
            };
            let gives_back = witness.gives_back(name);
            Some(Statement { gives_back, ..Statement::new(witness.kind(), witness.place(), says) })
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// Has each place remember a key that the place does not know by these statements. Returns the failures,
    /// which stop no use of the key.
    pub async fn remember(&self, name: &Name, fingerprint: &str, statements: &[Statement]) -> Vec<Finding> {
        // A state directory remembers even a known key again, and updates `last_seen`.
        let knows = |witness: &&Arc<dyn Witness>| {
            let is_its = |one: &&Statement| one.kind == witness.kind() && one.place == witness.place();
            witness.kind() != Kind::Ledger
                && statements.iter().find(is_its).is_some_and(|one| one.knows(fingerprint))
        };
        let told = self.0.iter().filter(|witness| !knows(witness)).map(|witness| async move {
            match tokio::time::timeout(ANSWER_MAX, witness.remember(name, fingerprint)).await {
                Ok(result) => result.err(),
                Err(_) => {
                    let late =
                        format!("{} did not answer within {}", witness.place(), clock::human(ANSWER_MAX));
                    Some(Cause::MemoryUnusable.seen(late))
                }
            }
        });
        join_all(told).await.into_iter().flatten().collect()
    }

    /// Has each place forget a key that was replaced on purpose. Returns each place with its result.
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

    /// The places that remember keys, in words. May be empty.
    pub fn places(&self) -> Vec<String> {
        let keeps =
            |witness: &&Arc<dyn Witness>| matches!(witness.kind(), Kind::Ledger | Kind::Pin | Kind::Copy);
        self.0.iter().filter(keeps).map(|witness| witness.place()).collect()
    }
}
