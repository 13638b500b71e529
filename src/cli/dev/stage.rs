//! What has to stand before a question can be asked: a database, the simulated stores, a tenant, the service.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::args::Args;
use super::callback::Callback;
use crate::apple::account::{Credentials, EnvironmentChoice, SigningKey};
use crate::clock::Clock;
use crate::config::{Raw, Settings};
use crate::credentials::canary;
use crate::db::embedded::{Embedded, EmbeddedOptions};
use crate::db::{Database, is_missing_table};
use crate::deliveries::endpoint::{self, SigningSecret};
use crate::google::account::ServiceAccount;
use crate::id::TenantId;
use crate::server::Manners;
use crate::service::{Service, Serving};
use crate::simulator::state::apple::{Environment, NewTransaction, Transaction};
use crate::simulator::state::google::{NewSubscription, Subscription};
use crate::simulator::state::notifications::NotificationUrls;
use crate::simulator::state::pubsub::PushSubscription;
use crate::simulator::{Simulator, SimulatorOptions};
use crate::telemetry::{Log, LogFormat};
use crate::tenants::{KeyEnvironment, Name, RawKey, store};
use crate::{apple, google, telemetry};

use super::super::context::{Context, Failure};

/// The demo app, for both stores.
pub(super) const APP: &str = "com.example.demo";
/// Its subscription.
pub(super) const PRODUCT: &str = "com.example.demo.pro.monthly";
/// The first demo transaction's id.
const FIRST_TRANSACTION_ID: u64 = 2_000_000_000_000_001;
/// A purchase that ends sooner is not asked about: its answer would change while somebody reads it.
const WORTH_ASKING: Duration = Duration::from_hours(1);
/// How many ports after a taken one are tried.
const NEXT_PORTS: u16 = 50;
/// How long what is in hand may take when stopping.
const GRACE: Duration = Duration::from_secs(5);

/// What an earlier run made and this one uses again. The key is a demo tenant's, of simulated stores.
#[derive(Serialize, Deserialize)]
struct Demo {
    tenant: TenantId,
    key: String,
    /// What signs the tenant's deliveries. Runs of earlier releases had none.
    #[serde(default)]
    secret: String,
}

/// Everything that was started.
pub(super) struct Stage {
    private: Option<Embedded>,
    database: Database,
    simulator: Simulator,
    serving: Serving,
    client: reqwest::Client,
    demo: Demo,
    callback: Callback,
    transaction: Transaction,
    subscription: Subscription,
    url: String,
    folder: PathBuf,
    database_url: Option<String>,
    remarks: Vec<String>,
}

impl Stage {
    /// Starts everything, from the bottom up.
    pub(super) async fn set(args: &Args, context: &Context) -> Result<Self, Failure> {
        let mut remarks = Vec::new();
        // The ports first: a taken one is the likeliest obstacle, and it should leave no traces.
        let listener = listen(args.port, "service", &mut remarks).await?;
        let address = listener.local_addr()?;
        let callback = listen(args.callback_port, "callback", &mut remarks).await?;

        let mut options = EmbeddedOptions::from_environment(|name| context.variable(name));
        let folder = options.data_folder().map_err(refused)?.join("dev");
        options.data_dir = Some(folder.join("postgres"));
        if args.fresh {
            start_over(&folder, options.clone()).await?;
        }
        make_folder(&folder)?;
        let log = log_to(&folder)?;

        let given_url = context.is_set(&["DATABASE_URL", "DATABASE_URL_FILE"])
            || context.database_url().is_some();
        let (private, database) = if given_url {
            let database = context.database().await?;
            refuse_strangers(&folder, &database).await?;
            (None, database)
        } else {
            let private = Embedded::start(options).await.map_err(refused)?;
            let database = Database::open(&private.connect_settings());
            (Some(private), database)
        };
        database.migrate(false).await?;

        let simulator =
            start_simulator(args.simulator_port, &folder, &context.clock, &mut remarks).await?;
        let settings = settings(&folder, &simulator, context, private.is_some())?;
        canary::check(&database, &settings.keyring)
            .await
            .map_err(refused)?;
        let demo = demo_tenant(&folder, &database, &settings, &simulator, context).await?;
        let callback = set_callback(callback, &demo, &database, &settings).await?;
        let (transaction, subscription) = purchases(&simulator, &context.clock)?;

        let webhooks = |store| format!("http://{address}/v1/webhooks/{store}/{}", demo.tenant);
        simulator
            .apple()
            .set_push(APP, NotificationUrls::to(&webhooks("apple")))
            .map_err(refused)?;
        simulator
            .google()
            .set_push(APP, PushSubscription::to(&webhooks("google")))
            .map_err(refused)?;
        let service = Service::build(&settings, &database, &context.clock).map_err(refused)?;
        let serving = service.serve(listener, Manners::default())?;
        let database_url = private.as_ref().map(Embedded::url);
        drop(log);
        Ok(Self {
            private,
            database,
            simulator,
            serving,
            client: reqwest::Client::builder()
                .no_proxy()
                .build()
                .map_err(refused)?,
            demo,
            callback,
            transaction,
            subscription,
            url: format!("http://{address}"),
            folder,
            database_url,
            remarks,
        })
    }

