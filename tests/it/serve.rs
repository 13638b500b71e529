//! `attesto serve` as a process: what it needs, what it prints, and how it ends.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use attesto::base::clock::Clock;
use attesto::server::tls::TlsCertificate;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixStream};
use url::Url;

use crate::tls::{DAY, Made};
use crate::world::attesto::World;
use crate::world::folder::Folder;
use crate::world::postgres::{empty_database, fresh_database};
use crate::world::shell::Shell;
use crate::world::wait::{wait_for, wait_until};

/// A server process.
pub(crate) struct Served {
    child: Child,
    log: Arc<Mutex<Vec<Value>>>,
    /// Reads the log to its end.
    reader: JoinHandle<()>,
}

pub(crate) fn key(fill: u8) -> String {
    STANDARD.encode([fill; 32])
}

fn attesto(flags: &[&str], variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_attesto"));
    command
        .env_clear()
        .envs(variables.iter().copied())
        .args(flags)
        .stdin(Stdio::null());
    command
}

impl Served {
    /// Starts `attesto` on a free port of this machine.
    pub(crate) fn start(database_url: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = attesto(
            &["serve", "--port=0", "--bind-address=127.0.0.1"],
            variables,
        );
        Self::running(command.env("DATABASE_URL", database_url))
    }

