//! The search box of the console: each meaning of a text, several, none, and a user without a record.

use chrono::Utc;
use reqwest::Method;
use serde_json::json;
use token_vendor::db::search::{SearchIds, find_recorded_ids};
use token_vendor::model::{AuditEvent, Scope};
use uuid::Uuid;

use crate::audit::{event, insert};
use crate::audit_plans::{one_connection, pages_fetched, seed};
use crate::support::database_proxy::DatabaseProxy;
use crate::support::page::{Page, get_page, post_form, search};
use crate::support::{ADMIN, Api, Replica, World, send};

const AUDITOR: (&str, &str) = ("auditor", "secret");

/// Mints a token for a request with this id.
async fn issue(api: &Api, user_id: &str, request_id: &str) -> crate::support::Answer {
    let request = api.post("/bank/tokens/", &json!({"userId": user_id}));
    let minted = send(request.header("x-request-id", request_id)).await;
    assert_eq!(minted.status, 201, "{minted:?}");
    minted
}

/// Submits the search form as another client than the admin.
async fn search_by(replica: &Replica, client: (&str, &str), text: &str) -> Page {
    let form = Page::of(replica.request_by(client, Method::GET, "/console/search")).await;
    let form_token = form.attribute("formToken", "value");
    let fields = [("formToken", &*form_token), ("text", text)];
    let post = post_form(replica, "/console/search", &fields);
    let body = post
        .build()
        .unwrap()
        .body()
        .unwrap()
        .as_bytes()
        .unwrap()
        .to_vec();
    let request = replica.request_by(client, Method::POST, "/console/search");
    let request = request.header("content-type", "application/x-www-form-urlencoded");
    Page::of(request.body(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_meaning_of_a_text_leads_to_the_page_of_its_record() {
    let world = World::new().await;
    world.add_client(AUDITOR, &[Scope::AuditRead]).await;
    let replica = world.replica().await;
    let (user, request_id) = ("u 1/&?#<b>", "req 1/&?#<b>");
    let minted = issue(&replica, user, request_id).await;
    let id = minted.text("id");
    replica
        .issue(json!({"userId": user}))
        .await
        .assert_reused(&minted);
    let events = replica.get("/audit/events?kind=token.reused").await;
    let event = &events.body["items"][0];
    let [event_id, fingerprint] = ["id", "fingerprint"].map(|name| event[name].as_str().unwrap());
    let token_page = |meaning: &str| format!("/console/tokens/{id}?found={meaning}");
    for (text, location) in [
        (
            user,
            "/console/users?userId=u+1%2F%26%3F%23%3Cb%3E&found=user+id".into(),
        ),
        (
            &format!("\t{user} "),
            "/console/users?userId=u+1%2F%26%3F%23%3Cb%3E&found=user+id".into(),
        ),
        (id, token_page("token+id")),
        (&id.to_uppercase(), token_page("token+id")),
        (
            event_id,
            format!("/console/events/{event_id}?found=event+id"),
        ),
        (
            request_id,
            "/console/audit?requestId=req+1%2F%26%3F%23%3Cb%3E".into(),
        ),
        (fingerprint, token_page("fingerprint")),
        (&fingerprint.to_uppercase(), token_page("fingerprint")),
        (ADMIN.0, "/console/clients/admin?found=API+key".into()),
        (minted.token(), token_page("token+string")),
        (
            &format!(" {}\n", minted.token()),
            token_page("token+string"),
        ),
        (
            minted.text("verificationUrl"),
            token_page("verification+link"),
        ),
    ] {
        let found = search(&replica, text).await;
        assert_eq!(
            (found.status, found.header("location")),
            (303, &*location),
            "{text:?}"
        );
        let page = get_page(&replica, &location).await;
        match location.split_once("found=") {
            Some((_, meaning)) => {
                page.has(200, &format!("Found by its {}.", meaning.replace('+', " ")));
            }
            None => page.has(200, "value=\"req 1/&#38;?#&#60;b&#62;\""),
        }
        assert!(!page.html.contains(minted.token()), "{text:?}");
    }
    let found = search_by(&replica, AUDITOR, ADMIN.0).await;
    assert_eq!(found.header("location"), "/console/audit?client=admin");
    for page in ["users?userId=u", &format!("tokens/{id}"), "clients/admin"] {
        let separator = if page.contains('?') { '&' } else { '?' };
        let invalid = format!("/console/{page}{separator}found=%3Cb%3E");
        get_page(&replica, &invalid).await.has(400, "found must be");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_of_deleted_records_lead_to_what_is_left() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    let minted = issue(&replica, "u", "r").await;
    let fingerprint: String = sqlx::query_scalar("DELETE FROM tokens RETURNING fingerprint")
        .fetch_one(&world.db)
        .await
        .unwrap();
    let id = minted.text("id");
    for (text, location, content) in [
        (
            "u",
            "/console/users?userId=u&found=user+id".to_owned(),
            "No tokens on record.",
        ),
        (
            id,
            format!("/console/tokens/{id}?found=token+id"),
            "No token record has this id.",
        ),
        (
            &fingerprint,
            format!("/console/audit?fingerprint={fingerprint}"),
            id,
        ),
    ] {
        let found = search(&replica, text).await;
        assert_eq!(found.header("location"), location);
        get_page(&replica, &location).await.has(200, content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_text_that_several_records_have_lists_them() {
    let world = World::new().await;
    let replica = world.replica().await;
    issue(&replica, ADMIN.0, ADMIN.0).await;
    let page = search(&replica, ADMIN.0).await;
    page.has(200, "The text belongs to 3 records");
    for (meaning, address) in [
        ("user id", "/console/users?userId=admin&#38;found=user+id"),
        ("request id", "/console/audit?requestId=admin"),
        ("API key", "/console/clients/admin?found=API+key"),
    ] {
        page.has(200, &format!("href=\"{address}\""));
        page.has(200, &format!("by its {meaning}</li>"));
    }
    // A user id can be a UUID, even that of a token.
    let id = issue(&replica, "u", "r").await.text("id").to_owned();
    issue(&replica, &id, "r").await;
    let page = search(&replica, &id).await;
    page.has(
        200,
        &format!("href=\"/console/tokens/{id}?found=token+id\""),
    );
    page.has(
        200,
        &format!("href=\"/console/users?userId={id}&#38;found=user+id\""),
    );
    assert_eq!(world.count(LOOKUPS).await, 0);
}

const LOOKUPS: &str = "SELECT count(*) FROM audit_events WHERE kind = 'token.looked_up'";

#[tokio::test(flavor = "multi_thread")]
async fn a_text_without_a_record_is_not_repeated_and_recorded_as_a_lookup() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = issue(&replica, "u", "r").await;
    let link = minted.text("verificationUrl");
    let unknown_link = link.replace(minted.token(), "no-such-token");
    let (uuid, fingerprint) = (Uuid::now_v7().to_string(), "ab".repeat(32));
    for (number, (text, meanings)) in [
        ("nobody-1", "user id, request id, API key and token string"),
        ("no body", "user id, request id and token string"),
        ("jonas@example.com", "request id and token string"),
        ("ž\u{7}", "token string"),
        (
            &uuid,
            "user id, token id, event id, request id, API key and token string",
        ),
        (
            &Uuid::new_v4().to_string(),
            "user id, token id, event id, request id, API key and token string",
        ),
        (
            &fingerprint,
            "user id, request id, fingerprint, API key and token string",
        ),
        (&"y".repeat(512), "token string"),
        (&unknown_link, "verification link"),
    ]
    .into_iter()
    .enumerate()
    {
        let page = search(&replica, text).await;
        page.has(
            404,
            &format!("Nothing on record. The text was searched as {meanings}."),
        );
        assert!(
            !page.html.contains(text) && !page.html.contains("no-such-token"),
            "{}",
            page.html
        );
        assert_eq!(world.count(LOOKUPS).await, number as i64 + 1, "{text}");
    }
    for invalid in ["", " ", &"y".repeat(513), &link.replace(minted.token(), "")] {
        let page = search(&replica, invalid).await;
        page.has(400, "text must have 1 to 512 characters");
    }
    assert_eq!(world.count(LOOKUPS).await, 9);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_sends_no_token_string_of_a_record_to_the_database() {
    let world = World::new().await;
    let proxy = DatabaseProxy::start(&world.url).await;
    let replica = world.replica_with(&[("DATABASE_URL", &proxy.url())]).await;
    let minted = issue(&replica, "u", "r").await;
    let unknown_link = minted
        .text("verificationUrl")
        .replace(minted.token(), "no-such-token");
    for text in [
        minted.token(),
        minted.text("verificationUrl"),
        &unknown_link,
        "other-text",
    ] {
        search(&replica, text).await;
    }
    let sent = proxy.sent();
    assert!(sent.contains("other-text"));
    assert!(!sent.contains(minted.token()) && !sent.contains("no-such-token"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_without_a_record_cannot_be_invalidated() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    // A view is an event of the user that it asks for.
    for _ in 0..2 {
        let page = get_page(&replica, "/console/users?userId=nobody").await;
        page.has(200, "No record of this user.");
        assert!(!page.html.contains("Invalidate"), "{}", page.html);
    }
    assert_eq!(search(&replica, "nobody").await.status, 404);
    let expired = AuditEvent {
        user_id: Some("with-event".into()),
        ..event(1, Utc::now(), "token.expired")
    };
    insert(&world.db, &[expired]).await;
    sqlx::query(
        "INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id, started_at)
         VALUES ('with-mint', gen_random_uuid(), '', '', 0, 3600, 1, 'h', 'c', 'r', now())",
    )
    .execute(&world.db)
    .await
    .unwrap();
    for user in ["with-event", "with-mint"] {
        let page = get_page(&replica, &format!("/console/users?userId={user}")).await;
        page.has(200, "No tokens on record.");
        page.has(200, "Invalidate all");
        assert_eq!(search(&replica, user).await.status, 303);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_reads_few_pages_of_a_large_log() {
    let world = World::unchecked().await;
    seed(&world.db, 100_000).await;
    // The planner knows that many rows have the same id, but not that they come last.
    sqlx::raw_sql(
        "INSERT INTO audit_events (kind, user_id, request_id, token_id, fingerprint)
         SELECT 'token.read', 'monitor', 'r-late', 'ffffffff-ffff-ffff-ffff-ffffffffffff', repeat('f', 64)
         FROM generate_series(1, 20000);
         INSERT INTO tokens (user_id, id, country, bank, access, lifetime, issued_at, expiration, ends_at, is_valid,
                             ciphertext, key_id, fingerprint)
         SELECT CASE WHEN n > 30000 THEN 'busy' ELSE 'u-' || n END, gen_random_uuid(), '', '', 0, 1, now(), now(), now(),
                false, '', 'k', md5(n::text) || md5(n::text)
         FROM generate_series(1, 50000) n;
         INSERT INTO mints (user_id, id, country, bank, access, lifetime, lease_epoch, holder, client, request_id, started_at)
         SELECT user_id, id, '', '', 0, 1, 1, '', '', '', now() FROM tokens;
         ANALYZE audit_events; ANALYZE tokens; ANALYZE mints",
    )
    .execute(&world.db)
    .await
    .unwrap();
    let once: (Uuid, String) = sqlx::query_as(
        "SELECT token_id, fingerprint || fingerprint FROM audit_events WHERE request_id = 'r-once' LIMIT 1",
    )
    .fetch_one(&world.db)
    .await
    .unwrap();
    let late = (Uuid::max(), "f".repeat(64));
    for (text, token) in [
        ("u-77", &once),
        ("u-once", &once),
        ("busy", &once),
        ("monitor", &late),
        ("r-once", &once),
        ("r-late", &late),
        ("r-50001", &once),
        ("c-7", &once),
        ("admin", &once),
        ("none", &once),
    ] {
        let ids = SearchIds {
            user_id: Some(text.into()),
            token_id: Some(token.0),
            request_id: Some(text.into()),
            fingerprint: Some(token.1.parse().unwrap()),
            api_key: Some(text.into()),
        };
        let one = one_connection(&world).await;
        // Postgres makes up to five custom plans, then it may use a generic plan.
        for _ in 0..7 {
            let before = pages_fetched(&one, "audit_events|tokens|mints").await;
            let found = find_recorded_ids(&mut one.acquire().await.unwrap(), &ids)
                .await
                .unwrap();
            let pages = pages_fetched(&one, "audit_events|tokens|mints").await - before;
            let is_user = ["u-77", "u-once", "busy"].contains(&text);
            let is_request = text.starts_with("r-");
            assert_eq!(
                (
                    found.has_user,
                    found.has_token,
                    found.has_request,
                    found.has_client
                ),
                (is_user, true, is_request, text == "admin"),
                "{text}"
            );
            assert_eq!(found.has_fingerprint, token == &late, "{text}");
            assert!(pages < 400, "{text}: {pages} pages");
        }
    }
}
