//! Searches for leaked secrets: more than forty secrets are planted, every feature is used and
//! every failure provoked, and then every place is searched where a secret could remain.
//!
//! Real processes, a real Postgres that logs every statement with its parameters, and simulated
//! stores behind a proxy (so that secrets which Attesto creates itself, such as access tokens, are
//! known too). A secret must be nowhere. Data such as a purchase token may be in the tables that
//! keep it, and therefore in the Postgres log of this test.
//!
//! [`crate::secrets_in_output`] covers less, in this process, with a log at every level; this test
//! searches the whole environment.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attesto::base::clock::Clock;
use attesto::cli::colon_aliases;
use attesto::cli::command::Cli;
use attesto::config::read_env_var;
use attesto::embedded_postgres::binaries::PostgresBinaries;
use attesto::simulator::state::apple::NewTransaction;
use attesto::simulator::state::google::{NewSubscription, SubscriptionReplacement};
use attesto::simulator::state::google_notifications::PushSubscription;
use attesto::simulator::{Fault, JwsForgery, PushTokenFlaw, Simulator, SimulatorOptions};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::CommandFactory as _;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

use crate::chaos::postgres::{Options, Postgres};
use crate::world::folder::Folder;
use crate::world::receiver::{Place, Receiver, say};
use crate::world::secret_search::Needles;
use crate::world::wait::{HANG_LIMIT, finished, pause, wait_for};

/// Long enough for everything that happens soon.
/// The app of the tenant whose requests succeed.
const APP: &str = "com.example.app";
const APP_APPLE_ID: i64 = 1_234_567_890;
/// The tables that keep the stores' messages.
const EVENTS: &[&str] = &["webhook_events"];
/// The tables that keep purchase tokens.
const PURCHASES: &[&str] = &[
    "webhook_events",
    "purchase_links",
    "owed_acknowledgements",
    "subjects",
];
/// The tables that keep a callback's URL.
const CALLBACKS: &[&str] = &["webhook_configs", "webhook_deliveries", "webhook_health"];
/// The tables that keep a callback's answer.
const ANSWERS: &[&str] = &["webhook_deliveries"];

/// A planted secret or datum.
struct Plant {
    name: String,
    secret: Vec<u8>,
    /// The tables that may keep it; empty for a secret.
    kept_in: &'static [&'static str],
}

/// Recorded output and its place.
struct Said {
    place: String,
    what: Vec<u8>,
    /// The names of the plants that may be there.
    may_show: Vec<String>,
}

/// The plants and the recorded output.
#[derive(Clone, Default)]
struct Hunt(Arc<Mutex<(Vec<Plant>, Vec<Said>)>>);

impl Hunt {
    fn plant(&self, name: &str, secret: impl AsRef<[u8]>, kept_in: &'static [&'static str]) {
        let plant = Plant {
            name: name.to_owned(),
            secret: secret.as_ref().to_vec(),
            kept_in,
        };
        self.0.lock().unwrap().0.push(plant);
    }

    /// A text that does not occur by chance, too long to be mistaken for an id.
    fn secret(&self, name: &str) -> String {
        self.data(name, &[])
    }

    fn data(&self, name: &str, kept_in: &'static [&'static str]) -> String {
        let text: String = (0..48).map(|_| fastrand::alphanumeric()).collect();
        self.plant(name, &text, kept_in);
        text
    }

    /// The secret of a PEM file: its content, line by line.
    fn pem(&self, name: &str, pem: &str) {
        let lines = pem.lines().filter(|line| !line.starts_with("-----"));
        let der = STANDARD.decode(lines.collect::<String>()).unwrap();
        self.plant(name, der, &[]);
    }

    /// The secret number in a key of the curve P-256; its public key is in its certificate too.
    fn client_key(&self, name: &str, key: &rcgen::KeyPair) {
        const BEFORE: &[u8] = &[0x02, 0x01, 0x01, 0x04, 0x20];
        let der = key.serialize_der();
        let at = der.windows(BEFORE.len()).position(|part| part == BEFORE);
        let at = at.unwrap() + BEFORE.len();
        self.plant(name, &der[at..at + 32], &[]);
    }

    /// Claims and signature; every token has the same header.
    fn token(&self, name: &str, token: &str) {
        let (_, rest) = token.split_once('.').unwrap();
        self.plant(name, rest, &[]);
    }

    /// The signature; its payload is data.
    fn signed(&self, name: &str, jws: &str, kept_in: &'static [&'static str]) {
        let (_, signature) = jws.rsplit_once('.').unwrap();
        self.plant(name, signature, kept_in);
    }

    fn key(&self, name: &str) -> String {
        let bytes: Vec<u8> = (0..32).map(|_| fastrand::u8(..)).collect();
        self.plant(name, &bytes, &[]);
        STANDARD.encode(bytes)
    }

    /// Without the prefix that is shown in lists.
    fn api_key(&self, name: &str, raw: &str) {
        self.plant(name, &raw["attesto_live_".len() + 8..], &[]);
    }

    fn hear(&self, place: impl Into<String>, what: impl Into<Vec<u8>>) {
        self.hear_with(place, what, &[]);
    }

    fn hear_with(&self, place: impl Into<String>, what: impl Into<Vec<u8>>, may_show: &[&str]) {
        self.0.lock().unwrap().1.push(Said {
            place: place.into(),
            what: what.into(),
            may_show: may_show.iter().map(ToString::to_string).collect(),
        });
    }

    /// Every plant found where it does not belong.
    fn leaks(&self) -> Vec<String> {
        let (plants, said) = &*self.0.lock().unwrap();
        let mut needles = Needles::default();
        for (number, plant) in plants.iter().enumerate() {
            assert!(plant.secret.len() >= 8, "{} is empty", plant.name);
            needles.add(&plant.secret, number);
        }
        let mut leaks = Vec::new();
        for Said {
            place,
            what,
            may_show,
        } in said
        {
            for found in needles.found_in(what) {
                let Plant { name, kept_in, .. } = &plants[found.number];
                let table = place.strip_prefix("table ");
                let is_kept = table.is_some_and(|table| kept_in.contains(&table))
                    || (place == POSTGRES_LOG && !kept_in.is_empty());
                if !is_kept && !may_show.contains(name) {
                    leaks.push(format!("{name} is in {place}: {}", found.context));
                }
            }
        }
        leaks
    }

    /// Whether recorded output of this place contains the text.
    fn has(&self, place: &str, what: &str) -> bool {
        let said = &self.0.lock().unwrap().1;
        said.iter().any(|said| {
            said.place.starts_with(place) && String::from_utf8_lossy(&said.what).contains(what)
        })
    }
}

const POSTGRES_LOG: &str = "Postgres' log";
/// The trace collector, which may be sent what is shown nowhere else.
const COLLECTOR: &str = "what a collector of traces is sent";
const COLLECTORS_PASSWORD: &str = "the password of a collector of traces";

/// Records all traffic between Attesto and the stores.
struct Tap {
    address: String,
    heard: Arc<Mutex<Vec<u8>>>,
    _task: AbortOnDropHandle<()>,
}

impl Tap {
    async fn before(store: std::net::SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = Arc::<Mutex<Vec<u8>>>::default();
        let all = heard.clone();
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let all = all.clone();
                tokio::spawn(async move {
                    let far = TcpStream::connect(store).await?;
                    let ((a, b), (c, d)) = (near.into_split(), far.into_split());
                    let (one, two) = (listen(a, d, &all), listen(c, b, &all));
                    tokio::try_join!(one, two).map(|_| ())
                });
            }
        });
        Self {
            address,
            heard,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The texts that follow these words in the traffic, up to the first character that cannot be
    /// part of a token.
    fn after(&self, words: &str) -> BTreeSet<String> {
        let heard = self.heard.lock().unwrap();
        let text = String::from_utf8_lossy(&heard);
        let is_part = |letter: char| letter.is_ascii_alphanumeric() || "-_.+/=~".contains(letter);
        let found = text.split(words).skip(1).map(|rest| {
            let end = rest.find(|letter| !is_part(letter)).unwrap_or(rest.len());
            rest[..end].to_owned()
        });
        found.filter(|token| token.len() > 20).collect()
    }
}

async fn listen(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    all: &Mutex<Vec<u8>>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if read == 0 {
            return to.shutdown().await;
        }
        all.lock().unwrap().extend_from_slice(&buffer[..read]);
        to.write_all(&buffer[..read]).await?;
    }
}

/// A server process whose output goes to a file.
struct Server {
    child: tokio::process::Child,
    pid: u32,
    log: PathBuf,
    url: String,
    metrics: String,
}