    /// The same with a prepared command.
    pub(crate) fn running(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary runs");
        let output = child.stdout.take().expect("it is piped");
        let log = Arc::new(Mutex::new(Vec::new()));
        let kept = log.clone();
        let reader = std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                let line = line.expect("a log line is text");
                let line = serde_json::from_str(&line).expect("a log line is JSON");
                kept.lock().expect("not poisoned").push(line);
            }
        });
        Self { child, log, reader }
    }

    pub(crate) fn lines(&self) -> Vec<Value> {
        self.log.lock().expect("not poisoned").clone()
    }

    /// Waits for the first log line with this message.
    pub(crate) async fn line(&self, message: &str) -> Value {
        let what = format!("{message} is logged");
        wait_for(&what, async || {
            self.lines().into_iter().find(|line| line["msg"] == message)
        })
        .await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let port = self.line("listening").await["port"].clone();
        let client = attesto::outbound::build_http_client().expect("a client can be made");
        let answer = client
            .get(format!("http://127.0.0.1:{port}{path}"))
            .send()
            .await
            .expect("it answers");
        (
            answer.status().as_u16(),
            answer.json().await.expect("with JSON"),
        )
    }

    /// Sends a request with a key.
    pub(crate) async fn ask(&self, path: &str, key: &str, question: &Value) -> (u16, Value) {
        let port = self.line("listening").await["port"].clone();
        let client = attesto::outbound::build_http_client().expect("a client can be made");
        let answer = client
            .post(format!("http://127.0.0.1:{port}{path}"))
            .header("authorization", format!("Bearer {key}"))
            .header("content-type", "application/json")
            .body(question.to_string())
            .send()
            .await
            .expect("it answers");
        (
            answer.status().as_u16(),
            answer.json().await.expect("with JSON"),
        )
    }

    /// Polls `/ready` until it answers this status.
    pub(crate) async fn ready(&self, status: u16) -> Value {
        let what = format!("/ready answers {status}");
        wait_for(&what, async || {
            let (found, body) = self.get("/ready").await;
            (found == status).then_some(body)
        })
        .await
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("it is there");
    }

    /// Waits until the server has ended and all of its log is read.
    pub(crate) async fn end(&mut self) -> ExitStatus {
        let status = wait_for("the server ends", async || {
            self.child.try_wait().expect("a child of this process")
        })
        .await;
        wait_until("the log is read", async || self.reader.is_finished()).await;
        status
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn serve_migrates_an_empty_database_serves_and_stops() {
    let database = empty_database().await;
    let mut served = Served::start(&database.url, &[("ATTESTO_ENCRYPTION_KEY", &key(1))]);
    let line = served.line("listening").await;
    assert_eq!(line["env"], "development");
    assert_eq!(line["version"], attesto::VERSION);
    let body = served.ready(200).await;
    assert_eq!(
        body,
        json!({"status": "ok", "version": attesto::VERSION, "checks": {"db": "ok", "encryption": "ok"}})
    );
    served.signal(Signal::TERM);
    assert!(served.end().await.success());
    // The thread that reads the log may be a moment behind.
    served.line("stopped").await;
    let lines = served.lines();
    let last: Vec<_> = lines[lines.len() - 2..]
        .iter()
        .map(|line| line["msg"].as_str().expect("a message"))
        .collect();
    assert_eq!(last, ["shutdown", "stopped"]);
    assert_eq!(served.line("shutdown").await["signal"], "SIGTERM");
    assert_eq!(served.line("http_request").await["path"], "/ready");
}

#[tokio::test]
async fn serve_with_tls_is_healthy_and_reloads_on_sighup() {
    let (database, folder) = (fresh_database().await, Folder::new());
    let made = Made::today(10 * DAY);
    let files = made.write(&folder);
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", key(1)),
        ("TLS_CERT_PATH", files.certificate.display().to_string()),
        ("TLS_KEY_PATH", files.key.display().to_string()),
    ];
    let given: Vec<_> = variables
        .iter()
        .map(|(name, value)| (*name, &**value))
        .collect();
    let mut served = Served::start(&database.url, &given);
    let line = served.line("listening").await;
    let pair = TlsCertificate::from_files(&files, Clock::system().now()).expect("a good pair");
    assert_eq!(line["certificateNotAfter"], pair.not_after().to_string());
    // The job `expiry` and the doctor, in any process, get the expiry date.
    let told = "select coalesce(certificates -> 'listener' ->> 'notAfter', certificates ->> 'listener') from replicas";
    wait_until("the expiry date is stored", async || {
        sqlx::query_scalar::<_, String>(told)
            .fetch_optional(database.database.pool())
            .await
            .expect("an answer")
            .is_some_and(|end| end == pair.not_after().to_string())
    })
    .await;

    // As the image's health check does, with the new certificate and after the invalid one.
    let port = line["port"].to_string();
    let health = |port: &str| {
        let ran = attesto(&["health"], &given).env("PORT", port).output();
        let ran = ran.expect("the binary runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (ran.status.success(), text(&ran.stdout) + &text(&ran.stderr))
    };
    let (well, said) = health(&port);
    assert!(
        well && said.contains(&format!("https://127.0.0.1:{port}/health")),
        "{said}"
    );
    served.signal(Signal::HUP);
    served.line("tls_certificate_unchanged").await;
    Made::today(60 * DAY).write_key(&files.key);
    served.signal(Signal::HUP);
    let kept = served.line("tls_certificate_kept").await;
    let why = kept["error"].as_str().expect("a sentence");
    assert!(why.contains("does not belong"), "{why}");
    let (well, said) = health(&port);
    assert!(
        well && said.contains("warning: the key in TLS_KEY_PATH"),
        "{said}"
    );
    made.write(&folder);
    assert!(!health("1").0, "nobody is there");

    let next = Made::today(60 * DAY);
    next.write(&folder);
    served.signal(Signal::HUP);
    let pair = TlsCertificate::from_files(&files, Clock::system().now()).expect("a good pair");
    let changed = served.line("tls_certificate_changed").await;
    assert_eq!(changed["sha256"], pair.fingerprint());
    assert!(health(&port).0);
    served.signal(Signal::TERM);
    assert!(served.end().await.success());
}

/// The next message at a socket that is polled, because the runtime's datagrams do not take abstract addresses.
async fn notified(socket: &UnixDatagram) -> String {
    wait_for("the service manager is notified", async || {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
    .await
}

#[tokio::test]
async fn systemd_is_told_when_the_service_is_ready_and_when_it_stops() {
    let fresh = fresh_database().await;
    let folder = Folder::new();
    let path = folder.join("notify");
    let name = format!("attesto-notify-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    for (socket, address) in [
        (
            UnixDatagram::bind(&path).unwrap(),
            path.to_str().unwrap().to_owned(),
        ),
        (
            UnixDatagram::bind_addr(&address).unwrap(),
            format!("@{name}"),
        ),
    ] {
        socket.set_nonblocking(true).unwrap();
        let variables = [
            ("ATTESTO_ENCRYPTION_KEY", key(7)),
            ("NOTIFY_SOCKET", address),
        ];
        let variables = variables
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        let mut served = Served::start(&fresh.url, &variables);
        assert_eq!(notified(&socket).await, "READY=1");
        served.ready(200).await;
        served.signal(Signal::TERM);
        assert_eq!(notified(&socket).await, "STOPPING=1");
        assert!(served.end().await.success());
    }

    // A service that cannot use its key listens, and is not ready.
    let socket = UnixDatagram::bind(folder.join("another")).unwrap();
    socket.set_nonblocking(true).unwrap();
    let path = folder.join("another").to_str().unwrap().to_owned();
    let key = key(8);
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", key.as_str()),
        ("NOTIFY_SOCKET", &path),
    ];
    let mut served = Served::start(&fresh.url, &variables);
    served.line("listening").await;
    served.signal(Signal::TERM);
    assert_eq!(notified(&socket).await, "STOPPING=1");
    served.end().await;
}

#[tokio::test]
async fn serve_waits_for_an_unreachable_database() {
    let database = fresh_database().await;
    let socket = socket_of(&database.url);
    // A port without a listener yet.
    let reserved = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = reserved.local_addr().expect("it has an address");
    drop(reserved);
    let mut url = Url::parse(&database.url).expect("a URL");
    let name = url.path().to_owned();
    url = Url::parse(&format!(
        "postgres://attesto:hunter2@{address}{name}?sslmode=disable&max=5&connect_timeout=1"
    ))
    .expect("a URL");

    let mut served = Served::start(url.as_str(), &[("ATTESTO_ENCRYPTION_KEY", &key(1))]);
    assert_eq!(served.get("/health").await.0, 200);
    let body = served.ready(503).await;
    assert_eq!(body["status"], "degraded");
    assert_eq!(body["checks"]["db"], "fail: connection refused");
    let (status, body) = served.get("/v1/google/verify").await;
    assert_eq!(
        (status, &body["error"]),
        (405, &json!("METHOD_NOT_ALLOWED"))
    );

    // Now the database becomes available: the port is forwarded to the socket.
    let listener = TcpListener::bind(address).await.expect("the port is free");
    tokio::spawn(async move {
        loop {
            let (mut outside, _) = listener.accept().await.expect("it takes connections");
            let mut inside = UnixStream::connect(&socket)
                .await
                .expect("Postgres is there");
            tokio::spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut outside, &mut inside).await;
            });
        }
    });
    served.ready(200).await;
    served.signal(Signal::INT);
    assert!(served.end().await.success());
    let log = format!("{:?}", served.lines());
    assert!(!log.contains("hunter2"), "{log}");
}