    /// Stops everything, from the top down.
    pub(super) async fn strike(self) {
        self.serving.stop(GRACE).await;
        self.simulator.stop().await;
        self.database.close().await;
        if let Some(private) = self.private {
            private.stop().await;
        }
    }

    pub(super) fn client(&self) -> &reqwest::Client {
        &self.client
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn simulator(&self) -> &Simulator {
        &self.simulator
    }

    pub(super) fn simulator_url(&self) -> String {
        self.simulator
            .url()
            .as_str()
            .trim_end_matches('/')
            .to_owned()
    }

    pub(super) fn control_url(&self) -> String {
        self.simulator.control_url().to_string()
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.demo.tenant
    }

    pub(super) fn key(&self) -> &str {
        &self.demo.key
    }

    pub(super) fn callback_url(&self) -> String {
        self.callback.url()
    }

    pub(super) fn callback(&mut self) -> &mut Callback {
        &mut self.callback
    }

    pub(super) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.folder.join("attesto.log")
    }

    pub(super) fn database_note(&self) -> String {
        match &self.database_url {
            Some(_) => format!(
                "a private Postgres in {}",
                self.folder.join("postgres").display()
            ),
            None => "the one of DATABASE_URL".to_owned(),
        }
    }

    /// The lines that let the command line work on this database.
    pub(super) fn exports(&self) -> String {
        let key = self.folder.join("encryption.key");
        // What is in the environment for another database must not be taken for this one's.
        let others = "unset DATABASE_DIRECT_URL DATABASE_DIRECT_URL_FILE DATABASE_URL_FILE \
            ATTESTO_ENCRYPTION_KEY ATTESTO_ENCRYPTION_KEYS_RETIRED ATTESTO_ENCRYPTION_KEYS_RETIRED_FILE";
        let database = self.database_url.as_ref().map_or_else(String::new, |url| {
            format!("{others}\nexport DATABASE_URL='{url}'\n")
        });
        format!(
            "{database}export ATTESTO_ENCRYPTION_KEY_FILE='{}'\n",
            key.display()
        )
    }

    pub(super) fn apple_transaction(&self) -> &Transaction {
        &self.transaction
    }

    pub(super) fn google_subscription(&self) -> &Subscription {
        &self.subscription
    }
}

fn refused(problem: impl std::fmt::Display) -> Failure {
    Failure::refused(format!("{problem}."))
}

/// Listens on `port`, or on the next one that is free.
async fn listen(port: u16, what: &str, remarks: &mut Vec<String>) -> Result<TcpListener, Failure> {
    for candidate in port..=port.saturating_add(NEXT_PORTS) {
        match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, candidate))).await {
            Ok(listener) => {
                if candidate != port {
                    remarks.push(format!(
                        "Port {port} is taken: the {what} is on {candidate} instead."
                    ));
                }
                return Ok(listener);
            }
            Err(problem) if problem.kind() == ErrorKind::AddrInUse => {}
            Err(problem) => {
                return Err(refused(format!(
                    "cannot listen on port {candidate} for the {what}: {problem}"
                )));
            }
        }
    }
    Err(refused(format!(
        "port {port} and the {NEXT_PORTS} after it are all taken: choose another for the {what}"
    )))
}

async fn start_simulator(
    port: u16,
    folder: &Path,
    clock: &Clock,
    remarks: &mut Vec<String>,
) -> Result<Simulator, Failure> {
    let last = port.saturating_add(NEXT_PORTS);
    for candidate in port..=last {
        let options = SimulatorOptions {
            bind: SocketAddr::from((IpAddr::V4(Ipv4Addr::LOCALHOST), candidate)),
            folder: Some(folder.join("simulator")),
            ..SimulatorOptions::new(clock.clone())
        };
        match Simulator::start(options).await {
            Ok(simulator) => {
                if candidate != port {
                    remarks.push(format!(
                        "Port {port} is taken: the simulated stores are on {candidate} instead."
                    ));
                }
                return Ok(simulator);
            }
            Err(problem) if problem.kind() == ErrorKind::AddrInUse => {}
            Err(problem) => {
                return Err(refused(format!(
                    "the simulated stores cannot start: {problem}"
                )));
            }
        }
    }
    Err(refused(format!(
        "ports {port} to {last} are all taken: choose another with --simulator-port"
    )))
}

