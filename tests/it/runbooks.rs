//! The documentation pages, executed: every line of their shell blocks is run, in the order of the
//! page, by [`DocRunner`].
//!
//! docs/leak.md is run by `leak_runbook`, section by section, with two replicas.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::docs::{blocks, first_cells, pages};
use crate::world::doc_runner::{
    ALLOWED_EXIT_CODES, DocRunner, STUBBED_PROGRAMS, read_page, shell_scripts,
};
use crate::world::receiver::Received;

/// Scheduled maintenance.
const MAINTENANCE: [&str; 2] = ["docs/maintenance.md", "docs/upgrading.md"];
const OPERATIONS: [&str; 1] = ["docs/operations.md"];
const RECOVERY: [&str; 1] = ["docs/recovery.md"];
const MOVING: [&str; 1] = ["docs/moving.md"];
/// From installation to a tenant that receives events.
const BEGIN: [&str; 7] = [
    "README.md",
    "docs/quickstart.md",
    "docs/integrate.md",
    "docs/onboarding.md",
    "docs/webhooks.md",
    "docs/receivers/README.md",
    "docs/clients/README.md",
];
/// Pages for reference.
const LOOK_UP: [&str; 4] = [
    "docs/answers.md",
    "docs/apple-notifications.md",
    "docs/google-notifications.md",
    "docs/simulator.md",
];
/// Pages for operators.
const RUN: [&str; 7] = [
    "docs/deployment.md",
    "docs/migrating.md",
    "docs/troubleshooting.md",
    "docs/audit.md",
    "docs/bi.md",
    "docs/monitoring.md",
    "docs/performance.md",
];

#[test]
fn every_page_with_shell_blocks_is_executed() {
    let typed = [
        &MAINTENANCE[..],
        &OPERATIONS,
        &RECOVERY,
        &MOVING,
        &BEGIN,
        &LOOK_UP,
        &RUN,
        &["docs/leak.md"],
    ];
    let typed: BTreeSet<String> = typed.concat().into_iter().map(str::to_owned).collect();
    let pages = pages();
    let to_type = pages
        .iter()
        .filter(|(_, text)| !shell_scripts(text).is_empty())
        .map(|(name, _)| name.display().to_string());
    assert_eq!(typed, to_type.collect());
}

#[test]
fn every_allowed_exit_code_is_still_needed() {
    let typed: String = pages()
        .values()
        .flat_map(|text| shell_scripts(text))
        .collect();
    let programs = STUBBED_PROGRAMS.iter().map(|(program, ..)| *program);
    let parts = ALLOWED_EXIT_CODES
        .iter()
        .map(|(part, ..)| part.split(' ').next_back().unwrap());
    for part in programs.chain(parts) {
        assert!(typed.contains(part), "{part} is on no page any more");
    }
}

