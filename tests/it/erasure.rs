//! `audit erase` removes what identifies a person, and the sealed log still verifies.

use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::sealing::{FAST, fetch, wait_for_size};
use crate::support::{Ended, Replica, World, program, run, send};

const PERSON: &str = "person-4711";

/// The tables that can name a person.
const TABLES: [&str; 5] = ["audit_events", "tokens", "mints", "slots", "audit_tiles"];

async fn count_rows_that_name(world: &World, text: &str) -> i64 {
    let mut count = 0;
    for table in TABLES {
        let query = format!("SELECT count(*) FROM {table} t WHERE t::text LIKE '%' || $1 || '%'");
        let query = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(text);
        count += query.fetch_one(&world.db).await.unwrap_or(0_i64);
    }
    count
}

async fn wait_until_all_is_sealed(world: &World, replica: &Replica) {
    let count = world.count("SELECT count(*) FROM audit_events").await;
    wait_for_size(replica, count as u64).await;
}

async fn erase(world: &World, user: &str) -> Value {
    let ended = run(&["audit", "erase", "--user", user], &world.variables(&[])).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    serde_json::from_str(&ended.out).unwrap()
}

async fn verify(world: &World, checkpoint: &str) -> Ended {
    let arguments = ["audit", "verify", "--checkpoint", checkpoint];
    run(&arguments, &world.variables(&[])).await
}

