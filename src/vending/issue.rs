//! Issues tokens: a handout of a token on record, or a mint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span};
use uuid::Uuid;

use super::cache::{CachedToken, TokenCache};
use super::context::{Context, QUERY_TIMEOUT, VendingSettings};
use super::flight::{FlightKey, Flights};
use super::handout_writer::HandoutWriter;
use super::request::{CacheStatus, IssuedToken, TokenRequest};
use super::resolve::{self, FlightResult, TokenOrigin};
use crate::crypto::KeyRing;
use crate::db::budget::count_attempts;
use crate::db::{Database, DbError};
use crate::metrics::Metrics;
use crate::model::{Caller, Failure};
use crate::upstream::Upstream;

/// How long the secret of a token that has ended may stay in memory.
const EVICTION_INTERVAL: Duration = Duration::from_secs(30);

/// The service without its HTTP. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vendor {
    pub(super) context: Arc<Context>,
    flights: Flights,
    handouts: HandoutWriter,
}

impl Vendor {
    /// Puts the parts together; call it on the main runtime. Mints under way are in `tracker`.
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
            }),
            handouts,
        }
    }

    /// Hands out a token of the combination: one on record if it does, else a new one. Takes no
    /// longer than the upstream's time and 2 s.
    pub async fn issue(
        &self,
        request: TokenRequest,
        caller: Caller,
    ) -> Result<IssuedToken, Failure> {
        let max_wait = self.context.settings.max_wait();
        let issued = timeout(max_wait, self.find_or_mint(request, Arc::new(caller)))
            .await
            .unwrap_or_else(|_| Err(Failure::timeout()));
        let outcome = match &issued {
            Ok(issued) if issued.minted => "minted",
            Ok(_) => "reused",
            Err(failure) => failure.kind.name(),
        };
        let counted = &self.context.metrics.handouts_total;
        counted.with_label_values(&[outcome]).inc();
        issued
    }

    async fn find_or_mint(
        &self,
        request: TokenRequest,
        caller: Arc<Caller>,
    ) -> Result<IssuedToken, Failure> {
        let requested_at = Instant::now();
        let cached = self.context.cache.get(&request.combination);
        let result = if cached.is_some() { "hit" } else { "miss" };
        let counted = &self.context.metrics.cache_lookups_total;
        counted.with_label_values(&[result]).inc();
        if let Some(token) = cached
            && let Some(issued) = self
                .try_handout(&token, &request, requested_at, &caller, CacheStatus::Hit)
                .await?
        {
            return Ok(issued);
        }
        let key = FlightKey {
            combination: request.combination.clone(),
            min_life: request.min_life,
            renew: request.renew,
        };
        loop {
            let (flight, started_here) = self.flights.join(&key, || {
                resolve::resolve(self.context.clone(), request.clone(), caller.clone())
            });
            let result = flight
                .instrument(error_span!("flight", started_here))
                .await?;
            if started_here && result.origin == TokenOrigin::Minted {
                return minted(result);
            }
            let cache_status = match result.origin {
                TokenOrigin::Found => CacheStatus::Hit,
                TokenOrigin::Awaited | TokenOrigin::Minted => CacheStatus::Forwarded {
                    reason: result.reason,
                    stored: true,
                    collapsed: true,
                },
            };
            let handout =
                self.try_handout(&result.token, &request, requested_at, &caller, cache_status);
            if let Some(issued) = handout.await? {
                return Ok(issued);
            }
        }
    }

    /// Hands the token out if it does for the order and Postgres lets it go; else forgets it.
    async fn try_handout(
        &self,
        token: &Arc<CachedToken>,
        request: &TokenRequest,
        requested_at: Instant,
        caller: &Arc<Caller>,
        cache_status: CacheStatus,
    ) -> Result<Option<IssuedToken>, Failure> {
        let Some(min_life) = request.accepts(token, requested_at, Instant::now()) else {
            return Ok(None);
        };
        let recorded = self
            .handouts
            .record(token.clone(), min_life, caller.clone());
        let is_on_record = timeout(QUERY_TIMEOUT, recorded)
            .instrument(error_span!("handout"))
            .await
            .unwrap_or_else(|_| Err(Failure::database()))?;
        // A commit can take long: the life that counts is the one left now.
        let life = token.life(Instant::now());
        if !is_on_record || life.is_zero() {
            self.context.cache.remove(token);
            return Ok(None);
        }
        Ok(Some(IssuedToken {
            token: token.clone(),
            expires_in: life.as_secs(),
            minted: false,
            cache_status,
        }))
    }

    /// Lets go of tokens that have ended, now and then, for ever: the cache could do that by itself,
    /// for 48 bytes a token.
    pub async fn evict_expired_tokens(self) {
        loop {
            sleep(EVICTION_INTERVAL).await;
            let cache = self.context.cache.clone();
            let _ = spawn_blocking(move || cache.evict_expired(Instant::now())).await;
        }
    }

    /// The life that a token must have left to be reused, unless a request says otherwise.
    pub fn min_remaining(&self) -> Duration {
        self.context.settings.min_remaining
    }

    /// Sets the metrics of what is at hand in memory.
    pub fn measure(&self) {
        let metrics = &self.context.metrics;
        metrics.cache_entries.set(self.context.cache.entries());
        metrics
            .audit_queue_depth
            .set(self.handouts.waiting() as u64);
        let is_open = self.context.upstream.circuit.is_open();
        metrics.circuit_open.set(u64::from(is_open));
    }

    /// The calls that the hourly budget has left over all replicas; `None` where there is no limit.
    pub async fn find_budget_left(&self) -> Result<Option<u32>, DbError> {
        let limit = self.context.settings.upstream_hourly_budget;
        if limit == 0 {
            return Ok(None);
        }
        let used = self
            .context
            .db
            .run(|pool| async move { count_attempts(&pool).await });
        let used = u32::try_from(used.await?).unwrap_or(u32::MAX);
        Ok(Some(limit.saturating_sub(used)))
    }

    /// Whether handouts can be recorded: the writer of the audit runs.
    pub fn is_recording(&self) -> bool {
        self.handouts.is_running()
    }
}

/// The answer to the request that a token was minted for; its event came with the record.
fn minted(result: FlightResult) -> Result<IssuedToken, Failure> {
    let life = result.token.life(Instant::now());
    let lifetime = result.token.issued.lifetime;
    if life.is_zero() && lifetime > 0 {
        return Err(Failure::timeout());
    }
    Ok(IssuedToken {
        expires_in: life.as_secs(),
        minted: true,
        cache_status: CacheStatus::Forwarded {
            reason: result.reason,
            stored: lifetime > 0,
            collapsed: false,
        },
        token: result.token,
    })
}
