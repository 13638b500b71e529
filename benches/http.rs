//! Measures the cost of a verification over HTTP, next to the minimum possible cost.
//!
//! `cargo bench --bench http`
//!
//! The server is the real binary with its request log on. Its CPU time is read from the system, so
//! that the load generator is not counted. The baseline is a route that reads the same body and
//! answers a constant, plus one bare P-256 verification of the same bytes. Rounds are interleaved
//! and the median is printed.
//!
//! `ATTESTO_BENCH_BESIDE=PATH cargo bench --bench http` also measures another build of `attesto`, in
//! the same rounds and on a database of its own.

#[path = "support/charts.rs"]
mod charts;
#[expect(dead_code, reason = "the metrics are for the benchmark of deliveries")]
mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::config;
use attesto::db::Database;
use attesto::embedded_postgres::{EmbeddedOptions, EmbeddedPostgres};
use attesto::simulator::state::apple::{NewTransaction, SimulatedEnvironment};
use attesto::simulator::{Simulator, SimulatorOptions};
use attesto::stores::apple::account::{
    AppleCredentials, ClientTokenSource, EnvironmentChoice, SigningKey,
};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use axum::body::Bytes;
use axum::routing::post;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use support::{Server, median, micros, on_processor};
use x509_cert::Certificate;
use x509_cert::der::{Decode as _, Encode as _};

const BUNDLE: &str = "com.example.bench";
const ROUNDS: usize = 5;
const REQUESTS: usize = 6000;
const CONNECTIONS: usize = 32;
/// The rate and length of the latency measurement.
const PER_SECOND: u32 = 200;
const ASKED: u32 = 1000;
/// Names the binary of another build to measure in the same rounds.
const BESIDE: &str = "ATTESTO_BENCH_BESIDE";
/// Makes this program run as the baseline server.
const ROLE: &str = "ATTESTO_BENCH_ROLE";

fn main() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    if config::read_env_var(ROLE).is_some() {
        runtime.block_on(yardstick());
    } else {
        runtime.block_on(measure());
    }
}

/// A route that reads its body and answers a constant.
async fn yardstick() {
    let routes = axum::Router::new().route(
        "/",
        post(async |body: Bytes| {
            std::hint::black_box(&body);
            ([("content-type", "application/json")], "{\"valid\":true}")
        }),
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a free port");
    println!(
        "{}",
        json!({"msg": "listening", "port": listener.local_addr().expect("an address").port()})
    );
    axum::serve(listener, routes).await.expect("it serves");
}

/// Sends the same request repeatedly over many connections; CPU time of the server per request, in
/// µs.
async fn cost(server: &Server, client: &reqwest::Client, path: &str, key: &str, body: &str) -> f64 {
    let url: Arc<str> = format!("http://{}{path}", server.address).into();
    let (key, body): (Arc<str>, Bytes) = (key.into(), Bytes::copy_from_slice(body.as_bytes()));
    let left = Arc::new(AtomicUsize::new(REQUESTS));
    let before = server.cpu();
    let workers: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let (client, url, key, body, left) = (
                client.clone(),
                url.clone(),
                key.clone(),
                body.clone(),
                left.clone(),
            );
            tokio::spawn(async move {
                while left
                    .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                        left.checked_sub(1)
                    })
                    .is_ok()
                {
                    let sent = client
                        .post(&*url)
                        .bearer_auth(&key)
                        .header("content-type", "application/json")
                        .body(body.clone())
                        .send();
                    let answer = sent
                        .await
                        .expect("an answer")
                        .bytes()
                        .await
                        .expect("a body");
                    assert!(
                        answer.starts_with(b"{\"valid\":true"),
                        "{}",
                        String::from_utf8_lossy(&answer)
                    );
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.expect("no panic");
    }
    micros(server.cpu().saturating_sub(before)) / f64::from(u32::try_from(REQUESTS).expect("small"))
}

/// One bare verification of a JWS signature: CPU time, in µs.
fn bare(jws: &str) -> f64 {
    let (signed, signature) = jws.rsplit_once('.').expect("a JWS");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
    let header = URL_SAFE_NO_PAD
        .decode(signed.split('.').next().expect("a header"))
        .expect("base64url");
    let header: Value = serde_json::from_slice(&header).expect("JSON");
    let leaf = STANDARD
        .decode(header["x5c"][0].as_str().expect("text"))
        .expect("base64");
    let leaf = Certificate::from_der(&leaf).expect("a certificate");
    let spki = leaf
        .tbs_certificate()
        .subject_public_key_info()
        .to_der()
        .expect("DER");
    let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &spki[26..]).expect("a key");
    let times: u32 = 5000;
    let this = Path::new("/proc/thread-self/schedstat");
    let start = on_processor(this);
    for _ in 0..times {
        std::hint::black_box(key.verify_sig(signed.as_bytes(), &signature)).expect("it verifies");
    }
    micros(on_processor(this).saturating_sub(start)) / f64::from(times)
}

