//! The command line: exit codes, error reports and output streams.

use std::net::TcpListener;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::cluster::own_folder;
use crate::support::{Answer, Process, World, http_client, program, run};

#[tokio::test(flavor = "multi_thread")]
async fn wrong_usage_exits_with_2_and_help_with_0() {
    let usage: [&[&str]; 18] = [
        &[],
        &["vend"],
        &["serve", "--nonsense"],
        &["serve", "--database-url", "postgres://localhost/x"],
        &["serve", "--read-database-url", "postgres://localhost/x"],
        &["serve", "--upstream-api-key", "k"],
        &["serve", "--upstream-api-secret", "s"],
        &["serve", "--token-keys", "k"],
        &["serve", "--fingerprint-key", "k"],
        &["migrate", "--database-url", "postgres://localhost/x"],
        &["client"],
        &["client", "create", "--name", "n"],
        &["client", "create", "--scope", "tokens:issue"],
        &["client", "create", "--name", "n", "--scope", "tokens:mint"],
        &[
            "client",
            "create",
            "--name",
            " n",
            "--scope",
            "tokens:issue",
        ],
        &["client", "disable"],
        &["sandbox", "--fail-rate", "1.5"],
        &["sandbox", "--latency", "fast"],
    ];
    for arguments in usage {
        let ended = run(arguments, &[]).await;
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{arguments:?}");
        assert!(!ended.err.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["serve", "--help"]] {
        let ended = run(arguments, &[]).await;
        assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{arguments:?}");
        assert!(ended.out.contains("token-vendor"), "{ended:?}");
    }
    let help = run(&["health", "--help"], &[]).await.out;
    let flags = help
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with('-'));
    assert_eq!(
        flags.collect::<Vec<_>>().len(),
        2,
        "--listen and --help: {help}"
    );
    let help = run(&["serve", "--help"], &[]).await.out;
    assert!(
        help.contains("--listen <") && !help.contains("--listen-addr"),
        "{help}"
    );
    for setting in token_vendor::config::SETTINGS {
        assert!(
            help.contains(setting.variable),
            "{} {help}",
            setting.variable
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_configuration_errors_are_reported_at_once_before_connecting() {
    let world = World::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let database = format!("postgres://u:pass-word@{address}/x");
    let variables = world.variables(&[
        ("DATABASE_URL", &database),
        ("UPSTREAM_BASE_URL", &format!("http://{address}")),
        ("UPSTREAM_API_SECRET", ""),
        ("UPSTREAM_TIMEOUT", "soon"),
        ("TOKEN_KEYS", "k1:c2hvcnQ="),
        ("LISTEN_ADDR", "nowhere"),
        ("TRUSTED_PROXIES", "10.0.0.0/99"),
        ("DATABASE_MAX_CONNECTIONS", "1"),
        ("LOG_FORMAT", "xml"),
    ]);
    for command in [
        &["serve"][..],
        &["serve", "--migrate"],
        &["check", "--online"],
    ] {
        let ended = run(command, &variables).await;
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{ended:?}");
        for name in [
            "UPSTREAM_API_SECRET",
            "UPSTREAM_TIMEOUT",
            "TOKEN_KEYS",
            "LISTEN_ADDR",
            "TRUSTED_PROXIES",
            "DATABASE_MAX_CONNECTIONS",
            "LOG_FORMAT",
        ] {
            assert!(
                ended.err.contains(&format!("{name}: ")),
                "{name}: {ended:?}"
            );
        }
        assert!(!ended.err.contains("c2hvcnQ"), "{ended:?}");
        assert_eq!(ended.err.lines().count(), 7, "{ended:?}");
    }
    for variable in ["DATABASE_URL", "READ_DATABASE_URL"] {
        let invalid = format!("{database}?sslmode=perhaps");
        let ended = run(&["serve"], &world.variables(&[(variable, &invalid)])).await;
        ended.refused(2, "is not a Postgres address");
        assert!(!ended.err.contains("pass-word"), "{ended:?}");
    }
    // No command connected.
    let error = listener.accept().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_can_come_from_files_and_settings_from_dotenv() {
    let world = World::new().await;
    let folder = Folder::new();
    let mut variables = world.variables(&[]);
    for (name, value) in variables.iter_mut() {
        if ["DATABASE_URL", "TOKEN_KEYS", "UPSTREAM_API_SECRET"].contains(&name.as_str()) {
            *value = folder.write(name, &format!("{value}\n"));
            name.push_str("_FILE");
        }
    }
    folder.write(".env", "UPSTREAM_TIMEOUT=4s\nLISTEN_ADDR=127.0.0.1:9\n");
    let check = program(&["check", "--online"], &variables)
        .current_dir(&folder.0)
        .output();
    let output = check.await.unwrap();
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{out}");
    assert!(out.contains("UPSTREAM_TIMEOUT=4s"), "{out}");
    assert!(
        !out.contains("LISTEN_ADDR=127.0.0.1:9"),
        "the environment overrides .env: {out}"
    );

    variables.push(("TOKEN_KEYS".into(), "k".into()));
    run(&["check"], &variables)
        .await
        .refused(2, "TOKEN_KEYS_FILE");
    let missing = [("DATABASE_URL_FILE".to_owned(), "/no/such/file".to_owned())];
    run(&["migrate"], &missing)
        .await
        .refused(2, "DATABASE_URL_FILE");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sandbox_applies_its_options() {
    let options = [
        "--listen=127.0.0.1:0",
        "--api-key=k",
        "--api-secret=s",
        "--hourly-limit=2",
        "--latency=300ms",
    ];
    let mut process = Process::start(&[&["sandbox"], &options[..]].concat(), &[]).await;
    let request_token = |base: &str, secret| {
        let request = http_client()
            .post(format!("{base}/bank/tokens/"))
            .basic_auth("k", Some(secret));
        Answer::of(
            request
                .header("content-type", "application/json")
                .body("{}"),
        )
    };
    assert_eq!(
        request_token(&process.base, "sandbox-secret")
            .await
            .unwrap()
            .status,
        401
    );
    let started = std::time::Instant::now();
    assert_eq!(request_token(&process.base, "s").await.unwrap().status, 201);
    assert!(started.elapsed().as_millis() >= 300);
    assert_eq!(request_token(&process.base, "s").await.unwrap().status, 201);
    assert_eq!(request_token(&process.base, "s").await.unwrap().status, 429);
    kill(Pid::from_raw(process.pid()), Signal::SIGTERM).unwrap();
    assert!(process.child.wait().await.unwrap().success());

    let failing = [
        "sandbox",
        "--listen=127.0.0.1:0",
        "--api-key=k",
        "--api-secret=s",
        "--fail-rate=1",
    ];
    let process = Process::start(&failing, &[]).await;
    assert_eq!(request_token(&process.base, "s").await.unwrap().status, 500);
}

/// A folder that is deleted when the test ends.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let folder = Folder(own_folder());
        std::fs::create_dir_all(&folder.0).unwrap();
        folder
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.0.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_pipe_is_no_error_unless_a_secret_or_a_failed_check_is_lost() {
    let world = World::new().await;
    let variables = world.variables(&[]);
    let run_into_closed_pipe = async |arguments: &[&str], more: &[(&str, &str)]| {
        let mut variables = variables.clone();
        variables.extend(
            more.iter()
                .map(|(name, value)| (name.to_string(), value.to_string())),
        );
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = program(arguments, &variables)
            .stdout(writer)
            .spawn()
            .unwrap();
        let output = child.wait_with_output().await.unwrap();
        (
            output.status.code(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    for arguments in [
        &["openapi"][..],
        &["completions", "bash"],
        &["keys", "generate"],
        &["seal", "keys"],
        &["check"],
        &["check", "--online"],
        &["cleanup", "--dry-run"],
        &["audit", "export", "--format", "csv"],
        &["client", "list"],
        &["client", "--help"],
    ] {
        let quiet = (Some(0), String::new());
        assert_eq!(
            run_into_closed_pipe(arguments, &[]).await,
            quiet,
            "{arguments:?}"
        );
    }
    let create = ["client", "create", "--name", "n", "--scope", "tokens:read"];
    let (code, error) = run_into_closed_pipe(&create, &[]).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("the secret of tv-"), "{error}");
    let away = [("UPSTREAM_BASE_URL", "http://127.0.0.1:1")];
    let (code, error) = run_into_closed_pipe(&["check", "--online"], &away).await;
    assert_eq!(code, Some(1), "{error}");
    assert!(error.contains("checks failed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_colour_of_wrong_usage() {
    let prefix = async |arguments: &[&str], variable: (&str, &str)| {
        let variables = [(variable.0.to_owned(), variable.1.to_owned())];
        let output = run(arguments, &variables).await;
        assert_ne!(output.code, 0, "{output:?}");
        output.err.split_once(' ').unwrap().0.to_owned()
    };
    for (variable, expected) in [
        (
            ("CLICOLOR_FORCE", "1"),
            "\u{1b}[1m\u{1b}[31merror:\u{1b}[0m",
        ),
        (("NO_COLOR", "1"), "error:"),
    ] {
        for arguments in [
            &["serve", "--unknown"][..],
            &["serve"],
            &["openapi", "more"],
        ] {
            assert_eq!(prefix(arguments, variable).await, expected, "{arguments:?}");
        }
    }
}

/// A command fails if it cannot write its result, even if its changes are committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_fails_if_its_result_cannot_be_printed() {
    let world = World::new().await;
    let variables = world.variables(&[]);
    let run_on_full_device = async |arguments: &[&str]| {
        let full = std::fs::File::create("/dev/full").unwrap();
        let child = program(arguments, &variables).stdout(full).spawn().unwrap();
        let output = child.wait_with_output().await.unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {error}");
        assert!(error.starts_with("error: "), "{arguments:?}: {error}");
        assert_eq!(error.lines().count(), 1, "{arguments:?}: {error}");
        error
    };
    for arguments in [
        &["openapi"][..],
        &["completions", "bash"],
        &["keys", "generate"],
        &["keys", "rotate"],
        &["cleanup"],
        &["check"],
        &["audit", "export"],
        &["client", "list"],
        &["client", "disable", "admin"],
    ] {
        run_on_full_device(arguments).await;
    }
    let error =
        run_on_full_device(&["client", "create", "--name", "n", "--scope", "tokens:read"]).await;
    let key = error.split(' ').find(|word| word.starts_with("tv-"));
    let rotated = run(&["client", "rotate", key.unwrap()], &variables).await;
    assert_eq!(rotated.code, 0, "{rotated:?}");
    let error = run_on_full_device(&["client", "rotate", key.unwrap()]).await;
    assert!(error.contains("run `token-vendor client rotate"), "{error}");
}
