//! Blocking work on a separate thread, with a bound, so that a hanging file system delays no other part.

use std::{sync::Arc, time::Duration};
use tokio::sync::Semaphore;

/// Runs one piece of work at a time. Work that hangs occupies one thread, however often the caller retries.
pub struct Blocking {
    turn: Arc<Semaphore>,
    timeout: Duration,
}

/// The error of work that was not done in time.
#[derive(Debug, thiserror::Error)]
#[error("reading and writing files took longer than {}s: does their file system hang?", .0.as_secs())]
pub struct Hangs(Duration);

/// The bound of one piece of work, the wait for its turn included.
const WORK_TIMEOUT: Duration = Duration::from_secs(5);

// === impl Blocking ===

impl Default for Blocking {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), timeout: WORK_TIMEOUT }
    }
}

impl Blocking {
    /// The result of `work`, which runs on another thread. A panic of `work` goes on in the caller.
    ///
    /// # Errors
    /// When the work, with the wait for earlier work, takes longer than 5 s.
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
        match tokio::time::timeout(self.timeout, done).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => Err(Hangs(self.timeout)),
            },
            Err(_) => Err(Hangs(self.timeout)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[tokio::test]
    async fn what_hangs_is_given_up_and_nothing_piles_up_behind_it() {
        let hasty = Blocking { timeout: Duration::from_millis(50), ..Blocking::default() };
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
