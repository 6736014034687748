//! The gate to Postgres. Every statement except those of the handout writer passes it, in a lane.
//!
//! - **Lanes bound the load.** Each lane limits the work in progress and the work that waits. Further work is refused
//!   at once, before it costs a query. Work whose caller has left is dropped before it starts.
//! - **A missed deadline ends the connection, not only the wait.** A read is dropped with its connection. A write may
//!   be in its COMMIT, which is never cancelled, because a cancelled wait for a synchronous standby reports success.
//!   Its connection stays open and counted until [`Overdue`] finds it lost.
//! - **Fitness belongs to a connection.** [`Connector`] checks it when it opens a connection and before it reuses an
//!   idle one.
//!
//! An HTTP worker drops the future of a request when the caller hangs up. Work therefore runs on the main runtime, in a
//! task that nobody cancels.

use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{Object, Pool, PoolError, QueueMode, TimeoutType};
use sqlx::{Connection as _, PgConnection};
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::{sleep, timeout};

use super::DbError;
use super::connector::{Connection, Connector, Role};
use super::lane::{LANES, Lane, MAX_QUEUE_WAIT, Queue};
use super::overdue::Overdue;

/// The time for which the fallback serves after a failure.
const FALLBACK_TIME: Duration = Duration::from_secs(10);

/// The time between two probes of a database with a fallback. They keep requests from trying a lost one.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// The connections of this process to one server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Database {
    gate: Arc<Gate>,
    runtime: Handle,
}

#[derive(Debug)]
struct Gate {
    authentication: Pool<Connector>,
    shared: Pool<Connector>,
    queues: [Queue; LANES.len()],
    overdue: Overdue,
    /// True if a reserved connection needs the place of a shared one.
    must_make_room: AtomicBool,
    fallback: Option<Fallback>,
}

/// The database that does the work while this one cannot be reached.
#[derive(Debug)]
struct Fallback {
    database: Database,
    /// The time of the last failure, until this database serves again.
    failed_at: Mutex<Option<Instant>>,
    uses: AtomicU64,
}

impl Fallback {
    fn failed_at(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failed_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection lent to a piece of work. Dropping it hands it to the gate, which decides what happens to it. Without a
/// gate it is closed.
pub struct Checkout {
    connection: Option<Object<Connector>>,
    gate: Option<oneshot::Sender<Checkout>>,
}

impl Checkout {
    /// Returns the connection to its pool, unless it cannot be used again.
    async fn give_back(mut self) {
        if let Some(connection) = &mut self.connection
            && let Ok(Ok(())) = timeout(MAX_QUEUE_WAIT, connection.reset()).await
        {
            drop(self.connection.take());
        }
    }
}

impl Deref for Checkout {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect("only the end takes it")
    }
}

impl DerefMut for Checkout {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect("only the end takes it")
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        match self.gate.take() {
            Some(gate) => {
                let connection = Some(connection);
                let _ = gate.send(Checkout {
                    connection,
                    gate: None,
                });
            }
            None => drop(Object::take(connection)),
        }
    }
}

impl Database {
    /// Prepares at most `max_connections` connections, at least 2, on the current runtime. Opens none.
    pub fn new(connector: Connector, max_connections: u32) -> Self {
        Database::with_fallback(connector, max_connections, None)
    }

    /// Prepares connections whose work another database does while this one cannot be reached.
    pub fn with_fallback(
        connector: Connector,
        max_connections: u32,
        fallback: Option<Database>,
    ) -> Self {
        let shared = (max_connections as usize).max(2) - 1;
        let pool = |connector, size| {
            Pool::builder(connector)
                .max_size(size)
                .queue_mode(QueueMode::Lifo)
                .runtime(Runtime::Tokio1)
                .wait_timeout(Some(MAX_QUEUE_WAIT))
                .build()
                .expect("a runtime is given")
        };
        let authentication = match fallback {
            // Nobody authenticates here. The connection probes a standby, which may be in recovery.
            Some(_) => connector.clone(),
            None => connector.with_role(Role::Authentication),
        };
        let gate = Gate {
            authentication: pool(authentication, 1),
            shared: pool(connector, shared),
            queues: LANES.map(|lane| Queue::new(lane, shared)),
            overdue: Overdue::default(),
            must_make_room: AtomicBool::new(false),
            fallback: fallback.map(|database| Fallback {
                database,
                failed_at: Mutex::new(None),
                uses: AtomicU64::new(0),
            }),
        };
        Database {
            gate: Arc::new(gate),
            runtime: Handle::current(),
        }
    }