impl Server {
    fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Stops it, waits for its end, and records its output.
    async fn end(mut self, hunt: &Hunt, log: &str, may_show: &[&str]) {
        self.look(hunt);
        kill_process(Pid::from_raw(self.pid.cast_signed()).unwrap(), Signal::TERM).unwrap();
        let ended = finished("the server ends", self.child.wait()).await;
        assert!(ended.unwrap().success(), "{}", self.said());
        hunt.hear_with(log, self.said(), may_show);
    }

    /// Records what other users see of the process.
    fn look(&self, hunt: &Hunt) {
        let of = |name: &str| fs::read(format!("/proc/{}/{name}", self.pid));
        hunt.hear("the command line of a service", of("cmdline").unwrap());
        // Only root may read these files, as intended.
        if let Ok(environment) = of("environ") {
            hunt.hear("the environment of a service", environment);
        }
    }
}

/// The whole environment.
struct Scene {
    hunt: Hunt,
    folder: Folder,
    postgres: Postgres,
    simulator: Simulator,
    tap: Tap,
    /// The collector of traces.
    collector: Receiver,
    /// The environment of an administrator, and of a server.
    environment: Vec<(String, String)>,
    client: reqwest::Client,
    servers: usize,
}

/// The output of a command.
#[derive(Debug)]
struct Ran {
    exit: Option<i32>,
    said: String,
    complained: String,
}

impl Ran {
    fn ok(self) -> Self {
        assert_eq!(self.exit, Some(0), "{self:?}");
        self
    }

    fn json(&self) -> Value {
        serde_json::from_str(self.said.lines().next().unwrap_or_default()).unwrap()
    }
}

