//! A role that may open fewer connections than the service is configured for.

use serde_json::json;
use sqlx::{AssertSqlSafe, PgPool};
use token_vendor::db::schema;
use uuid::Uuid;

use crate::support::cluster::create_empty_database;
use crate::support::{World, issue_to_new_users, run, wait_until_all_succeed};

/// Creates a database and a role that owns it and may open this many connections. Returns their URL.
///
/// Superusers are exempt from the limit, so the role is none.
async fn create_limited_role(connections: u32) -> (World, String) {
    let url = create_empty_database().await;
    let role = format!("limited_{}", Uuid::new_v4().simple());
    let db = PgPool::connect(&url).await.unwrap();
    let own = format!(
        "CREATE ROLE {role} LOGIN;
         DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO {role}', current_database()); END $$"
    );
    sqlx::raw_sql(AssertSqlSafe(own))
        .execute(&db)
        .await
        .unwrap();
    let limited_url = url.replace("user=postgres", &format!("user={role}"));
    let options = schema::connect_options(&limited_url.clone().into()).unwrap();
    schema::migrate(&options).await.unwrap();
    let limit = format!("ALTER ROLE {role} CONNECTION LIMIT {connections}");
    sqlx::raw_sql(AssertSqlSafe(limit))
        .execute(&db)
        .await
        .unwrap();
    (World::on(url).await, limited_url)
}

#[tokio::test(flavor = "multi_thread")]
async fn reuse_and_mints_work_within_the_connection_limit_of_the_role() {
    let (world, url) = create_limited_role(5).await;
    let replica = world.replica_with(&[("DATABASE_URL", &url)]).await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");
    tokio::join!(
        issue_to_new_users(&replica, 30),
        wait_until_all_succeed(&world, &replica, &minted)
    );
    // After a failover, new users need every connection before the first reuse does.
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'token-vendor'";
    let terminated = world.count(terminate).await;
    assert!((1..=5).contains(&terminated), "{terminated}");
    issue_to_new_users(&replica, 150).await;
    wait_until_all_succeed(&world, &replica, &minted).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn serve_refuses_a_role_with_too_few_connections() {
    let (world, url) = create_limited_role(2).await;
    let settings = [("DATABASE_URL", &*url), ("STARTUP_WAIT", "300ms")];
    let ended = run(&["serve"], &world.variables(&settings)).await;
    ended.refused(1, "connections");
}