    /// Opens the connection of authentication and one shared connection, which the service cannot do without.
    pub async fn open(&self) -> Result<(), DbError> {
        let authentication = self.check_out(Lane::Authentication).await?;
        let shared = self.check_out(Lane::Mints).await?;
        authentication.give_back().await;
        shared.give_back().await;
        Ok(())
    }

    /// Closes the idle connections, and refuses further work.
    pub fn close(&self) {
        self.gate.authentication.close();
        self.gate.shared.close();
    }

    /// Starts the work in its lane at once, and waits for it.
    ///
    /// The work runs in a task that nobody cancels. It is dropped only before it starts, if the returned future was
    /// dropped meanwhile.
    ///
    /// # Errors
    /// Returns [`DbError::Overloaded`] if the lane is full, [`DbError::TimedOut`] after the time limit of the lane, and
    /// the error of the work.
    pub fn run<T, F, Fut>(
        &self,
        lane: Lane,
        work: F,
    ) -> impl Future<Output = Result<T, DbError>> + use<T, F, Fut>
    where
        T: Send + 'static,
        F: FnOnce(Checkout) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T, DbError>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let database = self.clone();
        let task = async move { database.run_here(lane, work, reply).await };
        let task = self.runtime.spawn(task);
        async {
            match answer.await {
                Ok(result) => result,
                Err(_) => match task.await.map_err(|error| error.try_into_panic()) {
                    Err(Ok(panic)) => std::panic::resume_unwind(panic),
                    Err(Err(_)) | Ok(()) => Err(DbError::ShuttingDown),
                },
            }
        }
    }

    async fn run_here<T, F, Fut>(
        &self,
        lane: Lane,
        work: F,
        mut reply: oneshot::Sender<Result<T, DbError>>,
    ) where
        F: FnOnce(Checkout) -> Fut,
        Fut: Future<Output = Result<T, DbError>>,
    {
        let entered = tokio::select! {
            entered = self.enter(lane) => entered,
            () = reply.closed() => return,
        };
        let (_permit, mut checkout) = match entered {
            Ok(entered) => entered,
            Err(error) => {
                let _ = reply.send(Err(error));
                return;
            }
        };
        if reply.is_closed() {
            return checkout.give_back().await;
        }
        let process = checkout
            .connection
            .as_ref()
            .map(|connection| connection.process);
        let (gate, mut returned) = oneshot::channel();
        checkout.gate = Some(gate);
        let mut working = Box::pin(work(checkout));
        match timeout(lane.deadline(), &mut working).await {
            Ok(result) => {
                let breaks_connection = result.as_ref().is_err_and(DbError::breaks_connection);
                self.note_result(!breaks_connection);
                if breaks_connection {
                    self.gate.shared.manager().note_failure();
                }
                if let Ok(checkout) = returned.try_recv()
                    && !breaks_connection
                    && !self.must_make_room(lane)
                {
                    checkout.give_back().await;
                }
                let _ = reply.send(result);
            }
            Err(_) => {
                self.gate.shared.manager().note_failure();
                self.note_result(false);
                let _ = reply.send(Err(DbError::TimedOut(lane.deadline())));
                if !lane.is_read_only()
                    && let Some(process) = process
                {
                    Overdue::wait(self, process, working).await;
                }
            }
        }
    }

    async fn enter(&self, lane: Lane) -> Result<(OwnedSemaphorePermit, Checkout), DbError> {
        if lane != Lane::Authentication
            && let Some(fallback) = self.active_fallback()
        {
            return Box::pin(fallback.enter(lane)).await;
        }
        let permit = self.gate.queues[lane as usize].enter().await?;
        match self.check_out(lane).await {
            Err(error) if self.gate.fallback.is_some() && error.breaks_connection() => {
                self.note_result(false);
                match lane {
                    Lane::Authentication => Err(error),
                    _ => Box::pin(self.enter(lane)).await,
                }
            }
            result => Ok((permit, result?)),
        }
    }

    /// Returns the fallback while it serves, and counts the use.
    fn active_fallback(&self) -> Option<&Database> {
        let fallback = self.gate.fallback.as_ref()?;
        let failed_at = (*fallback.failed_at())?;
        (failed_at.elapsed() < FALLBACK_TIME).then(|| {
            fallback.uses.fetch_add(1, Ordering::Relaxed);
            &fallback.database
        })
    }

    /// Records whether this database can be used, for the fallback.
    fn note_result(&self, is_usable: bool) {
        if let Some(fallback) = &self.gate.fallback {
            let failed_at = (!is_usable).then(Instant::now);
            let known = std::mem::replace(&mut *fallback.failed_at(), failed_at);
            match (known, failed_at) {
                (None, Some(_)) => {
                    tracing::warn!("the standby cannot be used; the primary does its work")
                }
                (Some(_), None) => tracing::info!("the standby can be used again"),
                _ => {}
            }
        }
    }

    /// Probes this database every 5 s and never returns, so that the fallback starts and ends without requests.
    pub async fn probe_periodically(self) {
        loop {
            let probe = self.run(Lane::Authentication, |mut connection| async move {
                Ok(connection.ping().await?)
            });
            // The gate has noted a failure.
            let _ = probe.await;
            sleep(PROBE_INTERVAL).await;
        }
    }

    async fn check_out(&self, lane: Lane) -> Result<Checkout, DbError> {
        let pool = match lane {
            Lane::Authentication => &self.gate.authentication,
            _ => &self.gate.shared,
        };
        let started = Instant::now();
        loop {
            let error = match pool.get().await {
                Ok(connection) => {
                    return Ok(Checkout {
                        connection: Some(connection),
                        gate: None,
                    });
                }
                Err(PoolError::Backend(error)) => error,
                Err(PoolError::Timeout(TimeoutType::Wait)) => DbError::Overloaded,
                Err(_) => DbError::ShuttingDown,
            };
            let is_full = matches!(error, DbError::NoConnection(_));
            if !is_full || started.elapsed() > MAX_QUEUE_WAIT {
                return Err(error);
            }
            if lane == Lane::Authentication {
                self.make_room();
            }
            // Another piece of work may give its connection back.
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Opens a connection that belongs to no lane. It takes the place of a shared one if the server has none left.
    pub async fn connect_reserved(&self, role: Role) -> Result<Connection, DbError> {
        let connector = self.gate.shared.manager().with_role(role);
        let connected = connector.connect().await;
        if matches!(connected, Err(DbError::NoConnection(_))) {
            self.make_room();
        }
        connected
    }

    /// Closes the idle shared connections, or the next one that is given back.
    fn make_room(&self) {
        let closed = self.gate.shared.retain(|_, _| false).removed;
        if closed.is_empty() {
            self.gate.must_make_room.store(true, Ordering::Relaxed);
        }
    }

    fn must_make_room(&self, lane: Lane) -> bool {
        lane != Lane::Authentication && self.gate.must_make_room.swap(false, Ordering::Relaxed)
    }

    /// Returns true if another database does the work of this one.
    pub fn is_falling_back(&self) -> bool {
        let fallback = self.gate.fallback.as_ref();
        fallback.is_some_and(|fallback| fallback.failed_at().is_some())
    }

    /// Returns the number of pieces of work that another database did since the last call.
    pub fn take_fallback_count(&self) -> u64 {
        let fallback = self.gate.fallback.as_ref();
        fallback.map_or(0, |fallback| fallback.uses.swap(0, Ordering::Relaxed))
    }

    pub(super) fn overdue(&self) -> &Overdue {
        &self.gate.overdue
    }

    /// Returns true if a new mint would wait long.
    pub fn is_minting_saturated(&self) -> bool {
        self.gate.queues[Lane::Mints as usize].is_saturated()
    }

    /// Returns the numbers of all connections and of idle ones.
    pub fn count_connections(&self) -> (usize, usize) {
        let pools = [&self.gate.authentication, &self.gate.shared].map(|pool| pool.status());
        let sum = |count: fn(&deadpool::Status) -> usize| pools.iter().map(count).sum();
        (sum(|pool| pool.size), sum(|pool| pool.available))
    }
}
