//! Query plans for a user with thousands of tokens, as a load test creates. A query for one token must not read the
//! others.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::{Executor, PgPool};
use token_vendor::db::cleanup::expire_tokens;
use token_vendor::db::handouts::{HandoutRow, insert_handouts};
use token_vendor::db::slots::find_slot;
use token_vendor::db::tokens::{TokenFilter, list_tokens};
use token_vendor::model::{Access, Caller, Combination};
use uuid::Uuid;

use crate::audit_plans::{one_connection, pages_fetched};
use crate::support::World;

/// Inserts 200,000 tokens, 5,000 of them of the user `busy`. Every seventh token is invalid. Ten tokens of `busy` have
/// expired and are due for cleanup.
const SEED: &str = "
    INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at, is_valid,
                        ciphertext, key_id, fingerprint)
    SELECT CASE WHEN n % 40 = 0 THEN 'busy' ELSE 'u-' || n END, gen_random_uuid(), '', 'bank-' || n, 0, 3600,
           now() - n * interval '1 second', e.ends_at, e.ends_at, n % 7 > 0 OR n % 19200 = 0, 'x', 'k1', md5(n::text) || md5(n::text)
    FROM generate_series(1, 200000) n,
         LATERAL (SELECT now() + CASE WHEN n % 19200 = 0 THEN -1 ELSE 1 END * interval '1 hour' AS ends_at) e;
    INSERT INTO slots (user_id, country, bank, access, token_id, usable_until)
    SELECT user_id, country, bank, access, id, ends_at FROM tokens WHERE user_id = 'busy';
    VACUUM tokens; VACUUM slots; ANALYZE tokens; ANALYZE slots;";

/// Executions per query. Half of them still exceed the five custom plans that Postgres makes before it considers a
/// generic plan.
const EXECUTIONS: i64 = 50;

/// Returns the newest valid tokens of the user `busy`.
async fn busy_tokens(db: &PgPool) -> Vec<(Uuid, String, DateTime<Utc>)> {
    let tokens = "SELECT id, bank, issued_at FROM tokens WHERE user_id = 'busy' AND is_valid AND ends_at > now()
                  ORDER BY issued_at DESC LIMIT $1";
    let tokens = sqlx::query_as(tokens).bind(EXECUTIONS);
    tokens.fetch_all(db).await.unwrap()
}

/// Returns every filter that `GET /bank/tokens/` accepts: any of the six for one user, and the times without a user.
fn accepted_filters() -> Vec<TokenFilter> {
    let hours_ago = |hours| Utc::now() - TimeDelta::hours(hours);
    let mut filters = Vec::new();
    for bits in 0..64 {
        let is_set = |bit: u8| bits & (1 << bit) != 0;
        if bits & 0b1111 == 0 || is_set(0) {
            filters.push(TokenFilter {
                user_id: is_set(0).then(|| "u-123457".into()),
                country: is_set(1).then(|| "LT".parse().unwrap()),
                bank: is_set(2).then(|| "bank-7".into()),
                is_valid: is_set(3).then_some(false),
                from: is_set(4).then(|| hours_ago(50)),
                to: is_set(5).then(|| hours_ago(1)),
            });
        }
    }
    filters
}

#[tokio::test(flavor = "multi_thread")]
async fn no_accepted_filter_of_a_list_reads_all_records() {
    let world = World::unchecked().await;
    for statement in SEED.split_inclusive(';') {
        world.db.execute(statement).await.unwrap();
    }
    let pool = one_connection(&world).await;
    let pages_of = async |filter: &TokenFilter| {
        let before = pages_fetched(&pool, "tokens").await;
        let mut connection = pool.acquire().await.unwrap();
        list_tokens(&mut connection, filter, None, 10)
            .await
            .unwrap();
        drop(connection);
        pages_fetched(&pool, "tokens").await - before
    };
    let filters = accepted_filters();
    assert_eq!(filters.len(), 36);
    // Postgres makes up to five custom plans, then it may use a generic plan.
    for _ in 0..7 {
        for filter in &filters {
            let pages = pages_of(filter).await;
            assert!(pages < 60, "{pages} pages for {filter:?}");
        }
    }
    // The API refuses this filter, because it reads all records.
    let without_user = TokenFilter {
        bank: Some("none".into()),
        ..TokenFilter::default()
    };
    assert!(pages_of(&without_user).await > 3000);
}

#[tokio::test(flavor = "multi_thread")]
async fn queries_for_one_token_do_not_read_the_other_tokens_of_its_user() {
    let world = World::unchecked().await;
    for statement in SEED.split_inclusive(';') {
        world.db.execute(statement).await.unwrap();
    }
    let tokens = busy_tokens(&world.db).await;
    let pool = one_connection(&world).await;
    let caller = Caller {
        client: "c".into(),
        request_id: "r".into(),
        source_ip: None,
    };
    let min_life = Duration::ZERO;
    let pages = async |before: i64| pages_fetched(&pool, "tokens|slots").await - before;

    let rows: Vec<_> = tokens
        .iter()
        .map(|(token_id, ..)| HandoutRow {
            event_id: Uuid::now_v7(),
            occurred_at: Utc::now(),
            user_id: "busy",
            token_id: *token_id,
            caller: &caller,
            min_life,
        })
        .collect();
    // Batches of one row and of several rows are different prepared statements.
    let (single, batched) = rows.split_at(rows.len() / 2);
    for (rows, batch_size) in [(single, 1), (batched, 2)] {
        let before = pages(0).await;
        for rows in rows.chunks(batch_size) {
            let mut connection = pool.acquire().await.unwrap();
            let handed = insert_handouts(&mut connection, rows, DateTime::UNIX_EPOCH).await;
            assert_eq!(handed.unwrap().len(), rows.len());
        }
        let handouts = pages(before).await;
        assert!(
            handouts < 6 * rows.len() as i64,
            "{handouts} pages for {} handouts, batches of {batch_size}",
            rows.len()
        );
    }

    let before = pages(0).await;
    for (_, bank, _) in &tokens {
        let combination = Combination {
            user_id: "busy".into(),
            country: None,
            bank: Some(bank.as_str().into()),
            access: Access::default(),
        };
        let slot = find_slot(
            &mut pool.acquire().await.unwrap(),
            &combination,
            DateTime::UNIX_EPOCH,
            min_life,
        )
        .await;
        assert!(slot.unwrap().pointer.is_some());
    }
    let slots = pages(before).await;
    assert!(
        slots < 12 * EXECUTIONS,
        "{slots} pages for {EXECUTIONS} slots"
    );

    let before = pages(0).await;
    for (id, _, issued_at) in &tokens {
        let filter = TokenFilter {
            user_id: Some("busy".into()),
            ..TokenFilter::default()
        };
        let after = Some((*issued_at, *id));
        assert_eq!(
            list_tokens(&mut pool.acquire().await.unwrap(), &filter, after, 10)
                .await
                .unwrap()
                .len(),
            10
        );
    }
    let lists = pages(before).await;
    assert!(
        lists < 20 * EXECUTIONS,
        "{lists} pages for {EXECUTIONS} lists of ten"
    );

    let before = pages(0).await;
    assert_eq!(
        expire_tokens(&mut pool.acquire().await.unwrap(), Utc::now(), 100)
            .await
            .unwrap(),
        10
    );
    let expired = pages(before).await;
    assert!(expired < 500, "{expired} pages to expire ten");
}
