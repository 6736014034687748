//! The entry point of an issue request: cache lookup, handout, and the flight after a miss.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chrono::TimeDelta;
use governor::{Quota, RateLimiter};
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span};
use uuid::Uuid;

use super::cache::{CachedToken, TokenCache};
use super::context::{Context, MAX_MINTS_BESIDE_HANDOUTS, QUERY_TIMEOUT, VendingSettings};
use super::flight::{FlightKey, Flights};
use super::handout_writer::HandoutWriter;
use super::request::{CacheStatus, IssuedToken, TokenRequest};
use super::resolve::{ResolvedToken, TokenOrigin, resolve_token};
use crate::crypto::KeyRing;
use crate::db::budget::count_attempts;
use crate::db::replicas::ReplicaReport;
use crate::db::{Database, DbError, Lane};
use crate::metrics::Metrics;
use crate::model::{Caller, Failure};
use crate::upstream::Upstream;

/// Time between two evictions: an expired token string stays in memory at most this long.
const EVICTION_INTERVAL: Duration = Duration::from_secs(30);

/// The service without its HTTP interface: issues, invalidates and looks up tokens. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vendor {
    pub(super) context: Arc<Context>,
    flights: Flights,
}

impl Vendor {
    /// Creates a vendor whose flights run on the current runtime and are tracked by `tracker`.
    pub fn new(
        db: Database,
        upstream: Upstream,
        keys: KeyRing,
        handouts: HandoutWriter,
        settings: VendingSettings,
        metrics: Metrics,
        tracker: TaskTracker,
    ) -> Self {
        Vendor {
            flights: Flights::new(tracker.clone()),
            context: Arc::new(Context {
                db,
                upstream,
                keys,
                cache: TokenCache::new(settings.cache_max_tokens),
                clock: handouts.clock.clone(),
                settings,
                metrics,
                replica: Uuid::now_v7(),
                tracker,
                mint_limit: RateLimiter::direct(Quota::per_second(MAX_MINTS_BESIDE_HANDOUTS)),
                handouts,
            }),
        }
    }

    /// Issues a token: reuses a stored one if the request accepts it, otherwise mints.
    ///
    /// # Errors
    /// Returns `upstream-timeout` after `UPSTREAM_TIMEOUT` + 1.7 s at the latest. `waited` is the part of this time that
    /// the authentication took.
    pub async fn issue(
        &self,
        request: TokenRequest,
        caller: Caller,
        waited: Duration,
    ) -> Result<IssuedToken, Failure> {
        let max_wait = self.context.settings.max_wait().saturating_sub(waited);
        let issued = timeout(max_wait, self.reuse_or_mint(request, Arc::new(caller)))
            .await
            .unwrap_or_else(|_| Err(Failure::timeout()));
        let outcome = match &issued {
            Ok(issued) if issued.minted => "minted",
            Ok(_) => "reused",
            Err(failure) => failure.kind.name(),
        };
        let counter = &self.context.metrics.handouts_total;
        counter.with_label_values(&[outcome]).inc();
        issued
    }

    async fn reuse_or_mint(
        &self,
        request: TokenRequest,
        caller: Arc<Caller>,
    ) -> Result<IssuedToken, Failure> {
        let requested_at = Instant::now();
        let cached = self.context.cache.get(&request.combination);
        let result = if cached.is_some() { "hit" } else { "miss" };
        let counter = &self.context.metrics.cache_lookups_total;
        counter.with_label_values(&[result]).inc();
        if let Some(cached) = cached
            && let Some(issued) = self
                .try_handout(&cached, &request, requested_at, &caller, CacheStatus::Hit)
                .await?
        {
            return Ok(issued);
        }
        let key = FlightKey {
            combination: request.combination.clone(),
            min_life: request.min_life,
            renew: request.renew,
            quota_of: request.mints_per_hour.map(|_| caller.client.clone()),
        };
        loop {
            let (flight, started_here) = self.flights.join(&key, || {
                // A refused request costs no query.
                if self.context.db.is_minting_saturated() {
                    return Err(Failure::overloaded());
                }
                let (request, caller) = (request.clone(), caller.clone());
                Ok(resolve_token(self.context.clone(), request, caller))
            })?;
            let resolved = flight
                .instrument(error_span!("flight", started_here))
                .await?;
            if started_here && resolved.origin == TokenOrigin::MintedHere {
                return issue_minted(resolved);
            }
            let cache_status = match resolved.origin {
                TokenOrigin::Stored => CacheStatus::Hit,
                TokenOrigin::MintedElsewhere | TokenOrigin::MintedHere => CacheStatus::Forwarded {
                    reason: resolved.reason,
                    stored: true,
                    collapsed: true,
                },
            };
            let handout = self.try_handout(
                &resolved.token,
                &request,
                requested_at,
                &caller,
                cache_status,
            );
            if let Some(issued) = handout.await? {
                return Ok(issued);
            }
        }
    }

