//! What is made from the table: flags, the printout, `.env.example`.

use clap::Command;

use super::*;

#[test]
fn the_printout_names_every_setting_and_no_secret() {
    let read_url = "postgresql://reader:pgword@standby/tokens?pgword&sslkey=pgword";
    let config = load(&[("READ_DATABASE_URL", read_url)]).unwrap();
    let listed = config.render_masked();
    let names: Vec<_> = listed.lines().filter_map(|l| l.split('=').next()).collect();
    let expected: Vec<_> = SETTINGS.iter().map(|setting| setting.variable).collect();
    assert_eq!(names, expected);
    for line in [
        "DATABASE_URL=postgres://app:***@db.example:5432/tokens?sslmode=require&password=***  # source: environment",
        "READ_DATABASE_URL=postgresql://reader:***@standby/tokens?***&sslkey=***  # source: environment",
        "DATABASE_MAX_CONNECTIONS=16  # source: default",
        "TOKEN_KEYS=***  # source: environment",
        "TRUSTED_PROXIES=  # not set",
    ] {
        assert!(listed.lines().any(|l| l == line), "{line}\n{listed}");
    }
    for text in [listed, format!("{config:?}")] {
        for secret in ["pgword", "upkey", "upsecret", "AQEB", "AgIC", "AwMD"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
    }
}

#[test]
fn the_committed_example_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/.env.example");
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let rendered = render_env_example();
    assert!(
        committed == rendered,
        ".env.example is not what the table of settings says, which is:\n{rendered}"
    );
}

#[test]
fn the_example_changes_nothing() {
    let copied = Config::load(&source(&[]).with_dotenv(render_env_example().as_bytes())).unwrap();
    let values = |config: &Config| {
        let listed = config.render_masked();
        let value = |l: &str| l.split("  # ").next().map(str::to_owned);
        listed.lines().filter_map(value).collect::<Vec<_>>()
    };
    assert_eq!(values(&copied), values(&load(&[]).unwrap()));
}

#[test]
fn flags_are_those_of_the_command_and_never_secrets() {
    fn names<C: CommandConfig>() -> Vec<String> {
        let command = Flags::<C>::augment_args(Command::new("test"));
        let longs = command.get_arguments().filter_map(|arg| arg.get_long());
        longs.map(str::to_owned).collect()
    }
    assert_eq!(
        names::<DatabaseCommandConfig>(),
        ["database-max-connections", "startup-wait", "log-format"]
    );
    assert_eq!(names::<LogConfig>(), ["log-format"]);
    let all = names::<Config>();
    assert!(all.contains(&"listen-addr".to_owned()));
    for secret in SETTINGS.iter().filter(|setting| setting.is_secret()) {
        let name = secret.variable.to_lowercase().replace('_', "-");
        assert!(!all.contains(&name), "{name}");
    }
    assert!(!names::<DevConfig>().contains(&"listen-addr".to_owned()));
}

#[test]
fn a_boolean_flag_needs_no_value() {
    let http = [("UPSTREAM_BASE_URL", "http://h")];
    let load = |arguments: &[&str]| flags::<Config>(arguments).load(source(&http));
    assert!(load(&["--upstream-allow-http"]).is_ok());
    assert!(load(&["--upstream-allow-http=true"]).is_ok());
    assert!(load(&["--upstream-allow-http=false"]).is_err());
}

#[test]
fn help_names_bounds_variable_and_default() {
    let command = Flags::<Config>::augment_args(Command::new("test").term_width(0));
    let help = command.clone().render_help().to_string();
    for part in [
        "--upstream-timeout <DURATION>",
        "[100ms to 1m] [env: UPSTREAM_TIMEOUT] [default: 8s]",
    ] {
        assert!(help.contains(part), "{part}\n{help}");
    }
}
