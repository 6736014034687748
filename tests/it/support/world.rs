//! A test environment: a database, a sandbox, and any number of replicas of the service.

use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use futures_util::future::join_all;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::Method;
use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::postgres::PgPoolOptions;
use sqlx::{AssertSqlSafe, Executor, PgPool, Postgres, Transaction};
use token_vendor::app::Service;
use token_vendor::config::{CommandConfig, Config, Source};
use token_vendor::db::clients::insert_client;
use token_vendor::dev::sandbox::{Sandbox, SandboxOptions};
use token_vendor::model::{ClientChange, Operator, Origin, Scope};

use super::answer::{Answer, send};
use super::cluster::create_database;
use super::invariants::find_violations;
use super::poll::eventually;

/// API key and secret of the client that has every scope.
pub const ADMIN: (&str, &str) = ("admin", "admin-secret");

/// A database and a sandbox. Asserts the invariants of the database when it is dropped.
pub struct World {
    pub url: String,
    pub db: PgPool,
    pub sandbox: Sandbox,
    /// Tells whether the invariants are asserted.
    pub is_checked: bool,
}

/// A replica of the service in this process.
pub struct Replica {
    pub api: Api,
    pub service: Service,
}

/// An HTTP client of a replica, in this process or another.
#[derive(Clone)]
pub struct Api {
    pub base: String,
    http: reqwest::Client,
}

impl std::ops::Deref for Replica {
    type Target = Api;

    fn deref(&self) -> &Api {
        &self.api
    }
}

impl World {
    /// Creates an environment with a new database and the client `admin`.
    pub async fn new() -> World {
        World::on(create_database().await).await
    }

    /// Creates an environment whose invariants are not asserted, for tests that write rows of their own.
    pub async fn unchecked() -> World {
        let mut world = World::new().await;
        world.is_checked = false;
        world
    }

    /// Creates an environment on an existing database, which must have the current schema.
    pub async fn on(url: String) -> World {
        let db = PgPoolOptions::new()
            .max_connections(4)
            .connect(&url)
            .await
            .unwrap();
        let sandbox = Sandbox::start(SandboxOptions {
            listen: "127.0.0.1:0".parse().unwrap(),
            hourly_limit: 0,
            ..SandboxOptions::default()
        });
        let world = World {
            url,
            db,
            sandbox: sandbox.await.unwrap(),
            is_checked: true,
        };
        world.add_client(ADMIN, Scope::ALL).await;
        world
    }

    /// Adds a client to the database.
    pub async fn add_client(&self, credentials: (&str, &str), scopes: &[Scope]) {
        self.add(credentials, None, scopes).await;
    }

    /// Adds a client that bearer tokens with this `sub` name.
    pub async fn add_oidc_client(&self, key: &str, subject: &str, scopes: &[Scope]) {
        let subject = Some(subject.to_owned());
        self.add((key, "unknown to all"), subject, scopes).await;
    }

    async fn add(&self, (key, secret): (&str, &str), subject: Option<String>, scopes: &[Scope]) {
        let change = ClientChange {
            name: Some(key.into()),
            scopes: Some(scopes.iter().copied().collect()),
            oidc_subject: Some(subject),
            ..ClientChange::default()
        };
        let operator = Operator {
            origin: Origin::Actor("test".into()),
            scopes: None,
        };
        let hash = Sha256::digest(secret);
        let mut connection = self.db.acquire().await.unwrap();
        let inserted = insert_client(&mut connection, key, &hash, change, &operator).await;
        inserted.unwrap().unwrap();
    }

    /// Returns the environment variables of a replica. `more` adds and replaces variables.
    pub fn variables(&self, more: &[(&str, &str)]) -> Vec<(String, String)> {
        let key = |byte: u8| BASE64_STANDARD.encode([byte; 32]);
        let upstream = SandboxOptions::default();
        let mut variables: Vec<(String, String)> = [
            ("DATABASE_URL", self.url.clone()),
            ("LISTEN_ADDR", "127.0.0.1:0".into()),
            ("UPSTREAM_BASE_URL", self.sandbox.base_url()),
            ("UPSTREAM_API_KEY", upstream.api_key),
            ("UPSTREAM_API_SECRET", upstream.api_secret),
            ("TOKEN_KEYS", format!("k1:{}", key(1))),
            ("FINGERPRINT_KEY", key(2)),
        ]
        .map(|(name, value)| (name.into(), value))
        .into();
        for (name, value) in more {
            variables.retain(|(known, _)| known != name);
            variables.push(((*name).into(), (*value).into()));
        }
        variables
    }

    /// Starts a replica with the default settings.
    pub async fn replica(&self) -> Replica {
        self.replica_with(&[]).await
    }

    /// Starts a replica with additional settings.
    pub async fn replica_with(&self, more: &[(&str, &str)]) -> Replica {
        let source = Source::from_environment(self.variables(more));
        let config = Config::load(source).unwrap();
        let service = Service::start(config).await.unwrap();
        let api = Api::at(format!("http://{}", service.addr()));
        Replica { api, service }
    }

