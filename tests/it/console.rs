//! The console: what its pages show and to whom, what they never show, and who may have it do something.

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Method, RequestBuilder};
use serde_json::json;
use token_vendor::db::overview::{list_minutes, roll_up_minutes};
use token_vendor::model::{AuditEvent, EventKind, Scope};
use uuid::Uuid;

use crate::audit::insert;
use crate::support::{ADMIN, Api, World};

/// A page, or whatever came instead.
struct Page {
    status: u16,
    headers: reqwest::header::HeaderMap,
    html: String,
}

impl Page {
    async fn of(request: RequestBuilder) -> Page {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let html = answer.text().await.unwrap();
        Page {
            status,
            headers,
            html,
        }
    }

    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// The first value of that attribute after that text.
    #[track_caller]
    fn attribute(&self, after: &str, name: &str) -> String {
        let found = self
            .html
            .split_once(after)
            .and_then(|(_, rest)| rest.split_once(&format!("{name}=\"")));
        let (_, rest) = found.unwrap_or_else(|| panic!("no {name} after {after} in {}", self.html));
        rest.split_once('"')
            .unwrap()
            .0
            .replace("&#38;", "&")
            .replace("&amp;", "&")
    }

    #[track_caller]
    fn has(&self, status: u16, text: &str) {
        assert!(
            self.status == status && self.html.contains(text),
            "{status} {text:?}: {} {}",
            self.status,
            self.html
        );
    }
}

async fn get(api: &Api, path: &str) -> Page {
    Page::of(api.request(Method::GET, path)).await
}

/// A form as a browser posts it from a page of the console.
fn post(api: &Api, path: &str, fields: &[(&str, &str)]) -> RequestBuilder {
    let mut body = url::form_urlencoded::Serializer::new(String::new());
    api.request(Method::POST, path)
        .header("content-type", "application/x-www-form-urlencoded")
        .header("sec-fetch-site", "same-origin")
        .body(body.extend_pairs(fields).finish())
}

async fn search(api: &Api, text: &str) -> Page {
    let form_token = get(api, "/console/search")
        .await
        .attribute("formToken", "value");
    let fields = [("formToken", &*form_token), ("tokenString", text)];
    Page::of(post(api, "/console/search", &fields)).await
}