/// What the service runs with: everybody's defaults, and the simulated stores in place of the real ones. The private database
/// is sealed with a key of its own, whatever is in the environment for another one.
fn settings(
    folder: &Path,
    simulator: &Simulator,
    context: &Context,
    is_private: bool,
) -> Result<Settings, Failure> {
    let roots = folder.join("simulator-root.pem");
    fs::write(&roots, simulator.apple_root_pem())?;
    let own_key = folder.join("encryption.key");
    // With a database of somebody's own comes the key it is sealed with, if there is one.
    let has_key =
        !is_private && context.is_set(&["ATTESTO_ENCRYPTION_KEY", "ATTESTO_ENCRYPTION_KEY_FILE"]);
    if !has_key && !own_key.exists() {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key)
            .map_err(|_| refused("no random bytes for an encryption key"))?;
        write_secret(&own_key, STANDARD.encode(key).as_bytes())?;
    }
    let mut given: Vec<(String, String)> = simulator
        .settings()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let mut put = |name: &str, value: String| {
        given.retain(|(known, _)| known != name);
        given.push((name.to_owned(), value));
    };
    put("APPLE_ROOT_CERTIFICATES", roots.display().to_string());
    put("ATTESTO_ENV", "development".to_owned());
    // The demo tenant's callback is on this machine.
    put("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true".to_owned());
    // The service is handed its database and its listener; these only complete the settings.
    put("ATTESTO_EMBEDDED_POSTGRES", "true".to_owned());
    if !has_key {
        put("ATTESTO_ENCRYPTION_KEY_FILE", own_key.display().to_string());
    }
    let is_of_another =
        |name: &str| name.starts_with("ATTESTO_ENCRYPTION_KEY") || name.starts_with("DATABASE_");
    let lookup = |name: &str| {
        let is_meant = !is_private || !is_of_another(name);
        is_meant.then(|| context.variable(name)).flatten()
    };
    Settings::parse(&Raw::new(given, &lookup)).map_err(Failure::settings)
}

/// A database with tenants and without ours is at work for somebody: nothing may be delivered from it, let alone with
/// private callbacks allowed.
async fn refuse_strangers(folder: &Path, database: &Database) -> Result<(), Failure> {
    let tenants = match store::list_tenants(database).await {
        Err(error) if is_missing_table(&error) => return Ok(()),
        tenants => tenants?,
    };
    let ours = kept_demo(folder).map(|demo| demo.tenant);
    if tenants.is_empty()
        || tenants
            .iter()
            .any(|tenant| Some(&tenant.id) == ours.as_ref())
    {
        return Ok(());
    }
    Err(refused(format!(
        "the database of DATABASE_URL has tenants of its own ({}), whose events this would deliver. Leave DATABASE_URL out to use a private Postgres, or name an empty database",
        tenants.len()
    )))
}

