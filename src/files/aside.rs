//! What blocks is done aside, on a thread of its own and for a bounded time: a file system that hangs holds up nobody else.

use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Does one thing at a time: what hangs leaves one thread behind, however often it is tried again.
pub struct Blocking {
    turn: Arc<Semaphore>,
    patience: Duration,
}

/// It was not done in time.
#[derive(Debug, thiserror::Error)]
#[error("reading and writing files took longer than {}s: does their file system hang?", .0.as_secs())]
pub struct Hangs(Duration);

/// How long one thing may take, the wait for its turn included.
const PATIENCE: Duration = Duration::from_secs(5);

// === impl Blocking ===

impl Default for Blocking {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), patience: PATIENCE }
    }
}

impl Blocking {
    /// What `work` returns; a panic in it is the caller's.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Hangs> {
        let turn = self.turn.clone();
        let done = async move {
            let turn = turn.acquire_owned().await;
            let blocking = move || {
                let _turn = turn;
                work()
            };
            tokio::task::spawn_blocking(blocking).await
        };
        match tokio::time::timeout(self.patience, done).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Hangs(self.patience)),
            },
            Err(_) => Err(Hangs(self.patience)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn what_hangs_is_given_up_and_nothing_piles_up_behind_it() {
        let hasty = Blocking { patience: Duration::from_millis(50), ..Blocking::default() };
        let (release, hanging) = std::sync::mpsc::channel::<()>();
        assert!(hasty.run(move || hanging.recv().is_ok()).await.is_err());
        let begun = Arc::new(AtomicBool::new(false));
        let begins = begun.clone();
        assert!(hasty.run(move || begins.store(true, Ordering::SeqCst)).await.is_err());
        assert!(!begun.load(Ordering::SeqCst), "the one that hangs has the turn");
        release.send(()).expect("the one that hangs must be there");
        let patient = Blocking { turn: hasty.turn.clone(), ..Blocking::default() };
        assert_eq!(patient.run(|| 7).await.ok(), Some(7));
    }
}
