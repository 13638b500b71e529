//! Measures what it costs to accept and deliver a notification, next to the minimum possible cost.
//!
//! `cargo bench --bench deliveries`
//!
//! The server is the real binary on a private, durable Postgres; the receiver is in this program.
//! CPU time is read from the system for each process, including Postgres. The baselines are
//! measured in the same run: a bare HTTP POST of the same bytes, the dispatcher's own SQL without
//! sending, and the inserts of an event without verification.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates and shares of small counts"
)]

mod support;

use std::collections::HashMap;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::config;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::Database;
use attesto::deliveries::endpoint::SigningSecret;
use attesto::deliveries::endpoint::store::{self, EndpointChange};
use attesto::deliveries::{
    AttemptOutcome, DeliveryJob, Dispatcher, DispatcherSettings, WorkNotifier,
};
use attesto::embedded_postgres::{EmbeddedOptions, EmbeddedPostgres};
use attesto::events::{EventRecorder, EventSource, EventType, NewEvent};
use attesto::simulator::{Simulator, SimulatorOptions};
use attesto::stores::google;
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::tenants;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde_json::json;
use serde_json::value::RawValue;
use support::{Server, cpu_of, median, micros};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Tenants that share the load.
const TENANTS: usize = 10;
/// Deliveries in the throughput measurement.
const BACKLOG: usize = 20_000;
/// Concurrent requests, here and in the baselines.
const CONCURRENCY: usize = 64;
/// The rate and the length of the latency measurement.
const PER_SECOND: u32 = 100;
const PUSHED: usize = 2_000;
/// Notifications in the measurement of the inbound rate.
const INBOUND: usize = 5_000;
/// Callbacks that never answer.
const HANGING: usize = 250;

fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    // `cargo test --all-targets` passes no `--bench`: a small share is enough to see that it still runs.
    let scale = if std::env::args().any(|argument| argument == "--bench") {
        1
    } else {
        50
    };
    runtime.block_on(measure(scale));
}

/// What the receiver got.
#[derive(Clone, Default)]
struct Arrivals(Arc<Arrived>);

#[derive(Default)]
struct Arrived {
    count: AtomicUsize,
    any: Notify,
    /// When each event first arrived, by the id of the store's message.
    moments: Mutex<HashMap<String, Instant>>,
}

impl Arrivals {
    async fn start() -> (Self, SocketAddr) {
        let arrivals = Self::default();
        let routes = Router::new()
            .route("/hook/{tenant}", post(take))
            .route(
                "/hang/{tenant}",
                post(async || std::future::pending::<()>().await),
            )
            .route("/bare", post(async |_: Bytes| "ok"))
            .with_state(arrivals.clone());
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        tokio::spawn(async move { axum::serve(listener, routes).await.expect("it serves") });
        (arrivals, address)
    }

    async fn until(&self, count: usize) {
        while self.0.count.load(Ordering::Acquire) < count {
            self.0.any.notified().await;
        }
    }

    fn reset(&self) {
        self.0.count.store(0, Ordering::Release);
        self.0.moments.lock().expect("not poisoned").clear();
    }
}

async fn take(
    State(arrivals): State<Arrivals>,
    _: Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> &'static str {
    let now = Instant::now();
    if headers
        .get("x-attesto-event")
        .is_some_and(|word| word == "test")
    {
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        let id = body["externalId"].as_str().expect("text").to_owned();
        arrivals
            .0
            .moments
            .lock()
            .expect("not poisoned")
            .entry(id)
            .or_insert(now);
    }
    arrivals.0.count.fetch_add(1, Ordering::AcqRel);
    arrivals.0.any.notify_one();
    "ok"
}

/// Everything that the measurements share.
struct Bench {
    postgres: EmbeddedPostgres,
    database: Database,
    simulator: Simulator,
    keyring: Keyring,
    key: String,
    clock: Clock,
    arrivals: Arrivals,
    receiver: SocketAddr,
    tenants: Vec<TenantId>,
}

