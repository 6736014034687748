//! Callers that hang up: work for them that has not started is cancelled.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use serde_json::json;

use crate::metrics::scrape;
use crate::support::{World, eventually, token_request};
use crate::tls::{CertificateFiles, exchange};

const CALLERS: usize = 20;

const LIST: &[u8] = b"GET /bank/tokens/ HTTP/1.1\r\nhost: localhost\r\n\
                      authorization: Basic YWRtaW46YWRtaW4tc2VjcmV0\r\n\r\n";

/// Returns the name of the sample that counts requests whose callers hung up.
fn hung_up_sample(method: &str) -> String {
    format!(r#"http_requests_total{{method="{method}",route="/bank/tokens/",status="hung-up"}}"#)
}

#[tokio::test(flavor = "multi_thread")]
async fn queued_handouts_of_callers_that_closed_their_connection_are_not_recorded() {
    let world = World::new().await;
    let replica = world.replica().await;
    replica.issue(json!({"userId": "u"})).await;
    // The first handout waits for the lock. The others wait in the queue of the writer.
    let lock = world.lock_table("audit_events IN SHARE MODE").await;
    let first = TcpStream::connect(replica.service.addr()).unwrap();
    (&first).write_all(&token_request("u")).unwrap();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock' AND query LIKE '%INTO audit_events%'";
    eventually("the first handout waits", async || {
        world.count(waiting).await > 0
    })
    .await;
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let caller = TcpStream::connect(replica.service.addr()).unwrap();
            (&caller).write_all(&token_request("u")).unwrap();
            caller
        })
        .collect();
    eventually("the handouts are queued", async || {
        scrape(&replica).await["audit_queue_depth"] == CALLERS as f64
    })
    .await;
    for (index, caller) in callers.iter().enumerate() {
        // Sends a FIN, as closing does. Closing also answers later data with a RST.
        caller.shutdown(Shutdown::Write).unwrap();
        if index % 2 == 0 {
            // Fails if the service has closed the connection already.
            let _ = caller.shutdown(Shutdown::Both);
        }
    }
    eventually("the service notices", async || {
        let samples = scrape(&replica).await;
        samples.get(&hung_up_sample("POST")) == Some(&(CALLERS as f64))
    })
    .await;
    lock.rollback().await.unwrap();
    drop(first);
    // This handout is recorded after those in the queue.
    assert_eq!(replica.issue(json!({"userId": "u"})).await.status, 200);
    let reused = "SELECT count(*) FROM audit_events WHERE kind = 'token.reused'";
    let reused = world.count(reused).await;
    assert!(reused <= 2, "{reused} handouts are recorded");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_ends_when_its_caller_closes_the_tls_connection() {
    let world = World::new().await;
    let certificate = CertificateFiles::new();
    let replica = world.replica_with(&certificate.settings()).await;
    let address = replica.service.addr();
    // Other requests and the cleanup wait for the lock too.
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND wait_event_type = 'Lock' AND query LIKE '%ORDER BY issued_at DESC, id DESC%'";
    for (count, has_close_notify) in [(1, true), (2, false)] {
        let lock = world.lock_table("tokens IN ACCESS EXCLUSIVE MODE").await;
        let mut caller = certificate.connect(address);
        caller.write_all(LIST).unwrap();
        eventually("the request waits for the lock", async || {
            world.count(waiting).await == 1
        })
        .await;
        if has_close_notify {
            caller.conn.send_close_notify();
            caller.flush().unwrap();
        } else {
            caller.sock.shutdown(Shutdown::Write).unwrap();
        }
        eventually("the service notices", async || {
            let metrics = exchange(&mut certificate.connect(address), "/metrics");
            metrics.contains(&format!("{} {count}\n", hung_up_sample("GET")))
        })
        .await;
        lock.rollback().await.unwrap();
    }
}
