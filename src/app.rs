//! Builds the shared components once, from the configuration, and stops them in order.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::try_join;
use secrecy::ExposeSecret;
use tokio::net::TcpSocket;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::api::openapi_document;
use crate::api::state::rate_limit::RateLimit;
use crate::api::state::{ApiState, DatabaseProbe, MetricsProbe};
use crate::api::{self, ServerHandle};
use crate::auth::Authenticator;
use crate::config::{Config, HttpConfig, KeysConfig, RetentionConfig};
use crate::crypto::KeyRing;
use crate::db::clock::DatabaseClock;
use crate::db::handouts::WriterConnection;
use crate::db::{Database, fitness, partitions, schema};
use crate::jobs::cleanup::{Cleaner, Retention};
use crate::jobs::denials::DenialCounter;
use crate::metrics::Families;
use crate::upstream::{Upstream, UpstreamSettings};
use crate::vending::handout_writer::HandoutWriter;
use crate::vending::{VendingSettings, Vendor};

/// Time limit for closing the database connections at the end.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Maximum number of connections that wait to be accepted. The system may lower it.
const BACKLOG: u32 = 8_192;

/// A running service.
#[derive(Debug)]
pub struct Service {
    addr: SocketAddr,
    server: ServerHandle,
    serving: JoinHandle<std::io::Result<()>>,
    stopping: Arc<AtomicBool>,
    mints: TaskTracker,
    /// Resolves when the handout writer has ended.
    writer: oneshot::Receiver<()>,
    stop_writer: CancellationToken,
    cleaning: JoinHandle<()>,
    stop_cleaning: CancellationToken,
    denials: JoinHandle<()>,
    db: Database,
    http: HttpConfig,
}

impl Service {
    /// Waits for the database, checks it, and starts to serve. Database work and mints run on the current
    /// runtime.
    ///
    /// # Errors
    /// Fails if a setting cannot be used, if the database is unreachable or unsuitable, or if the address
    /// cannot be listened on.
    pub async fn start(config: Config) -> anyhow::Result<Service> {
        let tls = config.http.read_tls().transpose()?;
        // Reading the root certificates takes as long as the steps on the database, so they overlap.
        let upstream = upstream_settings(&config);
        let upstream = spawn_blocking(|| Upstream::new(upstream));
        let options = schema::connect_options(&config.database.url)?;
        let max_wait = config.database.startup_wait;
        let mut connection = schema::wait_for_database(&options, max_wait).await?;
        schema::check_fitness(&mut connection).await?;
        let options = fitness::negotiate_session(options).await?;
        let shared = config.database.max_connections - WriterConnection::MAX_CONNECTIONS;
        let pool = schema::open_pool(options.clone(), shared);
        let db = Database::new(pool);
        let (_, (now, newest)) = try_join(
            partitions::create_partitions(db.pool()),
            schema::find_newest_time(&mut connection),
        )
        .await?;
        let standby = match &config.database.read_url {
            Some(url) => Some(schema::connect_options(url)?),
            None => None,
        };
        let standby = standby
            .map(|options| schema::open_standby_pool(options, config.database.max_connections))
            .map(Database::new);

        let clock = Arc::new(DatabaseClock::starting_at(now.max(newest)));
        let (stop_writer, mints) = (CancellationToken::new(), TaskTracker::new());
        let metrics = Families::at_zero();
        let (handouts, writer) = HandoutWriter::start(
            WriterConnection::new(options),
            clock.clone(),
            metrics.clone(),
            stop_writer.clone(),
        )?;
        let (denials, denials_writer) = DenialCounter::start(db.clone(), stop_writer.clone());
        let vendor = Vendor::new(
            db.clone(),
            upstream.await??,
            key_ring(&config.keys),
            handouts,
            vending_settings(&config),
            metrics.clone(),
            mints.clone(),
        );

        let stop_cleaning = CancellationToken::new();
        let eviction = vendor.clone().evict_periodically();
        tokio::spawn(stop_cleaning.clone().run_until_cancelled_owned(eviction));
        let cleaner = Cleaner::new(
            db.clone(),
            retention(&config.retention),
            config.cleanup.interval,
            metrics.clone(),
            stop_cleaning.clone(),
        );
        let stopping = Arc::new(AtomicBool::new(false));
        let state = ApiState {
            vendor,
            authenticator: Authenticator::new(db.clone(), clock),
            db: db.clone(),
            standby,
            cleaner: cleaner.clone(),
            trusted_proxies: config.http.trusted_proxies.clone(),
            verification_base_url: config.http.verification_base_url.to_string(),
            denials,
            rate_limit: RateLimit::per_second(config.http.client_rate_limit),
            stopping: stopping.clone(),
            database_check: DatabaseProbe::default(),
            metrics,
            metrics_probe: MetricsProbe::default(),
        };
        let listen_addr = config.http.listen_addr;
        let listener = listen(listen_addr)
            .with_context(|| format!("LISTEN_ADDR: {listen_addr} cannot be listened on"))?;
        let addr = listener.local_addr()?;
        let server = api::serve(state, listener, tls, config.http.shutdown_timeout)?;
        Ok(Service {
            addr,
            server: server.handle(),
            serving: tokio::spawn(server),
            stopping,
            mints,
            writer,
            stop_writer,
            cleaning: tokio::spawn(cleaner.run_on_schedule()),
            stop_cleaning,
            denials: denials_writer,
            db,
            http: config.http,
        })
    }

