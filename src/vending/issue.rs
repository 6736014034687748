//! Issues tokens: a handout of a token on record, or a mint.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};
use tokio_util::task::TaskTracker;
use tracing::{Instrument, error_span};
use uuid::Uuid;

use super::cache::{CachedToken, TokenCache};
use super::context::{Parts, STEP_PATIENCE, VendingSettings};
use super::flight::{Demand, Flights};
use super::handout_writer::Handouts;
use super::request::{Order, Source, Vended};
use super::resolve::{self, Landed, Origin};
use crate::crypto::KeyRing;
use crate::db::budget::count_attempts;
use crate::db::{Database, DbError};
use crate::metrics::Metrics;
use crate::model::{Caller, Failure};
use crate::upstream::Upstream;

/// How long the secret of a token that has ended may stay in memory.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The service without its HTTP. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Vendor {
    pub(super) parts: Arc<Parts>,
    flights: Flights,
    handouts: Handouts,
}

impl Vendor {
    /// Puts the parts together; call it on the main runtime. Mints under way are in `tracker`.
    pub fn new(
        db: Database,
        upstream: Upstream,
        keys: KeyRing,
        handouts: Handouts,
        settings: VendingSettings,
        metrics: Metrics,
        tracker: TaskTracker,
    ) -> Self {
        Vendor {
            flights: Flights::new(tracker.clone()),
            parts: Arc::new(Parts {
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
    pub async fn issue(&self, order: Order, caller: Caller) -> Result<Vended, Failure> {
        let patience = self.parts.settings.patience();
        let vended = timeout(patience, self.find_or_mint(order, Arc::new(caller)))
            .await
            .unwrap_or_else(|_| Err(Failure::timeout()));
        let outcome = match &vended {
            Ok(vended) if vended.minted => "minted",
            Ok(_) => "reused",
            Err(failure) => failure.kind.name(),
        };
        let counted = &self.parts.metrics.handouts_total;
        counted.with_label_values(&[outcome]).inc();
        vended
    }

    async fn find_or_mint(&self, order: Order, caller: Arc<Caller>) -> Result<Vended, Failure> {
        let placed_at = Instant::now();
        let cached = self.parts.cache.get(&order.combination);
        let result = if cached.is_some() { "hit" } else { "miss" };
        let counted = &self.parts.metrics.cache_lookups_total;
        counted.with_label_values(&[result]).inc();
        if let Some(token) = cached
            && let Some(vended) = self
                .propose(&token, &order, placed_at, &caller, Source::Hit)
                .await?
        {
            return Ok(vended);
        }
        let demand = Demand {
            combination: order.combination.clone(),
            min_life: order.min_life,
            renew: order.renew,
        };
        loop {
            let (flight, is_ours) = self.flights.join(&demand, || {
                resolve::resolve(self.parts.clone(), order.clone(), caller.clone())
            });
            let landed = flight.instrument(error_span!("flight", is_ours)).await?;
            if is_ours && landed.origin == Origin::Minted {
                return minted(landed);
            }
            let source = match landed.origin {
                Origin::Found => Source::Hit,
                Origin::Awaited | Origin::Minted => Source::Forwarded {
                    reason: landed.reason,
                    stored: true,
                    collapsed: true,
                },
            };
            let proposed = self.propose(&landed.token, &order, placed_at, &caller, source);
            if let Some(vended) = proposed.await? {
                return Ok(vended);
            }
        }
    }

    /// Hands the token out if it does for the order and Postgres lets it go; else forgets it.
    async fn propose(
        &self,
        token: &Arc<CachedToken>,
        order: &Order,
        placed_at: Instant,
        caller: &Arc<Caller>,
        source: Source,
    ) -> Result<Option<Vended>, Failure> {
        let Some(min_life) = order.accepts(token, placed_at, Instant::now()) else {
            return Ok(None);
        };
        let recorded = self
            .handouts
            .record(token.clone(), min_life, caller.clone());
        let is_on_record = timeout(STEP_PATIENCE, recorded)
            .instrument(error_span!("handout"))
            .await
            .unwrap_or_else(|_| Err(Failure::database()))?;
        // A commit can take long: the life that counts is the one left now.
        let life = token.life(Instant::now());
        if !is_on_record || life.is_zero() {
            self.parts.cache.remove(token);
            return Ok(None);
        }
        Ok(Some(Vended {
            token: token.clone(),
            expires_in: life.as_secs(),
            minted: false,
            source,
        }))
    }

    /// Lets go of tokens that have ended, now and then, for ever: the cache could do that by itself,
    /// for 48 bytes a token.
    pub async fn keep_sweeping(self) {
        loop {
            sleep(SWEEP_INTERVAL).await;
            let cache = self.parts.cache.clone();
            let _ = spawn_blocking(move || cache.sweep(Instant::now())).await;
        }
    }

    /// The life that a token must have left to be reused, unless a request says otherwise.
    pub fn min_remaining(&self) -> Duration {
        self.parts.settings.min_remaining
    }

    /// Sets the metrics of what is at hand in memory.
    pub fn measure(&self) {
        let metrics = &self.parts.metrics;
        metrics.cache_entries.set(self.parts.cache.entries());
        metrics
            .audit_queue_depth
            .set(self.handouts.waiting() as u64);
        let is_open = self.parts.upstream.circuit.is_open();
        metrics.circuit_open.set(u64::from(is_open));
    }

    /// The calls that the hourly budget has left over all replicas; `None` where there is no limit.
    pub async fn find_budget_left(&self) -> Result<Option<u32>, DbError> {
        let limit = self.parts.settings.upstream_hourly_budget;
        if limit == 0 {
            return Ok(None);
        }
        let used = self
            .parts
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
fn minted(landed: Landed) -> Result<Vended, Failure> {
    let life = landed.token.life(Instant::now());
    let lifetime = landed.token.issued.lifetime;
    if life.is_zero() && lifetime > 0 {
        return Err(Failure::timeout());
    }
    Ok(Vended {
        expires_in: life.as_secs(),
        minted: true,
        source: Source::Forwarded {
            reason: landed.reason,
            stored: lifetime > 0,
            collapsed: false,
        },
        token: landed.token,
    })
}
