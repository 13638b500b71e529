//! `attesto serve`: runs the service until SIGINT or SIGTERM.
//!
//! It refuses to start with wrong settings, a port in use, a database of a newer release, or without a key that secrets
//! are sealed with. An unreachable database is no such reason: the service starts, `/health` answers, `/ready` names the
//! problem, and the connection is retried.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::context::{CommandContext, CommandError};
use super::service_manager;
use crate::app::{App, RunningApp};
use crate::base::backoff::Backoff;
use crate::base::clock::{Clock, Timestamp};
use crate::base::error::to_sentence;
use crate::base::shutdown::ShutdownSignals;
use crate::checks::explain_missing_key;
use crate::config::definitions::{SETTINGS, SettingDefinition, SettingKind};
use crate::config::effective::{
    READABLE_BY_EVERYONE, WRITABLE_BY_EVERYONE, WRITABLE_BY_OTHERS, secret_files_with_mode,
};
use crate::config::risks::find_setting_risks;
use crate::config::secret_file::EnvLookup;
use crate::config::{
    AppSettings, DatabaseSource, DeploymentMode, RawSettings, admin, read_deployment_mode,
    read_tls_files,
};
use crate::credentials::canary::{self, CanaryError};
use crate::crypto::keyring::Keyring;
use crate::db::{
    Database, DatabaseConnectError, MigrationError, SchemaState, is_missing_table, is_unavailable,
};
use crate::deliveries::hold;
use crate::embedded_postgres::EmbeddedPostgres;
use crate::outbound;
use crate::replicas::{MigrationBlockedError, host_name};
use crate::server::listen::{bind_listener, raise_connection_limits};
use crate::server::scrape;
use crate::server::tls::{ReloadableTls, TlsCertificate};
use crate::stores::apple::trust::JwsVerifier;
use crate::telemetry::{self, LogSettings, LogWriter, TraceMetrics, TracePipeline};

/// How long preparing the database may delay the log line `listening`.
const INITIAL_PREPARE_TIMEOUT: Duration = Duration::from_secs(3);
/// The first pause before the database is tried again; it doubles up to [`MAX_RETRY_INTERVAL`].
const INITIAL_RETRY_INTERVAL: Duration = Duration::from_millis(250);
const MAX_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a production service accepts requests after `/ready` began to fail, so that the load balancer can notice. At
/// most a fifth of `SHUTDOWN_GRACE_SECONDS`.
const MAX_DRAIN_DELAY: Duration = Duration::from_secs(5);

const TRACE_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The flags of `attesto serve`: one for each setting.
#[derive(Clone, Debug, Default)]
pub(crate) struct ServeArgs {
    /// Values by the environment variable that the flag replaces.
    flag_values: BTreeMap<String, String>,
}

impl clap::Args for ServeArgs {
    fn augment_args(command: Command) -> Command {
        SETTINGS.iter().fold(command, |command, setting| {
            command.arg(build_flag_arg(setting))
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for ServeArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS.iter() {
            if let Some(text) = matches.get_one::<String>(setting.flag) {
                self.flag_values
                    .insert(flag_variable_name(setting), text.clone());
            }
        }
        Ok(())
    }
}

impl ServeArgs {
    /// The settings from the flags and, where there is none, from the environment.
    pub(super) fn into_raw_settings<'a>(
        self,
        context: &CommandContext,
        lookup: EnvLookup<'a>,
    ) -> RawSettings<'a> {
        let mut values = self.flag_values;
        if let Some(url) = context.database_url() {
            values.insert("DATABASE_URL".to_owned(), url.to_owned());
        }
        RawSettings::new(values, lookup)
    }
}

/// The environment variable that a setting's flag replaces.
fn flag_variable_name(setting: &SettingDefinition) -> String {
    match setting.kind {
        SettingKind::Secret => format!("{}_FILE", setting.name),
        SettingKind::Plain | SettingKind::Switch => setting.name.to_owned(),
    }
}

fn build_flag_arg(setting: &'static SettingDefinition) -> Arg {
    let variable = match setting.kind {
        SettingKind::Secret => format!("{} or {}_FILE", setting.name, setting.name),
        SettingKind::Plain | SettingKind::Switch => setting.name.to_owned(),
    };
    let default = match setting.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let help = format!("{}{default} [env: {variable}]", setting.help);
    // clap is told neither variable nor default, so that its messages cannot show a value.
    let arg = Arg::new(setting.flag).long(setting.flag).help(help);
    match setting.kind {
        SettingKind::Switch => arg
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        SettingKind::Plain | SettingKind::Secret => arg.value_name(setting.value_name),
    }
}

