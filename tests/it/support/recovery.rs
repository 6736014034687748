//! Load that needs many connections, and the end of a database fault.

use serde_json::json;
use uuid::Uuid;

use super::{Answer, Api, World, eventually, issue_at_once, send};

/// Requests tokens for this many new users at once. A new user always needs the database.
pub async fn issue_to_new_users(api: &Api, count: usize) -> Vec<Answer> {
    let users = (0..count).map(|_| json!({"userId": Uuid::new_v4()}));
    issue_at_once(&[api], users).await
}

/// Polls until a reuse and 12 simultaneous mints succeed.
///
/// The caller of the reuse is always a client that the service has not authenticated yet.
pub async fn wait_until_all_succeed(world: &World, api: &Api, minted: &Answer) {
    let reuse = json!({"userId": minted.text("userId")}).to_string();
    eventually("a reuse and 12 mints succeed", async || {
        let client = Uuid::new_v4().to_string();
        let client = (client.as_str(), "secret");
        world
            .add_client(client, token_vendor::model::Scope::ALL)
            .await;
        let reuse = api
            .request_by(client, reqwest::Method::POST, "/bank/tokens/")
            .header("content-type", "application/json")
            .body(reuse.clone());
        let (reused, mints) = tokio::join!(send(reuse), issue_to_new_users(api, 12));
        if reused.status == 200 {
            reused.assert_reused(minted);
        }
        reused.status == 200 && mints.iter().all(|mint| mint.status == 201)
    })
    .await;
}
