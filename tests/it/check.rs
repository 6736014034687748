//! `check`: the masked configuration, the failures that it finds and their hints.

use serde_json::json;
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::support::cluster::{create_empty_database, own_folder};
use crate::support::{Ended, World, run};

#[tokio::test(flavor = "multi_thread")]
async fn check_prints_the_configuration_without_its_secrets() {
    let world = World::new().await;
    let database = "postgres://someone:pass-word@127.0.0.1:1/x?sslpassword=ssl-word";
    let variables = world.variables(&[("DATABASE_URL", database), ("UPSTREAM_TIMEOUT", "3s")]);
    let ended = run(&["check", "--listen-addr", "127.0.0.1:7"], &variables).await;
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{ended:?}");
    for shown in [
        "UPSTREAM_TIMEOUT=3s",
        "LISTEN_ADDR=127.0.0.1:7",
        "MINT_COOLDOWN=1s",
        "someone",
    ] {
        assert!(ended.out.contains(shown), "{shown}: {ended:?}");
    }
    let keys = [
        "TOKEN_KEYS",
        "FINGERPRINT_KEY",
        "UPSTREAM_API_KEY",
        "UPSTREAM_API_SECRET",
    ];
    let mut hidden = vec!["pass-word", "ssl-word"];
    for (name, value) in &variables {
        if keys.contains(&name.as_str()) {
            hidden.push(value.rsplit(':').next().unwrap());
        }
    }
    assert_eq!(hidden.len(), 6);
    for secret in hidden {
        assert!(!ended.out.contains(secret), "{secret}: {ended:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_misspelled_variable_is_a_warning_of_check_and_of_startup() {
    let world = World::new().await;
    let variables = world.variables(&[("UPSTREM_TIMEOUT", "1s")]);
    let warning =
        "UPSTREM_TIMEOUT is not a setting and has no effect; the nearest name is UPSTREAM_TIMEOUT";
    let ended = run(&["check"], &variables).await;
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{ended:?}");
    let line = format!("settings: note, {warning}");
    assert!(
        ended.out.lines().any(|printed| printed == line),
        "{ended:?}"
    );

    let unreachable = [
        ("DATABASE_URL", "postgres://u@127.0.0.1:1/x"),
        ("STARTUP_WAIT", "0s"),
    ];
    let unreachable = unreachable.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let ended = run(&["serve"], &[variables, unreachable.into()].concat()).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert_eq!(ended.err.matches(warning).count(), 1, "{ended:?}");
}

/// Base64 of 32 bytes of value 3, a key that no test database uses.
const OTHER_KEY: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

/// Asserts that the command reported this failure, followed by this hint.
#[track_caller]
fn assert_failure(ended: &Ended, part: &str, reason: &str, hint: &str) {
    assert_eq!(ended.code, 1, "{ended:?}");
    let failure = format!("{part}: FAILED, ");
    let mut lines = ended
        .out
        .lines()
        .skip_while(|line| !line.starts_with(&failure));
    let line = lines.next().unwrap_or_else(|| panic!("{part}: {ended:?}"));
    assert!(line.contains(reason), "{reason}: {ended:?}");
    let next = lines.next().unwrap();
    assert!(
        next.starts_with("    ") && next.contains(hint),
        "{hint}: {ended:?}"
    );
    let summary = ended.err.trim_end();
    assert!(
        summary.starts_with("error: 1 of ") && summary.ends_with(" checks failed"),
        "{ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_on_another_machine_should_be_verified() {
    let world = World::new().await;
    let note = |variable: &str| format!("settings: note, {variable} has no sslmode=verify-full");
    let cases = [
        ("postgres://u@db.example.com/d", true),
        ("postgres://u@db.example.com/d?sslmode=require", true),
        ("postgres://u@db.example.com/d?sslmode=verify-full", false),
        ("postgres://u@127.0.0.1/d", false),
        ("postgres:///d?host=/run/postgresql", false),
    ];
    for (url, is_noted) in cases {
        for variable in ["DATABASE_URL", "READ_DATABASE_URL"] {
            let ended = run(&["check"], &world.variables(&[(variable, url)])).await;
            assert_eq!(ended.code, 0, "{ended:?}");
            assert_eq!(
                ended.out.contains(&note(variable)),
                is_noted,
                "{url} {ended:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn online_checks_pass_on_a_working_installation() {
    let world = World::new().await;
    let replica = world.replica().await;
    assert_eq!(replica.issue(json!({"userId": "u"})).await.status, 201);
    world.sandbox.set_default(Upstream::status(500));
    let calls = world.sandbox.minted();
    let standby = [("READ_DATABASE_URL", world.url.as_str())];
    let checked = run(&["check", "--online"], &world.variables(&standby)).await;
    assert_eq!((checked.code, checked.err.as_str()), (0, ""), "{checked:?}");
    for part in [
        "database: ok, ",
        "audit: ok, ",
        "keys: ok, ",
        "read database: ok, ",
        "upstream: ok, ",
    ] {
        assert!(checked.out.contains(part), "{part}: {checked:?}");
    }
    assert!(!checked.out.contains('\x1b'), "coloured: {checked:?}");
    assert_eq!(world.sandbox.minted(), calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn online_checks_report_each_failure_with_a_hint() {
    let world = World::new().await;
    let replica = world.replica().await;
    assert_eq!(replica.issue(json!({"userId": "u"})).await.status, 201);
    let unreachable = "postgres://127.0.0.1:1/x";
    let other_role = format!("{}&user=no-such-role", world.url);
    let other_database = world
        .url
        .replacen(&database_name(&world.url), "no_such_database", 1);
    let empty = create_empty_database().await;
    let (other_id, other_bytes) = (format!("k2:{OTHER_KEY}"), format!("k1:{OTHER_KEY}"));
    for (setting, part, reason, hint) in [
        (
            ("DATABASE_URL", unreachable),
            "database",
            "refused",
            "check that Postgres runs",
        ),
        (
            ("READ_DATABASE_URL", unreachable),
            "read database",
            "refused",
            "check that Postgres runs",
        ),
        (
            ("DATABASE_URL", &*other_role),
            "database",
            "no-such-role",
            "role and password",
        ),
        (
            ("DATABASE_URL", &*other_database),
            "database",
            "no_such_database",
            "create the database",
        ),
        (
            ("DATABASE_URL", &*empty),
            "database",
            "token-vendor migrate",
            "newer schema",
        ),
        (
            ("TOKEN_KEYS", &*other_id),
            "keys",
            "\"k1\", which is not in TOKEN_KEYS",
            "rotation.md",
        ),
        (
            ("TOKEN_KEYS", &*other_bytes),
            "keys",
            "fails authentication",
            "rotation.md",
        ),
        (
            ("FINGERPRINT_KEY", OTHER_KEY),
            "keys",
            "FINGERPRINT_KEY is not the key of the stored tokens",
            "rotation.md",
        ),
        (
            ("UPSTREAM_BASE_URL", "http://127.0.0.1:1"),
            "upstream",
            "cannot be reached",
            "firewall",
        ),
    ] {
        // `check` does not wait for STARTUP_WAIT.
        let variables = world.variables(&[setting, ("STARTUP_WAIT", "1h")]);
        let ended = run(&["check", "--online"], &variables).await;
        assert_failure(&ended, part, reason, hint);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_does_not_match_its_key_is_rejected_before_start() {
    let world = World::new().await;
    let folder = own_folder();
    std::fs::create_dir_all(&folder).unwrap();
    let [certified, other] =
        [(); 2].map(|()| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
    let (cert, key, other_key) = (
        folder.join("cert"),
        folder.join("key"),
        folder.join("other"),
    );
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    std::fs::write(&other_key, other.signing_key.serialize_pem()).unwrap();
    let run_command = async |command, key: &std::path::Path| {
        let files = [
            ("TLS_CERT", cert.to_str().unwrap()),
            ("TLS_KEY", key.to_str().unwrap()),
        ];
        run(&[command], &world.variables(&files)).await
    };
    let good = run_command("check", &key).await;
    assert_eq!(good.code, 0, "{good:?}");
    let mismatch = "TLS_CERT: the first certificate in the file does not match TLS_KEY";
    for command in ["check", "serve"] {
        run_command(command, &other_key).await.refused(2, mismatch);
        run_command(command, &cert)
            .await
            .refused(2, "TLS_KEY: the file is not a PEM private key");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// Returns the database name in a database URL.
fn database_name(url: &str) -> String {
    let url = reqwest::Url::parse(url).unwrap();
    url.path().trim_start_matches('/').to_owned()
}
