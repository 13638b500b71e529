//! Starts what the example requests need: a database, the simulated stores, a demo tenant, the service.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use super::super::callback_receiver::CallbackReceiver;
use super::args::DevArgs;
use crate::app::{App, RunningApp};
use crate::base::clock::Clock;
use crate::base::id::TenantId;
use crate::config::{AppSettings, RawSettings};
use crate::credentials::canary;
use crate::db::{Database, is_missing_table};
use crate::deliveries::endpoint::{self, SigningSecret};
use crate::embedded_postgres::{EmbeddedOptions, EmbeddedPostgres};
use crate::server::ConnectionLimits;
use crate::simulator::state::apple::{NewTransaction, SimulatedEnvironment, SimulatedTransaction};
use crate::simulator::state::apple_notifications::NotificationUrls;
use crate::simulator::state::google::{NewSubscription, SimulatedSubscription};
use crate::simulator::state::google_notifications::PushSubscription;
use crate::simulator::{Simulator, SimulatorOptions};
use crate::stores::apple::account::{AppleCredentials, EnvironmentChoice, SigningKey};
use crate::stores::apple::store as apple_store;
use crate::stores::google::account::GoogleServiceAccount;
use crate::stores::google::store as google_store;
use crate::telemetry;
use crate::telemetry::{LogFormat, LogSettings};
use crate::tenants::{ApiKeyEnvironment, DisplayName, RawApiKey, store};

use super::super::context::{CommandContext, CommandError};

/// Bundle ID and package name of the demo app.
pub(super) const DEMO_APP_ID: &str = "com.example.demo";
/// Product id of the demo subscription.
pub(super) const DEMO_PRODUCT_ID: &str = "com.example.demo.pro.monthly";
const FIRST_DEMO_TRANSACTION_ID: u64 = 2_000_000_000_000_001;
/// A purchase that expires sooner is not used: its answers would change during the run.
const MIN_REMAINING_VALIDITY: Duration = Duration::from_hours(1);
/// How many further ports are tried when one is in use.
const MAX_PORT_RETRIES: u16 = 50;
/// For requests in progress when the service stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// The demo tenant, kept for the next run. Its key gives access to simulated stores only.
#[derive(Serialize, Deserialize)]
struct DemoTenant {
    tenant: TenantId,
    key: String,
    /// Signing secret of the deliveries. Files of earlier releases have none.
    #[serde(default)]
    secret: String,
}

pub(super) struct DevEnvironment {
    embedded_postgres: Option<EmbeddedPostgres>,
    database: Database,
    simulator: Simulator,
    serving: RunningApp,
    http_client: reqwest::Client,
    demo_tenant: DemoTenant,
    callback: CallbackReceiver,
    apple_transaction: SimulatedTransaction,
    google_subscription: SimulatedSubscription,
    service_url: String,
    data_dir: PathBuf,
    database_url: Option<String>,
    remarks: Vec<String>,
}

