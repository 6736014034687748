//! Token records: reads by id, and lists by page.

use std::collections::HashSet;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{ADMIN, Answer, Replica, World, send};

/// Returns the ids of a page.
pub fn ids(page: &Answer) -> Vec<String> {
    assert_eq!(page.status, 200, "{page:?}");
    let items = page.body["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["id"].as_str().unwrap().to_owned())
        .collect()
}

/// Requests a token and asserts that it is new.
pub async fn mint(replica: &Replica, body: Value) -> Answer {
    let answer = replica.issue(body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer
}

/// Mints a token of one user for each of `count` banks. Returns the ids, oldest first.
async fn mint_for_banks(replica: &Replica, count: usize) -> Vec<String> {
    let mut ids = Vec::new();
    for bank in 0..count {
        let body = json!({"userId": "u", "bank": format!("bank {bank}")});
        ids.push(mint(replica, body).await.text("id").to_owned());
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_has_exactly_the_documented_members() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u", "country": "LT", "bank": "B", "access": {"balances": true}, "lifetime": 600});
    let minted = mint(&replica, body).await;
    let id = minted.text("id");
    let mut expected = minted.body.clone();
    let members = expected.as_object_mut().unwrap();
    for handout_member in ["tokenString", "verificationUrl", "expiresIn", "outcome"] {
        members.remove(handout_member).unwrap();
    }
    members.insert("invalidatedAt".into(), Value::Null);
    members.insert("invalidationReason".into(), Value::Null);

    let path = format!("/bank/tokens/{id}");
    assert_eq!(replica.get(&path).await.body, expected);
    let page = replica.get("/bank/tokens/").await;
    assert_eq!(page.body, json!({"items": [expected], "nextCursor": null}));

    sqlx::query(
        "UPDATE tokens SET is_valid = false, ciphertext = '', invalidated_at = '2026-01-02T03:04:05.6Z',
                invalidation_reason = 'compromised'",
    )
    .execute(&world.db)
    .await
    .unwrap();
    expected["isValid"] = json!(false);
    expected["invalidatedAt"] = json!("2026-01-02T03:04:05.600Z");
    expected["invalidationReason"] = json!("compromised");
    assert_eq!(replica.get(&path).await.body, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_read_of_records_is_an_event_before_its_response() {
    let world = World::new().await;
    let replica = world.replica().await;
    let body = json!({"userId": "u", "country": "LT", "bank": "B", "access": {"balances": true}});
    let minted = mint(&replica, body).await;
    let id = minted.text("id");
    let token_string = minted.text("tokenString");
    let unknown = Uuid::now_v7();
    let look_up = async |token_string: &str| {
        let body = json!({"tokenString": token_string});
        send(replica.post("/bank/tokens/lookup", &body)).await
    };
    let reads = [
        (replica.get(&format!("/bank/tokens/{id}")).await, 200),
        (look_up(token_string).await, 200),
        (look_up("unknown").await, 404),
        (
            replica.get("/bank/tokens/?userId=u&isValid=true").await,
            200,
        ),
        (replica.get("/bank/tokens/").await, 200),
        // Reads nothing, and is no event.
        (replica.get(&format!("/bank/tokens/{unknown}")).await, 404),
        (replica.get("/bank/tokens/?limit=0").await, 400),
    ];
    for (answer, status) in &reads {
        assert_eq!(answer.status, *status, "{answer:?}");
    }

    let events = replica.get("/audit/events?order=asc").await;
    let events = events.body["items"].as_array().unwrap();
    let kinds = ["token.read", "token.looked_up"];
    let is_read = |event: &&Value| kinds.iter().any(|kind| event["kind"] == *kind);
    let events: Vec<_> = events.iter().filter(is_read).collect();
    assert_eq!(events.len(), 5, "{events:?}");
    for (event, (answer, _)) in events.iter().zip(&reads) {
        assert_eq!(event["requestId"], answer.header("x-request-id"));
        assert_eq!(event["client"], ADMIN.0);
        assert!(event["sourceIp"].is_string());
    }
    for event in &events[..2] {
        for member in ["userId", "country", "bank", "access", "fingerprint"] {
            assert_eq!(event[member], minted.body[member]);
        }
        assert_eq!(event["tokenId"], id);
    }
    let seen: Vec<_> = events
        .iter()
        .map(|event| (&event["kind"], &event["userId"], &event["detail"]))
        .collect();
    let (read, looked_up) = (&json!("token.read"), &json!("token.looked_up"));
    let (user, null) = (&json!("u"), &Value::Null);
    let filter = json!({"userId": "u", "isValid": true});
    let expected = [
        (read, user, null),
        (looked_up, user, null),
        (looked_up, null, &json!({"found": false})),
        (read, user, &json!({"filter": filter, "tokenIds": [id]})),
        (read, null, &json!({"filter": {}, "tokenIds": [id]})),
    ];
    assert_eq!(seen, expected);
    assert!(events[2]["fingerprint"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_reads_share_commits_and_a_lost_database_shows_no_record() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = mint(&replica, json!({"userId": "u"})).await;
    let path = format!("/bank/tokens/{}", minted.text("id"));
    let lock = world.lock_table("audit_events IN EXCLUSIVE MODE").await;
    let reads = join_all((0..50).map(|_| replica.get(&path)));
    let release = async {
        world.backend_waits_for_a_lock().await;
        lock.rollback().await.unwrap();
    };
    let (answers, ()) = tokio::join!(reads, release);
    assert!(answers.iter().all(|answer| answer.status == 200));
    let events = "SELECT count(*) FROM audit_events WHERE kind = 'token.read'";
    assert_eq!(world.count(events).await, 50);
    let commits = "SELECT count(DISTINCT xmin::text) FROM audit_events WHERE kind = 'token.read'";
    let commits = world.count(commits).await;
    assert!(commits < 25, "{commits} commits");

    sqlx::raw_sql("ALTER TABLE audit_events ADD CHECK (kind <> 'token.read') NOT VALID")
        .execute(&world.db)
        .await
        .unwrap();
    let refused = replica.get(&path).await;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(
        !refused
            .body
            .to_string()
            .contains(minted.text("fingerprint"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_by_id_accepts_only_uuids() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = mint(&replica, json!({"userId": "u"})).await;
    let id = minted.text("id");
    let upper = replica
        .get(&format!("/bank/tokens/{}", id.to_uppercase()))
        .await;
    assert_eq!(upper.text("id"), id);
    for unknown in [Uuid::nil(), Uuid::max(), Uuid::now_v7()] {
        replica
            .get(&format!("/bank/tokens/{unknown}"))
            .await
            .assert_problem(404, "not-found");
    }
    let simple = id.replace('-', "");
    let long = "a".repeat(2000);
    for not_a_uuid in [
        "x",
        "1",
        "%00",
        "%ff",
        &id[1..],
        &format!("{id}0"),
        &format!("%7B{id}%7D"),
        &simple,
        &long,
    ] {
        let request = replica.anonymous(Method::GET, &format!("/bank/tokens/{not_a_uuid}"));
        send(request).await.assert_problem(404, "not-found");
    }
    let anonymous = replica.anonymous(Method::GET, &format!("/bank/tokens/{id}"));
    send(anonymous).await.assert_problem(401, "unauthenticated");
    let with_parameter = replica.get(&format!("/bank/tokens/{id}?x=1")).await;
    with_parameter.assert_problem(400, "validation");
    assert_eq!(with_parameter.pointers(), ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_has_1_to_500_records() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = mint_for_banks(&replica, 3).await;
    for (limit, count) in [("1", 1), ("2", 2), ("3", 3), ("4", 3), ("500", 3)] {
        let page = replica.get(&format!("/bank/tokens/?limit={limit}")).await;
        let newest: Vec<_> = minted.iter().rev().take(count).cloned().collect();
        assert_eq!(ids(&page), newest);
        assert_eq!(page.body["nextCursor"].is_null(), count == 3, "{limit}");
    }
    for bad in [
        "0",
        "501",
        "-1",
        "1.0",
        "1e2",
        "%2B1",
        "",
        "x",
        "99999999999999999999",
    ] {
        let answer = replica.get(&format!("/bank/tokens/?limit={bad}")).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), ["limit"], "{bad}");
    }
}

/// Reads all pages and returns the ids. Calls `between` after each page but the last.
async fn read_all_pages(
    replica: &Replica,
    query: &str,
    mut between: impl AsyncFnMut(usize),
) -> Vec<String> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    for page in 0..100 {
        let answer = replica.get(&format!("/bank/tokens/?{query}{cursor}")).await;
        found.extend(ids(&answer));
        let Some(next) = answer.body["nextCursor"].as_str() else {
            return found;
        };
        cursor = format!("&cursor={next}");
        between(page).await;
    }
    panic!("more than 100 pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_by_cursor_are_complete_and_have_no_duplicates() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut minted = mint_for_banks(&replica, 25).await;
    minted.reverse();
    assert_eq!(
        read_all_pages(&replica, "limit=7", async |_| {}).await,
        minted
    );
    assert_eq!(
        read_all_pages(&replica, "limit=7&userId=u", async |_| {}).await,
        minted
    );
    assert_eq!(
        read_all_pages(&replica, "limit=5", async |_| {}).await,
        minted
    );

    for query in ["limit=7", "limit=7&userId=u"] {
        let found = read_all_pages(&replica, query, async |page| {
            mint(
                &replica,
                json!({"userId": "u", "country": "LT", "bank": format!("{query} {page}")}),
            )
            .await;
        });
        let found = found.await;
        let earlier: Vec<_> = found
            .iter()
            .filter(|id| minted.contains(id))
            .cloned()
            .collect();
        assert_eq!(earlier, minted);
        assert_eq!(found.iter().collect::<HashSet<_>>().len(), found.len());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_with_equal_times_are_all_listed() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = mint_for_banks(&replica, 10).await;
    sqlx::query("UPDATE tokens SET issued_at = (SELECT max(issued_at) FROM tokens)")
        .execute(&world.db)
        .await
        .unwrap();
    for query in ["limit=3", "limit=3&userId=u"] {
        let found = read_all_pages(&replica, query, async |_| {}).await;
        assert_eq!(found.len(), 10);
        assert_eq!(
            found.iter().collect::<HashSet<_>>(),
            minted.iter().collect()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cursor_is_valid_only_for_its_own_query() {
    let world = World::new().await;
    let replica = world.replica().await;
    mint_for_banks(&replica, 3).await;
    let first = replica.get("/bank/tokens/?limit=1&userId=u").await;
    let cursor = first.text("nextCursor");
    assert_eq!(
        ids(&replica
            .get(&format!("/bank/tokens/?limit=2&userId=u&cursor={cursor}"))
            .await)
        .len(),
        2
    );

    let mut altered = cursor.to_owned();
    altered.replace_range(2..3, if &cursor[2..3] == "x" { "y" } else { "x" });
    let long = "A".repeat(4000);
    let forged = [
        "",
        "x",
        "AAAA",
        "%00",
        "null",
        &altered,
        &cursor[1..],
        &format!("{cursor}A"),
        &long,
    ];
    let mut invalid: Vec<_> = forged
        .iter()
        .map(|forged| format!("userId=u&cursor={forged}"))
        .collect();
    for other in [
        "",
        "userId=v",
        "userId=u&country=LT",
        "userId=u&bank=bank+1",
        "userId=u&isValid=true",
        "userId=u&from=2026-01-01T00:00:00Z",
        "userId=u&to=2099-01-01T00:00:00Z",
    ] {
        invalid.push(format!("{other}&cursor={cursor}"));
    }
    for query in invalid {
        let answer = replica.get(&format!("/bank/tokens/?{query}")).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), ["cursor"], "{query}");
    }
}