/// What an earlier run kept.
fn kept_demo(folder: &Path) -> Option<Demo> {
    let bytes = fs::read(folder.join("demo.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The demo tenant with its key and credentials: the one of an earlier run when it is still there.
async fn demo_tenant(
    folder: &Path,
    database: &Database,
    settings: &Settings,
    simulator: &Simulator,
    context: &Context,
) -> Result<Demo, Failure> {
    let path = folder.join("demo.json");
    let kept = kept_demo(folder);
    let known = match &kept {
        Some(demo) => store::find_tenant(database, &demo.tenant)
            .await?
            .is_some_and(|tenant| tenant.is_active),
        None => false,
    };
    let demo = match kept {
        Some(demo) if known && !demo.secret.is_empty() => demo,
        _ => {
            let now = context.clock.now();
            let name: Name = "Demo"
                .parse()
                .map_err(|_| refused("the demo tenant's name is refused"))?;
            let tenant = store::create_tenant(database, &name, now).await?.id;
            let raw = RawKey::mint(KeyEnvironment::Test);
            store::create_key(
                database,
                &tenant,
                Some(&name),
                KeyEnvironment::Test,
                &raw,
                now,
            )
            .await
            .map_err(refused)?;
            let demo = Demo {
                tenant,
                key: raw.expose().to_owned(),
                secret: SigningSecret::generate().expose().to_owned(),
            };
            write_secret(&path, &serde_json::to_vec(&demo).map_err(refused)?)?;
            demo
        }
    };
    let key = simulator.apple().key();
    let credentials = Credentials {
        bundle_id: APP.to_owned(),
        key_id: key.key_id,
        issuer_id: key.issuer_id,
        key: SigningKey::parse(key.private_key.as_bytes()).map_err(refused)?,
        environment: EnvironmentChoice::Auto,
        app_apple_id: i64::try_from(simulator.apple().app(APP).app_apple_id).ok(),
    };
    let new = apple::store::NewCredentials {
        file: key.private_key.as_bytes(),
        credentials: &credentials,
    };
    apple::store::put(database, &settings.keyring, &demo.tenant, &new)
        .await
        .map_err(refused)?;
    let file = simulator.google_service_account().to_string();
    let account = ServiceAccount::parse(file.as_bytes()).map_err(refused)?;
    let google = google::store::NewCredentials {
        package_name: APP,
        file: file.as_bytes(),
        account: &account,
        pubsub_audience: None,
        pubsub_service_account: Some(simulator.google().push_account()),
        pubsub_topic: None,
    };
    google::store::put(database, &settings.keyring, &demo.tenant, &google)
        .await
        .map_err(refused)?;
    Ok(demo)
}

/// Where the demo tenant's events go, and what signs them.
async fn set_callback(
    listener: TcpListener,
    demo: &Demo,
    database: &Database,
    settings: &Settings,
) -> Result<Callback, Failure> {
    let secret = SigningSecret::parse(&demo.secret).map_err(refused)?;
    let callback = Callback::start(listener, secret.clone())?;
    let url = callback.url();
    let change = endpoint::store::Change {
        callback_url: Some(&url),
        secret: Some(&secret),
        is_active: Some(true),
        overlap: Duration::ZERO,
    };
    // The database's clock is the clock: nobody moves it here.
    let lead = Duration::ZERO;
    endpoint::store::change(database, &settings.keyring, &demo.tenant, &change, lead)
        .await
        .map_err(refused)?;
    Ok(callback)
}

/// The demo purchases: those of an earlier run while they are worth something, else new ones. Whoever tries things out
/// refunds and expires them, and the next run must find something good to ask about all the same.
fn purchases(simulator: &Simulator, clock: &Clock) -> Result<(Transaction, Subscription), Failure> {
    let now = clock.now();
    let (apple, google) = (simulator.apple(), simulator.google());
    let is_good = |one: &Transaction| {
        one.bundle_id == APP
            && one.revocation.is_none()
            && !one.is_upgraded
            && one
                .expires_date
                .is_some_and(|end| end > now.plus(WORTH_ASKING))
    };
    let made = apple.transactions();
    let good = made.iter().rev().find(|one| is_good(one)).cloned();
    let transaction = if let Some(good) = good {
        good
    } else {
        let new = NewTransaction {
            transaction_id: Some((FIRST_TRANSACTION_ID + made.len() as u64).to_string()),
            bundle_id: Some(APP.to_owned()),
            product_id: Some(PRODUCT.to_owned()),
            environment: Environment::Production,
            ..NewTransaction::default()
        };
        apple.create(new).map_err(refused)?
    };
    let is_good = |one: &Subscription| {
        one.package_name == APP
            && one.state(now) == "SUBSCRIPTION_STATE_ACTIVE"
            && one.expiry() > now.plus(WORTH_ASKING)
    };
    let made = google.subscriptions();
    let good = made.iter().rev().find(|one| is_good(one)).cloned();
    let subscription = if let Some(good) = good {
        good
    } else {
        let new = NewSubscription {
            purchase_token: Some(format!("demo-purchase-token-{}", made.len() + 1)),
            package_name: Some(APP.to_owned()),
            product_id: Some(PRODUCT.to_owned()),
            obfuscated_external_account_id: Some("demo-user-1".to_owned()),
            ..NewSubscription::default()
        };
        google.subscribe(new).map_err(refused)?
    };
    Ok((transaction, subscription))
}

/// Removes what earlier runs left. Never while a run goes on: its Postgres is asked for first, and refused.
async fn start_over(folder: &Path, options: EmbeddedOptions) -> Result<(), Failure> {
    if !folder.exists() {
        return Ok(());
    }
    Embedded::start(options)
        .await
        .map_err(refused)?
        .stop()
        .await;
    fs::remove_dir_all(folder)
        .map_err(|problem| refused(format!("{} cannot be removed: {problem}", folder.display())))
}

/// Root's Postgres is another user's: that user must be able to pass through.
fn make_folder(folder: &Path) -> Result<(), Failure> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(folder)
        .map_err(|problem| refused(format!("{} cannot be made: {problem}", folder.display())))
}

fn write_secret(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// Log lines would drown the questions: they go to a file.
fn log_to(folder: &Path) -> Result<telemetry::Writer, Failure> {
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(folder.join("attesto.log"))?;
    let log = Log {
        level: tracing::level_filters::LevelFilter::INFO,
        format: LogFormat::Json,
        classes_only: false,
    };
    Ok(telemetry::install_to(&log, file))
}
