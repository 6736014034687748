//! The environment of the measurements: a durable private Postgres, the service, the sandbox provider and the rivals.

use std::env;
use std::fs;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use nix::unistd::chown;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use token_vendor::dev::postgres::{self, LocalPostgres, LocalPostgresOptions};

use crate::huge_pages::{self, HugePages};
use crate::process::{Server, command, cpu_seconds, free_addr, unprivileged_user};

/// The service binary of this build.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_token-vendor");
/// The key that encrypts tokens.
pub const TOKEN_KEY: [u8; 32] = [7; 32];
/// The key of fingerprints.
pub const FINGERPRINT_KEY: [u8; 32] = [9; 32];

/// The credentials of a client with every scope that the benchmark uses.
pub const AUTHORIZATION: &str = "Basic YmVuY2g6YmVuY2g=";
const CLIENT: &str = "INSERT INTO clients (api_key, name, secret_sha256, scopes, oidc_subject)
     VALUES ('bench', 'bench', sha256('bench'), '{tokens:issue,tokens:read,audit:read}', 'bench')";

/// Postgres settings: memory like on a production server, and no checkpoint during a measurement.
///
/// `fsync` and `synchronous_commit` keep their default, on.
const SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "1GB"),
    ("maintenance_work_mem", "512MB"),
    ("max_wal_size", "16GB"),
    ("min_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
];

/// The number of huge pages for the shared buffers.
const HUGE_PAGES_OF_BUFFERS: u64 = 512;
/// The number of huge pages for all shared memory of Postgres.
const HUGE_PAGES: u64 = 640;

/// Creates WAL files. The checkpoint after `fill` recycles them, as in a database that has run for a while.
///
/// A commit that has to create a new WAL file takes about 20 ms longer.
const CREATE_WAL_FILES: &str =
    "SELECT pg_create_restore_point('bench'), pg_switch_wal() FROM generate_series(1, 256)";

pub struct World {
    postgres: LocalPostgres,
    /// Reserved until the end of the run.
    _huge_pages: Option<HugePages>,
    /// True if the shared memory of Postgres is in huge pages.
    pub has_huge_pages: bool,
    data_dir: PathBuf,
    /// `target/bench`, with results, logs and tools.
    pub folder: PathBuf,
    pub scale: Scale,
}

/// The size of the filled database and the number and duration of measurements.
#[derive(Clone, Copy)]
pub struct Scale {
    pub tokens: u64,
    pub events: u64,
    /// The number of measurements for a median.
    pub rounds: usize,
    /// The duration of one measurement under load.
    pub seconds: u32,
}

impl Scale {
    /// Returns the rounds of a comparison under handout load.
    ///
    /// There are almost twice as many as for other comparisons, because the speed of the disk varies within seconds.
    pub fn loaded_rounds(&self) -> Range<usize> {
        1..2 * self.rounds
    }
}

impl World {
    pub async fn start(folder: &Path, scale: Scale, wants_huge_pages: bool) -> Result<World> {
        fs::create_dir_all(folder.join("log"))?;
        let data_dir = postgres::default_data_dir("bench");
        postgres::remove(&data_dir)?;
        let huge_pages = if wants_huge_pages {
            HugePages::reserve(HUGE_PAGES)
        } else {
            None
        };
        let huge = [("huge_pages", if wants_huge_pages { "try" } else { "off" })];
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let postgres = LocalPostgres::start(LocalPostgresOptions {
            data_dir: data_dir.clone(),
            is_temporary: true,
            settings: SETTINGS.iter().chain(&huge).map(own).collect(),
            ..LocalPostgresOptions::default()
        });
        let world = World {
            postgres: postgres.await?,
            _huge_pages: huge_pages,
            has_huge_pages: wants_huge_pages && huge_pages::are_used(HUGE_PAGES_OF_BUFFERS),
            data_dir,
            folder: folder.to_owned(),
            scale,
        };
        sqlx::raw_sql(CREATE_WAL_FILES)
            .execute(&mut world.connect("postgres").await?)
            .await?;
        Ok(world)
    }

    /// Creates a database with the schema and a client.
    pub async fn create_database(&self, name: &str) -> Result<()> {
        let create = AssertSqlSafe(format!("CREATE DATABASE {name}"));
        sqlx::raw_sql(create)
            .execute(&mut self.connect("postgres").await?)
            .await?;
        self.run(name, &["migrate"])?;
        sqlx::raw_sql(CLIENT)
            .execute(&mut self.connect(name).await?)
            .await?;
        Ok(())
    }

    /// Returns the URL of a database for sqlx and libpq.
    pub fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    /// Returns the seconds of CPU that Postgres and this server have used, from `/proc`.
    pub fn cpu_seconds(&self, server: &Server) -> Result<f64> {
        Ok(cpu_seconds(self.postgres.pid())? + cpu_seconds(server.pid())?)
    }

