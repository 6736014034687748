//! The query plans and the memory of audit reads in a log of a million events.

use std::time::Duration;

use chrono::{DateTime, Months, TimeDelta, Utc};
use reqwest::Method;
use serde_json::Value;
use sqlx::postgres::PgPoolOptions;
use sqlx::{PgPool, Postgres, QueryBuilder};
use token_vendor::db::audit_events::{AuditReadRecord, EventPages, read_events};
use token_vendor::db::event_page::{EventFilter, EventOrder, EventPage, push_page, split};
use token_vendor::model::EventKind;
use uuid::Uuid;

use crate::support::{Api, Process, World};

/// The number of events in the large log.
const EVENTS: i64 = 1_000_000;

/// The number of events in the log of reads.
const READS: i64 = 300_000;

/// The maximum growth of the service's memory during an export, in bytes. The export itself has more than ten
/// times as many.
const MAX_GROWTH: u64 = 24 * 1024 * 1024;

/// Inserts $3 events between the times $1 and $2.
///
/// `u-once` has one event in eight of the first fifth and none later. Its events share one token and one
/// request id. 4,999 other users have eight tokens each. There are 47 clients. Four in five events are reuses. One
/// event in twenty of the first fifth is a failed mint, and none later.
const SEED: &str = "
    INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id, country, access, token_id, fingerprint)
    SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, $1 + ($2 - $1) * n / $3,
           CASE WHEN n % 1000 = 0 THEN 'access.denied' WHEN n % 20 = 1 AND n < $3 / 5 THEN 'token.mint_failed'
                WHEN n % 5 = 0 THEN 'token.minted' ELSE 'token.reused' END,
           CASE WHEN n % 1000 > 0 THEN owner ELSE '' END, 'c-' || n % 47,
           CASE WHEN is_once THEN 'r-once' ELSE 'r-' || n END, 'LT', 1,
           CASE WHEN n % 1000 > 0 THEN token::uuid END, CASE WHEN n % 1000 > 0 THEN token END
    FROM generate_series(1, $3) AS n,
         LATERAL (SELECT n < $3 / 5 AND n % 8 = 0 AS is_once) AS o,
         LATERAL (SELECT CASE WHEN is_once THEN 'u-once' ELSE 'u-' || n % 4999 END AS owner) AS u,
         LATERAL (SELECT md5(CASE WHEN is_once THEN 'once' ELSE owner || ' ' || n / 4999 % 8 END) AS token) AS t";

/// Fills the log with events of the last three months. Returns the time range.
pub async fn seed(db: &PgPool, events: i64) -> (DateTime<Utc>, DateTime<Utc>) {
    let (from, to) = (Utc::now() - Months::new(3), Utc::now());
    sqlx::query("SELECT create_audit_partition($1 + make_interval(months => m)) FROM generate_series(0, 2) m")
        .bind(from)
        .execute(db)
        .await
        .unwrap();
    // Its reads would count as those of the test.
    sqlx::raw_sql(
        "DO $$ DECLARE part regclass; BEGIN
             FOR part IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'audit_events'::regclass LOOP
                 EXECUTE format('ALTER TABLE %s SET (autovacuum_enabled = false)', part);
             END LOOP;
         END $$",
    )
    .execute(db)
    .await
    .unwrap();
    // Creating the indexes after the insert takes a third of the time.
    sqlx::raw_sql(
        "DROP INDEX audit_events_by_token, audit_events_by_client, audit_events_by_fingerprint,
                    audit_events_by_request, audit_events_by_kind",
    )
    .execute(db)
    .await
    .unwrap();
    let seeded = sqlx::query(SEED)
        .bind(from)
        .bind(to)
        .bind(events)
        .execute(db)
        .await;
    assert_eq!(seeded.unwrap().rows_affected(), events as u64);
    for indexes in [
        include_str!("../../migrations/20261122000004_audit_indexes.sql"),
        include_str!("../../migrations/20261122000009_owner_indexes.sql"),
    ] {
        sqlx::raw_sql(indexes).execute(db).await.unwrap();
    }
    sqlx::raw_sql("VACUUM (ANALYZE) audit_events")
        .execute(db)
        .await
        .unwrap();
    (from, to)
}

/// The time and id of the last event of the previous page.
type After = Option<(DateTime<Utc>, Uuid)>;

