//! The circuit breaker: a provider that is down is asked by one request at a time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::model::{Failure, FailureKind};

/// Mints that must fail in a row before the circuit opens.
const TRIP_AFTER: u32 = 20;
/// How long it stays open before one mint may try.
const OPEN_FOR: Duration = Duration::from_secs(5);

/// Opens after `TRIP_AFTER` failed mints in a row; then lets one mint through every
/// `OPEN_FOR`, until one succeeds.
#[derive(Debug, Default)]
pub struct Circuit(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    failed_in_a_row: u32,
    opens_again: Option<Instant>,
}

impl Circuit {
    /// Whether a mint may go ahead. While open, says yes to one per `OPEN_FOR`.
    pub fn admit(&self) -> Result<(), Failure> {
        let now = Instant::now();
        let mut state = self.state();
        match state.opens_again {
            Some(until) if now < until => {
                let wait = until.duration_since(now).as_secs_f64().ceil() as u32;
                let detail = "the upstream has been failing; it is left alone for a while";
                Err(Failure::new(FailureKind::UpstreamUnavailable, detail).with_retry_after(wait))
            }
            Some(_) => {
                state.opens_again = Some(now + OPEN_FOR);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Whether the provider is being left alone.
    pub fn is_open(&self) -> bool {
        self.state().opens_again.is_some()
    }

    /// The provider answered as one that is up.
    pub fn note_success(&self) {
        *self.state() = State::default();
    }

    /// A mint came to nothing for want of the provider.
    pub fn note_failure(&self) {
        let mut state = self.state();
        state.failed_in_a_row = state.failed_in_a_row.saturating_add(1);
        if state.failed_in_a_row >= TRIP_AFTER {
            state.opens_again = Some(Instant::now() + OPEN_FOR);
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_after_failures_in_a_row_and_closes_on_success() {
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
    fn lets_one_try_when_the_time_is_over() {
        let circuit = Circuit::default();
        (0..TRIP_AFTER).for_each(|_| circuit.note_failure());
        circuit.state().opens_again = Some(Instant::now());
        assert!(circuit.admit().is_ok());
        assert!(circuit.admit().is_err());
    }
}
