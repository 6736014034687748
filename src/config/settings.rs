//! The table of settings. The configuration types, the flags, `.env.example` and the output of
//! `check` are generated from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::{ExposeSecret, SecretBox, SecretString};
use url::Url;

use super::source::Source;
use super::tls::ServerCertificate;
use super::values::*;
use super::{CommandConfig, Secrecy::*, Setting};
use crate::seal::checkpoint::CheckpointWriter;

/// Generates [`SETTINGS`], [`Config`] and a type for each group of settings.
///
/// A group is `/// doc`, `part: Type("Heading") { settings }`. A setting is `/// help`,
/// `field: Type = "VARIABLE", secrecy, default, parser;`. The default is `None` for a required
/// setting and `Some("")` for an optional one.
macro_rules! settings {
    ($(
        $(#[doc = $about:literal])+
        $part:ident: $group:ident($title:literal) {$(
            $(#[doc = $help:literal])+
            $field:ident: $type:ty = $variable:literal, $secrecy:expr, $default:expr, $parse:expr;
        )+}
    )+) => {
        /// All settings of this version, in the order in which they are shown and validated.
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
                fn includes(setting: &Setting) -> bool {
                    setting.group == $title
                }

                fn read(source: &mut Source) -> Option<Self> {
                    $(let $field = source.read_value($variable, $parse);)+
                    Some(Self { $($field: $field?),+ })
                }
            }
        )+

        /// All settings, for `serve` and `check`.
        #[derive(Debug)]
        pub struct Config {
            $($(#[doc = $about])+ pub $part: $group,)+
            /// The file of `DATABASE_URL`. It is read again for each connection.
            pub database_url_file: Option<PathBuf>,
            /// The file of `READ_DATABASE_URL`. It is read again for each connection.
            pub read_database_url_file: Option<PathBuf>,
            masked: String,
            warnings: Vec<String>,
        }

        impl CommandConfig for Config {
            fn includes(_: &Setting) -> bool {
                true
            }

            fn read(source: &mut Source) -> Option<Self> {
                $(let $part = $group::read(source);)+
                check_combinations(source);
                Some(Self {
                    $($part: $part?,)+
                    database_url_file: source.find_file("DATABASE_URL"),
                    read_database_url_file: source.find_file("READ_DATABASE_URL"),
                    masked: source.render_masked(),
                    warnings: source.find_misspelled_variables(),
                })
            }
        }
    };
}

settings! {
    /// Settings of the database connection.
    database: DatabaseConfig("Database") {
        /// The URL of the database, postgres://user:password@host:5432/database. Postgres 15 or later.
        url: SecretString = "DATABASE_URL", SecretUrl, None, parse_database_url;
        /// The maximum number of database connections per process, at least 4.
        max_connections: u32 = "DATABASE_MAX_CONNECTIONS", Public, Some("16"), integer(4..=1000);
        /// The URL of a standby. Audit queries, lists and exports then read from it and may lag.
        read_url: Option<SecretString> = "READ_DATABASE_URL", SecretUrl, Some(""), optional(parse_database_url);
        /// The time to wait for the database at startup.
        startup_wait: Duration = "STARTUP_WAIT", Public, Some("30s"), duration("0s", "1h");
    }

    /// Settings of the calls to the provider.
    upstream: UpstreamConfig("Upstream") {
        /// The address of the provider. http:// is accepted only for loopback addresses.
        base_url: Url = "UPSTREAM_BASE_URL", Public, Some("https://ivs.idenfy.com"), parse_upstream_base_url;
        /// Accept http:// for any provider address. The credentials are then sent unencrypted.
        allow_http: bool = "UPSTREAM_ALLOW_HTTP", Public, Some("false"), parse_as("true or false");
        /// The API key for the provider.
        api_key: SecretString = "UPSTREAM_API_KEY", Secret, None, parse_username;
        /// The API secret for the provider.
        api_secret: SecretString = "UPSTREAM_API_SECRET", Secret, None, parse_password;
        /// The URL of an HTTP proxy for calls to the provider, http://user:password@host:3128.
        /// HTTPS_PROXY and HTTP_PROXY have no effect on these calls.
        proxy: Option<SecretString> = "UPSTREAM_PROXY", Secret, Some(""), optional(parse_proxy_url);
        /// The time limit of one mint, all attempts together.
        timeout: Duration = "UPSTREAM_TIMEOUT", Public, Some("8s"), duration("100ms", "1m");
        /// The maximum number of attempts per mint. Only retryable failures are retried.
        max_attempts: u32 = "UPSTREAM_MAX_ATTEMPTS", Public, Some("3"), integer(1..=10);
        /// The maximum number of simultaneous calls to the provider, per replica.
        max_in_flight: usize = "UPSTREAM_MAX_IN_FLIGHT", Public, Some("64"), integer(1..=10_000);
        /// The maximum number of attempts in any rolling hour, across all replicas. 0 = no limit.
        hourly_budget: u32 = "UPSTREAM_HOURLY_BUDGET", Public, Some("9000"), integer(0..=1_000_000);
    }

    /// Settings of token reuse.
    vending: VendingConfig("Reuse of tokens") {
        /// After a failed mint, requests for the combination get the same failure for this time.
        mint_cooldown: Duration = "MINT_COOLDOWN", Public, Some("1s"), duration("0s", "1h");
        /// The minimum remaining life of a reused token. Half the requested lifetime applies
        /// instead if it is shorter.
        min_remaining: Duration = "MIN_REMAINING", Public, Some("60s"), duration("0s", "30d");
        /// The maximum number of tokens in the cache, per replica.
        cache_max_tokens: u64 = "CACHE_MAX_TOKENS", Public, Some("100000"), integer(1..=100_000_000);
    }

    /// Keys that encrypt and fingerprint stored tokens.
    keys: KeysConfig("Keys") {
        /// The keys for stored tokens, id:base64-of-32-bytes, comma-separated. The first key
        /// encrypts, all keys decrypt. `token-vendor keys generate` prints a new one.
        token_keys: Vec<TokenKey> = "TOKEN_KEYS", Secret, None, parse_token_keys;
        /// The key for fingerprints, base64 of 32 bytes, from `openssl rand -base64 32`. Never change it: a
        /// new key does not recognise older tokens.
        fingerprint_key: SecretBox<[u8; 32]> = "FINGERPRINT_KEY", Secret, None, parse_key;
    }

    /// Settings of the HTTP server.
    http: HttpConfig("HTTP") {
        /// The IP address and port of the service. Use 0.0.0.0:8080 to serve other machines.
        listen_addr: SocketAddr = "LISTEN_ADDR", Public, Some("127.0.0.1:8080"), parse_as("an IP address and port, such as 127.0.0.1:8080 or [::]:8080");
        /// The IP address and port of /metrics and /health/, without TLS. Empty = at LISTEN_ADDR.
        metrics_addr: Option<SocketAddr> = "METRICS_ADDR", Public, Some(""), optional(parse_as("an IP address and port, such as 127.0.0.1:9100"));
        /// The link for end users. The service appends the percent-encoded token string.
        verification_base_url: Url = "VERIFICATION_BASE_URL", Public, Some("https://bank-verification.ui.idenfy.com/?token="), parse_web_url;
        /// The maximum number of requests per second for each client, per replica. 0 = no limit.
        client_rate_limit: u32 = "CLIENT_RATE_LIMIT", Public, Some("0"), integer(0..=1_000_000);
        /// The networks of your proxies, as comma-separated CIDRs. X-Forwarded-For sets the sourceIp of
        /// an event only in requests from these networks.
        trusted_proxies: Vec<IpNet> = "TRUSTED_PROXIES", Public, Some(""), parse_networks;
        /// After SIGTERM, the service still accepts requests for this time while readiness returns
        /// 503. 5s suits Kubernetes.
        shutdown_delay: Duration = "SHUTDOWN_DELAY", Public, Some("0s"), duration("0s", "1h");
        /// After SHUTDOWN_DELAY, running requests have this time to finish, at least UPSTREAM_TIMEOUT plus 2s.
        shutdown_timeout: Duration = "SHUTDOWN_TIMEOUT", Public, Some("20s"), duration("0s", "1h");
        /// The path of a PEM certificate chain. The service serves HTTPS if this and TLS_KEY are set.
        tls_cert: Option<PathBuf> = "TLS_CERT", Public, Some(""), optional(parse_readable_file);
        /// The path of the PEM private key for TLS_CERT.
        tls_key: Option<PathBuf> = "TLS_KEY", Public, Some(""), optional(parse_readable_file);
    }

    /// Settings of bearer tokens.
    oidc: OidcConfig("Bearer tokens") {
        /// The OIDC issuer whose JWTs are accepted as bearer tokens, exactly as in their `iss`. http:// is accepted
        /// only for loopback addresses.
        issuer: Option<String> = "AUTH_OIDC_ISSUER", Public, Some(""), optional(parse_issuer);
        /// The audience (`aud`) that a bearer token must contain. Set both this and AUTH_OIDC_ISSUER, or neither.
        audience: Option<String> = "AUTH_OIDC_AUDIENCE", Public, Some(""), optional(parse_as("a text"));
    }

    /// Settings of scheduled cleanup.
    cleanup: CleanupConfig("Cleanup") {
        /// The time between cleanups in each replica. `off` leaves cleanup to an external scheduler.
        interval: Option<Duration> = "CLEANUP_INTERVAL", Public, Some("60s"), keyword_or("off", duration("1s", "1d"));
    }

    /// Retention of records and events.
    retention: RetentionConfig("Retention") {
        /// The retention of token and mint records, counted from their end. `keep` never deletes them.
        tokens: Option<Duration> = "TOKEN_RETENTION", Public, Some("400d"), keyword_or("keep", duration("1h", "36500d"));
        /// The retention of audit events, at least TOKEN_RETENTION plus 30 days. `keep` never deletes them.
        audit: Option<Duration> = "AUDIT_RETENTION", Public, Some("440d"), keyword_or("keep", duration("1h", "36500d"));
    }

    /// Settings of the sealed audit log.
    seal: SealConfig("Sealing of the audit log") {
        /// The time between two seals of the audit log. `off` disables sealing.
        interval: Option<Duration> = "SEAL_INTERVAL", Public, Some("2s"), keyword_or("off", duration("100ms", "1h"));
        /// The origin line of checkpoints, which names the log, such as token-vendor.example.com/audit.
        origin: String = "SEAL_ORIGIN", Public, Some("token-vendor"), parse_origin;
        /// The Ed25519 key that signs checkpoints, from `token-vendor seal keys`. Without it, they are not signed.
        signing_key: Option<SecretString> = "SEAL_SIGNING_KEY", Secret, Some(""), optional(parse_password);
        /// A program and its arguments, separated by spaces. It receives each checkpoint on stdin.
        anchor_command: Option<String> = "SEAL_ANCHOR_COMMAND", Public, Some(""), optional(parse_as("a command"));
    }

    /// Settings of logs.
    log: LogConfig("Logs") {
        /// The format of log lines, text or json. RUST_LOG sets the level.
        format: LogFormat = "LOG_FORMAT", Public, Some("text"), parse_log_format;
    }

    /// Settings of traces.
    traces: TracesConfig("Traces") {
        /// The OTLP/HTTP address that receives traces, such as http://127.0.0.1:4318. The OTEL_
        /// variables for service name, headers and sampler also apply.
        endpoint: Option<Url> = "OTEL_EXPORTER_OTLP_ENDPOINT", Public, Some(""), optional(parse_web_url);
    }
}

impl Config {
    /// Returns a line `NAME=value  # source: environment` for each setting, with secrets masked.
    pub fn render_masked(&self) -> &str {
        &self.masked
    }

    /// Returns a warning for each variable that has no effect but resembles the name of a setting.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl HttpConfig {
    /// Returns whether the service serves HTTPS instead of HTTP.
    pub fn has_tls(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// Reads the certificate and key of HTTPS, if they are set. Fails only if the files changed after
    /// validation.
    pub fn read_certificate(&self) -> Option<anyhow::Result<ServerCertificate>> {
        let (cert, key) = (self.tls_cert.as_ref()?, self.tls_key.as_ref()?);
        Some(ServerCertificate::read(cert, key))
    }
}

/// The longest life of a token. TOKEN_RETENTION counts from the end of this life, AUDIT_RETENTION from the mint.
const MAX_LIFE: Duration = Duration::from_secs(30 * 86_400);

/// Rejects a retention that would drop an event before its record. Does nothing unless both settings
/// were read.
pub(super) fn check_retention(source: &mut Source) {
    let parse = |source: &Source, variable| match source.get_text(variable) {
        "keep" => Some(Duration::MAX),
        text => humantime::parse_duration(text).ok(),
    };
    let (tokens, audit) = (
        parse(source, "TOKEN_RETENTION"),
        parse(source, "AUDIT_RETENTION"),
    );
    if let Some((tokens, audit)) = tokens.zip(audit)
        && audit < tokens.saturating_add(MAX_LIFE)
    {
        let why = "must be at least TOKEN_RETENTION plus 30 days, the longest life of a token";
        source.add_problem("AUDIT_RETENTION", why);
    }
}

impl SealConfig {
    /// Returns the writer of checkpoints.
    ///
    /// # Errors
    /// Returns what is wrong with the key.
    pub fn checkpoint_writer(&self) -> Result<CheckpointWriter, &'static str> {
        let key = self.signing_key.as_ref().map(ExposeSecret::expose_secret);
        CheckpointWriter::new(&self.origin, key)
    }
}

/// Rejects a signing key that is not that of the origin.
fn check_signing_key(source: &mut Source) {
    let (origin, key) = (
        source.get_text("SEAL_ORIGIN"),
        source.get_text("SEAL_SIGNING_KEY"),
    );
    if let (Ok(origin), false) = (parse_origin(origin), key.is_empty())
        && let Err(why) = CheckpointWriter::new(&origin, Some(key))
    {
        source.add_problem("SEAL_SIGNING_KEY", why);
    }
}

/// The time that a request may take in addition to `UPSTREAM_TIMEOUT`.
const REQUEST_MARGIN: Duration = Duration::from_secs(2);

/// Checks rules that involve several settings, even if other settings are invalid.
fn check_combinations(source: &mut Source) {
    check_signing_key(source);
    let (issuer, audience) = ("AUTH_OIDC_ISSUER", "AUTH_OIDC_AUDIENCE");
    if source.get_text(issuer).is_empty() != source.get_text(audience).is_empty() {
        source.add_problem(
            issuer,
            "set both AUTH_OIDC_ISSUER and AUTH_OIDC_AUDIENCE, or neither",
        );
    }
    let (cert, key) = (source.get_text("TLS_CERT"), source.get_text("TLS_KEY"));
    if cert.is_empty() != key.is_empty() {
        source.add_problem("TLS_CERT", "set both TLS_CERT and TLS_KEY, or neither");
    } else if [cert, key]
        .iter()
        .all(|path| parse_readable_file(path).is_ok())
        && let Err(error) = ServerCertificate::read(cert.as_ref(), key.as_ref())
    {
        source.problems.push(format!("{error:#}"));
    }
    let is_allowed = source.get_text("UPSTREAM_ALLOW_HTTP") == "true";
    if let Ok(url) = parse_upstream_base_url(source.get_text("UPSTREAM_BASE_URL"))
        && !(url.scheme() == "https" || is_loopback(&url) || is_allowed)
    {
        let why = "must start with https:// (http:// is accepted only for 127.0.0.0/8, ::1 and localhost, or with UPSTREAM_ALLOW_HTTP=true)";
        source.add_problem("UPSTREAM_BASE_URL", why);
    }
    let parse = |variable| humantime::parse_duration(source.get_text(variable)).ok();
    if let (Some(upstream), Some(shutdown)) = (parse("UPSTREAM_TIMEOUT"), parse("SHUTDOWN_TIMEOUT"))
        && shutdown < upstream.saturating_add(REQUEST_MARGIN)
        && !source
            .problems
            .iter()
            .any(|problem| problem.starts_with("UPSTREAM_TIMEOUT"))
    {
        let why = "must be at least UPSTREAM_TIMEOUT plus 2 s; otherwise shutdown interrupts mints";
        source.add_problem("SHUTDOWN_TIMEOUT", why);
    }
}
