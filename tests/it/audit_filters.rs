//! The filters of audit reads, and the parameters of their requests.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use fastrand::Rng;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use token_vendor::model::{AuditEvent, EventKind};

use crate::audit::{PATH, event, insert, read_all_pages, seed, without_names};
use crate::support::{Answer, World};

/// Returns a random combination of filters, as a query string and as a predicate.
fn random_filter(
    random: &mut Rng,
    events: &[AuditEvent],
) -> (String, impl Fn(&AuditEvent) -> bool + use<>) {
    let sample = random.choice(events).unwrap().clone();
    let (from, to) = {
        let mut time = || random.choice(events).unwrap().occurred_at;
        let (a, b) = (time(), time());
        (a.min(b), a.max(b))
    };
    let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Micros, true);
    let mut parameters = Vec::new();
    let mut choose = |name: &str, value: Option<String>| {
        let value = value.filter(|_| random.u8(..3) == 0);
        let encoded = value
            .as_ref()
            .map(|v| utf8_percent_encode(v, NON_ALPHANUMERIC));
        parameters.extend(encoded.map(|value| format!("{name}={value}")));
        value.is_some()
    };
    let by_user = choose("userId", sample.user_id.clone());
    let by_token = choose("tokenId", sample.token_id.map(|id| id.to_string()));
    let by_client = choose("client", sample.client.clone());
    let by_request = choose("requestId", sample.request_id.clone());
    let by_fingerprint = choose("fingerprint", sample.fingerprint.clone());
    let by_from = choose("from", Some(text(from)));
    // Excludes the events of the test's own reads. The newest seeded event is an hour old.
    let to = if choose("to", Some(text(to))) {
        to
    } else {
        Utc::now() - TimeDelta::minutes(50)
    };
    if !parameters
        .iter()
        .any(|parameter| parameter.starts_with("to="))
    {
        parameters.push(format!("to={}", text(to)));
    }
    let mut choose_kinds = |name: &str| {
        let mut kinds: Vec<&str> = Vec::new();
        while random.u8(..3) == 0 {
            kinds.push(random.choice(events).map_or("", |event| &event.kind));
        }
        parameters.extend(kinds.iter().map(|kind| format!("{name}={kind}")));
        kinds.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let (kinds, excluded) = (choose_kinds("kind"), choose_kinds("excludeKind"));
    let matches = move |event: &AuditEvent| {
        (!by_user || event.user_id == sample.user_id)
            && (!by_token || event.token_id == sample.token_id)
            && (!by_client || event.client == sample.client)
            && (kinds.is_empty() || kinds.contains(&event.kind))
            && !excluded.contains(&event.kind)
            && (!by_request || event.request_id == sample.request_id)
            && (!by_fingerprint || event.fingerprint == sample.fingerprint)
            && (!by_from || event.occurred_at >= from)
            && event.occurred_at < to
    };
    (parameters.join("&"), matches)
}

