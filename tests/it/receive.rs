//! `attesto receive`: a callback that prints what it gets.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStderr, ChildStdout, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::webhook_end_to_end::{secret, set_callback};
use crate::world::attesto::World;
use crate::world::folder::Folder;
use crate::world::shell::Shell;

/// A running `attesto receive`.
struct Receiving {
    child: Child,
    url: String,
    /// What it says when it starts.
    greeting: String,
    output: BufReader<ChildStdout>,
    _errors: BufReader<ChildStderr>,
}

impl Receiving {
    fn start(shell: &Shell, words: &[&str]) -> Self {
        let words = [&["receive", "--listen", "127.0.0.1:0"], words].concat();
        let mut child = shell
            .command(&words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        let mut greeting = String::new();
        errors.read_line(&mut greeting).unwrap();
        let url = greeting
            .split_whitespace()
            .find(|word| word.starts_with("http://"));
        Self {
            url: url.unwrap_or_else(|| panic!("{greeting}")).to_owned(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
            greeting,
            _errors: errors,
        }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn event(&mut self) -> Value {
        serde_json::from_str(&self.line()).unwrap()
    }

    /// As Ctrl-C does. Returns the exit code.
    fn interrupt(mut self) -> Option<i32> {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn it_checks_signatures_answers_and_prints_each_event_in_a_line() {
    let world = World::today().await;
    let tenant = world.stranger().await.id;
    let folder = Folder::new();
    let file = folder.join("secret");
    std::fs::write(&file, format!("{}\n", "s".repeat(40))).unwrap();
    let shell = world
        .shell()
        .set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")
        .set("OTHER_SECRET", &"o".repeat(40));
    let file = file.to_str().unwrap();
    for (words, signature, answered) in [
        (&["--secret-path", file] as &[_], "verified", 200),
        (&["--secret-path", file, "--status", "503"], "verified", 503),
        (&["--secret-env", "OTHER_SECRET"], "mismatch", 401),
        (&[], "unchecked", 200),
    ] {
        let mut receiving = Receiving::start(&shell, words);
        let url = receiving.url.clone();
        set_callback(
            world.database(),
            world.keyring(),
            &tenant,
            &url,
            &secret("s"),
        )
        .await;
        let ping = ["webhook", "ping", tenant.as_str()];
        let sent = shell.run_async(&ping, "").await.json();
        assert_eq!(sent["status"], answered, "{words:?}: {sent}");
        let printed = receiving.event();
        assert_eq!(printed["signature"], signature, "{printed}");
        assert_eq!(printed["answered"], answered, "{printed}");
        assert_eq!(printed["event"]["eventId"], sent["eventId"], "{printed}");
        assert_eq!(printed["attempt"], "1", "{printed}");
        let is_unchecked = receiving.greeting.contains("not checked");
        assert_eq!(
            is_unchecked,
            signature == "unchecked",
            "{}",
            receiving.greeting
        );
        assert_eq!(receiving.interrupt(), Some(0));
    }

    // While a secret is replaced, the one that is known here need not be the newest.
    let mut receiving = Receiving::start(&shell, &["--secret-path", file, "--output", "table"]);
    let url = receiving.url.clone();
    set_callback(
        world.database(),
        world.keyring(),
        &tenant,
        &url,
        &secret("n"),
    )
    .await;
    let ping = ["webhook", "ping", tenant.as_str()];
    assert_eq!(shell.run_async(&ping, "").await.json()["status"], 200);
    let line = receiving.line();
    assert!(
        line.contains("attempt 1, signature verified, answered 200"),
        "{line}"
    );
    let lines: Vec<_> = (0..3).map(|_| receiving.line()).collect();
    assert!(
        lines.contains(&"    reason: ping\n".to_owned()),
        "{lines:?}"
    );
    assert_eq!(receiving.interrupt(), Some(0));
    world.end().await;
}

#[test]
fn wrong_arguments_are_refused_without_repeating_them() {
    let shell = Shell::default().set("SHORT", "hunter2");
    for words in [
        &["--status", "101"] as &[_],
        &["--listen", "localhost"],
        &["--secret-env", "hunter2"],
        &["--secret-env", "SHORT"],
        &["--secret-env", "SHORT", "--secret-path", "-"],
    ] {
        let ran = shell.run(&[&["receive"], words].concat());
        assert_eq!(ran.exit, 2, "{words:?}: {ran:?}");
        if words.len() == 2 {
            ran.assert_hides("hunter2");
        }
    }
    let missing = shell.run(&["receive", "--secret-path", "/nowhere/secret"]);
    assert_eq!(missing.exit, 1, "{missing:?}");
    let help = shell.run(&["receive", "--help"]).said;
    assert!(help.contains("Examples:\n  attesto receive\n"), "{help}");
}
