//! The time that the service decides by: the database's clock, with a lower bound.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use chrono::{DateTime, SubsecRound, TimeDelta, Utc};

/// The difference up to which the database's and the service's clock count as equal.
const AGREE_WITHIN: TimeDelta = TimeDelta::minutes(1);

/// The lead over clocks that agree beyond which a time is wrong. No service dates anything that far ahead.
pub const MAX_LEAD: TimeDelta = TimeDelta::days(1);

/// The lower bound of the time: the highest database time seen, plus the monotonic time since then.
///
/// *Now* is the later of the database's clock and the lower bound. Tokens are dated and judged by it. A database clock
/// that steps back therefore revives no expired token and stops no mint.
#[derive(Debug)]
pub struct DatabaseClock(Mutex<Observation>);

#[derive(Clone, Copy, Debug)]
struct Observation {
    time: DateTime<Utc>,
    at: Instant,
    /// The largest difference between the clocks at the last observation.
    skew: TimeDelta,
}

impl DatabaseClock {
    /// Starts at the time of the newest event.
    pub fn starting_at(newest_event: DateTime<Utc>) -> Self {
        DatabaseClock(Mutex::new(Observation {
            time: newest_event,
            at: Instant::now(),
            skew: TimeDelta::zero(),
        }))
    }

    /// Records a time that was just read from the database's clock.
    pub fn observe(&self, time: DateTime<Utc>) {
        self.observation()
            .update(time, service_time(), Instant::now());
    }

    /// Returns the lower bound, in microseconds, which is the precision of Postgres.
    pub fn lower_bound(&self) -> DateTime<Utc> {
        self.observation().lower_bound(Instant::now())
    }

    /// Returns the difference between the database's clock and the service's clock or the lower bound, whichever is
    /// larger.
    pub fn skew(&self) -> TimeDelta {
        self.observation().skew
    }

    fn observation(&self) -> MutexGuard<'_, Observation> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Observation {
    /// Raises the lower bound to a later time. Lowers it if it is wrong: over [`MAX_LEAD`] ahead of clocks that agree.
    fn update(&mut self, time: DateTime<Utc>, service: DateTime<Utc>, at: Instant) {
        let lower_bound = self.lower_bound(at);
        let difference = (time - service).abs();
        let is_wrong = difference < AGREE_WITHIN && lower_bound - time.max(service) > MAX_LEAD;
        if is_wrong {
            tracing::warn!(%lower_bound, database_time = %time, "ignoring a time that is over a day ahead of the clocks");
        }
        if is_wrong || time > lower_bound {
            (self.time, self.at) = (time, at);
        }
        self.skew = difference.max(self.lower_bound(at) - time);
    }

    fn lower_bound(&self, now: Instant) -> DateTime<Utc> {
        let passed = now.saturating_duration_since(self.at);
        (self.time + time_delta(passed)).trunc_subsecs(6)
    }
}

/// Returns the time of the service's clock. It never decides alone, because the clocks of replicas differ.
pub fn service_time() -> DateTime<Utc> {
    #[expect(
        clippy::disallowed_methods,
        reason = "the only reading of this clock next to the database's"
    )]
    Utc::now()
}

fn time_delta(duration: Duration) -> TimeDelta {
    TimeDelta::from_std(duration).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observation(time: DateTime<Utc>) -> Observation {
        Observation {
            time,
            at: Instant::now(),
            skew: TimeDelta::zero(),
        }
    }

    #[test]
    fn a_step_back_does_not_lower_the_lower_bound() {
        let start = Utc::now().trunc_subsecs(6);
        let mut observation = observation(start);
        let at = observation.at;
        observation.update(start + TimeDelta::hours(1), start, at);
        observation.update(start - TimeDelta::hours(1), start, at);
        let hour = Duration::from_secs(3600);
        assert_eq!(
            observation.lower_bound(at + hour),
            start + TimeDelta::hours(2)
        );
        assert_eq!(observation.skew, TimeDelta::hours(2));
    }

    #[test]
    fn only_clocks_that_agree_lower_a_bound_that_is_over_a_day_ahead() {
        let start = Utc::now().trunc_subsecs(6);
        for (lead, difference, is_lowered) in [
            (TimeDelta::days(500), TimeDelta::seconds(59), true),
            (TimeDelta::days(500), TimeDelta::seconds(-59), true),
            (TimeDelta::days(500), TimeDelta::minutes(1), false),
            (TimeDelta::hours(25), TimeDelta::zero(), true),
            (TimeDelta::hours(24), TimeDelta::zero(), false),
            (TimeDelta::seconds(5), TimeDelta::zero(), false),
        ] {
            let mut observation = observation(start + lead);
            let at = observation.at;
            observation.update(start, start + difference, at);
            let expected = if is_lowered { start } else { start + lead };
            assert_eq!(observation.lower_bound(at), expected, "{lead} {difference}");
        }
    }
}
