//! The names of clients beside their keys in pages, CSV and the console.

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::page::get_page;
use crate::support::{ADMIN, Api, World, eventually, run};

async fn text(api: &Api, path: &str) -> String {
    let response = api.request(Method::GET, path).send().await.unwrap();
    assert_eq!(response.status(), 200, "{path}");
    response.text().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_show_the_current_name_of_their_client_and_the_sealed_log_has_none() {
    let world = World::new().await;
    let replica = world.replica_with(&[("SEAL_INTERVAL", "100ms")]).await;
    let minted = replica.issue(json!({"userId": "u"})).await;
    assert_eq!(minted.status, 201);
    let rename = ["client", "update", ADMIN.0, "--name", "Till, \"1\" & <b>"];
    assert_eq!(run(&rename, &world.variables(&[])).await.code, 0);
    // A client that has no record, as after a restore.
    let unknown = "INSERT INTO audit_events (kind, client) VALUES ('token.expired', 'gone')";
    sqlx::query(unknown).execute(&world.db).await.unwrap();

    let name = json!("Till, \"1\" & <b>");
    let item = async |query: &str| {
        let page = replica.get(&format!("/audit/events?{query}")).await;
        page.body["items"][0].clone()
    };
    let event = item("kind=token.minted").await;
    assert_eq!(
        (&event["client"], &event["clientName"]),
        (&json!(ADMIN.0), &name)
    );
    let by_token = item(&format!("tokenId={}", minted.text("id"))).await;
    assert_eq!(by_token["clientName"], name);
    let gone = item("client=gone").await;
    assert_eq!(gone.get("clientName"), Some(&Value::Null));
    let none = item("kind=cleanup.ran").await;
    assert!(none.is_null() || none["clientName"].is_null());

    let export = "/audit/events/export?kind=token.minted&format=";
    let csv = text(&replica, &format!("{export}csv")).await;
    let lines: Vec<&str> = csv.lines().collect();
    assert!(lines[0].ends_with(",detail,clientName"), "{csv}");
    assert!(lines[1].ends_with(",\"Till, \"\"1\"\" & <b>\""), "{csv}");
    let exported = run(
        &["audit", "export", "--format", "csv"],
        &world.variables(&[]),
    )
    .await;
    assert!(
        exported.out.contains("\"Till, \"\"1\"\" & <b>\"\r\n"),
        "{exported:?}"
    );
    let line = text(&replica, &format!("{export}ndjson")).await;
    assert!(
        !line.contains("clientName") && !line.contains("Till"),
        "{line}"
    );
    let id = event["id"].as_str().unwrap();
    eventually("the event is sealed", async || {
        let proof = replica.get(&format!("/audit/events/{id}/proof")).await;
        proof.status == 200
    })
    .await;
    let proof = replica.get(&format!("/audit/events/{id}/proof")).await;
    assert_eq!(proof.text("entry"), line.trim_end());

    let shown = "<code>admin</code></a> Till, &#34;1&#34; &#38; &#60;b&#62;";
    for path in [
        "/console/audit?kind=token.minted",
        &format!("/console/events/{id}"),
    ] {
        let page = get_page(&replica, path).await;
        assert!(page.html.contains(shown), "{}", page.html);
    }
    let page = get_page(&replica, "/console/audit").await;
    let offered = "<option value=\"admin\">Till, &#34;1&#34; &#38; &#60;b&#62;</option>";
    assert!(page.html.contains(offered), "{}", page.html);
}
