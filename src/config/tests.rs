use clap::{Args, Command, FromArgMatches};
use secrecy::ExposeSecret;

use super::*;

/// 32 bytes of 1, of 2, of 3.
const KEY_1: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";
const KEY_3: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

fn pair(&(name, value): &(&str, &str)) -> (String, String) {
    (name.into(), value.into())
}

/// What is required, with these changes; an empty value unsets.
fn source(changes: &[(&str, &str)]) -> Source {
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
    Source::of_environment(required.iter().chain(changes).map(pair))
}

fn load(changes: &[(&str, &str)]) -> Result<Config, ConfigError> {
    Config::load(source(changes))
}

/// The only mistake in this configuration.
#[track_caller]
fn problem(changes: &[(&str, &str)]) -> String {
    let ConfigError(problems) = load(changes).expect_err("a mistake");
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems[0].clone()
}

fn flags<C: CommandConfig>(arguments: &[&str]) -> Flags<C> {
    let command = Flags::<C>::augment_args(Command::new("test").no_binary_name(true));
    let matches = command.try_get_matches_from(arguments).unwrap();
    Flags::from_arg_matches(&matches).unwrap()
}

#[test]
fn no_secret_is_shown() {
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
fn the_committed_example_is_what_the_table_says_and_changes_nothing() {
    let rendered = render_env_example();
    let committed = include_str!("../../.env.example");
    assert!(committed == rendered, "it should be:\n{rendered}");
    let copied = Config::load(source(&[]).with_dotenv(&rendered)).unwrap();
    let values = |config: &Config| config.render_masked().replace(".env", "default");
    assert_eq!(values(&copied), values(&load(&[]).unwrap()));
}

#[test]
fn the_docs_have_a_row_for_every_setting_with_its_default() {
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
    assert_eq!(rows.len(), SETTINGS.len(), "a row of no setting");
}

#[test]
fn a_flag_comes_before_the_environment_before_dotenv_before_the_default() {
    for (flag, environment, dotenv, expected) in [
        ("", "", "", "16  # source: default"),
        ("", "", "4", "4  # source: .env"),
        ("", "3", "4", "3  # source: environment"),
        ("2", "3", "4", "2  # source: flag"),
    ] {
        let name = "DATABASE_MAX_CONNECTIONS";
        let source = source(&[(name, environment)]).with_dotenv(&format!("{name}={dotenv}"));
        let flags = flags::<Config>(&["--database-max-connections", flag]);
        let config = flags.load(source).unwrap();
        let expected = format!("{name}={expected}\n");
        assert!(config.render_masked().contains(&expected), "{expected}");
    }
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let wrong = [
        ("UPSTREAM_BASE_URL", "http://ivs.idenfy.com"),
        ("UPSTREAM_TIMEOUT", "abc"),
        ("DATABASE_MAX_CONNECTIONS", "many"),
        ("LISTEN_ADDR", ":8080"),
        ("LOG_FORMAT", "xml"),
        ("NO_SUCH_SETTING", "is no mistake"),
    ];
    let source = Source::of_environment(wrong.iter().map(pair))
        .with_dotenv("this is no line\nTLS_CERT=/nonexistent\n");
    let expected = "\
.env: line 1 is not NAME=value (quote a value that has spaces, quotes, $ or #)
DATABASE_URL: is required (or DATABASE_URL_FILE, a path to read it from)
DATABASE_MAX_CONNECTIONS: \"many\" is not a whole number from 2 to 1000
UPSTREAM_API_KEY: is required (or UPSTREAM_API_KEY_FILE, a path to read it from)
UPSTREAM_API_SECRET: is required (or UPSTREAM_API_SECRET_FILE, a path to read it from)
UPSTREAM_TIMEOUT: \"abc\" is not a duration like 500ms, 30s or 7d, from 100ms to 1m
TOKEN_KEYS: is required (or TOKEN_KEYS_FILE, a path to read it from)
FINGERPRINT_KEY: is required (or FINGERPRINT_KEY_FILE, a path to read it from)
LISTEN_ADDR: \":8080\" is not an IP address and port like 127.0.0.1:8080 or [::]:8080
TLS_CERT: \"/nonexistent\" cannot be read: No such file or directory (os error 2)
LOG_FORMAT: \"xml\" is not text or json
TLS_CERT: goes with TLS_KEY: set both or neither
UPSTREAM_BASE_URL: must be https:// (http:// only for 127.0.0.0/8, ::1 and localhost, or with UPSTREAM_ALLOW_HTTP=true)";
    assert_eq!(Config::load(source).unwrap_err().to_string(), expected);
}

#[test]
fn values_have_a_shape() {
    let twice = format!("k1:{KEY_1},k1:{KEY_2}");
    let long_id = format!("{}:{KEY_1}", "i".repeat(33));
    for (name, wrong, why) in [
        ("UPSTREAM_MAX_ATTEMPTS", "0", "from 1 to 10"),
        ("UPSTREAM_MAX_ATTEMPTS", "11", "from 1 to 10"),
        ("CLIENT_RATE_LIMIT", "-1", "whole number"),
        ("CLIENT_RATE_LIMIT", "1.5", "whole number"),
        ("UPSTREAM_TIMEOUT", "99ms", "from 100ms to 1m"),
        ("UPSTREAM_TIMEOUT", "61s", "from 100ms to 1m"),
        ("MINT_COOLDOWN", "30", "like 500ms"),
        ("MINT_COOLDOWN", "-1s", "like 500ms"),
        ("UPSTREAM_ALLOW_HTTP", "yes", "true or false"),
        ("TRUSTED_PROXIES", "::1, 10.0.0.0/33", "10.0.0.0/33"),
        ("UPSTREAM_BASE_URL", "ivs.idenfy.com", "absolute"),
        ("UPSTREAM_BASE_URL", "ftp://h", "absolute"),
        ("UPSTREAM_BASE_URL", "https://h/?q=1", "no query"),
        ("UPSTREAM_BASE_URL", "https://h/#f", "no query"),
        ("UPSTREAM_API_KEY", "a:b", "no colon"),
        ("UPSTREAM_API_SECRET", "a\nb", "no control characters"),
        ("UPSTREAM_BASE_URL", "https://u:hush@h", "credentials"),
        ("UPSTREAM_BASE_URL", "http://10.0.0.1", "must be https"),
        ("UPSTREAM_BASE_URL", "http://[::2]", "must be https"),
        ("UPSTREAM_BASE_URL", "http://localhost.example", "must be"),
        ("UPSTREAM_BASE_URL", "http://127.0.0.1.example", "must be"),
        ("VERIFICATION_BASE_URL", "/verify?token=", "absolute"),
        ("DATABASE_URL", "mysql://u:hush@h/d", "postgres://"),
        ("DATABASE_URL", "u:hush@h/d", "postgres://"),
        ("DATABASE_URL", "postgres://u:1#hush@h/d", "percent-encode"),
        ("DATABASE_URL", "postgres://u:1/hush@h/d", "percent-encode"),
        ("READ_DATABASE_URL", "hush", "postgres://"),
        ("TOKEN_KEYS", KEY_1, "entry 1 is not id:base64"),
        ("TOKEN_KEYS", "k1:hush", "entry 1 is not id:base64"),
        ("TOKEN_KEYS", &long_id, "entry 1 is not id:base64"),
        ("TOKEN_KEYS", &twice, "entry 2 has the id of an earlier one"),
        ("FINGERPRINT_KEY", "hush", "base64 of 32 bytes"),
    ] {
        let message = problem(&[(name, wrong)]);
        assert!(message.starts_with(name), "{message}");
        assert!(message.contains(why), "{message}");
        assert!(!message.contains("hush") && !message.contains("AQEB"));
    }
    for (name, right) in [
        ("DATABASE_URL", "postgresql:///tokens?host=/run/pg"),
        ("UPSTREAM_BASE_URL", "http://127.8.9.1:8081"),
        ("UPSTREAM_BASE_URL", "http://[::1]"),
        ("UPSTREAM_BASE_URL", "HTTP://LOCALHOST"),
        ("VERIFICATION_BASE_URL", "https://h/v#token="),
        ("FINGERPRINT_KEY", KEY_3.trim_end_matches('=')),
        ("TRUSTED_PROXIES", "10.0.0.0/8, ::1,fd00::/8"),
        ("MIN_REMAINING", "1h 30m"),
    ] {
        assert!(load(&[(name, right)]).is_ok(), "{name}={right}");
    }
    let config = load(&[("UPSTREAM_BASE_URL", "https://h/a")]).unwrap();
    let keys = &config.keys.token_keys;
    assert_eq!([&keys[0].id, &keys[1].id], ["k2", "k1"]);
    assert_eq!(keys[0].key.expose_secret(), &[2; 32]);
    assert_eq!(config.upstream.base_url.as_str(), "https://h/a/");
}

#[test]
fn a_secret_is_read_from_a_file() {
    let path = std::env::temp_dir().join(format!("token-vendor-{}", uuid::Uuid::new_v4()));
    let path = path.to_str().unwrap();
    let unset = ("UPSTREAM_API_KEY", "");
    let file = ("UPSTREAM_API_KEY_FILE", path);
    assert!(problem(&[unset, file]).contains("UPSTREAM_API_KEY_FILE: No such file"));
    std::fs::write(path, "\r\n").unwrap();
    assert!(problem(&[unset, file]).ends_with("is empty"));
    std::fs::write(path, "from-file\r\n").unwrap();
    let config = load(&[unset, file]);
    std::fs::remove_file(path).unwrap();
    let config = config.unwrap();
    assert_eq!(config.upstream.api_key.expose_secret(), "from-file");
    let line = format!("UPSTREAM_API_KEY=***  # source: file {path}\n");
    assert!(config.render_masked().contains(&line));
    assert!(problem(&[file]).contains("is set and UPSTREAM_API_KEY_FILE too"));
    assert!(load(&[("LISTEN_ADDR_FILE", "/nonexistent")]).is_ok());
}

#[test]
fn dotenv_takes_what_the_format_knows_and_is_not_quoted() {
    let text = "# comment\nexport LOG_FORMAT=\"json\"\n\nUPSTREAM_API_SECRET='a $b #c'\n";
    let source = source(&[("UPSTREAM_API_SECRET", "")]);
    let config = Config::load(source.with_dotenv(text)).unwrap();
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.upstream.api_secret.expose_secret(), "a $b #c");

    let source = self::source(&[]).with_dotenv("LOG_FORMAT=json\nUPSTREAM_API_KEY='hush\n");
    let error = Config::load(source).unwrap_err().to_string();
    assert!(error.starts_with(".env: line 2 "), "{error}");
    assert!(!error.contains("hush"), "{error}");
}

