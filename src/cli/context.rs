//! The settings, the database and the keys of one run of the program, and how a command fails.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::base::clock::Clock;
use crate::base::error::to_sentence;
use crate::base::id::{MalformedIdError, TenantId};
use crate::config::groups::WebhookSettings;
use crate::config::{self, RawSettings, StoreSettings, admin};
use crate::credentials::canary::{self, CanaryError};
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Operator};
use crate::deliveries::SenderSettings;
use crate::deliveries::body::EventBodyError;
use crate::egress::EgressPolicy;
use crate::embedded_postgres::{EmbeddedOptions, EmbeddedPostgres};
use crate::outbound::{StoreClients, Upstream};
use crate::replicas::live_replicas::format_name_list;
use crate::replicas::{HEARTBEAT_TIMEOUT, LiveReplicas};
use crate::tenants::store::{TenantChangeError, find_tenant};

use super::operator;
use super::output::{OutputFormat, OutputWriter};
use crate::base::shutdown::ShutdownSignals;

/// For finding out why there was no connection.
const EXPLAIN_TIMEOUT: Duration = Duration::from_secs(3);

/// What a command may use. Database and keys are read from the settings when a command first needs them.
pub(crate) struct CommandContext {
    pub(crate) output: OutputWriter,
    pub(crate) clock: Clock,
    command_name: String,
    database_url: Option<String>,
    environment: EnvironmentLookup,
    /// Started, or joined when it is running, on first use.
    embedded_postgres: OnceCell<EmbeddedPostgres>,
    /// What was opened, and its URL without the password.
    opened_database: OnceLock<(Database, String)>,
}

type EnvironmentLookup = Box<dyn Fn(&str) -> Option<OsString> + Send + Sync>;

impl CommandContext {
    /// `database_url` is the value of `--database-url`; `lookup` reads an environment variable.
    pub(crate) fn new(
        format: OutputFormat,
        database_url: Option<String>,
        lookup: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static,
    ) -> Self {
        Self {
            output: OutputWriter::for_stdout(format),
            clock: Clock::system(),
            command_name: String::new(),
            database_url,
            environment: Box::new(lookup),
            embedded_postgres: OnceCell::new(),
            opened_database: OnceLock::new(),
        }
    }

    /// Sets the command's words, for the operator audit.
    #[must_use]
    pub(crate) fn with_command_name(self, command: String) -> Self {
        Self {
            command_name: command,
            ..self
        }
    }

    pub(crate) fn environment_variable(&self, name: &str) -> Option<OsString> {
        (self.environment)(name)
    }

    /// Whether one of these environment variables is set. Blank is unset, as for every setting.
    pub(crate) fn is_any_variable_set(&self, names: &[&str]) -> bool {
        let is_blank = |value: &OsStr| value.to_string_lossy().trim().is_empty();
        let mut given = names
            .iter()
            .filter_map(|name| self.environment_variable(name));
        given.any(|value| !is_blank(&value))
    }