/// The socket that a test database's URL names.
fn socket_of(url: &str) -> String {
    let url = Url::parse(url).expect("a URL");
    let folder = url
        .query_pairs()
        .find(|(name, _)| name == "host")
        .expect("it names the socket's folder");
    format!("{}/.s.PGSQL.5432", folder.1)
}

#[tokio::test]
async fn a_wrong_encryption_key_is_detected() {
    let database = fresh_database().await;
    {
        let served = Served::start(&database.url, &[("ATTESTO_ENCRYPTION_KEY", &key(1))]);
        served.ready(200).await;
    }
    // A due delivery, which this process must not even claim.
    for statement in [
        "insert into tenants (id, name) values ('tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', 'Acme')",
        "insert into webhook_configs (tenant_id, callback_url, secret_enc)
            values ('tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', 'https://receiver.example/', '')",
        "insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event,
                decoded_payload, stored_body, received_at)
            values (tenant_lane('tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E'), 'evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', 'tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', 'apple', '1', 'test',
                'apple.test', '{}', '\\x007b7d', now())",
        "insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url)
            values (tenant_lane('tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E'), 'del_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', 'evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E',
                'tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E', 'https://receiver.example/')",
    ] {
        sqlx::query(statement)
            .execute(database.database.pool())
            .await
            .expect("our own statement");
    }
    let served = Served::start(&database.url, &[("ATTESTO_ENCRYPTION_KEY", &key(2))]);
    let body = served.ready(503).await;
    assert_eq!(body["checks"]["db"], "ok");
    assert_eq!(body["checks"]["encryption"], "fail: wrong encryption key");
    let claims: i32 = sqlx::query_scalar("select lease_no from webhook_deliveries")
        .fetch_one(database.database.pool())
        .await
        .expect("it answers");
    assert_eq!(claims, 0);
}

