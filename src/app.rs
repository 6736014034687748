//! Builds the shared components once, from the configuration, and stops them in order.

pub(crate) mod key_check;
mod listener;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use secrecy::ExposeSecret;
use tokio::sync::oneshot;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use crate::api::openapi_document;
use crate::api::state::failed_attempts::FailedAttempts;
use crate::api::state::rate_limit::RateLimit;
use crate::api::state::{ApiState, DatabaseProbe, MetricsProbe};
use crate::api::{self, Paths, ServerHandle, SharedState};
use crate::auth::Authenticator;
use crate::auth::bearer::BearerAuthenticator;
use crate::auth::oidc::{IssuerError, OidcSettings, TokenVerifier};
use crate::config::{Config, HttpConfig, KeysConfig, RetentionConfig, ServerCertificate};
use crate::crypto::KeyRing;
use crate::db::clock::DatabaseClock;
use crate::db::connector::{Address, Connector, Role};
use crate::db::handouts::WriterConnection;
use crate::db::schema::DatabaseUnsuitable;
use crate::db::{Database, DbError, partitions, schema};
use crate::jobs::cleanup::{Cleaner, Retention};
use crate::jobs::denials::DenialCounter;
use crate::jobs::horizon::advance_periodically;
use crate::jobs::replicas::report_periodically;
use crate::jobs::sealing::Sealer;
use crate::jobs::token_reads::TokenReads;
use crate::metrics::Families;
use crate::upstream::{Upstream, UpstreamSettings};
use crate::vending::handout_writer::HandoutWriter;
use crate::vending::{VendingSettings, Vendor};

/// Time for the callers of the last connections to send their request, at most `SHUTDOWN_DELAY`.
const LAST_REQUESTS: Duration = Duration::from_secs(1);

/// A running service.
#[derive(Debug)]
pub struct Service {
    addr: SocketAddr,
    listener: TcpListener,
    server: ServerHandle,
    /// The server at `METRICS_ADDR`.
    metrics_server: Option<ServerHandle>,
    serving: JoinHandle<std::io::Result<()>>,
    stopping: Arc<AtomicBool>,
    mints: TaskTracker,
    /// Resolves when the handout writer has ended.
    writer: oneshot::Receiver<()>,
    stop_writer: CancellationToken,
    cleaning: JoinHandle<()>,
    stop_cleaning: CancellationToken,
    denials: JoinHandle<()>,
    last_use: JoinHandle<()>,
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
        for warning in config.warnings() {
            tracing::warn!("{warning}");
        }
        for warning in list_tls_warnings(&config)? {
            tracing::warn!("{warning}");
        }
        let certificate = config.http.read_certificate().transpose()?.map(Arc::new);
        // Reading the root certificates takes as long as the steps on the database, so they overlap.
        let upstream = upstream_settings(&config);
        let upstream = spawn_blocking(|| Upstream::new(upstream));
        let verifier = tokio::spawn(start_verifier(oidc_settings(&config)));
        let options = schema::connect_options(&config.database.url)?;
        let max_wait = config.database.startup_wait;
        let mut connection = schema::wait_for_database(&options, max_wait).await?;
        schema::check_fitness(&mut connection).await?;
        schema::check_privileges(&mut connection).await?;
        let ring = key_ring(&config.keys);
        key_check::check_fingerprint_key(&ring, &mut connection).await?;
        partitions::create_partitions(&mut connection).await?;
        let (now, newest) = schema::find_newest_time(&mut connection).await?;
        drop(connection);
        let verifier = verifier.await??;
        let address = Address {
            url: config.database.url.clone(),
            file: config.database_url_file.clone(),
        };
        let shared = config.database.max_connections - WriterConnection::MAX_CONNECTIONS;
        let db = Database::new(Connector::new(address, Role::Primary), shared);
        let standby = open_standby(&config, &db)?;

