//! `check`: what it prints, what it finds, and that it says what to do.

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

/// 32 bytes of 3, which no world uses.
const OTHER_KEY: &str = "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=";

/// Checks that it found this fault, said this of it, and this of how to mend it.
#[track_caller]
fn found(ended: &Ended, part: &str, told: &str, mend: &str) {
    assert_eq!(ended.code, 1, "{ended:?}");
    let failure = format!("{part}: FAILED, ");
    let mut lines = ended
        .out
        .lines()
        .skip_while(|line| !line.starts_with(&failure));
    let line = lines.next().unwrap_or_else(|| panic!("{part}: {ended:?}"));
    assert!(line.contains(told), "{told}: {ended:?}");
    let next = lines.next().unwrap();
    assert!(
        next.starts_with("    ") && next.contains(mend),
        "{mend}: {ended:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn online_it_says_what_is_well() {
    let world = World::new().await;
    let replica = world.replica().await;
    assert_eq!(replica.issue(json!({"userId": "u"})).await.status, 201);
    world.sandbox.set_default(Upstream::status(500));
    let calls = world.sandbox.minted();
    let standby = [("READ_DATABASE_URL", world.url.as_str())];
    let good = run(&["check", "--online"], &world.variables(&standby)).await;
    assert_eq!((good.code, good.err.as_str()), (0, ""), "{good:?}");
    for part in [
        "database: ok, ",
        "audit: ok, ",
        "keys: ok, ",
        "read database: ok, ",
        "upstream: ok, ",
    ] {
        assert!(good.out.contains(part), "{part}: {good:?}");
    }
    assert!(!good.out.contains('\x1b'), "coloured: {good:?}");
    assert_eq!(world.sandbox.minted(), calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn online_it_says_what_is_wrong_and_what_mends_it() {
    let world = World::new().await;
    let replica = world.replica().await;
    assert_eq!(replica.issue(json!({"userId": "u"})).await.status, 201);
    let nowhere = "postgres://127.0.0.1:1/x";
    let stranger = format!("{}&user=no-such-role", world.url);
    let other_database = world
        .url
        .replacen(&name_of(&world.url), "no_such_database", 1);
    let empty = create_empty_database().await;
    let (other_id, other_bytes) = (format!("k2:{OTHER_KEY}"), format!("k1:{OTHER_KEY}"));
    for (setting, part, told, mend) in [
        (
            ("DATABASE_URL", nowhere),
            "database",
            "refused",
            "check that Postgres runs",
        ),
        (
            ("READ_DATABASE_URL", nowhere),
            "read database",
            "refused",
            "check that Postgres runs",
        ),
        (
            ("DATABASE_URL", &*stranger),
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
            "FINGERPRINT_KEY was changed",
            "rotation.md",
        ),
        (
            ("UPSTREAM_BASE_URL", "http://127.0.0.1:1"),
            "upstream",
            "cannot be reached",
            "firewall",
        ),
    ] {
        // It does not wait for what is not there.
        let variables = world.variables(&[setting, ("STARTUP_WAIT", "1h")]);
        found(
            &run(&["check", "--online"], &variables).await,
            part,
            told,
            mend,
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_of_another_key_is_found_before_serving() {
    let world = World::new().await;
    let folder = own_folder();
    std::fs::create_dir_all(&folder).unwrap();
    let [one, other] =
        [(); 2].map(|()| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap());
    let (cert, key, other_key) = (
        folder.join("cert"),
        folder.join("key"),
        folder.join("other"),
    );
    std::fs::write(&cert, one.cert.pem()).unwrap();
    std::fs::write(&key, one.signing_key.serialize_pem()).unwrap();
    std::fs::write(&other_key, other.signing_key.serialize_pem()).unwrap();
    let start = async |command, key: &std::path::Path| {
        let files = [
            ("TLS_CERT", cert.to_str().unwrap()),
            ("TLS_KEY", key.to_str().unwrap()),
        ];
        run(&[command], &world.variables(&files)).await
    };
    let good = start("check", &key).await;
    assert_eq!(good.code, 0, "{good:?}");
    let other = "TLS_CERT: its first certificate is not that of TLS_KEY";
    for command in ["check", "serve"] {
        start(command, &other_key).await.refused(2, other);
        let no_key = start(command, &cert).await;
        no_key.refused(
            2,
            "TLS_CERT: goes with TLS_KEY, which is no PEM file of a private key",
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// The name in the path of a database's URL.
fn name_of(url: &str) -> String {
    let url = reqwest::Url::parse(url).unwrap();
    url.path().trim_start_matches('/').to_owned()
}