#[tokio::test]
async fn serve_warns_when_the_validation_log_is_kept_forever() {
    const WARNING: &str = "validation_audit_enabled_no_retention";
    let database = fresh_database().await;
    for (log, days, expected) in [
        ("1", "0", true),
        ("1", "30", false),
        ("1", "", false),
        ("0", "0", false),
    ] {
        let served = Served::start(
            &database.url,
            &[
                ("ATTESTO_ENCRYPTION_KEY", &key(1)),
                ("ENABLE_VALIDATION_AUDIT_LOG", log),
                ("RETENTION_VALIDATION_AUDIT_DAYS", days),
            ],
        );
        served.ready(200).await;
        if expected {
            assert_eq!(served.line(WARNING).await["level"], "warn");
        }
        let found = served.lines().iter().any(|line| line["msg"] == WARNING);
        assert_eq!(found, expected, "{log} {days}");
    }
}

const JOBS: [&str; 7] = [
    "backfill",
    "drift",
    "expiry",
    "probe",
    "reseal",
    "retention",
    "statistics",
];

#[tokio::test]
async fn serve_runs_jobs_unless_disabled() {
    let database = fresh_database().await;
    let mut variables = vec![("JOBS_DISABLED", "1"), ("ATTESTO_ENCRYPTION_KEY", "")];
    let key = key(1);
    variables[1].1 = &key;
    let mut idle = Served::start(&database.url, &variables);
    idle.ready(200).await;
    let mut served = Served::start(&database.url, &variables[1..]);
    let ran = wait_for("every job has run", async || {
        let lines = served.lines();
        let ran: Vec<_> = lines
            .into_iter()
            .filter(|line| line["msg"] == "job_run")
            .collect();
        let mut names: Vec<_> = ran.iter().filter_map(|line| line["job"].as_str()).collect();
        names.sort_unstable();
        names.dedup();
        (names == JOBS).then_some(ran)
    })
    .await;
    for line in ran {
        assert_eq!(line["outcome"], "done", "{line}");
        assert!(line["latencyMs"].is_u64());
    }
    for served in [&mut idle, &mut served] {
        served.signal(Signal::TERM);
        assert!(served.end().await.success());
    }
    let idle = idle.lines();
    assert!(!idle.iter().any(|line| line["msg"] == "job_run"));
}

#[tokio::test]
async fn dangerous_settings_are_warned_about_at_the_start() {
    let zero = key(0);
    let folder = Folder::new();
    let file = folder.join("key");
    std::fs::write(&file, key(1)).expect("a file");
    std::fs::set_permissions(&file, Permissions::from_mode(0o620)).expect("its mode");
    let file = file.to_str().expect("a path");
    let variables = [
        ("DATABASE_URL", "postgres://a@db.invalid/b"),
        ("ATTESTO_ENCRYPTION_KEY", zero.as_str()),
    ];
    let served = Served::running(&mut attesto(&["serve", "--port=0"], &variables));
    served.line("listening").await;
    let lines = served.lines();
    let unsafe_settings = lines.iter().filter(|line| line["msg"] == "unsafe_setting");
    let found: Vec<_> = unsafe_settings
        .map(|line| (line["level"].as_str(), line["check"].as_str()))
        .collect();
    let warned = [
        "settings.environment",
        "settings.encryption_key",
        "settings.database_tls",
    ];
    assert_eq!(found, warned.map(|check| (Some("warn"), Some(check))));

    let variables = [
        ("DATABASE_URL", "postgres://a@127.0.0.1:1/b"),
        ("ATTESTO_ENV", "production"),
        ("ATTESTO_ENCRYPTION_KEY_FILE", file),
    ];
    let served = Served::running(&mut attesto(&["serve", "--port=0"], &variables));
    served.line("listening").await;
    let lines = served.lines();
    let warned = |message: &str| lines.iter().filter(|line| line["msg"] == message).count();
    assert_eq!(warned("secret_file_writable_by_others"), 1);
    assert_eq!(warned("unsafe_setting"), 0);
}

