//! The limits of a client, its expiry and the day of its last use.

use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::dev::sandbox::Answer as Upstream;
use token_vendor::model::Scope;
use tokio::time::{Instant, sleep};

use crate::metrics::scrape;
use crate::support::{ADMIN, Answer, Api, World, eventually, run, send};

const SHOP: (&str, &str) = ("shop", "shop-secret");

/// Adds the client with every scope and these settings.
async fn add_shop(world: &World, settings: &[&str]) {
    world.add_client(SHOP, Scope::ALL).await;
    update(world, settings).await;
}

async fn update(world: &World, settings: &[&str]) {
    let arguments = [&["client", "update", SHOP.0], settings].concat();
    let ended = run(&arguments, &world.variables(&[])).await;
    assert_eq!(ended.code, 0, "{ended:?}");
}

async fn issue(api: &Api, by: (&str, &str), user: &str) -> Answer {
    let request = api.request_by(by, Method::POST, "/bank/tokens/");
    let request = request.header("content-type", "application/json");
    send(request.body(json!({"userId": user}).to_string())).await
}

async fn status(api: &Api) -> u16 {
    send(api.request_by(SHOP, Method::GET, "/bank/tokens/"))
        .await
        .status
}

/// Moves the counted mints of all clients back in time.
async fn shift_mints(world: &World, minutes: i64) {
    let shift = "UPDATE clients SET mint_minutes = (SELECT array_agg(m.at - $1 ORDER BY place)
                                                    FROM unnest(mint_minutes) WITH ORDINALITY AS m(at, place))";
    sqlx::query(shift)
        .bind(minutes)
        .execute(&world.db)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mints_of_a_client_are_limited_over_all_replicas_and_reuse_continues() {
    let world = World::new().await;
    add_shop(&world, &["--mints-per-hour", "5"]).await;
    let (first, second) = (world.replica().await, world.replica().await);
    let requests = (0..30).map(|number| {
        let api: &Api = if number % 2 == 0 { &first } else { &second };
        async move { issue(api, SHOP, &format!("u-{number}")).await }
    });
    let answers = join_all(requests).await;
    assert_eq!(world.sandbox.requests(), 5);
    let minted: Vec<usize> = (0..30)
        .filter(|number| answers[*number].status == 201)
        .collect();
    assert_eq!(minted.len(), 5);
    for refused in answers.iter().filter(|answer| answer.status != 201) {
        refused.assert_problem(429, "mint-quota-spent");
        assert!(
            (1..=3660).contains(&refused.retry_after().unwrap()),
            "{refused:?}"
        );
    }
    let known = format!("u-{}", minted[0]);
    for replica in [&first, &second] {
        assert_eq!(
            issue(replica, SHOP, &known).await.status,
            200,
            "reuse needs no quota"
        );
        issue(replica, SHOP, "one more")
            .await
            .assert_problem(429, "mint-quota-spent");
    }
    // Another client mints at once, also the combination that was just refused. Its token is reused.
    assert_eq!(issue(&first, ADMIN, "one more").await.status, 201);
    assert_eq!(issue(&second, SHOP, "one more").await.status, 200);

    // A refusal after the first ones writes nothing.
    let mints = world.count("SELECT count(*) FROM mints").await;
    let refused = issue(&first, SHOP, "yet another").await;
    let wait = refused.retry_after().unwrap();
    assert!(
        (3540..=3660).contains(&wait),
        "the first mint counts for 61 minutes: {wait}"
    );
    assert_eq!(world.count("SELECT count(*) FROM mints").await, mints);

    shift_mints(&world, 59).await;
    issue(&first, SHOP, "later")
        .await
        .assert_problem(429, "mint-quota-spent");
    shift_mints(&world, 2).await;
    assert_eq!(issue(&first, SHOP, "later").await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_another_client_does_not_fail_with_a_spent_quota() {
    let world = World::new().await;
    add_shop(&world, &["--mints-per-hour", "1"]).await;
    let replica = world.replica().await;
    assert_eq!(issue(&replica, SHOP, "first").await.status, 201);
    for number in 0..20 {
        let user = format!("u-{number}");
        let (limited, free) =
            tokio::join!(issue(&replica, SHOP, &user), issue(&replica, ADMIN, &user));
        assert_eq!(free.status, 201, "{free:?}");
        match limited.status {
            200 => assert_eq!(limited.text("id"), free.text("id")),
            _ => limited.assert_problem(429, "mint-quota-spent"),
        }
    }
    assert_eq!(
        world.sandbox.requests(),
        21,
        "one mint for each combination"
    );
}

/// The count before a claim only saves work. The count at the first call decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_quota_that_is_spent_after_the_claim_leaves_combination_and_budget_to_others() {
    let world = World::new().await;
    add_shop(&world, &["--mints-per-hour", "1"]).await;
    let replica = world.replica_with(&[("MINT_COOLDOWN", "1h")]).await;
    // The mint stops at the row of the client, after its claim.
    let mut lock = world.lock_table("clients IN EXCLUSIVE MODE").await;
    let spend = async {
        world.backend_waits_for_a_lock().await;
        let spend = "UPDATE clients SET mint_counts = array_fill(1, ARRAY[61]),
                     mint_minutes = array_fill(floor(extract(epoch FROM now()) / 60)::bigint, ARRAY[61])
                     WHERE api_key = 'shop'";
        sqlx::query(spend).execute(&mut *lock).await.unwrap();
        lock.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(issue(&replica, SHOP, "u"), spend);
    answer.assert_problem(429, "mint-quota-spent");
    assert_eq!(world.sandbox.requests(), 0);
    let taken = "SELECT sum(attempt)::bigint FROM upstream_budget, unnest(attempts) AS attempt";
    assert_eq!(world.count(taken).await, 0);
    let started = "SELECT sum(started_attempts)::bigint FROM mints";
    assert_eq!(world.count(started).await, 0);
    assert_eq!(issue(&replica, ADMIN, "u").await.status, 201, "no cooldown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mint_counts_once_however_many_calls_it_makes() {
    let world = World::new().await;
    add_shop(&world, &["--mints-per-hour", "2"]).await;
    let replica = world.replica_with(&[("UPSTREAM_TIMEOUT", "3s")]).await;
    world
        .sandbox
        .script([Upstream::status(503), Upstream::status(503)]);
    for user in ["u-1", "u-2"] {
        assert_eq!(issue(&replica, SHOP, user).await.status, 201);
    }
    issue(&replica, SHOP, "u-3")
        .await
        .assert_problem(429, "mint-quota-spent");
    assert_eq!(world.sandbox.requests(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_own_rate_limit_of_a_client_replaces_the_common_one() {
    let world = World::new().await;
    add_shop(&world, &["--requests-per-second", "40"]).await;
    let replica = world.replica_with(&[("CLIENT_RATE_LIMIT", "2")]).await;
    let at_once = async |by| {
        let requests =
            (0..30).map(|_| send(replica.request_by(by, Method::GET, "/bank/tokens/?limit=0")));
        let answers = join_all(requests).await;
        answers.iter().filter(|answer| answer.status == 429).count()
    };
    assert_eq!(at_once(SHOP).await, 0, "40 at once");
    assert!(at_once(ADMIN).await > 0, "2 at once");
    update(&world, &["--requests-per-second", "2"]).await;
    eventually("the lower limit applies", async || at_once(SHOP).await > 0).await;
    update(&world, &["--requests-per-second", "none"]).await;
    let unlimited = world.replica().await;
    let requests = (0..30).map(|_| status(&unlimited));
    assert_eq!(join_all(requests).await, [200; 30]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_calls_only_from_its_networks_and_a_refusal_is_audited_with_its_address() {
    let world = World::new().await;
    add_shop(&world, &["--allow-from", "10.1.0.0/16,fd00::/8,192.0.2.7"]).await;
    let replica = world
        .replica_with(&[("TRUSTED_PROXIES", "127.0.0.1")])
        .await;
    let from = async |address: &str, path: &str| {
        let request = replica.request_by(SHOP, Method::GET, path);
        send(request.header("x-forwarded-for", address)).await
    };
    for allowed in [
        "10.1.0.0",
        "10.1.255.255",
        "::ffff:10.1.2.3",
        "fd00::1",
        "192.0.2.7",
    ] {
        assert_eq!(
            from(allowed, "/bank/tokens/").await.status,
            200,
            "{allowed}"
        );
    }
    for refused in ["10.2.0.0", "10.0.255.255", "::1", "192.0.2.8"] {
        // The address is checked before the query.
        from(refused, "/bank/tokens/?limit=0")
            .await
            .assert_problem(403, "forbidden");
    }
    assert_eq!(
        status(&replica).await,
        403,
        "the address of the proxy itself"
    );
    let wrong = replica.request_by((SHOP.0, "wrong"), Method::GET, "/bank/tokens/");
    send(wrong).await.assert_problem(401, "unauthenticated");
    update(&world, &["--allow-from", "none"]).await;
    eventually("every address is allowed", async || {
        status(&replica).await == 200
    })
    .await;
    replica.service.stop().await;
    let mut denied: Vec<(String, Value)> = sqlx::query_as(
        "SELECT source_ip, detail FROM audit_events WHERE kind = 'access.denied' AND client = 'shop'",
    )
    .fetch_all(&world.db)
    .await
    .unwrap();
    denied.sort_by(|a, b| a.0.cmp(&b.0));
    denied.retain(|(address, _)| address != "127.0.0.1");
    let addresses: Vec<&str> = denied.iter().map(|(address, _)| &**address).collect();
    assert_eq!(addresses, ["10.0.255.255", "10.2.0.0", "192.0.2.8", "::1"]);
    for (_, detail) in &denied {
        assert_eq!(
            (&detail["status"], &detail["route"]),
            (&json!(403), &json!("/bank/tokens/"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_client_is_rejected_until_its_expiry_is_extended() {
    let world = World::new().await;
    add_shop(&world, &["--expires", "6s"]).await;
    let expires_at = Instant::now() + Duration::from_secs(6);
    let replica = world.replica().await;
    assert_eq!(status(&replica).await, 200);
    sleep(expires_at.saturating_duration_since(Instant::now())).await;
    eventually("the client expires", async || status(&replica).await == 401).await;
    assert!(expires_at.elapsed() < Duration::from_secs(5));
    assert_eq!(
        status(&world.replica().await.api).await,
        401,
        "on another replica"
    );

    update(&world, &["--expires", "1h"]).await;
    assert_eq!(status(&replica).await, 200, "valid immediately");
    // A rotation keeps the expiry unless it sets one.
    let rotate = async |options: &[&str]| {
        let arguments = [&["client", "rotate", SHOP.0], options].concat();
        let ended = run(&arguments, &world.variables(&[])).await;
        assert_eq!(ended.code, 0, "{ended:?}");
        let left = "SELECT extract(epoch FROM expires_at - rotated_at)::int8 FROM clients WHERE api_key = 'shop'";
        world.count(left).await
    };
    assert!((3_500..=3_600).contains(&rotate(&[]).await));
    assert_eq!(rotate(&["--expires", "90d"]).await, 90 * 86_400);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metric_shows_the_earliest_expiry_of_an_enabled_client() {
    let world = World::new().await;
    let replica = world.replica().await;
    let expiry = async || scrape(&replica).await["client_expiry_seconds"];
    assert_eq!(expiry().await, f64::INFINITY);
    add_shop(&world, &["--expires", "90d"]).await;
    world.add_client(("other", "s"), &[Scope::TokensRead]).await;
    let set = "UPDATE clients SET expires_at = now() - interval '1 day' WHERE api_key = 'other'";
    sqlx::query(set).execute(&world.db).await.unwrap();
    eventually("the metric shows the expired client", async || {
        (-86_500.0..-86_400.0).contains(&expiry().await)
    })
    .await;
    let ready = replica.get("/health/ready").await;
    assert_eq!((ready.status, &ready.body["warnings"]), (200, &json!([])));
    run(&["client", "disable", "other"], &world.variables(&[])).await;
    let day = 86_400.0;
    eventually("the metric shows the next client", async || {
        (90.0 * day - 200.0..=90.0 * day).contains(&expiry().await)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_day_of_the_last_use_is_recorded_once_a_day_and_not_for_wrong_secrets() {
    let world = World::new().await;
    world.add_client(SHOP, &[Scope::TokensRead]).await;
    world.add_client(("idle", "s"), &[Scope::TokensRead]).await;
    let replica = world.replica().await;
    assert_eq!(status(&replica).await, 200);
    let wrong = replica.request_by(("idle", "wrong"), Method::GET, "/bank/tokens/");
    assert_eq!(send(wrong).await.status, 401);
    replica.service.stop().await;
    let used = "SELECT count(*) FROM clients WHERE api_key = 'shop' AND last_used_on = (now() AT TIME ZONE 'UTC')::date";
    assert_eq!(
        world.count(used).await,
        1,
        "recorded at the latest when the service stops"
    );
    let unused = "SELECT count(*) FROM clients WHERE api_key = 'idle' AND last_used_on IS NULL";
    assert_eq!(world.count(unused).await, 1);

    // The same day again changes no row.
    let versions = "SELECT xmin::text::int8 FROM clients WHERE api_key = 'shop'";
    let version = world.count(versions).await;
    let replica = world.replica().await;
    assert_eq!(status(&replica).await, 200);
    replica.service.stop().await;
    assert_eq!(world.count(versions).await, version);

    let yesterday = "UPDATE clients SET last_used_on = last_used_on - 1 WHERE api_key = 'shop'";
    sqlx::query(yesterday).execute(&world.db).await.unwrap();
    let replica = world.replica().await;
    assert_eq!(status(&replica).await, 200);
    replica.service.stop().await;
    assert_eq!(world.count(used).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_counts_from_the_latest_time_after_a_step_back_of_the_clock() {
    let world = World::new().await;
    world.add_client(SHOP, &[Scope::TokensRead]).await;
    // The database showed a time an hour ahead, and its clock was then set back.
    let ahead = "UPDATE audit_horizon SET noted_at = now() + interval '1 hour'";
    sqlx::query(ahead).execute(&world.db).await.unwrap();
    let left = "SELECT extract(epoch FROM max(expires_at) - now())::int8 FROM clients";
    update(&world, &["--expires", "1h"]).await;
    assert!((7_100..=7_200).contains(&world.count(left).await));
    let rotate = ["client", "rotate", SHOP.0, "--expires", "2h"];
    assert_eq!(run(&rotate, &world.variables(&[])).await.code, 0);
    assert!((10_700..=10_800).contains(&world.count(left).await));
    let create = [
        "client",
        "create",
        "--name",
        "new",
        "--scope",
        "tokens:read",
        "--expires",
        "3h",
    ];
    assert_eq!(run(&create, &world.variables(&[])).await.code, 0);
    assert!((14_300..=14_400).contains(&world.count(left).await));
}
