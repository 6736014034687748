//! The table of settings. Flags, `.env.example`, bounds and the masked printout all come from it.

use std::time::Duration;

use Group::*;
use Kind::*;
use Presence::*;

/// One setting: an environment variable and, unless it is secret, a flag.
#[derive(Debug)]
pub struct Setting {
    /// The environment variable, such as `LISTEN_ADDR`.
    pub variable: &'static str,
    /// The part of the program that it belongs to.
    pub group: Group,
    /// What its value may be.
    pub kind: Kind,
    /// What holds where it is not set.
    pub presence: Presence,
    /// What it means, in one sentence, without bounds and default.
    pub help: &'static str,
}

/// The part of the program that a setting belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Group {
    /// Postgres.
    Database,
    /// The bank-token provider.
    Upstream,
    /// Reuse of tokens.
    Vending,
    /// Encryption and fingerprints.
    Keys,
    /// The service's own HTTP side.
    Http,
    /// Logs.
    Log,
}

/// What a setting's value may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A text with rules of its own.
    Text,
    /// A text that is never shown and never a flag.
    Secret,
    /// A URL that may hold a password: never a flag, shown without the password.
    SecretUrl,
    /// `true` or `false`.
    Boolean,
    /// A whole number from the first to the second.
    Integer(u64, u64),
    /// A duration from the first to the second.
    Span(Duration, Duration),
}

