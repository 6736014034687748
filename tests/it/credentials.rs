//! A password that changes while the service runs.

use serde_json::json;
use sqlx::Executor;

use crate::support::server::Server;
use crate::support::{World, wait_until_all_succeed};

#[tokio::test(flavor = "multi_thread")]
async fn new_connections_use_the_current_password_of_database_url_file() {
    let server = Server::start(&[]).await;
    let world = World::on(server.url()).await;
    let mut admin = server.admin().await;
    let role = "CREATE ROLE service LOGIN SUPERUSER PASSWORD 'first'";
    admin.execute(role).await.unwrap();
    let hba = "local all postgres trust\nlocal all all scram-sha-256\n";
    std::fs::write(server.data_dir.join("pgdata/pg_hba.conf"), hba).unwrap();
    admin.execute("SELECT pg_reload_conf()").await.unwrap();

    let file = server.data_dir.join("database-url");
    let write_password = |password: &str| {
        let user = format!("user=service&password={password}");
        std::fs::write(&file, server.url().replace("user=postgres", &user)).unwrap();
    };
    write_password("first");
    let settings = [
        ("DATABASE_URL", ""),
        ("DATABASE_URL_FILE", file.to_str().unwrap()),
    ];
    let replica = world.replica_with(&settings).await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    minted.assert_minted("fwd=uri-miss; stored");

    let change = "ALTER ROLE service PASSWORD 'second'";
    admin.execute(change).await.unwrap();
    write_password("second");
    let terminate =
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'service'";
    assert!(server.count(terminate).await > 0);
    wait_until_all_succeed(&world, &replica, &minted).await;
    replica.service.stop().await;
    drop(world);
    server.stop().await;
}
