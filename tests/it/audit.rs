//! Pages of the audit log, the form of an event, and the event of each read.

use chrono::{DateTime, Months, SecondsFormat, SubsecRound, TimeDelta, Utc};
use fastrand::Rng;
use serde_json::{Value, json};
use sqlx::PgPool;
use token_vendor::model::{Access, AuditEvent, EventKind};
use uuid::Uuid;

use crate::support::cluster::create_database;
use crate::support::{ADMIN, Answer, Api, World, send};

/// The path of the audit log.
pub const PATH: &str = "/audit/events";

/// Returns an event from a few values per member, so that filters match several events.
fn random_event(random: &mut Rng, newest: DateTime<Utc>) -> AuditEvent {
    let mut choose = |names: &[&str]| random.choice(names).map(|name| (*name).to_owned());
    let (user, client) = (choose(&["u-1", "u-2", "ž +&=%'"]), choose(&["c-1", "c_2"]));
    let request = choose(&["r-1", "r 2/+&%~"]);
    // Three tokens of three users. Two of them share a token string.
    let token = random.bool().then(|| random.u128(1..4));
    let mut maybe = |value: Option<String>| value.filter(|_| random.u8(..4) > 0);
    let any_user = maybe(user);
    AuditEvent {
        user_id: match token {
            Some(token) => Some(format!("u-{}", token % 3)),
            None => any_user,
        },
        client_name: None,
        client: maybe(client),
        request_id: maybe(request),
        fingerprint: token.map(|token| if token < 3 { "f1" } else { "f2" }.into()),
        source_ip: maybe(Some("192.0.2.7".into())),
        country: maybe(Some("LT".into())),
        bank: maybe(Some("B\"&,\r".into())),
        id: Uuid::from_u128(random.u128(..)),
        occurred_at: newest - TimeDelta::microseconds(random.i64(0..40) * 99_999_999_999),
        kind: random.choice(EventKind::ALL).unwrap().to_string(),
        access: random.bool().then(|| Access::from_bits(random.i16(0..8))),
        token_id: token.map(|token| Uuid::from_u128(token << 64)),
        detail: random
            .bool()
            .then(|| json!({"n": random.u8(..), "of": ["=1", null]})),
    }
}

/// Removes `clientName` from the items of a page. Their clients have no records.
pub fn without_names(mut items: Vec<Value>) -> Vec<Value> {
    for item in &mut items {
        let name = item.as_object_mut().unwrap().remove("clientName");
        assert_eq!(name, Some(Value::Null));
    }
    items
}

/// Returns an event without optional members.
pub fn event(id: u128, occurred_at: DateTime<Utc>, kind: &str) -> AuditEvent {
    AuditEvent {
        id: Uuid::from_u128(id),
        occurred_at,
        kind: kind.to_owned(),
        client: None,
        client_name: None,
        request_id: None,
        source_ip: None,
        user_id: None,
        country: None,
        bank: None,
        access: None,
        token_id: None,
        fingerprint: None,
        detail: None,
    }
}

/// Inserts the events.
pub async fn insert(db: &PgPool, events: &[AuditEvent]) {
    let rows: Vec<Value> = events
        .iter()
        .map(|event| {
            let mut row = json!({
                "id": event.id, "occurred_at": event.occurred_at, "kind": event.kind, "client": event.client,
                "request_id": event.request_id, "source_ip": event.source_ip, "country": event.country,
                "bank": event.bank, "access": event.access.map(Access::bits), "token_id": event.token_id,
                "fingerprint": event.fingerprint, "detail": event.detail,
            });
            row["user_id"] = json!(event.user_id.as_deref().unwrap_or(""));
            row
        })
        .collect();
    sqlx::query(
        "INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, source_ip, country, bank, access,
                                   token_id, fingerprint, detail)
         SELECT id, occurred_at, kind, user_id, client, request_id, source_ip, country, bank, access, token_id,
                fingerprint, detail FROM jsonb_populate_recordset(null::audit_events, $1)",
    )
    .bind(Value::from(rows))
    .execute(db)
    .await
    .unwrap();
}

/// Inserts random events of the last weeks, none of the last hour. Returns them, oldest first.
pub async fn seed(world: &World, random: &mut Rng, count: usize) -> Vec<AuditEvent> {
    let newest = (Utc::now() - TimeDelta::hours(1)).trunc_subsecs(6);
    for back in 1..4 {
        sqlx::query("SELECT create_audit_partition($1)")
            .bind(Utc::now() - Months::new(back))
            .execute(&world.db)
            .await
            .unwrap();
    }
    let mut events: Vec<_> = (0..count).map(|_| random_event(random, newest)).collect();
    insert(&world.db, &events).await;
    events.sort_by_key(|event| (event.occurred_at, event.id));
    events
}