        let clock = Arc::new(DatabaseClock::starting_at(newest));
        clock.observe(now);
        let (stop_writer, mints) = (CancellationToken::new(), TaskTracker::new());
        let metrics = Families::at_zero();
        let (handouts, writer) = open_connections(max_wait, async || {
            let (clock, stop) = (clock.clone(), stop_writer.clone());
            let started = HandoutWriter::start(db.clone(), clock, metrics.clone(), stop).await?;
            db.open().await?;
            Ok(started)
        })
        .await?;
        // No job starts before the addresses are known to be free. A start that fails has then done no work.
        let listen = |variable, address| {
            listener::listen(address)
                .with_context(|| format!("{variable}: {address} cannot be listened on"))
        };
        let listener = listen("LISTEN_ADDR", config.http.listen_addr)?;
        let addr = listener.local_addr()?;
        let metrics_listener = config.http.metrics_addr;
        let metrics_listener = metrics_listener.map(|address| listen("METRICS_ADDR", address));
        let metrics_listener = metrics_listener.transpose()?;
        let (denials, denials_writer) = DenialCounter::start(db.clone(), stop_writer.clone());
        let vendor = Vendor::new(
            db.clone(),
            upstream.await??,
            ring,
            handouts,
            vending_settings(&config),
            metrics.clone(),
            mints.clone(),
        );

