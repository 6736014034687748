//! `completions`: the generated scripts, and the completions of bash.

use tokio::process::Command;

use crate::support::run;

#[tokio::test(flavor = "multi_thread")]
async fn bash_completes_commands_and_option_values() {
    let script = run(&["completions", "bash"], &[]).await;
    assert_eq!((script.code, script.err.as_str()), (0, ""), "{script:?}");
    for (typed, expected) in [
        ("token-vendor cl", "cleanup client"),
        ("token-vendor client cr", "create"),
        ("token-vendor client create --scope audit:re", "audit:read"),
        (
            "token-vendor serve --min",
            "--mint-cooldown --min-remaining",
        ),
    ] {
        let complete = format!(
            "{}\nCOMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))\n\
             function=$(complete -p token-vendor | sed 's/.*-F //; s/ .*//')\n\
             \"$function\" token-vendor \"${{COMP_WORDS[-1]}}\" \"${{COMP_WORDS[-2]}}\"\n\
             echo \"${{COMPREPLY[*]}}\"",
            script.out
        );
        let output = Command::new("bash").args(["-c", &complete]).output().await;
        let completed = String::from_utf8(output.unwrap().stdout).unwrap();
        assert_eq!(completed.trim(), expected, "{typed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn zsh_and_fish_scripts_are_generated() {
    for (shell, prefix) in [
        ("zsh", "#compdef token-vendor"),
        ("fish", "# Print an optspec"),
    ] {
        let script = run(&["completions", shell], &[]).await;
        assert!(script.out.starts_with(prefix), "{script:?}");
        assert!(script.out.contains("rotate"), "{script:?}");
    }
    assert_eq!(run(&["completions", "sh"], &[]).await.code, 2);
}
