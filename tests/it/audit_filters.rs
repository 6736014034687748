//! The filters of audit reads, and the parameters of their requests.

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use fastrand::Rng;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use token_vendor::model::AuditEvent;

use crate::audit::{PATH, read_all_pages, seed, without_names};
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
    let by_kind = choose("kind", Some(sample.kind.clone()));
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
    let matches = move |event: &AuditEvent| {
        (!by_user || event.user_id == sample.user_id)
            && (!by_token || event.token_id == sample.token_id)
            && (!by_client || event.client == sample.client)
            && (!by_kind || event.kind == sample.kind)
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
            "userId=&tokenId=1&client=&kind=&requestId=&fingerprint=&from=&to=&order=&limit=&cursor=",
            &[
                "userId",
                "tokenId",
                "client",
                "kind",
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
            "userId=%00&tokenId=%00&client=%00&kind=%00&requestId=%00&fingerprint=%00&from=%00&to=%00&order=%00&limit=%00&cursor=%00",
            &[
                "userId",
                "tokenId",
                "client",
                "kind",
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
        ("kind=token.minted&kind=token.reused", &["kind"]),
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