    /// Returns the path of the socket that Postgres listens on.
    pub fn socket(&self) -> PathBuf {
        self.postgres.socket_dir().join(".s.PGSQL.5432")
    }

    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.url(database)).await?)
    }

    /// Returns the command of a Postgres client program for a database.
    pub fn postgres_tool(&self, program: &str, database: &str) -> Command {
        let mut tool = command(Path::new(program), None);
        tool.env("PGHOST", self.postgres.socket_dir())
            .env("PGPORT", "5432");
        tool.env("PGUSER", "postgres").env("PGDATABASE", database);
        tool
    }

    /// Runs a command of the service binary and returns its standard output.
    pub fn run(&self, database: &str, arguments: &[&str]) -> Result<String> {
        let output = self.program(database, arguments).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "token-vendor {arguments:?}: {stderr}"
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Returns a command of the service binary, configured for a database. It logs only warnings and errors.
    pub fn program(&self, database: &str, arguments: &[&str]) -> Command {
        let key = |bytes: [u8; 32]| BASE64_STANDARD.encode(bytes);
        let mut program = command(Path::new(PROGRAM), None);
        program
            .args(arguments)
            .env_clear()
            .current_dir(&self.folder);
        program.envs(env::var_os("PATH").map(|path| ("PATH", path)));
        program.envs([
            ("DATABASE_URL", self.url(database)),
            ("TOKEN_KEYS", format!("bench:{}", key(TOKEN_KEY))),
            ("FINGERPRINT_KEY", key(FINGERPRINT_KEY)),
            ("UPSTREAM_API_KEY", "sandbox-key".into()),
            ("UPSTREAM_API_SECRET", "sandbox-secret".into()),
            // The highest. Without a budget, a mint would run other statements than in production.
            ("UPSTREAM_HOURLY_BUDGET", "1000000".into()),
            ("CLEANUP_INTERVAL", "off".into()),
            ("RUST_LOG", "warn".into()),
        ]);
        program
    }

    /// Starts a replica of the service. Without `upstream`, no provider is reachable.
    pub fn serve(
        &self,
        database: &str,
        upstream: Option<SocketAddr>,
        variables: &[(&str, &str)],
    ) -> Result<Server> {
        let addr = free_addr()?;
        let mut serve = self.program(database, &["serve"]);
        let upstream = upstream.unwrap_or(addr);
        serve.env("LISTEN_ADDR", addr.to_string());
        serve.env("UPSTREAM_BASE_URL", format!("http://{upstream}"));
        serve.envs(variables.iter().copied());
        Server::start(serve, addr, &self.log("serve"))
    }

    /// Starts the sandbox provider.
    pub fn sandbox(&self, latency: Duration) -> Result<Server> {
        let addr = free_addr()?;
        let mut sandbox = self.program("postgres", &["sandbox", "--hourly-limit=0"]);
        sandbox
            .arg(format!("--latency={}ms", latency.as_millis()))
            .arg(format!("--listen={addr}"));
        Server::start(sandbox, addr, &self.log("sandbox"))
    }

    /// Starts a rival, which is this benchmark binary with other arguments.
    pub fn rival(&self, kind: &str, argument: &str) -> Result<Server> {
        let addr = free_addr()?;
        Server::start(
            self.rival_command(kind, addr, argument)?,
            addr,
            &self.log(kind),
        )
    }

    pub fn rival_command(&self, kind: &str, addr: SocketAddr, argument: &str) -> Result<Command> {
        let mut rival = command(&env::current_exe()?, None);
        rival.args(["rival", kind, &addr.to_string(), argument]);
        Ok(rival)
    }

    /// Starts nginx with a cache keyed by the request body, in front of `origin`. Returns `None` without nginx.
    ///
    /// The second address writes an access log.
    pub fn nginx(&self, origin: SocketAddr) -> Result<Option<(Server, SocketAddr)>> {
        let unpacked = self.folder.join("nginx/usr/sbin/nginx");
        let program = if unpacked.exists() {
            unpacked.as_path()
        } else {
            Path::new("nginx")
        };
        if Command::new(program).arg("-v").output().is_err() {
            return Ok(None);
        }
        // In the temporary folder, because the user of the workers needs access.
        let home = env::temp_dir().join(format!("token-vendor-bench-{}", std::process::id()));
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(&home)?;
        let user = unprivileged_user();
        if let Some(user) = &user {
            chown(&home, Some(user.uid), Some(user.gid))?;
        }
        let (quiet, logged) = (free_addr()?, free_addr()?);
        let config = include_str!("nginx.conf")
            .replace("HOME", &home.display().to_string())
            .replace("QUIET", &quiet.to_string())
            .replace("LOGGED", &logged.to_string())
            .replace("ORIGIN", &origin.to_string());
        fs::write(home.join("nginx.conf"), config)?;
        let mut nginx = command(program, user.as_ref());
        nginx
            .arg("-c")
            .arg(home.join("nginx.conf"))
            .args(["-e", "stderr", "-p"])
            .arg(&home);
        let mut server = Server::start(nginx, quiet, &self.log("nginx")).context("nginx")?;
        server.home = Some(home);
        Ok(Some((server, logged)))
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.folder.join("log").join(name)
    }

    pub async fn stop(self) -> Result<()> {
        self.postgres.stop().await?;
        postgres::remove(&self.data_dir)
    }
}
