//! `attesto dev` as a new user runs it.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use attesto::base::clock::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::docs::blocks;
use crate::world::doc_runner::read_page;
use crate::world::folder::Folder;

fn dev(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attesto"));
    for name in ["DATABASE_URL", "ATTESTO_ENCRYPTION_KEY", "PORT"] {
        command.env_remove(name);
    }
    command
        .arg("dev")
        .args(arguments)
        .env("ATTESTO_DATA_DIR", &**folder)
        .stdin(Stdio::null());
    command
}

fn once(folder: &Folder, variables: &[(&str, &str)]) -> String {
    let output = dev(
        folder,
        &[
            "--once",
            "--port=0",
            "--simulator-port=0",
            "--callback-port=0",
        ],
    )
    .envs(variables.iter().copied())
    .output()
    .expect("the binary runs");
    let (said, complained) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{said}\n{complained}");
    said.into_owned()
}

/// The lines that begin with `curl`.
fn curl_lines(said: &str) -> Vec<&str> {
    said.lines()
        .filter(|line| line.starts_with("curl ") && line.contains("/verify"))
        .collect()
}

/// Runs a printed line unchanged.
fn paste(line: &str) -> Value {
    let output = Command::new("sh")
        .args(["-c", line])
        .output()
        .expect("a shell runs");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!(
            "{error}: {line}\n{}",
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// Whether an answer matches the documentation: text left out there (`…`) may be anything, and so
/// may times.
fn is_told(told: &Value, answer: &Value) -> bool {
    match (told, answer) {
        (Value::Object(told), Value::Object(answer)) => told.iter().all(|(name, value)| {
            // The version on the pages may be older.
            ["…", "version"].contains(&name.as_str())
                || answer.get(name).is_some_and(|found| is_told(value, found))
        }),
        (Value::String(told), Value::String(answer)) => match told.strip_suffix('…') {
            Some(start) => answer.starts_with(start),
            None if Timestamp::parse(told).is_some() => Timestamp::parse(answer).is_some(),
            None => told == answer,
        },
        (told, answer) => told == answer,
    }
}

/// Sends the requests of the first pages, and compares the answers with those on the pages.
fn ask_as_told(service: &str, stores: &str, key: &str) {
    for name in ["README.md", "docs/quickstart.md"] {
        let (blocks, _) = blocks(&read_page(name));
        let told = blocks
            .iter()
            .filter(|(language, _)| language == "json")
            .count();
        let mut answers = 0;
        let mut question = None;
        for (language, block) in blocks {
            match (language.as_str(), question.take()) {
                ("console", _) => question = block.strip_prefix("$ ").map(str::to_owned),
                ("json", Some(line)) if line.contains("/verify") => {
                    let line = line
                        .replace("http://127.0.0.1:8080", service)
                        .replace("http://127.0.0.1:8090", stores)
                        .replace("attesto_test_…", key);
                    let told: Value = serde_json::from_str(&block).expect("JSON");
                    let answer = paste(&line);
                    assert!(is_told(&told, &answer), "{name}: {told:#}\n{answer:#}");
                    answers += 1;
                }
                _ => {}
            }
        }
        assert_eq!(answers, told, "{name}");
        assert!(told > 0, "{name}");
    }
}

/// Stops the process, also when the test fails.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.0);
        let _ = kill_process(pid, Signal::INT);
        let _ = self.0.wait();
    }
}

#[test]
fn dev_verifies_and_delivers_twice_in_a_row() {
    let folder = Folder::new();
    let first = once(&folder, &[]);
    let all = "All 5 answers are right, and all 3 events arrived, signed.";
    assert!(first.contains(all), "{first}");
    assert_eq!(curl_lines(&first).len(), 5, "{first}");
    let key = |said: &str| {
        said.lines().find_map(|line| {
            line.trim()
                .strip_prefix("API key ")
                .map(|key| key.trim().to_owned())
        })
    };
    // The settings of a server in the same environment, or from a compose file, do not apply to the
    // private database.
    let second = once(
        &folder,
        &[
            ("DATABASE_URL", ""),
            ("DATABASE_DIRECT_URL", "nowhere"),
            ("ATTESTO_ENCRYPTION_KEY", &STANDARD.encode([9; 32])),
            ("ATTESTO_ENCRYPTION_KEYS_RETIRED", "nonsense"),
        ],
    );
    assert!(second.contains(all), "{second}");
    for said in [&first, &second] {
        let events: Vec<_> = said
            .lines()
            .filter_map(|line| line.strip_prefix("callback <- ")?.split_once("  "))
            .map(|(word, rest)| (word, rest.contains("signature verified")))
            .filter(|(word, _)| *word != "subscription.purchased")
            .collect();
        assert_eq!(
            events,
            [
                ("subscription.renewed", true),
                ("subscription.refunded", true),
                ("subscription.renewed", true)
            ],
            "{said}"
        );
    }
    assert_eq!(
        key(&first),
        key(&second),
        "the data stays, so the lines of the first run still work"
    );
}

