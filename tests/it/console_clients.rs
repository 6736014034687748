//! The console's pages of clients.

use reqwest::Method;
use serde_json::json;
use token_vendor::model::Scope;

use crate::support::page::{Page, get_page, post_form};
use crate::support::{ADMIN, Api, World, eventually, send};

const PATH: &str = "/console/clients";

async fn post(api: &Api, path: &str, fields: &[(&str, &str)]) -> Page {
    Page::of(post_form(api, path, fields)).await
}

/// Returns the form token of the first form on the page.
async fn form_token(api: &Api, path: &str) -> String {
    get_page(api, path).await.attribute("formToken", "value")
}

/// Creates a client with the form, and returns its key and its secret.
async fn create(api: &Api) -> (String, String) {
    let form_token = form_token(api, PATH).await;
    let fields = [
        ("formToken", &*form_token),
        ("name", "Web <shop>"),
        ("mintsPerHour", "5"),
        ("requestsPerSecond", ""),
        ("allowFrom", "127.0.0.0/8, 10.0.0.0/8"),
        ("expiresInDays", "90"),
        ("tokens:read", "on"),
        ("audit:read", "on"),
    ];
    let page = post(api, PATH, &fields).await;
    page.has(200, "Copy the secret now");
    assert_eq!(page.header("cache-control"), "no-store");
    let code = |after: &str| {
        let (_, rest) = page
            .html
            .split_once(&format!("<dt>{after}</dt><dd><code>"))
            .unwrap();
        rest.split('<').next().unwrap().to_owned()
    };
    (code("Key"), code("Secret"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_created_changed_rotated_and_disabled_with_forms() {
    let world = World::new().await;
    let replica = world.replica().await;
    let (key, secret) = create(&replica).await;
    let client = async || replica.get(&format!("/clients/{key}")).await.body;
    let created = client().await;
    assert_eq!(created["name"], "Web <shop>");
    assert_eq!(created["scopes"], json!(["tokens:read", "audit:read"]));
    assert_eq!(created["allowFrom"], json!(["127.0.0.0/8", "10.0.0.0/8"]));
    assert_eq!(
        (&created["mintsPerHour"], created["expiresAt"].is_string()),
        (&json!(5), true)
    );
    let status = async |secret: &str| {
        let request = replica.request_by((&key, secret), Method::GET, "/bank/tokens/");
        send(request).await.status
    };
    assert_eq!(status(&secret).await, 200);
    let list = get_page(&replica, PATH).await;
    list.has(
        200,
        &format!("<a href=\"/console/clients/{key}\">Web &#60;shop&#62;</a>"),
    );
    assert!(!list.html.contains(&secret));

    let one = format!("{PATH}/{key}");
    let page = get_page(&replica, &one).await;
    page.has(200, "value=\"127.0.0.0/8 10.0.0.0/8\"");
    let update = page.attribute("formToken", "value");
    let fields = [
        ("formToken", &*update),
        ("action", "update"),
        ("name", "Shop"),
        ("mintsPerHour", ""),
        ("requestsPerSecond", "7"),
        ("allowFrom", ""),
        ("expiresInDays", ""),
        ("tokens:read", "on"),
    ];
    let saved = post(&replica, &one, &fields).await;
    assert_eq!(
        (saved.status, saved.header("location")),
        (303, &*format!("{one}?done=1"))
    );
    let changed = client().await;
    assert_eq!(changed["name"], "Shop");
    assert_eq!(changed["scopes"], json!(["tokens:read"]));
    assert_eq!(
        changed["expiresAt"], created["expiresAt"],
        "an empty field keeps the expiry"
    );
    assert!(changed["mintsPerHour"].is_null() && changed["allowFrom"].is_null());
    assert_eq!(changed["requestsPerSecond"], 7);
    get_page(&replica, &format!("{one}?done=1"))
        .await
        .has(200, "Done.");

    let rotate = form_token(&replica, &format!("{one}?confirm=rotate")).await;
    let fields = [
        ("formToken", &*rotate),
        ("action", "rotate"),
        ("graceSeconds", "0"),
    ];
    let rotated = post(&replica, &one, &fields).await;
    rotated.has(200, "Copy the secret now");
    assert!(!rotated.html.contains(&secret));
    eventually("the old secret ends", async || status(&secret).await == 401).await;

    let disable = form_token(&replica, &format!("{one}?confirm=disable")).await;
    let fields = [("formToken", &*disable), ("action", "disable")];
    assert_eq!(post(&replica, &one, &fields).await.status, 303);
    assert_eq!(client().await["isEnabled"], false);
    let page = get_page(&replica, &one).await;
    page.has(200, "disabled");
    assert!(
        !page.html.contains("<form"),
        "a disabled client cannot be changed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_form_without_its_own_token_or_with_a_bad_value_changes_nothing() {
    let world = World::new().await;
    let replica = world.replica().await;
    let (key, _) = create(&replica).await;
    let one = format!("{PATH}/{key}");
    let before = replica.get("/clients/").await.body;
    let update = form_token(&replica, &one).await;
    let new = form_token(&replica, PATH).await;
    // The token of one action or client is not valid for another.
    let other = form_token(&replica, &format!("{PATH}/{}", ADMIN.0)).await;
    for (path, token, action) in [
        (&*one, &*update, "disable"),
        (&one, &update, "rotate"),
        (&one, &other, "update"),
        (&one, &new, "update"),
        (&one, "", "update"),
        (PATH, &update, ""),
    ] {
        let fields = [
            ("formToken", token),
            ("action", action),
            ("name", "x"),
            ("tokens:read", "on"),
        ];
        assert_eq!(
            post(&replica, path, &fields).await.status,
            403,
            "{path} {action}"
        );
    }
    for (name, value) in [
        ("name", ""),
        ("name", "admin"),
        ("mintsPerHour", "0"),
        ("requestsPerSecond", "x"),
        ("allowFrom", "10.0.0.1/8"),
        ("expiresInDays", "3651"),
        ("tokens:read", ""),
    ] {
        let mut fields = vec![
            ("formToken", &*update),
            ("action", "update"),
            ("name", "y"),
            ("tokens:read", "on"),
        ];
        fields.retain(|(known, _)| *known != name);
        if name != "tokens:read" {
            fields.push((name, value));
        }
        assert_eq!(
            post(&replica, &one, &fields).await.status,
            400,
            "{name}={value}"
        );
    }
    assert_eq!(replica.get("/clients/").await.body, before);

    let auditor = ("auditor", "secret");
    world.add_client(auditor, &[Scope::AuditRead]).await;
    for path in [PATH, &one] {
        let page = Page::of(replica.request_by(auditor, Method::GET, path)).await;
        page.has(403, "clients:manage");
    }
}