fn page(order: EventOrder, after: After) -> EventPage {
    EventPage {
        order,
        after,
        limit: 101,
        with_names: true,
    }
}

/// Runs the statement of a page and returns its query plan. Returns none if the filter matches no user.
async fn explain(
    db: &PgPool,
    filter: &EventFilter,
    order: EventOrder,
    after: After,
) -> Option<Value> {
    let mut connection = db.acquire().await.unwrap();
    let filters = split(&mut connection, filter).await.unwrap();
    let [filter] = &filters[..] else {
        assert!(filters.is_empty(), "{filters:?}");
        return None;
    };
    let mut query = QueryBuilder::<Postgres>::new("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) ");
    push_page(&mut query, filter, page(order, after));
    // An unnamed statement is planned for its values.
    let plan: Value = query
        .build_query_scalar()
        .persistent(false)
        .fetch_one(&mut *connection)
        .await
        .unwrap();
    Some(plan[0]["Plan"].clone())
}

/// Returns the buffers that one read of a page uses, including the search for the user and the event of the
/// read.
///
/// Reads the page of the `usual` filter first, more than the five times after which Postgres may keep a plan.
/// A plan kept for the usual values would show here.
async fn buffers_of_a_read(
    db: &PgPool,
    usual: &EventFilter,
    filter: &EventFilter,
    order: EventOrder,
) -> i64 {
    let record = AuditReadRecord {
        caller: None,
        detail: Value::Null,
    };
    let read = async |filter| {
        let mut connection = db.acquire().await.unwrap();
        let read = read_events(
            &mut connection,
            filter,
            page(order, None),
            Some(&record),
            |_| (),
        );
        read.await.unwrap();
    };
    for _ in 0..6 {
        read(usual).await;
    }
    let before = pages_fetched(db, "audit_events|tokens").await;
    for _ in 0..8 {
        read(filter).await;
    }
    (pages_fetched(db, "audit_events|tokens").await - before) / 8
}

/// Opens a pool of one connection, so that all statements share prepared statements and statistics.
pub async fn one_connection(world: &World) -> PgPool {
    let pool = PgPoolOptions::new().max_connections(1);
    pool.connect(&world.url).await.unwrap()
}

/// Returns the buffers of tables that match the pattern, and of their indexes, that Postgres has fetched so
/// far. The pool must have only one connection.
pub async fn pages_fetched(db: &PgPool, tables: &str) -> i64 {
    let flush = "SELECT pg_stat_force_next_flush()";
    sqlx::query(flush).execute(db).await.unwrap();
    let fetched = "SELECT coalesce(sum(pg_stat_get_blocks_fetched(oid)), 0)::bigint FROM pg_class
                   WHERE relname ~ ('^(' || $1 || ')')";
    let fetched = sqlx::query_scalar(fetched).bind(tables);
    fetched.fetch_one(db).await.unwrap()
}

/// Returns every node of a plan.
fn nodes(plan: &Value) -> Vec<&Value> {
    let children = plan["Plans"].as_array().map_or(&[][..], Vec::as_slice);
    std::iter::once(plan)
        .chain(children.iter().flat_map(nodes))
        .collect()
}

/// Returns the buffers that a node and its children used, without the names of the clients. A page reads at most one
/// name for each of its events, by the key of the client.
fn buffers(node: &Value) -> i64 {
    let own: i64 = ["Shared Hit Blocks", "Shared Read Blocks"]
        .iter()
        .map(|name| node[name].as_i64().unwrap())
        .sum();
    own - names(node)
}

/// Returns the buffers that the subplans below a node used.
fn names(node: &Value) -> i64 {
    let children = node["Plans"].as_array().into_iter().flatten();
    let used = children.map(|child| match child["Parent Relationship"] == "SubPlan" {
        true => buffers(child),
        false => names(child),
    });
    used.sum()
}

/// A token and the fingerprint of its token string.
type Token = (Uuid, String);

/// Kinds that the large log has rarely, only in the first fifth, or never.
const RARE_KINDS: [EventKind; 3] = [
    EventKind::AccessDenied,
    EventKind::TokenMintFailed,
    EventKind::KeysRotated,
];

fn kind_names(kinds: &[EventKind]) -> Vec<String> {
    kinds.iter().map(|kind| kind.name().into()).collect()
}

