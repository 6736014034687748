//! The OpenAPI document matches the code, and real responses match the document.

use std::collections::BTreeSet;

use reqwest::Method;
use serde_json::json;
use token_vendor::dev::sandbox;
use token_vendor::model::{FailureKind, Scope};

use crate::support::document::{COMMITTED, check, document, example, mistakes, operations};
use crate::support::{World, eventually, run, send};

#[tokio::test(flavor = "multi_thread")]
async fn the_committed_document_is_up_to_date() {
    let printed = run(&["openapi"], &[]).await;
    assert_eq!((printed.code, printed.err.as_str()), (0, ""));
    assert!(
        printed.out == COMMITTED,
        "docs/openapi.json is out of date; run `make openapi`"
    );
    let world = World::new().await;
    let served = send(
        world
            .replica()
            .await
            .anonymous(Method::GET, "/openapi.json"),
    )
    .await;
    assert_eq!(served.body, document());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_document_and_the_route_table_have_the_same_paths() {
    let document = document();
    let table = include_str!("../../src/api/router.rs");
    let names = table
        .split("Path::new(\"")
        .skip(1)
        .filter_map(|rest| rest.split('"').next());
    let is_page =
        |name: &&str| ["/", "/docs/{file}"].contains(name) || name.starts_with("/console");
    let served: BTreeSet<_> = names.filter(|name| !is_page(name)).collect();
    let listed = document["paths"].as_object().unwrap();
    assert_eq!(served, listed.keys().map(String::as_str).collect());

    let world = World::new().await;
    let replica = world.replica().await;
    for (path, methods) in listed {
        let mut allowed = Vec::new();
        for method in methods.as_object().unwrap().keys() {
            allowed.extend(match &**method {
                "get" => vec!["GET", "HEAD"],
                "patch" => vec!["PATCH"],
                _ => vec!["POST"],
            });
        }
        let path = path.replace("{id}", "01a204ea-985b-7711-8188-6bde09e642c2");
        let path = path.replace("{key}", "shop");
        let rejected = send(replica.anonymous(Method::DELETE, &path)).await;
        rejected.assert_problem(405, "method-not-allowed");
        assert_eq!(rejected.header("allow"), allowed.join(", "), "{path}");
        check(
            &document,
            methods.as_object().unwrap().values().next().unwrap(),
            &rejected,
        );
    }
}

#[test]
fn every_problem_kind_is_in_the_document_and_in_a_response() {
    let document = document();
    let source = include_str!("../../src/api/problem/mod.rs");
    let rows = source
        .lines()
        .filter_map(|line| line.trim().split_once(" => (\"")?.1.split('"').next());
    let slugs: BTreeSet<_> = rows
        .chain(FailureKind::ALL.iter().map(|kind| kind.name()))
        .collect();
    assert!(slugs.len() >= 20, "{slugs:?}");
    let components = &document["components"];
    let types = components["schemas"]["Problem"]["properties"]["type"]["enum"]
        .as_array()
        .unwrap();
    let types: BTreeSet<_> = types
        .iter()
        .map(|name| name.as_str().unwrap().rsplit(':').next().unwrap())
        .collect();
    assert_eq!(types, slugs);
    let names = components["responses"].as_object().unwrap().keys();
    assert_eq!(
        names
            .flat_map(|name| name.split('.'))
            .collect::<BTreeSet<_>>(),
        slugs
    );
}

#[test]
fn every_example_matches_its_schema() {
    let document = document();
    let components = &document["components"];
    let all = |kind: &str| components[kind].as_object().unwrap().values();
    let problems =
        all("examples").map(|example| (&components["schemas"]["Problem"], &example["value"]));
    let named = all("parameters")
        .chain(all("headers"))
        .filter(|component| component["name"] != "cursor")
        .map(|component| (&component["schema"], &component["example"]));
    let objects = all("schemas").flat_map(|schema| {
        let examples = schema["examples"].as_array().into_iter().flatten();
        examples.map(move |example| (schema, example))
    });
    for (schema, example) in problems.chain(named).chain(objects) {
        assert!(!example.is_null(), "{schema}");
        assert_eq!(mistakes(&document, schema, example), None, "{example}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_accepts_its_example_and_responds_as_documented() {
    let document = document();
    let world = World::new().await;
    let unprivileged = ("unprivileged", "secret");
    world.add_client(unprivileged, &[]).await;
    let token = &document["components"]["schemas"]["Token"]["examples"][0]["tokenString"];
    world.sandbox.script([sandbox::Answer::with(
        "tokenString",
        token.as_str().unwrap(),
    )]);
    let replica = world.replica_with(&[("SEAL_INTERVAL", "100ms")]).await;
    let issue = &document["paths"]["/bank/tokens/"]["post"];
    let send_issue = || {
        send(example(
            &document,
            &replica,
            "/bank/tokens/",
            Method::POST,
            issue,
            "",
        ))
    };
    let minted = send_issue().await;
    assert_eq!(minted.status, 201);
    check(&document, issue, &minted);
    let events = replica.get("/audit/events?kind=token.minted").await;
    let event = events.body["items"][0]["id"].as_str().unwrap();
    eventually("the event is sealed", async || {
        let proof = replica.get(&format!("/audit/events/{event}/proof")).await;
        proof.status == 200
    })
    .await;

    for (path, method, operation) in operations(&document) {
        let id = match path {
            path if path.starts_with("/audit/") => event,
            // Each call has a client of its own, because a disabled one cannot be changed.
            path if path.starts_with("/clients/") => operation["operationId"].as_str().unwrap(),
            _ => minted.text("id"),
        };
        if path.contains("{key}") {
            world.add_client((id, "secret"), &[Scope::TokensRead]).await;
        }
        let request =
            |path: &str| example(&document, &replica, path, method.clone(), operation, id);
        let response = send(request(path)).await;
        let created = if id == "create_client" { 201 } else { 200 };
        assert_eq!(response.status, created, "{response:?}");
        check(&document, operation, &response);

        let invalid = send(request(&format!("{path}?x=1"))).await;
        invalid.assert_problem(400, "validation");
        check(&document, operation, &invalid);

        let path = path.replace("{id}", id).replace("{key}", id);
        let path = path.replace("{tile}", "0/000");
        let anonymous = send(replica.anonymous(method.clone(), &path)).await;
        let scope = operation["security"][0]["client"][0].as_str();
        assert_eq!(anonymous.status == 401, scope.is_some(), "{anonymous:?}");
        let Some(scope) = scope else { continue };
        check(&document, operation, &anonymous);
        let forbidden = send(replica.request_by(unprivileged, method.clone(), &path)).await;
        forbidden.assert_problem(403, "forbidden");
        check(&document, operation, &forbidden);
        assert!(
            forbidden
                .text("detail")
                .ends_with(Scope::from_name(scope).unwrap().name())
        );
        if !operation["requestBody"].is_null() {
            let request = |body| replica.request(method.clone(), &path).body(body);
            let json = ("content-type", "application/json");
            let malformed = send(request("{").header(json.0, json.1)).await;
            malformed.assert_problem(400, "malformed");
            check(&document, operation, &malformed);
            let untyped = send(request("{}")).await;
            untyped.assert_problem(415, "unsupported-media-type");
            check(&document, operation, &untyped);
        }
        if path.contains(minted.text("id")) || path.contains(&format!("/clients/{id}")) {
            let unknown = path.replace(id, "01a204ea-985b-7711-8188-6bde09e642c2");
            let request = replica.request(method.clone(), &unknown);
            let is_client = path.starts_with("/clients/");
            let body = if is_client {
                "{}"
            } else {
                r#"{"reason": "used"}"#
            };
            let request = request
                .header("content-type", "application/json")
                .body(body);
            let unknown = send(request).await;
            unknown.assert_problem(404, "not-found");
            check(&document, operation, &unknown);
        }
    }
    check(&document, issue, &send_issue().await);
    let upstream_error = |status| sandbox::Answer::Status(status, "BAD_VALUE", "No.".into());
    world
        .sandbox
        .script([upstream_error(400), upstream_error(401)]);
    for (country, slug) in [("LV", "upstream-rejected"), ("EE", "upstream-refused")] {
        let failed = replica
            .issue(json!({"userId": "u-2", "country": country}))
            .await;
        assert_eq!(failed.problem(), slug);
        check(&document, issue, &failed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_docs_page_loads_only_its_own_files() {
    let world = World::new().await;
    let replica = world.replica().await;
    for path in ["/docs", "/docs/"] {
        let page = replica.anonymous(Method::GET, path).send().await.unwrap();
        assert_eq!(page.headers()["content-type"], "text/html; charset=utf-8");
        let policy = page.headers()["content-security-policy"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(
            policy.starts_with("default-src 'none';") && !policy.contains("unsafe"),
            "{policy}"
        );
        let page = page.text().await.unwrap();
        assert!(!page.contains("//"), "{page}");
        let files: Vec<_> = page
            .split("=\"/docs/")
            .skip(1)
            .map(|rest| rest.split('"').next().unwrap())
            .collect();
        assert_eq!(files.len(), 4);
        for file in files {
            let file = replica
                .anonymous(Method::GET, &format!("/docs/{file}"))
                .send()
                .await
                .unwrap();
            assert_eq!(
                (
                    file.status().as_u16(),
                    &file.headers()["x-content-type-options"]
                ),
                (200, &"nosniff".parse().unwrap())
            );
            assert!(!file.bytes().await.unwrap().is_empty());
        }
    }
    send(replica.anonymous(Method::GET, "/docs/nothing.js"))
        .await
        .assert_problem(404, "not-found");
}