#[tokio::test(flavor = "multi_thread")]
async fn random_filters_return_exactly_the_matching_events_in_order() {
    let world = World::new().await;
    let replica = world.replica().await;
    let mut random = Rng::with_seed(7);
    let events = seed(&world, &mut random, 400).await;
    let mut with_events = 0;
    for round in 0..250 {
        let (filter, matches) = random_filter(&mut random, &events);
        let limit = random.choice([7, 100, 500]).unwrap();
        let mut expected: Vec<_> = events.iter().filter(|event| matches(event)).collect();
        with_events += usize::from(!expected.is_empty());
        let order = *random.choice(&["", "&order=asc", "&order=desc"]).unwrap();
        if order != "&order=asc" {
            expected.reverse();
        }
        let found = read_all_pages(
            &replica,
            &format!("{filter}{order}&limit={limit}"),
            async || {},
        )
        .await;
        assert_eq!(
            json!(without_names(found)),
            json!(expected),
            "{round}: {filter}{order}"
        );
    }
    assert!(with_events > 100, "only {with_events} of 250 filters match");
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_parameters_are_named_in_the_response() {
    let world = World::new().await;
    let replica = world.replica().await;
    let page = replica
        .get(&format!("{PATH}?order=asc&limit=1&to=2999-01-01T00:00:00Z"))
        .await;
    let cursor = page.text("nextCursor").to_owned();
    assert!(
        cursor.is_empty(),
        "a page with all events has no cursor: {page:?}"
    );
    let page = replica.get(&format!("{PATH}?order=asc&limit=1")).await;
    let cursor = page.text("nextCursor").to_owned();
    assert!(!cursor.is_empty(), "{page:?}");
    let long = "x".repeat(129);
    for (query, expected) in [
        ("x=1&format=csv", &["x", "format"][..]),
        (
            "userId=&tokenId=1&client=&kind=&excludeKind=&requestId=&fingerprint=&from=&to=&order=&limit=&cursor=",
            &[
                "userId",
                "tokenId",
                "client",
                "kind",
                "excludeKind",
                "requestId",
                "fingerprint",
                "from",
                "to",
                "order",
                "limit",
                "cursor",
            ],
        ),
        (
            "userId=%00&tokenId=%00&client=%00&kind=%00&excludeKind=%00&requestId=%00&fingerprint=%00&from=%00&to=%00&order=%00&limit=%00&cursor=%00",
            &[
                "userId",
                "tokenId",
                "client",
                "kind",
                "excludeKind",
                "requestId",
                "fingerprint",
                "from",
                "to",
                "order",
                "limit",
                "cursor",
            ],
        ),
        ("kind=token.sold", &["kind"]),
        (
            "kind=token.minted&kind=token.sold&kind=&excludeKind=TOKEN.MINTED",
            &["kind", "excludeKind"],
        ),
        ("kind=token.minted,token.reused", &["kind"]),
        ("kind=%ff&kind=token.minted", &["kind"]),
        ("userId=u&userId=u", &["userId"]),
        ("tokenId=00000000000000000000000000000000", &["tokenId"]),
        (
            "tokenId=%7B00000000-0000-0000-0000-000000000000%7D",
            &["tokenId"],
        ),
        (
            &format!("client={long}&requestId={long}&fingerprint={long}"),
            &["client", "requestId", "fingerprint"],
        ),
        (
            "client=a+b&requestId=%C5%BE&fingerprint=%ff",
            &["fingerprint", "client", "requestId"],
        ),
        ("from=2026-11-22T00:00:00Z&to=2026-11-21T00:00:00Z", &["to"]),
        ("from=2026-11-22", &["from"]),
        ("order=ASC&limit=501", &["order", "limit"]),
        ("limit=0", &["limit"]),
        (&format!("limit=1&cursor={cursor}"), &["cursor"]),
        (
            &format!("order=asc&kind=audit.read&cursor={cursor}"),
            &["cursor"],
        ),
        (
            &format!("order=asc&excludeKind=audit.read&cursor={cursor}"),
            &["cursor"],
        ),
        (&format!("order=asc&cursor={}", &cursor[1..]), &["cursor"]),
        (
            &format!("order=asc&cursor={cursor}&cursor={cursor}"),
            &["cursor"],
        ),
    ] {
        let answer = replica.get(&format!("{PATH}?{query}")).await;
        answer.assert_problem(400, "validation");
        assert_eq!(answer.pointers(), expected, "{query}");
    }
    let tokens = replica.get(&format!("/bank/tokens/?cursor={cursor}")).await;
    tokens.assert_problem(400, "validation");
    let valid = format!("{PATH}/?order=asc&limit=500&cursor={cursor}");
    assert_eq!(replica.get(&valid).await.status, 200);
    let centuries = "from=0000-01-01T00:00:00Z&to=9999-12-31T23:59:59Z&kind=keys.rotated";
    assert_eq!(
        replica.get(&format!("{PATH}?{centuries}")).await.status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_may_be_repeated_and_excluded() {
    let world = World::new().await;
    let replica = world.replica_with(&[("SEAL_INTERVAL", "off")]).await;
    let at = Utc::now() - TimeDelta::hours(1);
    let kinds = [
        "token.minted",
        "token.reused",
        "access.denied",
        "audit.read",
    ];
    let mut events: Vec<_> = (0..12)
        .map(|n| event(n, at + TimeDelta::seconds(n as i64), kinds[n as usize % 4]))
        .collect();
    // A kind that a later version added.
    events.push(event(12, at + TimeDelta::seconds(12), "token.sold"));
    insert(&world.db, &events).await;
    let to = (at + TimeDelta::minutes(1)).to_rfc3339_opts(SecondsFormat::Micros, true);
    let read = async |filter: &str| {
        let page = replica
            .get(&format!("{PATH}?order=asc&to={to}&{filter}"))
            .await;
        assert_eq!(page.status, 200, "{page:?}");
        let items = page.body["items"].as_array().unwrap().clone();
        let kinds = items
            .iter()
            .map(|item| item["kind"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    let expect = |matches: &dyn Fn(&str) -> bool| {
        let found = events.iter().map(|event| event.kind.clone());
        found.filter(|kind| matches(kind)).collect::<Vec<_>>()
    };
    for (filter, expected) in [
        (
            "kind=token.minted&kind=access.denied",
            expect(&|kind| ["token.minted", "access.denied"].contains(&kind)),
        ),
        (
            "kind=token.reused&kind=token.minted&kind=token.reused",
            expect(&|kind| ["token.minted", "token.reused"].contains(&kind)),
        ),
        (
            "excludeKind=audit.read",
            expect(&|kind| kind != "audit.read"),
        ),
        (
            "excludeKind=audit.read&excludeKind=token.reused",
            expect(&|kind| !["audit.read", "token.reused"].contains(&kind)),
        ),
        (
            "kind=token.minted&kind=audit.read&excludeKind=audit.read",
            expect(&|kind| kind == "token.minted"),
        ),
        ("kind=audit.read&excludeKind=audit.read", vec![]),
    ] {
        assert_eq!(read(filter).await, expected, "{filter}");
    }
    let every: Vec<_> = EventKind::ALL
        .iter()
        .map(|kind| format!("excludeKind={kind}"))
        .collect();
    assert_eq!(read(&every.join("&")).await, ["token.sold"]);

    // A cursor belongs to the set of kinds.
    let list = |kinds: &str| format!("{PATH}?order=asc&limit=1&to={to}&{kinds}");
    let page = replica
        .get(&list("kind=token.minted&kind=token.reused"))
        .await;
    let cursor = page.text("nextCursor");
    let same = "kind=token.reused&kind=token.minted&kind=token.reused";
    let same = replica
        .get(&format!("{}&cursor={cursor}", list(same)))
        .await;
    assert_eq!(same.body["items"][0]["kind"], "token.reused", "{same:?}");
    for other in [
        "kind=token.minted",
        "excludeKind=token.minted&excludeKind=token.reused",
        "kind=token.minted&kind=token.reused&excludeKind=audit.read",
    ] {
        let other = replica
            .get(&format!("{}&cursor={cursor}", list(other)))
            .await;
        assert_eq!(other.pointers(), ["cursor"], "{other:?}");
    }

    let read =
        "SELECT detail->'filter' FROM audit_events WHERE kind = 'audit.read' AND occurred_at > $1
                ORDER BY occurred_at LIMIT 3";
    let read: Vec<serde_json::Value> = sqlx::query_scalar(read)
        .bind(at + TimeDelta::minutes(1))
        .fetch_all(&world.db)
        .await
        .unwrap();
    let filters = [
        json!({"kind": ["access.denied", "token.minted"], "to": to}),
        json!({"kind": ["token.minted", "token.reused"], "to": to}),
        json!({"excludeKind": "audit.read", "to": to}),
    ];
    assert_eq!(read, filters);
}

#[tokio::test(flavor = "multi_thread")]
async fn token_and_fingerprint_find_handouts_after_the_mint_event_or_the_token_is_removed() {
    let mut world = World::new().await;
    world.is_checked = false;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u-1"})).await;
    replica.issue(json!({"userId": "u-1"})).await;
    let (id, fingerprint) = (minted.text("id"), minted.text("fingerprint"));
    let find = async |filter: String| {
        let found = replica.get(&format!("{PATH}?order=asc&{filter}")).await;
        let items = found.body["items"].as_array().unwrap();
        let kinds = items
            .iter()
            .map(|item| item["kind"].as_str().unwrap().to_owned());
        kinds.collect::<Vec<_>>()
    };
    let kinds = async || {
        let found = find(format!("tokenId={id}")).await;
        assert_eq!(find(format!("fingerprint={fingerprint}")).await, found);
        found
    };
    let execute = async |statement| sqlx::raw_sql(statement).execute(&world.db).await.unwrap();
    assert_eq!(kinds().await, ["token.minted", "token.reused"]);
    // Simulates that the month of the mint is past retention.
    execute("SET session_replication_role = replica; DELETE FROM audit_events WHERE kind = 'token.minted'").await;
    assert_eq!(kinds().await, ["token.reused"]);
    let path = format!("/bank/tokens/{id}/invalidate");
    let invalidated = Answer::of(replica.post(&path, &json!({"reason": "used"}))).await;
    assert_eq!(invalidated.unwrap().status, 200);
    execute("DELETE FROM tokens").await;
    assert_eq!(kinds().await, ["token.reused", "token.invalidated"]);
}
