//! The server process, its tenant, and what that tenant sees.

use std::fmt;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attesto::base::clock::Clock;
use attesto::base::id::TenantId;
use attesto::crypto::keyring::{Keyring, MasterKey};
use attesto::db::{ConnectSettings, Database};
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::{Simulator, SimulatorOptions};
use attesto::stores::apple;
use attesto::stores::apple::account::{AppleCredentials, EnvironmentChoice, SigningKey};
use attesto::tenants::{ApiKeyEnvironment, RawApiKey, store};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::postgres::{Options, Postgres};

/// What the control group of the process allows, where there can be one.
const MEMORY_LIMIT_BYTES: u64 = 512 * 1024 * 1024;
/// Requests of the tenant in a second, half of them on new connections.
const TENANT_RATE: u32 = 40;
const PROBE_RATE: u32 = 5;

pub(crate) struct Service {
    child: Child,
    control_group: Option<PathBuf>,
    address: String,
    tenant: TenantId,
    key: RawApiKey,
    signed_transaction: String,
    simulator: Simulator,
    _postgres: Postgres,
}

/// What was seen of one crowd's stay.
#[derive(Default)]
pub(crate) struct Seen {
    answered: Vec<Duration>,
    failed: Vec<String>,
    ready: usize,
    not_ready: Vec<String>,
}

impl Seen {
    pub(crate) fn is_good(&self) -> bool {
        self.failed.is_empty() && self.not_ready.is_empty() && !self.answered.is_empty()
    }

    fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.answered.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or_default()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = |percent| self.percentile(percent).as_millis();
        write!(
            f,
            "{} verifications (p50 {} ms, p99 {} ms), {} failed; /ready {} times 200, {} times not",
            self.answered.len(),
            millis(50),
            millis(99),
            self.failed.len(),
            self.ready,
            self.not_ready.len()
        )?;
        for what in self.failed.iter().chain(&self.not_ready).take(3) {
            write!(f, "\n        {what}")?;
        }
        Ok(())
    }
}

impl Service {
    pub(crate) async fn start() -> Self {
        let postgres = Postgres::start_with(Options::default());
        let connect = ConnectSettings::from_url(&postgres.url()).expect("our own URL");
        let database = Database::open(&connect);
        database.migrate(false).await.expect("it is empty");
        let clock = Clock::system();
        let simulator = Simulator::start(SimulatorOptions::new(clock.clone()))
            .await
            .expect("a free port");
        let key_text = format!("1:{}", STANDARD.encode(random_bytes()));
        let master = MasterKey::parse(&key_text, None).expect("thirty-two bytes");
        let keyring = Keyring::new(master, Vec::new()).expect("one key");
        let (tenant, key) = create_tenant(&database, &keyring, &simulator).await;
        let bought = simulator
            .apple()
            .create_transaction(NewTransaction::default())
            .expect("a known app");
        let signed = simulator.apple().sign_transaction(&bought.transaction_id);
        database.close_connections().await;

        let roots = postgres.folder().join("root.pem");
        fs::write(&roots, simulator.apple_root_pem()).expect("a file can be written");
        let mut environment = simulator.environment_variables();
        environment.retain(|(name, _)| *name != "APPLE_ROOT_CERTIFICATES");
        environment.extend([
            ("APPLE_ROOT_CERTIFICATES", roots.display().to_string()),
            ("DATABASE_URL", postgres.url()),
            ("ATTESTO_ENCRYPTION_KEY", key_text),
            ("RATE_LIMIT_PER_SECOND", "1000".to_owned()),
        ]);
        let mut child = Command::new(env!("CARGO_BIN_EXE_attesto"))
            .args(["serve", "--port=0", "--bind-address=127.0.0.1"])
            .env_clear()
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("the binary runs");
        let control_group = limit_memory(child.id());
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let (send, port) = std::sync::mpsc::channel();
        // Read to its end, so that the process never waits for its log.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let line: Value = serde_json::from_str(&line).unwrap_or_default();
                if line["msg"] == "listening" {
                    let _ = send.send(line["port"].as_u64());
                }
            }
        });
        let port = tokio::task::spawn_blocking(move || port.recv());
        let port = port.await.expect("it does not panic").ok().flatten();
        Self {
            child,
            control_group,
            address: format!("127.0.0.1:{}", port.expect("the process listens")),
            tenant,
            key,
            signed_transaction: signed.expect("it was made"),
            simulator,
            _postgres: postgres,
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// A token that Google signed for an account that no tenant named.
    pub(crate) fn foreign_google_token(&self) -> String {
        let now = Clock::system().now().as_secs();
        let key = self.simulator.identity().google_signing_key();
        key.sign_jwt(&json!({
            "iss": "https://accounts.google.com",
            "aud": "https://elsewhere.example/push",
            "email": "stranger@project.iam.gserviceaccount.com",
            "email_verified": true,
            "iat": now,
            "exp": now + 3600,
        }))
    }

    pub(crate) fn memory_limit(&self) -> String {
        match &self.control_group {
            Some(_) => format!("{} MiB, by its control group", MEMORY_LIMIT_BYTES >> 20),
            None => "none: this user cannot make a control group; its peak is judged".to_owned(),
        }
    }

    /// The most memory that the process ever had.
    pub(crate) fn peak_memory_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
        // A process that is gone was killed, most likely for its memory.
        kib.map_or(u64::MAX, |kib| kib * 1024)
    }

    /// What the tenant and the probe see while a crowd stays, and what the crowd saw. They have a thread of their own, so that they
    /// do not wait for the crowd's tasks.
    pub(crate) async fn observe(
        &self,
        stay: Duration,
        crowd: impl Future<Output = String>,
    ) -> (Seen, String) {
        let observer = Observer {
            verify_url: format!("http://{}/v1/apple/verify", self.address),
            ready_url: format!("http://{}/ready", self.address),
            key: self.key.expose().to_owned(),
            body: json!({ "signedTransaction": self.signed_transaction }),
            seen: Arc::default(),
        };
        let observing = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(observer.observe(Instant::now() + stay))
        });
        let crowd = crowd.await;
        let seen = tokio::task::spawn_blocking(move || observing.join());
        let seen = seen.await.expect("it is not cancelled");
        (seen.expect("the observer does not panic"), crowd)
    }

    /// Stops the process; whether it still ran.
    pub(crate) fn stop(mut self) -> bool {
        let is_running = self.child.try_wait().is_ok_and(|ended| ended.is_none());
        self.end_process();
        is_running
    }

    fn end_process(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::KILL);
        let _ = self.child.wait();
        if let Some(group) = self.control_group.take() {
            let _ = fs::remove_dir(group);
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.end_process();
    }
}

