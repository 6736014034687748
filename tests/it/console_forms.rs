//! Console forms: invalidation, and protection against cross-site requests.

use reqwest::Method;
use serde_json::json;
use token_vendor::model::Scope;
use uuid::Uuid;

use crate::support::page::{Page, get_page, post_form};
use crate::support::{ADMIN, World};

pub const INVALIDATIONS: &str =
    "SELECT count(*) FROM audit_events WHERE kind = 'token.invalidated'";

#[tokio::test(flavor = "multi_thread")]
async fn forms_of_other_sites_and_wrong_form_tokens_are_rejected() {
    let world = World::new().await;
    world.add_client(("other", "secret"), Scope::ALL).await;
    let replica = world.replica().await;
    let id = replica
        .issue(json!({"userId": "u"}))
        .await
        .text("id")
        .to_owned();
    let confirmation = |reason: &str| format!("/console/invalidate?tokenId={id}&reason={reason}");
    let form_token = async |path: &str, client| {
        let page = Page::of(replica.request_by(client, Method::GET, path)).await;
        page.attribute("formToken", "value")
    };
    let valid = form_token(&confirmation("used"), ADMIN).await;
    let submit = async |form_token: &str, headers: &[(&str, &str)]| {
        let fields = [
            ("formToken", form_token),
            ("tokenId", &*id),
            ("reason", "used"),
        ];
        let mut request = post_form(&replica, "/console/invalidate", &fields)
            .build()
            .unwrap();
        request.headers_mut().remove("sec-fetch-site");
        for (name, value) in headers {
            let name = reqwest::header::HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .unwrap();
        client.execute(request).await.unwrap().status().as_u16()
    };
    let mut rejected = 0;
    for site in ["cross-site", "same-site", "none", ""] {
        assert_eq!(
            submit(
                &valid,
                &[("sec-fetch-site", site), ("origin", &replica.base)]
            )
            .await,
            403,
            "{site}"
        );
        rejected += 1;
    }
    for origin in [
        "https://evil.example",
        "http://127.0.0.1",
        "https://127.0.0.1:1",
        "x",
    ] {
        assert_eq!(submit(&valid, &[("origin", origin)]).await, 403, "{origin}");
        rejected += 1;
    }
    let same_origin = [("sec-fetch-site", "same-origin")];
    for invalid in [
        "",
        "x",
        &valid[1..],
        &form_token(&confirmation("requested"), ADMIN).await,
        &form_token("/console/invalidate?userId=u&reason=used", ADMIN).await,
        &form_token("/console/search", ADMIN).await,
        &form_token(&confirmation("used"), ("other", "secret")).await,
    ] {
        assert_eq!(submit(invalid, &same_origin).await, 403, "{invalid}");
        rejected += 1;
    }
    assert_eq!(world.count(INVALIDATIONS).await, 0);
    let search = post_form(
        &replica,
        "/console/search",
        &[("text", "x"), ("formToken", "x")],
    );
    Page::of(search)
        .await
        .has(403, "not sent from a page of this console");
    for (index, headers) in [
        &[][..],
        &[("origin", "null")],
        &[("origin", &*replica.base)],
        &same_origin,
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(submit(&valid, headers).await, 303, "{headers:?}");
        assert_eq!(world.count(INVALIDATIONS).await, 1, "{index}");
    }
    replica.service.stop().await;
    let denials = "SELECT sum((detail ->> 'count')::int) FROM audit_events
                   WHERE kind = 'access.denied' AND client = 'admin' AND detail ->> 'route' = '/console/invalidate'";
    assert_eq!(world.count(denials).await, rejected);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalidation_is_confirmed_then_done_once_and_shown() {
    let world = World::new().await;
    let replica = world.replica().await;
    let user = "u 1/&?#";
    let first = replica.issue(json!({"userId": user})).await;
    replica
        .issue(json!({"userId": user, "country": "LT"}))
        .await;
    let id = first.text("id");
    let confirm = async |path: &str, field: (&str, &str), reason: &str| {
        let page = get_page(&replica, path).await;
        page.has(200, "cannot be undone");
        let form_token = page.attribute("formToken", "value");
        let fields = [("formToken", &*form_token), field, ("reason", reason)];
        let response = Page::of(post_form(&replica, "/console/invalidate", &fields)).await;
        assert_eq!(response.status, 303, "{}", response.html);
        response.header("location").to_owned()
    };
    let confirmation = format!("/console/invalidate?tokenId={id}&reason=compromised");
    let result_page = confirm(&confirmation, ("tokenId", id), "compromised").await;
    get_page(&replica, &result_page)
        .await
        .has(200, "Done. This token is invalid");
    get_page(&replica, &result_page)
        .await
        .has(200, "(compromised)");
    assert_eq!(world.count(INVALIDATIONS).await, 1);
    get_page(&replica, &confirmation)
        .await
        .has(200, "already invalid");

    let confirmation = "/console/invalidate?userId=u+1%2F%26%3F%23&reason=requested";
    get_page(&replica, confirmation).await.has(200, "1 token<");
    let result_page = confirm(confirmation, ("userId", user), "requested").await;
    get_page(&replica, &result_page)
        .await
        .has(200, "Done. This user has no valid token.");
    assert_eq!(world.count(INVALIDATIONS).await, 2);
    assert_ne!(replica.issue(json!({"userId": user})).await.text("id"), id);
    get_page(&replica, &result_page)
        .await
        .has(200, "was issued after the invalidation");
    let unknown = format!(
        "/console/invalidate?tokenId={}&reason=used",
        Uuid::from_u128(1)
    );
    get_page(&replica, &unknown)
        .await
        .has(404, "no token has this id");
    for query in [
        "",
        "?tokenId=1&reason=used",
        "?userId=u&reason=bored",
        "?userId=u&tokenId=x&reason=used",
    ] {
        get_page(&replica, &format!("/console/invalidate{query}"))
            .await
            .has(400, "The request is not valid");
    }
}
