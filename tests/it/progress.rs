//! Progress lines of long commands, which appear only on a terminal.

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

/// Runs a command with a terminal as stderr. Returns what it wrote there.
async fn run_on_terminal(arguments: &[&str], variables: &[(String, String)]) -> String {
    let terminal = openpty(None, None).unwrap();
    let mut command = program(arguments, variables);
    let mut child = command
        .stdout(Stdio::null())
        .stderr(Stdio::from(terminal.slave))
        .spawn()
        .unwrap();
    // The command also holds the terminal's other end, which would keep the terminal open.
    drop(command);
    let mut screen = File::from(terminal.master);
    let read = spawn_blocking(move || {
        let mut text = Vec::new();
        // Linux reports the end of a terminal as an error.
        let _ = screen.read_to_end(&mut text);
        String::from_utf8(text).unwrap()
    });
    let exited = timeout(Duration::from_secs(60), child.wait()).await;
    let text = read.await.unwrap();
    assert!(exited.unwrap().unwrap().success(), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn long_commands_show_progress_on_a_terminal() {
    let world = World::unchecked().await;
    let replica = world.replica().await;
    for user in ["u-1", "u-2"] {
        assert_eq!(replica.issue(json!({"userId": user})).await.status, 201);
    }
    replica.service.stop().await;
    seed(&world, "u-3", 5_000, "1 hour", true).await;
    let variables = world.variables(&[("TOKEN_KEYS", TWO_KEYS)]);

    let export = ["audit", "export"];
    let screen = run_on_terminal(&export, &variables).await;
    assert!(screen.contains(" events, up to 20"), "{screen:?}");
    assert!(!run(&export, &variables).await.err.contains("events, up to"));

    let screen = run_on_terminal(&["cleanup"], &variables).await;
    assert!(
        screen.starts_with("\r5000 expired tokens left to mark, then old records"),
        "{screen:?}"
    );

    let screen = run_on_terminal(&["keys", "rotate"], &variables).await;
    assert!(
        screen.contains("\r2 of 2 tokens re-encrypted\x1b[K\r\n"),
        "{screen:?}"
    );
}
