//! `client create`, `list` and `disable`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Answer, World, eventually, run};

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

    let ask = || {
        let request = replica
            .anonymous(Method::POST, "/bank/tokens/")
            .basic_auth(key, Some(secret));
        Answer::of(
            request
                .header("content-type", "application/json")
                .body(r#"{"userId":"u"}"#),
        )
    };
    assert_eq!(ask().await.unwrap().status, 201, "good at once");
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
    eventually("it is refused", async || ask().await.unwrap().status == 401).await;
    let events: Vec<(String, String)> = sqlx::query_as(
        "SELECT kind, detail->>'actor' FROM audit_events WHERE client = $1 AND kind LIKE 'client.%' ORDER BY occurred_at")
        .bind(key)
        .fetch_all(&world.db)
        .await
        .unwrap();
    let kinds: Vec<&str> = events.iter().map(|(kind, _)| &**kind).collect();
    assert_eq!(kinds, ["client.created", "client.disabled"]);
    for (_, actor) in &events {
        let who = actor.strip_prefix("cli:").unwrap().split_once('@').unwrap();
        assert!(!who.0.is_empty() && !who.1.is_empty(), "{actor}");
    }
}
