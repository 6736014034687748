//! `/clients/`: who may manage clients over HTTP, and what the calls change.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::{Value, json};
use token_vendor::model::Scope;

use crate::support::{ADMIN, Answer, Api, World, eventually, send};

const PATH: &str = "/clients/";
/// A client that manages clients and can grant one further scope.
const MANAGER: (&str, &str) = ("manager", "manager-secret");

async fn call(api: &Api, by: (&str, &str), method: Method, path: &str, body: Value) -> Answer {
    let request = api.request_by(by, method, path);
    let request = request.header("content-type", "application/json");
    send(request.body(body.to_string())).await
}

async fn create(api: &Api, body: Value) -> Answer {
    let created = call(api, ADMIN, Method::POST, PATH, body).await;
    assert_eq!(created.status, 201, "{created:?}");
    created
}

async fn patch(api: &Api, key: &str, body: Value) -> Answer {
    call(api, ADMIN, Method::PATCH, &format!("{PATH}{key}"), body).await
}

/// Returns the events of changes of the client, oldest first: kind, caller, request id and detail.
async fn changes(world: &World, key: &str) -> Vec<(String, String, String, Value)> {
    sqlx::query_as(
        "SELECT kind, client, request_id, detail FROM audit_events WHERE detail->>'apiKey' = $1 ORDER BY occurred_at",
    )
    .bind(key)
    .fetch_all(&world.db)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_managed_from_creation_to_its_end() {
    let world = World::new().await;
    let replica = world.replica().await;
    let created = create(
        &replica,
        json!({"name": "Web shop", "scopes": ["tokens:read"], "mintsPerHour": 5, "allowFrom": ["127.0.0.0/8"],
               "expiresInSeconds": 7_776_000}),
    )
    .await;
    let (key, secret) = (created.text("apiKey"), created.text("apiSecret"));
    assert_eq!(created.header("location"), format!("/clients/{key}"));
    assert!(secret.len() >= 43, "256 bits");
    let one = format!("{PATH}{key}");
    let mut expected = created.body.clone();
    expected.as_object_mut().unwrap().remove("apiSecret");
    let members = json!({
        "apiKey": key, "name": "Web shop", "scopes": ["tokens:read"], "mintsPerHour": 5, "requestsPerSecond": null, "oidcSubject": null,
        "allowFrom": ["127.0.0.0/8"], "expiresAt": expected["expiresAt"], "isEnabled": true,
        "createdAt": expected["createdAt"], "rotatedAt": null, "lastUsedOn": null,
    });
    assert_eq!(expected, members);
    assert_eq!(replica.get(&one).await.body, expected);
    let status = async |secret: &str| {
        let request = replica.request_by((key, secret), Method::GET, "/bank/tokens/");
        send(request).await.status
    };
    assert_eq!(status(secret).await, 200, "valid immediately");

    let patched = patch(
        &replica,
        key,
        json!({"name": "Shop", "allowFrom": null, "requestsPerSecond": 9}),
    )
    .await;
    expected["name"] = json!("Shop");
    expected["allowFrom"] = Value::Null;
    expected["requestsPerSecond"] = json!(9);
    assert_eq!((patched.status, &patched.body), (200, &expected));
    assert_eq!(
        patch(&replica, key, json!({})).await.body,
        expected,
        "nothing to change"
    );

    let rotated = call(
        &replica,
        ADMIN,
        Method::POST,
        &format!("{one}/rotate"),
        json!({"graceSeconds": 0}),
    )
    .await;
    assert_eq!(rotated.status, 200, "{rotated:?}");
    let second = rotated.text("apiSecret");
    assert!(rotated.body["rotatedAt"].is_string());
    assert_eq!(status(second).await, 200, "valid immediately");
    eventually("the old secret ends", async || status(secret).await == 401).await;

    for _ in 0..2 {
        let disabled = send(replica.request(Method::POST, &format!("{one}/disable"))).await;
        assert_eq!(
            (disabled.status, &disabled.body["isEnabled"]),
            (200, &json!(false))
        );
        assert!(disabled.body["apiSecret"].is_null());
    }
    eventually("the client is rejected", async || {
        status(second).await == 401
    })
    .await;
    for (path, body) in [
        (one.clone(), json!({"name": "x"})),
        (format!("{one}/rotate"), json!({})),
    ] {
        let method = if path == one {
            Method::PATCH
        } else {
            Method::POST
        };
        let answer = call(&replica, ADMIN, method, &path, body).await;
        answer.assert_problem(400, "validation");
        assert!(answer.text("detail").contains("is disabled"), "{answer:?}");
    }

    let events = changes(&world, key).await;
    let kinds: Vec<&str> = events.iter().map(|event| &*event.0).collect();
    let expected = [
        "client.created",
        "client.updated",
        "client.rotated",
        "client.disabled",
    ];
    assert_eq!(kinds, expected);
    for (_, client, request_id, detail) in &events {
        assert_eq!((&**client, detail["actor"].is_null()), (ADMIN.0, true));
        assert!(!request_id.is_empty());
        let text = detail.to_string();
        assert!(!text.contains(secret) && !text.contains(second), "{text}");
    }
    assert_eq!(events[1].2, patched.header("x-request-id"));
    let update = &events[1].3;
    assert_eq!(
        (&update["before"]["name"], &update["after"]["name"]),
        (&json!("Web shop"), &json!("Shop"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_grants_and_takes_over_only_scopes_that_it_holds() {
    let world = World::new().await;
    world
        .add_client(MANAGER, &[Scope::ClientsManage, Scope::TokensRead])
        .await;
    let replica = world.replica().await;
    let by_manager =
        async |method, path: &str, body| call(&replica, MANAGER, method, path, body).await;
    let own = by_manager(
        Method::POST,
        PATH,
        json!({"name": "own", "scopes": ["tokens:read"]}),
    )
    .await;
    assert_eq!(own.status, 201, "{own:?}");
    let own = format!("{PATH}{}", own.text("apiKey"));
    let admin = format!("{PATH}{}", ADMIN.0);
    let denied_before = world
        .count("SELECT count(*) FROM audit_events WHERE kind LIKE 'client.%'")
        .await;
    for (method, path, body) in [
        (
            Method::POST,
            PATH,
            json!({"name": "x", "scopes": ["tokens:read", "tokens:issue"]}),
        ),
        (
            Method::PATCH,
            &own,
            json!({"name": "x", "scopes": ["audit:read"]}),
        ),
        // The secret of a client has its scopes. An address or an expiry can keep a known secret from being used.
        (Method::POST, &format!("{admin}/rotate"), json!({})),
        (Method::PATCH, &admin, json!({"allowFrom": null})),
        (Method::PATCH, &admin, json!({"expiresInSeconds": null})),
    ] {
        let answer = by_manager(method, path, body).await;
        answer.assert_problem(403, "forbidden");
        assert!(
            answer.text("detail").contains("lacks the scope"),
            "{answer:?}"
        );
    }
    let after = world
        .count("SELECT count(*) FROM audit_events WHERE kind LIKE 'client.%'")
        .await;
    assert_eq!(after, denied_before, "nothing was partly applied");
    assert_eq!(replica.get(&own).await.body["name"], "own");
    let renamed = by_manager(Method::PATCH, &own, json!({"name": "renamed"})).await;
    assert_eq!(renamed.status, 200);
    // An operator in a hurry can disable every client, and itself.
    for key in ["admin", "manager"] {
        let disabled = by_manager(Method::POST, &format!("{PATH}{key}/disable"), json!({})).await;
        assert_eq!(disabled.status, 200, "{disabled:?}");
    }
    replica.service.stop().await;
    let denials = "SELECT sum((detail->>'count')::int)::int8 FROM audit_events
                   WHERE kind = 'access.denied' AND client = 'manager' AND detail->>'status' = '403'";
    assert_eq!(world.count(denials).await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_body_gets_one_error_for_each_field_and_changes_nothing() {
    let world = World::new().await;
    let replica = world.replica().await;
    let key = create(&replica, json!({"name": "shop", "scopes": ["tokens:read"]})).await;
    let key = key.text("apiKey");
    let before = replica.get(PATH).await.body;
    for (body, pointers) in [
        (json!({"name": ""}), &["#/name"][..]),
        (json!({"name": null}), &["#/name"]),
        (json!({"name": "admin"}), &["#/name"]),
        (json!({"scopes": ["tokens:steal"]}), &["#/scopes"]),
        (json!({"scopes": []}), &["#/scopes"]),
        (json!({"scopes": "tokens:read"}), &["#/scopes"]),
        (json!({"scopes": [1]}), &["#/scopes"]),
        (
            json!({"mintsPerHour": 0, "requestsPerSecond": 1.5}),
            &["#/mintsPerHour", "#/requestsPerSecond"],
        ),
        (json!({"allowFrom": ["10.0.0.1/8"]}), &["#/allowFrom"]),
        (json!({"allowFrom": []}), &["#/allowFrom"]),
        (json!({"allowFrom": {}}), &["#/allowFrom"]),
        (
            json!({"allowFrom": vec!["10.0.0.0/8"; 101]}),
            &["#/allowFrom"],
        ),
        (json!({"expiresInSeconds": 0}), &["#/expiresInSeconds"]),
        (json!({"expiresInSeconds": "90d"}), &["#/expiresInSeconds"]),
        (
            json!({"name": "fine", "expiresAt": "2027-01-01T00:00:00Z", "scopes": [null]}),
            &["#/expiresAt", "#/scopes"],
        ),
    ] {
        let mut new = json!({"name": "new", "scopes": ["tokens:read"]});
        new.as_object_mut()
            .unwrap()
            .extend(body.as_object().unwrap().clone());
        let answers = [
            patch(&replica, key, body).await,
            call(&replica, ADMIN, Method::POST, PATH, new).await,
        ];
        for answer in answers {
            answer.assert_problem(400, "validation");
            let errors = answer.body["errors"].as_array().unwrap();
            let named: BTreeSet<_> = errors
                .iter()
                .map(|error| error["pointer"].as_str().unwrap())
                .collect();
            assert_eq!(named, pointers.iter().copied().collect(), "{answer:?}");
        }
    }
    let missing = call(&replica, ADMIN, Method::POST, PATH, json!({})).await;
    missing.assert_problem(400, "validation");
    assert_eq!(missing.body["errors"].as_array().unwrap().len(), 2);
    let host_bits = patch(&replica, key, json!({"allowFrom": ["10.0.0.1/8"]})).await;
    let detail = &host_bits.body["errors"][0]["detail"];
    assert_eq!(
        *detail,
        "must have no host bits: write 10.0.0.0/8 instead of 10.0.0.1/8"
    );
    assert_eq!(replica.get(PATH).await.body, before);
    for path in [
        "/clients/nobody",
        "/clients/nobody/rotate",
        "/clients/nobody/disable",
    ] {
        let method = if path == "/clients/nobody" {
            Method::PATCH
        } else {
            Method::POST
        };
        let answer = call(&replica, ADMIN, method, path, json!({})).await;
        answer.assert_problem(404, "not-found");
    }
    replica
        .get("/clients/no%20key")
        .await
        .assert_problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_list_has_every_client_once_over_all_pages() {
    let world = World::new().await;
    for number in 0..7 {
        world
            .add_client((&format!("client-{number}"), "s"), &[Scope::TokensRead])
            .await;
    }
    let replica = world.replica().await;
    let (mut keys, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = replica.get(&format!("{PATH}?limit=3{cursor}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        let items = page.body["items"].as_array().unwrap();
        keys.extend(
            items
                .iter()
                .map(|client| client["apiKey"].as_str().unwrap().to_owned()),
        );
        assert!(!page.body.to_string().contains("apiSecret"), "{page:?}");
        match page.body["nextCursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let expected: Vec<_> = (0..7).map(|number| format!("client-{number}")).collect();
    assert_eq!(keys, [&["admin".to_owned()][..], &expected].concat());
    // The last cursor has a wrong checksum.
    for query in [
        "limit=0",
        "name=x",
        "cursor=x",
        "cursor=",
        "cursor=YWRtaW4xMjM0NTY3OA",
    ] {
        let answer = replica.get(&format!("{PATH}?{query}")).await;
        answer.assert_problem(400, "validation");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_changes_of_different_members_are_all_applied() {
    let world = World::new().await;
    let (first, second) = (world.replica().await, world.replica().await);
    let created = create(&first, json!({"name": "shop", "scopes": ["tokens:read"]})).await;
    let key = created.text("apiKey");
    let changes = json!({
        "name": "Web shop", "scopes": ["tokens:issue"], "mintsPerHour": 1, "requestsPerSecond": 2,
        "allowFrom": ["10.0.0.0/8"],
    });
    let members = changes.as_object().unwrap();
    let requests = members.iter().enumerate().map(|(number, (name, value))| {
        let api: &Api = if number % 2 == 0 { &first } else { &second };
        patch(api, key, json!({ name: value }))
    });
    for answer in futures_util::future::join_all(requests).await {
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let client = first.get(&format!("{PATH}{key}")).await.body;
    for (name, value) in members {
        assert_eq!(client[name], *value, "{name}");
    }
    assert_eq!(
        changes_of_kind(&world, key, "client.updated").await,
        members.len()
    );
}

async fn changes_of_kind(world: &World, key: &str, kind: &str) -> usize {
    let events = changes(world, key).await;
    events.iter().filter(|event| event.0 == kind).count()
}
