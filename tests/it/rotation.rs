//! New client secrets and new encryption keys, while the service runs.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::model::Scope;
use tokio::time::sleep;

use crate::support::{Api, Ended, World, eventually, run, send};

const CLIENT: (&str, &str) = ("shop", "first-secret");

/// The status that a client gets for these credentials.
async fn status(api: &Api, secret: &str) -> u16 {
    let request = api.request_by((CLIENT.0, secret), Method::GET, "/bank/tokens/");
    send(request).await.status
}

async fn rotate_client(world: &World, more: &[&str]) -> Ended {
    let arguments = [&["client", "rotate", CLIENT.0], more].concat();
    run(&arguments, &world.variables(&[])).await
}

/// The new secret that the command printed.
fn secret_of(ended: &Ended) -> String {
    assert_eq!((ended.code, ended.out.lines().count()), (0, 1), "{ended:?}");
    let printed: Value = serde_json::from_str(&ended.out).unwrap();
    let secret = printed["apiSecret"].as_str().unwrap().to_owned();
    let expected = json!({"apiKey": CLIENT.0, "apiSecret": secret, "name": CLIENT.0, "scopes": ["tokens:read"]});
    assert_eq!(printed, expected);
    assert!(secret.len() >= 43, "256 bits");
    secret
}

#[tokio::test(flavor = "multi_thread")]
async fn the_old_secret_is_good_beside_the_new_one_until_the_grace_ends() {
    let world = World::new().await;
    world.add_client(CLIENT, &[Scope::TokensRead]).await;
    let (warm, cold) = (world.replica().await, world.replica().await);
    assert_eq!(status(&warm, CLIENT.1).await, 200);

    let second = secret_of(&rotate_client(&world, &["--grace", "8s"]).await);
    let rotated_at = Instant::now();
    assert_eq!(status(&cold, &second).await, 200, "good at once");
    eventually(
        "a replica that knew the client takes the new secret",
        async || status(&warm, &second).await == 200,
    )
    .await;
    assert!(rotated_at.elapsed() < Duration::from_secs(5));
    for replica in [&warm, &cold] {
        assert_eq!(status(replica, CLIENT.1).await, 200, "within its grace");
        assert_eq!(status(replica, "another").await, 401);
    }
    sleep(Duration::from_secs(8).saturating_sub(rotated_at.elapsed())).await;
    for replica in [&warm, &cold] {
        eventually("the old one ends", async || {
            status(replica, CLIENT.1).await == 401
        })
        .await;
        assert_eq!(status(replica, &second).await, 200);
    }
    assert!(rotated_at.elapsed() < Duration::from_secs(13));

    // At once, as for a secret that leaked; and of a rotation within a grace only the last two count.
    let third = secret_of(&rotate_client(&world, &[]).await);
    let fourth = secret_of(&rotate_client(&world, &["--grace", "0s"]).await);
    let fresh = world.replica().await;
    for (secret, expected) in [(&second, 401), (&third, 401), (&fourth, 200)] {
        assert_eq!(status(&fresh, secret).await, expected);
    }

    let told: Vec<Value> = sqlx::query_scalar(
        "SELECT detail FROM audit_events WHERE client = $1 AND kind = 'client.rotated' ORDER BY occurred_at",
    )
    .bind(CLIENT.0)
    .fetch_all(&world.db)
    .await
    .unwrap();
    let graces: Vec<&Value> = told.iter().map(|detail| &detail["graceSeconds"]).collect();
    assert_eq!(graces, [8, 86_400, 0]);
    for detail in &told {
        assert!(detail["actor"].as_str().unwrap().starts_with("cli:"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_client_that_is_there_and_enabled_is_rotated() {
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
    let told = "SELECT count(*) FROM audit_events WHERE kind = 'client.rotated'";
    assert_eq!(world.count(told).await, 0);
}