impl Scene {
    async fn set() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let hunt = Hunt::default();
        let folder = Folder::new();
        let password = hunt.secret("the database's password");
        let settings = [
            "log_statement=all",
            "log_parameter_max_length_on_error=-1",
            "log_error_verbosity=verbose",
            "log_connections=on",
            "log_line_prefix=%m %p %a %u %r ",
            "track_activity_query_size=65536",
            "fsync=off",
        ];
        let options = Options {
            password: Some(password),
            settings: settings.map(str::to_owned).to_vec(),
            on_volume: false,
        };
        let postgres = tokio::task::spawn_blocking(|| Postgres::start_with(options))
            .await
            .unwrap();
        let simulator = Simulator::start(SimulatorOptions::new(Clock::system()))
            .await
            .unwrap();
        let tap = Tap::before(simulator.address()).await;
        let collector = Receiver::answering(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let mut scene = Self {
            hunt,
            folder,
            postgres,
            tap,
            collector,
            environment: Vec::new(),
            client: reqwest::Client::builder()
                .no_proxy()
                .timeout(HANG_LIMIT)
                .build()
                .unwrap(),
            servers: 0,
            simulator,
        };
        let root = scene.file("root.pem", &scene.simulator.apple_root_pem());
        let (retired, other) = (
            scene.hunt.key("a retired encryption key"),
            scene.hunt.key("another retired encryption key"),
        );
        let active = scene.hunt.key("the encryption key");
        let password = scene.hunt.secret(COLLECTORS_PASSWORD);
        let real = scene.simulator.address().to_string();
        for (name, value) in scene.simulator.environment_variables() {
            let value = value.replace(&real, &scene.tap.address);
            scene.set_variable(name, &value);
        }
        for (name, content) in [
            ("DATABASE_URL", scene.postgres.url()),
            ("ATTESTO_ENCRYPTION_KEY", format!("2:{active}")),
            (
                "ATTESTO_ENCRYPTION_KEYS_RETIRED",
                format!("1:{retired},9:{other}"),
            ),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                format!("Authorization=Bearer%20{password}"),
            ),
        ] {
            let path = scene.file(name, &content);
            scene.set_variable(&format!("{name}_FILE"), &path);
        }
        scene.set_variable("APPLE_ROOT_CERTIFICATES", &root);
        let collector = format!("http://{}", scene.collector.address);
        scene.set_variable("OTEL_EXPORTER_OTLP_ENDPOINT", &collector);
        scene.set_variable("LOG_LEVEL", "trace");
        scene.set_variable("PATH", "/usr/bin:/bin");
        let programs = scene.programs();
        scene.set_variable("ATTESTO_PG_BIN", &programs);
        scene
    }

    fn set_variable(&mut self, name: &str, value: &str) {
        self.environment.retain(|(known, _)| known != name);
        self.environment.push((name.to_owned(), value.to_owned()));
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.folder.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path.display().to_string()
    }

    /// Wrappers of `pg_dump` and `pg_restore` that record their arguments.
    fn programs(&self) -> String {
        let folder = self.folder.join("bin");
        fs::create_dir(&folder).unwrap();
        // Next to the real binary, not next to a link to it.
        let named = read_env_var("ATTESTO_PG_BIN").map(PathBuf::from);
        let server = PostgresBinaries::find_all(named.as_deref(), read_env_var("PATH").as_deref())
            .unwrap()
            .swap_remove(0)
            .program_path("postgres");
        let server = fs::canonicalize(server).unwrap();
        for name in ["pg_dump", "pg_restore"] {
            let real = server.with_file_name(name);
            let note = self.folder.join("called");
            let script = format!(
                "#!/bin/sh\necho {name} \"$@\" >>{}\nexec {} \"$@\"\n",
                note.display(),
                real.display()
            );
            let path = folder.join(name);
            fs::write(&path, script).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        folder.display().to_string()
    }

    /// Runs a command and records its output, with the plants that may be in it.
    async fn run_as(
        &self,
        words: &[&str],
        input: &str,
        changes: &[(&str, &str)],
        may_show: &[&str],
    ) -> Ran {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_attesto"));
        command
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        for (name, value) in changes {
            if value.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
        let mut child = command
            .current_dir(&*self.folder)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        // The process may end without reading.
        let _ = child
            .stdin
            .take()
            .unwrap()
            .write_all(input.as_bytes())
            .await;
        let what = format!("{words:?} ends");
        let output = finished(&what, child.wait_with_output()).await.unwrap();
        let ran = Ran {
            exit: output.status.code(),
            said: String::from_utf8(output.stdout).unwrap(),
            complained: String::from_utf8(output.stderr).unwrap(),
        };
        let name: Vec<_> = words.iter().take(2).map(|word| short(word)).collect();
        let place = format!("what `attesto {}` says", name.join(" "));
        let all = format!("{}\n{}", ran.said, ran.complained);
        self.hunt.hear_with(place, all, may_show);
        ran
    }

    async fn run(&self, words: &[&str]) -> Ran {
        self.run_as(words, "", &[], &[]).await
    }

    async fn serve(&mut self, changes: &[(&str, &str)]) -> Server {
        self.servers += 1;
        let log = self.folder.join(format!("log-{}", self.servers));
        let mut command = tokio::process::Command::new("/bin/sh");
        command
            // As a person would who debugs a crash.
            .args(["-c", "ulimit -c unlimited 2>/dev/null; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_attesto"))
            .args(["serve", "--port=0", "--bind-address=127.0.0.1"])
            .current_dir(&*self.folder)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        for (name, value) in changes {
            if value.is_empty() {
                command.env_remove(name);
            } else {
                command.env(name, value);
            }
        }
        let output = File::create(&log).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut server = Server {
            pid: child.id().unwrap(),
            child,
            log,
            url: String::new(),
            metrics: String::new(),
        };
        let line = wait_for("it listens", async || {
            let said = server.said();
            let line = said.lines().find(|line| line.contains(r#""listening""#));
            line.and_then(|line| serde_json::from_str::<Value>(line).ok())
        })
        .await;
        server.url = format!("http://127.0.0.1:{}", line["port"]);
        server.metrics = format!(
            "http://{}/metrics",
            line["metrics"].as_str().unwrap_or_default()
        );
        server
    }

    async fn sql(&self, statement: &str) -> Vec<String> {
        let mut connection = PgConnection::connect(&self.postgres.url()).await.unwrap();
        let rows = sqlx::query_scalar(AssertSqlSafe(statement.to_owned()))
            .fetch_all(&mut connection)
            .await;
        connection.close().await.unwrap();
        rows.unwrap()
    }

    /// Sends a request and records the answer.
    async fn ask(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let (status, text) = self.ask_with(request, &[]).await;
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    async fn ask_with(&self, request: reqwest::RequestBuilder, may_show: &[&str]) -> (u16, String) {
        let answer = request.send().await.unwrap();
        let (status, headers) = (answer.status(), format!("{:?}", answer.headers()));
        let body = answer.text().await.unwrap();
        self.hunt.hear_with(
            "an answer of the service",
            format!("{status} {headers} {body}"),
            may_show,
        );
        (status.as_u16(), body)
    }

    async fn verify(&self, server: &Server, store: &str, key: &str, body: &Value) -> (u16, Value) {
        let url = format!("{}/v1/{store}/verify", server.url);
        self.ask(self.client.post(url).bearer_auth(key).json(body))
            .await
    }
}

/// A prefix that is too short to be a secret.
fn short(word: &str) -> &str {
    &word[..word.floor_char_boundary(24)]
}

/// A tenant and its API key.
struct Tenant {
    id: String,
    key: String,
    app: &'static str,
}

impl Scene {
    async fn tenant(&self, name: &str, app: &'static str) -> Tenant {
        let id = self.run(&["tenant", "create", "--name", name]).await.ok();
        let id = id.json()["id"].as_str().unwrap().to_owned();
        let key = self
            .api_key(&id, "live", &format!("the API key of {app}"))
            .await;
        Tenant { id, key, app }
    }

    /// A new API key, printed once, and a plant from then on.
    async fn api_key(&self, tenant: &str, environment: &str, name: &str) -> String {
        let words = ["key", "create", tenant, "--env", environment];
        let made = self.run_as(&words, "", &[], &[name]).await.ok();
        let raw = made.json()["rawKey"].as_str().unwrap().to_owned();
        self.hunt.api_key(name, &raw);
        raw
    }

    async fn set_apple(
        &self,
        tenant: &Tenant,
        path: &str,
        [key_id, issuer]: [&str; 2],
        sealing: &[(&str, &str)],
    ) -> Ran {
        let number = APP_APPLE_ID.to_string();
        let words = [
            "apple",
            "set-credentials",
            &tenant.id,
            "--bundle-id",
            tenant.app,
            "--key-id",
            key_id,
            "--issuer-id",
            issuer,
            "--app-apple-id",
            &number,
            "--key-path",
            path,
        ];
        self.run_as(&words, "", sealing, &[]).await
    }

    async fn set_google(&self, tenant: &Tenant, path: &str, sealing: &[(&str, &str)]) -> Ran {
        let audience = format!("--pubsub-audience=https://{}", tenant.app);
        let account = self.simulator.google().push_account();
        let account = format!("--pubsub-service-account={account}");
        let words = [
            "google",
            "set-credentials",
            &tenant.id,
            "--package-name",
            tenant.app,
            &audience,
            &account,
            "--service-account-path",
            path,
        ];
        self.run_as(&words, "", sealing, &[]).await
    }

    /// Store credentials: valid ones, and those they replaced.
    async fn credentials(&self, tenant: &Tenant, sealing: &[(&str, &str)]) {
        let apple = self.simulator.apple();
        for (name, key) in [
            (
                "an Apple key that was replaced",
                apple.create_api_key().unwrap(),
            ),
            ("an Apple key", apple.api_key()),
        ] {
            let name = format!("{name} of {}", tenant.app);
            self.hunt.pem(&name, &key.private_key);
            let path = self.file("key.p8", &key.private_key);
            let ids = [key.key_id.as_str(), &key.issuer_id];
            self.set_apple(tenant, &path, ids, sealing).await.ok();
        }
        for (name, account) in [
            ("a service account that was replaced", self.account(tenant)),
            ("a service account", self.simulator.google_service_account()),
        ] {
            let name = format!("{name} of {}", tenant.app);
            self.hunt
                .pem(&name, account["private_key"].as_str().unwrap());
            let path = self.file("account.json", &account.to_string());
            self.set_google(tenant, &path, sealing).await.ok();
        }
    }

    fn account(&self, tenant: &Tenant) -> Value {
        let name = tenant.app.replace('.', "-");
        let new = self
            .simulator
            .google()
            .create_service_account(&name)
            .unwrap();
        new.to_key_file(self.simulator.google_token_url().as_str())
    }

    /// Refused credentials are as secret as accepted ones.
    async fn refused_credentials(&self, tenant: &Tenant) {
        const IDS: [&str; 2] = ["2X9R4HXF34", "57246542-96fe-1a63-e053-0824d011072a"];
        let p8 = self.simulator.apple().create_api_key().unwrap().private_key;
        self.hunt.pem("an Apple key that is refused", &p8);
        let account = self.simulator.google_service_account().to_string();
        for (name, content) in [
            ("cut.p8", &p8[..p8.len() - 60]),
            ("sec1.p8", &p8.replace("PRIVATE KEY", "EC PRIVATE KEY")),
            ("other.p8", account.as_str()),
        ] {
            let path = self.file(name, content);
            let refused = self.set_apple(tenant, &path, IDS, &[]).await;
            assert_eq!(refused.exit, Some(2), "{refused:?}");
        }
        for (name, content) in [
            ("cut.json", &account[..account.len() - 60]),
            ("begone.json", &account.replace("-----BEGIN", "-----BEGONE")),
            ("other.json", p8.as_str()),
        ] {
            let refused = self
                .set_google(tenant, &self.file(name, content), &[])
                .await;
            assert_eq!(refused.exit, Some(2), "{refused:?}");
        }
        // The secret itself instead of the path of its file.
        for secret in [&p8, &p8.replace('\n', ""), &account] {
            for refused in [
                self.set_apple(tenant, secret, IDS, &[]).await,
                self.set_google(tenant, secret, &[]).await,
            ] {
                assert_ne!(refused.exit, Some(0), "{refused:?}");
            }
        }
    }

    /// A callback with a secret in its URL, and five current or former signing secrets.
    async fn callback(&self, tenant: &Tenant, address: &str, sealing: &[(&str, &str)]) {
        let of = |what: &str| format!("{what} of {}", tenant.app);
        let query = self
            .hunt
            .data(&of("what is in a callback's address"), CALLBACKS);
        let url = format!("{address}?token={query}");
        let shown = of("what is in a callback's address");
        let set = async |more: &[&str], may_show: &[&str]| {
            let words = [&["webhook", "set-config", &tenant.id], more].concat();
            let may_show = [&[shown.as_str()], may_show].concat();
            self.run_as(&words, "", sealing, &may_show).await
        };
        let name = of("the webhook secret that was made");
        let made = set(&["--callback-url", &url], &[&name]).await.ok();
        let made = made.json()["secret"].as_str().unwrap().to_owned();
        self.hunt
            .plant(&name, made.trim_start_matches("whsec_"), &[]);
        for what in [
            "a retired webhook secret",
            "the previous webhook secret",
            "the webhook secret",
        ] {
            let path = self.file("secret", &self.hunt.secret(&of(what)));
            set(&["--secret-path", &path], &[]).await.ok();
            if what.starts_with("the previous") {
                // At most three sign at once.
                let words = ["webhook", "retire-secret", &tenant.id, "--number", "2"];
                self.run_as(&words, "", sealing, &[]).await.ok();
            }
        }
        self.client_certificates(tenant, &shown, sealing).await;
    }

    /// Client certificates: one that is replaced, and the one that is shown. The certificate's file holds the key too.
    async fn client_certificates(&self, tenant: &Tenant, may_show: &str, sealing: &[(&str, &str)]) {
        for what in ["a replaced client key", "the client key"] {
            let made = rcgen::generate_simple_self_signed(vec!["attesto".to_owned()]).unwrap();
            let key = made.signing_key.serialize_pem();
            let name = format!("{what} of {}", tenant.app);
            self.hunt.client_key(&name, &made.signing_key);
            let both = self.file("client.pem", &(made.cert.pem() + &key));
            let words = ["webhook", "set-config", &tenant.id];
            let pair = [
                "--client-certificate-path",
                &both,
                "--client-key-path",
                &both,
            ];
            let words = [&words[..], &pair].concat();
            self.run_as(&words, "", sealing, &[may_show]).await.ok();
        }
    }

    async fn refused_callbacks(&self, tenant: &Tenant) {
        let made = rcgen::generate_simple_self_signed(vec!["attesto".to_owned()]).unwrap();
        let key = made.signing_key.serialize_pem();
        let other = rcgen::KeyPair::generate().unwrap();
        self.hunt
            .client_key("a client key that is refused", &made.signing_key);
        self.hunt
            .client_key("the key of another client certificate", &other);
        let other = other.serialize_pem();
        let both = self.file("both.pem", &(made.cert.pem() + &key));
        for file in [
            self.file("other.pem", &other),
            self.file("cut.pem", &key[..key.len() - 60]),
        ] {
            let words = ["webhook", "set-config", &tenant.id];
            let pair = [
                "--client-certificate-path",
                &both,
                "--client-key-path",
                &file,
            ];
            let refused = self.run(&[&words[..], &pair].concat()).await;
            assert_ne!(refused.exit, Some(0), "{refused:?}");
        }
        let set = async |more: [&str; 2]| {
            let words = ["webhook", "set-config", &tenant.id, more[0], more[1]];
            let refused = self.run(&words).await;
            assert_ne!(refused.exit, Some(0), "{refused:?}");
        };
        let long = self.hunt.secret("a webhook secret that is refused");
        let long = long.repeat(20);
        let path = self.file("long", &long);
        for more in [
            ["--secret-path", &path],
            ["--secret", &long],
            ["--secret-path", &long],
        ] {
            set(more).await;
        }
        let password = self.hunt.secret("a password in a callback's address");
        for url in [
            format!("https://ada:{password}@example.com/hook"),
            format!("https://{password}@example.com/hook"),
            format!("https://example.com/#{password}"),
            format!("ftp://example.com/{password}"),
            format!("https://exam ple.com/{password}"),
            format!("https://10.0.0.1/{password}"),
            format!("https://{password}.internal/"),
        ] {
            set(["--callback-url", &url]).await;
        }
    }

    /// Verifications, valid and invalid, and malformed requests.
    async fn questions(&self, server: &Server, tenant: &Tenant, others: &[String]) {
        let key = tenant.key.as_str();
        let apple = self.simulator.apple();
        let new = NewTransaction {
            bundle_id: Some(tenant.app.to_owned()),
            ..NewTransaction::default()
        };
        let bought = apple.create_transaction(new).unwrap().transaction_id;
        let signed = apple.sign_transaction(&bought).unwrap();
        self.hunt.signed("a signed transaction", &signed, &[]);
        for forgery in [
            JwsForgery::AlteredPayload,
            JwsForgery::WrongRoot,
            JwsForgery::OtherKey,
        ] {
            let forged = apple.forge_transaction(&bought, forgery).unwrap();
            self.hunt
                .signed(&format!("a transaction with {forgery:?}"), &forged, &[]);
            let body = json!({ "signedTransaction": forged });
            assert_eq!(
                self.verify(server, "apple", key, &body).await.1["valid"],
                false
            );
        }
        let token = self.hunt.data("a purchase token", PURCHASES);
        let play = self.simulator.google();
        let new = NewSubscription {
            purchase_token: Some(token.clone()),
            package_name: Some(tenant.app.to_owned()),
            ..NewSubscription::default()
        };
        play.buy_subscription(new).unwrap();
        let newer = self
            .hunt
            .data("the purchase token of an upgrade", PURCHASES);
        let by = SubscriptionReplacement {
            purchase_token: Some(newer.clone()),
            ..SubscriptionReplacement::default()
        };
        play.replace_subscription(&token, by).unwrap();
        let subscription = |token: &str| json!({ "packageName": tenant.app, "type": "subscription", "purchaseToken": token });
        for (store, body) in [
            ("apple", json!({ "signedTransaction": signed })),
            ("apple", json!({ "transactionId": bought })),
            ("google", subscription(&newer)),
        ] {
            let url = format!("{}/v1/{store}/verify", server.url);
            let request = self.client.post(url).bearer_auth(key).json(&body);
            // The caller knows these, and gets them back with the store's answer.
            let may_show = [
                "a purchase token",
                "the purchase token of an upgrade",
                "a signed transaction",
            ];
            let (status, answer) = self.ask_with(request, &may_show).await;
            assert!(
                status == 200 && answer.contains(r#""valid":true"#),
                "{answer}"
            );
        }
        let unknown = self.hunt.secret("a purchase token that nobody knows");
        let body = self.hunt.secret("a body that makes no sense");
        for (store, sent) in [
            ("google", subscription(&unknown)),
            ("google", subscription(key)),
            (
                "google",
                json!({ "packageName": body, "type": body, "purchaseToken": [unknown] }),
            ),
            (
                "google",
                json!({ "packageName": tenant.app, "type": "product", "productId": body, "purchaseToken": unknown }),
            ),
            ("apple", json!({ "transactionId": body })),
            (
                "apple",
                json!({ "transactionId": "1", "expectedAppUserId": body }),
            ),
            (
                "apple",
                json!({ "signedTransaction": body, "environment": signed }),
            ),
            (
                "apple",
                json!({ "signedTransaction": format!("{signed}{body}") }),
            ),
            ("apple", json!({ body.as_str(): body })),
            ("apple", json!([body, key])),
            ("apple", json!({ "signedTransaction": body.repeat(2000) })),
        ] {
            self.verify(server, store, key, &sent).await;
        }
        self.strangers(server, others).await;
    }

    /// Unauthenticated requests, each with a secret in it.
    async fn strangers(&self, server: &Server, keys: &[String]) {
        let url = |path: &str| format!("{}{path}", server.url);
        let post = |path: &str| self.client.post(url(path));
        let secret = |name: &str| self.hunt.secret(name);
        let right = json!({ "transactionId": "1" });
        for key in keys {
            self.verify(server, "apple", key, &right).await;
        }
        let unknown = format!("attesto_live_{}", &secret("a key of nobody")[..43]);
        let odd = format!("attesto_live_{}!", secret("a key that is no key"));
        for key in [&unknown, &odd] {
            assert_eq!(self.verify(server, "apple", key, &right).await.0, 401);
        }
        let (body, cut) = (
            secret("a body that is no JSON"),
            secret("a body that is cut off"),
        );
        let (query, path) = (secret("what is in a query"), secret("what is in a path"));
        let (cookie, header) = (secret("a cookie"), secret("an odd header"));
        let (basic, scheme) = (secret("a password"), secret("an odd authorization"));
        let (agent, id) = (secret("a user agent"), secret("the id of a request"));
        let encoded = STANDARD.encode(format!("ada:{basic}"));
        for request in [
            post("/v1/apple/verify").body(body.clone()),
            post("/v1/apple/verify").bearer_auth(&keys[0]).body(body),
            post("/v1/apple/verify")
                .bearer_auth(&keys[0])
                .header("content-type", "application/json")
                .body(format!(r#"{{"transactionId":"{cut}"#)),
            post(&format!("/v1/apple/verify?key={query}")).json(&right),
            post(&format!("/v1/{path}")).json(&right),
            self.client.get(url(&format!("/{path}?{query}"))),
            post(&format!("/v1/webhooks/apple/{path}")).json(&right),
            post(&format!("/v1/webhooks/google/{path}"))
                .bearer_auth(&path)
                .json(&right),
            post("/v1/apple/verify")
                .header("cookie", format!("session={cookie}"))
                .json(&right),
            post("/v1/apple/verify")
                .header("x-api-key", &header)
                .header(&*header, "1")
                .json(&right),
            post("/v1/apple/verify")
                .header("authorization", format!("Basic {encoded}"))
                .json(&right),
            post("/v1/apple/verify")
                .header("authorization", &scheme)
                .json(&right),
            post("/v1/google/verify")
                .header("user-agent", &agent)
                .json(&right),
            post("/v1/google/verify")
                .header("x-forwarded-for", &header)
                .header("referer", format!("https://example.com/{query}"))
                .header("traceparent", &id)
                .json(&right),
            post("/v1/apple/verify")
                .header(
                    "traceparent",
                    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                )
                .header("tracestate", format!("vendor={id}"))
                .header("baggage", format!("user={id}"))
                .json(&right),
        ] {
            assert_ne!(self.ask(request).await.0, 200);
        }
    }

    /// Store notifications, genuine and forged.
    async fn notifications(&self, server: &Server, tenant: &Tenant) {
        let play = self.simulator.google();
        let at = format!("{}/v1/webhooks/google/{}", server.url, tenant.id);
        let to = PushSubscription {
            manual: true,
            audience: Some(format!("https://{}", tenant.app)),
            ..PushSubscription::for_endpoint(&at)
        };
        play.set_push_subscription(tenant.app, to).unwrap();
        let token = self
            .hunt
            .data("the purchase token of a notification", PURCHASES);
        let new = NewSubscription {
            purchase_token: Some(token),
            package_name: Some(tenant.app.to_owned()),
            ..NewSubscription::default()
        };
        play.buy_subscription(new).unwrap();
        let bought = play.published_messages().pop().unwrap();
        let odd = self.hunt.data("what an odd notification says", EVENTS);
        let odd = json!({ "packageName": tenant.app, "version": "1.0", "eventTimeMillis": "1", odd.as_str(): odd });
        for message in [
            bought,
            play.publish_test_notification(tenant.app),
            play.publish_message(tenant.app, odd.to_string().as_bytes()),
        ] {
            let body = json!({
                "message": { "data": message.data, "messageId": message.message_id },
                "subscription": "projects/x/subscriptions/y",
            });
            // The genuine one last, so that all of them are processed.
            let flaws = PushTokenFlaw::ALL.into_iter().map(Some);
            for flaw in flaws.chain([None]) {
                let mut request = self.client.post(&at).json(&body);
                if let Some(token) = play.push_token(tenant.app, flaw) {
                    if flaw != Some(PushTokenFlaw::NotAToken) {
                        self.hunt
                            .token(&format!("a push's token, {flaw:?}"), &token);
                    }
                    request = request.bearer_auth(token);
                }
                let (status, answer) = self.ask(request).await;
                assert_eq!(status == 200, flaw.is_none(), "{flaw:?}: {answer}");
            }
        }

        let apple = self.simulator.apple();
        let at = format!("{}/v1/webhooks/apple/{}", server.url, tenant.id);
        for number in 0..2 {
            let new = NewTransaction {
                bundle_id: Some(tenant.app.to_owned()),
                ..NewTransaction::default()
            };
            let bought = apple.create_transaction(new).unwrap().transaction_id;
            let inside = apple.sign_transaction(&bought).unwrap();
            self.hunt
                .signed("the transaction of a notification", &inside, EVENTS);
            let payload = json!({
                "notificationType": "DID_RENEW",
                "notificationUUID": format!("00000000-0000-4000-8000-{number:012}"),
                "version": "2.0",
                "signedDate": Clock::system().now().as_millis(),
                "data": {
                    "appAppleId": APP_APPLE_ID,
                    "bundleId": tenant.app,
                    "bundleVersion": "1",
                    "environment": "Sandbox",
                    "signedTransactionInfo": inside,
                    "status": 1,
                },
            });
            let payload = payload.as_object().unwrap();
            let genuine = apple.sign_payload(payload);
            self.hunt.signed("a signed payload", &genuine, EVENTS);
            for forgery in [
                JwsForgery::WrongRoot,
                JwsForgery::AlteredSignature,
                JwsForgery::OtherKey,
            ] {
                let authority = self.simulator.identity().certificate_authority();
                let forged = authority.forge_jws(forgery, payload);
                self.hunt
                    .signed(&format!("a payload with {forgery:?}"), &forged, &[]);
                let body = json!({ "signedPayload": forged });
                let (status, answer) = self.ask(self.client.post(&at).json(&body)).await;
                assert!(status >= 400, "{forgery:?}: {answer}");
            }
            let body = json!({ "signedPayload": genuine });
            let (status, answer) = self.ask(self.client.post(&at).json(&body)).await;
            assert_eq!(status, 200, "{answer}");
        }
    }

    /// The stores refuse, fail, and repeat requests in their error messages.
    async fn mishaps(&self, server: &Server, tenant: &Tenant) {
        let key = tenant.key.as_str();
        let unlucky = self
            .hunt
            .secret("a purchase token that is repeated by Play");
        let said = self.hunt.secret("what a store says when it breaks");
        let bought = self.hunt.secret("an access token of another kind");
        let body =
            json!({ "packageName": tenant.app, "type": "subscription", "purchaseToken": unlucky });
        let refusal = json!({ "error": said, "error_description": unlucky }).to_string();
        let echo = |status: u16| {
            let message = format!("No purchase {unlucky}; {said}");
            json!({ "error": { "code": status, "message": message, "status": said, "errors": [{ "reason": said }] } })
                .to_string()
        };
        let token = json!({ "access_token": bought, "expires_in": 3600 }).to_string();
        for fault in [
            Fault::at_place("apple").status(500).times(0).body(&said),
            Fault::at_place("apple").status(401).times(0).body(&said),
            Fault::at_place("apple").body(&json!({ "signedTransactionInfo": said }).to_string()),
            Fault::at_place("apple").body(&json!({ said.as_str(): 7 }).to_string()),
            Fault::at_place("apple").cut().times(0),
            Fault::at_place("google/play").status(400).body(&echo(400)),
            Fault::at_place("google/play")
                .status(401)
                .times(2)
                .body(&echo(401)),
            Fault::at_place("google/play").status(403).body(&echo(403)),
            Fault::at_place("google/play")
                .status(500)
                .times(0)
                .body(&echo(500)),
            Fault::at_place("google/play").body(&json!({ "startTime": said }).to_string()),
            Fault::at_place("google/play").cut().times(0),
            Fault::at_place("google/token")
                .times(0)
                .status(400)
                .body(&echo(400)),
            Fault::at_place("google/token")
                .times(0)
                .status(401)
                .body(&refusal),
            Fault::at_place("google/token").times(0).body(&said),
            Fault::at_place("google/token").times(2).body(&token),
        ] {
            self.simulator.clear_faults();
            self.simulator.google().expire_access_tokens();
            self.simulator.add_fault(fault).unwrap();
            self.verify(server, "apple", key, &json!({ "transactionId": "1" }))
                .await;
            self.verify(server, "google", key, &body).await;
        }
        self.simulator.clear_faults();
        self.simulator.google().expire_access_tokens();
    }
}

impl Scene {
    /// Every command with valid arguments.
    #[expect(clippy::too_many_lines, reason = "a long list of commands")]
    async fn commands(&self, server: &Server, good: &Tenant, bad: &Tenant) {
        let id = good.id.as_str();
        let answers = ["what a callback answers", "what is in a callback's address"];
        let apps = [good, bad].map(|tenant| tenant.app);
        let shown: Vec<String> = answers
            .iter()
            .flat_map(|what| apps.map(|app| format!("{what} of {app}")))
            .collect();
        let mut shown: Vec<&str> = shown.iter().map(String::as_str).collect();
        shown.push("the purchase token of a notification");
        let file = self.folder.join("dump").display().to_string();
        let body = self.file("body", &self.hunt.secret("the body of a delivery"));
        let secret = self.file(
            "signing",
            &self.hunt.secret("a receiver's copy of a secret"),
        );
        let signed = self
            .simulator
            .apple()
            .create_transaction(NewTransaction::default());
        let signed = self
            .simulator
            .apple()
            .sign_transaction(&signed.unwrap().transaction_id);
        let signed = signed.unwrap();
        self.hunt
            .signed("a transaction that is inspected", &signed, &[]);
        let signed = self.file("signed", &signed);
        let token = self.file(
            "token",
            &self.hunt.secret("a purchase token that is asked for"),
        );
        let event = self
            .sql("select id from webhook_events order by id limit 1")
            .await;
        let url = format!("--url={}", server.url);
        for words in [
            &["migrate"][..],
            &["migrate", "--check"],
            &["tenant", "list"],
            &["tenant", "rename", id, "--name", "Another name"],
            &["tenant", "set-limits", id, "--burst", "1000"],
            &["tenant", "deactivate", &bad.id],
            &["tenant", "activate", &bad.id],
            &["key", "list", id],
            &["apple", "get-credentials", id],
            &["apple", "rollback-credentials", id],
            &["apple", "rollback-credentials", id],
            &["google", "get-credentials", id],
            &["google", "rollback-credentials", id],
            &["google", "rollback-credentials", id],
            &["webhook", "get", id],
            &["webhook", "get", &bad.id],
            &["webhook", "ping", id],
            &["webhook", "ping", &bad.id],
            &["webhook", "allow", id, "10.1.0.0/16:443"],
            &["webhook", "disallow", id, "10.1.0.0/16:443"],
            &["webhook", "list-events", id],
            &["webhook", "list-deliveries", id],
            &["webhook", "list-deliveries", &bad.id],
            &["webhook", "redeliver", &event[0]],
            &[
                "webhook",
                "redeliver",
                "--tenant",
                id,
                "--since",
                "1h",
                "--dry-run",
            ],
            &[
                "webhook",
                "redeliver",
                "--tenant",
                id,
                "--since",
                "1h",
                "--reason",
                "a try",
            ],
            &[
                "webhook",
                "verify-signature",
                "--secret-path",
                &secret,
                "--body-path",
                &body,
                "--signature",
                "t=1,v1=00",
            ],
            &["deliveries", "hold"],
            &["deliveries", "status"],
            &["deliveries", "release"],
            &["tail", "--tenant", id, "--no-follow", "--last", "100"],
            &["tail", "--tenant", &bad.id, "--no-follow", "--last", "100"],
            &["audit", "list", id, "--limit", "500"],
            &["audit", "list", id, "--identifier-path", &token],
            &["audit", "operators", "list", "--limit", "500"],
            &["audit", "verify"],
            &["verify", "apple", id, "--signed-transaction-path", &signed],
            &["verify", "apple", id, "--transaction-id", "1"],
            &[
                "verify",
                "google",
                id,
                "--type",
                "subscription",
                "--purchase-token-path",
                &token,
            ],
            &["inspect", &signed],
            &["inspect", &body],
            &["health", &url],
            &["doctor"],
            &["doctor", "--offline"],
            &["config", "check"],
            &["encryption", "status"],
            &["encryption", "rotate", "--dry-run"],
            &["encryption", "rotate"],
            &["jobs", "list"],
            &["jobs", "run", "retention"],
            &["jobs", "run", "reseal"],
            &["prune", "--dry-run"],
            &["prune"],
            &["backup", "create", "--file", &file],
            &["backup", "create", "--file", &file],
            &["backup", "restore", &file],
            &["backup", "verify", &file],
            &["db", "grant-readonly", "--user", "reader"],
        ] {
            // An operator sees a tenant's events, and the answer to a verification.
            let may_show: &[&str] = match words[0] {
                "webhook" | "tail" => &shown,
                "verify" => &["a transaction that is inspected"],
                _ => &[],
            };
            let ran = self.run_as(words, "", &[], may_show).await;
            assert!(
                ran.exit
                    .is_some_and(|code| code < 2 && (code == 0 || words.get(1) != Some(&"verify")))
                    || matches!(words[0], "doctor" | "inspect"),
                "{words:?}: {ran:?}"
            );
            let lists = ["list", "get", "status", "check"];
            if words
                .iter()
                .any(|word| lists.iter().any(|list| word.starts_with(list)))
            {
                let table = [&["--output", "table"], words].concat();
                self.run_as(&table, "", &[], may_show).await;
            }
        }
        let made = "an encryption key that was just made";
        let key = self
            .run_as(
                &["encryption", "generate-key", "--id", "3"],
                "",
                &[],
                &[made],
            )
            .await
            .ok();
        let key = key.said.trim().trim_matches('"').to_owned();
        let (_, bytes) = key.rsplit_once(':').unwrap();
        self.hunt
            .plant(made, bytes.trim_end_matches(['"', '}']), &[]);
        self.moves(good).await;
        let manifest = fs::read(self.folder.join("dump.manifest.json")).unwrap();
        self.hunt.hear("the manifest of a backup", manifest);
        let called = fs::read(self.folder.join("called")).unwrap();
        self.hunt.hear("the command line of pg_dump", called);
    }

    /// Exports a tenant, and imports it with the right secret, with a wrong one and without one.
    async fn moves(&self, tenant: &Tenant) {
        let at = |name: &str| self.folder.join(name).display().to_string();
        let phrase = self.file("phrase", &self.hunt.secret("the passphrase of an export"));
        let wrong = self.file("wrong-phrase", &self.hunt.secret("a wrong passphrase"));
        let (packed, sealed, identity) = (at("packed"), at("sealed"), at("identity"));
        let export =
            |file, how, secret| ["tenant", "export", &tenant.id, "--file", file, how, secret];
        let import =
            |file, how, secret| ["tenant", "import", "--replace", "--file", file, how, secret];
        let words = ["encryption", "generate-identity", "--file", &identity];
        let made = self.run(&words).await.ok();
        let secret = fs::read_to_string(&identity).unwrap();
        let secret = secret
            .lines()
            .find(|line| line.starts_with("attesto-identity"))
            .unwrap();
        self.hunt.plant("an identity", secret, &[]);
        let recipient = made.json()["recipient"].as_str().unwrap().to_owned();
        for words in [
            export(&packed, "--passphrase-file", &phrase),
            export(&sealed, "--recipient", &recipient),
            import(&packed, "--passphrase-file", &phrase),
            import(&sealed, "--identity-file", &identity),
        ] {
            self.run(&words).await.ok();
        }
        for words in [
            export(&packed, "--passphrase-file", &phrase),
            export(&at("x"), "--recipient", secret),
            import(&packed, "--passphrase-file", &wrong),
            import(&sealed, "--passphrase-file", &phrase),
            import(&packed, "--identity-file", &identity),
            import(&identity, "--identity-file", &packed),
        ] {
            assert_ne!(self.run(&words).await.exit, Some(0), "{words:?}");
        }
        for name in ["packed", "sealed"] {
            let content = fs::read(self.folder.join(name)).unwrap();
            self.hunt.hear("an exported tenant", content);
        }
    }

    /// Secrets in place of other arguments, in every command, without a database they could damage.
    #[expect(clippy::too_many_lines, reason = "a long list of slips")]
    async fn slips(&self) {
        let password = self.hunt.secret("the password of a database that is away");
        let url = format!("postgres://ada:{password}@127.0.0.1:1/x?connect_timeout=1");
        let phrase = self.hunt.secret("a passphrase");
        let raw = format!(
            "attesto_live_{}",
            &self.hunt.secret("a key that was pasted")[..43]
        );
        let pem = self.simulator.apple().create_api_key().unwrap().private_key;
        self.hunt.pem("a key file that was pasted", &pem);
        let key = self.hunt.key("an encryption key that was pasted");
        let json =
            json!({ "private_key": self.hunt.secret("a JSON file that was pasted") }).to_string();
        let secrets = [&phrase, &url, &raw, &pem, &key, &json];
        let mut next = secrets.iter().cycle().map(|secret| secret.as_str());
        let mut next = move || next.next().unwrap();
        let away = [("DATABASE_URL_FILE", ""), ("DATABASE_URL", url.as_str())];
        let mut tries: Vec<Vec<String>> = Vec::new();
        for (words, options) in leaves() {
            let mut with = |more: &[&str]| {
                let more = more.iter().map(ToString::to_string);
                tries.push(words.iter().cloned().chain(more).collect());
            };
            with(&[]);
            with(&[next()]);
            with(&[next(), next()]);
            with(&["--passphrase", &phrase]);
            with(&[&format!("--passphrase={phrase}")]);
            for option in options {
                with(&[&option, next()]);
                with(&[&format!("{option}={}", next())]);
            }
        }
        assert!(
            tries.len() > 200,
            "the tree of commands has lost its leaves"
        );
        let mut tree = Cli::command();
        tree.build();
        let mut known = BTreeSet::new();
        for words in &tries {
            let all = ["attesto"]
                .into_iter()
                .chain(words.iter().map(String::as_str));
            let arguments = colon_aliases::expand_colon_aliases(all.map(OsString::from), &tree);
            // Arguments the parser refuses need no process: the message is the same here.
            match Cli::command().try_get_matches_from(&arguments) {
                Err(refused) => {
                    let said = refused.render().to_string();
                    let said = colon_aliases::redact_secrets(&said, &arguments);
                    self.hunt.hear("what the parser says", said);
                }
                // Once each, with the first other argument.
                Ok(_) if known.insert(words.iter().take(2).cloned().collect::<Vec<_>>()) => {
                    let words: Vec<&str> = words.iter().map(String::as_str).collect();
                    self.run_as(&words, "", &away, &[]).await;
                }
                Ok(_) => {}
            }
        }

        // The same among the settings.
        let web = url.replace("postgres", "https");
        for changes in [
            [("DATABASE_URL_FILE", url.as_str()), ("PORT", &key)],
            [("ATTESTO_ENCRYPTION_KEY_FILE", &key), ("LOG_LEVEL", &raw)],
            [
                ("ATTESTO_ENCRYPTION_KEYS_RETIRED_FILE", &key),
                ("LOG_FORMAT", &phrase),
            ],
            [
                ("ATTESTO_ENCRYPTION_KEYS_RETIRED_FILE", ""),
                ("ATTESTO_ENCRYPTION_KEYS_RETIRED", &key),
            ],
            [
                ("ATTESTO_ENCRYPTION_KEY_FILE", ""),
                ("ATTESTO_ENCRYPTION_KEY", &pem),
            ],
            [
                ("ATTESTO_ENCRYPTION_KEY", &phrase),
                ("BIND_ADDRESS", &phrase),
            ],
            [
                ("APPLE_PRODUCTION_URL", url.as_str()),
                ("GOOGLE_TOKEN_URL", &key),
            ],
            [("GOOGLE_PLAY_URL", &web), ("TLS_KEY_PATH", &pem)],
            [("TLS_CERT_PATH", &key), ("TLS_KEY_PATH", &key)],
            [("METRICS_ADDRESS", &key), ("APPLE_ROOT_CERTIFICATES", &key)],
            [("WEBHOOK_MAX_RETRIES", &key), ("ATTESTO_ENV", &key)],
        ] {
            for words in [
                &["serve", "--port=0"][..],
                &["config", "check"],
                &["doctor", "--offline"],
            ] {
                let ran = self.run_as(words, "", &changes, &[]).await;
                assert_ne!(ran.exit, Some(0), "{words:?} {changes:?}: {ran:?}");
            }
        }
        // Unknown keys with the ids of known ones.
        let other = self.hunt.key("an encryption key of another database");
        let wrong = self.file("wrong", &format!("2:{other}"));
        let wrong = [("ATTESTO_ENCRYPTION_KEY_FILE", wrong.as_str())];
        for words in [
            &["encryption", "status"][..],
            &["encryption", "rotate"],
            &["doctor", "--offline"],
            &["backup", "verify", "dump"],
        ] {
            assert_ne!(self.run_as(words, "", &wrong, &[]).await.exit, Some(0));
        }
        let password = self.hunt.secret("a password that the database refuses");
        let (before, after) = self.postgres.url().split_once("&password=").map_or_else(
            || panic!("it has a password"),
            |(before, after)| (before.to_owned(), after.len()),
        );
        assert!(after > 0);
        let refused = format!("{before}&password={password}");
        let refused = [
            ("DATABASE_URL_FILE", ""),
            ("DATABASE_URL", refused.as_str()),
        ];
        for words in [
            &["tenant", "list"][..],
            &["migrate"],
            &["doctor", "--offline"],
        ] {
            assert_ne!(self.run_as(words, "", &refused, &[]).await.exit, Some(0));
        }
    }

    /// A server with its own certificate, which is replaced by an invalid one while it runs.
    async fn behind_tls(&mut self) {
        let made = rcgen::generate_simple_self_signed(vec!["attesto.test".to_owned()]).unwrap();
        let (chain, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        self.hunt.pem("the key of a certificate", &key);
        let (chain, key) = (self.file("tls.pem", &chain), self.file("tls.key", &key));
        let files = [("TLS_CERT_PATH", chain.as_str()), ("TLS_KEY_PATH", &key)];
        let server = self
            .serve(&[files[0], files[1], ("JOBS_DISABLED", "true")])
            .await;
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        self.hunt.pem("the key of another certificate", &other);
        self.file("tls.key", &other);
        let pid = Pid::from_raw(server.pid.cast_signed()).unwrap();
        kill_process(pid, Signal::HUP).unwrap();
        wait_for("it looks at the pair", async || {
            server.said().contains("tls_certificate_kept").then_some(())
        })
        .await;
        self.run_as(&["doctor", "--offline"], "", &files, &[]).await;
        server
            .end(&self.hunt, "the log of a service with TLS", &[])
            .await;
    }

    /// Samples what is visible of the database and the processes, until dropped.
    fn watch(&self) -> AbortOnDropHandle<()> {
        let (url, hunt) = (self.postgres.url(), self.hunt.clone());
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut known = BTreeSet::new();
            // A session shows its last statement until the next one: sampling more often finds
            // little more, and takes a third of this test's CPU time.
            let mut looks = 0_u32;
            loop {
                let mut seen = Vec::new();
                if let Ok(mut connection) = PgConnection::connect(&url).await {
                    let look = "select row_to_json(a)::text from pg_stat_activity a
                                 where pid <> pg_backend_pid() and query <> ''";
                    while let Ok(rows) = sqlx::query_scalar::<_, String>(look)
                        .fetch_all(&mut connection)
                        .await
                    {
                        let query = |row: &String| {
                            let row: Value = serde_json::from_str(row).unwrap();
                            format!("{} {}", row["application_name"], row["query"])
                        };
                        let new = rows
                            .iter()
                            .map(query)
                            .filter(|row| known.insert(row.clone()));
                        seen.extend(new);
                        // A serving process keeps its title as long as it serves.
                        if looks.is_multiple_of(10) {
                            for title in titles() {
                                if known.insert(title.clone()) {
                                    hunt.hear("the list of processes", title);
                                }
                            }
                        }
                        looks += 1;
                        for row in seen.drain(..) {
                            hunt.hear("pg_stat_activity", row);
                        }
                        pause(Duration::from_millis(25)).await;
                    }
                }
                pause(Duration::from_millis(50)).await;
            }
        }))
    }

    /// Records every table, and the log of the database.
    async fn look_at_the_database(&self) {
        let tables = "select table_name::text from information_schema.tables
                       where table_schema = 'public' and table_type = 'BASE TABLE'";
        for table in self.sql(tables).await {
            let rows = self
                .sql(&format!("select t::text from \"{table}\" t"))
                .await;
            self.hunt.hear(format!("table {table}"), rows.join("\n"));
        }
        self.hunt.hear(POSTGRES_LOG, self.postgres.log());
    }
}

/// The process titles of Postgres.
fn titles() -> Vec<String> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = all.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).into_owned());
    lines
        .filter(|line| line.starts_with("postgres: "))
        .collect()
}

/// Every command that ends by itself, and its options that take a value.
fn leaves() -> Vec<(Vec<String>, Vec<String>)> {
    fn walk(command: &clap::Command, words: &[String], all: &mut Vec<(Vec<String>, Vec<String>)>) {
        for command in command.get_subcommands() {
            let words = [words, &[command.get_name().to_owned()]].concat();
            if command.has_subcommands() {
                walk(command, &words, all);
            } else {
                let options = command.get_arguments().filter_map(|option| {
                    let takes = option.get_action().takes_values();
                    takes.then(|| option.get_long().map(|name| format!("--{name}")))?
                });
                let options = options.chain(["--output".to_owned(), "--database-url".to_owned()]);
                all.push((words, options.collect()));
            }
        }
    }
    let mut all = Vec::new();
    walk(&Cli::command(), &[], &mut all);
    // These serve until they are stopped, and the manual command creates the folder it is given.
    let others = ["serve", "dev", "receive", "simulator", "help", "man"];
    all.retain(|(words, _)| !others.contains(&words[0].as_str()));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::too_many_lines, reason = "a story with many chapters")]
async fn no_planted_secret_leaks() {
    let mut scene = Scene::set().await;
    let hunt = scene.hunt.clone();
    scene.run(&["migrate"]).await.ok();
    let watching = scene.watch();

    // Sealed with a key that is retired before the server starts.
    let retired = fs::read_to_string(scene.folder.join("ATTESTO_ENCRYPTION_KEYS_RETIRED")).unwrap();
    let (retired, _) = retired.split_once(',').unwrap();
    let retired = scene.file("retired", retired);
    let sealing = [
        ("ATTESTO_ENCRYPTION_KEY_FILE", retired.as_str()),
        ("ATTESTO_ENCRYPTION_KEYS_RETIRED_FILE", ""),
        ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
    ];
    let receiver = |status: &str, app: &str| {
        let said = hunt.data(&format!("what a callback answers of {app}"), ANSWERS);
        let cookie = hunt.secret(&format!("a cookie of the callback of {app}"));
        let length = said.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nSet-Cookie: {cookie}\r\nX-{cookie}: 1\r\n\r\n{said}"
        );
        let answer: &'static [u8] = answer.leak().as_bytes();
        Receiver::new(Place::loopback(), Arc::new(say(answer)))
    };
    let good = scene.tenant("A name that is no secret", APP).await;
    let bad = scene.tenant("Another", "com.example.bad").await;
    let away = scene.tenant("A third", "com.example.away").await;
    let (happy, unhappy) = (
        receiver("200 OK", good.app).await,
        receiver("500 No", bad.app).await,
    );
    for (tenant, address) in [
        (&good, happy.url()),
        (&bad, unhappy.url()),
        (&away, "http://127.0.0.1:1/hook".to_owned()),
    ] {
        scene.credentials(tenant, &sealing).await;
        scene.callback(tenant, &address, &sealing).await;
    }
    scene.run(&["encryption", "rotate"]).await.ok();
    scene.refused_credentials(&good).await;
    scene.refused_callbacks(&good).await;
    let test = scene.api_key(&good.id, "test", "a key for tests").await;
    let revoked = scene.api_key(&good.id, "live", "a revoked key").await;
    let keys = scene.run(&["key", "list", &good.id]).await.ok();
    let newest = keys.json()["id"].as_str().unwrap().to_owned();
    scene.run(&["key", "revoke", &newest]).await.ok();

    // One replica logs everything, the other nothing; only the first one delivers.
    let open = scene
        .serve(&[
            ("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true"),
            ("ENABLE_VALIDATION_AUDIT_LOG", "true"),
            ("METRICS_ADDRESS", "127.0.0.1:0"),
            ("WEBHOOK_DISPATCH_INTERVAL_SECONDS", "1"),
        ])
        .await;
    let root = ("APPLE_ROOT_CERTIFICATES", "");
    let closed: Vec<(&str, &str)> = vec![
        ("ATTESTO_ENV", "production"),
        ("WEBHOOK_DISPATCHER_DISABLED", "true"),
        ("JOBS_DISABLED", "true"),
        ("METRICS_ADDRESS", "127.0.0.1:0"),
        ("APPLE_PRODUCTION_URL", "https://127.0.0.1:1/"),
        ("APPLE_SANDBOX_URL", "https://127.0.0.1:1/"),
        ("GOOGLE_PLAY_URL", "https://127.0.0.1:1/"),
        ("GOOGLE_TOKEN_URL", "https://127.0.0.1:1/"),
        ("GOOGLE_JWKS_URL", "https://127.0.0.1:1/"),
        ("GOOGLE_PUBSUB_URL", "https://127.0.0.1:1/"),
        root,
    ];
    let closed = scene.serve(&closed).await;

    let others = [test, revoked];
    scene.questions(&open, &good, &others).await;
    for tenant in [&good, &bad, &away] {
        scene.notifications(&open, tenant).await;
    }
    scene.mishaps(&open, &good).await;
    scene.strangers(&closed, &others).await;
    let right = json!({ "packageName": APP, "type": "subscription", "purchaseToken": hunt.secret("a purchase token in production") });
    scene.verify(&closed, "google", &good.key, &right).await;
    scene
        .verify(
            &closed,
            "apple",
            &good.key,
            &json!({ "transactionId": "1" }),
        )
        .await;
    wait_for("every delivery is tried", async || {
        let left = "select id from webhook_deliveries where last_attempt_at is null";
        scene.sql(left).await.is_empty().then_some(())
    })
    .await;
    scene.commands(&open, &good, &bad).await;
    scene.slips().await;
    scene.behind_tls().await;
    for server in [&open, &closed] {
        let page = scene.client.get(&server.metrics).send().await.unwrap();
        hunt.hear("the metrics", page.text().await.unwrap());
        server.look(&hunt);
    }
    // The database stops, is used all the same, and comes back.
    tokio::task::block_in_place(|| scene.postgres.crash());
    for (server, key) in [(&open, &good.key), (&closed, &away.key)] {
        for store in ["apple", "google"] {
            scene.verify(server, store, key, &right).await;
        }
        scene
            .ask(scene.client.get(format!("{}/ready", server.url)))
            .await;
        let at = format!("{}/v1/webhooks/google/{}", server.url, good.id);
        scene
            .ask(scene.client.post(at).bearer_auth(key).json(&right))
            .await;
    }
    scene.run(&["tenant", "list"]).await;
    scene.run(&["doctor", "--offline"]).await;
    tokio::task::block_in_place(|| scene.postgres.resume());
    wait_for("it is ready again", async || {
        let answer = scene.client.get(format!("{}/ready", open.url)).send().await;
        answer
            .is_ok_and(|answer| answer.status() == 200)
            .then_some(())
    })
    .await;
    let unending = "update webhook_deliveries set last_response_body = last_response_body";
    scene.sql(&format!("{unending} returning id")).await;
    scene.look_at_the_database().await;
    // In development the log contains the full text of errors.
    open.end(
        &hunt,
        "the log of a service",
        &["what a store says when it breaks"],
    )
    .await;
    closed
        .end(&hunt, "the log of a production service", &[])
        .await;
    drop(watching);
    for sent in scene.collector.requests() {
        let head = format!("{}\n{:?}\n", sent.request_line, sent.headers);
        // Protobuf contains text unchanged.
        let all = [head.into_bytes(), sent.body].concat();
        hunt.hear_with(COLLECTOR, all, &[COLLECTORS_PASSWORD]);
    }

    // Secrets created on the way.
    for (name, words) in [
        ("an access token", "\"access_token\":\""),
        ("a bearer of Google's or Apple's", "authorization: Bearer "),
        ("an assertion", "assertion="),
    ] {
        let made = scene.tap.after(words);
        assert!(!made.is_empty(), "{name} was not heard");
        for token in made {
            match token.matches('.').count() {
                2 => hunt.token(name, &token),
                _ => hunt.plant(name, &token, &[]),
            }
        }
    }

    let leaks = hunt.leaks();
    let planted: BTreeSet<String> = {
        let plants = &hunt.0.lock().unwrap().0;
        plants.iter().map(|plant| plant.name.clone()).collect()
    };
    assert!(planted.len() >= 40, "{}", planted.len());
    println!("{} secrets were planted", planted.len());
    assert!(
        leaks.is_empty(),
        "{} leaks:\n{}",
        leaks.len(),
        leaks.join("\n\n")
    );
    // The places were searched, and were not empty.
    for (place, what) in [
        ("the log of a service", "http_request"),
        ("the log of a service", "UNAVAILABLE"),
        ("the metrics", "attesto_http_requests_total"),
        ("an answer of the service", "UNAUTHENTICATED"),
        ("the command line of a service", "serve"),
        ("the command line of pg_dump", "--no-password"),
        ("the list of processes", "attesto"),
        ("pg_stat_activity", "webhook_deliveries"),
        ("the manifest of a backup", "sha256"),
        ("what `attesto doctor` says", "keys"),
        ("what `attesto config check` says", "ATTESTO_ENCRYPTION_KEY"),
        ("table operator_audit", "A name that is no secret"),
        ("table operator_audit", "sealed:"),
        ("table validation_audit", &good.id),
        ("table job_runs", "reseal"),
        ("table replicas", "2"),
        ("table backups", "backup_"),
        (POSTGRES_LOG, "A name that is no secret"),
        (POSTGRES_LOG, "password authentication failed"),
        (COLLECTOR, "POST /v1/traces"),
        (COLLECTOR, "POST /v1/google/verify"),
        (COLLECTOR, "POST /v1/webhooks/apple/{tenantId}"),
        (COLLECTOR, "GET 127.0.0.1"),
        (COLLECTOR, "webhook delivery"),
        (COLLECTOR, "UNAUTHENTICATED"),
    ] {
        assert!(hunt.has(place, what), "{place} says nothing of {what}");
    }
    if rustix::process::geteuid().is_root() {
        assert!(hunt.has(
            "the environment of a service",
            "ATTESTO_ENCRYPTION_KEY_FILE"
        ));
    }
    prove(&hunt);
}