impl DevEnvironment {
    pub(super) async fn start(
        args: &DevArgs,
        context: &CommandContext,
    ) -> Result<Self, CommandError> {
        let mut remarks = Vec::new();
        // The ports first, because a port in use is the most likely problem, and nothing has been changed yet.
        let listener = bind_next_free_port(args.port, "service", &mut remarks).await?;
        let address = listener.local_addr()?;
        let callback = bind_next_free_port(args.callback_port, "callback", &mut remarks).await?;

        let mut options = context.read_embedded_options()?;
        let folder = options
            .data_folder()
            .map_err(CommandError::from_cause)?
            .join("dev");
        options.data_dir = Some(folder.join("postgres"));
        if args.fresh {
            remove_previous_data(&folder, options.clone()).await?;
        }
        create_data_dir(&folder)?;
        let log = install_file_log(&folder)?;

        let has_own_database = context.is_any_variable_set(&["DATABASE_URL", "DATABASE_URL_FILE"])
            || context.database_url().is_some();
        let (embedded_postgres, database) = if has_own_database {
            let database = context.open_database().await?;
            reject_foreign_database(&folder, &database).await?;
            (None, database)
        } else {
            let postgres = EmbeddedPostgres::start(options)
                .await
                .map_err(CommandError::from_cause)?;
            let database = Database::open(&postgres.connect_settings());
            (Some(postgres), database)
        };
        database.migrate(false).await?;

        let simulator =
            start_simulator(args.simulator_port, &folder, &context.clock, &mut remarks).await?;
        let settings = build_settings(&folder, &simulator, context, embedded_postgres.is_some())?;
        canary::ensure_canaries(&database, &settings.keyring)
            .await
            .map_err(CommandError::from_cause)?;
        let demo = ensure_demo_tenant(&folder, &database, &settings, &simulator, context).await?;
        let callback = configure_demo_callback(callback, &demo, &database, &settings).await?;
        let (transaction, subscription) = ensure_demo_purchases(&simulator, &context.clock)?;

        let webhooks = |store| format!("http://{address}/v1/webhooks/{store}/{}", demo.tenant);
        simulator
            .apple()
            .set_notification_urls(
                DEMO_APP_ID,
                NotificationUrls::for_both_environments(&webhooks("apple")),
            )
            .map_err(CommandError::from_cause)?;
        simulator
            .google()
            .set_push_subscription(
                DEMO_APP_ID,
                PushSubscription::for_endpoint(&webhooks("google")),
            )
            .map_err(CommandError::from_cause)?;
        let service =
            App::build(&settings, &database, &context.clock).map_err(CommandError::from_cause)?;
        let serving = service.serve(listener, ConnectionLimits::default())?;
        let database_url = embedded_postgres
            .as_ref()
            .map(EmbeddedPostgres::connection_url);
        drop(log);
        Ok(Self {
            embedded_postgres,
            database,
            simulator,
            serving,
            http_client: reqwest::Client::builder()
                .no_proxy()
                .build()
                .map_err(CommandError::from_cause)?,
            demo_tenant: demo,
            callback,
            apple_transaction: transaction,
            google_subscription: subscription,
            service_url: format!("http://{address}"),
            data_dir: folder,
            database_url,
            remarks,
        })
    }

    pub(super) async fn stop(self) {
        self.serving.stop(SHUTDOWN_TIMEOUT).await;
        self.simulator.stop().await;
        self.database.close_connections().await;
        if let Some(postgres) = self.embedded_postgres {
            postgres.stop().await;
        }
    }

    pub(super) fn http_client(&self) -> &reqwest::Client {
        &self.http_client
    }

    pub(super) fn service_url(&self) -> &str {
        &self.service_url
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

    pub(super) fn tenant_id(&self) -> &TenantId {
        &self.demo_tenant.tenant
    }

    pub(super) fn api_key(&self) -> &str {
        &self.demo_tenant.key
    }

    pub(super) fn callback_url(&self) -> String {
        self.callback.url()
    }

    pub(super) fn callback(&mut self) -> &mut CallbackReceiver {
        &mut self.callback
    }

    pub(super) fn remarks(&self) -> &[String] {
        &self.remarks
    }

    pub(super) fn log_path(&self) -> PathBuf {
        self.data_dir.join("attesto.log")
    }

    pub(super) fn database_description(&self) -> String {
        match &self.database_url {
            Some(_) => format!(
                "a private Postgres in {}",
                self.data_dir.join("postgres").display()
            ),
            None => "the database of DATABASE_URL".to_owned(),
        }
    }

    /// Shell lines that make the command line use this database.
    pub(super) fn shell_exports(&self) -> String {
        let key = self.data_dir.join("encryption.key");
        // Variables for another database must not be used with this one.
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

    pub(super) fn apple_transaction(&self) -> &SimulatedTransaction {
        &self.apple_transaction
    }

    pub(super) fn google_subscription(&self) -> &SimulatedSubscription {
        &self.google_subscription
    }
}

/// Listens on `port`, or on the next free one, and then adds a remark.
async fn bind_next_free_port(
    port: u16,
    what: &str,
    remarks: &mut Vec<String>,
) -> Result<TcpListener, CommandError> {
    for candidate in port..=port.saturating_add(MAX_PORT_RETRIES) {
        match TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, candidate))).await {
            Ok(listener) => {
                if candidate != port {
                    remarks.push(format!(
                        "Port {port} is in use: the {what} uses {candidate} instead."
                    ));
                }
                return Ok(listener);
            }
            Err(problem) if problem.kind() == ErrorKind::AddrInUse => {}
            Err(problem) => {
                return Err(CommandError::from_cause(format!(
                    "cannot listen on port {candidate} for the {what}: {problem}"
                )));
            }
        }
    }
    Err(CommandError::from_cause(format!(
        "port {port} and the {MAX_PORT_RETRIES} after it are in use: choose another port for the {what}"
    )))
}