async fn assert_redacted(world: &World, checkpoint: &str, redacted: u64) {
    let ended = verify(world, checkpoint).await;
    assert_eq!(ended.code, 0, "{ended:?}");
    let verified: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(verified["redacted"], redacted, "{verified}");
    assert_eq!(verified["compared"], verified["size"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_person_is_nowhere_and_the_log_verifies() {
    let world = World::new().await;
    let replica = world.replica_with(&[FAST]).await;
    let request = |user: &str, bank: &str| json!({"userId": user, "bank": bank});
    let (mut fingerprints, mut token_string) = (Vec::new(), String::new());
    for bank in ["A", "Secret Bank"] {
        for user in [PERSON, "other"] {
            let minted = replica.issue(request(user, bank)).await;
            assert_eq!(minted.status, 201);
            assert_eq!(replica.issue(request(user, bank)).await.status, 200);
            if user == PERSON {
                fingerprints.push(minted.text("fingerprint").to_owned());
                token_string = minted.text("tokenString").to_owned();
            }
        }
    }
    // Reads that name the person, an event or a request of the person.
    let events = replica
        .get(&format!("/audit/events?userId={PERSON}&kind=token.minted"))
        .await;
    let event = &events.body["items"][0];
    let (event_id, request_id) = (
        event["id"].as_str().unwrap(),
        event["requestId"].as_str().unwrap(),
    );
    replica
        .get(&format!("/audit/events/{event_id}/proof"))
        .await;
    let page = format!("/console/events/{event_id}");
    send(replica.request(Method::GET, &page)).await;
    replica
        .get(&format!("/audit/events?requestId={request_id}"))
        .await;
    replica
        .get(&format!("/audit/events?fingerprint={}", fingerprints[0]))
        .await;
    replica.get(&format!("/bank/tokens/?userId={PERSON}")).await;
    // A lookup that finds the record, and one that finds none.
    let look_up = json!({"tokenString": token_string});
    assert_eq!(
        send(replica.post("/bank/tokens/lookup", &look_up))
            .await
            .status,
        200
    );
    let hide = "UPDATE tokens SET fingerprint = reverse(fingerprint)";
    sqlx::query(hide).execute(&world.db).await.unwrap();
    assert_eq!(
        send(replica.post("/bank/tokens/lookup", &look_up))
            .await
            .status,
        404
    );
    sqlx::query(hide).execute(&world.db).await.unwrap();
    let invalidate = json!({"userId": PERSON, "reason": "used"});
    send(replica.post("/bank/tokens/invalidate", &invalidate)).await;
    wait_until_all_is_sealed(&world, &replica).await;
    let kept = std::env::temp_dir().join(format!("erasure-{}", uuid::Uuid::new_v4()));
    let checkpoint = fetch(&replica, "/audit/log/checkpoint").await.unwrap();
    std::fs::write(&kept, checkpoint).unwrap();
    let kept = kept.display().to_string();
    // An event that is not sealed yet.
    let late = replica.issue(request(PERSON, "A")).await;
    assert_eq!(late.status, 201);

    let erased = erase(&world, PERSON).await;
    assert_eq!(
        (&erased["tokens"], &erased["mints"]),
        (&json!(3), &json!(3))
    );
    // Two mints, two handouts, two invalidations, eight reads, and the late mint.
    assert_eq!(erased["events"], 15);
    let again = json!({"tokens": 0, "mints": 0, "events": 0});
    assert_eq!(erase(&world, PERSON).await, again);
    let late = late.text("fingerprint");
    for text in [
        PERSON,
        &fingerprints[0],
        &fingerprints[1],
        late,
        event_id,
        request_id,
    ] {
        assert_eq!(count_rows_that_name(&world, text).await, 0, "{text}");
    }
    assert!(count_rows_that_name(&world, "other").await >= 8);
    assert_redacted(&world, &kept, 14).await;
    wait_until_all_is_sealed(&world, &replica).await;
    assert_redacted(&world, &kept, 14).await;
    // A redacted event has a page.
    let redacted = r#"SELECT id::text FROM audit_events WHERE detail = '{"redacted": true}' ORDER BY random() LIMIT 1"#;
    let redacted: String = sqlx::query_scalar(redacted)
        .fetch_one(&world.db)
        .await
        .unwrap();
    let page = format!("/console/events/{redacted}");
    let page = send(replica.request(Method::GET, &page)).await;
    assert_eq!(page.status, 200, "{redacted}");

    // The person may come back.
    assert_eq!(replica.issue(request(PERSON, "A")).await.status, 201);
    assert_eq!(replica.issue(request("other", "A")).await.status, 200);

    // A redaction without its event.
    let redact = r#"UPDATE audit_events
                    SET id = gen_random_uuid(), user_id = '', request_id = NULL, source_ip = NULL, country = NULL,
                        bank = NULL, fingerprint = NULL, detail = '{"redacted": true}'
                    WHERE user_id = 'other' AND kind = 'token.reused' AND occurred_at =
                          (SELECT min(occurred_at) FROM audit_events WHERE user_id = 'other' AND kind = 'token.reused')"#;
    sqlx::query(redact).execute(&world.db).await.unwrap();
    let changed = verify(&world, &kept).await;
    changed.refused(1, "was redacted, and no sealed event records");
    std::fs::remove_file(kept).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_redaction_may_change_an_event() {
    let world = World::new().await;
    let redaction = r#"id = gen_random_uuid(), user_id = '', request_id = NULL, source_ip = NULL, country = NULL,
                       bank = NULL, fingerprint = NULL, detail = '{"redacted": true}'"#;
    for change in [
        "client = 'x'".to_owned(),
        format!("{redaction}, client = 'x'"),
        format!("{redaction}, occurred_at = now()"),
        format!("{redaction}, kind = 'x'"),
        format!("{redaction}, token_id = gen_random_uuid()"),
        format!("{redaction}, access = 7"),
        format!("{redaction}, xid = '1'"),
        redaction.replace("user_id = ''", "user_id = 'x'"),
        redaction.replace("redacted", "other"),
        redaction.replace("bank = NULL", "bank = 'x'"),
        redaction.replace("id = gen_random_uuid(), user_id", "user_id"),
    ] {
        let update = format!("UPDATE audit_events SET {change}");
        let refused = sqlx::query(sqlx::AssertSqlSafe(update))
            .execute(&world.db)
            .await;
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("append-only"), "{change}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_can_be_followed_from_any_entry() {
    let world = World::new().await;
    let replica = world.replica_with(&[FAST]).await;
    crate::sealing::seed(&world, &replica, 300).await;
    wait_until_all_is_sealed(&world, &replica).await;
    let export = fetch(&replica, "/audit/events/export").await.unwrap();
    let export = String::from_utf8(export).unwrap();
    for after in [0, 1, 255, 256, 290] {
        let arguments = ["audit", "follow", "--after", &after.to_string()];
        let mut follow = program(&arguments, &world.variables(&[])).spawn().unwrap();
        let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
        for expected in export.lines().skip(after).take(11) {
            assert_eq!(
                lines.next_line().await.unwrap().unwrap(),
                expected,
                "{after}"
            );
        }
        follow.kill().await.unwrap();
    }
    // A new event follows when it is sealed.
    let size = world.count("SELECT size FROM audit_log").await.to_string();
    let arguments = ["audit", "follow", "--after", &size];
    let mut follow = program(&arguments, &world.variables(&[])).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    replica.issue(json!({"userId": "later"})).await;
    let mut line = String::new();
    while !line.contains("\"later\"") {
        line = lines.next_line().await.unwrap().unwrap();
    }
    drop(lines);
    // A closed pipe ends it.
    replica.issue(json!({"userId": "last"})).await;
    assert_eq!(follow.wait().await.unwrap().code(), Some(0));
    let beyond = ["audit", "follow", "--after", "1000000"];
    run(&beyond, &world.variables(&[]))
        .await
        .refused(2, "--after");
}