/// Returns one filter for each condition, with values that have few events and values that have many.
fn single_filters(
    from: DateTime<Utc>,
    to: DateTime<Utc>,
    token: &Token,
    once: &Token,
) -> Vec<(&'static str, EventFilter)> {
    let third = (to - from) / 3;
    let by = |set: &dyn Fn(&mut EventFilter)| {
        let mut filter = EventFilter::default();
        set(&mut filter);
        filter
    };
    let by_kind = EventFilter::of_kind;
    vec![
        ("user", by(&|f| f.user_id = Some("u-77".into()))),
        ("user once", by(&|f| f.user_id = Some("u-once".into()))),
        ("token", by(&|f| f.token_id = Some(token.0))),
        ("token once", by(&|f| f.token_id = Some(once.0))),
        ("client", by(&|f| f.client = Some("c-7".into()))),
        ("minted", by_kind(EventKind::TokenMinted)),
        ("denied", by_kind(EventKind::AccessDenied)),
        ("reused", by_kind(EventKind::TokenReused)),
        ("rotated", by_kind(EventKind::KeysRotated)),
        ("rare kinds", by(&|f| f.kinds = kind_names(&RARE_KINDS))),
        (
            "no reads",
            by(&|f| f.excluded_kinds = kind_names(&[EventKind::AuditRead])),
        ),
        ("request", by(&|f| f.request_id = Some("r-500001".into()))),
        (
            "request once",
            by(&|f| f.request_id = Some("r-once".into())),
        ),
        (
            "fingerprint",
            by(&|f| f.fingerprint = Some(token.1.clone())),
        ),
        (
            "fingerprint once",
            by(&|f| f.fingerprint = Some(once.1.clone())),
        ),
        ("from", by(&|f| f.from = Some(from + third))),
        ("to", by(&|f| f.to = Some(to - third))),
    ]
}

/// Returns the filter with values that have few events.
fn with_usual_values(filter: &EventFilter, token: &Token) -> EventFilter {
    let filter = filter.clone();
    EventFilter {
        user_id: filter.user_id.map(|_| "u-77".into()),
        token_id: filter.token_id.map(|_| token.0),
        request_id: filter.request_id.map(|_| "r-500001".into()),
        fingerprint: filter.fingerprint.map(|_| token.1.clone()),
        ..filter
    }
}

/// Returns the conditions of both filters. The first wins where both have the same one.
fn combine(a: &EventFilter, b: &EventFilter) -> EventFilter {
    let (a, b) = (a.clone(), b.clone());
    EventFilter {
        user_id: a.user_id.or(b.user_id),
        token_id: a.token_id.or(b.token_id),
        client: a.client.or(b.client),
        kinds: [a.kinds, b.kinds]
            .into_iter()
            .find(|kinds| !kinds.is_empty())
            .unwrap_or_default(),
        excluded_kinds: [a.excluded_kinds, b.excluded_kinds].concat(),
        request_id: a.request_id.or(b.request_id),
        fingerprint: a.fingerprint.or(b.fingerprint),
        from: a.from.or(b.from),
        to: a.to.or(b.to),
    }
}

