//! `client create`, `list`, `rotate` and `disable`.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::model::Scope;
use tokio::time::sleep;

use crate::support::{Answer, Api, Ended, World, eventually, run, send};

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_created_listed_and_disabled() {
    let world = World::new().await;
    let replica = world.replica().await;
    let variables = world.variables(&[]);
    let client =
        async |arguments: &[&str]| run(&[&["client"], arguments].concat(), &variables).await;
    let created = client(&[
        "create",
        "--name",
        "Web shop",
        "--scope",
        "tokens:issue",
        "--scope",
        "tokens:read",
    ])
    .await;
    assert_eq!(
        (created.code, created.out.lines().count()),
        (0, 1),
        "{created:?}"
    );
    let created: Value = serde_json::from_str(&created.out).unwrap();
    let (key, secret) = (
        created["apiKey"].as_str().unwrap(),
        created["apiSecret"].as_str().unwrap(),
    );
    let scopes = json!(["tokens:issue", "tokens:read"]);
    assert_eq!(
        created,
        json!({"apiKey": key, "apiSecret": secret, "name": "Web shop", "scopes": scopes})
    );
    assert!(
        key.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
    );
    assert!(secret.len() >= 43, "256 bits");

    let request_token = || {
        let request = replica
            .anonymous(Method::POST, "/bank/tokens/")
            .basic_auth(key, Some(secret));
        Answer::of(
            request
                .header("content-type", "application/json")
                .body(r#"{"userId":"u"}"#),
        )
    };
    assert_eq!(
        request_token().await.unwrap().status,
        201,
        "valid immediately"
    );
    let listed = client(&["list"]).await;
    let clients: Vec<Value> = serde_json::from_str(&listed.out).unwrap();
    let entry = clients
        .iter()
        .find(|client| client["apiKey"] == key)
        .unwrap();
    assert_eq!(
        (&entry["name"], &entry["scopes"]),
        (&json!("Web shop"), &scopes)
    );
    assert_eq!((clients.len(), &entry["isEnabled"]), (2, &json!(true)));
    assert!(!listed.out.contains(secret));

    for _ in 0..2 {
        let disabled = client(&["disable", key]).await;
        assert_eq!(disabled.code, 0, "{disabled:?}");
    }
    client(&["disable", "nobody"]).await.refused(1, "nobody");
    eventually("the disabled client is rejected", async || {
        request_token().await.unwrap().status == 401
    })
    .await;
    let events: Vec<(String, String)> = sqlx::query_as(
        "SELECT kind, detail->>'actor' FROM audit_events WHERE client = $1 AND kind LIKE 'client.%' ORDER BY occurred_at")
        .bind(key)
        .fetch_all(&world.db)
        .await
        .unwrap();
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| &**kind).collect();
    assert_eq!(kinds, ["client.created", "client.disabled"]);
    for (_, actor) in &events {
        let (user, host) = actor.strip_prefix("cli:").unwrap().split_once('@').unwrap();
        assert!(!user.is_empty() && !host.is_empty(), "{actor}");
    }
}

const CLIENT: (&str, &str) = ("shop", "first-secret");

/// Lists tokens with this secret and returns the status.
async fn list_status(api: &Api, secret: &str) -> u16 {
    let request = api.request_by((CLIENT.0, secret), Method::GET, "/bank/tokens/");
    send(request).await.status
}

async fn rotate_client(world: &World, options: &[&str]) -> Ended {
    let arguments = [&["client", "rotate", CLIENT.0], options].concat();
    run(&arguments, &world.variables(&[])).await
}

/// Returns the new secret that the command printed.
fn parse_secret(ended: &Ended) -> String {
    assert_eq!((ended.code, ended.out.lines().count()), (0, 1), "{ended:?}");
    let printed: Value = serde_json::from_str(&ended.out).unwrap();
    let secret = printed["apiSecret"].as_str().unwrap().to_owned();
    let expected = json!({"apiKey": CLIENT.0, "apiSecret": secret, "name": CLIENT.0, "scopes": ["tokens:read"]});
    assert_eq!(printed, expected);
    assert!(secret.len() >= 43, "256 bits");
    secret
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_secret_stays_valid_until_the_grace_ends() {
    let world = World::new().await;
    world.add_client(CLIENT, &[Scope::TokensRead]).await;
    let (warm, cold) = (world.replica().await, world.replica().await);
    assert_eq!(list_status(&warm, CLIENT.1).await, 200);

    let second = parse_secret(&rotate_client(&world, &["--grace", "8s"]).await);
    let rotated_at = Instant::now();
    assert_eq!(list_status(&cold, &second).await, 200, "valid immediately");
    let on_warm = list_status(&warm, &second).await;
    assert_eq!(
        on_warm, 200,
        "valid immediately on a replica that cached the client"
    );
    assert!(rotated_at.elapsed() < Duration::from_secs(5));
    for replica in [&warm, &cold] {
        assert_eq!(
            list_status(replica, CLIENT.1).await,
            200,
            "during the grace"
        );
        assert_eq!(list_status(replica, "another").await, 401);
    }
    sleep(Duration::from_secs(8).saturating_sub(rotated_at.elapsed())).await;
    for replica in [&warm, &cold] {
        eventually("the old secret expires", async || {
            list_status(replica, CLIENT.1).await == 401
        })
        .await;
        assert_eq!(list_status(replica, &second).await, 200);
    }
    assert!(rotated_at.elapsed() < Duration::from_secs(13));

    // A second rotation during a grace ends the oldest secret. A grace of 0 s ends the old one now.
    let third = parse_secret(&rotate_client(&world, &[]).await);
    let fourth = parse_secret(&rotate_client(&world, &["--grace", "0s"]).await);
    let fresh = world.replica().await;
    for (secret, expected) in [(&second, 401), (&third, 401), (&fourth, 200)] {
        assert_eq!(list_status(&fresh, secret).await, expected);
    }

    let details: Vec<Value> = sqlx::query_scalar(
        "SELECT detail FROM audit_events WHERE client = $1 AND kind = 'client.rotated' ORDER BY occurred_at",
    )
    .bind(CLIENT.0)
    .fetch_all(&world.db)
    .await
    .unwrap();
    let graces: Vec<&Value> = details
        .iter()
        .map(|detail| &detail["graceSeconds"])
        .collect();
    assert_eq!(graces, [8, 86_400, 0]);
    for detail in &details {
        assert!(detail["actor"].as_str().unwrap().starts_with("cli:"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_disabled_clients_cannot_be_rotated() {
    let world = World::new().await;
    rotate_client(&world, &[]).await.refused(1, "no client");
    world.add_client(CLIENT, &[Scope::TokensRead]).await;
    for grace in ["31d", "soon", "-1s"] {
        let ended = rotate_client(&world, &[&format!("--grace={grace}")]).await;
        assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{ended:?}");
    }
    let disabled = run(&["client", "disable", CLIENT.0], &world.variables(&[])).await;
    assert_eq!(disabled.code, 0, "{disabled:?}");
    rotate_client(&world, &[]).await.refused(1, "disabled");
    let rotations = "SELECT count(*) FROM audit_events WHERE kind = 'client.rotated'";
    assert_eq!(world.count(rotations).await, 0);
}
