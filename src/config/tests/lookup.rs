//! Which place a value comes from.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::time::Duration;

use secrecy::ExposeSecret;

use super::*;

#[test]
fn a_flag_comes_before_the_environment_before_dotenv_before_the_default() {
    let port = |source: Source, arguments: &[&str]| {
        let config = flags::<Config>(arguments).load(source).unwrap();
        let listed = config.render_masked();
        let line = listed.lines().find(|l| l.starts_with("LISTEN_ADDR="));
        let (_, origin) = line.unwrap().split_once("# source: ").unwrap();
        (config.http.listen_addr.port(), origin.to_owned())
    };
    let dotenv = b"LISTEN_ADDR=127.0.0.1:2";
    let environment = [("LISTEN_ADDR", "127.0.0.1:3")];
    let flag = ["--listen-addr", "127.0.0.1:4"];
    assert_eq!(port(source(&[]), &[]), (8080, "default".into()));
    assert_eq!(
        port(source(&[]).with_dotenv(dotenv), &[]),
        (2, ".env".into())
    );
    assert_eq!(
        port(source(&environment).with_dotenv(dotenv), &[]),
        (3, "environment".into())
    );
    assert_eq!(
        port(source(&environment).with_dotenv(dotenv), &flag),
        (4, "flag".into())
    );
    assert_eq!(
        port(source(&[("LISTEN_ADDR", "")]).with_dotenv(dotenv), &[]),
        (2, ".env".into()),
        "empty is not set"
    );
}

#[test]
fn a_command_asks_only_for_what_it_needs() {
    let source = Source::of_environment([("DATABASE_URL", "postgres:///tokens?host=/run/pg")]);
    let config = DatabaseCommandConfig::load(&source).unwrap();
    assert_eq!(
        config.database.url.expose_secret(),
        "postgres:///tokens?host=/run/pg"
    );
    let nothing = Source::of_environment([("LOG_FORMAT", "json")]);
    let log = <LogConfig as CommandConfig>::load(&nothing).unwrap();
    assert_eq!(log.format, LogFormat::Json);
}

#[test]
fn a_secret_is_read_from_a_file() {
    let file = TempFile::new(b"from-file\r\n");
    let changes = [
        ("UPSTREAM_API_SECRET", ""),
        ("UPSTREAM_API_SECRET_FILE", file.path()),
    ];
    let config = load(&changes).unwrap();
    assert_eq!(config.upstream.api_secret.expose_secret(), "from-file");
    let line = format!("UPSTREAM_API_SECRET=***  # source: file {}\n", file.path());
    assert!(config.render_masked().contains(&line));
}

#[test]
fn a_secret_and_its_file_at_once_are_a_mistake_wherever_they_are_set() {
    let expected =
        "UPSTREAM_API_KEY: is set and UPSTREAM_API_KEY_FILE too; only one of them may be";
    assert_eq!(problem(&[("UPSTREAM_API_KEY_FILE", "/run/key")]), expected);
    let dotenv = source(&[]).with_dotenv(b"UPSTREAM_API_KEY_FILE=/run/key");
    let error = Config::load(&dotenv).unwrap_err();
    assert_eq!(error.to_string(), expected);
}

#[test]
fn a_file_that_holds_no_secret_is_a_mistake() {
    let with = |path: &str| problem(&[("UPSTREAM_API_KEY", ""), ("UPSTREAM_API_KEY_FILE", path)]);
    assert_eq!(
        with("/nonexistent"),
        "UPSTREAM_API_KEY_FILE: its file cannot be read: No such file or directory (os error 2)"
    );
    assert!(with(TempFile::new(b"\n").path()).ends_with("is empty"));
    assert!(with(TempFile::new(b"\xff").path()).ends_with("is not valid UTF-8"));
    assert!(with(TempFile::new(&[b'a'; 70_000]).path()).ends_with("is larger than 65536 bytes"));
    assert!(with("/dev/zero").ends_with("is larger than 65536 bytes"));
    assert!(with("/").contains("cannot be read"));
    assert_eq!(
        with(TempFile::new(b"a\0b").path()),
        "UPSTREAM_API_KEY: contains a NUL character"
    );
}

#[test]
fn only_secrets_have_a_file() {
    assert!(load(&[("LISTEN_ADDR_FILE", "/nonexistent")]).is_ok());
    for setting in SETTINGS {
        assert_ne!(setting.flag().is_some(), setting.file_variable().is_some());
    }
}

#[test]
fn a_value_must_be_utf_8() {
    let broken = OsString::from_vec(b"\xff\xfe".to_vec());
    let variables = required()
        .into_iter()
        .map(|(name, value)| (name, OsString::from(value)))
        .chain([
            ("LISTEN_ADDR", broken.clone()),
            ("UPSTREAM_API_KEY", broken),
        ]);
    let error = Config::load(&Source::of_environment(variables)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "UPSTREAM_API_KEY: is not valid UTF-8\nLISTEN_ADDR: is not valid UTF-8"
    );
    let error = Config::load(&source(&[]).with_dotenv(b"A=\xff")).unwrap_err();
    assert_eq!(error.to_string(), ".env: is not valid UTF-8");
}

#[test]
fn dotenv_takes_what_the_format_knows() {
    let text = "\u{feff}# comment\nexport LOG_FORMAT=\"json\"\n\nUPSTREAM_API_SECRET='a $b #c'\nLOG_FORMAT=text\n";
    let source = source(&[("UPSTREAM_API_SECRET", "")]).with_dotenv(text.as_bytes());
    let config = Config::load(&source).unwrap();
    assert_eq!(config.log.format, LogFormat::Json, "the first one counts");
    assert_eq!(config.upstream.api_secret.expose_secret(), "a $b #c");
}

#[test]
fn a_broken_dotenv_is_not_quoted() {
    let source = source(&[]).with_dotenv(b"LOG_FORMAT=json\nUPSTREAM_API_KEY='hush\n");
    let error = Config::load(&source).unwrap_err().to_string();
    assert!(error.starts_with(".env: line 2 "), "{error}");
    assert!(!error.contains("hush"), "{error}");
}

#[test]
fn dev_takes_its_own_values_from_nowhere_else() {
    let own = required()
        .into_iter()
        .chain([("LISTEN_ADDR", "127.0.0.1:9".into())]);
    let changes = [
        ("DATABASE_URL", "postgres://production/tokens"),
        ("DATABASE_URL_FILE", "/nonexistent"),
        ("READ_DATABASE_URL", "postgres://production/tokens"),
        ("TLS_CERT", "/nonexistent"),
        ("MIN_REMAINING", "5s"),
    ];
    let source = source(&changes).with_own_of_dev(own);
    let DevConfig(config) = flags::<DevConfig>(&["--log-format", "json"])
        .load(source)
        .unwrap();
    assert!(config.database.url.expose_secret().contains("db.example"));
    assert!(config.database.read_url.is_none());
    assert!(config.http.tls.is_none());
    assert_eq!(config.http.listen_addr.port(), 9);
    assert_eq!(config.vending.min_remaining, Duration::from_secs(5));
    assert_eq!(config.log.format, LogFormat::Json);
}
