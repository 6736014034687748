//! Whether the process lives, and whether it may be sent requests.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use actix_web::http::header;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::BoxFuture;
use serde::Serialize;
use tokio::sync::Mutex;

use super::ApiState;
use super::problem::Problem;
use super::query::no_parameters;
use super::request_context::Outcome;
use crate::db::DbError;
use crate::db::schema::DatabaseHealth;

/// A database that takes longer to answer counts as down.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);

/// Anyone may ask for readiness; the database is asked no more often than this.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Looks at the database now and then, however often it is asked.
pub struct DatabaseCheck {
    check: Box<dyn Fn() -> BoxFuture<'static, Result<DatabaseHealth, DbError>> + Send + Sync>,
    last: Mutex<Option<(Instant, Option<DatabaseHealth>)>>,
}

impl DatabaseCheck {
    /// Wraps a look at the database that may be repeated.
    pub fn new<F, Fut>(check: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<DatabaseHealth, DbError>> + Send + 'static,
    {
        DatabaseCheck {
            check: Box::new(move || Box::pin(check())),
            last: Mutex::new(None),
        }
    }

    /// What the last look showed, at most `CHECK_INTERVAL` ago; `None` = the database is down.
    /// Those who ask during a look wait for it.
    async fn latest(&self) -> Option<DatabaseHealth> {
        let mut last = self.last.lock().await;
        if let Some((at, health)) = *last
            && at.elapsed() < CHECK_INTERVAL
        {
            return health;
        }
        let health = match tokio::time::timeout(CHECK_TIMEOUT, (self.check)()).await {
            Ok(Ok(health)) => Some(health),
            Ok(Err(error)) => {
                tracing::warn!(cause = %error, "the database check failed");
                None
            }
            Err(_) => {
                tracing::warn!("the database check took over {CHECK_TIMEOUT:?}");
                None
            }
        };
        *last = Some((Instant::now(), health));
        health
    }
}

impl fmt::Debug for DatabaseCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseCheck")
    }
}

/// The body of `GET /health/live`.
#[derive(Serialize)]
struct LiveView {
    status: &'static str,
    version: &'static str,
}

/// The body of `GET /health/ready`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ReadyView {
    /// `ok`, or `unavailable` where a check is not `ok`.
    status: &'static str,
    checks: Checks,
    #[serde(flatten)]
    database: Option<DatabaseView>,
}

/// Each check: `ok`, or what is the matter.
#[derive(Serialize)]
struct Checks {
    database: &'static str,
    schema: &'static str,
    partitions: &'static str,
    writer: &'static str,
    shutdown: &'static str,
}

/// What is good to know, and no reason to send requests elsewhere.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DatabaseView {
    partitions_ahead_months: i32,
    synchronous_standby: bool,
}

const OK: &str = "ok";

impl Checks {
    fn new(database: Option<DatabaseHealth>, is_recording: bool, is_stopping: bool) -> Self {
        let check = |is_good: Option<bool>, bad| match is_good {
            Some(true) => OK,
            Some(false) => bad,
            None => "unknown",
        };
        let schema = database.map(|health| health.is_schema_current);
        let partitions = database.map(|health| health.partitions_ahead >= 0);
        Checks {
            database: check(Some(database.is_some()), "unavailable"),
            schema: check(schema, "outdated"),
            partitions: check(partitions, "missing"),
            writer: check(Some(is_recording), "stopped"),
            shutdown: check(Some(!is_stopping), "stopping"),
        }
    }

    fn are_good(&self) -> bool {
        let Checks {
            database,
            schema,
            partitions,
            writer,
            shutdown,
        } = self;
        [database, schema, partitions, writer, shutdown]
            .into_iter()
            .all(|check| *check == OK)
    }
}

/// `GET /health/live`: the process answers.
pub async fn get_liveness(request: HttpRequest) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    Ok(HttpResponse::Ok().json(LiveView {
        status: OK,
        version: env!("CARGO_PKG_VERSION"),
    }))
}

/// `GET /health/ready`: requests will be served, or 503 with what is in the way.
pub async fn get_readiness(
    request: HttpRequest,
    state: web::Data<ApiState>,
) -> Result<HttpResponse, Problem> {
    no_parameters(request.query_string())?;
    let health = state.database_check.latest().await;
    let is_stopping = state.stopping.load(Ordering::Relaxed);
    let checks = Checks::new(health, state.vendor.is_recording(), is_stopping);
    let is_ready = checks.are_good();
    let view = ReadyView {
        status: if is_ready { OK } else { "unavailable" },
        checks,
        database: health.map(|health| DatabaseView {
            partitions_ahead_months: health.partitions_ahead,
            synchronous_standby: health.has_synchronous_standby,
        }),
    };
    if is_ready {
        return Ok(HttpResponse::Ok().json(view));
    }
    let mut answer = HttpResponse::ServiceUnavailable()
        .insert_header((header::RETRY_AFTER, 1))
        .json(view);
    answer.extensions_mut().insert(Outcome("not-ready"));
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    const GOOD: DatabaseHealth = DatabaseHealth {
        is_schema_current: true,
        partitions_ahead: 0,
        has_synchronous_standby: false,
    };

    #[test]
    fn every_check_can_stop_requests() {
        assert!(Checks::new(Some(GOOD), true, false).are_good());
        let outdated = DatabaseHealth {
            is_schema_current: false,
            ..GOOD
        };
        let full = DatabaseHealth {
            partitions_ahead: -1,
            ..GOOD
        };
        for checks in [
            Checks::new(None, true, false),
            Checks::new(Some(outdated), true, false),
            Checks::new(Some(full), true, false),
            Checks::new(Some(GOOD), false, false),
            Checks::new(Some(GOOD), true, true),
        ] {
            assert!(!checks.are_good());
        }
    }

    #[tokio::test]
    async fn a_flood_asks_the_database_once() {
        let looks = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&looks);
        let check = DatabaseCheck::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            async { Ok(GOOD) }
        });
        for _ in 0..100 {
            assert_eq!(check.latest().await, Some(GOOD));
        }
        assert_eq!(looks.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_failed_or_hanging_database_is_down() {
        let failing = DatabaseCheck::new(|| async { Err(DbError::TimedOut(CHECK_TIMEOUT)) });
        assert_eq!(failing.latest().await, None);
        let hanging = DatabaseCheck::new(std::future::pending);
        assert_eq!(hanging.latest().await, None);
    }
}