        let stop_cleaning = CancellationToken::new();
        let eviction = vendor.clone().evict_periodically();
        tokio::spawn(stop_cleaning.clone().run_until_cancelled_owned(eviction));
        if let Some(interval) = config.seal.interval {
            let writer = config
                .seal
                .checkpoint_writer()
                .map_err(anyhow::Error::msg)?;
            let sealer = Sealer::new(db.clone(), writer, config.seal.anchor_command.clone());
            tokio::spawn(sealer.run(interval, stop_cleaning.clone()));
        }
        let reporter = vendor.clone();
        let reporting = report_periodically(db.clone(), move || reporter.report());
        tokio::spawn(stop_cleaning.clone().run_until_cancelled_owned(reporting));
        let advancing = advance_periodically(db.clone());
        tokio::spawn(stop_cleaning.clone().run_until_cancelled_owned(advancing));
        if let Some(certificate) = &certificate {
            let reloading = certificate.clone().reload_periodically();
            tokio::spawn(stop_cleaning.clone().run_until_cancelled_owned(reloading));
        }
        if let Some(standby) = &standby {
            let probing = standby.clone().probe_periodically();
            tokio::spawn(stop_cleaning.clone().run_until_cancelled_owned(probing));
        }
        let cleaner = Cleaner::new(
            db.clone(),
            retention(&config.retention),
            config.cleanup.interval,
            metrics.clone(),
            stop_cleaning.clone(),
        );
        let stopping = Arc::new(AtomicBool::new(false));
        let authenticator = Authenticator::new(db.clone(), clock);
        let last_use = authenticator.clone().record_use_until(stop_writer.clone());
        let state = ApiState {
            vendor,
            bearer: verifier.map(|verifier| BearerAuthenticator::new(verifier, &authenticator)),
            authenticator,
            db: db.clone(),
            standby,
            cleaner: cleaner.clone(),
            trusted_proxies: config.http.trusted_proxies.clone(),
            verification_base_url: config.http.verification_base_url.to_string(),
            denials,
            token_reads: TokenReads::start(db.clone()),
            failed_attempts: FailedAttempts::default(),
            rate_limit: RateLimit::per_second(config.http.client_rate_limit),
            stopping: stopping.clone(),
            seals: config.seal.interval.is_some(),
            database_check: DatabaseProbe::default(),
            metrics,
            metrics_probe: MetricsProbe::default(),
        };
        let state = SharedState::new(state);
        let shutdown_timeout = config.http.shutdown_timeout - last_requests(&config.http);
        let (paths, metrics_server) = match metrics_listener {
            None => (Paths::All, None),
            Some(listener) => {
                tracing::info!(address = %listener.local_addr()?, "metrics and health are served");
                let server = api::serve(
                    state.clone(),
                    Paths::Operators,
                    listener,
                    None,
                    shutdown_timeout,
                )?;
                (Paths::WithoutOperators, Some(server))
            }
        };
        let server = api::serve(
            state,
            paths,
            listener.try_clone()?,
            certificate.map(ServerCertificate::server_config),
            shutdown_timeout,
        )?;
        Ok(Service {
            addr,
            metrics_server: metrics_server.map(|server| {
                let handle = server.handle();
                tokio::spawn(server);
                handle
            }),
            listener,
            server: server.handle(),
            serving: tokio::spawn(server),
            stopping,
            mints,
            writer,
            stop_writer,
            cleaning: tokio::spawn(cleaner.run_on_schedule()),
            stop_cleaning,
            denials: denials_writer,
            last_use: tokio::spawn(last_use),
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

    /// Stops the service. Turns readiness off and lets every response close its connection. Waits
    /// `SHUTDOWN_DELAY`, then refuses new connections and, up to 1 s later, accepts no more requests.
    /// Requests, mints and events in progress finish within `SHUTDOWN_TIMEOUT`, whose end is returned.
    pub async fn stop(self) -> Instant {
        self.stopping.store(true, Ordering::Relaxed);
        self.stop_cleaning.cancel();
        tracing::info!("stopping; readiness is off");
        sleep(self.http.shutdown_delay).await;
        let deadline = Instant::now() + self.http.shutdown_timeout;
        let last_requests = last_requests(&self.http);
        if last_requests.is_zero() {
            drop(self.listener);
        } else {
            // The server drops connections that it has accepted and not read from. A caller that connected
            // at the last moment must not lose its request.
            listener::close(self.listener, &self.server).await;
            sleep(last_requests).await;
        }
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
        let _ = self.last_use.await;
        // Probes and metrics show the shutdown up to its end.
        if let Some(server) = self.metrics_server {
            server.stop(false).await;
        }
        self.db.close();
        tracing::info!("stopped");
        deadline
    }
}

/// Opens connections that the service cannot do without. Retries for `STARTUP_WAIT` while the server has none left.
async fn open_connections<T>(
    startup_wait: Duration,
    open: impl AsyncFn() -> Result<T, DbError>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + startup_wait;
    loop {
        match open().await {
            Ok(opened) => return Ok(opened),
            Err(error @ DbError::NoConnection(_)) if Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for three database connections");
                sleep(Duration::from_secs(1)).await;
            }
            Err(error) => {
                let hint = error.hint();
                bail!("three database connections cannot be opened: {error}; {hint}");
            }
        }
    }
}

/// Returns the standby for reads, if there is one. The primary reads while it cannot be reached.
fn open_standby(config: &Config, primary: &Database) -> anyhow::Result<Option<Database>> {
    let Some(url) = &config.database.read_url else {
        return Ok(None);
    };
    schema::connect_options(url)?;
    let address = Address {
        url: url.clone(),
        file: config.read_database_url_file.clone(),
    };
    Ok(Some(Database::with_fallback(
        Connector::new(address, Role::Standby),
        config.database.max_connections,
        Some(primary.clone()),
    )))
}

/// Returns the time between the refusal of new connections and the end of the HTTP server. It is part of
/// `SHUTDOWN_TIMEOUT`.
fn last_requests(http: &HttpConfig) -> Duration {
    LAST_REQUESTS.min(http.shutdown_delay)
}

/// Returns the verifier of bearer tokens with the keys of the issuer, or without them if it is down.
async fn start_verifier(
    settings: Option<OidcSettings>,
) -> anyhow::Result<Option<Arc<TokenVerifier>>> {
    let Some(settings) = settings else {
        return Ok(None);
    };
    let verifier = spawn_blocking(|| TokenVerifier::new(settings)).await??;
    match verifier.fetch_keys().await {
        Ok(_) => {}
        Err(error @ IssuerError::Unavailable(_)) => {
            tracing::warn!(%error, "bearer tokens get 503 until the OIDC issuer can be read");
        }
        Err(error) => return Err(error.into()),
    }
    Ok(Some(verifier))
}

/// Returns the configured issuer.
pub(crate) fn oidc_settings(config: &Config) -> Option<OidcSettings> {
    let (issuer, audience) = (config.oidc.issuer.clone(), config.oidc.audience.clone());
    let (issuer, audience) = issuer.zip(audience)?;
    Some(OidcSettings { issuer, audience })
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

/// Returns a warning for each database on another machine whose server is not verified.
pub(crate) fn list_tls_warnings(config: &Config) -> Result<Vec<String>, DatabaseUnsuitable> {
    let mut warnings = Vec::new();
    let urls = [
        ("DATABASE_URL", Some(&config.database.url)),
        ("READ_DATABASE_URL", config.database.read_url.as_ref()),
    ];
    for (variable, url) in urls {
        if let Some(url) = url
            && schema::is_unverified(&schema::connect_options(url)?)
        {
            warnings.push(format!(
                "{variable} has no sslmode=verify-full: another server at its address could get the password and all data"
            ));
        }
    }
    Ok(warnings)
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