/// The tenant, and the probe that asks `/ready`.
struct Observer {
    verify_url: String,
    ready_url: String,
    key: String,
    body: Value,
    seen: Arc<Mutex<Seen>>,
}

impl Observer {
    async fn observe(self, end: Instant) -> Seen {
        let (kept, fresh) = (build_client(true), build_client(false));
        // One request before the crowd comes: the key is in use.
        self.verify(&kept).await;
        let tenant = async {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / TENANT_RATE);
            let mut requests = Vec::new();
            while Instant::now() < end {
                ticks.tick().await;
                let client = if requests.len() % 2 == 0 {
                    &kept
                } else {
                    &fresh
                };
                requests.push(tokio::spawn(self.verify(client)));
            }
            futures_util::future::join_all(requests).await;
        };
        let probe = async {
            let mut ticks = tokio::time::interval(Duration::from_secs(1) / PROBE_RATE);
            while Instant::now() < end {
                ticks.tick().await;
                let answer = fresh.get(&self.ready_url).send().await;
                let mut seen = self.seen.lock();
                match answer {
                    Ok(answer) if answer.status() == 200 => seen.ready += 1,
                    Ok(answer) => seen.not_ready.push(answer.status().to_string()),
                    Err(error) => seen.not_ready.push(format!("{error:?}")),
                }
            }
        };
        tokio::join!(tenant, probe);
        std::mem::take(&mut *self.seen.lock())
    }

    fn verify(&self, client: &reqwest::Client) -> impl Future<Output = ()> + use<> {
        let request = client
            .post(&self.verify_url)
            .bearer_auth(&self.key)
            .json(&self.body);
        let seen = self.seen.clone();
        async move {
            let begun = Instant::now();
            let answer = request.send().await;
            let took = begun.elapsed();
            let mut seen = seen.lock();
            match answer {
                Ok(answer) if answer.status() == 200 => seen.answered.push(took),
                Ok(answer) => seen.failed.push(answer.status().to_string()),
                Err(error) => seen.failed.push(format!("{error:?}")),
            }
        }
    }
}

fn build_client(keeps_connections: bool) -> reqwest::Client {
    let client = reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(30));
    let client = if keeps_connections {
        client
    } else {
        client.pool_max_idle_per_host(0)
    };
    client.build().expect("a client can be built")
}

fn random_bytes() -> [u8; 32] {
    std::array::from_fn(|_| fastrand::u8(..))
}

async fn create_tenant(
    database: &Database,
    keyring: &Keyring,
    simulator: &Simulator,
) -> (TenantId, RawApiKey) {
    let now = Clock::system().now();
    let name = "A good tenant".parse().expect("a name");
    let tenant = store::create_tenant(database, &name, now)
        .await
        .expect("the database is there")
        .id;
    let key = RawApiKey::generate(ApiKeyEnvironment::Live);
    store::create_api_key(database, &tenant, None, ApiKeyEnvironment::Live, &key, now)
        .await
        .expect("the database is there");
    let apple = simulator.apple().api_key();
    let app = NewTransaction::default();
    let credentials = AppleCredentials {
        bundle_id: app
            .bundle_id
            .unwrap_or_else(|| "com.example.app".to_owned()),
        key_id: apple.key_id,
        issuer_id: apple.issuer_id,
        key: SigningKey::parse(apple.private_key.as_bytes()).expect("the simulator's own"),
        environment: EnvironmentChoice::Auto,
        app_apple_id: Some(1_234_567_890),
    };
    let new = apple::store::NewAppleCredentials {
        key_file: apple.private_key.as_bytes(),
        credentials: &credentials,
    };
    apple::store::set_credentials(database, keyring, &tenant, &new)
        .await
        .expect("the database is there");
    (tenant, key)
}

/// Puts the process into a control group of its own, where this user can make one.
fn limit_memory(process: u32) -> Option<PathBuf> {
    let group = PathBuf::from(format!("/sys/fs/cgroup/attesto-hostile-{process}"));
    fs::create_dir(&group).ok()?;
    let write = |name: &str, text: String| fs::write(group.join(name), text).is_ok();
    let is_limited = write("memory.max", MEMORY_LIMIT_BYTES.to_string())
        && write("cgroup.procs", process.to_string());
    if is_limited {
        Some(group)
    } else {
        let _ = fs::remove_dir(&group);
        None
    }
}
