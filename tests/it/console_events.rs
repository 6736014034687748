//! The console's page of one event, its verification against the sealed log, and the log's figures on the overview.

use chrono::{TimeDelta, Utc};
use serde_json::{Value, json};
use sqlx::Executor;

use crate::audit::{event, insert};
use crate::sealing::{FAST, fetch, seed, wait_for_size};
use crate::support::page::{Page, get_page};
use crate::support::{Api, Replica, World};

const AUDIT_READS: &str = "SELECT count(*) FROM audit_events WHERE kind = 'audit.read'";

/// Returns the newest event of this kind.
async fn find_event(api: &Api, kind: &str) -> Value {
    let list = api.get(&format!("/audit/events?kind={kind}&limit=1")).await;
    list.body["items"][0].clone()
}

async fn verify(api: &Api, event: &Value) -> Page {
    let path = format!("/console/events/{}?verify=1", event["id"].as_str().unwrap());
    get_page(api, &path).await
}

/// Starts a sealing replica and seals every event. Returns the event of a mint, which is not the last one.
async fn seal(world: &World) -> (Replica, Value) {
    let replica = world.replica_with(&[FAST]).await;
    seed(world, &replica, 4).await;
    let minted = find_event(&replica, "token.minted").await;
    let events = world.count("SELECT count(*) FROM audit_events").await;
    wait_for_size(&replica, events as u64).await;
    (replica, minted)
}