/// Parses the settings, and reads the certificate files that they name. Returns a line for each problem.
pub(super) fn parse_settings(
    raw: &RawSettings<'_>,
    now: Timestamp,
) -> Result<AppSettings, Vec<String>> {
    let parsed = AppSettings::parse(raw);
    let mut problems = Vec::new();
    // Read even when other settings are wrong, so that all problems are reported at once.
    let roots = raw.find_text("APPLE_ROOT_CERTIFICATES").ok().flatten();
    if let Some(given) = roots
        && let Err(problem) = JwsVerifier::with_roots_from(Path::new(&given.text))
    {
        problems.push(to_sentence(format!("{}: {problem}", given.origin)));
    }
    let pair = read_tls_files(raw).ok().flatten();
    if let Some(Err(problem)) = pair.map(|files| TlsCertificate::from_files(&files, now)) {
        problems.push(to_sentence(problem));
    }
    if read_deployment_mode(raw) == Some(DeploymentMode::Production) {
        for (name, path) in secret_files_with_mode(raw, WRITABLE_BY_EVERYONE) {
            problems.push(format!(
                "{name}: every user of this machine can change {}, which is refused when ATTESTO_ENV is production: run chmod o-w on it.",
                path.display()
            ));
        }
    }
    match parsed {
        Ok(settings) if problems.is_empty() => Ok(settings),
        parsed => Err([parsed.err().unwrap_or_default(), problems].concat()),
    }
}

/// The problems of the settings, in which a lost encryption key is told from one that was not made yet.
async fn explain_problems(raw: &RawSettings<'_>, problems: Vec<String>) -> Vec<String> {
    let settings = admin::read_database(
        &|name| raw.find_os_value(name),
        raw.find_flag("DATABASE_URL"),
    );
    let database = settings.ok().flatten();
    let database = database.map(|settings| Database::open(&settings));
    let explained = explain_missing_key(database.as_ref(), problems).await;
    if let Some(database) = database {
        database.close_connections().await;
    }
    explained
}