impl Bench {
    async fn new() -> Self {
        let clock = Clock::system();
        let folder = std::env::temp_dir().join(format!("attesto-bench-{}", std::process::id()));
        let options = EmbeddedOptions {
            data_dir: Some(folder),
            ..EmbeddedOptions::from_env(config::read_env_var)
        };
        let postgres = EmbeddedPostgres::start(options)
            .await
            .expect("Postgres starts");
        let database = Database::open(&postgres.connect_settings());
        database.migrate(false).await.expect("the tables are made");
        let simulator = Simulator::start(SimulatorOptions::new(clock.clone()))
            .await
            .expect("the stores start");
        let key = STANDARD.encode([7; 32]);
        let master = MasterKey::parse(&key, Some(1)).expect("a key");
        let keyring = Keyring::new(master, vec![]).expect("a ring");
        let (arrivals, receiver) = Arrivals::start().await;
        let mut bench = Self {
            postgres,
            database,
            simulator,
            keyring,
            key,
            clock,
            arrivals,
            receiver,
            tenants: Vec::new(),
        };
        for number in 0..TENANTS {
            let tenant = bench.tenant(&format!("hook/{number}")).await;
            bench.credentials(&tenant, &package(number)).await;
            bench.tenants.push(tenant);
        }
        bench
    }

    async fn tenant(&self, path: &str) -> TenantId {
        let tenant = tenants::store::create_tenant(
            &self.database,
            &"Bench".parse().expect("a name"),
            self.clock.now(),
        )
        .await
        .expect("a tenant")
        .id;
        let secret = SigningSecret::parse(&"s".repeat(40)).expect("a secret");
        let url = format!("http://{}/{path}", self.receiver);
        let change = EndpointChange {
            callback_url: Some(&url),
            secret: Some(&secret),
            is_active: None,
            overlap: Duration::ZERO,
        };
        store::change_endpoint(&self.database, &self.keyring, &tenant, &change)
            .await
            .expect("a callback");
        // The callback answered successfully before, so it gets its full concurrency.
        self.execute(
            "insert into webhook_health (tenant_id, callback_url, allowed, last_success_at)
            select tenant_id, callback_url, 8, now() from webhook_configs on conflict do nothing",
        )
        .await;
        tenant
    }

    async fn credentials(&self, tenant: &TenantId, package: &str) {
        let file = self.simulator.google_service_account().to_string();
        let new = google::store::NewGoogleCredentials {
            package_name: package,
            key_file: file.as_bytes(),
            account: &GoogleServiceAccount::parse(file.as_bytes()).expect("the simulator's own"),
            pubsub_audience: Some("https://bench.example"),
            pubsub_service_account: Some(self.simulator.google().push_account()),
            pubsub_topic: None,
        };
        google::store::set_credentials(&self.database, &self.keyring, tenant, &new)
            .await
            .expect("credentials");
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::query(statement)
            .execute(self.database.pool())
            .await
            .expect("our own statement");
    }

    /// Events with a delivery each, spread over the tenants.
    async fn backlog(&self, count: usize) {
        let record = EventRecorder::new(&self.database, &self.clock, |_| {});
        let mut writing = JoinSet::new();
        for number in 0..count {
            let event = event(
                &self.tenants[number % TENANTS],
                format!("backlog-{}-{number}", fastrand::u64(..)),
            );
            let record = record.clone();
            if writing.len() >= 16 {
                writing.join_next().await;
            }
            writing
                .spawn(async move { record.record_event(&event).await.map(drop).expect("stored") });
        }
        while writing.join_next().await.is_some() {}
        self.execute("vacuum analyze webhook_deliveries").await;
    }

    fn serve(&self) -> Server {
        let mut command = Command::new(env!("CARGO_BIN_EXE_attesto"));
        command
            .args([
                "serve",
                "--port=0",
                "--bind-address=127.0.0.1",
                "--log-format=json",
            ])
            .env("DATABASE_URL", self.postgres.connection_url())
            .env("ATTESTO_ENCRYPTION_KEY", &self.key)
            .env("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")
            .envs(
                self.simulator
                    .environment_variables()
                    .into_iter()
                    .filter(|(name, _)| name.starts_with("GOOGLE_")),
            );
        Server::start(&mut command)
    }

    /// CPU time of all Postgres processes.
    async fn database_cpu(&self) -> Duration {
        let pids: Vec<i32> =
            sqlx::query_scalar("select pid from pg_stat_activity where pid is not null")
                .fetch_all(self.database.pool())
                .await
                .expect("it answers");
        pids.into_iter()
            .filter_map(|pid| u32::try_from(pid).ok())
            .map(cpu_of)
            .sum()
    }