async fn start_simulator(
    port: u16,
    folder: &Path,
    clock: &Clock,
    remarks: &mut Vec<String>,
) -> Result<Simulator, CommandError> {
    let last = port.saturating_add(MAX_PORT_RETRIES);
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
                        "Port {port} is in use: the simulated stores use {candidate} instead."
                    ));
                }
                return Ok(simulator);
            }
            Err(problem) if problem.kind() == ErrorKind::AddrInUse => {}
            Err(problem) => {
                return Err(CommandError::from_cause(format!(
                    "the simulated stores cannot start: {problem}"
                )));
            }
        }
    }
    Err(CommandError::from_cause(format!(
        "ports {port} to {last} are in use: choose another with --simulator-port"
    )))
}

/// Settings of the service: the defaults, with the simulated stores instead of the real ones. The private database has an
/// encryption key of its own, whatever the environment sets for another one.
fn build_settings(
    folder: &Path,
    simulator: &Simulator,
    context: &CommandContext,
    is_private: bool,
) -> Result<AppSettings, CommandError> {
    let roots = folder.join("simulator-root.pem");
    fs::write(&roots, simulator.apple_root_pem())?;
    let own_key = folder.join("encryption.key");
    // The user's own database may come with its encryption key.
    let has_key = !is_private
        && context.is_any_variable_set(&["ATTESTO_ENCRYPTION_KEY", "ATTESTO_ENCRYPTION_KEY_FILE"]);
    if !has_key && !own_key.exists() {
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key)
            .map_err(|_| CommandError::from_cause("no random bytes for an encryption key"))?;
        write_secret_file(&own_key, STANDARD.encode(key).as_bytes())?;
    }
    let mut values: Vec<(String, String)> = simulator
        .environment_variables()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    let mut put = |name: &str, value: String| {
        values.retain(|(known, _)| known != name);
        values.push((name.to_owned(), value));
    };
    put("APPLE_ROOT_CERTIFICATES", roots.display().to_string());
    put("ATTESTO_ENV", "development".to_owned());
    // The demo tenant's callback has a private address.
    put("WEBHOOK_ALLOW_PRIVATE_CALLBACKS", "true".to_owned());
    // The service gets its database and listener directly; this only makes the settings complete.
    put("ATTESTO_EMBEDDED_POSTGRES", "true".to_owned());
    if !has_key {
        put("ATTESTO_ENCRYPTION_KEY_FILE", own_key.display().to_string());
    }
    let is_for_own_database =
        |name: &str| name.starts_with("ATTESTO_ENCRYPTION_KEY") || name.starts_with("DATABASE_");
    let lookup = |name: &str| {
        let is_used = !is_private || !is_for_own_database(name);
        is_used
            .then(|| context.environment_variable(name))
            .flatten()
    };
    AppSettings::parse(&RawSettings::new(values, &lookup)).map_err(CommandError::invalid_settings)
}

