//! The remaining life of a token when the clocks differ, and the cooldown after a failure.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::json;
use token_vendor::dev::sandbox::Answer as Upstream;

use crate::support::World;

/// Returns the seconds from the claim of the latest mint to the end of its token.
async fn life_of_latest(world: &World) -> f64 {
    let life = "SELECT extract(epoch FROM t.ends_at - m.started_at)::float8
                FROM tokens t JOIN mints m ON m.user_id = t.user_id AND m.id = t.id
                ORDER BY m.started_at DESC LIMIT 1";
    sqlx::query_scalar(life).fetch_one(&world.db).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn clock_skew_of_the_provider_does_not_change_the_life_of_a_token() {
    let world = World::new().await;
    let replica = world.replica().await;
    let day = 86_400;
    for ahead_secs in [0, 1, -1, 90, -90, day, -day, 400 * day, -400 * day] {
        world.sandbox.script([Upstream::Skewed { ahead_secs }]);
        let user = format!("ahead-{ahead_secs}");
        let answer = replica
            .issue(json!({"userId": user, "lifetime": 600}))
            .await;
        assert_eq!(answer.status, 201, "{ahead_secs}: {answer:?}");
        let life = life_of_latest(&world).await;
        // The sandbox reads its clock twice. The limit allows half a second between the two reads.
        assert!((598.5..=600.0).contains(&life), "{ahead_secs}: {life}");
        let left = answer.body["expiresIn"].as_f64().unwrap();
        assert!(left <= life, "{ahead_secs}: {left} of {life}");
        let expiration: DateTime<Utc> = answer.text("expiration").parse().unwrap();
        let shown = (expiration - Utc::now()).num_seconds() - ahead_secs;
        assert!((500..=601).contains(&shown), "{ahead_secs}: {answer:?}");
        let reused = replica
            .issue(json!({"userId": user, "lifetime": 600}))
            .await;
        assert_eq!(reused.token(), answer.token(), "{ahead_secs}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_date_header_the_life_is_the_lesser_of_the_expiration_and_the_lifetime() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (given, least, most) in [(30, 20.0, 29.0), (600, 590.0, 599.0), (9000, 600.0, 600.0)] {
        let expiration = (Utc::now() + TimeDelta::seconds(given)).to_rfc3339();
        let body = json!({"tokenString": "t", "expiration": expiration, "isValid": true});
        let body = body.to_string();
        let text = format!(
            "HTTP/1.1 201 Created\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        world.sandbox.script([Upstream::Verbatim { text }]);
        let request = json!({"userId": format!("given-{given}"), "lifetime": 600});
        let answer = replica.issue(request).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let life = life_of_latest(&world).await;
        assert!((least..=most).contains(&life), "{given}: {life}");
        assert!(
            answer.body["expiresIn"].as_f64() <= Some(life),
            "{answer:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_is_the_lesser_of_the_expiration_and_the_lifetime() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (given, least, most) in [(30, 28.0, 30.0), (300, 298.0, 300.0), (9000, 600.0, 600.0)] {
        let after_ms = given * 1000;
        world.sandbox.script([Upstream::Expires { after_ms }]);
        let user = format!("given-{given}");
        let answer = replica
            .issue(json!({"userId": user, "lifetime": 600}))
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let life = life_of_latest(&world).await;
        assert!((least..=most).contains(&life), "{given}: {life}");
    }
    let again = replica
        .issue(json!({"userId": "given-30", "lifetime": 600}))
        .await;
    assert_eq!(again.status, 201, "30 s are too few to reuse the token");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_has_expired_on_arrival_is_a_timeout() {
    let world = World::new().await;
    let replica = world.replica().await;
    world.sandbox.script([Upstream::Expires { after_ms: 5 }]);
    let answer = replica.issue(json!({"userId": "u"})).await;
    answer.assert_problem(504, "upstream-timeout");
    assert!(answer.retry_after().is_some());
    assert_eq!(
        world.kinds().await,
        ["token.minted"],
        "the token is on record"
    );
    assert_eq!(replica.issue(json!({"userId": "u"})).await.status, 201);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expiration_can_be_any_rfc_3339_time() {
    let world = World::new().await;
    let replica = world.replica().await;
    let at = Utc::now() + TimeDelta::seconds(1800);
    let offset = |seconds| at.with_timezone(&chrono::FixedOffset::east_opt(seconds).unwrap());
    let utc = |precision| at.to_rfc3339_opts(precision, true);
    for text in [
        utc(SecondsFormat::Secs),
        utc(SecondsFormat::Millis),
        utc(SecondsFormat::Micros),
        utc(SecondsFormat::Nanos),
        utc(SecondsFormat::Micros).to_lowercase(),
        at.to_rfc3339(),
        offset(19_800).to_rfc3339(),
        offset(-43_200).to_rfc3339_opts(SecondsFormat::Millis, false),
        offset(50_400).to_rfc3339(),
        offset(0).to_rfc3339().replace("+00:00", "-00:00"),
    ] {
        world.sandbox.script([Upstream::with("expiration", &*text)]);
        let answer = replica.issue(json!({"userId": text})).await;
        assert_eq!(answer.status, 201, "{text}: {answer:?}");
        let expiration: DateTime<Utc> = answer.text("expiration").parse().unwrap();
        assert!((at - expiration).abs() < TimeDelta::seconds(1), "{text}");
        assert!(answer.text("expiration").ends_with('Z'), "{answer:?}");
        let left = answer.body["expiresIn"].as_i64().unwrap();
        assert!((1700..=1800).contains(&left), "{text}: {left}");
        let id = answer.text("id");
        let record = replica.get(&format!("/bank/tokens/{id}")).await;
        assert_eq!(record.text("expiration"), answer.text("expiration"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leap_second_is_shown_as_the_next_second_in_every_answer() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (given, shown) in [
        ("2098-12-31T23:59:60Z", "2099-01-01T00:00:00Z"),
        ("2098-12-31T23:59:60.25Z", "2099-01-01T00:00:00.250Z"),
        ("2098-12-31T21:59:60-02:00", "2099-01-01T00:00:00Z"),
        (
            "9999-12-31T23:59:59.9999999Z",
            "9999-12-31T23:59:59.999999Z",
        ),
    ] {
        world.sandbox.script([Upstream::with("expiration", given)]);
        let body = json!({ "userId": given });
        let minted = replica.issue(body.clone()).await;
        let reused = replica.issue(body.clone()).await;
        let cold = world.replica().await.issue(body).await;
        let record = replica
            .get(&format!("/bank/tokens/{}", minted.text("id")))
            .await;
        for answer in [minted, reused, cold, record] {
            assert_eq!(answer.text("expiration"), shown, "{given}: {answer:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_is_repeated_without_a_call_until_its_cooldown_ends() {
    let world = World::new().await;
    let settings = [("MINT_COOLDOWN", "1h"), ("UPSTREAM_MAX_ATTEMPTS", "1")];
    let first = world.replica_with(&settings).await;
    let second = world.replica_with(&settings).await;
    for (status, expected_status, retry_after) in [(400, 422, None), (500, 502, Some(3600))] {
        world.sandbox.reset();
        world.sandbox.script([Upstream::status(status)]);
        let body = json!({"userId": format!("u-{status}")});
        let failed = first.issue(body.clone()).await;
        assert_eq!(failed.status, expected_status, "{failed:?}");
        assert_eq!(failed.retry_after(), retry_after);
        for replica in [&second, &first] {
            let repeated = replica.issue(body.clone()).await;
            for member in ["type", "detail", "upstream"] {
                assert_eq!(repeated.body[member], failed.body[member], "{repeated:?}");
            }
            assert_eq!(repeated.retry_after(), retry_after);
        }
        assert_eq!(world.sandbox.requests(), 1);
        let other = first.issue(json!({"userId": format!("v-{status}")})).await;
        assert_eq!(other.status, 201, "only this combination cools down");

        sqlx::query("UPDATE slots SET cooldown_until = clock_timestamp()")
            .execute(&world.db)
            .await
            .unwrap();
        assert_eq!(second.issue(body).await.status, 201);
        assert_eq!(world.sandbox.requests(), 3);
    }
    let failures = "SELECT count(*) FROM audit_events WHERE kind = 'token.mint_failed'";
    assert_eq!(world.count(failures).await, 2);
}
