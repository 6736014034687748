use clap::{Args, Command, FromArgMatches};
use secrecy::ExposeSecret;

use super::*;

/// Base64 of 32 bytes of value 1, 2 and 3.
const KEY_1: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const KEY_3: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

fn to_owned_pair(&(name, value): &(&str, &str)) -> (String, String) {
    (name.into(), value.into())
}

/// Returns a source with the required settings and these changes. An empty value unsets a setting.
fn build_source(changes: &[(&str, &str)]) -> Source {
    let token_keys = format!("k2:{KEY_2}, k1:{KEY_1}");
    let required = [
        (
            "DATABASE_URL",
            "postgres://app:hush@db.example:5432/tokens?sslmode=require&password=hush",
        ),
        ("UPSTREAM_API_KEY", "hush-key"),
        ("UPSTREAM_API_SECRET", "hush-secret"),
        ("TOKEN_KEYS", &token_keys),
        ("FINGERPRINT_KEY", KEY_3),
    ];
    Source::from_environment(required.iter().chain(changes).map(to_owned_pair))
}

fn load(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(build_source(changes))
}

/// Loads a configuration with exactly one problem and returns the problem.
#[track_caller]
fn load_problem(changes: &[(&str, &str)]) -> String {
    let ConfigError(problems) = load(changes).expect_err("the configuration is invalid");
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

fn parse_flags<C: CommandConfig>(arguments: &[&str]) -> Flags<C> {
    let command = Flags::<C>::augment_args(Command::new("test").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).unwrap();
    Flags::from_arg_matches(&matches).unwrap()
}

#[test]
fn secrets_are_masked() {
    let config = load(&[("READ_DATABASE_URL", "postgresql://u@standby/t?hush")]).unwrap();
    let shown = config.render_masked();
    let names = shown.lines().filter_map(|line| line.split('=').next());
    assert!(names.eq(SETTINGS.iter().map(|setting| setting.variable)));
    for line in [
        "DATABASE_URL=postgres://app:***@db.example:5432/tokens?***  # source: environment\n",
        "READ_DATABASE_URL=postgresql://u@standby/t?***  # source: environment\n",
        "TOKEN_KEYS=***  # source: environment\n",
        "TRUSTED_PROXIES=  # source: default\n",
    ] {
        assert!(shown.contains(line), "{line}{shown}");
    }
    for shown in [shown, &format!("{config:?}")] {
        assert!(!shown.contains("hush") && !shown.contains("AQEB"));
    }
}

#[test]
fn env_example_matches_the_settings_and_contains_the_defaults() {
    let rendered = render_env_example();
    let committed = include_str!("../../.env.example");
    assert!(committed == rendered, ".env.example should be:\n{rendered}");
    let is_active = |line: &&str| !line.is_empty() && !line.starts_with('#');
    let active: Vec<_> = rendered.lines().filter(is_active).collect();
    let required = SETTINGS.iter().filter(|setting| setting.default.is_none());
    let required: Vec<_> = required.map(|s| format!("{}=", s.variable)).collect();
    assert_eq!(active, required);
    let rendered = rendered.replace("\n#", "\n").replace("\n ", "\n# ");
    let copied = Config::load(build_source(&[]).with_dotenv(&rendered)).unwrap();
    let values = |config: &Config| config.render_masked().replace(".env", "default");
    assert_eq!(values(&copied), values(&load(&[]).unwrap()));
}

#[test]
fn the_docs_list_every_setting_with_its_default() {
    let docs = include_str!("../../docs/configuration.md");
    let rows: Vec<&str> = docs.lines().filter(|l| l.starts_with("| `")).collect();
    let expected = SETTINGS.iter().map(|setting| match setting.default {
        None => format!("| `{}` | required | ", setting.variable),
        Some("") => format!("| `{}` |  | ", setting.variable),
        Some(default) => format!("| `{}` | `{default}` | ", setting.variable),
    });
    for expected in expected {
        assert!(
            rows.iter().any(|row| row.starts_with(&expected)),
            "{expected}"
        );
    }
    assert_eq!(
        rows.len(),
        SETTINGS.len(),
        "a row does not belong to a setting"
    );
}

#[test]
fn flags_override_the_environment_which_overrides_dotenv_and_defaults() {
    for (flag, environment, dotenv, expected) in [
        ("", "", "", "16  # source: default"),
        ("", "", "4", "4  # source: .env"),
        ("", "5", "4", "5  # source: environment"),
        ("6", "5", "4", "6  # source: flag"),
    ] {
        let name = "DATABASE_MAX_CONNECTIONS";
        let source = build_source(&[(name, environment)]).with_dotenv(&format!("{name}={dotenv}"));
        let flags = parse_flags::<Config>(&["--database-max-connections", flag]);
        let config = flags.load(source).unwrap();
        let expected = format!("{name}={expected}\n");
        assert!(config.render_masked().contains(&expected), "{expected}");
    }
}

#[test]
fn all_problems_are_reported_at_once() {
    let invalid = [
        ("UPSTREAM_BASE_URL", "http://ivs.idenfy.com"),
        ("UPSTREAM_TIMEOUT", "abc"),
        ("DATABASE_MAX_CONNECTIONS", "many"),
        ("LISTEN_ADDR", ":8080"),
        ("LOG_FORMAT", "xml"),
        ("NO_SUCH_SETTING", "is ignored"),
    ];
    let source = Source::from_environment(invalid.iter().map(to_owned_pair))
        .with_dotenv("this line is invalid\nTLS_CERT=/nonexistent\n");
    let expected = "\
.env: line 1 must be NAME=value; quote a value with spaces, quotes, $ or #
DATABASE_URL: is required; set it, or set DATABASE_URL_FILE to the path of a file that contains it
DATABASE_MAX_CONNECTIONS: must be a whole number from 4 to 1000, not \"many\"
UPSTREAM_API_KEY: is required; set it, or set UPSTREAM_API_KEY_FILE to the path of a file that contains it
UPSTREAM_API_SECRET: is required; set it, or set UPSTREAM_API_SECRET_FILE to the path of a file that contains it
UPSTREAM_TIMEOUT: must be a duration from 100ms to 1m, such as 500ms, 30s or 7d, not \"abc\"
TOKEN_KEYS: is required; set it, or set TOKEN_KEYS_FILE to the path of a file that contains it; `token-vendor keys generate` prints a value
FINGERPRINT_KEY: is required; set it, or set FINGERPRINT_KEY_FILE to the path of a file that contains it; `openssl rand -base64 32` prints a value
LISTEN_ADDR: must be an IP address and port, such as 127.0.0.1:8080 or [::]:8080, not \":8080\"
TLS_CERT: the file \"/nonexistent\" cannot be read: No such file or directory (os error 2)
LOG_FORMAT: must be text or json, not \"xml\"
TLS_CERT: set both TLS_CERT and TLS_KEY, or neither
UPSTREAM_BASE_URL: must start with https:// (http:// is accepted only for 127.0.0.0/8, ::1 and localhost, or with UPSTREAM_ALLOW_HTTP=true)";
    assert_eq!(Config::load(source).unwrap_err().to_string(), expected);
}

#[test]
fn values_are_validated() {
    let duplicate = format!("k1:{KEY_1},k1:{KEY_2}");
    let long_id = format!("{}:{KEY_1}", "i".repeat(33));
    for (name, invalid, expected) in [
        ("UPSTREAM_MAX_ATTEMPTS", "0", "from 1 to 10"),
        ("CLEANUP_INTERVAL", "on", "`off` is also accepted"),
        ("UPSTREAM_MAX_ATTEMPTS", "11", "from 1 to 10"),
        ("CLIENT_RATE_LIMIT", "-1", "whole number"),
        ("CLIENT_RATE_LIMIT", "1.5", "whole number"),
        ("UPSTREAM_TIMEOUT", "99ms", "from 100ms to 1m"),
        ("UPSTREAM_TIMEOUT", "61s", "from 100ms to 1m"),
        ("MINT_COOLDOWN", "30", "such as 500ms"),
        ("MINT_COOLDOWN", "-1s", "such as 500ms"),
        ("UPSTREAM_ALLOW_HTTP", "yes", "true or false"),
        ("TRUSTED_PROXIES", "::1, 10.0.0.0/33", "10.0.0.0/33"),
        ("UPSTREAM_BASE_URL", "ivs.idenfy.com", "absolute"),
        ("UPSTREAM_BASE_URL", "ftp://h", "absolute"),
        (
            "UPSTREAM_BASE_URL",
            "https://h/?q=1",
            "must not have a query",
        ),
        ("UPSTREAM_BASE_URL", "https://h/#f", "must not have a query"),
        ("UPSTREAM_API_KEY", "a:b", "must not contain a colon"),
        (
            "UPSTREAM_API_SECRET",
            "a\nb",
            "must not contain control characters",
        ),
        ("UPSTREAM_BASE_URL", "https://u:hush@h", "credentials"),
        (
            "UPSTREAM_BASE_URL",
            "http://10.0.0.1",
            "must start with https",
        ),
        ("UPSTREAM_BASE_URL", "http://[::2]", "must start with https"),
        (
            "UPSTREAM_BASE_URL",
            "http://localhost.example",
            "must start",
        ),
        (
            "UPSTREAM_BASE_URL",
            "http://127.0.0.1.example",
            "must start",
        ),
        ("VERIFICATION_BASE_URL", "/verify?token=", "absolute"),
        ("DATABASE_URL", "mysql://u:hush@h/d", "postgres://"),
        ("DATABASE_URL", "u:hush@h/d", "postgres://"),
        ("DATABASE_URL", "postgres://u:1#hush@h/d", "percent-encode"),
        ("DATABASE_URL", "postgres://u:1/hush@h/d", "percent-encode"),
        ("READ_DATABASE_URL", "hush", "postgres://"),
        ("TOKEN_KEYS", KEY_1, "entry 1 must be `id:base64"),
        ("TOKEN_KEYS", "k1:hush", "entry 1 must be `id:base64"),
        ("TOKEN_KEYS", &long_id, "entry 1 must be `id:base64"),
        ("TOKEN_KEYS", &duplicate, "entry 2 repeats the id"),
        ("FINGERPRINT_KEY", "hush", "base64 of 32 bytes"),
    ] {
        let message = load_problem(&[(name, invalid)]);
        assert!(message.starts_with(name), "{message}");
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains("hush") && !message.contains("AQEB"));
    }
    for (name, valid) in [
        ("DATABASE_URL", "postgresql:///tokens?host=/run/pg"),
        ("UPSTREAM_BASE_URL", "http://127.8.9.1:8081"),
        ("UPSTREAM_BASE_URL", "http://[::1]"),
        ("UPSTREAM_BASE_URL", "HTTP://LOCALHOST"),
        ("VERIFICATION_BASE_URL", "https://h/v#token="),
        ("FINGERPRINT_KEY", KEY_3.trim_end_matches('=')),
        ("TRUSTED_PROXIES", "10.0.0.0/8, ::1,fd00::/8"),
        ("MIN_REMAINING", "1h 30m"),
    ] {
        assert!(load(&[(name, valid)]).is_ok(), "{name}={valid}");
    }
    let config = load(&[("UPSTREAM_BASE_URL", "https://h/a")]).unwrap();
    let keys = &config.keys.token_keys;
    assert_eq!([&keys[0].id, &keys[1].id], ["k2", "k1"]);
    assert_eq!(keys[0].key.expose_secret(), &[2; 32]);
    assert_eq!(config.upstream.base_url.as_str(), "https://h/a/");
}