#[tokio::test]
async fn production_refuses_a_key_of_zeros_and_a_file_that_every_user_can_change() {
    let folder = Folder::new();
    let file = folder.join("key");
    std::fs::write(&file, key(1)).expect("a file");
    let zero = key(0);
    for (mode, name, value, refusal) in [
        (
            0o600,
            "ATTESTO_ENCRYPTION_KEY",
            zero.as_str(),
            "is all zeros",
        ),
        (
            0o602,
            "ATTESTO_ENCRYPTION_KEY_FILE",
            file.to_str().expect("a path"),
            "run chmod o-w on it",
        ),
    ] {
        std::fs::set_permissions(&file, Permissions::from_mode(mode)).expect("its mode");
        for words in [&["serve", "--port=0"] as &[_], &["config", "check"]] {
            let variables = [
                ("DATABASE_URL", "postgres://a@127.0.0.1:1/b"),
                ("ATTESTO_ENV", "production"),
                (name, value),
            ];
            let ran = attesto(words, &variables)
                .output()
                .expect("the binary runs");
            let errors = String::from_utf8(ran.stderr).expect("text");
            assert_eq!(ran.status.code(), Some(2), "{words:?}: {errors}");
            assert!(
                errors.contains(&format!("{name}: ")) && errors.contains(refusal),
                "{errors}"
            );
        }
    }
}

/// `docker --env-file` keeps quotes.
#[test]
fn every_value_in_quotes_is_named_at_once_and_shown_by_none() {
    let key = key(7);
    let variables = [
        ("ATTESTO_ENCRYPTION_KEY", format!("\"{key}\"")),
        (
            "ATTESTO_ENCRYPTION_KEYS_RETIRED_FILE",
            "'/run/hunter2'".to_owned(),
        ),
        ("ATTESTO_ENV", "\"production\"".to_owned()),
        ("PORT", "'8080'".to_owned()),
        (
            "DATABASE_URL",
            "\"postgres://a:hunter2@127.0.0.1:1/b\"".to_owned(),
        ),
        (
            "DATABASE_DIRECT_URL",
            "'postgres://a:hunter2@127.0.0.1:1/b'".to_owned(),
        ),
        ("ATTESTO_PG_USER", "\"hunter2\"".to_owned()),
        (
            "ATTESTO_EGRESS_PROXY",
            "\"http://a:hunter2@proxy\"".to_owned(),
        ),
        ("LOG_LEVEL", " \"info\" ".to_owned()),
        ("METRICS_ADDRESS", "\"\"".to_owned()),
    ];
    let given = variables
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    for words in [&["serve"] as &[_], &["config", "check"]] {
        let ran = Shell::default().set_all(given).run(words);
        assert_eq!(ran.exit, 2, "{ran:?}");
        for (name, _) in given {
            let problem = format!("{name}: its value is in quotes");
            assert_eq!(
                ran.complained.matches(&problem).count(),
                1,
                "{problem}: {ran:?}"
            );
        }
        let problems = ran.complained.matches("docker --env-file").count();
        assert_eq!(problems, given.len(), "{ran:?}");
        ran.assert_hides("hunter2");
        ran.assert_hides(&key);
    }
    // What is wrong inside of the quotes is found too, and what only production refuses.
    let wrong = [
        ("ATTESTO_ENV", "\"production\""),
        ("PORT", "\"hunter2\""),
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
    ];
    let ran = Shell::default().set_all(wrong).run(&["config", "check"]);
    for problem in [
        "PORT: its value is in quotes",
        "PORT: must be a whole number",
        "WEBHOOK_ALLOW_PRIVATE_CALLBACKS: is for development only",
    ] {
        assert!(ran.complained.contains(problem), "{ran:?}");
    }
    // A shell removes quotes, so those in a flag are meant.
    let ran = Shell::default().run(&["config", "check", "--log-level='info'"]);
    assert!(ran.complained.contains("--log-level: must be"), "{ran:?}");
    assert!(!ran.complained.contains("in quotes"), "{ran:?}");
    // A command that needs one of them.
    let ran = Shell::default()
        .set("ATTESTO_EMBEDDED_POSTGRES", "\"true\"")
        .run(&["tenant", "list"]);
    assert_eq!(ran.exit, 2, "{ran:?}");
    assert!(
        ran.complained
            .contains("ATTESTO_EMBEDDED_POSTGRES: its value is in quotes"),
        "{ran:?}"
    );
}

