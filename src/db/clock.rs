//! An estimate of the database's clock, with a lower bound.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// The rate at which the lower bound grows, relative to the monotonic clock. A database clock that is less than 0.1 %
/// slow therefore stays ahead of the lower bound.
const LOWER_BOUND_RATE: f64 = 0.999;

/// The maximum lag of the database's clock behind the lower bound. Beyond it, the replica mints nothing, because the
/// life of a token would count from the lagging clock.
pub const STEP_TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// Remembers the latest time of the database, and estimates its time between two observations.
///
/// The lower bound keeps a database clock that steps back from reviving an expired token.
#[derive(Debug)]
pub struct DatabaseClock(Mutex<Observation>);

#[derive(Clone, Copy, Debug)]
struct Observation {
    time: DateTime<Utc>,
    at: Instant,
}

impl DatabaseClock {
    /// Starts at a time of the database: its clock or its newest event, whichever is later.
    pub fn starting_at(time: DateTime<Utc>) -> Self {
        DatabaseClock(Mutex::new(Observation {
            time,
            at: Instant::now(),
        }))
    }

    /// Records a time that was just read from the database's clock.
    pub fn observe(&self, time: DateTime<Utc>) {
        let now = Instant::now();
        let mut observation = self.observation();
        if time > observation.lower_bound(now) {
            *observation = Observation { time, at: now };
        }
    }

    /// Returns the highest time seen, plus 0.999 of the monotonic time since then.
    pub fn lower_bound(&self) -> DateTime<Utc> {
        self.observation().lower_bound(Instant::now())
    }

    /// Estimates the database's clock, in microseconds, which is the precision of Postgres.
    pub fn estimate(&self) -> DateTime<Utc> {
        let observation = *self.observation();
        (observation.time + time_delta(observation.at.elapsed())).trunc_subsecs(6)
    }

    fn observation(&self) -> MutexGuard<'_, Observation> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Observation {
    fn lower_bound(&self, now: Instant) -> DateTime<Utc> {
        let passed = now.saturating_duration_since(self.at);
        self.time + time_delta(passed.mul_f64(LOWER_BOUND_RATE))
    }
}

fn time_delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_lowers_neither_the_lower_bound_nor_the_estimate() {
        let start = Utc::now();
        let clock = DatabaseClock::starting_at(start);
        clock.observe(start + TimeDelta::hours(1));
        clock.observe(start - TimeDelta::hours(1));
        assert!(clock.lower_bound() >= start + TimeDelta::hours(1));
        assert!(clock.estimate() >= (start + TimeDelta::hours(1)).trunc_subsecs(6));
    }

    #[test]
    fn the_lower_bound_lags_86_seconds_per_day() {
        let observation = Observation {
            time: Utc::now(),
            at: Instant::now(),
        };
        let day = Duration::from_secs(86_400);
        let lower_bound = observation.lower_bound(observation.at + day);
        assert!(lower_bound < observation.time + TimeDelta::days(1) - TimeDelta::seconds(80));
        assert!(lower_bound > observation.time + TimeDelta::days(1) - TimeDelta::seconds(90));
    }
}