    /// Reads settings of the service from the environment; `read` selects the needed ones.
    pub(crate) fn read_settings<T>(
        &self,
        read: impl FnOnce(&RawSettings<'_>) -> Result<T, Vec<String>>,
    ) -> Result<T, CommandError> {
        let lookup = |name: &str| self.environment_variable(name);
        let raw = RawSettings::new(BTreeMap::new(), &lookup);
        read(&raw).map_err(CommandError::invalid_settings)
    }

    /// Where and as whom the embedded Postgres runs.
    pub(crate) fn read_embedded_options(&self) -> Result<EmbeddedOptions, CommandError> {
        admin::read_embedded_options(&*self.environment).map_err(CommandError::invalid_settings)
    }

    /// What stores are called with: the service's settings, and its proxy.
    pub(crate) fn build_upstream(&self, stores: &StoreSettings) -> Result<Upstream, CommandError> {
        let proxy = self.read_settings(config::read_egress_proxy)?;
        let clients = StoreClients::new(proxy.as_ref()).map_err(CommandError::from_cause)?;
        Ok(Upstream::new(clients, stores.upstream_timeout))
    }

    /// What callbacks are called with: the service's settings, and its proxy.
    pub(crate) fn read_sender_settings(
        &self,
        webhooks: &WebhookSettings,
        database: &Database,
    ) -> Result<SenderSettings, CommandError> {
        let policy = build_egress_policy(webhooks, database);
        let proxy = self.read_settings(config::read_egress_proxy)?;
        Ok(SenderSettings::new(webhooks.callback_timeout, policy).with_proxy(proxy))
    }

    /// A token that SIGINT or SIGTERM cancels, for a command that can stop in the middle. It works until the returned handle
    /// is dropped. A second signal ends the process.
    #[expect(clippy::unused_self, reason = "every command has the context at hand")]
    pub(crate) fn cancel_on_signal(
        &self,
    ) -> Result<(CancellationToken, AbortOnDropHandle<()>), CommandError> {
        let mut signals = ShutdownSignals::register_handlers().map_err(|problem| {
            CommandError::failed(to_sentence(format!("cannot wait for signals: {problem}")))
        })?;
        let stop = CancellationToken::new();
        let token = stop.clone();
        let waiting = tokio::spawn(async move {
            signals.next_signal().await;
            token.cancel();
            signals.next_signal().await;
            std::process::exit(130);
        });
        Ok((stop, AbortOnDropHandle::new(waiting)))
    }

    pub(crate) fn database_url(&self) -> Option<&str> {
        self.database_url.as_deref()
    }

    /// The database of `DATABASE_URL`, or the embedded Postgres, which is started until [`close`](Self::close) unless it runs
    /// already. The connection is made with the first query.
    pub(crate) async fn open_database(&self) -> Result<Database, CommandError> {
        let settings = admin::read_database(&*self.environment, self.database_url())
            .map_err(CommandError::invalid_settings)?;
        let settings = match settings {
            Some(settings) => settings,
            None if admin::read_embedded_flag(&*self.environment)
                .map_err(CommandError::invalid_settings)? =>
            {
                let options = self.read_embedded_options()?;
                let private = self
                    .embedded_postgres
                    .get_or_try_init(|| EmbeddedPostgres::attach(options));
                let private = private
                    .await
                    .map_err(|error| CommandError::failed(error.to_string()))?;
                private.connect_settings()
            }
            None => {
                return Err(CommandError::usage_error(
                    "no database is given. Give --database-url postgres://…, or set DATABASE_URL or DATABASE_URL_FILE; for the embedded Postgres, set ATTESTO_EMBEDDED_POSTGRES=true.",
                ));
            }
        };
        let database = Database::open_for_operator(&settings, &self.current_operator());
        // Of several databases, none is named in a message.
        let _ = self
            .opened_database
            .set((database.clone(), settings.redacted_url()));
        Ok(database)
    }

    /// The same failure, with the cause and the address of a database that cannot be reached.
    pub(crate) async fn explain_failure(&self, failure: CommandError) -> CommandError {
        let Some((database, url)) = self.opened_database.get() else {
            return failure;
        };
        let message = match failure.database {
            DatabaseFailure::None => return failure,
            DatabaseFailure::Unavailable => failure.message.clone(),
            DatabaseFailure::NoConnection => {
                let connecting = database.connect_directly("attesto-cli");
                match timeout(EXPLAIN_TIMEOUT, connecting).await {
                    Ok(Err(cause)) => crate::db::describe_error(&cause),
                    Ok(Ok(_)) => failure.message.clone(),
                    Err(_) => crate::db::describe_error(&crate::db::Error::Io(
                        std::io::ErrorKind::TimedOut.into(),
                    )),
                }
            }
        };
        CommandError {
            message: format!("{message} (The database is {url})"),
            ..failure
        }
    }

    /// For the operator audit.
    fn current_operator(&self) -> Operator {
        let sudo = self.environment_variable("SUDO_USER");
        Operator {
            actor: operator::current_actor(sudo.as_deref().and_then(OsStr::to_str)),
            host: crate::replicas::host_name(),
            command: self.command_name.clone(),
        }
    }

    /// Leaves the embedded Postgres, and stops it if this command started it.
    pub(crate) async fn close(self) {
        if let Some(private) = self.embedded_postgres.into_inner() {
            private.stop().await;
        }
    }

    /// The keyring for a command that seals: verified to be this database's, and every live replica can open what it
    /// seals.
    pub(crate) async fn load_verified_keyring(
        &self,
        database: &Database,
    ) -> Result<Arc<Keyring>, CommandError> {
        let keyring = self.require_keyring()?;
        canary::check_canaries(database, &keyring).await?;
        let replicas = LiveReplicas::load(database).await?;
        let key_id = keyring.sealing_key_id();
        let without = replicas.hosts_without_key(key_id);
        if !without.is_empty() {
            return Err(CommandError::failed(format!(
                "the service on {} cannot open what key {key_id} seals: first add that key to ATTESTO_ENCRYPTION_KEYS_RETIRED there and restart it (a killed process counts for {} s).",
                format_name_list(&without),
                HEARTBEAT_TIMEOUT.as_secs()
            )));
        }
        canary::ensure_canaries(database, &keyring).await?;
        Ok(keyring)
    }

    /// `None` when no encryption key is set.
    pub(crate) fn find_configured_keyring(&self) -> Result<Option<Keyring>, CommandError> {
        admin::read_keyring(&*self.environment).map_err(CommandError::invalid_settings)
    }

    /// The keyring, not verified against the database.
    pub(crate) fn require_keyring(&self) -> Result<Arc<Keyring>, CommandError> {
        let keyring = self.find_configured_keyring()?.ok_or_else(|| {
            CommandError::usage_error(
                "this command seals or opens a secret: set ATTESTO_ENCRYPTION_KEY (or ATTESTO_ENCRYPTION_KEY_FILE) to the key the service runs with.",
            )
        })?;
        Ok(Arc::new(keyring))
    }
}

/// The addresses that a callback may have: never the database's. The service also refuses its own listener, which is not
/// known here.
pub(super) fn build_egress_policy(webhooks: &WebhookSettings, database: &Database) -> EgressPolicy {
    EgressPolicy::new(webhooks.is_private_callback_allowed)
        .with_denied_addresses(database.server_addresses())
}

/// Exit 1 when there is no such tenant, so that an empty list and a mistyped tenant id have different answers.
pub(super) async fn ensure_tenant_exists(
    database: &Database,
    tenant: &TenantId,
) -> Result<(), CommandError> {
    match find_tenant(database, tenant).await? {
        Some(_) => Ok(()),
        None => Err(TenantChangeError::TenantNotFound(tenant.clone()).into()),
    }
}

/// Why a command failed: the message for stderr, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandError {
    /// 1 or 2.
    pub(crate) exit_status: u8,
    /// One line for each problem, without secrets.
    pub(crate) message: String,
    database: DatabaseFailure,
}