const READINGS: &str = "SELECT count(*) FROM audit_events WHERE kind = 'audit.read'";
const ENDED: &str = "SELECT count(*) FROM audit_events WHERE kind = 'token.invalidated'";

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_whole_by_itself_and_none_shows_a_token_string() {
    let world = World::new().await;
    let replica = world.replica().await;
    let hostile = "<script>alert('x')</script>\"><img src=x onerror=y> & \u{202e}%";
    let minted = replica
        .issue(json!({"userId": hostile, "bank": "</td>\"'<b>&"}))
        .await;
    replica
        .issue(json!({"userId": hostile, "bank": "</td>\"'<b>&"}))
        .await
        .is_reused(&minted);
    let (id, token) = (minted.text("id"), minted.token());
    let user: String = url::form_urlencoded::byte_serialize(hostile.as_bytes()).collect();
    let paths = [
        "/console".to_owned(),
        "/console/".into(),
        "/console/search".into(),
        "/console/audit".into(),
        format!("/console/audit?userId={user}&requestId=%22%3E%3Cb%3E&client=%3Cb%3E"),
        format!("/console/users?userId={user}"),
        format!("/console/tokens/{id}"),
        format!("/console/tokens/{id}?done=1"),
        format!("/console/invalidate?tokenId={id}&reason=used"),
        format!("/console/invalidate?userId={user}&reason=used"),
        format!("/console/invalidate?userId={user}&reason=%3Cb%3E"),
        "/console/nothing".into(),
    ];
    let mut pages = Vec::new();
    for path in &paths {
        pages.push((path.clone(), get(&replica, path).await));
    }
    let found = search(&replica, token).await;
    assert_eq!(
        (found.status, found.header("location")),
        (303, &*format!("/console/tokens/{id}"))
    );
    pages.push(("found".into(), found));
    for unknown in ["<b>no-such-token", &"x".repeat(600), ""] {
        let page = search(&replica, unknown).await;
        assert!(
            unknown.is_empty() || !page.html.contains(unknown),
            "{}",
            page.html
        );
        pages.push((format!("search for {unknown:?}"), page));
    }
    let is_expected = |path: &str, status| match path {
        "/console/nothing" | "search for \"<b>no-such-token\"" => status == 404,
        _ if path.contains("=%3Cb%3E") || path.contains("xxx") || path.ends_with("\"\"") => {
            status == 400
        }
        "found" => status == 303,
        _ => status == 200,
    };
    for (path, page) in &pages {
        assert!(
            is_expected(path, page.status),
            "{path}: {} {}",
            page.status,
            page.html
        );
        assert_eq!(page.header("cache-control"), "no-store", "{path}");
        for secret in [token, ADMIN.1] {
            assert!(
                !page.html.contains(secret) && !format!("{:?}", page.headers).contains(secret),
                "{path}"
            );
        }
        if page.status == 303 {
            continue;
        }
        assert_eq!(
            page.header("content-type"),
            "text/html; charset=utf-8",
            "{path}"
        );
        assert_eq!(
            page.header("content-security-policy"),
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
             form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
            "{path}"
        );
        assert_eq!(
            (
                page.header("referrer-policy"),
                page.header("x-content-type-options")
            ),
            ("no-referrer", "nosniff")
        );
        for foreign in [
            "<script>",
            "<b>",
            "<img src=x",
            " style=",
            " onerror",
            "javascript:",
            "://",
            "<style",
        ] {
            let html = page.html.replace("onerror=y", "").replace(" onerror", "");
            let html = if foreign == " onerror" {
                &html
            } else {
                &page.html
            };
            assert!(
                !html.contains(foreign),
                "{foreign} in {path}: {}",
                page.html
            );
        }
    }
    let escaped = "&#60;script&#62;alert(&#39;x&#39;)";
    for path in [5, 6, 9] {
        pages[path].1.has(200, escaped);
    }
    for (path, page) in pages.iter().filter(|(_, page)| page.status == 200) {
        for reference in page
            .html
            .split("src=\"")
            .chain(page.html.split("stylesheet\" href=\""))
            .skip(1)
        {
            let Some(asset) = reference
                .split('"')
                .next()
                .filter(|asset| asset.starts_with("/console/assets/"))
            else {
                continue;
            };
            let answer = Page::of(replica.anonymous(Method::GET, asset)).await;
            assert_eq!(
                (answer.status, answer.header("x-content-type-options")),
                (200, "nosniff"),
                "{path} {asset}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_takes_the_scopes() {
    let world = World::new().await;
    let (auditor, operator) = (("auditor", "secret"), ("operator", "secret"));
    world.add_client(auditor, &[Scope::AuditRead]).await;
    let others: Vec<_> = Scope::ALL
        .iter()
        .copied()
        .filter(|scope| *scope != Scope::AuditRead)
        .collect();
    world.add_client(operator, &others).await;
    let replica = world.replica().await;
    let id = replica
        .issue(json!({"userId": "u"}))
        .await
        .text("id")
        .to_owned();
    let question = format!("/console/invalidate?tokenId={id}&reason=used");
    let by = |client, path: &str| Page::of(replica.request_by(client, Method::GET, path));
    for path in [
        "/console/",
        "/console/search",
        "/console/users?userId=u",
        "/console/audit",
        &question,
    ] {
        let nobody = Page::of(replica.anonymous(Method::GET, path)).await;
        nobody.has(401, "<h1>Not authenticated</h1>");
        assert_eq!(
            nobody.header("www-authenticate"),
            r#"Basic realm="token-vendor", charset="UTF-8""#
        );
        by(operator, path)
            .await
            .has(403, "lacks the scope audit:read");
    }
    for path in [
        format!("/console/tokens/{id}"),
        "/console/users?userId=u".into(),
    ] {
        let page = by(auditor, &path).await;
        page.has(200, "valid</span> until");
        assert!(!page.html.contains("Invalidate"), "{}", page.html);
        get(&replica, &path)
            .await
            .has(200, "action=\"/console/invalidate\"");
    }
    by(auditor, &question)
        .await
        .has(403, "lacks the scope tokens:invalidate");
    let form_token = get(&replica, &question)
        .await
        .attribute("formToken", "value");
    let fields = [
        ("formToken", &*form_token),
        ("tokenId", &id),
        ("reason", "used"),
    ];
    for client in [auditor, operator] {
        let post = post(&replica, "/console/invalidate", &fields)
            .build()
            .unwrap();
        let request = replica.request_by(client, Method::POST, "/console/invalidate");
        let request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(post.body().unwrap().as_bytes().unwrap().to_vec());
        Page::of(request).await.has(403, "lacks the scope");
    }
    assert_eq!(world.count(ENDED).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_found_by_its_string_and_by_its_link() {
    let world = World::new().await;
    let replica = world.replica().await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    for text in [
        minted.token(),
        &format!(" {}\n", minted.token()),
        minted.text("verificationUrl"),
    ] {
        let found = search(&replica, text).await;
        assert_eq!(
            found.header("location"),
            format!("/console/tokens/{}", minted.text("id")),
            "{text:?}"
        );
    }
    search(&replica, "other")
        .await
        .has(404, "No token on record has this token string");
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_at_events_is_on_record_and_at_figures_and_records_is_not() {
    let world = World::new().await;
    let replica = world.replica().await;
    let id = replica
        .issue(json!({"userId": "u"}))
        .await
        .text("id")
        .to_owned();
    for path in [
        "/console/",
        "/console/search",
        "/console/users?userId=u",
        "/console/audit?limit=0",
    ] {
        get(&replica, path).await;
    }
    assert_eq!(world.count(READINGS).await, 0);
    get(
        &replica,
        "/console/audit?userId=u&kind=&tokenId=&order=asc&from=2026-01-01T00:00",
    )
    .await
    .has(200, "token.minted");
    let token = get(&replica, &format!("/console/tokens/{id}")).await;
    token.has(200, "<strong>token.minted</strong>");
    let readings = replica.get("/audit/events?kind=audit.read&order=asc").await;
    let details: Vec<_> = readings.body["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| &event["detail"])
        .collect();
    let filter = json!({"userId": "u", "from": "2026-01-01T00:00:00Z"});
    let expected = [
        json!({"filter": filter, "order": "asc", "limit": 100}),
        json!({"filter": {"tokenId": id}, "order": "desc", "limit": 500}),
    ];
    assert_eq!(details, expected.iter().collect::<Vec<_>>());
    let reading = &readings.body["items"][1];
    assert_eq!(
        (&reading["client"], &reading["requestId"]),
        (&json!(ADMIN.0), &json!(token.header("x-request-id")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_that_no_page_of_ours_sent_does_nothing() {
    let world = World::new().await;
    world.add_client(("other", "secret"), Scope::ALL).await;
    let replica = world.replica().await;
    let id = replica
        .issue(json!({"userId": "u"}))
        .await
        .text("id")
        .to_owned();
    let question = |reason: &str| format!("/console/invalidate?tokenId={id}&reason={reason}");
    let token_of = async |path: &str, client| {
        let page = Page::of(replica.request_by(client, Method::GET, path)).await;
        page.attribute("formToken", "value")
    };
    let right = token_of(&question("used"), ADMIN).await;
    let send = async |form_token: &str, lines: &[(&str, &str)]| {
        let fields = [
            ("formToken", form_token),
            ("tokenId", &*id),
            ("reason", "used"),
        ];
        let mut request = post(&replica, "/console/invalidate", &fields)
            .build()
            .unwrap();
        request.headers_mut().remove("sec-fetch-site");
        for (name, value) in lines {
            let name = reqwest::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let answer = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        answer.execute(request).await.unwrap().status().as_u16()
    };
    let mut refused = 0;
    for site in ["cross-site", "same-site", "none", ""] {
        assert_eq!(
            send(
                &right,
                &[("sec-fetch-site", site), ("origin", &replica.base)]
            )
            .await,
            403,
            "{site}"
        );
        refused += 1;
    }
    for origin in [
        "https://evil.example",
        "http://127.0.0.1",
        "https://127.0.0.1:1",
        "x",
    ] {
        assert_eq!(send(&right, &[("origin", origin)]).await, 403, "{origin}");
        refused += 1;
    }
    let same = [("sec-fetch-site", "same-origin")];
    for wrong in [
        "",
        "x",
        &right[1..],
        &token_of(&question("requested"), ADMIN).await,
        &token_of("/console/invalidate?userId=u&reason=used", ADMIN).await,
        &token_of("/console/search", ADMIN).await,
        &token_of(&question("used"), ("other", "secret")).await,
    ] {
        assert_eq!(send(wrong, &same).await, 403, "{wrong}");
        refused += 1;
    }
    assert_eq!(world.count(ENDED).await, 0);
    let search = post(
        &replica,
        "/console/search",
        &[("tokenString", "x"), ("formToken", "x")],
    );
    Page::of(search)
        .await
        .has(403, "not sent from a page of this console");
    for (index, lines) in [
        &[][..],
        &[("origin", "null")],
        &[("origin", &*replica.base)],
        &same,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(send(&right, lines).await, 303, "{lines:?}");
        assert_eq!(world.count(ENDED).await, 1, "{index}");
    }
    replica.service.stop().await;
    let denials = "SELECT sum((detail ->> 'count')::int) FROM audit_events
                   WHERE kind = 'access.denied' AND client = 'admin' AND detail ->> 'route' = '/console/invalidate'";
    assert_eq!(world.count(denials).await, refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_is_asked_about_done_once_and_shown() {
    let world = World::new().await;
    let replica = world.replica().await;
    let user = "u 1/&?#";
    let first = replica.issue(json!({"userId": user})).await;
    replica
        .issue(json!({"userId": user, "country": "LT"}))
        .await;
    let id = first.text("id");
    let confirm = async |question: &str, field: (&str, &str), reason: &str| {
        let page = get(&replica, question).await;
        page.has(200, "cannot be undone");
        let form_token = page.attribute("formToken", "value");
        let fields = [("formToken", &*form_token), field, ("reason", reason)];
        let answer = Page::of(post(&replica, "/console/invalidate", &fields)).await;
        assert_eq!(answer.status, 303, "{}", answer.html);
        answer.header("location").to_owned()
    };
    let question = format!("/console/invalidate?tokenId={id}&reason=compromised");
    let shown = confirm(&question, ("tokenId", id), "compromised").await;
    get(&replica, &shown)
        .await
        .has(200, "Done. This token has ended");
    get(&replica, &shown).await.has(200, "(compromised)");
    assert_eq!(world.count(ENDED).await, 1);
    get(&replica, &question).await.has(200, "has ended already");

    let question = "/console/invalidate?userId=u+1%2F%26%3F%23&reason=requested";
    get(&replica, question).await.has(200, "1 token<");
    let shown = confirm(question, ("userId", user), "requested").await;
    get(&replica, &shown)
        .await
        .has(200, "Done. No token of this user is valid.");
    assert_eq!(world.count(ENDED).await, 2);
    assert_ne!(replica.issue(json!({"userId": user})).await.text("id"), id);
    get(&replica, &shown).await.has(200, "was issued since");
    let unknown = format!(
        "/console/invalidate?tokenId={}&reason=used",
        Uuid::from_u128(1)
    );
    get(&replica, &unknown)
        .await
        .has(404, "no token has this id");
    for bad in [
        "",
        "?tokenId=1&reason=used",
        "?userId=u&reason=bored",
        "?userId=u&tokenId=x&reason=used",
    ] {
        get(&replica, &format!("/console/invalidate{bad}"))
            .await
            .has(400, "The request is not valid");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_pages_walk_all_that_match_and_export_the_same() {
    let world = World::new().await;
    let replica = world.replica().await;
    let at = Utc::now() - TimeDelta::minutes(10);
    let event = |n: i64| AuditEvent {
        id: Uuid::from_u128(n as u128),
        occurred_at: at + TimeDelta::seconds(n),
        kind: EventKind::TokenReused.to_string(),
        client: Some("c".into()),
        user_id: Some(format!("user-{n}")),
        request_id: None,
        source_ip: None,
        country: None,
        bank: None,
        access: None,
        token_id: None,
        fingerprint: None,
        detail: None,
    };
    insert(&world.db, &(0..23).map(event).collect::<Vec<_>>()).await;
    let from = (at + TimeDelta::seconds(3)).format("%FT%T%.3f");
    let mut path = format!(
        "/console/audit?userId=&client=c&kind=token.reused&from={from}&to=&order=asc&limit=6"
    );
    let mut found = Vec::new();
    let exported = loop {
        let page = get(&replica, &path).await;
        found.extend(
            page.html
                .split("<code>user-")
                .skip(1)
                .map(|rest| rest.split('<').next().unwrap().to_owned()),
        );
        let export = page.attribute("Export all that match", "href");
        let exported = replica
            .request(Method::GET, &export)
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap();
        if !page.html.contains("Next page") {
            break exported;
        }
        path = page
            .html
            .rsplit_once("\" rel=\"next\"")
            .unwrap()
            .0
            .rsplit_once("href=\"")
            .unwrap()
            .1
            .replace("&#38;", "&");
    };
    let expected: Vec<_> = (3..23).map(|n| n.to_string()).collect();
    assert_eq!(found, expected);
    assert_eq!(exported.lines().count(), expected.len());
    let wrong = get(
        &replica,
        "/console/audit?from=yesterday&userId=%3Cb%3E&nonsense=1",
    )
    .await;
    wrong.has(400, "from must be an RFC 3339 time");
    wrong.has(400, "nonsense is not a parameter");
    wrong.has(400, "value=\"&#60;b&#62;\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_pages_below_the_console_alone() {
    let world = World::new().await;
    let replica = world.replica().await;
    for (method, path, status, title) in [
        (Method::GET, "/console/nothing", 404, "Not found"),
        (Method::GET, "/console/tokens/1", 404, "Not found"),
        (Method::GET, "/console/assets/nothing.js", 404, "Not found"),
        (Method::DELETE, "/console/", 405, "Method not allowed"),
        (
            Method::GET,
            "/console/?x=1",
            400,
            "The request is not valid",
        ),
        (
            Method::GET,
            "/console/users",
            400,
            "The request is not valid",
        ),
        (
            Method::POST,
            "/console/search",
            415,
            "Unsupported media type",
        ),
    ] {
        let page = Page::of(replica.request(method, path).header("x-request-id", "r<1")).await;
        page.has(status, &format!("<h1>{title}</h1>"));
        page.has(status, "<code>r&#60;1</code>");
        assert_eq!(
            (page.header("content-type"), page.header("x-request-id")),
            ("text/html; charset=utf-8", "r<1")
        );
    }
    replica.get("/consoles").await.is_problem(404, "not-found");
    assert_eq!(
        Page::of(replica.request(Method::HEAD, "/console/"))
            .await
            .status,
        200
    );
}

/// Handouts and mints at random moments of the last hours, and how many there were in each minute.
async fn seed(world: &World, now: DateTime<Utc>) -> Vec<(DateTime<Utc>, i64)> {
    let mut random = fastrand::Rng::with_seed(5);
    let kinds = [
        "token.reused",
        "token.reused",
        "token.minted",
        "token.mint_failed",
        "token.mint_unknown",
        "audit.read",
    ];
    let events: Vec<_> = (0..900)
        .map(|n| AuditEvent {
            id: Uuid::from_u128(n),
            occurred_at: now - TimeDelta::milliseconds(random.i64(0..10_800_000)),
            kind: (*random.choice(&kinds).unwrap()).into(),
            client: None,
            user_id: None,
            request_id: None,
            source_ip: None,
            country: None,
            bank: None,
            access: None,
            token_id: None,
            fingerprint: None,
            detail: None,
        })
        .collect();
    insert(&world.db, &events).await;
    let counted = events.iter().filter(|event| event.kind != "audit.read");
    let mut minutes = std::collections::BTreeMap::new();
    for event in counted {
        *minutes.entry(minute(event.occurred_at)).or_insert(0) += 1;
    }
    minutes.into_iter().collect()
}

fn minute(at: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp(at.timestamp() / 60 * 60, 0).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_figures_are_the_trail_s_however_late_they_are_counted() {
    let world = World::new().await;
    sqlx::query("SELECT create_audit_partition(now() - interval '1 day')")
        .execute(&world.db)
        .await
        .unwrap();
    let now = Utc::now();
    let expected = seed(&world, now).await;
    let total = async || {
        let minutes = list_minutes(&world.db).await.unwrap();
        assert!(
            minutes.is_sorted_by(|a, b| a.minute < b.minute),
            "{minutes:?}"
        );
        let sum =
            |m: &token_vendor::db::overview::Minute| m.minted + m.reused + m.failed + m.unknown;
        minutes
            .iter()
            .filter(|m| sum(m) > 0)
            .map(|m| (m.minute, sum(m)))
            .collect::<Vec<_>>()
    };
    // Nobody has counted: the last hour is.
    let last_hour: Vec<_> = expected
        .iter()
        .copied()
        .filter(|(at, _)| *at >= minute(now) - TimeDelta::minutes(58))
        .collect();
    let live = total().await;
    assert!(live.ends_with(&last_hour), "{live:?} {last_hour:?}");
    // The last count was two hours ago, one of something older than a day among them.
    for ago in [TimeDelta::minutes(170), TimeDelta::days(2)] {
        let insert = "INSERT INTO handout_minutes VALUES ($1, 0, 0, 0, 0)";
        sqlx::query(insert)
            .bind(minute(now - ago))
            .execute(&world.db)
            .await
            .unwrap();
    }
    let mut counted = 0;
    while let count @ 1.. = roll_up_minutes(&world.db).await.unwrap() {
        counted += count;
    }
    assert!((168..=170).contains(&counted), "{counted}");
    assert_eq!(
        world
            .count(
                "SELECT count(*) FROM handout_minutes WHERE minute < now() - interval '25 hours'"
            )
            .await,
        0
    );
    let since: Vec<_> = expected
        .iter()
        .copied()
        .filter(|(at, _)| *at > minute(now - TimeDelta::minutes(170)))
        .collect();
    assert_eq!(total().await, since);
    // What commits into a minute that was counted is not in it: the trail has it.
    assert_eq!(roll_up_minutes(&world.db).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_overview_shows_what_every_replica_did() {
    let world = World::new().await;
    let replicas = [world.replica().await, world.replica().await];
    let order = json!({"userId": "u"});
    let minted = replicas[0].issue(order.clone()).await;
    for replica in [&replicas[0], &replicas[1], &replicas[1]] {
        replica.issue(order.clone()).await.is_reused(&minted);
    }
    for replica in &replicas {
        let page = get(replica, "/console/").await;
        page.has(200, "<dt>Reused</dt><dd>3</dd>");
        page.has(200, "<dt>Minted</dt><dd>1</dd>");
        page.has(200, "<dt>Hit ratio</dt><dd>75.0\u{202f}%</dd>");
        page.has(200, "8\u{202f}999");
        page.has(200, "never ran");
    }
    let clean = replicas[0].post("/maintenance/cleanup", &json!({}));
    assert_eq!(clean.send().await.unwrap().status(), 200);
    let stale = "INSERT INTO handout_minutes SELECT date_bin('1 minute', now(), 'epoch') - interval '20 hours', 1200, 0, 0, 0";
    sqlx::query(stale).execute(&world.db).await.unwrap();
    let page = get(&replicas[1], "/console/").await;
    page.has(200, "1\u{202f}201");
    page.has(200, "are not in these figures");
}
