//! Progress of long commands: on a terminal, and nowhere else.

use std::process::{Command, Stdio};

use crate::delivery_hold::{events, set_callback};
use crate::world::attesto::World;
use crate::world::folder::Folder;
use crate::world::shell::Shell;

/// What a bar begins with: it is drawn over what is in the line.
const BAR: &str = "\r\u{1b}[2K[";

/// What a terminal is sent.
fn on_a_terminal(shell: &Shell, words: &[&str]) -> String {
    let command = shell.command(words);
    let all = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<_> = all
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let environment = command
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    // util-linux' `script` runs a command on a terminal of its own.
    let output = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--command",
            &line.join(" "),
            "/dev/null",
        ])
        .env_clear()
        .envs(environment)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{words:?}: {text}");
    text
}

#[tokio::test]
async fn long_commands_show_their_progress_on_a_terminal_only() {
    let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    let tenant = world.tenant().await.id;
    set_callback(&world, &tenant, "http://127.0.0.1:9/hook").await;
    events(&world, &tenant, &["1", "2"]).await;
    let folder = Folder::new();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (dump, piped_dump) = (file("dump"), file("piped-dump"));
    let (export, piped_export) = (file("export"), file("piped-export"));
    let passphrase = file("passphrase");
    std::fs::write(&passphrase, "correct horse battery staple").unwrap();
    let shell = world.shell().set("PATH", "/usr/bin:/bin");
    let tenant = tenant.as_str();

    for (on_terminal, piped, steps) in [
        (
            &["backup", "create", "--file", &dump] as &[_],
            &["backup", "create", "--file", &piped_dump] as &[_],
            [
                "0 of 3  counting the rows",
                "1 of 3  dumping, 0 MB",
                "2 of 3  computing",
            ],
        ),
        (
            &["backup", "verify", &dump],
            &["backup", "verify", &piped_dump],
            [
                "1 of 5  restoring, ",
                "3 of 5  applying migrations",
                "4 of 5  opening secrets",
            ],
        ),
        (
            &[
                "tenant",
                "export",
                tenant,
                "--file",
                &export,
                "--passphrase-file",
                &passphrase,
            ],
            &[
                "tenant",
                "export",
                tenant,
                "--file",
                &piped_export,
                "--passphrase-path",
                &passphrase,
            ],
            ["  tenants", "  webhook_events", "  webhook_deliveries"],
        ),
        (
            &["prune"],
            &["prune"],
            [
                "  events, 0 rows removed",
                "redeliveries, 0 rows removed",
                "jobRuns, 0 rows removed",
            ],
        ),
    ] {
        let shown = on_a_terminal(&shell, on_terminal);
        for step in steps {
            let is_drawn = shown.split(BAR).skip(1).any(|bar| bar.contains(step));
            assert!(is_drawn, "{step} is not in {shown:?}");
        }
        let after = shown.rsplit("\u{1b}[2K").next().unwrap();
        assert!(
            !after.contains("of 3  ") && !after.trim().is_empty(),
            "{after}"
        );
        let ran = shell.run(piped);
        assert_eq!(ran.exit, 0, "{ran:?}");
        ran.assert_hides("\u{1b}");
        ran.assert_hides(" of 3");
    }
    world.end().await;
}
