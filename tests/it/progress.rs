//! What long commands tell on a terminal while they work, and nowhere else.

use std::fs::File;
use std::io::Read;
use std::process::Stdio;
use std::time::Duration;

use nix::pty::openpty;
use serde_json::json;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::cleanup::seed;
use crate::support::{World, program, run};

const TWO_KEYS: &str = "k9:CQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQk=,k1:AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";

/// What a command writes to a terminal as its standard error.
async fn on_terminal(arguments: &[&str], variables: &[(String, String)]) -> String {
    let terminal = openpty(None, None).unwrap();
    let mut command = program(arguments, variables);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::from(terminal.slave))
        .spawn()
        .unwrap();
    // It held the terminal's other end as well.
    drop(command);
    let mut screen = File::from(terminal.master);
    let read = spawn_blocking(move || {
        let mut text = Vec::new();
        // Its end is an error on Linux.
        let _ = screen.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    });
    let ended = timeout(Duration::from_secs(60), child.wait()).await;
    let text = read.await.unwrap();
    assert!(ended.unwrap().unwrap().success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn long_commands_tell_a_terminal_how_far_they_are() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    for user in ["u-1", "u-2"] {
        assert_eq!(replica.issue(json!({"userId": user})).await.status, 201);
    }
    replica.service.stop().await;
    seed(&world, "u-3", 5_000, "1 hour", true).await;
    let variables = world.variables(&[("TOKEN_KEYS", TWO_KEYS)]);

    let export = ["audit", "export"];
    let told = on_terminal(&export, &variables).await;
    assert!(told.contains(" events, up to 20"), "{told:?}");
    assert!(!run(&export, &variables).await.err.contains("events, up to"));

    let told = on_terminal(&["cleanup"], &variables).await;
    assert!(
        told.starts_with("\r5000 ended tokens left to mark, then old records"),
        "{told:?}"
    );

    let told = on_terminal(&["keys", "rotate"], &variables).await;
    assert!(
        told.contains("\r2 of 2 tokens re-encrypted\r\n"),
        "{told:?}"
    );
}
