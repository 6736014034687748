//! What is measured runs here: a private Postgres that keeps what it commits, the service, its
//! stand-in upstream, and the rivals.

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
use crate::process::{Server, command, free_addr, unprivileged};

/// The service, as this build made it.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_token-vendor");
/// What tokens are sealed under here.
pub const TOKEN_KEY: [u8; 32] = [7; 32];
/// What they are named under here.
pub const FINGERPRINT_KEY: [u8; 32] = [9; 32];

/// Of a client that may do all.
pub const AUTHORIZATION: &str = "Basic YmVuY2g6YmVuY2g=";
const CLIENT: &str = "INSERT INTO clients (api_key, name, secret_sha256, scopes)
     VALUES ('bench', 'bench', sha256('bench'), '{tokens:issue,tokens:read,audit:read}')";

/// Beyond the defaults: memory as an operator would give it, and no checkpoint in the middle of a
/// measurement. What a commit waits for is as shipped: `fsync` and `synchronous_commit` are on.
const SETTINGS: [(&str, &str); 5] = [
    ("shared_buffers", "1GB"),
    ("maintenance_work_mem", "512MB"),
    ("max_wal_size", "16GB"),
    ("min_wal_size", "4GB"),
    ("checkpoint_timeout", "1h"),
];

/// Huge pages of the shared buffers alone.
const HUGE_PAGES_OF_BUFFERS: u64 = 512;
/// Enough for all that Postgres shares.
const HUGE_PAGES: u64 = 640;

/// Files of the log that the checkpoint after the filling leaves to be written again, as in a
/// database that has run for a while. Making a new one is a stall of some 20 ms.
const WRITE_LOG_FILES: &str =
    "SELECT pg_create_restore_point('bench'), pg_switch_wal() FROM generate_series(1, 256)";

pub struct World {
    postgres: LocalPostgres,
    /// Held for Postgres.
    _huge_pages: Option<HugePages>,
    /// Whether Postgres has its memory in huge pages.
    pub has_huge_pages: bool,
    data_dir: PathBuf,
    /// `target/bench`: results, logs, tools.
    pub folder: PathBuf,
    /// The tokens and events of the filled database, and how many measurements a median is of.
    pub scale: Scale,
}

#[derive(Clone, Copy)]
pub struct Scale {
    pub tokens: u64,
    pub events: u64,
    pub rounds: usize,
    /// Of one measurement under load.
    pub seconds: u32,
}

impl Scale {
    /// Rounds of what is compared under the load of handouts, more than of the rest: what the disk does in
    /// two seconds is not what it does in the next two.
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
            has_huge_pages: wants_huge_pages && huge_pages::are_taken(HUGE_PAGES_OF_BUFFERS),
            data_dir,
            folder: folder.to_owned(),
            scale,
        };
        sqlx::raw_sql(WRITE_LOG_FILES)
            .execute(&mut world.connect("postgres").await?)
            .await?;
        Ok(world)
    }

    /// Makes a database with the schema and a client in it.
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

    /// Of a database, as sqlx and libpq read it.
    pub fn url(&self, database: &str) -> String {
        self.postgres.url(database)
    }

    pub async fn connect(&self, database: &str) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.url(database)).await?)
    }

    /// A program of Postgres, on a database.
    pub fn postgres_tool(&self, program: &str, database: &str) -> Command {
        let mut tool = command(Path::new(program), None);
        tool.env("PGHOST", self.postgres.socket_dir())
            .env("PGPORT", "5432");
        tool.env("PGUSER", "postgres").env("PGDATABASE", database);
        tool
    }

    /// Runs a command of the program to its end; its standard output.
    pub fn run(&self, database: &str, arguments: &[&str]) -> Result<String> {
        let output = self.program(database, arguments).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.success(),
            "token-vendor {arguments:?}: {said}"
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The program, configured for a database, without a line for each request in its log.
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
            ("UPSTREAM_HOURLY_BUDGET", "0".into()),
            ("CLEANUP_INTERVAL", "off".into()),
            ("RUST_LOG", "warn".into()),
        ]);
        program
    }

    /// A replica of the service. Without an upstream where none is given.
    pub fn serve(
        &self,
        database: &str,
        upstream: Option<SocketAddr>,
        more: &[(&str, &str)],
    ) -> Result<Server> {
        let addr = free_addr()?;
        let mut serve = self.program(database, &["serve"]);
        let upstream = upstream.unwrap_or(addr);
        serve.env("LISTEN_ADDR", addr.to_string());
        serve.env("UPSTREAM_BASE_URL", format!("http://{upstream}"));
        serve.envs(more.iter().copied());
        Server::start(serve, addr, &self.log("serve"))
    }

    /// The stand-in upstream.
    pub fn sandbox(&self, latency: Duration) -> Result<Server> {
        let addr = free_addr()?;
        let mut sandbox = self.program("postgres", &["sandbox", "--hourly-limit=0"]);
        sandbox
            .arg(format!("--latency={}ms", latency.as_millis()))
            .arg(format!("--listen={addr}"));
        Server::start(sandbox, addr, &self.log("sandbox"))
    }

    /// A rival, which is this program again.
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

    /// nginx with a cache keyed by the request's body, in front of `origin`; none where there is
    /// no nginx. The second address writes a line for each request.
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
        // The worker's user must reach it.
        let home = env::temp_dir().join(format!("token-vendor-bench-{}", std::process::id()));
        let _ = fs::remove_dir_all(&home);
        fs::create_dir_all(&home)?;
        let user = unprivileged();
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
