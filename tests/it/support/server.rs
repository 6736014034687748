//! A Postgres of a test's own.

use std::fs;
use std::path::PathBuf;

use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use token_vendor::db::schema;
use token_vendor::dev::postgres::{LocalPostgres, LocalPostgresOptions, remove};

use super::cluster::own_folder;

/// A Postgres with the current schema in the database `vending`.
pub struct Server {
    pub postgres: LocalPostgres,
    pub data_dir: PathBuf,
}

impl Server {
    /// Starts a server with these settings on a new data folder.
    pub async fn start(settings: &[(&str, &str)]) -> Server {
        Server::create_in(own_folder(), settings).await
    }

    /// Starts a server with these settings on a data folder that does not exist, or is empty.
    pub async fn create_in(data_dir: PathBuf, settings: &[(&str, &str)]) -> Server {
        let server = Server::start_in(data_dir, settings).await;
        let mut admin = server.admin().await;
        admin.execute("CREATE DATABASE vending").await.unwrap();
        let options = schema::connect_options(&server.url().into()).unwrap();
        schema::migrate(&options).await.unwrap();
        server
    }

    /// Starts a server with these settings on a data folder.
    pub async fn start_in(data_dir: PathBuf, settings: &[(&str, &str)]) -> Server {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()));
        let postgres = LocalPostgres::start(LocalPostgresOptions {
            data_dir: data_dir.clone(),
            settings: settings.collect(),
            ..LocalPostgresOptions::default()
        });
        Server {
            postgres: postgres.await.unwrap(),
            data_dir,
        }
    }

    /// Returns the URL of the database for the superuser.
    pub fn url(&self) -> String {
        self.postgres.url("vending")
    }

    /// Returns the path of a program beside the server's own, such as `pg_dump`, whose version may be another than the one
    /// in `PATH`. Some packages have only the server.
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let postgres = fs::read_link(format!("/proc/{}/exe", self.postgres.pid())).unwrap();
        let path = postgres.with_file_name(name);
        path.exists().then_some(path)
    }

    /// Connects as the superuser to the database `postgres`.
    pub async fn admin(&self) -> PgConnection {
        PgConnection::connect(&self.postgres.url("postgres"))
            .await
            .unwrap()
    }

    /// Changes a setting of the whole server. An empty value resets it.
    pub async fn set(&self, name: &str, value: &str) {
        let mut admin = self.admin().await;
        let statement = match value {
            "" => format!("ALTER SYSTEM RESET {name}"),
            value => format!("ALTER SYSTEM SET {name} = {value}"),
        };
        admin.execute(AssertSqlSafe(statement)).await.unwrap();
        admin.execute("SELECT pg_reload_conf()").await.unwrap();
    }

    /// Makes commits wait for a standby that does not exist, and waits until they do.
    pub async fn hang_commits(&self) {
        self.set("synchronous_standby_names", "nope").await;
        // The checkpointer applies the setting, some time after the reload.
        loop {
            let mut probe = self.admin().await;
            let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
                .fetch_one(&mut probe)
                .await
                .unwrap();
            let write = "SELECT pg_logical_emit_message(true, '', '')";
            let commit = tokio::spawn(async move { probe.execute(write).await.is_ok() });
            let mut admin = self.admin().await;
            let mut is_waiting = false;
            while !is_waiting && !commit.is_finished() {
                is_waiting = sqlx::query_scalar(
                    "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'SyncRep')",
                )
                .bind(pid)
                .fetch_one(&mut admin)
                .await
                .unwrap();
            }
            if is_waiting {
                let end = sqlx::query("SELECT pg_terminate_backend($1)").bind(pid);
                end.execute(&mut admin).await.unwrap();
                return;
            }
        }
    }

    /// Runs a query that returns a number.
    pub async fn count(&self, query: &'static str) -> i64 {
        let mut admin = self.admin().await;
        sqlx::query_scalar(query)
            .fetch_one(&mut admin)
            .await
            .unwrap()
    }

    /// Stops the server and removes its data.
    pub async fn stop(self) {
        self.postgres.stop().await.unwrap();
        remove(&self.data_dir).unwrap();
    }
}