/// Refuses a database with tenants but without the demo tenant: it is in use, and this service would send its deliveries,
/// even to private addresses.
async fn reject_foreign_database(folder: &Path, database: &Database) -> Result<(), CommandError> {
    let tenants = match store::list_tenants(database).await {
        Err(error) if is_missing_table(&error) => return Ok(()),
        tenants => tenants?,
    };
    let ours = read_demo_tenant(folder).map(|demo| demo.tenant);
    if tenants.is_empty()
        || tenants
            .iter()
            .any(|tenant| Some(&tenant.id) == ours.as_ref())
    {
        return Ok(());
    }
    Err(CommandError::from_cause(format!(
        "the database of DATABASE_URL has tenants of its own ({}), and this command would send their events. Unset DATABASE_URL to use a private Postgres, or give an empty database",
        tenants.len()
    )))
}

fn read_demo_tenant(folder: &Path) -> Option<DemoTenant> {
    let bytes = fs::read(folder.join("demo.json")).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The demo tenant of an earlier run, or a new one; its store credentials are set in both cases.
async fn ensure_demo_tenant(
    folder: &Path,
    database: &Database,
    settings: &AppSettings,
    simulator: &Simulator,
    context: &CommandContext,
) -> Result<DemoTenant, CommandError> {
    let path = folder.join("demo.json");
    let kept = read_demo_tenant(folder);
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
            let name: DisplayName = "Demo"
                .parse()
                .map_err(|_| CommandError::from_cause("the demo tenant's name is invalid"))?;
            let tenant = store::create_tenant(database, &name, now).await?.id;
            let raw = RawApiKey::generate(ApiKeyEnvironment::Test);
            store::create_api_key(
                database,
                &tenant,
                Some(&name),
                ApiKeyEnvironment::Test,
                &raw,
                now,
            )
            .await
            .map_err(CommandError::from_cause)?;
            let demo = DemoTenant {
                tenant,
                key: raw.expose().to_owned(),
                secret: SigningSecret::generate().expose().to_owned(),
            };
            write_secret_file(
                &path,
                &serde_json::to_vec(&demo).map_err(CommandError::from_cause)?,
            )?;
            demo
        }
    };
    let key = simulator.apple().api_key();
    let credentials = AppleCredentials {
        bundle_id: DEMO_APP_ID.to_owned(),
        key_id: key.key_id,
        issuer_id: key.issuer_id,
        key: SigningKey::parse(key.private_key.as_bytes()).map_err(CommandError::from_cause)?,
        environment: EnvironmentChoice::Auto,
        app_apple_id: i64::try_from(simulator.apple().get_app(DEMO_APP_ID).app_apple_id).ok(),
    };
    let new = apple_store::NewAppleCredentials {
        key_file: key.private_key.as_bytes(),
        credentials: &credentials,
    };
    apple_store::set_credentials(database, &settings.keyring, &demo.tenant, &new)
        .await
        .map_err(CommandError::from_cause)?;
    let file = simulator.google_service_account().to_string();
    let account = GoogleServiceAccount::parse(file.as_bytes()).map_err(CommandError::from_cause)?;
    let google = google_store::NewGoogleCredentials {
        package_name: DEMO_APP_ID,
        key_file: file.as_bytes(),
        account: &account,
        pubsub_audience: None,
        pubsub_service_account: Some(simulator.google().push_account()),
        pubsub_topic: None,
    };
    google_store::set_credentials(database, &settings.keyring, &demo.tenant, &google)
        .await
        .map_err(CommandError::from_cause)?;
    Ok(demo)
}

/// Starts the demo callback and makes it the tenant's.
async fn configure_demo_callback(
    listener: TcpListener,
    demo: &DemoTenant,
    database: &Database,
    settings: &AppSettings,
) -> Result<CallbackReceiver, CommandError> {
    let secret = SigningSecret::parse(&demo.secret).map_err(CommandError::from_cause)?;
    let callback = CallbackReceiver::start(listener, Some(secret.clone()), StatusCode::OK)?;
    let url = callback.url();
    let change = endpoint::store::EndpointChange {
        callback_url: Some(&url),
        secret: Some(&secret),
        is_active: Some(true),
        overlap: Duration::ZERO,
        ..endpoint::store::EndpointChange::default()
    };
    endpoint::store::change_endpoint(database, &settings.keyring, &demo.tenant, &change)
        .await
        .map_err(CommandError::from_cause)?;
    Ok(callback)
}

