//! The database's clock, as this replica knows it.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// The share of the time passed since the last sight of the database's clock that counts towards
/// the floor. A clock that runs 0.1 % off is broken; any other stays ahead of the floor.
const FLOOR_RATE: f64 = 0.999;

/// How far the database's clock may be behind the floor before no more is minted: what it would
/// stamp now would be over before it could be handed out.
pub const STEP_TOLERANCE: TimeDelta = TimeDelta::seconds(2);

/// Remembers the latest time that the database has shown, so that a clock that steps back revives
/// no token, and estimates its time between two sights of it.
#[derive(Debug)]
pub struct DatabaseClock(Mutex<Sight>);

#[derive(Clone, Copy, Debug)]
struct Sight {
    time: DateTime<Utc>,
    at: Instant,
}

impl DatabaseClock {
    /// Starts from a time of the database, or of its newest event if that is later.
    pub fn starting_at(time: DateTime<Utc>) -> Self {
        DatabaseClock(Mutex::new(Sight {
            time,
            at: Instant::now(),
        }))
    }

    /// Takes note of what the database's clock just said.
    pub fn observe(&self, time: DateTime<Utc>) {
        let now = Instant::now();
        let mut sight = self.sight();
        if time > sight.floor(now) {
            *sight = Sight { time, at: now };
        }
    }

    /// The earliest that it can be by the database's clock, had that never stepped back.
    pub fn floor(&self) -> DateTime<Utc> {
        self.sight().floor(Instant::now())
    }

    /// About what the database's clock says, to the microsecond that Postgres keeps.
    pub fn estimate(&self) -> DateTime<Utc> {
        let sight = *self.sight();
        (sight.time + delta(sight.at.elapsed())).trunc_subsecs(6)
    }

    fn sight(&self) -> MutexGuard<'_, Sight> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Sight {
    fn floor(&self, now: Instant) -> DateTime<Utc> {
        let passed = now.saturating_duration_since(self.at);
        self.time + delta(passed.mul_f64(FLOOR_RATE))
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
        assert!(clock.floor() >= start + TimeDelta::hours(1));
        assert!(clock.estimate() >= (start + TimeDelta::hours(1)).trunc_subsecs(6));
    }

    #[test]
    fn the_floor_stays_behind_a_clock_that_runs_well() {
        let sight = Sight {
            time: Utc::now(),
            at: Instant::now(),
        };
        let day = Duration::from_secs(86_400);
        let floor = sight.floor(sight.at + day);
        assert!(floor < sight.time + TimeDelta::days(1) - TimeDelta::seconds(80));
        assert!(floor > sight.time + TimeDelta::days(1) - TimeDelta::seconds(90));
    }
}
