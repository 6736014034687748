//! Waits for asynchronous effects.

use std::time::{Duration, Instant};

/// Polls the condition every 10 ms until it is true. Panics with its description after 30 s.
pub async fn eventually(description: &str, mut is_true: impl AsyncFnMut() -> bool) {
    let started = Instant::now();
    while !is_true().await {
        let is_in_time = started.elapsed() < Duration::from_secs(30);
        assert!(is_in_time, "not true after 30 s: {description}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
