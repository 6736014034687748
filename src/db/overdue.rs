//! Writes that missed their deadline and whose outcome is unknown.
//!
//! A write may wait in its COMMIT for a synchronous standby. Nothing may cancel it, and its connection stays open: a
//! new one in its place would only wait too, and leave one more server process behind. A connection whose packets are
//! lost, or whose server process is stopped, is as silent, but it must be replaced. Only Postgres can tell the two
//! apart, so the gate asks it over the connection of authentication.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use sqlx::PgConnection;
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::DbError;
use super::gate::Database;
use super::lane::Lane;

/// The time between two checks while writes are overdue.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The overdue writes of one [`Database`].
#[derive(Debug, Default)]
pub struct Overdue(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    entries: Vec<Entry>,
    /// True while a task checks the entries.
    is_checked: bool,
}

#[derive(Debug)]
struct Entry {
    /// The id of the server process.
    process: i32,
    /// Makes the owner of the connection close it.
    give_up: oneshot::Sender<()>,
}

impl Overdue {
    /// Waits until the write ends, or until Postgres says that its process does not wait in a COMMIT.
    pub async fn wait<T>(database: &Database, process: i32, write: impl Future<Output = T>) {
        let (give_up, given_up) = oneshot::channel();
        let overdue = database.overdue();
        let is_checked = {
            let mut locked = overdue.lock();
            locked.entries.push(Entry { process, give_up });
            std::mem::replace(&mut locked.is_checked, true)
        };
        if !is_checked {
            tokio::spawn(check_periodically(database.clone()));
        }
        tokio::select! {
            _ = write => overdue.lock().entries.retain(|entry| entry.process != process),
            _ = given_up => tracing::warn!(process, "a statement got no answer; its connection is closed"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the processes of the overdue writes. Without any, the task that checks them ends.
    fn list_processes(&self) -> Vec<i32> {
        let mut locked = self.lock();
        locked.is_checked = !locked.entries.is_empty();
        locked.entries.iter().map(|entry| entry.process).collect()
    }
}

/// Gives up the writes that do not wait in their COMMIT, until none is overdue.
fn check_periodically(database: Database) -> BoxFuture<'static, ()> {
    let check = async move {
        loop {
            let processes = database.overdue().list_processes();
            if processes.is_empty() {
                return;
            }
            let listed = processes.clone();
            let waiting = database.run(Lane::Authentication, async move |mut connection| {
                list_waiting_commits(&mut connection, &listed).await
            });
            if let Ok(waiting) = waiting.await {
                let is_lost = |entry: &mut Entry| {
                    processes.contains(&entry.process) && !waiting.contains(&entry.process)
                };
                for entry in database.overdue().lock().entries.extract_if(.., is_lost) {
                    let _ = entry.give_up.send(());
                }
            }
            sleep(CHECK_INTERVAL).await;
        }
    };
    check.boxed()
}

/// Lists those of the server processes that wait in a COMMIT for a synchronous standby.
pub async fn list_waiting_commits(
    connection: &mut PgConnection,
    processes: &[i32],
) -> Result<Vec<i32>, DbError> {
    let waiting = sqlx::query_scalar!(
        r#"SELECT pid AS "pid!" FROM pg_stat_activity WHERE pid = ANY($1) AND wait_event = 'SyncRep'"#,
        processes
    );
    Ok(waiting.fetch_all(connection).await?)
}
