//! The table of settings: types, flags, `.env.example` and the masked printout all come from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{SecretBox, SecretString};
use url::Url;

use super::source::Source;
use super::tls::read_tls;
use super::values::*;
use super::{CommandConfig, Secrecy::*, Setting};

/// Parts of the configuration, and in each `/// help`, then
/// `field: Type = "VARIABLE", secrecy, default, parser;` for each of its settings. The default is `None` where the setting is required, `Some("")` where it may be absent.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        $part:ident: $group:ident($title:literal) {$(
            $(#[doc = $help:literal])+
            $field:ident: $type:ty = $variable:literal, $secrecy:expr, $default:expr, $parse:expr;
        )+}
    )+) => {
        /// Every setting that this version obeys, in the order in which it is shown and checked.
        pub const SETTINGS: &[Setting] = &[$($(Setting {
            variable: $variable,
            group: $title,
            secrecy: $secrecy,
            default: $default,
            help: concat!($($help),+),
        }),+),+];

        $(
            $(#[doc = $about])+
            #[derive(Debug)]
            pub struct $group {$(
                $(#[doc = $help])+
                pub $field: $type,
            )+}

            impl CommandConfig for $group {
                fn concerns(setting: &Setting) -> bool {
                    setting.group == $title
                }

                fn read(source: &mut Source) -> Option<Self> {
                    $(let $field = source.value($variable, $parse);)+
                    Some(Self { $($field: $field?),+ })
                }
            }
        )+

        /// Every setting, for `serve` and `check`.
        #[derive(Debug)]
        pub struct Config {
            $($(#[doc = $about])+ pub $part: $group,)+
            masked: String,
        }

        impl CommandConfig for Config {
            fn concerns(_: &Setting) -> bool {
                true
            }

            fn read(source: &mut Source) -> Option<Self> {
                $(let $part = $group::read(source);)+
                check_together(source);
                Some(Self { $($part: $part?,)+ masked: source.render_masked() })
            }
        }
    };
}

settings! {
    /// Postgres.
    database: DatabaseConfig("Database") {
        /// Postgres 15 or later, as postgres://user:password@host:5432/database.
        url: SecretString = "DATABASE_URL", SecretUrl, None, database_url;
        /// Most connections that this process opens to the database, 2 or more.
        max_connections: u32 = "DATABASE_MAX_CONNECTIONS", Public, Some("16"), integer(2..=1000);
        /// A standby for audit queries, lists and exports, which may then lag.
        read_url: Option<SecretString> = "READ_DATABASE_URL", SecretUrl, Some(""), optional(database_url);
        /// How long to wait for the database at start.
        startup_wait: Duration = "STARTUP_WAIT", Public, Some("30s"), duration("0s", "1h");
    }

    /// The bank-token provider.
    upstream: UpstreamConfig("Upstream") {
        /// The provider's address; http:// only for loopback addresses.
        base_url: Url = "UPSTREAM_BASE_URL", Public, Some("https://ivs.idenfy.com"), upstream_base_url;
        /// Allow http:// to any provider address: its credentials then travel in the clear.
        allow_http: bool = "UPSTREAM_ALLOW_HTTP", Public, Some("false"), like("true or false");
        /// The provider's API key.
        api_key: SecretString = "UPSTREAM_API_KEY", Secret, None, username;
        /// The provider's API secret.
        api_secret: SecretString = "UPSTREAM_API_SECRET", Secret, None, password;
        /// Longest time for one mint, all attempts together.
        timeout: Duration = "UPSTREAM_TIMEOUT", Public, Some("8s"), duration("100ms", "1m");
        /// Most attempts for one mint, where another one is safe; 1 or more.
        max_attempts: u32 = "UPSTREAM_MAX_ATTEMPTS", Public, Some("3"), integer(1..=10);
        /// Most calls to the provider at one time, for each replica; 1 or more.
        max_in_flight: usize = "UPSTREAM_MAX_IN_FLIGHT", Public, Some("64"), integer(1..=10_000);
        /// Most attempts in any rolling hour, across all replicas; 0 = no limit.
        hourly_budget: u32 = "UPSTREAM_HOURLY_BUDGET", Public, Some("9000"), integer(0..=1_000_000);
    }

    /// Reuse of tokens.
    vending: VendingConfig("Reuse of tokens") {
        /// How long a combination whose mint failed repeats that answer.
        mint_cooldown: Duration = "MINT_COOLDOWN", Public, Some("1s"), duration("0s", "1h");
        /// A token with less life left than this, or than half the requested lifetime if that is
        /// shorter, is not handed out again.
        min_remaining: Duration = "MIN_REMAINING", Public, Some("60s"), duration("0s", "30d");
        /// Most tokens kept in memory, for each replica; 1 or more.
        cache_max_tokens: u64 = "CACHE_MAX_TOKENS", Public, Some("100000"), integer(1..=100_000_000);
    }

    /// Encryption at rest and fingerprints.
    keys: KeysConfig("Keys") {
        /// Keys for tokens at rest, id:base64-of-32-bytes, comma-separated; the first one encrypts,
        /// all decrypt.
        token_keys: Vec<TokenKey> = "TOKEN_KEYS", Secret, None, token_keys;
        /// Base64 of 32 bytes; a new one no longer recognises older tokens.
        fingerprint_key: SecretBox<[u8; 32]> = "FINGERPRINT_KEY", Secret, None, key;
    }

    /// The service's own HTTP side.
    http: HttpConfig("HTTP") {
        /// The address and port to serve on, such as 0.0.0.0:8080 for every interface.
        listen_addr: SocketAddr = "LISTEN_ADDR", Public, Some("127.0.0.1:8080"), like("an IP address and port like 127.0.0.1:8080 or [::]:8080");
        /// The end user's link up to where the token string is appended, percent-encoded.
        verification_base_url: Url = "VERIFICATION_BASE_URL", Public, Some("https://bank-verification.ui.idenfy.com/?token="), web_url;
        /// Requests a second for each client and replica; 0 = no limit.
        client_rate_limit: u32 = "CLIENT_RATE_LIMIT", Public, Some("0"), integer(0..=1_000_000);
        /// CIDRs, comma-separated; only from these does X-Forwarded-For set an event's sourceIp.
        trusted_proxies: Vec<IpNet> = "TRUSTED_PROXIES", Public, Some(""), networks;
        /// After SIGTERM, how long requests are still taken while readiness says 503 (5s suits
        /// Kubernetes).
        shutdown_delay: Duration = "SHUTDOWN_DELAY", Public, Some("0s"), duration("0s", "1h");
        /// After that delay, how long what runs has to finish.
        shutdown_timeout: Duration = "SHUTDOWN_TIMEOUT", Public, Some("20s"), duration("0s", "1h");
        /// Path of a PEM certificate chain; HTTPS is served when this and TLS_KEY are set.
        tls_cert: Option<PathBuf> = "TLS_CERT", Public, Some(""), optional(readable_file);
        /// Path of the PEM private key of TLS_CERT.
        tls_key: Option<PathBuf> = "TLS_KEY", Public, Some(""), optional(readable_file);
    }

    /// When what has ended is cleared away.
    cleanup: CleanupConfig("Cleanup") {
        /// How often every replica cleans up; off leaves it to an outside scheduler.
        interval: Option<Duration> = "CLEANUP_INTERVAL", Public, Some("60s"), unless("off", duration("1s", "1d"));
    }

    /// How long records are kept.
    retention: RetentionConfig("Retention") {
        /// Token and mint records, counted from their end; keep = for ever.
        tokens: Option<Duration> = "TOKEN_RETENTION", Public, Some("400d"), unless("keep", duration("1h", "36500d"));
        /// Audit events, not shorter than TOKEN_RETENTION; keep = for ever.
        audit: Option<Duration> = "AUDIT_RETENTION", Public, Some("400d"), unless("keep", duration("1h", "36500d"));
    }

    /// Logs.
    log: LogConfig("Logs") {
        /// text or json; the level comes from RUST_LOG.
        format: LogFormat = "LOG_FORMAT", Public, Some("text"), log_format;
    }

    /// Traces.
    traces: TracesConfig("Traces") {
        /// Where traces are sent, OTLP over HTTP, such as http://127.0.0.1:4318; the other OTEL_
        /// variables (service name, headers, sampler) are obeyed as OpenTelemetry has them.
        endpoint: Option<Url> = "OTEL_EXPORTER_OTLP_ENDPOINT", Public, Some(""), optional(web_url);
    }
}

impl Config {
    /// A line `NAME=value  # source: environment` for each setting, secrets masked.
    pub fn render_masked(&self) -> &str {
        &self.masked
    }
}

impl HttpConfig {
    /// Whether HTTPS is served instead of HTTP.
    pub fn has_tls(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// The certificate to serve HTTPS with; it was fine when the configuration was checked.
    pub fn read_tls(&self) -> Option<anyhow::Result<rustls::ServerConfig>> {
        Some(read_tls(self.tls_cert.as_ref()?, self.tls_key.as_ref()?))
    }
}

/// An event must not go before the record that it tells of.
pub(super) fn check_retention(source: &mut Source) {
    let length = |source: &Source, variable| match source.found(variable) {
        "keep" => Some(Duration::MAX),
        text => humantime::parse_duration(text).ok(),
    };
    let (tokens, audit) = (
        length(source, "TOKEN_RETENTION"),
        length(source, "AUDIT_RETENTION"),
    );
    if audit < tokens && audit.is_some() {
        source.note(
            "AUDIT_RETENTION",
            "must not be shorter than TOKEN_RETENTION",
        );
    }
}

/// Mistakes that only several settings together show, found even where one of them is wrong itself.
fn check_together(source: &mut Source) {
    check_retention(source);
    let (cert, key) = (source.found("TLS_CERT"), source.found("TLS_KEY"));
    if cert.is_empty() != key.is_empty() {
        source.note("TLS_CERT", "goes with TLS_KEY: set both or neither");
    } else if [cert, key].iter().all(|path| readable_file(path).is_ok())
        && let Err(error) = read_tls(cert.as_ref(), key.as_ref())
    {
        source.note("TLS_CERT", &format!("{error:#}"));
    }
    let is_allowed = source.found("UPSTREAM_ALLOW_HTTP") == "true";
    if let Ok(url) = upstream_base_url(source.found("UPSTREAM_BASE_URL"))
        && !(url.scheme() == "https" || is_loopback(&url) || is_allowed)
    {
        let why = "must be https:// (http:// only for 127.0.0.0/8, ::1 and localhost, or with UPSTREAM_ALLOW_HTTP=true)";
        source.note("UPSTREAM_BASE_URL", why);
    }
}