/// Whether a command failed because of its connection to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DatabaseFailure {
    None,
    /// The message says why.
    Unavailable,
    /// The pool had no connection and does not say why: it keeps trying while the server refuses.
    NoConnection,
}

impl CommandError {
    /// Exit 1: not found, already in that state, or something outside failed.
    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self {
            exit_status: 1,
            message: message.into(),
            database: DatabaseFailure::None,
        }
    }

    /// Exit 2: wrong usage or a wrong setting.
    pub(crate) fn usage_error(message: impl Into<String>) -> Self {
        Self {
            exit_status: 2,
            message: message.into(),
            database: DatabaseFailure::None,
        }
    }

    /// Exit 1, with `cause` as the sentence.
    pub(crate) fn from_cause(cause: impl Display) -> Self {
        Self::failed(to_sentence(cause))
    }

    /// Exit 2, with `cause` as the sentence.
    pub(crate) fn from_usage_cause(cause: impl Display) -> Self {
        Self::usage_error(to_sentence(cause))
    }

    /// Exit 2, with a line for each problem.
    #[expect(clippy::needless_pass_by_value, reason = "passed to `map_err`")]
    pub(crate) fn invalid_settings(problems: Vec<String>) -> Self {
        Self::usage_error(problems.join("\n"))
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.exit_status)
    }
}

impl From<CanaryError> for CommandError {
    fn from(error: CanaryError) -> Self {
        match error {
            CanaryError::Database(error) => error.into(),
            wrong => Self::failed(to_sentence(wrong)),
        }
    }
}

impl From<MalformedIdError> for CommandError {
    fn from(problem: MalformedIdError) -> Self {
        Self::usage_error(problem.to_string())
    }
}

impl From<crate::db::Error> for CommandError {
    fn from(error: crate::db::Error) -> Self {
        Self {
            database: if matches!(error, crate::db::Error::PoolTimedOut) {
                DatabaseFailure::NoConnection
            } else if crate::db::is_unavailable(&error) {
                DatabaseFailure::Unavailable
            } else {
                DatabaseFailure::None
            },
            ..Self::failed(crate::db::describe_command_error(&error))
        }
    }
}

impl From<EventBodyError> for CommandError {
    fn from(error: EventBodyError) -> Self {
        match error {
            EventBodyError::Database(error) => error.into(),
            unreadable @ EventBodyError::Unreadable { .. } => Self::from_cause(unreadable),
        }
    }
}

impl From<std::io::Error> for CommandError {
    fn from(error: std::io::Error) -> Self {
        Self::failed(format!("cannot write the result: {error}"))
    }
}
