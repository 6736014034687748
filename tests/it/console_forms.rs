//! The console's forms: what they do, and for whom alone.

use reqwest::Method;
use serde_json::json;
use token_vendor::model::Scope;
use uuid::Uuid;

use crate::support::page::{Page, get_page, post_form};
use crate::support::{ADMIN, World};

pub const ENDED: &str = "SELECT count(*) FROM audit_events WHERE kind = 'token.invalidated'";

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
        let mut request = post_form(&replica, "/console/invalidate", &fields)
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
    let search = post_form(
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
        let page = get_page(&replica, question).await;
        page.has(200, "cannot be undone");
        let form_token = page.attribute("formToken", "value");
        let fields = [("formToken", &*form_token), field, ("reason", reason)];
        let answer = Page::of(post_form(&replica, "/console/invalidate", &fields)).await;
        assert_eq!(answer.status, 303, "{}", answer.html);
        answer.header("location").to_owned()
    };
    let question = format!("/console/invalidate?tokenId={id}&reason=compromised");
    let shown = confirm(&question, ("tokenId", id), "compromised").await;
    get_page(&replica, &shown)
        .await
        .has(200, "Done. This token has ended");
    get_page(&replica, &shown).await.has(200, "(compromised)");
    assert_eq!(world.count(ENDED).await, 1);
    get_page(&replica, &question)
        .await
        .has(200, "has ended already");

    let question = "/console/invalidate?userId=u+1%2F%26%3F%23&reason=requested";
    get_page(&replica, question).await.has(200, "1 token<");
    let shown = confirm(question, ("userId", user), "requested").await;
    get_page(&replica, &shown)
        .await
        .has(200, "Done. No token of this user is valid.");
    assert_eq!(world.count(ENDED).await, 2);
    assert_ne!(replica.issue(json!({"userId": user})).await.text("id"), id);
    get_page(&replica, &shown)
        .await
        .has(200, "was issued since");
    let unknown = format!(
        "/console/invalidate?tokenId={}&reason=used",
        Uuid::from_u128(1)
    );
    get_page(&replica, &unknown)
        .await
        .has(404, "no token has this id");
    for bad in [
        "",
        "?tokenId=1&reason=used",
        "?userId=u&reason=bored",
        "?userId=u&tokenId=x&reason=used",
    ] {
        get_page(&replica, &format!("/console/invalidate{bad}"))
            .await
            .has(400, "The request is not valid");
    }
}