#[test]
fn an_issuer_needs_https_and_an_audience() {
    let load = |issuer, audience| {
        load(&[
            ("AUTH_OIDC_ISSUER", issuer),
            ("AUTH_OIDC_AUDIENCE", audience),
        ])
        .map(|config| config.oidc.issuer)
        .map_err(|error| error.to_string())
    };
    // Keeps the text, which `iss` must equal.
    for issuer in [
        "https://login.example.com",
        "https://login.example.com/realms/a/",
        "http://127.0.0.1:8080",
        "http://localhost",
        "http://[::1]",
    ] {
        assert_eq!(load(issuer, "a"), Ok(Some(issuer.into())));
    }
    assert_eq!(load("", ""), Ok(None));
    let both = "AUTH_OIDC_ISSUER: set both AUTH_OIDC_ISSUER and AUTH_OIDC_AUDIENCE, or neither";
    assert_eq!(load("https://h", ""), Err(both.into()));
    assert_eq!(load("", "a"), Err(both.into()));
    for (issuer, expected) in [
        ("http://login.example.com", "must start with https://"),
        ("http://127.0.0.1.example.com", "must start with https://"),
        ("login.example.com", "absolute"),
        ("https://u:hush@h", "credentials"),
        ("https://h/?q=1", "query"),
        ("https://h/#f", "fragment"),
    ] {
        let message = load(issuer, "a").unwrap_err();
        assert!(message.starts_with("AUTH_OIDC_ISSUER: "), "{message}");
        assert!(
            message.contains(expected) && !message.contains("hush"),
            "{message}"
        );
    }
}