/// The search finds each plant when it is where it does not belong.
fn prove(hunt: &Hunt) {
    let all: Vec<(String, Vec<u8>, bool)> = {
        let plants = &hunt.0.lock().unwrap().0;
        let facts = |plant: &Plant| {
            (
                plant.name.clone(),
                plant.secret.clone(),
                plant.kept_in.is_empty(),
            )
        };
        plants.iter().map(facts).collect()
    };
    let places = [
        "the log of a service",
        "table operator_audit",
        POSTGRES_LOG,
        COLLECTOR,
    ];
    for (number, (name, secret, is_secret)) in all.iter().enumerate() {
        let place = places[number % places.len()];
        let trace = Hunt::default();
        trace.plant(name, secret, if *is_secret { &[] } else { EVENTS });
        let spelled = match str::from_utf8(secret) {
            Ok(text) => text.to_owned(),
            Err(_) => STANDARD.encode(secret),
        };
        trace.hear(place, format!("{{\"cause\":\"{spelled}\"}}"));
        let expected = usize::from(*is_secret || place != POSTGRES_LOG);
        assert_eq!(trace.leaks().len(), expected, "{name} in {place}");
    }
}

/// A crashing process writes no core dump, which would contain every opened secret, even where core
/// dumps are enabled.
#[tokio::test]
async fn a_crash_writes_no_core_dump() {
    let mut scene = Scene::set().await;
    let mut server = scene.serve(&[]).await;
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.pid)).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let soft = core.unwrap().split_whitespace().nth(4);
    assert_eq!(soft, Some("0"), "{limits}");
    kill_process(
        Pid::from_raw(server.pid.cast_signed()).unwrap(),
        Signal::ABORT,
    )
    .unwrap();
    let ended = finished("the server ends", server.child.wait()).await;
    let ended = ended.unwrap();
    assert_eq!((ended.signal(), ended.core_dumped()), (Some(6), false));
}