/// The demo purchases: those of an earlier run while they are active, else new ones, because the user may have refunded
/// them or let them expire.
fn ensure_demo_purchases(
    simulator: &Simulator,
    clock: &Clock,
) -> Result<(SimulatedTransaction, SimulatedSubscription), CommandError> {
    let now = clock.now();
    let (apple, google) = (simulator.apple(), simulator.google());
    let is_usable = |one: &SimulatedTransaction| {
        one.bundle_id == DEMO_APP_ID
            && one.revocation.is_none()
            && !one.is_upgraded
            && one
                .expires_date
                .is_some_and(|end| end > now.plus(MIN_REMAINING_VALIDITY))
    };
    let existing = apple.list_transactions();
    let usable = existing.iter().rev().find(|one| is_usable(one)).cloned();
    let transaction = if let Some(usable) = usable {
        usable
    } else {
        let new = NewTransaction {
            transaction_id: Some((FIRST_DEMO_TRANSACTION_ID + existing.len() as u64).to_string()),
            bundle_id: Some(DEMO_APP_ID.to_owned()),
            product_id: Some(DEMO_PRODUCT_ID.to_owned()),
            environment: SimulatedEnvironment::Production,
            ..NewTransaction::default()
        };
        apple
            .create_transaction(new)
            .map_err(CommandError::from_cause)?
    };
    let is_usable = |one: &SimulatedSubscription| {
        one.package_name == DEMO_APP_ID
            && one.state_name(now) == "SUBSCRIPTION_STATE_ACTIVE"
            && one.latest_expiry_time() > now.plus(MIN_REMAINING_VALIDITY)
    };
    let existing = google.list_subscriptions();
    let usable = existing.iter().rev().find(|one| is_usable(one)).cloned();
    let subscription = if let Some(usable) = usable {
        usable
    } else {
        let new = NewSubscription {
            purchase_token: Some(format!("demo-purchase-token-{}", existing.len() + 1)),
            package_name: Some(DEMO_APP_ID.to_owned()),
            product_id: Some(DEMO_PRODUCT_ID.to_owned()),
            obfuscated_external_account_id: Some("demo-user-1".to_owned()),
            ..NewSubscription::default()
        };
        google
            .buy_subscription(new)
            .map_err(CommandError::from_cause)?
    };
    Ok((transaction, subscription))
}

/// Deletes the data of earlier runs. Fails while another run uses it, because its Postgres cannot be started twice.
async fn remove_previous_data(folder: &Path, options: EmbeddedOptions) -> Result<(), CommandError> {
    if !folder.exists() {
        return Ok(());
    }
    EmbeddedPostgres::start(options)
        .await
        .map_err(CommandError::from_cause)?
        .stop()
        .await;
    fs::remove_dir_all(folder).map_err(|problem| {
        CommandError::from_cause(format!("{} cannot be deleted: {problem}", folder.display()))
    })
}

/// Mode 0711, because under root Postgres runs as another user, which must be able to enter the folder.
fn create_data_dir(folder: &Path) -> Result<(), CommandError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(folder)
        .map_err(|problem| {
            CommandError::from_cause(format!("{} cannot be created: {problem}", folder.display()))
        })
}

fn write_secret_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

/// The log goes to a file, so that stdout has only the walkthrough.
fn install_file_log(folder: &Path) -> Result<telemetry::LogWriter, CommandError> {
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(folder.join("attesto.log"))?;
    let log = LogSettings {
        level: tracing::level_filters::LevelFilter::INFO,
        format: LogFormat::Json,
        is_cause_redacted: false,
    };
    Ok(telemetry::install_to(&log, file))
}
