//! The database's clock, as this replica knows it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// The share of the time passed since the last sight of the database's clock that counts towards
/// the floor. A clock that runs 0.1 % off is broken; any other stays ahead of the floor.
const LOWER_BOUND_RATE: f64 = 0.999;

/// How far the database's clock may be behind the floor before no more is minted: what it would
/// stamp now would be over before it could be handed out.
pub const STEP_TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// Remembers the latest time that the database has shown, so that a clock that steps back revives
/// no token, and estimates its time between two sights of it.
#[derive(Debug)]
pub struct DatabaseClock(Mutex<Observation>);

#[derive(Clone, Copy, Debug)]
struct Observation {
    time: DateTime<Utc>,
    at: Instant,
}

impl DatabaseClock {
    /// Starts from a time of the database, or of its newest event if that is later.
    pub fn starting_at(time: DateTime<Utc>) -> Self {
        DatabaseClock(Mutex::new(Observation {
            time,
            at: Instant::now(),
        }))
    }

    /// Takes note of what the database's clock just said.
    pub fn observe(&self, time: DateTime<Utc>) {
        let now = Instant::now();
        let mut observation = self.observation();
        if time > observation.lower_bound(now) {
            *observation = Observation { time, at: now };
        }
    }

    /// The earliest that it can be by the database's clock, had that never stepped back.
    pub fn lower_bound(&self) -> DateTime<Utc> {
        self.observation().lower_bound(Instant::now())
    }

    /// About what the database's clock says, to the microsecond that Postgres keeps.
    pub fn estimate(&self) -> DateTime<Utc> {
        let observation = *self.observation();
        (observation.time + delta(observation.at.elapsed())).trunc_subsecs(6)
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
        self.time + delta(passed.mul_f64(LOWER_BOUND_RATE))
    }
}

fn delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_back_lowers_neither_floor_nor_estimate() {
        let start = Utc::now();
        let clock = DatabaseClock::starting_at(start);
        clock.observe(start + TimeDelta::hours(1));
        clock.observe(start - TimeDelta::hours(1));
        assert!(clock.lower_bound() >= start + TimeDelta::hours(1));
        assert!(clock.estimate() >= (start + TimeDelta::hours(1)).trunc_subsecs(6));
    }

    #[test]
    fn the_floor_stays_behind_a_clock_that_runs_well() {
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