#[test]
fn dev_takes_its_own_values_from_nowhere_else() {
    let environment = source(&[
        ("DATABASE_URL_FILE", "/nonexistent"),
        ("TLS_CERT", "/nonexistent"),
        ("MIN_REMAINING", "abc"),
    ]);
    let source = environment.with_own_of_dev([("DATABASE_URL", "postgres://localhost".into())]);
    let ConfigError(problems) = DevConfig::load(source).unwrap_err();
    let wrong = problems.iter().map(|p| p.split(':').next().unwrap());
    let expected = "UPSTREAM_API_KEY UPSTREAM_API_SECRET MIN_REMAINING TOKEN_KEYS FINGERPRINT_KEY";
    assert!(wrong.eq(expected.split(' ')), "{problems:?}");
}

#[test]
fn a_command_has_the_flags_of_what_it_needs_and_never_secrets() {
    fn names<C: CommandConfig>() -> Vec<String> {
        let command = Flags::<C>::augment_args(Command::new("test"));
        let longs = command.get_arguments().filter_map(|arg| arg.get_long());
        longs.map(str::to_owned).collect()
    }
    let database = ["database-max-connections", "startup-wait", "log-format"];
    assert_eq!(names::<DatabaseCommandConfig>(), database);
    assert_eq!(names::<LogConfig>(), ["log-format"]);
    assert!(!names::<DevConfig>().contains(&"listen-addr".into()));
    let all = names::<Config>();
    assert!(all.contains(&"listen-addr".into()) && !all.contains(&"database-url".into()));
    for (value, is_fine) in [("", true), ("=true", true), ("=false", false)] {
        let flags = flags::<Config>(&[&format!("--upstream-allow-http{value}")]);
        let loaded = flags.load(self::source(&[("UPSTREAM_BASE_URL", "http://h")]));
        assert_eq!(loaded.is_ok(), is_fine, "{value}");
    }
}
