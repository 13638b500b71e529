//! `attesto serve`: runs the service until a signal says stop.
//!
//! What cannot work is said before anything is served: settings, the port, a database newer than this release, a key that
//! something is sealed with and that is not configured. A database that is away is not such a thing: the service starts, `/health` answers, `/ready` says what is missing, and
//! it goes on trying.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::context::{Context, Failure};
use crate::apple::trust::Verifier;
use crate::clock::{Clock, Timestamp};
use crate::config::catalogue::{Kind, SETTINGS, Setting};
use crate::config::secret_file::Lookup;
use crate::config::shown::exposed_files;
use crate::config::{DatabaseSource, Mode, Raw, Settings, own_certificate};
use crate::credentials::canary::{self, CanaryError};
use crate::crypto::keyring::Keyring;
use crate::db::embedded::Embedded;
use crate::db::{
    Database, MigrationProblem, SchemaState, Unreachable, is_missing_table, is_unavailable,
};
use crate::replicas::{WouldStop, host};
use crate::server::listen::{bind, room_for_connections};
use crate::server::tls::{Pair, Tls};
use crate::server::{Manners, scrape};
use crate::service::{Service, Serving};
use crate::shutdown::Signals;
use crate::telemetry::Log;
use crate::telemetry::{self, Writer};
use crate::traces::{self, Pipeline};

/// How long the first look at the database may delay the word that the service is there.
const FIRST_LOOK: Duration = Duration::from_secs(3);
/// The first pause before the database is tried again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LAST_PAUSE: Duration = Duration::from_secs(5);
/// How long a production service goes on taking requests after `/ready` began to fail, because whoever sends them here
/// needs a moment to notice. At most a fifth of the time there is to stop.
const MOMENT_TO_NOTICE: Duration = Duration::from_secs(5);

/// How long the last spans may take to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);

/// The flags of `attesto serve`: one for each setting there is.
#[derive(Clone, Debug, Default)]
pub struct Args {
    /// What was given, by the variable that the flag stands for.
    given: BTreeMap<String, String>,
}