/// Reads all pages and calls `between` after each. Returns the items.
pub async fn read_all_pages(api: &Api, query: &str, mut between: impl AsyncFnMut()) -> Vec<Value> {
    let mut found = Vec::new();
    let mut cursor = String::new();
    for _ in 0..1000 {
        let mut page = api.get(&format!("{PATH}?{query}{cursor}")).await;
        assert_eq!(page.status, 200, "{query}{cursor}: {page:?}");
        found.append(page.body["items"].as_array_mut().unwrap());
        if page.body["nextCursor"].is_null() {
            return found;
        }
        cursor = format!("&cursor={}", page.text("nextCursor"));
        between().await;
    }
    panic!("{query} has more than 1000 pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn pagination_during_inserts_returns_each_event_once() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut random = Rng::with_seed(11);
    let events = seed(&world, &mut random, 300).await;
    let to = (Utc::now() - TimeDelta::seconds(60)).to_rfc3339_opts(SecondsFormat::Micros, true);
    for order in ["asc", "desc"] {
        let newer = async || {
            let mut random = Rng::new();
            let late = std::iter::repeat_with(|| random_event(&mut random, Utc::now())).take(5);
            let late = late.map(|event| AuditEvent {
                occurred_at: Utc::now(),
                ..event
            });
            insert(&world.db, &late.collect::<Vec<_>>()).await;
        };
        let mut found =
            read_all_pages(&replica, &format!("to={to}&order={order}&limit=13"), newer).await;
        if order == "desc" {
            found.reverse();
        }
        assert_eq!(json!(without_names(found)), json!(events), "{order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pagination_ends_although_each_page_adds_an_event() {
    let world = World::new().await;
    let replica = world.replica().await;
    for query in [
        "order=asc&limit=1",
        "order=asc&limit=1&kind=audit.read",
        "limit=1",
    ] {
        let before = world.count("SELECT count(*) FROM audit_events").await as usize;
        let found = read_all_pages(&replica, query, async || {}).await;
        assert!(
            found.len() <= before,
            "{query}: {} of {before}",
            found.len()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_exactly_the_members_of_the_contract() {
    let world = World::new().await;
    let replica = world.replica().await;
    let request =
        json!({"userId": "u", "country": "LT", "bank": "B", "access": {"balances": true}});
    let minted = replica.issue(request).await;
    let page = replica.get(&format!("{PATH}?kind=token.minted")).await;
    let event = &page.body["items"][0];
    let expected = json!({
        "id": event["id"], "occurredAt": event["occurredAt"], "kind": "token.minted", "client": ADMIN.0, "clientName": ADMIN.0,
        "requestId": minted.header("x-request-id"), "sourceIp": "127.0.0.1", "userId": "u", "country": "LT",
        "bank": "B", "access": {"accounts": false, "balances": true, "transactions": false},
        "tokenId": minted.text("id"), "fingerprint": minted.text("fingerprint"), "detail": event["detail"],
    });
    let complete_until = &page.body["completeUntil"];
    let whole = json!({"items": [expected], "nextCursor": null, "completeUntil": complete_until});
    assert_eq!(page.body, whole);
    let occurred_at: DateTime<Utc> = event["occurredAt"].as_str().unwrap().parse().unwrap();
    assert!((Utc::now() - occurred_at).abs() < TimeDelta::minutes(1));
    let created = replica.get(&format!("{PATH}?kind=client.created")).await;
    let created = &created.body["items"][0];
    for member in [
        "userId",
        "requestId",
        "sourceIp",
        "country",
        "bank",
        "access",
        "tokenId",
    ] {
        assert_eq!(created[member], Value::Null, "{member}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_read_is_recorded_before_its_response() {
    let world = World::new().await;
    let replica = world.replica().await;
    let query = "userId=u-1&kind=token.reused&from=2026-01-01T00:00:00Z&order=asc&limit=7";
    let answer = replica.get(&format!("{PATH}?{query}")).await;
    assert_eq!(answer.body["items"], json!([]));
    replica
        .get(&format!("{PATH}?limit=0"))
        .await
        .assert_problem(400, "validation");
    let page = replica.get(&format!("{PATH}?kind=audit.read")).await;
    let items = page.body["items"].as_array().unwrap();
    assert_eq!(items.len(), 1, "{items:?}");
    let filter = json!({"userId": "u-1", "kind": "token.reused", "from": "2026-01-01T00:00:00Z"});
    assert_eq!(
        items[0]["detail"],
        json!({"filter": filter, "order": "asc", "limit": 7})
    );
    assert_eq!(items[0]["client"], ADMIN.0);
    assert_eq!(items[0]["requestId"], answer.header("x-request-id"));
    assert_eq!(items[0]["sourceIp"], "127.0.0.1");
    assert_eq!(
        world
            .count("SELECT count(*) FROM audit_events WHERE kind = 'audit.read'")
            .await,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_come_from_the_read_database_and_reads_are_recorded_on_the_primary() {
    let world = World::new().await;
    let empty = create_database().await;
    let replica = world.replica_with(&[("READ_DATABASE_URL", &empty)]).await;
    replica.issue(json!({"userId": "u"})).await;
    for _ in 0..2 {
        let page = replica.get(PATH).await;
        assert_eq!(page.body["items"], json!([]));
    }
    assert_eq!(
        world
            .count("SELECT count(*) FROM audit_events WHERE kind = 'audit.read'")
            .await,
        2
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_need_the_audit_scope_and_the_get_method() {
    use token_vendor::model::Scope;
    let world = World::new().await;
    let others: Vec<_> = Scope::ALL
        .iter()
        .copied()
        .filter(|s| *s != Scope::AuditRead)
        .collect();
    world.add_client(("other", "secret"), &others).await;
    let replica = world.replica().await;
    let get = reqwest::Method::GET;
    let rejected = |request| async { send(request).await };
    rejected(replica.anonymous(get.clone(), PATH))
        .await
        .assert_problem(401, "unauthenticated");
    rejected(replica.request_by(("other", "secret"), get, PATH))
        .await
        .assert_problem(403, "forbidden");
    let post: Answer = send(replica.request(reqwest::Method::POST, PATH)).await;
    post.assert_problem(405, "method-not-allowed");
    assert_eq!(
        world
            .count("SELECT count(*) FROM audit_events WHERE kind = 'audit.read'")
            .await,
        0
    );
}