#[test]
fn the_shutdown_timeout_covers_the_longest_request() {
    for (upstream, shutdown, is_valid) in [
        ("8s", "10s", true),
        ("8s", "9999ms", false),
        ("18001ms", "", false),
        ("1m", "62s", true),
        ("100ms", "0s", false),
    ] {
        let changes = [
            ("UPSTREAM_TIMEOUT", upstream),
            ("SHUTDOWN_TIMEOUT", shutdown),
        ];
        if is_valid {
            load(&changes).unwrap();
        } else {
            let problem = load_problem(&changes);
            assert!(
                problem.starts_with("SHUTDOWN_TIMEOUT: must be at least UPSTREAM_TIMEOUT plus 2 s")
            );
        }
    }
}

#[test]
fn a_variable_that_resembles_a_setting_is_named_with_the_nearest_one() {
    for (name, nearest) in [
        ("UPSTREM_TIMEOUT", "UPSTREAM_TIMEOUT"),
        ("UPSTREAM_TIMOEUT", "UPSTREAM_TIMEOUT"),
        ("UPSTREAM_TIMEOUT_MS", "UPSTREAM_TIMEOUT"),
        ("upstream_timeout", "UPSTREAM_TIMEOUT"),
        ("CLEANUPINTERVAL", "CLEANUP_INTERVAL"),
        ("CLEANUP_EVERY", "CLEANUP_INTERVAL"),
        ("SHUTDOWN_TIMOUT", "SHUTDOWN_TIMEOUT"),
        ("AUDIT_RETENTION_DAYS", "AUDIT_RETENTION"),
        ("TOKENS_KEYS", "TOKEN_KEYS"),
        ("TOKEN_KEY_FILE", "TOKEN_KEYS_FILE"),
        ("LISTEN_ADDRESS", "LISTEN_ADDR"),
        ("LISTEN_ADDRS", "LISTEN_ADDR"),
        ("TLS_CERT_FILE", "TLS_CERT"),
        ("DATABASE_HOST", "DATABASE_URL"),
    ] {
        let expected = [format!(
            "{name} is not a setting and has no effect; the nearest name is {nearest}"
        )];
        assert_eq!(load(&[(name, "hush")]).unwrap().warnings(), expected);
        let source = build_source(&[]).with_dotenv(&format!("{name}=hush"));
        assert_eq!(Config::load(source).unwrap().warnings(), expected);
        assert!(load(&[(name, "")]).unwrap().warnings().is_empty(), "{name}");
    }
    for name in [
        "PATH",
        "RUST_LOG",
        "HTTPS_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "PGHOST",
        "POSTGRES_PASSWORD",
        "LISTEN_FDS",
        "LISTEN_PID",
        "CACHE_DIRECTORY",
        "LOGNAME",
        "OTEL_SERVICE_NAME",
        "OTEL_EXPORTER_OTLP_HEADERS",
        "OTEL_EXPORTER_OTLP_TIMEOUT",
        "TOKEN_VENDOR_SERVICE_HOST",
        "TOKEN_VENDOR_PORT_8080_TCP",
    ] {
        let config = load(&[(name, "1")]).unwrap();
        assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    }
}