#[tokio::test]
async fn all_start_errors_are_reported_at_once() {
    let ran = attesto(
        &["--port=99999"],
        &[
            ("ATTESTO_ENCRYPTION_KEY", "hunter2"),
            ("DATABASE_URL", "mysql://hunter2"),
            ("ATTESTO_ENV", "production"),
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "1"),
            ("APPLE_ROOT_CERTIFICATES", "/dev/null"),
        ],
    )
    .output()
    .expect("the binary runs");
    assert_eq!(ran.status.code(), Some(2));
    let errors = String::from_utf8(ran.stderr).expect("text");
    assert_eq!(errors.lines().count(), 6, "{errors}");
    let log = String::from_utf8(ran.stdout).expect("text");
    assert_eq!(log.lines().count(), 1, "{log}");
    let line: Value = serde_json::from_str(&log).expect("JSON");
    assert_eq!(line["level"], "fatal");
    assert_eq!(line["msg"], "startup_failed");
    assert!(!(errors + &log).contains("hunter2"));
}

/// With the advice to make a key, an operator who lost the key would add a second loss to the first.
#[tokio::test]
async fn a_lost_key_is_not_taken_for_one_that_was_never_made() {
    let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "true")]).await;
    world.tenant().await;
    let empty = empty_database().await;
    for (url, expected, unexpected) in [
        (
            &world.fresh.url,
            "holds values sealed with encryption key 1: set it to that key",
            "make one",
        ),
        (&empty.url, "only for a new database, make one", "sealed"),
    ] {
        let ran = attesto(&["serve"], &[("DATABASE_URL", url)])
            .output()
            .expect("the binary runs");
        assert_eq!(ran.status.code(), Some(2));
        let errors = String::from_utf8(ran.stderr).expect("text");
        assert_eq!(errors.lines().count(), 1, "{errors}");
        assert!(errors.contains(expected), "{errors}");
        assert!(!errors.contains(unexpected), "{errors}");
    }
}

#[tokio::test]
async fn unusable_roots_are_a_configuration_error() {
    let key = key(1);
    for words in [
        &["serve", "--port=0", "--bind-address=127.0.0.1"][..],
        &["config", "check"],
    ] {
        let ran = attesto(
            words,
            &[
                ("ATTESTO_ENCRYPTION_KEY", &key),
                ("DATABASE_URL", "postgres://nowhere.invalid/x"),
                ("APPLE_ROOT_CERTIFICATES", "/nowhere/roots"),
            ],
        )
        .output()
        .expect("the binary runs");
        assert_eq!(ran.status.code(), Some(2), "{words:?}");
        let errors = String::from_utf8(ran.stderr).expect("text");
        assert_eq!(
            errors,
            "attesto: APPLE_ROOT_CERTIFICATES: /nowhere/roots cannot be read: No such file or directory (os error 2).\n",
            "{words:?}"
        );
    }
}

