//! A complete Attesto server in the test process: a fresh database, a fixed clock, simulated
//! stores, real HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use attesto::app::{App, RunningApp};
use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::TenantId;
use attesto::config::{AppSettings, RawSettings};
use attesto::crypto::keyring::Keyring;
use attesto::db::Database;
use attesto::jobs::JobContext;
use attesto::server::{ConnectionLimits, scrape};
use attesto::simulator::state::apple::SimulatedApp;
use attesto::simulator::state::apple_notifications::NotificationUrls;
use attesto::simulator::state::google_notifications::PushSubscription;
use attesto::simulator::{Simulator, SimulatorIdentity, SimulatorOptions};
use attesto::stores::apple::AppleBackfill;
use attesto::stores::apple::account::{AppleCredentials, EnvironmentChoice, SigningKey};
use attesto::stores::google::account::GoogleServiceAccount;
use attesto::stores::shared::refund_questions::RefundAnswerWatch;
use attesto::stores::shared::state_completer::StateCompleter;
use attesto::stores::{apple, google};
use attesto::tenants::{ApiKeyEnvironment, RawApiKey, store};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::folder::Folder;
use super::pgbouncer::Pooler;
use super::postgres::{Fresh, fresh_database, pass_time};
use super::shell::Shell;
use super::wait::HANG_LIMIT;

/// The app of every tenant, in both stores, unless a test sets another one.
pub(crate) const APP: &str = "com.example.app";
/// The Apple id of [`APP`].
pub(crate) const APP_APPLE_ID: i64 = 1_234_567_890;

/// Generating keys takes a second, so all worlds of a run share one identity. Its certificates are
/// valid for years around [`start`].
static IDENTITY: LazyLock<SimulatorIdentity> = LazyLock::new(|| SimulatorIdentity::new(start()));

/// The same for worlds in real time.
static IDENTITY_OF_TODAY: LazyLock<SimulatorIdentity> =
    LazyLock::new(|| SimulatorIdentity::new(Clock::system().now()));

/// The time of a new world's clock.
pub(crate) fn start() -> Timestamp {
    Timestamp::parse("2026-04-10T14:22:10.000Z").expect("a time")
}

/// A complete server with its database, clock and simulated stores.
pub(crate) struct World {
    pub(crate) clock: Clock,
    pub(crate) simulator: Simulator,
    /// On the heap: a test whose future holds a world stays small.
    pub(crate) settings: Box<AppSettings>,
    pub(crate) fresh: Fresh,
    serving: RunningApp,
    client: reqwest::Client,
    _folder: Folder,
}

/// A tenant with a key, and credentials for both stores.
pub(crate) struct Tenant {
    pub(crate) id: TenantId,
    pub(crate) key: RawApiKey,
}