    /// Hands out the token if the request accepts it and the handout is recorded. Removes the token
    /// from the cache if Postgres refuses the handout or the life ended during the commit.
    async fn try_handout(
        &self,
        cached: &Arc<CachedToken>,
        request: &TokenRequest,
        requested_at: Instant,
        caller: &Arc<Caller>,
        cache_status: CacheStatus,
    ) -> Result<Option<IssuedToken>, Failure> {
        let Some(min_life) = request.required_life(cached, requested_at, Instant::now()) else {
            return Ok(None);
        };
        let handout = self
            .context
            .handouts
            .record(cached.clone(), min_life, caller.clone());
        let is_recorded = timeout(QUERY_TIMEOUT, handout)
            .instrument(error_span!("handout"))
            .await
            .unwrap_or_else(|_| Err(Failure::database()))?;
        // The commit may have taken most of the life.
        let life = cached.life(Instant::now());
        if !is_recorded || life.is_zero() {
            self.context.cache.remove(cached);
            return Ok(None);
        }
        Ok(Some(IssuedToken {
            cached: cached.clone(),
            expires_in: life.as_secs(),
            minted: false,
            cache_status,
        }))
    }

    /// Evicts expired tokens every 30 s and never returns. The expiry timers of the cache library
    /// would do the same, but cost 48 bytes per token.
    pub async fn evict_periodically(self) {
        loop {
            sleep(EVICTION_INTERVAL).await;
            let cache = self.context.cache.clone();
            let _ = spawn_blocking(move || cache.evict_expired(Instant::now())).await;
        }
    }

    /// Returns the setting `MIN_REMAINING`.
    pub fn min_remaining(&self) -> Duration {
        self.context.settings.min_remaining
    }

    /// Sets the gauges of cache entries, queued handouts, the circuit breaker and the clocks.
    pub fn measure(&self) {
        let metrics = &self.context.metrics;
        metrics.cache_entries.set(self.context.cache.entries());
        metrics
            .audit_queue_depth
            .set(self.context.handouts.queue_depth() as u64);
        let is_open = self.context.upstream.circuit.is_open();
        metrics.circuit_open.set(u64::from(is_open));
        let skew = self.clock_skew().as_seconds_f64();
        metrics.clock_skew_seconds.set(skew);
    }

    /// Returns the difference between the clocks, as [`DatabaseClock::skew`](crate::db::clock::DatabaseClock::skew).
    pub fn clock_skew(&self) -> TimeDelta {
        self.context.clock.skew()
    }

    /// Returns the report of this replica about itself.
    pub fn report(&self) -> ReplicaReport {
        let host = nix::unistd::gethostname().unwrap_or_default();
        ReplicaReport {
            id: self.context.replica,
            host: host.to_string_lossy().into_owned(),
            is_circuit_open: self.context.upstream.circuit.is_open(),
            clock_skew: self.clock_skew().as_seconds_f64(),
        }
    }

    /// Returns the attempts left in the hourly budget of all replicas, or `None` if there is no limit.
    pub async fn find_budget_left(&self) -> Result<Option<u32>, DbError> {
        let limit = self.context.settings.upstream_hourly_budget;
        if limit == 0 {
            return Ok(None);
        }
        let attempts = self
            .context
            .db
            .run(Lane::Upkeep, async move |mut connection| {
                count_attempts(&mut connection).await
            });
        let attempts = u32::try_from(attempts.await?).unwrap_or(u32::MAX);
        Ok(Some(limit.saturating_sub(attempts)))
    }

    /// Returns in one word why handouts cannot be recorded, at most 4 s late.
    pub fn recording_failure(&self) -> Option<&'static str> {
        self.context.handouts.failure()
    }
}

/// Answers the request that the token was minted for. No handout is recorded, because `token.minted`
/// was committed together with the token.
fn issue_minted(resolved: ResolvedToken) -> Result<IssuedToken, Failure> {
    let life = resolved.token.life(Instant::now());
    let lifetime = resolved.token.token.lifetime;
    if life.is_zero() && lifetime > 0 {
        return Err(Failure::timeout());
    }
    Ok(IssuedToken {
        expires_in: life.as_secs(),
        minted: true,
        cache_status: CacheStatus::Forwarded {
            reason: resolved.reason,
            stored: lifetime > 0,
            collapsed: false,
        },
        cached: resolved.token,
    })
}