#[test]
fn the_printed_commands_work() {
    if Command::new("curl").arg("--version").output().is_err() {
        // Attesto does not need curl, but its README uses it.
        println!("curl is not installed: the printed lines were not run");
        return;
    }
    let folder = Folder::new();
    let mut child = dev(
        &folder,
        &["--port=0", "--simulator-port=0", "--callback-port=0"],
    )
    .stdout(Stdio::piped())
    .spawn()
    .expect("the binary runs");
    let output = child.stdout.take().expect("it is piped");
    let running = Running(child);
    let mut said = String::new();
    let mut lines = BufReader::new(output).lines();
    for line in &mut lines {
        let line = line.expect("text");
        said.push_str(&line);
        said.push('\n');
        if line.contains("Ctrl-C stops everything") {
            break;
        }
    }
    let answers: Vec<Value> = curl_lines(&said).into_iter().map(paste).collect();
    let valid: Vec<_> = answers
        .iter()
        .map(|answer| answer["valid"].as_bool())
        .collect();
    assert_eq!(
        valid,
        [true, true, true, false, false].map(Some),
        "{answers:#?}"
    );
    assert_eq!(answers[3]["error"], "SIGNATURE_INVALID");
    assert_eq!(answers[4]["error"], "TRANSACTION_NOT_FOUND");

    // Commands find this database, whatever else is in the environment.
    let exports: Vec<_> = said
        .lines()
        .filter(|line| line.starts_with("unset ") || line.starts_with("export "))
        .collect();
    let listed = Command::new("sh")
        .args([
            "-euc",
            &format!("{}\n\"$0\" tenant list", exports.join("\n")),
        ])
        .arg(env!("CARGO_BIN_EXE_attesto"))
        .env("ATTESTO_ENCRYPTION_KEY", STANDARD.encode([9; 32]))
        .env("DATABASE_DIRECT_URL", "postgres://nowhere.invalid/x")
        .output()
        .expect("sh");
    let tenants = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert_eq!(tenants.lines().count(), 1, "{listed:?}");

    // The requests of the first pages are sent here, with the documented answers.
    let base = |line: &str, end: &str| {
        let from = line.find("http://").expect("an address");
        line[from..]
            .split(end)
            .next()
            .expect("a text has a beginning")
            .to_owned()
    };
    let question = curl_lines(&said)[0];
    let service = base(question, "/v1/");
    let key = question.split("Bearer ").nth(1).expect("a key");
    let key = key.split('\'').next().expect("a key");
    let refund_line = said.lines().rfind(|line| line.ends_with("/refund"));
    let stores = base(refund_line.expect("a line that refunds"), "/control");
    ask_as_told(&service, &stores, key);
    // And the callback gets what the pages show.
    let renew =
        format!("curl -s -X POST {stores}/control/apple/transactions/2000000000000001/renew");
    paste(&renew);
    let mut lines = lines.map(|line| line.expect("text"));
    let shown = lines
        .find(|line| line.starts_with("callback <- "))
        .expect("it is shown");
    let readme = read_page("README.md");
    let told = readme.lines().find(|line| line.starts_with("callback <- "));
    let shape = |line: &str| -> Vec<String> {
        let words = line.split_whitespace();
        let fixed = |word: &str| !word.starts_with("evt_") && word.parse::<u32>().is_err();
        words
            .filter(|word| fixed(word))
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(told.map(shape), Some(shape(&shown)));

    let refund = said
        .lines()
        .rfind(|line| line.ends_with("/refund"))
        .expect("a line that refunds");
    paste(refund);
    assert_eq!(paste(curl_lines(&said)[0])["status"], "refunded");
    // And `attesto tail` shows the event.
    let shown = lines
        .find(|line| line.starts_with("callback <- subscription.refunded"))
        .expect("it is shown");
    assert!(shown.ends_with("signature verified"), "{shown}");
    drop(running);
}

/// A database with tenants of its own is in use.
#[tokio::test]
async fn dev_refuses_a_database_with_other_tenants() {
    let fresh = crate::world::postgres::fresh_database().await;
    sqlx::query(
        "insert into tenants (id, name) values ('tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', 'Acme')",
    )
    .execute(fresh.database.pool())
    .await
    .expect("a tenant");
    let folder = Folder::new();
    let output = dev(
        &folder,
        &[
            "--once",
            "--port=0",
            "--simulator-port=0",
            "--callback-port=0",
        ],
    )
    .env("DATABASE_URL", &fresh.url)
    .output()
    .expect("the binary runs");
    assert_eq!(output.status.code(), Some(1));
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(
        complained.contains("has tenants of its own (1)"),
        "{complained}"
    );
    let sealed: i64 = sqlx::query_scalar("select count(*) from apple_credentials")
        .fetch_one(fresh.database.pool())
        .await
        .expect("it answers");
    assert_eq!(sealed, 0);
}