/// Runs statements that the owner of the database could run.
async fn tamper(world: &World, statements: &'static str) {
    sqlx::raw_sql(statements).execute(&world.db).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_has_a_page_with_its_fields_and_each_view_is_recorded() {
    let world = World::new().await;
    let replica = world.replica_with(&[("SEAL_INTERVAL", "off")]).await;
    let request = json!({"userId": "u <b>", "bank": "B&B", "access": {"accounts": true}});
    let minted = replica.issue(request.clone()).await;
    replica.issue(request).await.assert_reused(&minted);
    for kind in ["token.minted", "token.reused"] {
        let event = find_event(&replica, kind).await;
        let text = |name: &str| event[name].as_str().unwrap();
        let path = format!("/console/events/{}", text("id"));
        let audit_link = format!("<a href=\"{path}\">");
        get_page(&replica, "/console/audit")
            .await
            .has(200, &audit_link);
        let token = format!("/console/tokens/{}", minted.text("id"));
        get_page(&replica, &token).await.has(200, &audit_link);

        let before = world.count(AUDIT_READS).await;
        let page = get_page(&replica, &path).await;
        assert_eq!(world.count(AUDIT_READS).await, before + 1);
        page.has(200, kind);
        for member in [
            "id",
            "client",
            "requestId",
            "sourceIp",
            "tokenId",
            "fingerprint",
        ] {
            page.has(200, &format!("<code>{}</code>", text(member)));
        }
        page.has(200, "<code>u &#60;b&#62;</code>");
        page.has(200, "any country · B&#38;B · accounts");
        page.has(200, ">Verify this event</button>");
        assert!(!page.html.contains("role=\"status\""), "{}", page.html);
        let read = find_event(&replica, "audit.read").await;
        assert_eq!(read["detail"], json!({"filter": {"id": text("id")}}));
        assert_eq!(read["requestId"], page.header("x-request-id"));

        let page = verify(&replica, &event).await;
        page.has(
            200,
            "This event is not sealed yet. This replica does not seal",
        );
    }
    let unknown = "/console/events/01a204ea-98b4-7d02-8f2e-3a9b1c64d57e";
    let page = get_page(&replica, unknown).await;
    page.has(404, "no event has this id");
    let page = get_page(&replica, &format!("{unknown}?x=1")).await;
    page.has(400, "x is not a parameter");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_event_is_verified_with_its_place_in_the_log() {
    let world = World::new().await;
    let (replica, minted) = seal(&world).await;
    let id = minted["id"].as_str().unwrap();
    let proof = replica.get(&format!("/audit/events/{id}/proof")).await;
    let index = proof.body["leafIndex"].as_u64().unwrap();
    let (entry, checkpoint) = (index + 1, proof.text("checkpoint"));
    let size = checkpoint.lines().nth(1).unwrap();
    let page = verify(&replica, &minted).await;
    let place = format!("contains this event as entry {entry} of {size} (leaf index {index})");
    page.has(200, &place);
    page.has(200, &format!("<pre>{}</pre>", checkpoint.trim_end()));
    page.has(200, &format!("href=\"/audit/events/{id}/proof\""));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_changed_is_not_verified() {
    let world = World::new().await;
    let (replica, minted) = seal(&world).await;
    let change = "ALTER TABLE audit_events DISABLE TRIGGER USER;
                  UPDATE audit_events SET client = 'nobody' WHERE kind = 'token.minted'";
    tamper(&world, change).await;
    let page = verify(&replica, &minted).await;
    page.has(200, "role=\"alert\"");
    page.has(200, "has another entry in the place of this event");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_not_verified_by_a_changed_log() {
    let world = World::new().await;
    let (replica, minted) = seal(&world).await;
    replica.service.stop().await;
    let replica = world.replica_with(&[("SEAL_INTERVAL", "off")]).await;
    for (change, expected) in [
        // Only the hash of the last event, which is another one.
        (
            "UPDATE audit_tiles SET hashes = overlay(hashes PLACING sha256('') FROM length(hashes) - 31)",
            "do not lead to the root in its checkpoint",
        ),
        (
            "DELETE FROM audit_tiles",
            "has another entry in the place of this event",
        ),
        (
            "UPDATE audit_log SET checkpoint = 'x'",
            "the checkpoint of the sealed log cannot be read",
        ),
    ] {
        tamper(&world, change).await;
        let page = verify(&replica, &minted).await;
        page.has(200, "role=\"alert\"");
        page.has(200, expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_shows_the_last_checkpoint_and_the_lag() {
    let world = World::new().await;
    let off = world.replica_with(&[("SEAL_INTERVAL", "off")]).await;
    let page = get_page(&off, "/console/").await;
    page.has(200, "<dt>Sealed events</dt><dd>0</dd>");
    page.has(200, "<dt>Last checkpoint</dt><dd>sealing is off</dd>");
    page.has(
        200,
        "<dt>Oldest event not sealed</dt><dd>sealing is off</dd>",
    );
    assert!(!page.html.contains("Root hash"), "{}", page.html);

    // Keeps the log from being sealed.
    let mut lock = world.db.begin().await.unwrap();
    lock.execute("SELECT FROM audit_log FOR UPDATE")
        .await
        .unwrap();
    let waiting = world.replica_with(&[FAST]).await;
    let at = Utc::now() - TimeDelta::minutes(5);
    insert(&world.db, &[event(1, at, "audit.read")]).await;
    let page = get_page(&waiting, "/console/").await;
    page.has(200, "<dt>Last checkpoint</dt><dd>none yet</dd>");
    page.has(200, "<span class=\"bad\">5 min old</span>");
    lock.rollback().await.unwrap();

    let (replica, _) = seal(&world).await;
    let checkpoint = fetch(&replica, "/audit/log/checkpoint").await.unwrap();
    let checkpoint = String::from_utf8(checkpoint).unwrap();
    let lines: Vec<_> = checkpoint.lines().collect();
    let page = get_page(&replica, "/console/").await;
    page.has(200, &format!("<dt>Sealed events</dt><dd>{}</dd>", lines[1]));
    page.has(
        200,
        " s ago</dd></div>\n    <div><dt>Oldest event not sealed</dt><dd>none</dd>",
    );
    page.has(200, &format!("Root hash <code>{}</code>", lines[2]));
}