impl clap::Args for Args {
    fn augment_args(command: Command) -> Command {
        SETTINGS
            .iter()
            .fold(command, |command, setting| command.arg(flag(setting)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl clap::FromArgMatches for Args {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in SETTINGS {
            if let Some(text) = matches.get_one::<String>(setting.flag) {
                self.given.insert(stands_for(setting), text.clone());
            }
        }
        Ok(())
    }
}

impl Args {
    /// The flags over the environment.
    pub(super) fn raw<'a>(self, context: &Context, lookup: Lookup<'a>) -> Raw<'a> {
        let mut given = self.given;
        if let Some(url) = context.database_url() {
            given.insert("DATABASE_URL".to_owned(), url.to_owned());
        }
        Raw::new(given, lookup)
    }
}

/// The variable that a setting's flag stands for.
fn stands_for(setting: &Setting) -> String {
    match setting.kind {
        Kind::Secret => format!("{}_FILE", setting.name),
        Kind::Plain | Kind::Switch => setting.name.to_owned(),
    }
}

fn flag(setting: &'static Setting) -> Arg {
    let variable = match setting.kind {
        Kind::Secret => format!("{} or {}_FILE", setting.name, setting.name),
        Kind::Plain | Kind::Switch => setting.name.to_owned(),
    };
    let default = match setting.default {
        "" => String::new(),
        default => format!(" [default: {default}]"),
    };
    let help = format!("{}{default} [env: {variable}]", setting.help);
    // The parser knows no variable and no default, so that it can show no value.
    let arg = Arg::new(setting.flag).long(setting.flag).help(help);
    match setting.kind {
        Kind::Switch => arg
            .value_name("BOOL")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        Kind::Plain | Kind::Secret => arg.value_name(setting.value),
    }
}

/// The settings, and the files that they name but for those of secrets, which are part of them. Everything that is wrong with
/// either is a line.
pub(super) fn settings(raw: &Raw<'_>, now: Timestamp) -> Result<Settings, Vec<String>> {
    let parsed = Settings::parse(raw);
    let mut wrong = Vec::new();
    // What else is wrong must not hide what is wrong with this one.
    let roots = raw.text("APPLE_ROOT_CERTIFICATES").ok().flatten();
    if let Some(given) = roots
        && let Err(problem) = Verifier::with_roots_at(Path::new(&given.text))
    {
        wrong.push(format!("{}: {problem}.", given.origin));
    }
    let pair = own_certificate(raw).ok().flatten();
    if let Some(Err(problem)) = pair.map(|files| Pair::read(&files, now)) {
        wrong.push(format!("{problem}."));
    }
    match parsed {
        Ok(settings) if wrong.is_empty() => Ok(settings),
        parsed => Err([parsed.err().unwrap_or_default(), wrong].concat()),
    }
}

/// Runs the command.
pub async fn run(args: Args, context: &Context) -> Result<(), Failure> {
    let lookup = |name: &str| context.variable(name);
    let raw = args.raw(context, &lookup);
    let (log, settings) = match settings(&raw, context.clock.now()) {
        Ok(settings) => (settings.log, Ok(settings)),
        Err(problems) => (Log::best_effort(&raw), Err(Failure::settings(problems))),
    };
    let collector = settings.as_ref().ok().and_then(|it| it.traces.clone());
    let traces = collector.map(|it| Pipeline::begin(it, &host()));
    let (traces, settings) = match traces.transpose() {
        Ok(traces) => (traces, settings),
        Err(problem) => (None, Err(Failure::refused(format!("{problem}.")))),
    };
    let writer = telemetry::install(&log, traces.as_ref().map(Pipeline::tracer));
    for (name, path) in exposed_files(&raw) {
        let file = path.display();
        tracing::warn!(setting = name, %file, "secret_file_readable_by_everyone");
    }
    let outcome = match settings {
        Ok(settings) => {
            let traces = traces.as_ref().map(Pipeline::numbers);
            serve(&settings, &context.clock, &writer, traces).await
        }
        Err(failure) => Err(failure),
    };
    if let Err(failure) = &outcome {
        let error = failure.message.replace('\n', "; ");
        tracing::error!(fatal = true, error, "startup_failed");
    }
    if let Some(traces) = traces {
        traces.end(LAST_SPANS).await;
    }
    writer.flush();
    outcome
}

async fn serve(
    settings: &Settings,
    clock: &Clock,
    writer: &Writer,
    traces: Option<traces::Numbers>,
) -> Result<(), Failure> {
    let mut signals = Signals::listen()
        .map_err(|problem| Failure::refused(format!("cannot wait for signals: {problem}")))?;
    let started = tokio::select! {
        started = start(settings, clock, traces) => started?,
        signal = signals.next() => {
            tracing::info!(signal, "shutdown");
            return Ok(());
        }
    };
    let Started {
        serving,
        database,
        private,
        preparing,
    } = started;

    let outcome = tokio::select! {
        signal = signals.next() => {
            tracing::info!(signal, "shutdown");
            Ok(())
        }
        // The database came back, and it turns out that this release cannot use it.
        Err(problem) = preparing => Err(problem),
    };
    let impatient = tokio::spawn(leave_at_once(signals, writer.clone()));
    let _impatient = AbortOnDropHandle::new(impatient);
    let moment = match settings.mode {
        Mode::Production if outcome.is_ok() => MOMENT_TO_NOTICE.min(settings.shutdown_grace / 5),
        _ => Duration::ZERO,
    };
    serving.leave();
    tokio::time::sleep(moment).await;
    let finished = serving
        .stop(settings.shutdown_grace.saturating_sub(moment))
        .await;
    let _ = tokio::time::timeout(LAST_PAUSE, database.close()).await;
    if let Some(private) = private {
        private.stop().await;
    }
    tracing::info!(finished, "stopped");
    outcome
}

/// A second signal: whoever sends it does not want to wait.
async fn leave_at_once(mut signals: Signals, writer: Writer) {
    let signal = signals.next().await;
    tracing::warn!(signal, "shutdown_forced");
    writer.flush();
    std::process::exit(130);
}

/// A service that serves, and what it stands on.
struct Started {
    serving: Serving,
    database: Database,
    private: Option<Embedded>,
    /// Ends when the database's tables are this release's and its secrets can be opened.
    preparing: BoxFuture<'static, Result<(), Failure>>,
}

async fn start(
    settings: &Settings,
    clock: &Clock,
    traces: Option<traces::Numbers>,
) -> Result<Started, Failure> {
    let refused = |problem: &dyn std::fmt::Display| Failure::refused(format!("{problem}."));
    let tls = match &settings.tls {
        Some(files) => Some(
            Tls::load(files.clone(), clock)
                .map_err(|problem| Failure::usage(format!("{problem}.")))?,
        ),
        None => None,
    };
    // Before anything that takes time or leaves traces: a port that is taken is the likeliest obstacle.
    let listener = bind(settings.listen)
        .await
        .map_err(|problem| refused(&problem))?;
    let metrics = match settings.metrics {
        Some(address) => Some(
            scrape::bind(address)
                .await
                .map_err(|problem| refused(&problem))?,
        ),
        None => None,
    };
    let (private, connect) = match &settings.database {
        DatabaseSource::Url(connect) => (None, (**connect).clone()),
        DatabaseSource::Embedded(options) => {
            let private = Embedded::start(options.clone())
                .await
                .map_err(|problem| refused(&problem))?;
            let connect = private.connect_settings();
            (Some(private), connect)
        }
    };
    let database = Database::open(&connect);
    let prepared = CancellationToken::new();
    let mut service = Service::build(settings, &database, clock)
        .map_err(|problem| refused(&problem))?
        .beginning_when(prepared.clone());
    if let Some(listener) = metrics {
        service = service.showing_metrics(listener);
    }
    if let Some(numbers) = traces {
        service = service.with_traces(numbers);
    }
    let certificate = tls.as_ref().map(Tls::pair);
    if let Some(tls) = tls {
        service = service.with_certificate(tls);
    }
    let manners = Manners {
        max_connections: room_for_connections(),
        ..Manners::default()
    };
    let serving = service
        .serve(listener, manners)
        .map_err(|problem| refused(&problem))?;
    let address = serving.address();

    let (migrate, keyring) = (settings.migrate_on_start, settings.keyring.clone());
    let mut preparing = prepare(database.clone(), migrate, keyring, prepared).boxed();
    match tokio::time::timeout(FIRST_LOOK, &mut preparing).await {
        Ok(Ok(())) => preparing = std::future::pending().boxed(),
        Ok(Err(problem)) => {
            serving.stop(Duration::ZERO).await;
            if let Some(private) = private {
                private.stop().await;
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
    if settings.validation_audit && settings.retention.validation_audit.is_none() {
        tracing::warn!("validation_audit_enabled_no_retention");
    }
    Ok(Started {
        serving,
        database,
        private,
        preparing,
    })
}

/// Brings the tables to this release and looks whether what is sealed there can be opened, as soon as there is a database
/// to do it in; then cancels `prepared`. An error is final. With a wrong key it ends without having prepared anything.
async fn prepare(
    database: Database,
    migrate: bool,
    keyring: Arc<Keyring>,
    prepared: CancellationToken,
) -> Result<(), Failure> {
    let mut pause = FIRST_PAUSE;
    loop {
        let (cause, class) = match attempt(&database, migrate, &keyring).await {
            Ok(key) => {
                if key == Key::Fits {
                    prepared.cancel();
                }
                return Ok(());
            }
            Err(NotReady::Final(failure)) => return Err(failure),
            Err(NotReady::MayPass { cause, class }) => (cause, class),
        };
        tracing::warn!(cause, causeClass = class, "database_unavailable");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// Why the database cannot be served from.
enum NotReady {
    /// Trying again can help.
    MayPass {
        cause: String,
        /// What kind of trouble it is.
        class: String,
    },
    /// It cannot.
    Final(Failure),
}

/// What became of a look at what is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// It can be opened, or there is nothing yet.
    Fits,
    /// It cannot.
    Wrong,
}

async fn attempt(database: &Database, migrate: bool, keyring: &Keyring) -> Result<Key, NotReady> {
    if migrate {
        bring_up_to_date(database).await?;
    }
    // All of them first: canaries know only the keys that were ever configured here.
    let looked = match canary::survey(database, keyring).await {
        Ok(()) => canary::check(database, keyring).await,
        missing => missing,
    };
    match looked {
        // Somebody else migrates; until then `/ready` says what is missing.
        Err(CanaryError::Database(error)) if is_missing_table(&error) => Ok(Key::Fits),
        // So that nothing is sent here until it is mended, `/ready` says this too.
        Err(wrong @ CanaryError::WrongKey { .. }) => {
            tracing::error!(cause = %wrong, causeClass = wrong.class(), "wrong_encryption_key");
            Ok(Key::Wrong)
        }
        looked => Ok(looked.map(|()| Key::Fits)?),
    }
}

async fn bring_up_to_date(database: &Database) -> Result<(), NotReady> {
    // The clock of a program is the database's, as far as who serves is concerned.
    match WouldStop::look(database, Duration::ZERO).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => return Err(NotReady::may_pass(&problem, "an older release serves")),
        Err(newer @ MigrationProblem::Newer { .. }) => {
            let schema = database.schema().await.map_err(MigrationProblem::from)?;
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

impl NotReady {
    fn may_pass(cause: &dyn std::fmt::Display, class: impl Into<String>) -> Self {
        Self::MayPass {
            cause: cause.to_string(),
            class: class.into(),
        }
    }
}

impl From<MigrationProblem> for NotReady {
    fn from(problem: MigrationProblem) -> Self {
        match &problem {
            MigrationProblem::Database(error) if is_unavailable(error) => {
                Self::may_pass(&problem, Unreachable::of(error).to_string())
            }
            MigrationProblem::Busy | MigrationProblem::InTheWay(_) => {
                Self::may_pass(&problem, "in use")
            }
            _ => Self::Final(problem.into()),
        }
    }
}

impl From<CanaryError> for NotReady {
    fn from(problem: CanaryError) -> Self {
        match &problem {
            CanaryError::Database(error) if is_unavailable(error) => {
                Self::may_pass(&problem, Unreachable::of(error).to_string())
            }
            CanaryError::Database(_) => Self::Final(problem.into()),
            // A setting is missing, as if it were missing altogether.
            CanaryError::MissingKey { .. } | CanaryError::WrongKey { .. } => {
                Self::Final(Failure::usage(format!("{problem}.")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(arguments: &[&str]) -> BTreeMap<String, String> {
        let command = <Args as clap::Args>::augment_args(Command::new("serve"));
        let matches = command
            .try_get_matches_from(std::iter::once(&"serve").chain(arguments))
            .expect("these are good");
        let args: Args = clap::FromArgMatches::from_arg_matches(&matches).expect("and readable");
        args.given
    }

    #[test]
    fn each_flag_stands_for_its_variable() {
        let found = given(&[
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
        let mut command = <Args as clap::Args>::augment_args(Command::new("serve"));
        let help = command.render_long_help().to_string();
        for setting in SETTINGS {
            assert!(help.contains(&format!("--{}", setting.flag)));
            assert!(help.contains(setting.name), "{}", setting.name);
        }
        assert!(help.contains("[default: 8080]"));
    }
}
