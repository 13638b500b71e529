//! The first minute of a process: on an empty database, and as a role that may have few connections.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::Arc;

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::events::EventRecorder;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor as _};

use crate::delivery_hold::record_events;
use crate::world::postgres::{empty_database, fresh_database};
use crate::world::receiver::Receiver;
use crate::world::shell::Shell;
use crate::world::wait::wait_until;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

/// `attesto serve`, ended when it is dropped.
struct ServeProcess {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
}

impl ServeProcess {
    /// Returns once it listens.
    async fn start(shell: &Shell) -> Self {
        // For the requests to `/ready`.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut command = shell.command(&["serve", "--port=0", "--bind-address=127.0.0.1"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let log = Arc::<Mutex<Vec<Value>>>::default();
        let written = log.clone();
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                written
                    .lock()
                    .push(serde_json::from_str(&line).expect("JSON"));
            }
        });
        let process = Self { child, log };
        wait_until("it listens", async || process.listening().is_some()).await;
        process
    }

    fn listening(&self) -> Option<Value> {
        let log = self.log.lock();
        log.iter().find(|line| line["msg"] == "listening").cloned()
    }

    async fn ready(&self) -> (u16, Value) {
        let port = &self.listening().expect("it listens")["port"];
        let answer = reqwest::get(format!("http://127.0.0.1:{port}/ready")).await;
        let answer = answer.expect("it answers");
        (answer.status().as_u16(), answer.json().await.expect("JSON"))
    }
}

impl Drop for ServeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn shell(url: &str) -> Shell {
    Shell::default()
        .set("DATABASE_URL", url)
        .set("ATTESTO_ENCRYPTION_KEY", &STANDARD.encode([7; 32]))
        .set("ATTESTO_ENV", "development")
        .set("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")
}

#[tokio::test]
async fn the_first_start_on_an_empty_database_warns_of_nothing() {
    let empty = empty_database().await;
    let process = ServeProcess::start(&shell(&empty.url)).await;
    wait_until("it is registered", async || {
        let rows = sqlx::query_scalar::<_, i64>("select count(*) from replicas");
        rows.fetch_one(empty.database.pool())
            .await
            .is_ok_and(|rows| rows == 1)
    })
    .await;
    wait_until("it is ready", async || process.ready().await.0 == 200).await;
    let log = process.log.lock();
    // The requests of this test before it was ready were refused.
    let of_itself = log.iter().filter(|line| line["msg"] != "http_request");
    let warnings: Vec<_> = of_itself.filter(|line| line["level"] != "info").collect();
    assert!(warnings.is_empty(), "{warnings:#?}");
}

/// An operator who restored a backup reads that it is ready, and releases what it may send.
#[tokio::test]
async fn a_requested_hold_is_stored_before_it_is_ready() {
    let owner = fresh_database().await;
    let shell = shell(&owner.url).set("ATTESTO_HOLD_DELIVERIES", "true");
    let process = ServeProcess::start(&shell).await;
    wait_until("it is ready", async || process.ready().await.0 == 200).await;
    let status = shell.rows(&["deliveries", "status"]).remove(0);
    assert_eq!(status["held"], true, "{status}");
    assert_eq!(status["heldBy"], attesto::replicas::host_name());
}

/// A small plan of a hosted Postgres gives a role so many connections; the process would take ten.
#[tokio::test]
async fn a_role_that_may_have_six_connections_delivers() {
    let owner = fresh_database().await;
    let clerk = format!("clerk_of_{}", owner.database.database_name());
    let execute = async |statements: String| {
        owner
            .database
            .pool()
            .execute(AssertSqlSafe(statements))
            .await
            .unwrap();
    };
    execute(format!(
        "create role {clerk} login connection limit 6; grant all on all tables in schema public to {clerk}; \
         grant all on all sequences in schema public to {clerk}"
    ))
    .await;
    let operator = shell(&owner.url);
    let created = operator.rows(&["tenant", "create", "--name=Few"]).remove(0);
    let tenant: TenantId = created["id"].as_str().unwrap().parse().unwrap();
    let receiver = Receiver::answering(OK).await;
    let (url, secret) = (receiver.url(), "x".repeat(40));
    let set = [
        "webhook",
        "set-config",
        tenant.as_str(),
        "--callback-url",
        &url,
        "--secret",
        &secret,
    ];
    operator.rows(&set);

    let few = owner.url.replace("user=attesto", &format!("user={clerk}"));
    let few = shell(&few.replace("max=5", "max=10"));
    let doctor = few.run_async(&["doctor", "--offline"], "").await.said;
    assert!(doctor.contains("Set max=4 in DATABASE_URL"), "{doctor}");
    let process = ServeProcess::start(&few).await;
    wait_until("it delivers", async || {
        let (status, ready) = process.ready().await;
        status == 200 && ready["checks"].get("deliveries").is_none()
    })
    .await;
    let record = EventRecorder::new(&owner.database, &Clock::system(), |_| {});
    record_events(&record, &tenant, &["1", "2", "3"]).await;
    owner
        .database
        .pool()
        .execute("select pg_notify('attesto_work', '')")
        .await
        .unwrap();
    receiver.until(3).await;
    wait_until("the log says which max fits", async || {
        let log = process.log.lock();
        log.iter().any(|line| {
            line["msg"] == "role_connection_limit_too_low"
                && line["hint"] == "Set max=4 in DATABASE_URL"
        })
    })
    .await;

    drop(process);
    wait_until("its sessions have ended", async || {
        let sessions = sqlx::query_scalar::<_, i64>(
            "select count(*) from pg_stat_activity where usename = $1",
        );
        sessions
            .bind(&clerk)
            .fetch_one(owner.database.pool())
            .await
            .unwrap()
            == 0
    })
    .await;
    execute(format!("drop owned by {clerk}; drop role {clerk}")).await;
}