/// Calls `ask` at a steady rate; the median response time, in milliseconds.
async fn latency<F: Future<Output = ()> + Send + 'static>(ask: impl Fn() -> F) -> f64 {
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let mut asked = Vec::new();
    for _ in 0..ASKED {
        ticks.tick().await;
        let answer = ask();
        asked.push(tokio::spawn(async move {
            let start = Instant::now();
            answer.await;
            micros(start.elapsed()) / 1000.0
        }));
    }
    let mut times = Vec::new();
    for one in asked {
        times.push(one.await.expect("no panic"));
    }
    median(&mut times)
}

/// What each measured build is set up with.
struct Setup<'a> {
    postgres: &'a EmbeddedPostgres,
    simulator: &'a Simulator,
    roots: &'a Path,
    key_file: &'a Path,
}

/// A build of `attesto` with a database of its own, in which one tenant may verify Apple's transactions.
struct Installation {
    binary: PathBuf,
    environment: Vec<(String, String)>,
    /// The tenant's API key.
    key: String,
}

impl Setup<'_> {
    /// Sets up a build through its own commands, because another build may have other tables.
    async fn install(&self, binary: &Path, database: &str) -> Installation {
        let maintenance = Database::open(&self.postgres.connect_settings());
        let create = format!("create database bench_{database}");
        sqlx::query(sqlx::AssertSqlSafe(create))
            .execute(maintenance.pool())
            .await
            .expect("a database");
        maintenance.close_connections().await;
        let mut url = url::Url::parse(&self.postgres.connection_url()).expect("a URL");
        url.set_path(&format!("bench_{database}"));
        let roots = self.roots.to_str().expect("a path of text");
        let mut environment = vec![
            ("DATABASE_URL".to_owned(), url.to_string()),
            (
                "ATTESTO_ENCRYPTION_KEY".to_owned(),
                STANDARD.encode([7; 32]),
            ),
            ("RATE_LIMIT_PER_SECOND".to_owned(), "1000000".to_owned()),
            ("RATE_LIMIT_BURST".to_owned(), "1000000".to_owned()),
        ];
        let stores = self.simulator.environment_variables().into_iter();
        environment.extend(stores.map(|(name, value)| (name.to_string(), value)));
        environment.push(("APPLE_ROOT_CERTIFICATES".to_owned(), roots.to_owned()));
        let mut installation = Installation {
            binary: binary.to_owned(),
            environment,
            key: String::new(),
        };
        installation.run(&["migrate"]);
        let tenant = installation.run(&["tenant", "create", "--name", "Bench"]);
        let tenant = tenant["id"].as_str().expect("an id");
        let created = installation.run(&["key", "create", tenant, "--env", "test"]);
        created["rawKey"]
            .as_str()
            .expect("a key")
            .clone_into(&mut installation.key);
        let apple_key = self.simulator.apple().api_key();
        let key_file = self.key_file.to_str().expect("a path of text");
        installation.run(&[
            "apple",
            "set-credentials",
            tenant,
            "--bundle-id",
            BUNDLE,
            "--key-id",
            &apple_key.key_id,
            "--issuer-id",
            &apple_key.issuer_id,
            "--key-path",
            key_file,
            "--environment",
            "production",
            "--app-apple-id",
            "1",
        ]);
        installation
    }
}