pub(crate) async fn run(args: ServeArgs, context: &CommandContext) -> Result<(), CommandError> {
    let lookup = |name: &str| context.environment_variable(name);
    let raw = args.into_raw_settings(context, &lookup);
    let (log, settings) = match parse_settings(&raw, context.clock.now()) {
        Ok(settings) => (settings.log, Ok(settings)),
        Err(problems) => (
            LogSettings::best_effort(&raw),
            Err(CommandError::invalid_settings(
                explain_problems(&raw, problems).await,
            )),
        ),
    };
    let collector = settings.as_ref().ok().and_then(|it| it.traces.clone());
    let traces = collector.map(|it| {
        outbound::build_http_client().map(|client| TracePipeline::start(it, client, &host_name()))
    });
    let (traces, settings) = match traces.transpose() {
        Ok(traces) => (traces, settings),
        Err(problem) => (None, Err(CommandError::from_cause(problem))),
    };
    let writer = telemetry::install_logging(&log, traces.as_ref().map(TracePipeline::tracer));
    for (name, path) in secret_files_with_mode(&raw, READABLE_BY_EVERYONE) {
        let file = path.display();
        tracing::warn!(setting = name, %file, "secret_file_readable_by_everyone");
    }
    for (name, path) in secret_files_with_mode(&raw, WRITABLE_BY_OTHERS) {
        let file = path.display();
        let hint = "chmod 400 it: a user who can change it can replace the secret";
        tracing::warn!(setting = name, %file, hint, "secret_file_writable_by_others");
    }
    let risks = settings
        .as_ref()
        .ok()
        .map(|it| find_setting_risks(&raw, it));
    for risk in risks.into_iter().flatten() {
        tracing::warn!(
            check = risk.check,
            problem = risk.problem,
            hint = risk.advice,
            "unsafe_setting"
        );
    }
    let outcome = match settings {
        Ok(settings) => {
            let traces = traces.as_ref().map(TracePipeline::trace_metrics);
            serve_until_stopped(&settings, &context.clock, &writer, traces).await
        }
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &outcome {
        let error = failure.message.replace('\n', "; ");
        tracing::error!(fatal = true, error, "startup_failed");
    }
    if let Some(traces) = traces {
        traces.shut_down(TRACE_FLUSH_TIMEOUT).await;
    }
    writer.flush();
    outcome
}

async fn serve_until_stopped(
    settings: &AppSettings,
    clock: &Clock,
    writer: &LogWriter,
    traces: Option<TraceMetrics>,
) -> Result<(), CommandError> {
    let mut signals = ShutdownSignals::register_handlers().map_err(|problem| {
        CommandError::failed(to_sentence(format!("cannot wait for signals: {problem}")))
    })?;
    let started = tokio::select! {
        started = start_service(settings, clock, traces) => started?,
        signal = signals.next_signal() => {
            tracing::info!(signal, "shutdown");
            return Ok(());
        }
    };
    let StartedService {
        serving,
        database,
        embedded_postgres,
        database_preparation,
        _ready_notification,
    } = started;

    let outcome = tokio::select! {
        signal = signals.next_signal() => {
            tracing::info!(signal, "shutdown");
            Ok(())
        }
        // The database became reachable, and this release cannot use it.
        Err(problem) = database_preparation => Err(problem),
    };
    service_manager::notify_stopping();
    let second_signal = tokio::spawn(exit_on_second_signal(signals, writer.clone()));
    let _second_signal = AbortOnDropHandle::new(second_signal);
    let drain_delay = match settings.mode {
        DeploymentMode::Production if outcome.is_ok() => {
            MAX_DRAIN_DELAY.min(settings.shutdown_grace / 5)
        }
        _ => Duration::ZERO,
    };
    serving.start_draining();
    tokio::time::sleep(drain_delay).await;
    let finished = serving
        .stop(settings.shutdown_grace.saturating_sub(drain_delay))
        .await;
    let _ = tokio::time::timeout(MAX_RETRY_INTERVAL, database.close_connections()).await;
    if let Some(postgres) = embedded_postgres {
        postgres.stop().await;
    }
    tracing::info!(finished, "stopped");
    outcome
}

/// The first signal stops the service in order; a second one ends the process at once.
async fn exit_on_second_signal(mut signals: ShutdownSignals, writer: LogWriter) {
    let signal = signals.next_signal().await;
    tracing::warn!(signal, "shutdown_forced");
    writer.flush();
    std::process::exit(130);
}

struct StartedService {
    serving: RunningApp,
    database: Database,
    embedded_postgres: Option<EmbeddedPostgres>,
    /// Ends with an error when this release cannot use the database; pending while it is being prepared, and after.
    database_preparation: BoxFuture<'static, Result<(), CommandError>>,
    /// Tells the service manager when the database is prepared.
    _ready_notification: AbortOnDropHandle<()>,
}

async fn start_service(
    settings: &AppSettings,
    clock: &Clock,
    traces: Option<TraceMetrics>,
) -> Result<StartedService, CommandError> {
    let tls = match &settings.tls_files {
        Some(files) => Some(
            ReloadableTls::load(files.clone(), clock).map_err(CommandError::from_usage_cause)?,
        ),
        None => None,
    };
    // First, because a port in use is the most likely problem, and nothing has been changed yet.
    let listener = bind_listener(settings.listen)
        .await
        .map_err(CommandError::from_cause)?;
    let metrics = match settings.metrics_address {
        Some(address) => Some(
            scrape::bind_metrics_listener(address)
                .await
                .map_err(CommandError::from_cause)?,
        ),
        None => None,
    };
    let (embedded_postgres, connect) = match &settings.database {
        DatabaseSource::Url(connect) => (None, (**connect).clone()),
        DatabaseSource::Embedded(options) => {
            let postgres = EmbeddedPostgres::start(options.clone())
                .await
                .map_err(CommandError::from_cause)?;
            let connect = postgres.connect_settings();
            (Some(postgres), connect)
        }
    };
    let database = Database::open(&connect);
    let prepared = CancellationToken::new();
    let mut service = App::build(settings, &database, clock)
        .map_err(CommandError::from_cause)?
        .with_start_signal(prepared.clone());
    if let Some(listener) = metrics {
        service = service.with_metrics_listener(listener);
    }
    if let Some(metrics) = traces {
        service = service.with_trace_metrics(metrics);
    }
    let certificate = tls.as_ref().map(ReloadableTls::current_certificate);
    if let Some(tls) = tls {
        service = service.with_tls(tls);
    }
    let mut limits = raise_connection_limits();
    limits.max_connections_per_peer = settings
        .admission
        .max_connections_per_peer(limits.max_connections);
    let serving = service
        .serve(listener, limits)
        .map_err(CommandError::from_cause)?;
    let address = serving.address();

    let mut preparation = prepare_database(
        database.clone(),
        settings.migrate_on_start,
        settings.webhooks.is_hold_requested,
        settings.keyring.clone(),
        prepared.clone(),
    )
    .boxed();
    match tokio::time::timeout(INITIAL_PREPARE_TIMEOUT, &mut preparation).await {
        Ok(Ok(())) => preparation = std::future::pending().boxed(),
        Ok(Err(problem)) => {
            serving.stop(Duration::ZERO).await;
            if let Some(postgres) = embedded_postgres {
                postgres.stop().await;
            }
            return Err(problem);
        }
        Err(_) => {}
    }
    tracing::info!(
        port = address.port(),
        address = %address.ip(),
        env = settings.mode.as_str(),
        version = crate::VERSION,
        metrics = serving.metrics_address().map(tracing::field::display),
        certificateNotAfter = certificate.map(|pair| tracing::field::display(pair.not_after())),
        "listening"
    );
    let prepared = async move {
        prepared.cancelled().await;
        service_manager::notify_ready();
    };
    if settings.is_validation_audit_enabled && settings.retention.validation_audit.is_none() {
        tracing::warn!("validation_audit_enabled_no_retention");
    }
    Ok(StartedService {
        serving,
        database,
        embedded_postgres,
        database_preparation: preparation,
        _ready_notification: AbortOnDropHandle::new(tokio::spawn(prepared)),
    })
}

/// Migrates the tables and verifies the encryption keys as soon as the database is reachable, holds deliveries if that is asked for,
/// then cancels `prepared`. An error is permanent. With a wrong key it returns `Ok` and does not cancel `prepared`.
async fn prepare_database(
    database: Database,
    migrate: bool,
    is_hold_requested: bool,
    keyring: Arc<Keyring>,
    prepared: CancellationToken,
) -> Result<(), CommandError> {
    let mut backoff = Backoff::new(INITIAL_RETRY_INTERVAL, MAX_RETRY_INTERVAL);
    loop {
        let (cause, class) = match try_prepare_database(&database, migrate, &keyring).await {
            Ok(check) => {
                if check == KeyringCheck::Usable {
                    // Before "listening" is logged: an operator who reads it and releases deliveries must find them held.
                    if is_hold_requested {
                        hold::hold_with_retry(&database, &host_name()).await;
                    }
                    prepared.cancel();
                }
                return Ok(());
            }
            Err(PrepareError::Permanent(failure)) => return Err(failure),
            Err(PrepareError::Transient { cause, class }) => (cause, class),
        };
        tracing::warn!(cause, causeClass = class, "database_unavailable");
        tokio::time::sleep(backoff.next_delay(fastrand::f64())).await;
    }
}

enum PrepareError {
    /// A retry can succeed.
    Transient {
        cause: String,
        /// A short, safe description for the log.
        class: String,
    },
    /// A retry cannot succeed.
    Permanent(CommandError),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyringCheck {
    /// The keys open all canaries, or there are none yet.
    Usable,
    /// A key does not open its canary.
    WrongKey,
}

async fn try_prepare_database(
    database: &Database,
    migrate: bool,
    keyring: &Keyring,
) -> Result<KeyringCheck, PrepareError> {
    // An earlier release may have migrated it.
    database.check_encoding().await?;
    if migrate {
        migrate_if_allowed(database).await?;
    }
    // All key ids first: a canary exists only for keys that were configured here once.
    let check = match canary::check_all_key_ids(database, keyring).await {
        Ok(()) => canary::ensure_canaries(database, keyring).await,
        missing => missing,
    };
    match check {
        // Migrations run elsewhere; until then `/ready` reports the missing tables.
        Err(CanaryError::Database(error)) if is_missing_table(&error) => Ok(KeyringCheck::Usable),
        // `/ready` reports it too, so that no request is sent here until the key is corrected.
        Err(wrong @ CanaryError::WrongKey { .. }) => {
            tracing::error!(cause = %wrong, causeClass = wrong.error_class(), "wrong_encryption_key");
            Ok(KeyringCheck::WrongKey)
        }
        check => Ok(check.map(|()| KeyringCheck::Usable)?),
    }
}

async fn migrate_if_allowed(database: &Database) -> Result<(), PrepareError> {
    // A migration needs a connection beside the pools, which a role with few connections may not have.
    let schema = database.load_schema_state().await;
    if matches!(schema.map_err(MigrationError::from)?, SchemaState::UpToDate) {
        return Ok(());
    }
    match MigrationBlockedError::check_replicas(database).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => {
            return Err(PrepareError::transient_error(
                &problem,
                "an older release is running",
            ));
        }
        Err(newer @ MigrationError::DatabaseNewer { .. }) => {
            let schema = database
                .load_schema_state()
                .await
                .map_err(MigrationError::from)?;
            if !matches!(schema, SchemaState::AheadAndCompatible) {
                return Err(newer.into());
            }
            tracing::warn!("tables_of_a_newer_release");
            return Ok(());
        }
        Err(problem) => return Err(problem.into()),
    }
    database.migrate(false).await?;
    Ok(())
}

impl PrepareError {
    fn transient_error(cause: &dyn std::fmt::Display, class: impl Into<String>) -> Self {
        Self::Transient {
            cause: cause.to_string(),
            class: class.into(),
        }
    }
}

impl From<MigrationError> for PrepareError {
    fn from(problem: MigrationError) -> Self {
        match &problem {
            MigrationError::Database(error) if is_unavailable(error) => Self::transient_error(
                &problem,
                DatabaseConnectError::from_error(error).to_string(),
            ),
            MigrationError::AlreadyRunning | MigrationError::TableLocked(_) => {
                Self::transient_error(&problem, "in use")
            }
            _ => Self::Permanent(problem.into()),
        }
    }
}

impl From<CanaryError> for PrepareError {
    fn from(problem: CanaryError) -> Self {
        match &problem {
            CanaryError::Database(error) if is_unavailable(error) => Self::transient_error(
                &problem,
                DatabaseConnectError::from_error(error).to_string(),
            ),
            CanaryError::Database(_) => Self::Permanent(problem.into()),
            // Exit 2, as for any missing or wrong setting.
            CanaryError::MissingKey { .. } | CanaryError::WrongKey { .. } => {
                Self::Permanent(CommandError::from_usage_cause(problem))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_flag_values(arguments: &[&str]) -> BTreeMap<String, String> {
        let command = <ServeArgs as clap::Args>::augment_args(Command::new("serve"));
        let matches = command
            .try_get_matches_from(std::iter::once(&"serve").chain(arguments))
            .expect("valid flags");
        let args: ServeArgs =
            clap::FromArgMatches::from_arg_matches(&matches).expect("readable flags");
        args.flag_values
    }

    #[test]
    fn each_flag_replaces_its_variable() {
        let found = parse_flag_values(&[
            "--port=9000",
            "--embedded-postgres",
            "--webhook-dispatcher-disabled=false",
            "--encryption-key-file",
            "/run/key",
        ]);
        let expected = [
            ("ATTESTO_EMBEDDED_POSTGRES", "true"),
            ("ATTESTO_ENCRYPTION_KEY_FILE", "/run/key"),
            ("PORT", "9000"),
            ("WEBHOOK_DISPATCHER_DISABLED", "false"),
        ];
        let expected = expected.map(|(name, text)| (name.to_owned(), text.to_owned()));
        assert_eq!(found, BTreeMap::from(expected));
    }

    #[test]
    fn help_shows_every_setting_with_its_variable_and_default() {
        let mut command = <ServeArgs as clap::Args>::augment_args(Command::new("serve"));
        let help = command.render_long_help().to_string();
        for setting in SETTINGS.iter() {
            assert!(help.contains(&format!("--{}", setting.flag)));
            assert!(help.contains(setting.name), "{}", setting.name);
        }
        assert!(help.contains("[default: 8080]"));
    }
}