    /// Returns the address that the service listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until `signal` resolves, then stops. Returns the end of `SHUTDOWN_TIMEOUT`.
    ///
    /// # Errors
    /// Fails if the handout writer or the HTTP server ends before the signal.
    pub async fn run_until(mut self, signal: impl Future<Output = ()>) -> anyhow::Result<Instant> {
        tokio::select! {
            () = signal => {}
            _ = &mut self.writer => bail!("the handout writer ended unexpectedly"),
            ended = &mut self.serving => {
                ended??;
                bail!("the HTTP server ended unexpectedly");
            }
        }
        Ok(self.stop().await)
    }

    /// Stops the service. Turns readiness off, waits `SHUTDOWN_DELAY`, then accepts no more requests.
    /// Requests, mints and events in progress finish within `SHUTDOWN_TIMEOUT`, whose end is returned.
    pub async fn stop(self) -> Instant {
        self.stopping.store(true, Ordering::Relaxed);
        self.stop_cleaning.cancel();
        tracing::info!("stopping; readiness is off");
        sleep(self.http.shutdown_delay).await;
        let deadline = Instant::now() + self.http.shutdown_timeout;
        self.server.stop(true).await;
        let _ = self.serving.await;
        // A minted token must be recorded even if its caller hung up.
        self.mints.close();
        if timeout_at(deadline, self.mints.wait()).await.is_err() {
            tracing::error!(
                mints = self.mints.len(),
                "mints did not finish within SHUTDOWN_TIMEOUT; their outcome is unknown"
            );
        }
        self.stop_writer.cancel();
        let _ = self.writer.await;
        let _ = timeout_at(deadline, self.cleaning).await;
        let _ = self.denials.await;
        if timeout(CLOSE_TIMEOUT, self.db.pool().close())
            .await
            .is_err()
        {
            tracing::warn!("the database connections did not close in time and were dropped");
        }
        tracing::info!("stopped");
        deadline
    }
}

/// Binds like the standard library, with a larger backlog. With the usual 128, a burst of callers loses
/// connection attempts, which are repeated only after a second.
fn listen(addr: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = match addr {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(BACKLOG)?.into_std()
}

fn upstream_settings(config: &Config) -> UpstreamSettings {
    UpstreamSettings {
        base_url: config.upstream.base_url.clone(),
        api_key: config.upstream.api_key.clone(),
        api_secret: config.upstream.api_secret.clone(),
        proxy: config.upstream.proxy.clone(),
        max_in_flight: config.upstream.max_in_flight,
    }
}

/// Returns the key ring of the configured keys.
pub(crate) fn key_ring(keys: &KeysConfig) -> KeyRing {
    let token_keys = keys
        .token_keys
        .iter()
        .map(|token| (token.id.as_str(), token.key.expose_secret()));
    KeyRing::new(token_keys, keys.fingerprint_key.expose_secret())
}

fn vending_settings(config: &Config) -> VendingSettings {
    VendingSettings {
        upstream_timeout: config.upstream.timeout,
        upstream_max_attempts: config.upstream.max_attempts,
        upstream_hourly_budget: config.upstream.hourly_budget,
        mint_cooldown: config.vending.mint_cooldown,
        min_remaining: config.vending.min_remaining,
        cache_max_tokens: config.vending.cache_max_tokens,
    }
}

/// Returns the configured retention.
pub fn retention(config: &RetentionConfig) -> Retention {
    Retention {
        tokens: config.tokens,
        audit: config.audit,
    }
}
