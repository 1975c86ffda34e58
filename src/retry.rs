//! Back-off: how long to wait before trying again, with full jitter so that pods do not march in step.

use backon::BackoffBuilder;
use std::time::Duration;

/// Grows from `least` to `most`, jittered, for ever.
pub struct Backoff {
    least: Duration,
    most: Duration,
    delays: backon::ExponentialBackoff,
}

// === impl Backoff ===

impl Backoff {
    pub fn new(least: Duration, most: Duration) -> Self {
        Self { least, most, delays: delays(least, most) }
    }

    /// How long to wait now; at least `least`, at most twice `most`.
    pub fn next_delay(&mut self) -> Duration {
        self.delays.next().unwrap_or(self.most)
    }

    /// It worked: start from the least again.
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