    /// Notifications as Pub/Sub pushes them: path, token and body.
    fn notifications(&self, count: usize) -> Vec<(String, String, String)> {
        let signer = self.simulator.identity().google_signing_key();
        let now = self.clock.now();
        let token = signer.sign_jwt(&json!({
            "iss": "https://accounts.google.com",
            "aud": "https://bench.example",
            "email": self.simulator.google().push_account(),
            "email_verified": true,
            "iat": now.as_secs(),
            "exp": now.as_secs() + 3600,
        }));
        (0..count)
            .map(|number| {
                let tenant = number % TENANTS;
                let data = json!({
                    "version": "1.0",
                    "packageName": package(tenant),
                    "eventTimeMillis": now.as_millis().to_string(),
                    "testNotification": { "version": "1.0" },
                });
                let id = format!("{}{number:06}", fastrand::u64(1_000_000_000..));
                let body = json!({
                    "message": { "data": STANDARD.encode(data.to_string()), "messageId": id },
                    "subscription": "projects/bench/subscriptions/attesto",
                });
                (
                    format!("/v1/webhooks/google/{}", self.tenants[tenant]),
                    token.clone(),
                    body.to_string(),
                )
            })
            .collect()
    }
}

fn package(number: usize) -> String {
    format!("com.example.bench{number}")
}

/// An event about the size of a renewal.
fn event(tenant: &TenantId, external_id: String) -> NewEvent {
    let raw = |length: usize| {
        RawValue::from_string(format!("{{\"signedPayload\":\"{}\"}}", "x".repeat(length)))
    };
    NewEvent {
        tenant: tenant.clone(),
        source: EventSource::Google,
        external_id,
        event_type: EventType::SubscriptionRenewed,
        reason: None,
        platform_event: "google.subscription.2".into(),
        occurred_at: None,
        environment: None,
        subject: None,
        app_user_id: None,
        app_user_id_source: None,
        state: None,
        state_error: None,
        data: raw(800).expect("JSON"),
        facts: None,
        raw: raw(400).expect("JSON"),
        shared_content: None,
    }
}

/// The quantile `share` of sorted times, in milliseconds.
fn share(times: &[f64], share: f64) -> f64 {
    let place = (times.len() as f64 * share) as usize;
    times[place.min(times.len() - 1)]
}

/// From the first byte of a pushed notification to its event at the callback, in milliseconds,
/// sorted.
async fn latency(bench: &Bench, server: &Server, count: usize) -> Vec<f64> {
    let client = attesto::outbound::build_http_client().expect("a client");
    bench.arrivals.reset();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let mut pushes = JoinSet::new();
    for (path, token, body) in bench.notifications(count) {
        ticks.tick().await;
        let (client, url) = (client.clone(), format!("http://{}{path}", server.address));
        pushes.spawn(async move {
            let begun = Instant::now();
            let answer = client
                .post(url)
                .bearer_auth(token)
                .body(body)
                .header("content-type", "application/json");
            let answer: serde_json::Value = answer
                .send()
                .await
                .expect("an answer")
                .json()
                .await
                .expect("JSON");
            (
                answer["externalId"]
                    .as_str()
                    .expect("it was taken")
                    .to_owned(),
                begun,
            )
        });
    }
    let begun = pushes.join_all().await;
    bench.arrivals.until(count).await;
    let moments = bench
        .arrivals
        .0
        .moments
        .lock()
        .expect("not poisoned")
        .clone();
    let mut times: Vec<f64> = begun
        .iter()
        .map(|(id, begun)| micros(moments[id].saturating_duration_since(*begun)) / 1000.0)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Requests per second of a closed loop, `CONCURRENCY` at a time.
async fn rate<F: Future<Output = ()> + Send + 'static>(
    count: usize,
    work: impl Fn(usize) -> F,
) -> f64 {
    let begun = Instant::now();
    let mut under_way = JoinSet::new();
    for number in 0..count {
        if under_way.len() >= CONCURRENCY {
            under_way.join_next().await;
        }
        under_way.spawn(work(number));
    }
    while under_way.join_next().await.is_some() {}
    count as f64 / begun.elapsed().as_secs_f64()
}

