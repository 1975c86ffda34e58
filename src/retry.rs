//! Delays between retries, which grow and have jitter, so that pods do not retry at the same time.

use backon::BackoffBuilder;
use std::time::Duration;

/// An endless series of delays.
pub struct Backoff {
    least: Duration,
    most: Duration,
    delays: backon::ExponentialBackoff,
}

// === impl Backoff ===

impl Backoff {
    /// Delays that grow from `least` to `most`, before jitter.
    pub fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, delays: delays(least, most) }
    }

    /// The next delay: `least` at least, and twice `most` at most.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.most)
    }

    /// Starts the series anew, after a success.
    pub fn reset(&mut self) {
        self.delays = delays(self.least, self.most);
    }
}

fn delays(least: Duration, most: Duration) -> backon::ExponentialBackoff {
    backon::ExponentialBuilder::new()
        .with_min_delay(least)
        .with_max_delay(most)
        .with_jitter()
        .without_max_times()
        .build()
}
