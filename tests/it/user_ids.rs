//! The rule of user ids, wherever the service accepts one.

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;
use sqlx::Executor;

use crate::support::page::post_form;
use crate::support::{World, run, send};

#[tokio::test(flavor = "multi_thread")]
async fn a_user_id_with_white_space_at_either_end_is_refused_everywhere() {
    let world = World::new().await;
    let replica = world.replica().await;
    replica.issue(json!({"userId": "victim"})).await;
    for user in [
        "victim ",
        " victim",
        "\u{a0}victim",
        "victim\u{2003}",
        "victim\u{3000}",
        "victim\n",
        "vic\ttim",
        " ",
        "",
    ] {
        for (path, body) in [
            ("/bank/tokens/", json!({"userId": user})),
            (
                "/bank/tokens/invalidate",
                json!({"userId": user, "reason": "compromised"}),
            ),
        ] {
            let answer = send(replica.post(path, &body)).await;
            answer.assert_problem(400, "validation");
            assert_eq!(answer.pointers(), ["#/userId"], "{path} {user:?}");
        }
        let encoded = utf8_percent_encode(user, NON_ALPHANUMERIC);
        for path in [
            "/bank/tokens/?",
            "/audit/events?",
            "/audit/events/export?",
            "/console/users?",
            "/console/audit?",
            "/console/invalidate?reason=used&",
        ] {
            let path = format!("{path}userId={encoded}");
            // An empty field of a console form counts as absent.
            let is_absent = user.is_empty() && path.starts_with("/console/audit");
            let expected = if is_absent { 200 } else { 400 };
            assert_eq!(replica.get(&path).await.status, expected, "{path}");
        }
        let fields = [("userId", user), ("reason", "used"), ("formToken", "x")];
        let posted = post_form(&replica, "/console/invalidate", &fields);
        assert_eq!(send(posted).await.status, 400, "{user:?}");
        let arguments = ["audit", "export", "--user-id", user];
        let output = run(&arguments, &world.variables(&[])).await;
        assert_eq!((output.code, &*output.out), (2, ""), "{user:?}: {output:?}");
    }
    let valid = "SELECT count(*) FROM tokens WHERE is_valid";
    assert_eq!(world.count(valid).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_user_id_with_white_space_is_readable_by_token_id() {
    let world = World::new().await;
    let replica = world.replica().await;
    let id = replica.issue(json!({"userId": "u"})).await;
    let id = id.text("id");
    let changed = "
        SET LOCAL session_replication_role = replica;
        UPDATE tokens SET user_id = ' u ';
        UPDATE slots SET user_id = ' u ';
        UPDATE mints SET user_id = ' u ';
        UPDATE audit_events SET user_id = ' u ' WHERE user_id = 'u'";
    world.db.execute(changed).await.unwrap();

    let record = replica.get(&format!("/bank/tokens/{id}")).await;
    assert_eq!((record.status, record.text("userId")), (200, " u "));
    let page = replica.get(&format!("/console/tokens/{id}")).await;
    assert_eq!(page.status, 200);
    let events = replica.get(&format!("/audit/events?tokenId={id}")).await;
    assert_eq!(events.body["items"][0]["userId"], " u ", "{events:?}");
    let path = format!("/bank/tokens/{id}/invalidate");
    let record = send(replica.post(&path, &json!({"reason": "compromised"}))).await;
    assert_eq!(record.body["isValid"], false, "{record:?}");
}