#[test]
fn secrets_can_come_from_files() {
    let path = std::env::temp_dir().join(format!("token-vendor-{}", uuid::Uuid::new_v4()));
    let path = path.to_str().unwrap();
    let unset = ("UPSTREAM_API_KEY", "");
    let file = ("UPSTREAM_API_KEY_FILE", path);
    assert!(
        load_problem(&[unset, file]).contains("UPSTREAM_API_KEY_FILE cannot be read: No such file")
    );
    std::fs::write(path, "\r\n").unwrap();
    assert!(load_problem(&[unset, file]).ends_with("is empty"));
    std::fs::write(path, "from-file\r\n").unwrap();
    let config = load(&[unset, file]);
    std::fs::remove_file(path).unwrap();
    let config = config.unwrap();
    assert_eq!(config.upstream.api_key.expose_secret(), "from-file");
    let line = format!("UPSTREAM_API_KEY=***  # source: file {path}\n");
    assert!(config.render_masked().contains(&line));
    assert!(load_problem(&[file]).contains("UPSTREAM_API_KEY_FILE is also set"));
    assert!(load(&[("LISTEN_ADDR_FILE", "/nonexistent")]).is_ok());
}

#[test]
fn dotenv_supports_quotes_and_export_and_errors_never_quote_it() {
    let text = "# comment\nexport LOG_FORMAT=\"json\"\n\nUPSTREAM_API_SECRET='a $b #c'\n";
    let source = build_source(&[("UPSTREAM_API_SECRET", "")]);
    let config = Config::load(source.with_dotenv(text)).unwrap();
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.upstream.api_secret.expose_secret(), "a $b #c");

    let source = build_source(&[]).with_dotenv("LOG_FORMAT=json\nUPSTREAM_API_KEY='hush\n");
    let error = Config::load(source).unwrap_err().to_string();
    assert!(error.starts_with(".env: line 2 "), "{error}");
    assert!(!error.contains("hush"), "{error}");
}

