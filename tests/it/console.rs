//! Console pages: their content, their security headers and the scopes they need.

use chrono::{TimeDelta, Utc};
use reqwest::Method;
use serde_json::json;
use token_vendor::model::{AuditEvent, EventKind, Scope};

use crate::audit::{event, insert};
use crate::console_forms::INVALIDATIONS;
use crate::support::page::{Page, get_page, post_form, search};
use crate::support::{ADMIN, World, send};

const AUDIT_READS: &str = "SELECT count(*) FROM audit_events WHERE kind = 'audit.read'";

#[tokio::test(flavor = "multi_thread")]
async fn pages_escape_input_load_only_own_assets_and_show_no_token_string() {
    let world = World::new().await;
    let replica = world.replica().await;
    let hostile = "<script>alert('x')</script>\"><img src=x onerror=y> & \u{202e}%";
    let minted = replica
        .issue(json!({"userId": hostile, "bank": "</td>\"'<b>&"}))
        .await;
    replica
        .issue(json!({"userId": hostile, "bank": "</td>\"'<b>&"}))
        .await
        .assert_reused(&minted);
    let (id, token) = (minted.text("id"), minted.token());
    let events = replica.get("/audit/events?kind=token.reused").await;
    let event = events.body["items"][0]["id"].as_str().unwrap();
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
        format!("/console/events/{event}"),
        format!("/console/events/{event}?verify=1"),
        "/console/nothing".into(),
    ];
    let mut pages = Vec::new();
    for path in &paths {
        pages.push((path.clone(), get_page(&replica, path).await));
    }
    let redirect = search(&replica, token).await;
    assert_eq!(
        (redirect.status, redirect.header("location")),
        (303, &*format!("/console/tokens/{id}?found=token+string"))
    );
    pages.push(("search for the token string".into(), redirect));
    for unknown in ["<b>no-such-token", &"x".repeat(600), ""] {
        let page = search(&replica, unknown).await;
        assert!(
            unknown.is_empty() || !page.html.contains(unknown),
            "{}",
            page.html
        );
        pages.push((format!("search for {unknown:?}"), page));
    }
    let has_expected_status = |path: &str, status| match path {
        "/console/nothing" | "search for \"<b>no-such-token\"" => status == 404,
        _ if path.contains("=%3Cb%3E") || path.contains("xxx") || path.ends_with("\"\"") => {
            status == 400
        }
        "search for the token string" => status == 303,
        _ => status == 200,
    };
    for (path, page) in &pages {
        assert!(
            has_expected_status(path, page.status),
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
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
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
        for forbidden in [
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
            let html = if forbidden == " onerror" {
                &html
            } else {
                &page.html
            };
            assert!(
                !html.contains(forbidden),
                "{forbidden} in {path}: {}",
                page.html
            );
        }
    }
    let escaped = "&#60;script&#62;alert(&#39;x&#39;)";
    for path in [5, 6, 9, 11, 12] {
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
            let response = Page::of(replica.anonymous(Method::GET, asset)).await;
            assert_eq!(
                (response.status, response.header("x-content-type-options")),
                (200, "nosniff"),
                "{path} {asset}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_need_audit_read_and_invalidation_also_needs_tokens_invalidate() {
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
    let confirmation = format!("/console/invalidate?tokenId={id}&reason=used");
    let get_as = |client, path: &str| Page::of(replica.request_by(client, Method::GET, path));
    let event = format!("/console/events/{id}?verify=1");
    for path in [
        "/console/",
        "/console/search",
        "/console/users?userId=u",
        "/console/audit",
        &event,
        &confirmation,
    ] {
        let anonymous = Page::of(replica.anonymous(Method::GET, path)).await;
        anonymous.has(401, "<h1>Authentication required</h1>");
        assert_eq!(
            anonymous.header("www-authenticate"),
            r#"Basic realm="token-vendor", charset="UTF-8""#
        );
        get_as(operator, path)
            .await
            .has(403, "lacks the scope audit:read");
    }
    for path in [
        format!("/console/tokens/{id}"),
        "/console/users?userId=u".into(),
    ] {
        let page = get_as(auditor, &path).await;
        page.has(200, "valid</span> until");
        assert!(!page.html.contains("Invalidate"), "{}", page.html);
        get_page(&replica, &path)
            .await
            .has(200, "action=\"/console/invalidate\"");
    }
    get_as(auditor, &confirmation)
        .await
        .has(403, "lacks the scope tokens:invalidate");
    let form_token = get_page(&replica, &confirmation)
        .await
        .attribute("formToken", "value");
    let fields = [
        ("formToken", &*form_token),
        ("tokenId", &id),
        ("reason", "used"),
    ];
    for client in [auditor, operator] {
        let post = post_form(&replica, "/console/invalidate", &fields)
            .build()
            .unwrap();
        let request = replica.request_by(client, Method::POST, "/console/invalidate");
        let request = request
            .header("content-type", "application/x-www-form-urlencoded")
            .body(post.body().unwrap().as_bytes().unwrap().to_vec());
        Page::of(request).await.has(403, "lacks the scope");
    }
    assert_eq!(world.count(INVALIDATIONS).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn views_of_events_and_records_are_recorded_and_views_of_figures_are_not() {
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
        get_page(&replica, path).await;
    }
    assert_eq!(world.count(AUDIT_READS).await, 0);
    let token_reads = "SELECT count(*) FROM audit_events WHERE kind = 'token.read'";
    assert_eq!(world.count(token_reads).await, 1);
    get_page(
        &replica,
        "/console/audit?userId=u&kind=&tokenId=&order=asc&from=2026-01-01T00:00",
    )
    .await
    .has(200, "token.minted");
    let token = get_page(&replica, &format!("/console/tokens/{id}")).await;
    token.has(200, "<strong>token.minted</strong>");
    assert_eq!(world.count(token_reads).await, 2);
    let audit_reads = replica.get("/audit/events?kind=audit.read&order=asc").await;
    let details: Vec<_> = audit_reads.body["items"]
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
    let last = &audit_reads.body["items"][1];
    assert_eq!(
        (&last["client"], &last["requestId"]),
        (&json!(ADMIN.0), &json!(token.header("x-request-id")))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_pages_list_all_matching_events_and_export_the_same() {
    let world = World::new().await;
    let replica = world.replica().await;
    let at = Utc::now() - TimeDelta::minutes(10);
    let kind = EventKind::TokenReused.name();
    let reused = |n: i64| AuditEvent {
        client: Some("c".into()),
        user_id: Some(format!("user-{n}")),
        ..event(n as u128, at + TimeDelta::seconds(n), kind)
    };
    insert(&world.db, &(0..23).map(reused).collect::<Vec<_>>()).await;
    let from = (at + TimeDelta::seconds(3)).format("%FT%T%.3f");
    let mut path = format!(
        "/console/audit?userId=&client=c&kind=token.reused&from={from}&to=&order=asc&limit=6"
    );
    let mut found = Vec::new();
    let exported = loop {
        let page = get_page(&replica, &path).await;
        found.extend(
            page.html
                .split("<code class=\"short\">user-")
                .skip(1)
                .map(|rest| rest.split('<').next().unwrap().to_owned()),
        );
        let export = page.attribute("Export all matching events", "href");
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
    let invalid = get_page(
        &replica,
        "/console/audit?from=yesterday&userId=%3Cb%3E&nonsense=1",
    )
    .await;
    invalid.has(400, "from must be an RFC 3339 time");
    invalid.has(400, "nonsense is not a parameter");
    invalid.has(400, "value=\"&#60;b&#62;\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_audit_page_hides_its_own_reads_unless_they_are_asked_for() {
    let world = World::new().await;
    let replica = world.replica().await;
    let at = Utc::now() - TimeDelta::hours(1);
    let of_request = |id, kind| AuditEvent {
        client: Some("c".into()),
        request_id: Some("r-1".into()),
        ..event(id, at, kind)
    };
    let events = [
        of_request(1, "audit.read"),
        of_request(2, "access.denied"),
        of_request(3, "cleanup.ran"),
    ];
    insert(&world.db, &events).await;
    let before = (at + TimeDelta::minutes(1)).format("%FT%T");
    let id = |event: &AuditEvent| {
        format!(
            "<tr role=\"row\">\n    <td role=\"cell\" data-label=\"Time\"><a href=\"/console/events/{}\">",
            event.id
        )
    };
    for (query, expected, is_hidden) in [
        ("", &[2, 3][..], true),
        ("client=c&userId=&showReads=", &[2, 3], true),
        ("showReads=1", &[1, 2, 3], false),
        ("requestId=r-1", &[1, 2, 3], false),
        ("kind=audit.read", &[1], false),
        ("kind=audit.read&kind=cleanup.ran", &[1, 3], false),
        ("kind=cleanup.ran", &[3], false),
        ("excludeKind=cleanup.ran", &[2], true),
        ("excludeKind=cleanup.ran&showReads=1", &[1, 2], false),
        ("excludeKind=audit.read&showReads=1", &[2, 3], false),
    ] {
        let path = format!("/console/audit?to={before}&order=asc&{query}");
        let page = get_page(&replica, &path).await;
        assert_eq!(page.status, 200, "{query}: {}", page.html);
        for (event, number) in events.iter().zip(1..) {
            let is_shown = page.html.contains(&id(event));
            assert_eq!(is_shown, expected.contains(&number), "{query}: {number}");
        }
        let hides = page.html.contains("Reads of the audit log are hidden");
        assert_eq!(hides, is_hidden, "{query}");
        // The export and the next page have the same events.
        let export = page.attribute("Export all matching events", "href");
        let export = replica.request(Method::GET, &export).send().await.unwrap();
        let exported = export.text().await.unwrap();
        assert_eq!(
            exported.lines().count(),
            expected.len(),
            "{query}: {exported}"
        );
        if expected.len() > 1 {
            let first = get_page(&replica, &format!("{path}&limit=1")).await;
            let next = first.attribute("<p><a class=\"button\"", "href");
            get_page(&replica, &next)
                .await
                .has(200, &id(&events[expected[1] - 1]));
        }
        if is_hidden {
            let link = page.attribute("Reads of the audit log are hidden", "href");
            get_page(&replica, &link).await.has(200, &id(&events[0]));
        }
    }
    let page = get_page(
        &replica,
        "/console/audit?kind=cleanup.ran&kind=access.denied&excludeKind=keys.rotated",
    )
    .await;
    page.has(
        200,
        "<summary>Only these kinds: cleanup.ran, access.denied</summary>",
    );
    page.has(200, "<summary>Without these kinds: keys.rotated</summary>");
    page.has(200, "name=\"kind\" value=\"access.denied\" checked>");
    page.has(200, "name=\"excludeKind\" value=\"keys.rotated\" checked>");
    let page = get_page(&replica, "/console/audit?kind=cleanup.ran&kind=%3Cb%3E").await;
    page.has(400, "kind must be one of");
    page.has(
        400,
        "<summary>Only these kinds: cleanup.ran, &#60;b&#62;</summary>",
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_of_the_audit_page_has_the_whole_ids() {
    let world = World::new().await;
    let replica = world.replica().await;
    let user = "<&>\u{202e}".repeat(32);
    let escaped = "&#60;&#38;&#62;\\u202e".repeat(32);
    let request = replica.post("/bank/tokens/", &json!({"userId": user}));
    let minted = send(request.header("x-request-id", "r-".repeat(64))).await;
    assert_eq!(minted.status, 201);
    let page = get_page(&replica, "/console/audit?kind=token.minted").await;
    // The row and its details.
    let whole = page
        .html
        .replace("<span class=\"middle\"><span>", "")
        .replace("</span></span>", "");
    let token = minted.text("id");
    for (class, id) in [
        (" class=\"short\"", &*escaped),
        ("", &escaped),
        (" class=\"short\"", token),
        ("", token),
        (" class=\"short\"", &"r-".repeat(64)),
        ("", &"r-".repeat(64)),
        ("", minted.text("fingerprint")),
    ] {
        let code = format!("<code{class}>{id}</code>");
        assert_eq!(whole.matches(&code).count(), 1, "{code}: {}", page.html);
    }
    let (head, middle, tail) = (&token[..8], &token[8..28], &token[28..]);
    page.has(
        200,
        &format!("{head}<span class=\"middle\"><span>{middle}</span></span>{tail}"),
    );
    // The name stands for the key in the row. The details have both.
    page.has(200, &format!(">{}</a></td>", ADMIN.0));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_paths_below_console_return_problems_as_html() {
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
    replica
        .get("/consoles")
        .await
        .assert_problem(404, "not-found");
    assert_eq!(
        Page::of(replica.request(Method::HEAD, "/console/"))
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_has_links_as_a_page_for_browsers_and_as_json_otherwise() {
    let world = World::new().await;
    let replica = world.replica().await;
    let answer = send(replica.anonymous(Method::GET, "/")).await;
    assert_eq!(
        (answer.status, answer.body["version"].as_str()),
        (200, Some(env!("CARGO_PKG_VERSION")))
    );
    let accept = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
    let page = replica.anonymous(Method::GET, "/").header("accept", accept);
    let page = page.send().await.unwrap();
    assert_eq!(page.headers()["vary"], "Accept");
    assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
    let html = page.text().await.unwrap();
    for link in answer.body["links"].as_object().unwrap().values() {
        let link = link.as_str().unwrap();
        assert!(html.contains(&format!("href=\"{link}\"")), "{link}");
        let target = send(replica.anonymous(Method::GET, link)).await;
        assert!(
            [200, 401].contains(&target.status),
            "{link}: {}",
            target.status
        );
    }
    let unknown = send(replica.anonymous(Method::GET, "/?x=1")).await;
    unknown.assert_problem(400, "validation");
}
