//! Measures what it costs to accept and deliver a notification, next to the minimum possible cost.
//!
//! `cargo bench --bench deliveries`
//!
//! The server is the real binary on a private, durable Postgres; the receiver is in this program.
//! CPU time is read from the system for each process, including Postgres. The baselines are
//! measured in the same run: a bare HTTP POST of the same bytes, the dispatcher's own SQL without
//! sending, and transactions of one row.

#![expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rates and shares of small counts"
)]

#[path = "support/charts.rs"]
mod charts;
#[path = "support/load.rs"]
mod load;
mod support;

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
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
use attesto::simulator::state::apple::{NewTransaction, SimulatedEnvironment, TransactionChange};
use attesto::simulator::state::apple_notifications::NotificationUrls;
use attesto::simulator::{Simulator, SimulatorOptions};
use attesto::stores::apple::account::{AppleCredentials, EnvironmentChoice, SigningKey};
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::stores::{apple, google};
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
/// Notifications in each round of the measurement of a load, and the connections that push them.
const LOAD: usize = 6_000;
const LOAD_CONNECTIONS: usize = 32;
const LOAD_ROUNDS: usize = 3;
/// Rounds of the comparison of one process with two.
const PROCESS_ROUNDS: usize = 3;
/// Transactions in each round of the yardstick.
const YARDSTICK: usize = 5_000;
/// The threads of the receiver and of the load generator.
const RECEIVER: &str = "receiver";
const GENERATOR: &str = "generator";
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
    fn start() -> (Self, SocketAddr) {
        let arrivals = Self::default();
        let routes = Router::new()
            .route("/hook/{tenant}", post(take))
            .route(
                "/hang/{tenant}",
                post(async || std::future::pending::<()>().await),
            )
            .route("/bare", post(async |_: Bytes| "ok"))
            .with_state(arrivals.clone());
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let address = listener.local_addr().expect("it is bound");
        // A thread of its own, so that its CPU time is known.
        std::thread::spawn(move || {
            load::named_runtime(RECEIVER).block_on(async move {
                let listener = TcpListener::from_std(listener).expect("a listener");
                let serving = async move { axum::serve(listener, routes).await };
                // On the runtime's own thread, whose name is counted.
                let served = tokio::spawn(serving).await.expect("it does not panic");
                served.expect("it serves");
            });
        });
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
    /// The file with the simulated App Store's root certificate.
    roots: PathBuf,
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
            data_dir: Some(folder.clone()),
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
        let roots = folder.join("simulator-root.pem");
        std::fs::write(&roots, simulator.apple_root_pem()).expect("written");
        let key = STANDARD.encode([7; 32]);
        let master = MasterKey::parse(&key, Some(1)).expect("a key");
        let keyring = Keyring::new(master, vec![]).expect("a ring");
        let (arrivals, receiver) = Arrivals::start();
        let mut bench = Self {
            postgres,
            database,
            simulator,
            roots,
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
            bench.apple_credentials(&tenant, &package(number)).await;
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
            overlap: Duration::ZERO,
            ..EndpointChange::default()
        };
        store::change_endpoint(&self.database, &self.keyring, &tenant, &change)
            .await
            .expect("a callback");
        // The callback answered successfully before, so it gets its full concurrency.
        self.execute(
            "insert into webhook_health (lane, tenant_id, callback_url, allowed, last_success_at)
            select tenant_lane(tenant_id), tenant_id, callback_url, 8, now() from webhook_configs on conflict do nothing",
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

    async fn apple_credentials(&self, tenant: &TenantId, bundle: &str) {
        let key = self.simulator.apple().api_key();
        let credentials = AppleCredentials {
            bundle_id: bundle.to_owned(),
            key_id: key.key_id,
            issuer_id: key.issuer_id,
            key: SigningKey::parse(key.private_key.as_bytes()).expect("a key"),
            environment: EnvironmentChoice::Production,
            app_apple_id: i64::try_from(self.simulator.apple().get_app(bundle).app_apple_id).ok(),
        };
        let new = apple::store::NewAppleCredentials {
            key_file: key.private_key.as_bytes(),
            credentials: &credentials,
        };
        apple::store::set_credentials(&self.database, &self.keyring, tenant, &new)
            .await
            .expect("credentials");
        // Signed when a purchase changes, and kept until they are fetched.
        let urls = NotificationUrls {
            manual: true,
            ..NotificationUrls::for_both_environments("http://127.0.0.1:9/")
        };
        let set = self.simulator.apple().set_notification_urls(bundle, urls);
        set.expect("an address");
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
            .env("METRICS_ADDRESS", "127.0.0.1:0")
            .env("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true")
            .envs(self.simulator.environment_variables())
            .env("APPLE_ROOT_CERTIFICATES", &self.roots);
        Server::start(&mut command)
    }

    /// Delivers a backlog that is due once so many processes serve. Returns the rate, and how much of it the first process delivered.
    async fn deliver_with(&self, processes: usize, count: usize) -> (f64, f64) {
        self.backlog(count).await;
        self.execute(
            "update webhook_deliveries set next_attempt_at = attesto_now() + interval '4 seconds'
            where status = 'pending'",
        )
        .await;
        self.execute("vacuum analyze webhook_deliveries").await;
        self.arrivals.reset();
        let servers: Vec<_> = (0..processes).map(|_| self.serve()).collect();
        self.arrivals.until(1).await;
        let begun = Instant::now();
        self.arrivals.until(count).await;
        let per_second = count as f64 / begun.elapsed().as_secs_f64();
        // An attempt is counted after its answer arrived.
        tokio::time::sleep(Duration::from_millis(300)).await;
        let of_first = servers[0].metric(r#"attesto_delivery_attempts_total{outcome="success"}"#);
        (per_second, of_first / count as f64)
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

/// Notifications of renewals as the App Store pushes them, each signed, with two signed parts: path and body.
fn apple_notifications(bench: &Bench, count: usize) -> Vec<(String, String)> {
    let apple = bench.simulator.apple();
    let mut bought = Vec::new();
    for number in 0..count {
        let new = NewTransaction {
            bundle_id: Some(package(number % TENANTS)),
            environment: SimulatedEnvironment::Production,
            ..NewTransaction::default()
        };
        // As a store has them: a purchase, and renewals of earlier ones.
        if number % 4 == 0 || bought.len() < 4 * TENANTS {
            bought.push(apple.create_transaction(new).expect("bought"));
        } else {
            let at = fastrand::usize(..bought.len());
            let id = bought[at].transaction_id.clone();
            let renewed = apple.change_transaction(&id, &TransactionChange::Renew {});
            bought[at] = renewed.expect("renewed");
        }
    }
    let tenants: HashMap<String, &TenantId> = bench
        .tenants
        .iter()
        .enumerate()
        .map(|(number, tenant)| (package(number), tenant))
        .collect();
    let mut made = apple.list_notifications();
    made.drain(..made.len() - count);
    made.into_iter()
        .map(|notification| {
            let tenant = tenants[&notification.bundle_id];
            let body = json!({ "signedPayload": notification.signed_payload });
            (format!("/v1/webhooks/apple/{tenant}"), body.to_string())
        })
        .collect()
}

/// What is measured of one round of a load.
#[derive(Clone, Copy, Default)]
struct LoadCost {
    /// Notifications that were taken in, each second.
    taken_in: f64,
    /// Events that were delivered, each second.
    delivered: f64,
    /// Microseconds of processor time for each notification.
    server: f64,
    postgres: f64,
    receiver: f64,
    generator: f64,
    /// For each notification.
    wal_bytes: f64,
    disk_bytes: f64,
    transactions: f64,
}

/// Counters of Postgres.
struct DatabaseCounters {
    cpu: Duration,
    wal: f64,
    disk: f64,
    transactions: f64,
}

impl DatabaseCounters {
    async fn read(bench: &Bench) -> Self {
        // Postgres processes report their statistics up to a second late, and later when they are idle.
        let (wal, disk, transactions): (f64, f64, f64) = sqlx::query_as(
            "select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::float8, pg_database_size(current_database())::float8,
                xact_commit::float8 from pg_stat_database where datname = current_database()",
        )
        .fetch_one(bench.database.pool())
        .await
        .expect("it answers");
        Self {
            cpu: bench.database_cpu().await,
            wal,
            disk,
            transactions,
        }
    }
}

async fn all_delivered(bench: &Bench) {
    loop {
        let open: bool = sqlx::query_scalar(
            // By the index of those that are not delivered.
            "select exists (select from webhook_deliveries where status <> 'delivered')",
        )
        .fetch_one(bench.database.pool())
        .await
        .expect("it answers");
        if !open {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Pushes notifications as fast as they are taken in, while they are delivered.
async fn push_load(bench: &Bench, server: &Server, requests: Vec<Vec<u8>>) -> LoadCost {
    let count = requests.len();
    let requests = Arc::new(requests);
    bench.arrivals.reset();
    let generator = load::named_runtime(GENERATOR);
    let before = (
        DatabaseCounters::read(bench).await,
        server.cpu(),
        load::cpu_of_thread(RECEIVER),
    );
    let begun = Instant::now();
    let taking_in = load::send_all(server.address, LOAD_CONNECTIONS, requests);
    let taken_in = generator.spawn(taking_in).await.expect("all are taken in");
    let generating = load::cpu_of_thread(GENERATOR);
    bench.arrivals.until(count).await;
    let delivered = begun.elapsed();
    all_delivered(bench).await;
    let each = |time: Duration| micros(time) / count as f64;
    let server_cpu = each(server.cpu().saturating_sub(before.1));
    let receiver = each(load::cpu_of_thread(RECEIVER).saturating_sub(before.2));
    let cpu = bench.database_cpu().await;
    // The rest is read after the statistics were reported.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let after = DatabaseCounters::read(bench).await;
    generator.shutdown_background();
    LoadCost {
        taken_in: count as f64 / taken_in.as_secs_f64(),
        delivered: count as f64 / delivered.as_secs_f64(),
        server: server_cpu,
        postgres: each(cpu.saturating_sub(before.0.cpu)),
        receiver,
        generator: each(generating),
        wal_bytes: (after.wal - before.0.wal) / count as f64,
        disk_bytes: (after.disk - before.0.disk) / count as f64,
        transactions: (after.transactions - before.0.transactions) / count as f64,
    }
}

/// The yardstick: transactions that insert one row of 1,000 bytes, as many at once as there are connections. How many a second,
/// and the processor time of Postgres for each, in microseconds.
async fn yardstick(bench: &Bench, count: usize) -> (f64, f64) {
    bench
        .execute("create table if not exists bench_yardstick (id bigint generated always as identity primary key, body bytea not null)")
        .await;
    let before = bench.database_cpu().await;
    let pool = bench.database.pool().clone();
    let rate = rate(count, move |_| {
        let pool = pool.clone();
        async move {
            sqlx::query("insert into bench_yardstick (body) values ($1)")
                .bind(vec![fastrand::u8(..); 1000])
                .execute(&pool)
                .await
                .expect("inserted");
        }
    })
    .await;
    let cpu = bench.database_cpu().await.saturating_sub(before);
    (rate, micros(cpu) / count as f64)
}

/// Both kinds of notification and the yardstick, in turns.
async fn measure_load(bench: &Bench, server: &Server, scale: usize, out: &mut impl Write) {
    let count = LOAD / scale;
    let mut of_kind = [Vec::new(), Vec::new()];
    let mut yard = Vec::new();
    let mut bytes = [0; 2];
    // The first round warms caches and is not counted.
    for round in 0..=LOAD_ROUNDS {
        yard.push(yardstick(bench, YARDSTICK / scale).await);
        for (kind, costs) in of_kind.iter_mut().enumerate() {
            let requests: Vec<_> = if kind == 0 {
                let made = bench.notifications(count);
                bytes[kind] = made[0].2.len();
                let made = made.iter();
                made.map(|(path, token, body)| load::post_request(path, Some(token), body))
                    .collect()
            } else {
                let made = apple_notifications(bench, count);
                bytes[kind] = made[0].1.len();
                let made = made.iter();
                made.map(|(path, body)| load::post_request(path, None, body))
                    .collect()
            };
            let cost = push_load(bench, server, requests).await;
            if round > 0 {
                costs.push(cost);
            }
        }
    }
    yard.remove(0);
    let (yard_rate, yard_cpu) = (
        median_of(&yard, |yard| yard.0),
        median_of(&yard, |yard| yard.1),
    );
    let [google, apple] = of_kind;
    let line =
        |out: &mut dyn Write, name: &str, of: fn(&LoadCost) -> f64, unit: &str, goals: &str| {
            let _ = writeln!(
                out,
                "  {name:23}{:9.0}{:9.0} {unit:4} {goals}",
                median_of(&google, of),
                median_of(&apple, of)
            );
        };
    let _ = writeln!(
        out,
        "\nNotifications taken in and delivered, {LOAD_CONNECTIONS} connections, {TENANTS} tenants, median of {LOAD_ROUNDS} rounds of {count}\n\
         \x20                           Google    Apple      (goals)\n\
         \x20 size                   {:9}{:9} B",
        bytes[0], bytes[1]
    );
    line(out, "taken in", |cost| cost.taken_in, "/s", "");
    line(
        out,
        "taken in and delivered",
        |cost| cost.delivered,
        "/s",
        "(7000, 2500)",
    );
    line(out, "server", |cost| cost.server, "µs", "(Apple: 280)");
    line(out, "Postgres", |cost| cost.postgres, "µs", "(Apple: 420)");
    line(out, "receiver", |cost| cost.receiver, "µs", "");
    line(
        out,
        "these three",
        |cost| cost.server + cost.postgres + cost.receiver,
        "µs",
        "(Apple: 750)",
    );
    line(out, "load generator", |cost| cost.generator, "µs", "");
    line(out, "WAL", |cost| cost.wal_bytes, "B", "(Apple: 6000)");
    line(out, "disk", |cost| cost.disk_bytes, "B", "(Apple: 5000)");
    draw_load(&google, &apple);
    let share = |costs: &[LoadCost]| median_of(costs, |cost| cost.delivered) / yard_rate;
    let cpu_share = |costs: &[LoadCost]| median_of(costs, |cost| cost.postgres) / yard_cpu;
    let transactions = |costs: &[LoadCost]| median_of(costs, |cost| cost.transactions);
    let _ = writeln!(
        out,
        "  {:23}{:9.2}{:9.2}\n\
         \x20 the yardstick, one row of 1,000 bytes a transaction: {yard_rate:.0} /s, Postgres {yard_cpu:.0} µs\n\
         \x20 {:23}{:9.2}{:9.2}\n\
         \x20 {:23}{:9.2}{:9.2}",
        "transactions",
        transactions(&google),
        transactions(&apple),
        "rate, of the yardstick",
        share(&google),
        share(&apple),
        "Postgres, of the same",
        cpu_share(&google),
        cpu_share(&apple),
    );
}

fn draw_load(google: &[LoadCost], apple: &[LoadCost]) {
    let both = |label: &str, of: fn(&LoadCost) -> f64| {
        let bar = |store: &str, costs| {
            charts::measured(format!("{store}, {label}"), median_of(costs, of))
        };
        [bar("Google", google), bar("Apple", apple)]
    };
    charts::draw(
        "notification-cost",
        "A notification, from the push to the delivered event",
        "processor time, µs",
        &[
            both("attesto", |cost| cost.server),
            both("Postgres", |cost| cost.postgres),
            both("the receiver", |cost| cost.receiver),
        ]
        .concat(),
    );
    charts::draw(
        "notification-storage",
        "What a notification writes",
        "bytes",
        &[
            both("write-ahead log", |cost| cost.wal_bytes),
            both("tables and indexes", |cost| cost.disk_bytes),
        ]
        .concat(),
    );
}

fn median_of<T>(rows: &[T], of: impl Fn(&T) -> f64) -> f64 {
    median(&mut rows.iter().map(of).collect::<Vec<_>>())
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
        answer_by: None,
        is_recovered: false,
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

/// The same backlog by one process and by two, in turns.
async fn measure_two_processes(bench: &Bench, backlog: usize, out: &mut impl Write) {
    let (mut one, mut two, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..PROCESS_ROUNDS {
        one.push(bench.deliver_with(1, backlog).await.0);
        let (rate, share) = bench.deliver_with(2, backlog).await;
        two.push(rate);
        shares.push(share * 100.0);
    }
    shares.sort_by(f64::total_cmp);
    let (one, two) = (median(&mut one), median(&mut two));
    let _ = writeln!(
        out,
        "\nThe same by one process and by two, on the same cores, median of {PROCESS_ROUNDS} rounds\n\
         \x20 one process            {one:8.0} /s\n\
         \x20 two processes          {two:8.0} /s\n\
         \x20 ratio                  {:8.2}     (goal: at least 1)\n\
         \x20 by the first of two    {:5.0} to {:.0} %  (goal: 40 to 60)",
        two / one,
        shares[0],
        shares[shares.len() - 1]
    );
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

    measure_load(&bench, &server, scale, &mut out).await;

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
    charts::draw(
        "delivery-cost",
        "A delivery of a backlog",
        "processor time, µs",
        &[
            charts::yardstick("Postgres for the same SQL, nothing sent", sql),
            charts::yardstick("a bare HTTP post, both ends", bare),
            charts::yardstick("those two: the lower bound", limit),
            charts::measured("attesto, Postgres and the receiver", whole),
        ],
    );
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

    measure_two_processes(&bench, backlog, &mut out).await;

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