#[test]
fn dev_ignores_the_environment_for_settings_that_it_sets() {
    let environment = build_source(&[
        ("DATABASE_URL_FILE", "/nonexistent"),
        ("TLS_CERT", "/nonexistent"),
        ("MIN_REMAINING", "abc"),
    ]);
    let source = environment.with_dev_values([("DATABASE_URL", "postgres://localhost".into())]);
    let ConfigError(problems) = DevConfig::load(source).unwrap_err();
    let variables = problems.iter().map(|p| p.split(':').next().unwrap());
    let expected = "UPSTREAM_API_KEY UPSTREAM_API_SECRET MIN_REMAINING TOKEN_KEYS FINGERPRINT_KEY";
    assert!(variables.eq(expected.split(' ')), "{problems:?}");
}

#[test]
fn a_command_has_flags_for_its_public_settings_only() {
    fn list_flags<C: CommandConfig>() -> Vec<String> {
        let command = Flags::<C>::augment_args(Command::new("test"));
        let longs = command.get_arguments().filter_map(|arg| arg.get_long());
        longs.map(str::to_owned).collect()
    }
    let database = ["database-max-connections", "startup-wait", "log-format"];
    assert_eq!(list_flags::<DatabaseCommandConfig>(), database);
    assert_eq!(list_flags::<LogConfig>(), ["log-format"]);
    assert!(!list_flags::<DevConfig>().contains(&"listen".into()));
    let all = list_flags::<Config>();
    assert!(all.contains(&"listen".into()) && !all.contains(&"database-url".into()));
    for (value, is_valid) in [("", true), ("=true", true), ("=false", false)] {
        let flags = parse_flags::<Config>(&[&format!("--upstream-allow-http{value}")]);
        let loaded = flags.load(build_source(&[("UPSTREAM_BASE_URL", "http://h")]));
        assert_eq!(loaded.is_ok(), is_valid, "{value}");
    }
}