/// An HTTP answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl World {
    /// With every setting at its default.
    pub(crate) async fn new() -> Self {
        Self::with(&[]).await
    }

    /// With some settings, by the names of their variables.
    pub(crate) async fn with(settings: &[(&str, &str)]) -> Self {
        let fresh = fresh_database().await;
        Self::on(fresh, Clock::fixed(start()), IDENTITY.clone(), settings).await
    }

    /// On this database, with this clock.
    pub(crate) async fn upon(fresh: Fresh, clock: Clock, settings: &[(&str, &str)]) -> Self {
        Self::on(fresh, clock, IDENTITY.clone(), settings).await
    }

    /// With its database behind a pooler.
    pub(crate) async fn behind(pooler: &Pooler, settings: &[(&str, &str)]) -> Self {
        let fresh = pooler.before(&fresh_database().await);
        Self::on(fresh, Clock::fixed(start()), IDENTITY.clone(), settings).await
    }

    /// In real time, for tests that run the binary, whose clock cannot be changed.
    pub(crate) async fn today() -> Self {
        Self::today_with(&[]).await
    }

    /// The same with some settings.
    pub(crate) async fn today_with(settings: &[(&str, &str)]) -> Self {
        let (fresh, clock) = (fresh_database().await, Clock::system());
        Self::on(fresh, clock, IDENTITY_OF_TODAY.clone(), settings).await
    }

    async fn on(
        fresh: Fresh,
        clock: Clock,
        identity: SimulatorIdentity,
        settings: &[(&str, &str)],
    ) -> Self {
        // Only the first world installs it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let options = SimulatorOptions {
            identity: Some(identity),
            ..SimulatorOptions::new(clock.clone())
        };
        let simulator = Simulator::start(options)
            .await
            .expect("the simulated stores start");

        let folder = Folder::new();
        let roots = folder.join("root.pem");
        std::fs::write(&roots, simulator.apple_root_pem()).expect("the root is written");
        let mut given: BTreeMap<String, String> = simulator
            .environment_variables()
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        given.insert(
            "APPLE_ROOT_CERTIFICATES".to_owned(),
            roots.display().to_string(),
        );
        given.insert("DATABASE_URL".to_owned(), fresh.url.clone());
        given.insert("ATTESTO_ENV".to_owned(), "test".to_owned());
        // Jobs compare ages with the database's time, which is far ahead of a world's clock.
        given.insert("JOBS_DISABLED".to_owned(), "1".to_owned());
        // A test that waits asks as often as the machine is fast, while the fixed clock refills no bucket.
        given.insert("RATE_LIMIT_BURST".to_owned(), "1000000".to_owned());
        given.extend(
            settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned())),
        );
        let key = STANDARD.encode([7; 32]);
        let lookup = |name: &str| (name == "ATTESTO_ENCRYPTION_KEY").then(|| key.clone().into());
        let settings = AppSettings::parse(&RawSettings::new(given, &lookup));
        let settings = Box::new(settings.expect("good settings"));

        let metrics_listener = match settings.metrics_address {
            Some(address) => Some(scrape::bind_metrics_listener(address).await),
            None => None,
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a free port");
        // After the last wait: the service is large, and the future of each test would hold it.
        let mut service =
            App::build(&settings, &fresh.database, &clock).expect("the service is built");
        if let Some(listener) = metrics_listener {
            service = service.with_metrics_listener(listener.expect("a free port"));
        }
        let serving = service
            .serve(listener, ConnectionLimits::default())
            .expect("the service serves");
        let client = reqwest::Client::builder()
            .no_proxy()
            // Reading the system's costs more than most tests.
            .tls_certs_only([])
            .timeout(HANG_LIMIT)
            .build()
            .expect("a client is built");
        Self {
            clock,
            simulator,
            settings,
            fresh,
            serving,
            client,
            _folder: folder,
        }
    }

    /// Moves the clock, and the time that SQL statements use.
    pub(crate) async fn pass(&self, by: Duration) {
        pass_time(self.database(), &self.clock, by).await;
    }

    /// The address of the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.serving.address()
    }

    /// The URL of a path on the server.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.serving.address())
    }

    /// Another replica: with its own connection pool, caches and listener.
    pub(crate) async fn replica(&self) -> RunningApp {
        let database = Database::open(&self.fresh.settings);
        let service = App::build(&self.settings, &database, &self.clock);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let serving = service
            .expect("the service is built")
            .serve(listener.expect("a free port"), ConnectionLimits::default());
        serving.expect("the service serves")
    }

    /// What tells late states, in one more process: the loops of the servers are off.
    pub(crate) fn state_completer(&self) -> StateCompleter {
        let database = Database::open(&self.fresh.settings);
        let service = App::build(&self.settings, &database, &self.clock);
        service
            .expect("the service is built")
            .build_state_completer()
    }

    /// What reads Apple's history of notifications, in one more process.
    pub(crate) fn apple_backfill(&self) -> AppleBackfill {
        let database = Database::open(&self.fresh.settings);
        let service = App::build(&self.settings, &database, &self.clock);
        service
            .expect("the service is built")
            .build_apple_backfill()
    }

    /// What reads Google's lists of refunds, in one more process.
    pub(crate) fn google_backfill(&self) -> google::GoogleBackfill {
        let database = Database::open(&self.fresh.settings);
        let service = App::build(&self.settings, &database, &self.clock);
        service
            .expect("the service is built")
            .build_google_backfill()
    }

    /// What tells which purchases must be acknowledged soon, in one more process.
    pub(crate) fn acknowledgement_watch(&self) -> google::AcknowledgementWatch {
        let database = Database::open(&self.fresh.settings);
        let service = App::build(&self.settings, &database, &self.clock);
        service
            .expect("the service is built")
            .build_acknowledgement_watch()
    }

    /// What sends the default answers to stores, in one more process.
    pub(crate) fn refund_answer_watch(&self) -> RefundAnswerWatch {
        let database = Database::open(&self.fresh.settings);
        let service = App::build(&self.settings, &database, &self.clock);
        service
            .expect("the service is built")
            .build_refund_answer_watch()
    }

    /// Writes the server's heartbeat now.
    pub(crate) async fn send_heartbeat(&self) {
        let written = self.serving.send_heartbeat().await;
        written.expect("the heartbeat is written");
    }

    /// The metrics page, after refreshing the gauges.
    pub(crate) async fn metrics(&self) -> String {
        self.serving.refresh_gauges().await;
        let page = self.client.get(self.metrics_url()).send();
        page.await.expect("an answer").text().await.expect("a page")
    }

    /// Runs a job as a server with these settings does, and returns its report.
    pub(crate) async fn run_job(&self, name: &str) -> Value {
        let tools = attesto::app::build_job_tools(&self.settings, self.database(), &self.clock);
        let tools = JobContext {
            apple_backfill: Some(self.apple_backfill()),
            google_backfill: Some(self.google_backfill()),
            ..tools
        };
        let jobs = attesto::app::all_jobs(&tools);
        let job = jobs.iter().find(|job| job.name == name).expect("a job");
        let stop = CancellationToken::new();
        let ran = attesto::jobs::run_job_now(self.database(), job, &stop);
        ran.await.expect("it runs").result.expect("it succeeds")
    }

    /// The URL of the metrics page.
    pub(crate) fn metrics_url(&self) -> String {
        let address = self.serving.metrics_address();
        format!(
            "http://{}/metrics",
            address.expect("METRICS_ADDRESS is set")
        )
    }

    /// The connection pool of the server.
    pub(crate) fn database(&self) -> &Database {
        &self.fresh.database
    }

    /// The encryption keys of the server.
    pub(crate) fn keyring(&self) -> &Arc<Keyring> {
        &self.settings.keyring
    }

    /// A tenant without credentials.
    pub(crate) async fn stranger(&self) -> Tenant {
        let now = self.clock.now();
        let name = "A tenant".parse().expect("a name");
        let id = store::create_tenant(self.database(), &name, now)
            .await
            .expect("a tenant")
            .id;
        let key = RawApiKey::generate(ApiKeyEnvironment::Live);
        store::create_api_key(
            self.database(),
            &id,
            None,
            ApiKeyEnvironment::Live,
            &key,
            now,
        )
        .await
        .expect("a key");
        Tenant { id, key }
    }

    /// A tenant with credentials for both stores.
    pub(crate) async fn tenant(&self) -> Tenant {
        let tenant = self.stranger().await;
        self.set_apple(&tenant, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
            .await;
        self.set_google(&tenant).await;
        tenant
    }

    /// Credentials of an app of its own for both stores, which know the app.
    pub(crate) async fn set_up_app(&self, tenant: &Tenant, app: &str) {
        self.set_apple_app(tenant, app, EnvironmentChoice::Auto, Some(APP_APPLE_ID))
            .await;
        let known = SimulatedApp {
            app_apple_id: APP_APPLE_ID.try_into().expect("a positive number"),
            ..SimulatedApp::for_bundle_id(app)
        };
        self.simulator.apple().set_app(known).expect("an app");
        let pusher = self.simulator.google().push_account();
        self.set_google_with(tenant, app, None, Some(pusher)).await;
    }

    /// Notifications of an app are sent to a tenant of this server, when a test asks for it.
    pub(crate) fn send_notifications_to(&self, tenant: &Tenant, app: &str) {
        let path = format!("/v1/webhooks/apple/{}", tenant.id);
        let to = NotificationUrls {
            manual: true,
            ..NotificationUrls::for_both_environments(&self.url(&path))
        };
        let apple = self.simulator.apple();
        apple.set_notification_urls(app, to).expect("addresses");
        self.push_google_app(tenant, app);
    }

    /// Sets the simulated team's Apple key for a tenant.
    pub(crate) async fn set_apple(
        &self,
        tenant: &Tenant,
        environment: EnvironmentChoice,
        app_apple_id: Option<i64>,
    ) {
        self.set_apple_app(tenant, APP, environment, app_apple_id)
            .await;
    }

    async fn set_apple_app(
        &self,
        tenant: &Tenant,
        app: &str,
        environment: EnvironmentChoice,
        app_apple_id: Option<i64>,
    ) {
        let key = self.simulator.apple().api_key();
        let credentials = AppleCredentials {
            bundle_id: app.to_owned(),
            key_id: key.key_id,
            issuer_id: key.issuer_id,
            key: SigningKey::parse(key.private_key.as_bytes()).expect("the simulated key is good"),
            environment,
            app_apple_id,
        };
        let new = apple::store::NewAppleCredentials {
            key_file: key.private_key.as_bytes(),
            credentials: &credentials,
        };
        apple::store::set_credentials(self.database(), self.keyring(), &tenant.id, &new)
            .await
            .expect("credentials");
    }

    /// Sets the simulated service account for a tenant.
    pub(crate) async fn set_google(&self, tenant: &Tenant) {
        self.set_google_push(tenant, None, None).await;
    }

    /// The same for another app than [`APP`].
    pub(crate) async fn set_google_app(&self, tenant: &Tenant, package_name: &str) {
        self.set_google_with(tenant, package_name, None, None).await;
    }

    /// The same, with the audience and the account of the pushes that are accepted.
    pub(crate) async fn set_google_push(
        &self,
        tenant: &Tenant,
        audience: Option<&str>,
        pusher: Option<&str>,
    ) {
        self.set_google_with(tenant, APP, audience, pusher).await;
    }

    async fn set_google_with(
        &self,
        tenant: &Tenant,
        package_name: &str,
        audience: Option<&str>,
        pusher: Option<&str>,
    ) {
        let file = self.simulator.google_service_account().to_string();
        let account =
            GoogleServiceAccount::parse(file.as_bytes()).expect("the simulated account is good");
        let new = google::store::NewGoogleCredentials {
            package_name,
            key_file: file.as_bytes(),
            account: &account,
            pubsub_audience: audience,
            pubsub_service_account: pusher,
            pubsub_topic: None,
        };
        google::store::set_credentials(self.database(), self.keyring(), &tenant.id, &new)
            .await
            .expect("credentials");
    }

    /// Sets the simulated team's service account by command, as an operator does, and lets a test push notifications about the
    /// app to the tenant.
    pub(crate) fn set_google_by_command(&self, tenant: &Tenant) {
        let google = self.simulator.google();
        let ran = self.shell().run_with(
            &[
                "google",
                "set-credentials",
                tenant.id.as_str(),
                "--package-name",
                APP,
                "--service-account-path",
                "/dev/stdin",
                "--pubsub-service-account",
                google.push_account(),
            ],
            self.simulator.google_service_account().to_string(),
        );
        assert_eq!(ran.exit, 0, "{}", ran.complained);
        self.push_google_manually(tenant);
    }

    /// From now on the simulated Google Play pushes to this tenant when a test asks for it.
    pub(crate) fn push_google_manually(&self, tenant: &Tenant) {
        self.push_google_app(tenant, APP);
    }

    fn push_google_app(&self, tenant: &Tenant, app: &str) {
        let endpoint = self.url(&format!("/v1/webhooks/google/{}", tenant.id));
        let to = PushSubscription {
            manual: true,
            ..PushSubscription::for_endpoint(&endpoint)
        };
        let google = self.simulator.google();
        google.set_push_subscription(app, to).expect("a known app");
    }

    /// Sends a request, with an API key or without.
    pub(crate) async fn ask(
        &self,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        self.ask_at(&self.url(path), method, key, body).await
    }

    /// The same to another process.
    pub(crate) async fn ask_at(
        &self,
        url: &str,
        method: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Answer {
        let answer = self.try_ask_at(url, method, key, body).await;
        answer.expect("an answer")
    }

    /// The same to a process that may end meanwhile.
    pub(crate) async fn try_ask_at(
        &self,
        url: &str,
        method: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Option<Answer> {
        let method = method.parse().expect("a method");
        let mut request = self.client.request(method, url);
        if let Some(key) = key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.ok()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = response.bytes().await.ok()?;
        let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
        Some(Answer {
            status,
            headers,
            body,
        })
    }

    /// The text of the answer to a `GET`.
    pub(crate) async fn ask_for_text(&self, path: &str, key: &str) -> String {
        let request = self.client.get(self.url(path)).bearer_auth(key);
        let answer = request.send().await.expect("an answer");
        answer.text().await.expect("text")
    }

    /// Sends a verify request.
    pub(crate) async fn verify(&self, store: &str, tenant: &Tenant, body: &Value) -> Answer {
        self.ask(
            "POST",
            &format!("/v1/{store}/verify"),
            Some(tenant.key.expose()),
            Some(body),
        )
        .await
    }

    /// Deactivates a tenant without a notification, as if the listening connection had just died.
    pub(crate) async fn deactivate_unheard(&self, tenant: &attesto::base::id::TenantId) {
        let mut transaction = self.database().pool().begin().await.unwrap();
        sqlx::query("set local session_replication_role = replica")
            .execute(&mut *transaction)
            .await
            .unwrap();
        sqlx::query("update tenants set is_active = false where id = $1")
            .bind(tenant.as_str())
            .execute(&mut *transaction)
            .await
            .unwrap();
        transaction.commit().await.unwrap();
    }

    /// A shell with the settings of this server.
    pub(crate) fn shell(&self) -> Shell {
        let shell = Shell::default()
            .set("DATABASE_URL", &self.fresh.url)
            .set("ATTESTO_ENCRYPTION_KEY", &STANDARD.encode([7; 32]))
            .set("ATTESTO_ENV", "test");
        match &self.fresh.direct {
            Some(direct) => shell.set("DATABASE_DIRECT_URL", direct),
            None => shell,
        }
    }

    /// The same for commands that call the simulated stores.
    pub(crate) fn shell_with_stores(&self) -> Shell {
        let roots = self.settings.stores.apple_root_certificates.as_ref();
        let roots = roots.expect("a world has its own root certificates");
        self.shell()
            .set_all(self.simulator.environment_variables())
            .set("APPLE_ROOT_CERTIFICATES", &roots.display().to_string())
    }

    /// Stops the server and the stores; the database stays.
    pub(crate) async fn end(self) -> Fresh {
        self.serving.stop(Duration::from_secs(5)).await;
        self.simulator.stop().await;
        self.fresh
    }
}