    /// Waits until the sandbox has received this many requests.
    pub async fn upstream_is_called(&self, times: u64) {
        eventually("the upstream is called", async || {
            self.sandbox.requests() >= times
        })
        .await;
    }

    /// Locks a table until the transaction ends. `lock` names the table and the lock mode.
    pub async fn lock_table(&self, lock: &str) -> Transaction<'static, Postgres> {
        let mut transaction = self.db.begin().await.unwrap();
        let statement = AssertSqlSafe(format!("LOCK TABLE {lock}"));
        transaction.execute(statement).await.unwrap();
        transaction
    }

    /// Waits until a statement waits for a lock.
    pub async fn backend_waits_for_a_lock(&self) {
        let waiting = "SELECT count(*) FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("a statement waits for a lock", async || {
            self.count(waiting).await > 0
        })
        .await;
    }

    /// Waits until a statement that contains this text waits for a lock, then terminates its connection.
    pub async fn terminate_waiting(&self, statement: &str) {
        let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                         WHERE datname = current_database() AND wait_event_type = 'Lock'
                           AND strpos(query, $1) > 0";
        eventually("the statement waits for a lock", async || {
            let terminated: i64 = sqlx::query_scalar(terminate)
                .bind(statement)
                .fetch_one(&self.db)
                .await
                .unwrap();
            terminated > 0
        })
        .await;
    }

    /// Sends a signal to the server processes that the condition on `pg_stat_activity` selects.
    pub async fn signal_backends(&self, condition: &'static str, signal: Signal) {
        for pid in self.backends(condition).await {
            kill(pid, signal).unwrap();
        }
    }

    /// Returns the server processes that the condition on `pg_stat_activity` selects, at least one.
    pub async fn backends(&self, condition: &'static str) -> Vec<Pid> {
        let select = format!(
            "SELECT pid FROM pg_stat_activity
             WHERE datname = current_database() AND pid <> pg_backend_pid() AND {condition}"
        );
        let pids: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(select))
            .fetch_all(&self.db)
            .await
            .unwrap();
        assert!(!pids.is_empty());
        pids.into_iter().map(Pid::from_raw).collect()
    }

    /// Runs a query that returns a number.
    pub async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.db).await.unwrap()
    }

    /// Returns the kinds of all `token.*` events, oldest first.
    pub async fn kinds(&self) -> Vec<String> {
        sqlx::query_scalar(
            "SELECT kind FROM audit_events WHERE kind LIKE 'token.%' ORDER BY occurred_at, id",
        )
        .fetch_all(&self.db)
        .await
        .unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() || !self.is_checked {
            return;
        }
        let url = self.url.clone();
        let check = move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime.unwrap().block_on(find_violations(&url))
        };
        let violations = std::thread::spawn(check).join().unwrap();
        assert!(violations.is_empty(), "{}", violations.join("\n"));
    }
}

/// Sends the token requests at once, spread evenly over the replicas, and returns the responses in order.
pub async fn issue_at_once(
    replicas: &[&Api],
    bodies: impl IntoIterator<Item = Value>,
) -> Vec<Answer> {
    let replicas = replicas.iter().cycle();
    let requests = replicas.zip(bodies).map(|(api, body)| api.issue(body));
    join_all(requests).await
}

/// Builds an HTTP client that follows no redirects and ignores the proxy settings. The timeout is 30 s.
pub fn http_client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .timeout(Duration::from_secs(30))
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .unwrap()
}

impl Api {
    /// Creates a client of the replica at this address.
    pub fn at(base: String) -> Api {
        Api {
            base,
            http: http_client(),
        }
    }

    /// Builds a request as the admin.
    pub fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.request_by(ADMIN, method, path)
    }

    /// Builds a request as the client with this key and secret.
    pub fn request_by(
        &self,
        (key, secret): (&str, &str),
        method: Method,
        path: &str,
    ) -> reqwest::RequestBuilder {
        self.anonymous(method, path).basic_auth(key, Some(secret))
    }

    /// Sends a `GET` as the admin.
    pub async fn get(&self, path: &str) -> Answer {
        send(self.request(Method::GET, path)).await
    }

    /// Builds a `POST` of a JSON value as the admin.
    pub fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        self.post_body(path, body.to_string())
    }

    /// Builds a `POST` of any body with the media type of JSON, as the admin.
    pub fn post_body(&self, path: &str, body: impl Into<reqwest::Body>) -> reqwest::RequestBuilder {
        self.request(Method::POST, path)
            .header("content-type", "application/json")
            .body(body)
    }

    /// Requests a token as the admin.
    pub async fn issue(&self, body: Value) -> Answer {
        send(self.post("/bank/tokens/", &body)).await
    }

    /// Requests a token as the admin, with this `Cache-Control`.
    pub async fn issue_with(&self, body: Value, cache_control: &str) -> Answer {
        let request = self.post("/bank/tokens/", &body);
        send(request.header("cache-control", cache_control)).await
    }

    /// Builds a request without credentials.
    pub fn anonymous(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }
}
