//! Filters of `GET /bank/tokens/`.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};

use crate::records::{ids, mint};
use crate::support::World;
use crate::support::cluster::create_database;

#[tokio::test(flavor = "multi_thread")]
async fn filters_narrow_the_list_alone_and_combined() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut minted = Vec::new();
    for body in [
        json!({"userId": "a"}),
        json!({"userId": "a", "country": "LT"}),
        json!({"userId": "a", "country": "LT", "bank": "B&B + ž"}),
        json!({"userId": "a", "bank": "B&B + ž", "lifetime": 0}),
        json!({"userId": "b", "country": "LT", "bank": "B&B + ž"}),
        json!({"userId": "b", "country": "LV", "access": {"accounts": true}}),
    ] {
        minted.push(mint(&replica, body).await);
    }
    let time = |index: usize| minted[index].text("issuedAt");
    let bank = "bank=B%26B+%2B+%C5%BE";
    let cases: [(String, &[usize]); 16] = [
        ("".into(), &[5, 4, 3, 2, 1, 0]),
        ("userId=a".into(), &[3, 2, 1, 0]),
        ("userId=b".into(), &[5, 4]),
        ("userId=A".into(), &[]),
        ("userId=a&country=LT".into(), &[2, 1]),
        ("userId=a&country=SE".into(), &[]),
        (format!("userId=a&{bank}"), &[3, 2]),
        ("userId=a&isValid=true".into(), &[2, 1, 0]),
        ("userId=a&isValid=false".into(), &[3]),
        (format!("userId=a&country=LT&{bank}"), &[2]),
        (format!("userId=b&country=LT&{bank}&isValid=true"), &[4]),
        (format!("from={}", time(2)), &[5, 4, 3, 2]),
        (format!("to={}", time(2)), &[1, 0]),
        (format!("from={}&to={}", time(1), time(4)), &[3, 2, 1]),
        (format!("from={}&to={}", time(1), time(1)), &[]),
        (
            format!(
                "userId=a&country=LT&isValid=true&from={}&to={}&limit=500",
                time(1),
                time(2)
            ),
            &[1],
        ),
    ];
    for (query, expected) in cases {
        let page = replica.get(&format!("/bank/tokens/?{query}")).await;
        let expected: Vec<_> = expected
            .iter()
            .map(|index| minted[*index].text("id").to_owned())
            .collect();
        assert_eq!(ids(&page), expected, "{query}");
        assert_eq!(page.body["nextCursor"], Value::Null);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameters_are_named() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (query, named) in [
        ("x=1", &["x"][..]),
        ("userid=u", &["userid"]),
        ("offset=1&page=2", &["offset", "page"]),
        ("limit=1&limit=1", &["limit"]),
        ("userId=u&userId=v", &["userId"]),
        ("userId=u&user%49d=v&userId=w", &["userId"]),
        ("userId=", &["userId"]),
        ("userId=%00", &["userId"]),
        ("userId=a%00b", &["userId"]),
        ("userId=%ff", &["userId"]),
        ("userId=%", &["userId"]),
        ("userId=%zz", &["userId"]),
        ("country=lt", &["country"]),
        ("country=", &["country"]),
        ("country=%00", &["country"]),
        ("bank=", &["bank"]),
        ("bank=+B", &["bank"]),
        ("bank=%00", &["bank"]),
        ("isValid=1", &["isValid"]),
        ("isValid=TRUE", &["isValid"]),
        ("isValid=", &["isValid"]),
        ("from=2026-11-22", &["from"]),
        ("from=2026-11-22T09:39:08", &["from"]),
        ("from=2026-11-22T11:39:08+02:00", &["from"]),
        ("to=2026-13-22T09:39:08Z", &["to"]),
        ("to=%00", &["to"]),
        ("to=1795340348", &["to"]),
        ("from=99999-01-01T00:00:00Z", &["from"]),
        ("%00=1", &["\0"]),
        (
            "x=1&userId=&country=lt&limit=0&from=x",
            &["x", "userId", "country", "from", "limit"],
        ),
    ] {
        let answer = replica.get(&format!("/bank/tokens/?{query}")).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), named, "{query}");
    }
    let too_long = "u".repeat(129);
    replica
        .get(&format!("/bank/tokens/?userId={too_long}"))
        .await
        .assert_problem(400, "validation");
}

#[tokio::test(flavor = "multi_thread")]
async fn country_bank_and_validity_are_refused_without_a_user() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (query, named) in [
        ("country=LT", &["country"][..]),
        ("bank=B", &["bank"]),
        ("isValid=true", &["isValid"]),
        ("isValid=false&limit=1", &["isValid"]),
        ("from=2026-11-22T09:39:08Z&bank=B", &["bank"]),
        (
            "isValid=true&bank=B&country=LT",
            &["country", "bank", "isValid"],
        ),
    ] {
        let answer = replica.get(&format!("/bank/tokens/?{query}")).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), named, "{query}");
        for error in answer.body["errors"].as_array().unwrap() {
            assert_eq!(error["detail"], "can only be used together with userId");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rfc_3339_time_can_bound_a_list() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = mint(&replica, json!({"userId": "u"})).await;
    for from in [
        "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00Z",
        "1969-12-31T23:59:60Z",
        "2016-12-31T23:59:60Z",
        "2020-01-01t00:00:00.123456789z",
        "2020-01-01T00:00:00-23:59",
        "2020-01-01T02:00:00%2B02:00",
    ] {
        for to in [
            "9999-12-31T23:59:59.999999999Z",
            "2999-01-01T00:00:00%2B00:00",
        ] {
            let page = replica
                .get(&format!("/bank/tokens/?from={from}&to={to}"))
                .await;
            assert_eq!(ids(&page).len(), 1, "{from} {to}");
        }
    }
    let issued_at: DateTime<Utc> = minted.text("issuedAt").parse().unwrap();
    let just_after =
        (issued_at + TimeDelta::nanoseconds(1)).to_rfc3339_opts(SecondsFormat::Nanos, true);
    assert!(
        ids(&replica
            .get(&format!("/bank/tokens/?from={just_after}"))
            .await)
        .is_empty()
    );
    assert_eq!(
        ids(&replica.get(&format!("/bank/tokens/?to={just_after}")).await).len(),
        1
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_use_the_read_database_and_reads_by_id_use_the_primary() {
    let world = World::new().await;
    let empty = create_database().await;
    let replica = world.replica_with(&[("READ_DATABASE_URL", &empty)]).await;
    let minted = mint(&replica, json!({"userId": "u"})).await;
    assert!(ids(&replica.get("/bank/tokens/").await).is_empty());
    assert_eq!(replica.get(minted.header("location")).await.status, 200);
}
