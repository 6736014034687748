//! The rate limit of each client.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use moka::sync::Cache;

use crate::api::problem::Problem;
use crate::model::Client;

/// Time after which an unused limiter is dropped. It allows a full burst again after 1 s.
const IDLE: Duration = Duration::from_secs(60);

/// Limits the requests per second of each client, in this replica.
#[derive(Debug)]
pub struct RateLimit {
    default: Option<NonZeroU32>,
    /// The limiter of a client at its limit. A changed limit has a new one.
    limiters: Cache<(String, NonZeroU32), Arc<DefaultDirectRateLimiter>>,
}

impl RateLimit {
    /// Allows each client without a limit of its own this many requests per second. 0 means no limit.
    pub fn per_second(requests: u32) -> Self {
        RateLimit {
            default: NonZeroU32::new(requests),
            limiters: Cache::builder().time_to_idle(IDLE).build(),
        }
    }

    /// Counts a request, or returns a 429. A client can send as many requests at once as in a second.
    ///
    /// The client must be authenticated, so memory is bounded.
    pub fn check(&self, client: &Client) -> Result<(), Problem> {
        let own = client.limits.requests_per_second;
        let own = own.and_then(|limit| NonZeroU32::new(limit.unsigned_abs()));
        let Some(limit) = own.or(self.default) else {
            return Ok(());
        };
        let limiter = self.limiters.get_with((client.api_key.clone(), limit), || {
            Arc::new(RateLimiter::direct(Quota::per_second(limit)))
        });
        limiter.check().map_err(|not_until| {
            let wait = not_until.wait_time_from(DefaultClock::default().now());
            let detail = "this client exceeded its limit of requests per second; \
                 try again after the seconds in `Retry-After`";
            Problem::rate_limited(detail, wait.as_secs_f64().ceil() as u32)
        })
    }
}