async fn follows(pages: &[&str]) {
    let desk = DocRunner::new().await;
    for page in pages {
        desk.run_page(page);
    }
    desk.world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calendar() {
    follows(&MAINTENANCE).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operating() {
    let desk = DocRunner::new().await;
    let said: String = OPERATIONS
        .iter()
        .flat_map(|name| desk.run_page(name))
        .collect();
    let lines = said
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let lines: Vec<_> = lines.collect();
    let page = read_page(OPERATIONS[0]);

    // The page lists exactly the doctor's checks.
    let doctor = lines.iter().find(|line| line["name"] == "doctor").unwrap();
    let groups = doctor["checks"].as_array().unwrap().iter();
    let groups = groups.map(|group| group["name"].as_str().unwrap().to_owned());
    let (_, table) = page.split_once("| group | what is checked |").unwrap();
    let table = table.split("\n\n").next().unwrap();
    assert_eq!(first_cells(table), groups.collect());

    // The table lists exactly the jobs, with their intervals.
    let listed = lines
        .iter()
        .filter(|line| line.get("intervalSeconds").is_some());
    let listed: BTreeMap<_, _> = listed
        .map(|line| {
            (
                line["name"].as_str().unwrap().to_owned(),
                line["intervalSeconds"].to_string(),
            )
        })
        .collect();
    let rows = page.lines().filter(|line| line.contains("| `JOBS_"));
    let told: BTreeMap<_, _> = rows
        .map(|row| row.split('|').map(str::trim).collect::<Vec<_>>())
        .map(|cells| {
            (
                cells[1].trim_matches('`'),
                cells[2].rsplit(' ').next().unwrap(),
            )
        })
        .map(|(name, interval)| (name.to_owned(), interval.to_owned()))
        .collect();
    assert_eq!(told, listed);
    desk.world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recovering() {
    follows(&RECOVERY).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn beginning() {
    let desk = DocRunner::new().await;
    let delivery = desk.receiver.requests().remove(0);
    delivered_as_told(&delivery);
    believed_as_told(&delivery, &desk.webhook_secret());
    for page in BEGIN {
        desk.run_page(page);
    }
    // The configured push endpoint accepts pushes: without a token it answers 401, not 404.
    let told = desk.read_note("gcloud");
    let endpoint = told.split("--push-endpoint ").nth(1).unwrap();
    let endpoint = endpoint.split(' ').next().unwrap();
    let nothing = json!({});
    let answer = desk.world.ask_at(endpoint, "POST", None, Some(&nothing));
    assert_eq!(answer.await.body["error"], "UNAUTHENTICATED", "{endpoint}");
    desk.world.end().await;
}

/// The block of a page in this language.
fn block(name: &str, language: &str) -> String {
    let found = blocks(&read_page(name)).0.into_iter();
    let mut found = found
        .filter(|(it, _)| it == language)
        .map(|(_, block)| block);
    let one = found.next().unwrap();
    assert_eq!(found.next(), None, "{name} has one of {language}");
    one
}

/// The headers and the fields of a delivery match the pages.
fn delivered_as_told(delivery: &Received) {
    let told = block("docs/webhooks.md", "http");
    let mut lines = told.lines();
    assert!(lines.next().unwrap().starts_with("POST /"));
    let told: BTreeMap<_, _> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value))
        .collect();
    let names: BTreeSet<_> = delivery.headers.keys().map(String::as_str).collect();
    let of_http = ["host", "content-length", "accept"];
    let names: BTreeSet<_> = names
        .into_iter()
        .filter(|it| !of_http.contains(it))
        .collect();
    assert_eq!(
        told.keys().map(String::as_str).collect::<BTreeSet<_>>(),
        names
    );
    let agent = |text: &str| text.split_once('/').unwrap().0.to_owned();
    assert_eq!(told["content-type"], delivery.headers["content-type"]);
    assert_eq!(
        agent(told["user-agent"]),
        agent(&delivery.headers["user-agent"])
    );

    let told: Value = serde_json::from_str(&block("docs/events.md", "json")).unwrap();
    let sent: Value = serde_json::from_slice(&delivery.body).unwrap();
    let fields = |of: &Value| of.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(fields(&told), fields(&sent));
}

/// The Python example accepts the delivery, and nothing else.
fn believed_as_told(delivery: &Received, secret: &str) {
    let signature = &delivery.headers["x-attesto-signature"];
    let (timestamp, values) = signature
        .strip_prefix("t=")
        .unwrap()
        .split_once(',')
        .unwrap();
    let values: Vec<_> = values
        .split(',')
        .map(|it| it.strip_prefix("v1=").unwrap())
        .collect();
    let script = format!(
        "import hashlib, hmac, sys\nsecret, timestamp, v1_values = sys.argv[1], sys.argv[2], sys.argv[3:]\n\
         body = sys.stdin.buffer.read()\n{}\nsys.exit(0 if fits else 3)\n",
        block("docs/webhooks.md", "python")
    );
    for (secret, fits) in [(secret, 0), ("whsec_another", 3)] {
        let python = Command::new("python3")
            .args(["-c", &script, secret, timestamp])
            .args(&values)
            .stdin(Stdio::piped())
            .spawn();
        let Ok(mut python) = python else {
            eprintln!("python3 is not installed: its lines were not run");
            return;
        };
        let mut input = python.stdin.take().unwrap();
        input.write_all(&delivery.body).unwrap();
        drop(input);
        assert_eq!(python.wait().unwrap().code(), Some(fits));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn looking_up() {
    let desk = DocRunner::new().await;
    for page in LOOK_UP {
        desk.run_page(page);
    }
    // Besides a ping: Apple's test notification, three purchases and a verification, and a Google
    // subscription.
    desk.receiver.until(7).await;
    desk.world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn running() {
    follows(&RUN).await;
}

/// Each of its blocks transfers the same tenant in another way.
#[tokio::test(flavor = "multi_thread")]
async fn moving() {
    let desk = DocRunner::new().await;
    for script in MOVING
        .iter()
        .flat_map(|name| shell_scripts(&read_page(name)))
    {
        desk.create_import_database().await;
        desk.run_script(&format!("rm -f acme.export\n{script}"));
    }
    desk.world.end().await;
}