#[tokio::test]
async fn a_machine_without_ca_certificates_gets_an_explanation() {
    let key = key(1);
    let ran = attesto(
        &["serve", "--port=0", "--bind-address=127.0.0.1"],
        &[
            ("ATTESTO_ENCRYPTION_KEY", &key),
            ("DATABASE_URL", "postgres://nowhere.invalid/x"),
            ("SSL_CERT_FILE", "/nowhere/certificates.pem"),
        ],
    )
    .output()
    .expect("the binary runs");
    assert_eq!(ran.status.code(), Some(1));
    let errors = String::from_utf8(ran.stderr).expect("text");
    assert!(
        errors.starts_with("attesto: no server can be called over TLS (")
            && errors.contains("ca-certificates")
            && errors.contains("SSL_CERT_FILE")
            && errors.ends_with(" are set.\n"),
        "{errors}"
    );
}

#[tokio::test]
async fn a_port_in_use_ends_with_a_clear_message() {
    let database = empty_database().await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("it has an address").port();
    let ran = attesto(
        &["--bind-address=127.0.0.1", &format!("--port={port}")],
        &[
            ("ATTESTO_ENCRYPTION_KEY", &key(1)),
            ("DATABASE_URL", &database.url),
        ],
    )
    .output()
    .expect("the binary runs");
    assert_eq!(ran.status.code(), Some(1));
    let errors = String::from_utf8(ran.stderr).expect("text");
    assert!(
        errors.contains(&format!("port {port} is already in use")),
        "{errors}"
    );
}

#[tokio::test]
async fn metrics_are_served_at_the_logged_address_or_not_at_all() {
    let database = fresh_database().await;
    let settings = [
        ("ATTESTO_ENCRYPTION_KEY", key(1)),
        ("METRICS_ADDRESS", "127.0.0.1:0".to_owned()),
    ];
    let settings = settings
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()));
    let served = Served::start(&database.url, &settings);
    let first = served.line("listening").await;
    let address = first["metrics"].as_str().expect("an address").to_owned();
    served.ready(200).await;
    let client = attesto::outbound::build_http_client().expect("a client can be made");
    let page = client.get(format!("http://{address}/metrics")).send().await;
    let page = page.expect("an answer").text().await.expect("text");
    assert!(
        page.contains("attesto_http_requests_total{route=\"/ready\""),
        "{page}"
    );

    // Another program's.
    let ran = attesto(
        &["serve", "--port=0", "--metrics-address", &address],
        &[settings[0], ("DATABASE_URL", &database.url)],
    )
    .output()
    .expect("the binary runs");
    assert_eq!(ran.status.code(), Some(1));
    let errors = String::from_utf8(ran.stderr).expect("text");
    assert!(
        errors.contains("cannot serve metrics at") && errors.contains("METRICS_ADDRESS"),
        "{errors}"
    );
}

#[tokio::test]
async fn a_second_signal_stops_immediately() {
    let database = fresh_database().await;
    let mut served = Served::start(
        &database.url,
        &[
            ("ATTESTO_ENCRYPTION_KEY", &key(1)),
            ("SHUTDOWN_GRACE_SECONDS", "600"),
            // Allows time to detect the stop: a fifth of the above, at most five seconds.
            ("ATTESTO_ENV", "production"),
        ],
    );
    served.ready(200).await;
    served.signal(Signal::TERM);
    served.line("shutdown").await;
    let body = served.ready(503).await;
    assert_eq!(body["checks"]["server"], "fail: shutting down");
    served.signal(Signal::TERM);
    assert_eq!(served.end().await.code(), Some(130));
}

#[tokio::test]
async fn help_shows_no_value_of_the_environment() {
    for words in [&["--help"] as &[_], &["serve", "--help"]] {
        let ran = attesto(
            words,
            &[
                ("DATABASE_URL", "postgres://a:hunter2@b/c"),
                ("ATTESTO_ENCRYPTION_KEY", "hunter2"),
                ("PORT", "31337"),
            ],
        )
        .output()
        .expect("the binary runs");
        let help = String::from_utf8(ran.stdout).expect("text");
        assert!(help.contains("DATABASE_URL"), "{help}");
        assert!(
            !help.contains("hunter2") && !help.contains("31337"),
            "{help}"
        );
    }
}
