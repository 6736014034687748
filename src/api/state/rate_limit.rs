//! The rate limit of each client.

use std::num::NonZeroU32;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};

use crate::api::problem::Problem;

/// Limits the requests per second of each client, in this replica.
#[derive(Debug)]
pub struct RateLimit(Option<DefaultKeyedRateLimiter<String>>);

impl RateLimit {
    /// Allows each client this many requests per second and as many at once. 0 means no limit.
    pub fn per_second(requests: u32) -> Self {
        RateLimit(NonZeroU32::new(requests).map(|n| RateLimiter::keyed(Quota::per_second(n))))
    }

    /// Counts a request, or returns a 429. `client` must be authenticated, so memory is bounded.
    pub fn check(&self, client: &String) -> Result<(), Problem> {
        let Some(limiter) = &self.0 else {
            return Ok(());
        };
        limiter.check_key(client).map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            let detail = "this client exceeded its limit of requests per second; \
                 try again after the seconds in `Retry-After`";
            Problem::rate_limited(detail, wait.as_secs_f64().ceil() as u32)
        })
    }
}
