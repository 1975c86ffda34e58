//! Time, as a value that is passed in, so that a test can run a year in a second.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
pub use tokio::time::Instant;

/// Where a part of the program asks what time it is.
///
/// Monotonic time is tokio's, which a test can pause and advance; wall time is the system's, or in a
/// simulation it moves with the monotonic one.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// What both clocks that cannot be set said when it was made: one stands still while the machine is suspended.
    System {
        started: Instant,
        boot: Duration,
    },
    Simulated {
        started: Instant,
        at: SystemTime,
        happened: Arc<Mutex<Happened>>,
    },
}

/// What happens to the clocks of a machine.
#[derive(Debug, Default)]
struct Happened {
    suspended: Duration,
    /// Seconds that the wall clock was set forward, or back.
    set_by: i64,
}

/// A hundred years: no sealed copy is older.
const BEFORE_START: Duration = Duration::from_secs(100 * 365 * 86_400);

// === impl Clock ===

impl Clock {
    /// The machine's own clocks.
    pub fn system() -> Self {
        Self(Source::System { started: Instant::now(), boot: since_boot() })
    }

    /// A wall clock that stood at `at` when it was made and moves only as tokio's clock does.
    pub fn simulated(at: SystemTime) -> Self {
        Self(Source::Simulated { started: Instant::now(), at, happened: Arc::default() })
    }

    /// The machine was suspended for so long: nothing ran, the rest of the world went on. Simulated clocks only.
    pub fn suspend(&self, length: Duration) {
        if let Source::Simulated { happened, .. } = &self.0 {
            happened.lock().unwrap_or_else(PoisonError::into_inner).suspended += length;
        }
    }

    /// Somebody set the wall clock forward by so many seconds, or back. Simulated clocks only.
    pub fn set_forward(&self, seconds: i64) {
        if let Source::Simulated { happened, .. } = &self.0 {
            happened.lock().unwrap_or_else(PoisonError::into_inner).set_by += seconds;
        }
    }

    /// Monotonic time: for durations and deadlines of our own work.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Monotonic time with suspension: for what another machine counts, such as the life of a token.
    pub fn theirs(&self) -> Instant {
        match &self.0 {
            Source::System { started, boot } => *started + since_boot().saturating_sub(*boot),
            Source::Simulated { happened, .. } => {
                Instant::now() + happened.lock().unwrap_or_else(PoisonError::into_inner).suspended
            }
        }
    }

    /// Wall time: for what people and other machines read.
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
    pub fn wall(&self) -> SystemTime {
        match &self.0 {
            Source::System { .. } => SystemTime::now(),
            Source::Simulated { started, at, happened } => {
                let Happened { suspended, set_by } = *happened.lock().unwrap_or_else(PoisonError::into_inner);
                let at = *at + started.elapsed() + suspended;
                let by = Duration::from_secs(set_by.unsigned_abs());
                if set_by < 0 { at - by } else { at + by }
            }
        }
    }

    /// Time that runs from before the machine started, suspension included: what limits are counted in, since nobody can set
    /// it. What happened before the start can be told in it as well.
    pub fn boot(&self) -> Duration {
        let since_start = match &self.0 {
            Source::System { .. } => since_boot(),
            Source::Simulated { started, happened, .. } => {
                started.elapsed() + happened.lock().unwrap_or_else(PoisonError::into_inner).suspended
            }
        };
        BEFORE_START + since_start
    }

    /// Wall time as seconds since 1970, as metrics have it.
    pub fn unix_seconds(&self) -> f64 {
        unix(self.wall())
    }
}

/// Since the machine started, suspension included.
fn since_boot() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(at.tv_sec.unsigned_abs(), at.tv_nsec.unsigned_abs() as u32)
}

/// Seconds since 1970; 0 for a clock that stands before that.
pub fn unix(at: SystemTime) -> f64 {
    at.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// A duration for people: `850ms`, `42s`, `3m12s`, `2h05m`.
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_say_them() {
        for (seconds, text) in [(0.85, "850ms"), (42.0, "42s"), (192.0, "3m12s"), (7500.0, "2h05m")] {
            assert_eq!(human(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_simulated_year_passes_at_once() {
        let clock = Clock::simulated(UNIX_EPOCH);
        tokio::time::sleep(Duration::from_secs(365 * 86_400)).await;
        assert_eq!(clock.unix_seconds().round(), 365.0 * 86_400.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspension_counts_for_others_and_a_clock_that_is_set_counts_for_nobody() {
        let clock = Clock::simulated(UNIX_EPOCH + Duration::from_secs(1_000_000));
        let (now, theirs, boot) = (clock.now(), clock.theirs(), clock.boot());
        clock.suspend(Duration::from_secs(60));
        clock.set_forward(-3600);
        assert_eq!(clock.now() - now, Duration::ZERO);
        assert_eq!(clock.theirs() - theirs, Duration::from_secs(60));
        assert_eq!(clock.boot() - boot, Duration::from_secs(60));
        assert_eq!(clock.unix_seconds().round(), 1_000_000.0 + 60.0 - 3600.0);
        let system = Clock::system();
        assert!(system.theirs() - system.now() < Duration::from_secs(1));
    }
}