/// What holds where a setting is not set.
#[derive(Clone, Copy, Debug)]
pub enum Presence {
    /// That is a mistake.
    Required,
    /// It is simply absent.
    Optional,
    /// This value.
    Default(&'static str),
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Every setting that this version obeys, in the order in which it is shown and checked.
pub const SETTINGS: &[Setting] = &[
    Setting {
        variable: "DATABASE_URL",
        group: Database,
        kind: SecretUrl,
        presence: Required,
        help: "Postgres 15 or later, as postgres://user:password@host:5432/database.",
    },
    Setting {
        variable: "DATABASE_MAX_CONNECTIONS",
        group: Database,
        kind: Integer(2, 1000),
        presence: Default("16"),
        help: "Most connections that this process opens to the database.",
    },
    Setting {
        variable: "READ_DATABASE_URL",
        group: Database,
        kind: SecretUrl,
        presence: Optional,
        help: "A standby for audit queries, lists and exports, which may then lag.",
    },
    Setting {
        variable: "STARTUP_WAIT",
        group: Database,
        kind: Span(Duration::ZERO, Duration::from_secs(HOUR)),
        presence: Default("30s"),
        help: "How long to wait for the database at start.",
    },
    Setting {
        variable: "UPSTREAM_BASE_URL",
        group: Upstream,
        kind: Text,
        presence: Default("https://ivs.idenfy.com"),
        help: "The provider's address; http:// only for loopback addresses.",
    },
    Setting {
        variable: "UPSTREAM_ALLOW_HTTP",
        group: Upstream,
        kind: Boolean,
        presence: Default("false"),
        help: "Allow http:// to any provider address: its credentials then travel in the clear.",
    },
    Setting {
        variable: "UPSTREAM_API_KEY",
        group: Upstream,
        kind: Secret,
        presence: Required,
        help: "The provider's API key.",
    },
    Setting {
        variable: "UPSTREAM_API_SECRET",
        group: Upstream,
        kind: Secret,
        presence: Required,
        help: "The provider's API secret.",
    },
    Setting {
        variable: "UPSTREAM_TIMEOUT",
        group: Upstream,
        kind: Span(Duration::from_millis(100), Duration::from_secs(MINUTE)),
        presence: Default("8s"),
        help: "Longest time for one mint, all attempts together.",
    },
    Setting {
        variable: "UPSTREAM_MAX_ATTEMPTS",
        group: Upstream,
        kind: Integer(1, 10),
        presence: Default("3"),
        help: "Most attempts for one mint, where another one is safe.",
    },
    Setting {
        variable: "UPSTREAM_MAX_IN_FLIGHT",
        group: Upstream,
        kind: Integer(1, 10_000),
        presence: Default("64"),
        help: "Most calls to the provider at one time, for each replica.",
    },
    Setting {
        variable: "UPSTREAM_HOURLY_BUDGET",
        group: Upstream,
        kind: Integer(0, 1_000_000),
        presence: Default("9000"),
        help: "Most attempts in any rolling hour, across all replicas; 0 = no limit.",
    },
    Setting {
        variable: "MINT_COOLDOWN",
        group: Vending,
        kind: Span(Duration::ZERO, Duration::from_secs(HOUR)),
        presence: Default("1s"),
        help: "How long a combination whose mint failed repeats that answer.",
    },
    Setting {
        variable: "MIN_REMAINING",
        group: Vending,
        kind: Span(Duration::ZERO, Duration::from_secs(30 * DAY)),
        presence: Default("60s"),
        help: "A token with less life left than this, or than half the requested lifetime if that is shorter, is not handed out again.",
    },
    Setting {
        variable: "CACHE_MAX_TOKENS",
        group: Vending,
        kind: Integer(1, 100_000_000),
        presence: Default("100000"),
        help: "Most tokens kept in memory, for each replica.",
    },
    Setting {
        variable: "TOKEN_KEYS",
        group: Keys,
        kind: Secret,
        presence: Required,
        help: "Keys for tokens at rest, id:base64-of-32-bytes, comma-separated; the first one encrypts, all decrypt.",
    },
    Setting {
        variable: "FINGERPRINT_KEY",
        group: Keys,
        kind: Secret,
        presence: Required,
        help: "Base64 of 32 bytes, none of the token keys; a new one no longer recognises older tokens.",
    },
    Setting {
        variable: "LISTEN_ADDR",
        group: Http,
        kind: Text,
        presence: Default("127.0.0.1:8080"),
        help: "The address and port to serve on, such as 0.0.0.0:8080 or [::]:8080.",
    },
    Setting {
        variable: "VERIFICATION_BASE_URL",
        group: Http,
        kind: Text,
        presence: Default("https://bank-verification.ui.idenfy.com/?token="),
        help: "The end user's link up to where the token string is appended, percent-encoded.",
    },
    Setting {
        variable: "CLIENT_RATE_LIMIT",
        group: Http,
        kind: Integer(0, 1_000_000),
        presence: Default("0"),
        help: "Requests a second for each client and replica; 0 = no limit.",
    },
    Setting {
        variable: "TRUSTED_PROXIES",
        group: Http,
        kind: Text,
        presence: Optional,
        help: "CIDRs, comma-separated; only from these does X-Forwarded-For set an event's sourceIp.",
    },
    Setting {
        variable: "SHUTDOWN_DELAY",
        group: Http,
        kind: Span(Duration::ZERO, Duration::from_secs(HOUR)),
        presence: Default("0s"),
        help: "After SIGTERM, how long requests are still taken while readiness says 503 (5s suits Kubernetes).",
    },
    Setting {
        variable: "SHUTDOWN_TIMEOUT",
        group: Http,
        kind: Span(Duration::ZERO, Duration::from_secs(HOUR)),
        presence: Default("20s"),
        help: "After that delay, how long what runs has to finish.",
    },
    Setting {
        variable: "TLS_CERT",
        group: Http,
        kind: Text,
        presence: Optional,
        help: "Path of a PEM certificate chain; HTTPS is served when this and TLS_KEY are set.",
    },
    Setting {
        variable: "TLS_KEY",
        group: Http,
        kind: Text,
        presence: Optional,
        help: "Path of the PEM private key of TLS_CERT.",
    },
    Setting {
        variable: "LOG_FORMAT",
        group: Log,
        kind: Text,
        presence: Default("text"),
        help: "text or json; the level comes from RUST_LOG.",
    },
];

impl Setting {
    /// The setting of this variable, which must be in the table.
    pub(super) fn named(variable: &str) -> &'static Setting {
        SETTINGS
            .iter()
            .find(|setting| setting.variable == variable)
            .unwrap_or_else(|| panic!("{variable} is not in the table of settings"))
    }

    /// Whether it may never be a flag and never be shown in full.
    pub fn is_secret(&self) -> bool {
        matches!(self.kind, Secret | SecretUrl)
    }

    /// `listen-addr` for `LISTEN_ADDR`; none for a secret.
    pub fn flag(&self) -> Option<String> {
        (!self.is_secret()).then(|| self.variable.to_ascii_lowercase().replace('_', "-"))
    }

    /// `TOKEN_KEYS_FILE` for `TOKEN_KEYS`; only a secret has one.
    pub fn file_variable(&self) -> Option<String> {
        self.is_secret().then(|| format!("{}_FILE", self.variable))
    }

    /// The value where none is given.
    pub fn default(&self) -> Option<&'static str> {
        match self.presence {
            Default(value) => Some(value),
            Required | Optional => None,
        }
    }

    /// `100ms to 1m`, where its kind has bounds.
    pub fn bounds(&self) -> Option<String> {
        match self.kind {
            Integer(min, max) => Some(format!("{min} to {max}")),
            Span(min, max) => Some(format!("{} to {}", compact(min), compact(max))),
            Text | Secret | SecretUrl | Boolean => None,
        }
    }
}

impl Group {
    /// The heading over its settings.
    pub fn title(self) -> &'static str {
        match self {
            Database => "Database",
            Upstream => "Upstream",
            Vending => "Reuse of tokens",
            Keys => "Keys",
            Http => "HTTP",
            Log => "Logs",
        }
    }
}

/// `30d`, as the settings spell it.
pub(super) fn compact(duration: Duration) -> String {
    humantime::format_duration(duration)
        .to_string()
        .replace("days", "d")
}
