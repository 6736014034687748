//! The circuit breaker, which protects a provider that is down from most calls.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::model::{Failure, FailureKind};

/// The number of failed mints in a row that opens the circuit.
const TRIP_AFTER: u32 = 20;
/// The time between two mints while the circuit is open.
const OPEN_FOR: Duration = Duration::from_secs(5);

/// A circuit breaker that opens after 20 failed mints in a row. It then lets one mint through every 5 s, until one
/// succeeds.
#[derive(Debug, Default)]
pub struct Circuit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failed_in_a_row: u32,
    /// The time from which one mint may try. `None` while the circuit is closed.
    next_trial: Option<Instant>,
}

impl Circuit {
    /// Rejects a mint while the circuit is open and no trial is due. Takes no trial.
    ///
    /// # Errors
    /// Returns `upstream-unavailable` with the seconds until the next trial.
    pub fn check(&self) -> Result<(), Failure> {
        self.state().check(Instant::now())
    }

    /// Lets a claimed mint through, or rejects it as [`check`](Self::check) does. Takes the trial that is due.
    pub fn admit(&self) -> Result<(), Failure> {
        let now = Instant::now();
        let mut state = self.state();
        state.check(now)?;
        state.next_trial = state.next_trial.map(|_| now + OPEN_FOR);
        Ok(())
    }

    /// Returns true while the circuit is open.
    pub fn is_open(&self) -> bool {
        self.state().next_trial.is_some()
    }

    /// Records a call that shows that the provider is up, and closes the circuit.
    pub fn note_success(&self) {
        *self.state() = State::default();
    }

    /// Records a mint that failed because of the provider.
    pub fn note_failure(&self) {
        let mut state = self.state();
        state.failed_in_a_row = state.failed_in_a_row.saturating_add(1);
        if state.failed_in_a_row >= TRIP_AFTER {
            state.next_trial = Some(Instant::now() + OPEN_FOR);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn check(&self, now: Instant) -> Result<(), Failure> {
        let Some(trial) = self.next_trial.filter(|trial| now < *trial) else {
            return Ok(());
        };
        let wait = trial.duration_since(now).as_secs_f64().ceil() as u32;
        let detail = "the last mints failed at the provider, so this service pauses its calls";
        Err(Failure::new(FailureKind::UpstreamUnavailable, detail).with_retry_after(wait))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_circuit_opens_after_20_failures_in_a_row_and_closes_on_success() {
        let circuit = Circuit::default();
        for _ in 1..TRIP_AFTER {
            circuit.note_failure();
        }
        circuit.note_success();
        for _ in 1..TRIP_AFTER {
            circuit.note_failure();
            assert!(circuit.admit().is_ok());
        }
        circuit.note_failure();
        let refused = circuit.admit().unwrap_err();
        assert_eq!(refused.kind, FailureKind::UpstreamUnavailable);
        assert!((1..=5).contains(&refused.retry_after.unwrap()));
        circuit.note_success();
        assert!(circuit.admit().is_ok());
    }

    #[test]
    fn an_open_circuit_lets_one_mint_through_per_interval() {
        let circuit = Circuit::default();
        (0..TRIP_AFTER).for_each(|_| circuit.note_failure());
        circuit.state().next_trial = Some(Instant::now());
        assert!(circuit.check().is_ok());
        assert!(circuit.check().is_ok(), "a check takes no trial");
        assert!(circuit.admit().is_ok());
        assert!(circuit.check().is_err());
        assert!(circuit.admit().is_err());
    }
}