impl Installation {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command; the first JSON object that it prints.
    fn run(&self, arguments: &[&str]) -> Value {
        let output = self.command().args(arguments).output().expect("it runs");
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {complaint}");
        let mut lines = serde_json::Deserializer::from_slice(&output.stdout).into_iter();
        lines.next().and_then(Result::ok).unwrap_or_default()
    }

    fn serve(&self) -> Command {
        let mut command = self.command();
        command.args([
            "serve",
            "--port=0",
            "--bind-address=127.0.0.1",
            "--log-format=json",
        ]);
        command
    }
}

#[expect(clippy::too_many_lines, reason = "one measurement after the other")]
async fn measure() {
    let clock = Clock::system();
    let folder = std::env::temp_dir().join(format!("attesto-bench-{}", std::process::id()));
    let options = EmbeddedOptions {
        data_dir: Some(folder.clone()),
        ..EmbeddedOptions::from_env(config::read_env_var)
    };
    let postgres = EmbeddedPostgres::start(options)
        .await
        .expect("Postgres starts");
    let simulator = Simulator::start(SimulatorOptions::new(clock.clone()))
        .await
        .expect("the stores start");
    let roots = folder.join("root.pem");
    std::fs::write(&roots, simulator.apple_root_pem()).expect("written");

    let apple_key = simulator.apple().api_key();
    let key_file = folder.join("key.p8");
    std::fs::write(&key_file, &apple_key.private_key).expect("written");
    let bought = NewTransaction {
        bundle_id: Some(BUNDLE.to_owned()),
        environment: SimulatedEnvironment::Production,
        ..NewTransaction::default()
    };
    let id = simulator
        .apple()
        .create_transaction(bought)
        .expect("a purchase")
        .transaction_id;
    let jws = simulator.apple().sign_transaction(&id).expect("a JWS");

    let setup = Setup {
        postgres: &postgres,
        simulator: &simulator,
        roots: &roots,
        key_file: &key_file,
    };
    let installation = setup
        .install(Path::new(env!("CARGO_BIN_EXE_attesto")), "this")
        .await;
    let beside = match config::read_env_var(BESIDE) {
        Some(binary) => Some(setup.install(Path::new(&binary), "beside").await),
        None => None,
    };
    let mut command = installation.serve();
    let mut starts: Vec<f64> = (0..5)
        .map(|_| micros(Server::start(&mut command).ready) / 1000.0)
        .collect();
    let attesto = Server::start(&mut command);
    let other = beside
        .as_ref()
        .map(|beside| (Server::start(&mut beside.serve()), &beside.key));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = attesto.resident();
    let this = std::env::current_exe().expect("this program");
    let plain = Server::start(Command::new(this).env(ROLE, "yardstick"));

    let client = reqwest::Client::builder()
        .no_proxy()
        .build()
        .expect("a client");
    let body = json!({ "signedTransaction": jws }).to_string();
    let key = &installation.key;
    let (mut whole, mut reading, mut verifying) = (Vec::new(), Vec::new(), Vec::new());
    let mut others = Vec::new();
    for _ in 0..ROUNDS {
        whole.push(cost(&attesto, &client, "/v1/apple/verify", key, &body).await);
        if let Some((other, key)) = &other {
            others.push(cost(other, &client, "/v1/apple/verify", key, &body).await);
        }
        reading.push(cost(&plain, &client, "/", key, &body).await);
        verifying.push(bare(&jws));
    }
    let (whole, reading, verifying) = (
        median(&mut whole),
        median(&mut reading),
        median(&mut verifying),
    );
    let busy = attesto.resident();

    // The store's own time: the same request, sent directly.
    let credentials = AppleCredentials {
        bundle_id: BUNDLE.to_owned(),
        key_id: apple_key.key_id,
        issuer_id: apple_key.issuer_id,
        key: SigningKey::parse(apple_key.private_key.as_bytes()).expect("a key"),
        environment: EnvironmentChoice::Production,
        app_apple_id: Some(1),
    };
    let tokens = ClientTokenSource::new(clock.clone());
    let bearer = tokens
        .get_token(&TenantId::mint(clock.now()), &credentials)
        .secret()
        .to_owned();
    let store_url = format!(
        "{}/inApps/v1/transactions/{id}",
        simulator.apple_production_url()
    );
    let url = format!("http://{}/v1/apple/verify", attesto.address);
    let question = json!({ "transactionId": id }).to_string();
    let (mut direct, mut through) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        direct.push(
            latency(|| {
                let request = client.get(&store_url).bearer_auth(&bearer);
                async move {
                    _ = request
                        .send()
                        .await
                        .expect("an answer")
                        .bytes()
                        .await
                        .expect("a body");
                }
            })
            .await,
        );
        through.push(
            latency(|| {
                let request = client
                    .post(&url)
                    .bearer_auth(key)
                    .header("content-type", "application/json")
                    .body(question.clone());
                async move {
                    _ = request
                        .send()
                        .await
                        .expect("an answer")
                        .bytes()
                        .await
                        .expect("a body");
                }
            })
            .await,
        );
    }
    let (direct, through) = (median(&mut direct), median(&mut through));
    let size = std::fs::metadata(env!("CARGO_BIN_EXE_attesto"))
        .expect("the binary")
        .len();

    let limit = reading + verifying;
    charts::draw(
        "verify",
        "POST /v1/apple/verify by signedTransaction",
        "processor time of a request, µs",
        &[
            charts::yardstick("read the body, answer a constant", reading),
            charts::yardstick("one bare P-256 verification", verifying),
            charts::yardstick("both: the lower bound", limit),
            charts::measured("attesto", whole),
        ],
    );
    let mut out = std::io::stdout().lock();
    let _ = writeln!(
        out,
        "\nPOST /v1/apple/verify by signedTransaction, processor time a request, median of {ROUNDS} rounds of {REQUESTS}\n\
         \x20 read the body, answer a constant   {reading:8.1} µs\n\
         \x20 one bare P-256 verification        {verifying:8.1} µs\n\
         \x20 both: the limit                    {limit:8.1} µs\n\
         \x20 attesto                            {whole:8.1} µs\n\
         \x20 of the limit's rate                {:8.0} %   (goal: at least 70)\n\n\
         POST /v1/apple/verify by transactionId at {PER_SECOND} requests/s, median time to the answer\n\
         \x20 the simulated store itself         {direct:8.3} ms\n\
         \x20 attesto, which asks it             {through:8.3} ms\n\
         \x20 added                              {:8.3} ms  (goal: under 1)\n\n\
         attesto serve\n\
         \x20 ready, with an existing database   {:8.0} ms  (goal: under 300)\n\
         \x20 resident, idle                     {idle:8.1} MB  (goal: under 30)\n\
         \x20 resident, after the load           {busy:8.1} MB\n\
         \x20 binary                             {:8.1} MB  (goal: under 30)",
        100.0 * limit / whole,
        through - direct,
        median(&mut starts),
        f64::from(u32::try_from(size).expect("less than 4 GB")) / 1e6,
    );
    if !others.is_empty() {
        let other = median(&mut others);
        let _ = writeln!(
            out,
            "\nThe other build, in the same rounds\n\
             \x20 attesto                            {other:8.1} µs\n\
             \x20 this build costs                   {:8.3} times that",
            whole / other,
        );
    }
    drop((attesto, plain, other));
    simulator.stop().await;
    postgres.stop().await;
    let _ = std::fs::remove_dir_all(folder);
}
