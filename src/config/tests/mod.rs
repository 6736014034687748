//! Shared: a configuration that holds what is required, changed in one place or another.

mod bounds;
mod lookup;
mod output;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Command, FromArgMatches};
use secrecy::ExposeSecret;

use super::*;

/// 32 bytes of 1, of 2, of 3.
const KEY_1: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const KEY_3: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

/// What is required, and nothing else.
fn required() -> Vec<(&'static str, String)> {
    vec![
        (
            "DATABASE_URL",
            "postgres://app:pgword@db.example:5432/tokens?sslmode=require&password=pgword".into(),
        ),
        ("UPSTREAM_API_KEY", "upkey".into()),
        ("UPSTREAM_API_SECRET", "upsecret".into()),
        ("TOKEN_KEYS", format!("k2:{KEY_2},k1:{KEY_1}")),
        ("FINGERPRINT_KEY", KEY_3.into()),
    ]
}

/// What is required, with these changes; an empty value unsets.
fn source(changes: &[(&'static str, &str)]) -> Source {
    let changes = changes
        .iter()
        .map(|(name, value)| (*name, value.to_string()));
    Source::of_environment(required().into_iter().chain(changes))
}

fn load(changes: &[(&'static str, &str)]) -> Result<Config, ConfigError> {
    Config::load(&source(changes))
}

/// The only mistake in this configuration.
#[track_caller]
fn problem(changes: &[(&'static str, &str)]) -> String {
    let ConfigError(problems) = load(changes).expect_err("a mistake");
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].to_string()
}

fn flags<C: CommandConfig>(arguments: &[&str]) -> Flags<C> {
    let command = Flags::<C>::augment_args(Command::new("test").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).unwrap();
    Flags::from_arg_matches(&matches).unwrap()
}

/// A file with this content that goes with the value.
struct TempFile(PathBuf);

impl TempFile {
    fn new(content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("token-vendor-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn defaults_are_the_documented_ones() {
    let config = load(&[]).unwrap();
    assert_eq!(config.database.max_connections, 16);
    assert!(config.database.read_url.is_none());
    assert_eq!(config.database.startup_wait, Duration::from_secs(30));
    assert_eq!(config.upstream.base_url.as_str(), "https://ivs.idenfy.com/");
    assert_eq!(
        config.http.verification_base_url,
        "https://bank-verification.ui.idenfy.com/?token="
    );
    assert_eq!(config.upstream.timeout, Duration::from_secs(8));
    assert_eq!(config.upstream.max_attempts, 3);
    assert_eq!(config.upstream.max_in_flight, 64);
    assert_eq!(config.upstream.hourly_budget, 9000);
    assert_eq!(config.vending.mint_cooldown, Duration::from_secs(1));
    assert_eq!(config.vending.min_remaining, Duration::from_secs(60));
    assert_eq!(config.vending.cache_max_tokens, 100_000);
    assert_eq!(config.http.listen_addr.to_string(), "127.0.0.1:8080");
    assert_eq!(config.http.client_rate_limit, 0);
    assert!(config.http.trusted_proxies.is_empty());
    assert_eq!(config.http.shutdown_delay, Duration::ZERO);
    assert_eq!(config.http.shutdown_timeout, Duration::from_secs(20));
    assert!(config.http.tls.is_none());
    assert_eq!(config.log.format, LogFormat::Text);
    let ids: Vec<_> = config.keys.token_keys.iter().map(|key| &key.id).collect();
    assert_eq!(ids, ["k2", "k1"]);
    assert_eq!(config.keys.token_keys[0].key.expose_secret(), &[2; 32]);
    assert_eq!(config.keys.fingerprint_key.expose_secret(), &[3; 32]);
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let source = Source::of_environment([
        ("UPSTREAM_TIMEOUT", "abc"),
        ("DATABASE_MAX_CONNECTIONS", "many"),
        ("LISTEN_ADDR", ":8080"),
        ("LOG_FORMAT", "xml"),
        ("UPSTREAM_API_KEY", "a:b"),
        ("NO_SUCH_SETTING", "is no mistake"),
    ])
    .with_dotenv(b"this is no line\nTLS_CERT=/nonexistent\n");
    let error = Config::load(&source).unwrap_err();
    assert_eq!(
        error.to_string(),
        "\
.env: line 1 is not NAME=value (quote a value that has spaces, quotes, $ or #)
DATABASE_URL: is required (or DATABASE_URL_FILE, a path to read it from)
DATABASE_MAX_CONNECTIONS: \"many\" is not a whole number from 2 to 1000
UPSTREAM_API_KEY: must not contain a colon
UPSTREAM_API_SECRET: is required (or UPSTREAM_API_SECRET_FILE, a path to read it from)
UPSTREAM_TIMEOUT: \"abc\" is not a duration like 500ms, 30s or 7d
TOKEN_KEYS: is required (or TOKEN_KEYS_FILE, a path to read it from)
FINGERPRINT_KEY: is required (or FINGERPRINT_KEY_FILE, a path to read it from)
LISTEN_ADDR: \":8080\" is not an IP address and port like 127.0.0.1:8080 or [::]:8080
TLS_CERT: \"/nonexistent\" cannot be read: No such file or directory (os error 2)
TLS_KEY: is required where TLS_CERT is set
LOG_FORMAT: \"xml\" is neither text nor json"
    );
}
