//! `client update`, the settings of `client create`, and `client list`.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;

use futures_util::future::join_all;
use nix::pty::openpty;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use crate::support::{ADMIN, Ended, World, program, run};

async fn client(world: &World, arguments: &[&str]) -> Ended {
    run(&[&["client"], arguments].concat(), &world.variables(&[])).await
}

/// Creates a client with this name and returns its key.
async fn create(world: &World, name: &str, options: &[&str]) -> String {
    let arguments = [
        &["create", "--name", name, "--scope", "tokens:read"],
        options,
    ]
    .concat();
    let ended = client(world, &arguments).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let created: Value = serde_json::from_str(&ended.out).unwrap();
    created["apiKey"].as_str().unwrap().to_owned()
}

/// Runs `client update` and returns what it printed.
async fn update(world: &World, key: &str, options: &[&str]) -> Value {
    let ended = client(world, &[&["update", key], options].concat()).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str(&ended.out).unwrap()
}

async fn list(world: &World) -> Vec<Value> {
    let ended = client(world, &["list"]).await;
    serde_json::from_str(&ended.out).unwrap()
}

/// Returns the details of the client's events of this kind, oldest first.
async fn details(world: &World, kind: &str, key: &str) -> Vec<Value> {
    sqlx::query_scalar(
        "SELECT detail FROM audit_events WHERE kind = $1 AND detail->>'apiKey' = $2 ORDER BY occurred_at",
    )
    .bind(kind)
    .bind(key)
    .fetch_all(&world.db)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_setting_can_be_changed_and_removed_and_each_change_is_an_event() {
    let world = World::new().await;
    let options = [
        "--mints-per-hour",
        "5",
        "--allow-from",
        "10.0.0.0/8,192.0.2.7",
    ];
    let key = create(&world, "shop", &options).await;
    let created = &details(&world, "client.created", &key).await[0];
    let after = json!({
        "name": "shop", "scopes": ["tokens:read"], "mintsPerHour": 5, "requestsPerSecond": null, "oidcSubject": null,
        "allowFrom": ["10.0.0.0/8", "192.0.2.7/32"], "expiresAt": null,
    });
    assert_eq!(created["after"], after);
    assert!(created["actor"].as_str().unwrap().starts_with("cli:"));

    let changes: [(&[&str], &str, Value); 10] = [
        (&["--name", "Web shop"], "name", json!("Web shop")),
        (
            &[
                "--scope",
                "tokens:issue,tokens:read",
                "--scope",
                "audit:read",
            ],
            "scopes",
            json!(["tokens:issue", "tokens:read", "audit:read"]),
        ),
        (&["--mints-per-hour", "6"], "mintsPerHour", json!(6)),
        (&["--mints-per-hour", "none"], "mintsPerHour", Value::Null),
        (
            &["--requests-per-second", "7"],
            "requestsPerSecond",
            json!(7),
        ),
        (
            &["--requests-per-second", "none"],
            "requestsPerSecond",
            Value::Null,
        ),
        (
            &["--allow-from", "fd00::/8", "--allow-from", "10.1.0.0/16"],
            "allowFrom",
            json!(["fd00::/8", "10.1.0.0/16"]),
        ),
        (&["--allow-from", "none"], "allowFrom", Value::Null),
        (&["--expires", "90d"], "expiresAt", Value::Null),
        (&["--expires", "none"], "expiresAt", Value::Null),
    ];
    let mut expected = after;
    let mut expires_at = Value::Null;
    for (count, (options, member, value)) in changes.into_iter().enumerate() {
        let printed = update(&world, &key, options).await;
        let before = expected.clone();
        expected[member] = value;
        if options[1] == "90d" {
            expires_at = printed["expiresAt"].clone();
            expected[member] = expires_at.clone();
        }
        let event = &details(&world, "client.updated", &key).await[count];
        assert_eq!((&event["before"], &event["after"]), (&before, &expected));
        assert!(event["actor"].as_str().unwrap().starts_with("cli:"));
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(printed[name], *value, "{name}");
        }
    }
    let expires_at: chrono::DateTime<chrono::Utc> = expires_at.as_str().unwrap().parse().unwrap();
    let days = (expires_at - chrono::Utc::now()).num_hours();
    assert!((90 * 24 - 1..=90 * 24).contains(&days), "{expires_at}");

    // The same values again, and nothing at all.
    update(&world, &key, &["--name", "Web shop", "--expires", "none"]).await;
    update(&world, &key, &[]).await;
    assert_eq!(details(&world, "client.updated", &key).await.len(), 10);
    let secrets = "SELECT count(*) FROM audit_events, clients
                   WHERE detail::text LIKE '%' || encode(secret_sha256, 'hex') || '%' OR detail::text ILIKE '%secret%'";
    assert_eq!(world.count(secrets).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_value_changes_nothing_and_exits_with_2() {
    let world = World::new().await;
    let key = create(&world, "shop", &[]).await;
    let before = list(&world).await;
    for (options, reason) in [
        (&["--name", ""][..], "must have 1 to 100 characters"),
        (&["--name", " x"], "white space"),
        (&["--scope", "tokens:read,tokens:steal"], "tokens:steal"),
        (
            &["--mints-per-hour", "0"],
            "must be 1 to 2147483647 or none",
        ),
        (&["--mints-per-hour", "-1"], ""),
        (
            &["--requests-per-second", "2147483648"],
            "must be 1 to 2147483647 or none",
        ),
        (
            &["--allow-from", "10.0.0.1/8"],
            "must have no host bits: write 10.0.0.0/8 instead of 10.0.0.1/8",
        ),
        (&["--allow-from", "10.0.0.0/33"], "must be a CIDR"),
        (&["--allow-from", "example.com"], "must be a CIDR"),
        (&["--allow-from", "none,10.0.0.0/8"], "cannot be combined"),
        (&["--expires", "0s"], "must be 1s to 3650d"),
        (&["--expires", "3651d"], "must be 1s to 3650d"),
        (&["--expires", "soon"], ""),
        (
            &["--name", "fine", "--expires", "1d", "--mints-per-hour", "x"],
            "or none",
        ),
    ] {
        for command in [
            &["update", &*key][..],
            &["create", "--name", "new", "--scope", "tokens:read"],
        ] {
            // `create` has its own name.
            let options = if command[0] == "create" && options[0] == "--name" {
                &["--scope", "?"]
            } else {
                options
            };
            let reason = if options[1] == "?" { "" } else { reason };
            let ended = client(&world, &[command, options].concat()).await;
            assert_eq!(
                (ended.code, ended.out.as_str()),
                (2, ""),
                "{options:?}: {ended:?}"
            );
            assert!(ended.err.contains(reason), "{reason:?} in {ended:?}");
        }
    }
    client(&world, &["update", "nobody", "--name", "x"])
        .await
        .refused(1, "no client has the API key \"nobody\"");
    assert_eq!(list(&world).await, before);
    client(&world, &["disable", &key]).await;
    client(&world, &["update", &key, "--name", "x"])
        .await
        .refused(1, "is disabled");
    assert!(details(&world, "client.updated", &key).await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_enabled_clients_never_get_the_same_name() {
    let world = World::new().await;
    let arguments = ["create", "--name", "shop", "--scope", "tokens:read"];
    let at_once = join_all((0..6).map(|_| client(&world, &arguments))).await;
    let (created, refused): (Vec<_>, Vec<_>) = at_once.iter().partition(|ended| ended.code == 0);
    assert_eq!((created.len(), refused.len()), (1, 5));
    let created: Value = serde_json::from_str(&created[0].out).unwrap();
    let key = created["apiKey"].as_str().unwrap();
    for ended in refused {
        ended.refused(2, &format!("--name: is the name of client {key} already"));
    }

    let other = create(&world, "other", &[]).await;
    let renamed = client(
        &world,
        &["update", &other, "--name", "shop", "--expires", "1d"],
    )
    .await;
    renamed.refused(2, "already");
    assert!(details(&world, "client.updated", &other).await.is_empty());
    client(&world, &["disable", key]).await;
    let renamed = update(&world, &other, &["--name", "shop"]).await;
    assert_eq!(
        renamed["name"], "shop",
        "a disabled client does not keep its name"
    );

    // An earlier version created a duplicate. It can be changed and renamed.
    sqlx::query("INSERT INTO clients (api_key, name, secret_sha256, scopes) VALUES ('old', 'shop', sha256(''), '{}')")
        .execute(&world.db)
        .await
        .unwrap();
    update(&world, "old", &["--mints-per-hour", "1"]).await;
    client(&world, &["update", "old", "--name", "shop"])
        .await
        .refused(2, "already");
    assert_eq!(
        update(&world, "old", &["--name", "old"]).await["name"],
        "old"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn scopes_of_a_later_version_survive_other_changes() {
    let world = World::new().await;
    let key = create(&world, "shop", &[]).await;
    let add = "UPDATE clients SET scopes = scopes || '{tokens:later}'::text[] WHERE api_key = $1";
    sqlx::query(add)
        .bind(&key)
        .execute(&world.db)
        .await
        .unwrap();
    update(&world, &key, &["--name", "Web shop"]).await;
    let stored = "SELECT count(*) FROM clients WHERE scopes = '{tokens:read,tokens:later}'";
    assert_eq!(world.count(stored).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_is_json_in_a_pipe_and_a_table_on_a_terminal() {
    let world = World::new().await;
    let options = [
        "--mints-per-hour",
        "5",
        "--allow-from",
        "10.0.0.0/8",
        "--expires",
        "90d",
    ];
    let key = create(&world, "\u{202e}shop", &options).await;
    let listed = list(&world).await;
    let entry = listed
        .iter()
        .find(|client| client["apiKey"] == *key)
        .unwrap();
    let created_at = entry["createdAt"].as_str().unwrap();
    let expires_at = entry["expiresAt"].as_str().unwrap();
    assert_eq!(
        *entry,
        json!({
            "apiKey": key, "name": "\u{202e}shop", "scopes": ["tokens:read"], "mintsPerHour": 5, "requestsPerSecond": null, "oidcSubject": null,
            "allowFrom": ["10.0.0.0/8"], "expiresAt": expires_at, "isEnabled": true, "createdAt": created_at,
            "rotatedAt": null, "lastUsedOn": null,
        })
    );

    let terminal = openpty(None, None).unwrap();
    let mut command = program(&["client", "list"], &world.variables(&[]));
    let mut child = command.stdout(Stdio::from(terminal.slave)).spawn().unwrap();
    drop(command);
    let mut screen = File::from(terminal.master);
    let read = spawn_blocking(move || {
        let mut text = Vec::new();
        // Linux reports the end of a terminal as an error.
        let _ = screen.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    });
    assert!(child.wait().await.unwrap().success());
    let table = read.await.unwrap();
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(
        lines[0].starts_with("NAME") && lines[0].ends_with("LAST USED"),
        "{table}"
    );
    let line = lines.iter().find(|line| line.contains(&key)).unwrap();
    // A name with a bidirectional control character cannot disguise the rest of its line.
    assert!(line.starts_with("\\u{202e}shop  "), "{line}");
    let minute = expires_at[..16].replace('T', " ");
    for cell in [
        "enabled",
        "tokens:read",
        "5 mints/h; from 10.0.0.0/8",
        &minute,
    ] {
        assert!(line.contains(cell), "{cell} in {line}");
    }
    assert!(lines.iter().any(|line| line.starts_with(ADMIN.0)));
}
