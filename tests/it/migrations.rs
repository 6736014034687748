//! The schema that migrations make: what it holds, what it refuses, and that they change no data.

use chrono::{DateTime, Datelike, Months, TimeDelta, Utc};
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use sqlx::PgPool;
use token_vendor::db::overview::{find_figures, roll_up_minutes};
use token_vendor::db::{partitions, schema};

use crate::support::cluster::create_empty_database;
use crate::support::{World, send};

async fn names(db: &PgPool, query: &'static str) -> Vec<String> {
    sqlx::query_scalar(query).fetch_all(db).await.unwrap()
}

const PARTITIONS: &str = "SELECT inhrelid::regclass::text FROM pg_inherits
                          WHERE inhparent = 'audit_events'::regclass ORDER BY 1";

/// The partitions that there must be: this month and the three after it.
fn months() -> Vec<String> {
    let first = Utc::now().date_naive().with_day(1).unwrap();
    let months = (0..4).map(|ahead| first + Months::new(ahead));
    months
        .map(|at| at.format("audit_events_%Y_%m").to_string())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_is_there_with_its_keys_and_no_foreign_ones() {
    let world = World::new().await;
    let tables = "SELECT relname::text FROM pg_class WHERE relnamespace = 'public'::regnamespace
                  AND relkind IN ('r', 'p') AND NOT relispartition ORDER BY 1";
    let expected = [
        "_sqlx_migrations",
        "audit_events",
        "audit_horizon",
        "audit_log",
        "audit_retention",
        "audit_tiles",
        "client_minutes",
        "clients",
        "handout_minutes",
        "key_check",
        "maintenance",
        "mints",
        "replicas",
        "slots",
        "tokens",
        "upstream_budget",
    ];
    assert_eq!(names(&world.db, tables).await, expected);
    let keys = "SELECT conrelid::regclass || ' ' || pg_get_constraintdef(c.oid) FROM pg_constraint c
                JOIN pg_class r ON r.oid = conrelid
                WHERE contype IN ('p', 'f', 'u') AND r.relname <> '_sqlx_migrations' AND NOT r.relispartition
                AND r.relnamespace = 'public'::regnamespace
                ORDER BY 1";
    let expected = [
        "audit_events PRIMARY KEY (user_id, occurred_at, id)",
        "audit_horizon PRIMARY KEY (id)",
        "audit_log PRIMARY KEY (id)",
        "audit_retention PRIMARY KEY (id)",
        "audit_tiles PRIMARY KEY (level, n)",
        "client_minutes PRIMARY KEY (minute, client)",
        "clients PRIMARY KEY (api_key)",
        "handout_minutes PRIMARY KEY (minute)",
        "key_check PRIMARY KEY (id)",
        "maintenance PRIMARY KEY (id)",
        "mints PRIMARY KEY (user_id, id)",
        "replicas PRIMARY KEY (id)",
        "slots PRIMARY KEY (user_id, country, bank, access)",
        "tokens PRIMARY KEY (user_id, id)",
        "upstream_budget PRIMARY KEY (id)",
    ];
    assert_eq!(names(&world.db, keys).await, expected);
    let nullable = "SELECT table_name || '.' || column_name FROM information_schema.columns
                    WHERE table_name = 'slots' AND data_type LIKE 'timestamp%' AND is_nullable = 'YES'";
    assert!(
        names(&world.db, nullable).await.is_empty(),
        "a null would brick its row"
    );
    let budget = "SELECT count(*) FROM upstream_budget WHERE cardinality(minutes) = 61 AND cardinality(attempts) = 61";
    assert_eq!(world.count(budget).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn constraints_refuse_what_no_version_writes() {
    let world = World::new().await;
    let token = "INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at, is_valid,
                 invalidation_reason, ciphertext, key_id, fingerprint) VALUES ('u', gen_random_uuid(), '', '', 0, 1, now(), now(), now(), true, $$bored$$, '', 'k', 'f')";
    let mint = "INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id, started_at, outcome)
                VALUES ('u', gen_random_uuid(), '', '', 0, 1, 1, 'h', 'c', 'r', now(), 'lost')";
    for refused in [
        "INSERT INTO clients (api_key, name, secret_sha256, scopes) VALUES ('a b', 'n', sha256(''), '{}')",
        "INSERT INTO clients (api_key, name, secret_sha256, scopes) VALUES ('a', 'n', 'plain text', '{}')",
        "INSERT INTO clients (api_key, name, secret_sha256, scopes, oidc_subject) VALUES ('a', 'n', sha256(''), '{}', '')",
        "INSERT INTO upstream_budget (id, minutes, attempts) VALUES (2, '{}', '{}')",
        mint,
        token,
    ] {
        let error = sqlx::query(refused).execute(&world.db).await.unwrap_err();
        let code = error
            .as_database_error()
            .unwrap()
            .code()
            .unwrap()
            .into_owned();
        assert_eq!(code, "23514", "{refused}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trail_refuses_every_change_in_every_partition() {
    let world = World::new().await;
    let now = Utc::now();
    for ahead in 0..4 {
        let at: DateTime<Utc> = now + Months::new(ahead);
        sqlx::query("INSERT INTO audit_events (id, occurred_at, kind) VALUES (gen_random_uuid(), $1, 'test')")
            .bind(at)
            .execute(&world.db)
            .await
            .unwrap();
    }
    let before = world.count("SELECT count(*) FROM audit_events").await;
    let mut tables = names(&world.db, PARTITIONS).await;
    assert_eq!(tables, months());
    tables.push("audit_events".into());
    for table in tables {
        for change in [
            format!("UPDATE {table} SET kind = 'other'"),
            format!("UPDATE {table} SET occurred_at = occurred_at + interval '1 month'"),
            format!("DELETE FROM {table}"),
            format!("TRUNCATE {table}"),
            format!("TRUNCATE {table}, clients"),
            format!(
                "INSERT INTO {table} SELECT * FROM {table} ON CONFLICT (user_id, occurred_at, id) DO UPDATE SET kind = 'other'"
            ),
        ] {
            let changed = sqlx::raw_sql(sqlx::AssertSqlSafe(change.clone()))
                .execute(&world.db)
                .await;
            let error = changed.expect_err(&change).to_string();
            assert!(error.contains("append-only"), "{change}: {error}");
        }
    }
    assert_eq!(
        world.count("SELECT count(*) FROM audit_events").await,
        before
    );
    let far = sqlx::query(
        "INSERT INTO audit_events (id, occurred_at, kind) VALUES (gen_random_uuid(), $1, 'test')",
    )
    .bind(now + TimeDelta::days(4000))
    .execute(&world.db)
    .await;
    let far = far.unwrap_err();
    assert_eq!(
        far.as_database_error().unwrap().code().unwrap(),
        "23514",
        "no default partition"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_made_once_by_any_number_at_once() {
    let world = World::new().await;
    for partition in &months()[1..] {
        let drop = format!(
            "ALTER TABLE audit_events DETACH PARTITION {partition}; DROP TABLE {partition}"
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(drop))
            .execute(&world.db)
            .await
            .unwrap();
    }
    let create =
        async |_| partitions::create_partitions(&mut world.db.acquire().await.unwrap()).await;
    let made = join_all((0..10).map(create)).await;
    let made: u64 = made.into_iter().map(|made| made.unwrap()).sum();
    assert_eq!(made, 3);
    assert_eq!(names(&world.db, PARTITIONS).await, months());
    let truncate = format!("TRUNCATE {}", months()[3]);
    let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(truncate))
        .execute(&world.db)
        .await;
    assert!(refused.is_err(), "a partition made later is as append-only");
    assert_eq!(
        partitions::create_partitions(&mut world.db.acquire().await.unwrap())
            .await
            .unwrap(),
        0
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn migrations_run_again_over_data_change_nothing() {
    let world = World::new().await;
    let replica = world.replica().await;
    for user in ["u-1", "u-2"] {
        assert_eq!(replica.issue(json!({"userId": user})).await.status, 201);
    }
    let rows = async || {
        let mut all = Vec::new();
        for table in [
            "clients",
            "slots",
            "mints",
            "tokens",
            "audit_events",
            "upstream_budget",
            "_sqlx_migrations",
        ] {
            let query = format!("SELECT row_to_json(t)::text FROM {table} t ORDER BY 1");
            let rows = sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(query));
            all.extend(rows.fetch_all(&world.db).await.unwrap());
        }
        all
    };
    let before = rows().await;
    assert!(before.len() >= 12, "{before:?}");
    let options = schema::connect_options(&world.url.clone().into()).unwrap();
    schema::migrate(&options).await.unwrap();
    assert_eq!(rows().await, before);
    assert_eq!(replica.issue(json!({"userId": "u-1"})).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_column_can_be_added_to_every_table_while_the_service_runs() {
    let world = World::new().await;
    let replica = world.replica_with(&[("CLEANUP_INTERVAL", "off")]).await;
    let mut user = 0;
    let mut use_everything = async || {
        user += 1;
        let body = json!({"userId": format!("u-{user}")});
        let minted = replica.issue(body.clone()).await;
        replica.issue(body.clone()).await.assert_reused(&minted);
        let renewed = replica.issue_with(body.clone(), "no-cache").await;
        assert_eq!(renewed.status, 201, "{renewed:?}");
        for (path, request) in [
            (
                format!("/bank/tokens/{}/invalidate", minted.text("id")),
                json!({"reason": "used"}),
            ),
            (
                "/bank/tokens/invalidate".into(),
                json!({"reason": "used", "userId": body["userId"]}),
            ),
            (
                "/bank/tokens/lookup".into(),
                json!({"tokenString": renewed.token()}),
            ),
            ("/maintenance/cleanup".into(), json!({})),
        ] {
            let answer = send(replica.post(&path, &request)).await;
            assert_eq!(answer.status, 200, "{path}: {answer:?}");
        }
        for path in [
            "/bank/tokens/",
            "/audit/events",
            "/maintenance/cleanup",
            "/metrics",
            "/console/",
        ] {
            let response = replica.request(Method::GET, path).send().await.unwrap();
            assert_eq!(response.status(), 200, "{path}");
        }
        roll_up_minutes(&mut world.db.acquire().await.unwrap())
            .await
            .unwrap();
        find_figures(&mut world.db.acquire().await.unwrap())
            .await
            .unwrap();
    };
    use_everything().await;
    let add = "DO $$ DECLARE t regclass; BEGIN
        FOR t IN SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                 AND NOT relispartition AND relname <> '_sqlx_migrations' LOOP
            EXECUTE format('ALTER TABLE %s ADD COLUMN added_later text', t);
        END LOOP; END $$";
    sqlx::raw_sql(add).execute(&world.db).await.unwrap();
    sqlx::query("DELETE FROM handout_minutes")
        .execute(&world.db)
        .await
        .unwrap();
    use_everything().await;
    let partition = "SELECT create_audit_partition(now() + interval '9 months')";
    sqlx::query(partition).execute(&world.db).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_the_checksums_of_an_earlier_version_migrates() {
    let url = create_empty_database().await;
    let options = schema::connect_options(&url.clone().into()).unwrap();
    schema::migrate(&options).await.unwrap();
    let db = PgPool::connect(&url).await.unwrap();
    let stored =
        "SELECT version || ' ' || encode(checksum, 'hex') FROM _sqlx_migrations ORDER BY version";
    let current = names(&db, stored).await;
    for (version, checksum) in schema::EARLIER_CHECKSUMS {
        sqlx::query("UPDATE _sqlx_migrations SET checksum = decode($2, 'hex') WHERE version = $1")
            .bind(version)
            .bind(checksum)
            .execute(&db)
            .await
            .unwrap();
    }
    assert_ne!(names(&db, stored).await, current);
    schema::migrate(&options).await.unwrap();
    assert_eq!(names(&db, stored).await, current);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_changed_after_it_was_applied_is_refused() {
    let url = create_empty_database().await;
    let options = schema::connect_options(&url.clone().into()).unwrap();
    schema::migrate(&options).await.unwrap();
    let db = PgPool::connect(&url).await.unwrap();
    let forge = "UPDATE _sqlx_migrations SET checksum = 'other' WHERE version = (SELECT min(version) FROM _sqlx_migrations)";
    sqlx::query(forge).execute(&db).await.unwrap();
    let error = schema::migrate(&options).await.unwrap_err().to_string();
    assert!(error.contains("has been modified"), "{error}");
}

/// A character outside ASCII has no form in some server encodings, and such a server refuses the statement.
#[test]
fn migrations_are_ascii() {
    for migration in schema::MIGRATOR.iter() {
        let sql = migration.sql.as_str();
        assert!(sql.is_ascii(), "{}", migration.description);
    }
}

/// An upgrade of the system may change its collations, and rows are then missed.
#[tokio::test(flavor = "multi_thread")]
async fn no_index_is_in_the_order_of_a_language() {
    let world = World::new().await;
    let sorted = "SELECT DISTINCT format('%s %s', indexrelid::regclass, sorting::regcollation)
                  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid, unnest(i.indcollation::oid[]) AS sorting
                  WHERE c.relnamespace = 'public'::regnamespace AND sorting NOT IN (0, '\"C\"'::regcollation)";
    assert_eq!(names(&world.db, sorted).await, [""; 0]);
}
