//! The calendar and the runbooks, typed as they stand: every line of their shell blocks is run, in the order of the page.
//!
//! What stands for something of the reader's (`tenant_…`, a key's id) is filled in; what is not Attesto's and not everywhere
//! (a cloud's command line) is named in [`NOT_TYPED`], with the reason. A line that is neither fails.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use attesto::apple::account::EnvironmentChoice;
use attesto::events::{NewEvent, Record, Source, Word};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::value::RawValue;

use crate::docs::{blocks, root};
use crate::world::attesto::{Tenant, World};
use crate::world::folder::Folder;
use crate::world::postgres::{Fresh, empty_database};
use crate::world::receiver::Receiver;

/// Beginnings of lines that are not typed here, and why.
const NOT_TYPED: [(&str, &str); 0] = [];

/// Lines that may end with something else than 0, and why.
const MAY_END_WITH: [(&str, &[i32], &str); 1] = [(
    "attesto doctor",
    &[0, 1],
    "an installation of a test has no backup of last week, and whatever else it gives advice on",
)];

struct Desk {
    world: World,
    tenant: Tenant,
    receiver: Receiver,
    event: String,
    restored: Option<Fresh>,
    folder: Folder,
    environment: Vec<(String, String)>,
}

impl Desk {
    async fn new() -> Self {
        let world = World::today().await;
        let tenant = world.tenant().await;
        let receiver = Receiver::answering(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        let folder = Folder::new();

        // The programs a runbook names: ours, and a day that does not end in the middle of a test.
        let bin = folder.join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_attesto"), bin.join("attesto")).unwrap();
        let date = bin.join("date");
        std::fs::write(&date, "#!/bin/sh\necho 2026-04-10\n").unwrap();
        std::fs::set_permissions(&date, PermissionsExt::from_mode(0o755)).unwrap();
        let work = folder.join("work");
        std::fs::create_dir(&work).unwrap();
        let apple = world.simulator.apple().key();
        std::fs::write(work.join("AuthKey_2X9R4HXF34.p8"), &apple.private_key).unwrap();
        let account = world.simulator.google_service_account().to_string();
        std::fs::write(work.join("service-account.json"), account).unwrap();

        let path = format!("{}:/usr/bin:/bin", bin.display());
        let mut environment: Vec<(String, String)> = world
            .simulator
            .settings()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        let roots = folder.join("root.pem");
        std::fs::write(&roots, world.simulator.apple_root_pem()).unwrap();
        for (name, value) in [
            ("PATH", path.as_str()),
            ("DATABASE_URL", &world.fresh.url),
            ("ATTESTO_ENV", "test"),
            // Nobody is asked there, but `doctor` looks whether somebody could be.
            (
                "GOOGLE_PUBSUB_URL",
                world.simulator.google_play_url().as_str(),
            ),
            ("APPLE_ROOT_CERTIFICATES", &roots.display().to_string()),
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
            ("ATTESTO_ENCRYPTION_KEY", &STANDARD.encode([7; 32])),
        ] {
            environment.push((name.to_owned(), value.to_owned()));
        }
        let mut desk = Self {
            world,
            tenant,
            receiver,
            event: String::new(),
            restored: None,
            folder,
            environment,
        };
        let url = desk.receiver.url();
        desk.type_in(&format!(
            "attesto webhook set-config {} --callback-url {url}",
            desk.tenant.id
        ));
        desk.event = desk.fails("a failure").await;
        // Something to go back to, for whoever sets what the pages set.
        let tenant = &desk.tenant.id;
        desk.world
            .set_apple(&desk.tenant, EnvironmentChoice::Sandbox, None)
            .await;
        desk.type_in(&format!("attesto google set-credentials {tenant} --package-name com.example.app --service-account-path service-account.json --pubsub-topic projects/example/topics/play"));
        desk
    }

    /// An event whose delivery was given up.
    async fn fails(&self, external_id: &str) -> String {
        let raw = || RawValue::from_string("{}".into()).unwrap();
        let event = NewEvent {
            tenant: self.tenant.id.clone(),
            source: Source::Google,
            external_id: external_id.into(),
            word: Word::SubscriptionRenewed,
            reason: None,
            platform_event: "google.subscription_renewed".into(),
            occurred_at: None,
            environment: None,
            subject: None,
            app_user_id: None,
            data: raw(),
            raw: raw(),
        };
        let database = self.world.database();
        let record = Record::new(database, &self.world.clock, || {});
        let stored = record.store(&event).await.unwrap().event_id;
        sqlx::query(
            "update webhook_deliveries set status = 'failed', failed_at = now(), attempt_count = 6 where event_id = $1",
        )
        .bind(stored.as_str())
        .execute(database.pool())
        .await
        .unwrap();
        stored.to_string()
    }

    /// A new key of the tenant: one that is revoked is not there for the next line.
    fn new_key(&self) -> String {
        let said = self.type_in(&format!("attesto key create {}", self.tenant.id));
        let made: serde_json::Value = serde_json::from_str(&said).unwrap();
        made["id"].as_str().unwrap().to_owned()
    }

    /// The line with what is the reader's filled in.
    fn filled(&self, line: &str) -> String {
        let apple = self.world.simulator.apple().key();
        let mut line = line
            .replace("tenant_…", self.tenant.id.as_str())
            .replace("evt_…", &self.event)
            .replace("--key-id 2X9R4HXF34", &format!("--key-id {}", apple.key_id))
            .replace("57246542-96fe-1a63-e053-0824d011072a", &apple.issuer_id);
        if line.contains("key_…") {
            line = line.replace("key_…", &self.new_key());
        }
        line
    }

    fn type_in(&self, line: &str) -> String {
        if line.starts_with("attesto serve") {
            self.serve(line);
            return String::new();
        }
        let (exit, said) = self.try_line(line);
        let expected = MAY_END_WITH
            .iter()
            .find(|(start, ..)| line.starts_with(start))
            .map_or(&[0][..], |(_, codes, _)| codes);
        assert!(
            expected.contains(&exit),
            "{line}\nended with {exit}: {said}"
        );
        said
    }

    /// Lets it serve until it says that it does, and stops it in order.
    fn serve(&self, line: &str) {
        let mut child = Command::new("/bin/sh")
            .args(["-euc", &format!("exec {line}")])
            .current_dir(self.folder.join("work"))
            .env_clear()
            .envs(self.environment.iter().cloned())
            .envs([("PORT", "0"), ("BIND_ADDRESS", "127.0.0.1")])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let listens = lines.any(|said| said.unwrap().contains("\"msg\":\"listening\""));
        assert!(listens, "{line}: it ended without listening");
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        // What it says meanwhile has to go somewhere.
        lines.for_each(drop);
        assert!(child.wait().unwrap().success(), "{line}");
    }

    fn try_line(&self, line: &str) -> (i32, String) {
        let output = Command::new("/bin/sh")
            .args(["-euc", line])
            .current_dir(self.folder.join("work"))
            .env_clear()
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let mut said = String::from_utf8(output.stdout).unwrap();
        write!(said, "{}", String::from_utf8(output.stderr).unwrap()).unwrap();
        (output.status.code().unwrap(), said)
    }

    /// Types a page.
    async fn follow(&mut self, page: &str) {
        let text = std::fs::read_to_string(root().join("docs").join(page)).unwrap();
        let (blocks, _) = blocks(&text);
        let mut typed = 0;
        for (_, block) in blocks.iter().filter(|(language, _)| language == "sh") {
            let block = block.replace("\\\n", " ");
            for line in block.lines().map(str::trim) {
                if line.is_empty() || line.starts_with('#') {
                    continue;
                }
                if NOT_TYPED.iter().any(|(start, _)| line.starts_with(start)) {
                    continue;
                }
                assert!(
                    !line.replace("_…", "").contains('…'),
                    "{page}: {line}: what is left out cannot be typed"
                );
                if line.starts_with("createdb") {
                    // From here on the page speaks of another database.
                    let empty = empty_database().await;
                    self.environment
                        .push(("DATABASE_URL".to_owned(), empty.url.clone()));
                    self.restored = Some(empty);
                    continue;
                }
                self.type_in(&self.filled(line));
                typed += 1;
            }
        }
        assert!(typed > 10, "{page}: only {typed} lines were typed");
    }
}

#[test]
fn every_exception_is_still_one() {
    let pages: String = ["maintenance.md", "operations.md", "recovery.md"]
        .map(|page| std::fs::read_to_string(Path::new("docs").join(page)).unwrap_or_default())
        .concat();
    let starts = NOT_TYPED
        .iter()
        .map(|(start, _)| *start)
        .chain(MAY_END_WITH.iter().map(|(start, ..)| *start));
    for start in starts {
        assert!(pages.contains(start), "{start} is on no page any more");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_calendar() {
    let mut desk = Desk::new().await;
    desk.follow("maintenance.md").await;
    desk.world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operating() {
    let mut desk = Desk::new().await;
    desk.follow("operations.md").await;
    desk.world.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recovering() {
    let mut desk = Desk::new().await;
    desk.follow("recovery.md").await;
    desk.world.end().await;
}
