//! Time as a value that is passed in, so that a test can run a year in a second.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
pub use tokio::time::Instant;

/// The source of time.
///
/// Monotonic time is tokio's, which a test can pause and advance. Wall time is the system's; simulated wall
/// time moves with monotonic time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    /// The system's clocks. `started` and `boot` are the same moment; monotonic time stops while the machine
    /// is suspended, time since boot does not.
    System {
        started: Instant,
        boot: Duration,
    },
    Simulated {
        started: Instant,
        at: SystemTime,
        shift: Arc<Mutex<Shift>>,
    },
}

/// The changes of a simulated machine's clocks.
#[derive(Debug, Default)]
struct Shift {
    suspended: Duration,
    /// Seconds that the wall clock was set forward; negative for back.
    set_by: i64,
}

/// The reading of [`Clock::boot`] at the machine's start: a hundred years, longer than the age of any sealed
/// copy.
const BOOT_OFFSET: Duration = Duration::from_secs(100 * 365 * 86_400);

// === impl Clock ===

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self(Source::System { started: Instant::now(), boot: since_boot() })
    }

    /// A simulated clock, whose wall time is `at` now and moves with tokio's clock.
    pub fn simulated(at: SystemTime) -> Self {
        Self(Source::Simulated { started: Instant::now(), at, shift: Arc::default() })
    }

    /// Simulates that the machine was suspended for `length`. No effect on the system's clocks.
    pub fn suspend(&self, length: Duration) {
        if let Source::Simulated { shift, .. } = &self.0 {
            shift.lock().unwrap_or_else(PoisonError::into_inner).suspended += length;
        }
    }

    /// Simulates that the wall clock was set forward, or back when negative. No effect on the system's
    /// clocks.
    pub fn set_forward(&self, seconds: i64) {
        if let Source::Simulated { shift, .. } = &self.0 {
            shift.lock().unwrap_or_else(PoisonError::into_inner).set_by += seconds;
        }
    }

    /// Monotonic time without suspension, for durations and deadlines within the process.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// Monotonic time with suspension, for times that another machine counts, such as the life of a token.
    pub fn theirs(&self) -> Instant {
        match &self.0 {
            Source::System { started, boot } => *started + since_boot().saturating_sub(*boot),
            Source::Simulated { shift, .. } => {
                Instant::now() + shift.lock().unwrap_or_else(PoisonError::into_inner).suspended
            }
        }
    }

    /// Wall time, for people and other machines.
    #[allow(clippy::disallowed_methods, reason = "the one place that asks the system")]
    pub fn wall(&self) -> SystemTime {
        match &self.0 {
            Source::System { .. } => SystemTime::now(),
            Source::Simulated { started, at, shift } => {
                let Shift { suspended, set_by } = *shift.lock().unwrap_or_else(PoisonError::into_inner);
                let at = *at + started.elapsed() + suspended;
                let by = Duration::from_secs(set_by.unsigned_abs());
                if set_by < 0 { at - by } else { at + by }
            }
        }
    }

    /// Time since a hundred years before the machine's start, suspension included. Limits are counted in this
    /// time, because no setting of the clock changes it. Events before the machine's start have a reading as
    /// well.
    pub fn boot(&self) -> Duration {
        let since_start = match &self.0 {
            Source::System { .. } => since_boot(),
            Source::Simulated { started, shift, .. } => {
                started.elapsed() + shift.lock().unwrap_or_else(PoisonError::into_inner).suspended
            }
        };
        BOOT_OFFSET + since_start
    }

    /// Wall time as a timestamp; 1970 for a clock that stands outside the calendar.
    pub fn timestamp(&self) -> jiff::Timestamp {
        jiff::Timestamp::try_from(self.wall()).unwrap_or_default()
    }

    /// Wall time in seconds since 1970, as in metrics.
    pub fn unix_seconds(&self) -> f64 {
        unix(self.wall())
    }
}

/// Time since the machine's start, suspension included.
fn since_boot() -> Duration {
    let at = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(at.tv_sec.unsigned_abs(), at.tv_nsec.unsigned_abs() as u32)
}

/// Seconds since 1970; 0 for an earlier time.
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