/// Fails if the plan scans a table, sorts 1,000 rows or more, or uses 1,000 buffers or more.
fn check_plan(plan: &Value, name: &str) {
    for node in nodes(plan) {
        let kind = node["Node Type"].as_str().unwrap();
        // A sequential scan of an empty partition uses no buffers.
        assert!(kind != "Seq Scan" || buffers(node) == 0, "{name}: {plan:#}");
        let sorted = if kind.ends_with("Sort") {
            node["Plans"][0]["Actual Rows"].as_f64().unwrap()
        } else {
            0.0
        };
        assert!(sorted < 1000.0, "{name} sorts {sorted} rows: {plan:#}");
    }
    assert!(buffers(plan) < 1_000, "{name}: {plan:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_reads_each_event_once() {
    let world = World::new().await;
    let (from, to) = seed(&world.db, 70_000).await;
    let one = one_connection(&world).await;
    let half = from + (to - from) / 2;
    let excluded = kind_names(&[EventKind::AuditRead]);
    let reused = kind_names(&[EventKind::TokenReused]);
    for (from, to, excluded_kinds, max) in [
        (None, Some(to), vec![], 150),
        (Some(half), None, vec![], 150),
        (Some(half), Some(to), vec![], 150),
        (None, Some(to), excluded, 170),
        // The reads of the other kinds are merged. One block has five mints.
        (None, Some(to), reused, 600),
    ] {
        let filter = EventFilter {
            from,
            to,
            excluded_kinds,
            ..EventFilter::default()
        };
        let before = pages_fetched(&one, "audit_events").await;
        let mut count = 0;
        // Two exports have enough pages for Postgres to keep a plan, if it may.
        for _ in 0..2 {
            let mut pages = EventPages::new(filter.clone(), DateTime::UNIX_EPOCH);
            while pages
                .read_next(&mut one.acquire().await.unwrap(), |_| ())
                .await
                .unwrap()
                > 0
            {
                count += 1;
            }
        }
        let fetched = pages_fetched(&one, "audit_events").await - before;
        assert!(count > 10, "{filter:?}: {count} pages of events");
        assert!(
            fetched < max * count,
            "{filter:?}: {fetched} buffers for {count} pages of events"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_filter_scans_or_sorts_the_whole_log_and_every_page_costs_the_same() {
    let world = World::new().await;
    let (from, to) = seed(&world.db, EVENTS).await;
    let one = one_connection(&world).await;
    let token_in = async |request: &str| -> Token {
        let token = "SELECT token_id, fingerprint FROM audit_events WHERE request_id = $1 LIMIT 1";
        let token = sqlx::query_as(token).bind(request);
        token.fetch_one(&world.db).await.unwrap()
    };
    let token = token_in("r-500001").await;
    let single = single_filters(from, to, &token, &token_in("r-once").await);
    let all = [("all", EventFilter::default())];
    let pairs = single.iter().enumerate().flat_map(|(index, (a, first))| {
        let following = single[index + 1..].iter();
        following.map(move |(b, second)| (format!("{a} and {b}"), combine(first, second)))
    });
    let named = all
        .iter()
        .chain(&single)
        .map(|(name, filter)| ((*name).to_owned(), filter.clone()));
    for (name, filter) in named.chain(pairs) {
        for order in [EventOrder::Asc, EventOrder::Desc] {
            if let Some(plan) = explain(&world.db, &filter, order, None).await {
                check_plan(&plan, &format!("{name} {order:?}"));
            }
            let usual = with_usual_values(&filter, &token);
            let used = buffers_of_a_read(&one, &usual, &filter, order).await;
            assert!(used < 1_000, "{name} {order:?}: {used} buffers");
        }
    }
    let with_many_events = [
        "user once",
        "token once",
        "request once",
        "client",
        "minted",
        "rare kinds",
        "no reads",
    ];
    let with_many_events = single
        .iter()
        .filter(|(name, _)| with_many_events.contains(name));
    for (name, filter) in all.iter().chain(with_many_events) {
        for (order, tenths) in [(EventOrder::Asc, 9), (EventOrder::Desc, 1)] {
            let after = (from + (to - from) * tenths / 10, Uuid::max());
            // Under load, a single run can use about 120 buffers more, so take the minimum of three.
            let best_plan = async |after| {
                let mut plans = Vec::new();
                for _ in 0..3 {
                    plans.push(explain(&world.db, filter, order, after).await.unwrap());
                }
                plans.into_iter().min_by_key(buffers).unwrap()
            };
            let (first, last) = (best_plan(None).await, best_plan(Some(after)).await);
            // A merged read with fewer rows left than the page has may be sorted first.
            let is_merged = ["rare kinds", "no reads"].contains(name);
            let slack = if is_merged { 120 } else { 20 };
            assert!(
                buffers(&last) <= buffers(&first) + slack,
                "{name} {order:?}: {} buffers for the first page, {} for one of the last: {last:#}",
                buffers(&first),
                buffers(&last)
            );
        }
    }
    an_export_needs_little_memory(&world).await;
}

/// Inserts $3 events between the times $1 and $2. All but two in $4 are reads of the audit log by one client: one mint
/// and one reuse.
const SEED_READS: &str = "
    INSERT INTO audit_events (id, occurred_at, kind, user_id, client, request_id)
    SELECT ('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid, $1 + ($2 - $1) * n / $3,
           CASE n % $4 WHEN 1 THEN 'token.minted' WHEN 2 THEN 'token.reused' ELSE 'audit.read' END,
           CASE WHEN n % $4 IN (1, 2) THEN 'u-' || n ELSE '' END, 'auditor', 'r-' || n
    FROM generate_series(1, $3) AS n";

#[tokio::test(flavor = "multi_thread")]
async fn a_log_of_reads_can_be_read_without_them() {
    let world = World::new().await;
    let from = Utc::now() - TimeDelta::days(20);
    for month in [from, Utc::now()] {
        let create = sqlx::query("SELECT create_audit_partition($1)").bind(month);
        create.execute(&world.db).await.unwrap();
    }
    let seeded = sqlx::query(SEED_READS)
        .bind(from)
        .bind(Utc::now())
        .bind(READS)
        .bind(1_000_i64);
    seeded.execute(&world.db).await.unwrap();
    sqlx::raw_sql("VACUUM (ANALYZE) audit_events")
        .execute(&world.db)
        .await
        .unwrap();
    let without = |kinds: &[EventKind]| EventFilter {
        excluded_kinds: kind_names(kinds),
        ..EventFilter::default()
    };
    let reads = without(&[EventKind::AuditRead]);
    let of_client = EventFilter {
        client: Some("auditor".into()),
        ..reads.clone()
    };
    let neither = without(&[EventKind::AuditRead, EventKind::TokenReused]);
    for order in [EventOrder::Asc, EventOrder::Desc] {
        let plan = explain(&world.db, &neither, order, None).await.unwrap();
        check_plan(&plan, "neither reads nor reuses");
        // Reuses have no index of their own, so the reads between them are passed: each block of the table once.
        let blocks = "SELECT sum(pg_relation_size(inhrelid))::bigint / 8192 FROM pg_inherits
                      WHERE inhparent = 'audit_events'::regclass";
        let blocks = world.count(blocks).await;
        let merged = explain(&world.db, &reads, order, None).await.unwrap();
        // Sorting would read a whole page of each kind.
        let sorted = nodes(&merged).into_iter().filter(|node| {
            let is_sort = node["Node Type"].as_str().unwrap().ends_with("Sort");
            is_sort
                && ["Limit", "Subquery Scan"]
                    .map(Value::from)
                    .contains(&node["Plans"][0]["Node Type"])
        });
        assert_eq!(sorted.count(), 0, "{merged:#}");
        for filter in [&reads, &of_client] {
            let plan = explain(&world.db, filter, order, None).await.unwrap();
            assert!(buffers(&plan) < 2 * blocks, "{blocks} blocks: {plan:#}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_leaves_no_setting_on_its_session() {
    let world = World::new().await;
    let one = one_connection(&world).await;
    let filter = EventFilter::default();
    let mut connection = one.acquire().await.unwrap();
    let read = read_events(
        &mut connection,
        &filter,
        page(EventOrder::Asc, None),
        None,
        |_| (),
    );
    read.await.unwrap();
    drop(connection);
    let mode = sqlx::query_scalar("SHOW plan_cache_mode").fetch_one(&one);
    let mode: String = mode.await.unwrap();
    assert_eq!(mode, "auto");
}

/// Returns the peak resident memory of the process, in bytes.
fn peak_memory(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = line
        .unwrap()
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap();
    kib * 1024
}

/// Exports all events to a reader that pauses. The service must not read ahead of it.
async fn an_export_needs_little_memory(world: &World) {
    // Sealing would read the events too.
    let process = Process::serve(&world.variables(&[("SEAL_INTERVAL", "off")])).await;
    let api = Api::at(process.base.clone());
    assert_eq!(api.get("/audit/events?limit=500").await.status, 200);
    let before = peak_memory(process.pid());
    let request = api.request(Method::GET, "/audit/events/export?format=ndjson");
    let request = request.timeout(Duration::from_secs(300));
    let mut response = request.send().await.unwrap();
    let (mut size, mut lines) = (0, 0);
    while let Some(chunk) = response.chunk().await.unwrap() {
        if size == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        size += chunk.len() as u64;
        lines += chunk.iter().filter(|byte| **byte == b'\n').count() as i64;
    }
    assert!(
        lines >= EVENTS && size > 10 * MAX_GROWTH,
        "{lines} lines, {size} bytes"
    );
    let growth = peak_memory(process.pid()) - before;
    assert!(
        growth < MAX_GROWTH,
        "{growth} bytes for an export of {size}"
    );
}