/// Bare POSTs of the same bytes over keep-alive connections; CPU time of both ends per request, in
/// µs.
async fn bare_posts(bench: &Bench, count: usize) -> f64 {
    let this = std::process::id();
    let body = Bytes::from(vec![b'x'; 1700]);
    let left = Arc::new(AtomicUsize::new(count));
    let before = cpu_of(this);
    let mut workers = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (left, body, address) = (left.clone(), body.clone(), bench.receiver);
        workers.spawn(async move {
            let stream = TcpStream::connect(address).await.expect("it listens");
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream))
                    .await
                    .expect("HTTP");
            tokio::spawn(connection);
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
            {
                sender.ready().await.expect("it is open");
                let request = hyper::Request::post("/bare")
                    .header("host", "receiver")
                    .body(Full::new(body.clone()))
                    .expect("a request");
                let answer = sender.send_request(request).await.expect("an answer");
                answer.into_body().collect().await.expect("a body");
            }
        });
    }
    workers.join_all().await;
    micros(cpu_of(this).saturating_sub(before)) / count as f64
}

#[expect(clippy::too_many_lines, reason = "one measurement after the other")]
async fn measure(scale: usize) {
    let bench = Bench::new().await;
    let mut out = std::io::stdout().lock();

    // Latency of an otherwise idle server.
    let server = bench.serve();
    tokio::time::sleep(Duration::from_secs(1)).await;
    latency(&bench, &server, 50).await;
    let times = latency(&bench, &server, PUSHED / scale).await;
    let _ = writeln!(
        out,
        "\nFrom a notification's push to its event at the callback, at {PER_SECOND}/s, {} of them\n\
         \x20 median                 {:8.1} ms  (goal: under 15)\n\
         \x20 99th percentile        {:8.1} ms  (goal: under 100)\n\
         \x20 longest                {:8.1} ms",
        times.len(),
        share(&times, 0.5),
        share(&times, 0.99),
        share(&times, 1.0)
    );

    // Accepting notifications only, next to the same inserts alone.
    let inbound = INBOUND / scale;
    let client = attesto::outbound::build_http_client().expect("a client");
    let notifications = Arc::new(bench.notifications(inbound));
    let address = server.address;
    let (mut taken, mut bare_inserts) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let record = EventRecorder::new(&bench.database, &bench.clock, |_| {});
        let tenants = bench.tenants.clone();
        bare_inserts.push(
            rate(inbound, move |number| {
                let (record, event) = (
                    record.clone(),
                    event(&tenants[number % TENANTS], format!("bare-{round}-{number}")),
                );
                async move { record.record_event(&event).await.map(drop).expect("stored") }
            })
            .await,
        );
        let (client, notifications) = (client.clone(), notifications.clone());
        taken.push(
            rate(inbound, move |number| {
                let (path, bearer, body) = notifications[number].clone();
                // Each round has messages of its own.
                let body =
                    body.replacen("\"messageId\":\"", &format!("\"messageId\":\"{round}"), 1);
                let request = client
                    .post(format!("http://{address}{path}"))
                    .bearer_auth(bearer)
                    .body(body);
                async move {
                    let answer = request
                        .header("content-type", "application/json")
                        .send()
                        .await
                        .expect("an answer");
                    assert_eq!(answer.status(), 200);
                    let _ = answer.bytes().await;
                }
            })
            .await,
        );
    }
    let (taken, bare_inserts) = (median(&mut taken), median(&mut bare_inserts));
    let _ = writeln!(
        out,
        "\nNotifications taken in: verified and committed, while delivering them\n\
         \x20 taken in               {taken:8.0} /s\n\
         \x20 bare inserts           {bare_inserts:8.0} /s\n\
         \x20 of those               {:8.0} %",
        100.0 * taken / bare_inserts
    );
    // All these are delivered before anything else is measured.
    loop {
        let open: i64 =
            sqlx::query_scalar("select count(*) from webhook_deliveries where status = 'pending'")
                .fetch_one(bench.database.pool())
                .await
                .expect("it answers");
        if open == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    // Idle.
    let commits = || async {
        let count = "select xact_commit + xact_rollback from pg_stat_database where datname = current_database()";
        sqlx::query_scalar::<_, i64>(count)
            .fetch_one(bench.database.pool())
            .await
            .expect("it answers")
    };
    // Postgres processes report their statistics up to ten seconds late.
    tokio::time::sleep(Duration::from_secs(12)).await;
    let (so_far, begun) = (commits().await, Instant::now());
    tokio::time::sleep(Duration::from_secs(30) / u32::try_from(scale).expect("small")).await;
    // The query itself is counted too.
    let queries = (commits().await - so_far - 1) as f64 / begun.elapsed().as_secs_f64();
    let (idle, ready) = (server.resident(), server.ready);
    drop(server);
    let _ = writeln!(
        out,
        "\nWith nothing to do (ready after {:.0} ms)\n\
         \x20 transactions           {queries:8.2} /s  (goal: at most 2)\n\
         \x20 resident               {idle:8.1} MB",
        micros(ready) / 1000.0
    );

    // Throughput, and the cost of one delivery.
    let backlog = BACKLOG / scale;
    bench.backlog(backlog).await;
    bench.arrivals.reset();
    let this = std::process::id();
    let before = (bench.database_cpu().await, cpu_of(this));
    let server = bench.serve();
    bench.arrivals.until(1).await;
    let begun = Instant::now();
    bench.arrivals.until(backlog).await;
    let per_second = backlog as f64 / begun.elapsed().as_secs_f64();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let each = |time: Duration| micros(time) / backlog as f64;
    let receiving = each(cpu_of(this).saturating_sub(before.1));
    let database = each(bench.database_cpu().await.saturating_sub(before.0));
    let serving = each(server.cpu());
    drop(server);

    bench.backlog(backlog).await;
    let before = bench.database_cpu().await;
    let sender = |_: Arc<DeliveryJob>| async {
        AttemptOutcome::Delivered {
            code: 200,
            excerpt: None,
        }
    };
    let settings = DispatcherSettings {
        concurrency: CONCURRENCY,
        poll_interval: Duration::from_secs(10),
        max_retries: 5,
        shutdown_timeout: Duration::ZERO,
    };
    let mut dispatcher = Dispatcher::new(
        &bench.database,
        &bench.clock,
        sender,
        WorkNotifier::default(),
        settings,
    );
    let begun = Instant::now();
    assert_eq!(
        dispatcher.run_until_idle().await.expect("it answers"),
        backlog
    );
    let sql_rate = backlog as f64 / begun.elapsed().as_secs_f64();
    let sql = each(bench.database_cpu().await.saturating_sub(before));
    let bare = bare_posts(&bench, backlog).await;
    let (whole, limit) = (serving + database + receiving, sql + bare);
    let _ = writeln!(
        out,
        "\nDeliveries of a backlog of {backlog}, {TENANTS} callbacks\n\
         \x20 delivered              {per_second:8.0} /s  (goal: 2000)\n\
         \x20 its SQL alone          {sql_rate:8.0} /s\n\n\
         Processor time a delivery\n\
         \x20 attesto                {serving:8.1} µs\n\
         \x20 Postgres               {database:8.1} µs\n\
         \x20 the receiver           {receiving:8.1} µs\n\
         \x20 together               {whole:8.1} µs\n\
         \x20 Postgres for its SQL   {sql:8.1} µs\n\
         \x20 a bare post, both ends {bare:8.1} µs\n\
         \x20 those two              {limit:8.1} µs\n\
         \x20 ratio                  {:8.2}     (goal: at most 1.5)",
        whole / limit
    );

    // Callbacks that never answer, each with a backlog.
    for number in 0..HANGING / scale {
        let tenant = bench.tenant(&format!("hang/{number}")).await;
        let record = EventRecorder::new(&bench.database, &bench.clock, |_| {});
        for one in 0..20 {
            record
                .record_event(&event(&tenant, format!("hanging-{one}")))
                .await
                .expect("stored");
        }
    }
    let server = bench.serve();
    tokio::time::sleep(Duration::from_secs(9)).await;
    let connections: i64 =
        sqlx::query_scalar("select count(*) from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()")
            .fetch_one(bench.database.pool())
            .await
            .expect("it answers");
    let ours = i64::from(bench.database.pool().sqlx_pool().size()) - 1;
    let _ = writeln!(
        out,
        "\n{} callbacks that never answer, 20 events each\n\
         \x20 resident               {:8.1} MB  (goal: under 256)\n\
         \x20 connections to Postgres{:8}     (goal: at most 20)",
        HANGING / scale,
        server.resident(),
        connections - ours
    );
    drop(server);
    bench.simulator.stop().await;
    bench.database.close_connections().await;
    bench.postgres.stop().await;
}
