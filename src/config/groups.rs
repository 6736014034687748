//! The typed settings of each part of the program.

use std::fs::File;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use url::Url;

use super::reader::Reader;
use super::values;

/// Postgres.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// The primary, `postgres://…`.
    pub url: SecretString,
    /// Most connections of this process, 2 or more.
    pub max_connections: u32,
    /// A standby for audit queries, lists and exports.
    pub read_url: Option<SecretString>,
    /// How long to wait for the database at start.
    pub startup_wait: Duration,
}

impl DatabaseConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let url = reader.value("DATABASE_URL", values::database_url);
        let max_connections = reader.integer("DATABASE_MAX_CONNECTIONS");
        let read_url = reader.value("READ_DATABASE_URL", values::database_url);
        let startup_wait = reader.duration("STARTUP_WAIT");
        Some(Self {
            url: url?,
            max_connections: max_connections?,
            read_url,
            startup_wait: startup_wait?,
        })
    }
}

/// The bank-token provider.
#[derive(Clone, Debug)]
pub struct UpstreamConfig {
    /// Its address: no credentials, query or fragment, and a path that ends with a slash.
    pub base_url: Url,
    /// The username of its HTTP Basic.
    pub api_key: SecretString,
    /// The password of its HTTP Basic.
    pub api_secret: SecretString,
    /// Longest time for one mint, all attempts together.
    pub timeout: Duration,
    /// Most attempts for one mint, 1 or more.
    pub max_attempts: u32,
    /// Most calls at one time in this process, 1 or more.
    pub max_in_flight: usize,
    /// Most attempts in any rolling hour across all replicas; 0 is no limit.
    pub hourly_budget: u32,
}

impl UpstreamConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let base_url = reader.value("UPSTREAM_BASE_URL", values::upstream_base_url);
        let allow_http = reader.value("UPSTREAM_ALLOW_HTTP", values::boolean);
        if let (Some(url), Some(false)) = (&base_url, allow_http)
            && url.scheme() == "http"
            && !values::is_loopback(url)
        {
            reader.note(
                "UPSTREAM_BASE_URL",
                "must be https:// (http:// only for 127.0.0.0/8, ::1 and localhost, or with UPSTREAM_ALLOW_HTTP=true)",
            );
        }
        let api_key = reader.value("UPSTREAM_API_KEY", values::api_key);
        let api_secret = reader.value("UPSTREAM_API_SECRET", values::api_secret);
        let timeout = reader.duration("UPSTREAM_TIMEOUT");
        let max_attempts = reader.integer("UPSTREAM_MAX_ATTEMPTS");
        let max_in_flight = reader.integer("UPSTREAM_MAX_IN_FLIGHT");
        let hourly_budget = reader.integer("UPSTREAM_HOURLY_BUDGET");
        Some(Self {
            base_url: base_url?,
            api_key: api_key?,
            api_secret: api_secret?,
            timeout: timeout?,
            max_attempts: max_attempts?,
            max_in_flight: max_in_flight?,
            hourly_budget: hourly_budget?,
        })
    }
}

/// Reuse of tokens.
#[derive(Clone, Debug)]
pub struct VendingConfig {
    /// How long a combination whose mint failed repeats that answer.
    pub mint_cooldown: Duration,
    /// Least life, capped by half the requested lifetime, of a token that is handed out again.
    pub min_remaining: Duration,
    /// Most tokens kept in memory, 1 or more.
    pub cache_max_tokens: u64,
}

impl VendingConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let mint_cooldown = reader.duration("MINT_COOLDOWN");
        let min_remaining = reader.duration("MIN_REMAINING");
        let cache_max_tokens = reader.integer("CACHE_MAX_TOKENS");
        Some(Self {
            mint_cooldown: mint_cooldown?,
            min_remaining: min_remaining?,
            cache_max_tokens: cache_max_tokens?,
        })
    }
}

/// Encryption at rest and fingerprints.
#[derive(Debug)]
pub struct KeysConfig {
    /// At least one; ids and keys are unique; the first one encrypts.
    pub token_keys: Vec<TokenKey>,
    /// None of the token keys.
    pub fingerprint_key: SecretBox<[u8; 32]>,
}

/// A key for tokens at rest.
#[derive(Debug)]
pub struct TokenKey {
    /// 1 to 32 of `[A-Za-z0-9_-]`.
    pub id: String,
    /// The key itself.
    pub key: SecretBox<[u8; 32]>,
}

impl KeysConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let token_keys = reader.value("TOKEN_KEYS", values::token_keys);
        let fingerprint_key = reader.value("FINGERPRINT_KEY", values::fingerprint_key);
        let (token_keys, fingerprint_key) = (token_keys?, fingerprint_key?);
        if token_keys
            .iter()
            .any(|token| token.key.expose_secret() == fingerprint_key.expose_secret())
        {
            reader.note(
                "FINGERPRINT_KEY",
                "must differ from every key in TOKEN_KEYS",
            );
        }
        Some(Self {
            token_keys,
            fingerprint_key,
        })
    }
}

/// The service's own HTTP side.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// The address to serve on.
    pub listen_addr: SocketAddr,
    /// The end user's link up to where the token is appended, percent-encoded.
    pub verification_base_url: String,
    /// Requests a second for each client and replica; 0 is no limit.
    pub client_rate_limit: u32,
    /// The peers whose `X-Forwarded-For` counts.
    pub trusted_proxies: Vec<IpNet>,
    /// After SIGTERM, how long requests are still taken.
    pub shutdown_delay: Duration,
    /// After that, how long what runs has to finish.
    pub shutdown_timeout: Duration,
    /// HTTPS instead of HTTP.
    pub tls: Option<TlsFiles>,
}

/// The PEM files of HTTPS, both readable when the configuration was checked.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate chain.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl HttpConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let listen_addr = reader.value("LISTEN_ADDR", values::listen_addr);
        let verification_base_url =
            reader.value("VERIFICATION_BASE_URL", values::verification_base_url);
        let client_rate_limit = reader.integer("CLIENT_RATE_LIMIT");
        let trusted_proxies = reader.value("TRUSTED_PROXIES", values::networks);
        let shutdown_delay = reader.duration("SHUTDOWN_DELAY");
        let shutdown_timeout = reader.duration("SHUTDOWN_TIMEOUT");
        let tls = TlsFiles::read(reader);
        Some(Self {
            listen_addr: listen_addr?,
            verification_base_url: verification_base_url?,
            client_rate_limit: client_rate_limit?,
            trusted_proxies: trusted_proxies.unwrap_or_default(),
            shutdown_delay: shutdown_delay?,
            shutdown_timeout: shutdown_timeout?,
            tls,
        })
    }
}

impl TlsFiles {
    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let cert = reader.value("TLS_CERT", values::path);
        let key = reader.value("TLS_KEY", values::path);
        for (variable, path) in [("TLS_CERT", &cert), ("TLS_KEY", &key)] {
            if let Some(path) = path
                && let Err(error) = File::open(path)
            {
                reader.note(variable, format!("{path:?} cannot be read: {error}"));
            }
        }
        match (&cert, &key) {
            (Some(_), None) => reader.note("TLS_KEY", "is required where TLS_CERT is set"),
            (None, Some(_)) => reader.note("TLS_CERT", "is required where TLS_KEY is set"),
            _ => {}
        }
        Some(Self {
            cert: cert?,
            key: key?,
        })
    }
}

/// Logs.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// How a log line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One flat JSON object a line.
    Json,
}

impl LogConfig {
    pub(super) fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let format = reader.value("LOG_FORMAT", values::log_format);
        Some(Self { format: format? })
    }
}
