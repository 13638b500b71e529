//! What every command is given, and how it fails.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::process::ExitCode;
use std::sync::Arc;

use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::config::{Raw, admin};
use crate::credentials::canary::{self, CanaryError};
use crate::crypto::keyring::Keyring;
use crate::db::embedded::{Embedded, EmbeddedOptions};
use crate::db::{Database, Operator};
use crate::id::MalformedId;
use crate::replicas::company::listed;
use crate::replicas::{Company, LIVE};

use super::operator;
use super::output::{Format, Output};
use crate::shutdown::Signals;

/// What a command may use. The database and the keys are read from the settings only when it asks for them.
pub struct Context {
    /// Where results are written.
    pub output: Output,
    /// What time it is.
    pub clock: Clock,
    command: String,
    database_url: Option<String>,
    lookup: Environment,
    /// Joined when first asked for.
    private: OnceCell<Embedded>,
}

type Environment = Box<dyn Fn(&str) -> Option<OsString> + Send + Sync>;

impl Context {
    /// For one run of the program. `database_url` is the flag's value; `lookup` is the environment.
    pub fn new(
        format: Format,
        database_url: Option<String>,
        lookup: impl Fn(&str) -> Option<OsString> + Send + Sync + 'static,
    ) -> Self {
        Self {
            output: Output::stdout(format),
            clock: Clock::system(),
            command: String::new(),
            database_url,
            lookup: Box::new(lookup),
            private: OnceCell::new(),
        }
    }

    /// The same, running this command.
    #[must_use]
    pub fn running(self, command: String) -> Self {
        Self { command, ..self }
    }

    /// One variable of the environment.
    pub fn variable(&self, name: &str) -> Option<OsString> {
        (self.lookup)(name)
    }

    /// Whether one of these variables says something. Blank is unset, as for every setting.
    pub fn is_set(&self, names: &[&str]) -> bool {
        let is_blank = |value: &OsStr| value.to_string_lossy().trim().is_empty();
        let mut given = names.iter().filter_map(|name| self.variable(name));
        given.any(|value| !is_blank(&value))
    }

    /// The settings of the service, as far as they are in this environment too: `read` picks those that are needed.
    pub fn settings<T>(
        &self,
        read: impl FnOnce(&Raw<'_>) -> Result<T, Vec<String>>,
    ) -> Result<T, Failure> {
        let lookup = |name: &str| self.variable(name);
        let raw = Raw::new(BTreeMap::new(), &lookup);
        read(&raw).map_err(Failure::settings)
    }

    /// Is cancelled by Ctrl-C and by the signal to stop, for a command that can end in the middle. It works as long as what
    /// is returned beside it lives.
    pub fn interruption(&self) -> Result<(CancellationToken, AbortOnDropHandle<()>), Failure> {
        let mut signals = Signals::listen()
            .map_err(|problem| Failure::refused(format!("cannot wait for signals: {problem}.")))?;
        let stop = CancellationToken::new();
        let token = stop.clone();
        let waiting = tokio::spawn(async move {
            signals.next().await;
            token.cancel();
            // Whoever sends a second one does not want to wait.
            signals.next().await;
            std::process::exit(130);
        });
        Ok((stop, AbortOnDropHandle::new(waiting)))
    }

    /// The value of `--database-url`.
    pub fn database_url(&self) -> Option<&str> {
        self.database_url.as_deref()
    }

    /// The database, which is connected to when first asked something: the one at `DATABASE_URL`, or the private one,
    /// which is joined, or run for as long as this command needs it.
    pub async fn database(&self) -> Result<Database, Failure> {
        let settings =
            admin::database(&*self.lookup, self.database_url()).map_err(Failure::settings)?;
        let settings = match settings {
            Some(settings) => settings,
            None if admin::embedded(&*self.lookup).map_err(Failure::settings)? => {
                let options = EmbeddedOptions::from_environment(&self.lookup);
                let private = self.private.get_or_try_init(|| Embedded::attach(options));
                let private = private
                    .await
                    .map_err(|error| Failure::refused(error.to_string()))?;
                private.connect_settings()
            }
            None => {
                return Err(Failure::usage(
                    "which database? Give --database-url postgres://… or set DATABASE_URL (or DATABASE_URL_FILE); for the private one of --embedded-postgres, set ATTESTO_EMBEDDED_POSTGRES=true.",
                ));
            }
        };
        Ok(Database::open_for(&settings, &self.operator()))
    }

    /// Who is at the keyboard, for the log of changes.
    fn operator(&self) -> Operator {
        let sudo = self.variable("SUDO_USER");
        Operator {
            actor: operator::actor(sudo.as_deref().and_then(OsStr::to_str)),
            host: crate::replicas::host(),
            command: self.command.clone(),
        }
    }

    /// Leaves the private database, and stops it when nobody else runs it.
    pub async fn close(self) {
        if let Some(private) = self.private.into_inner() {
            private.stop().await;
        }
    }

    /// The encryption keys, after making sure that they are this database's and that every process that serves can open
    /// what they seal. For a command that seals.
    pub async fn keyring_for(&self, database: &Database) -> Result<Arc<Keyring>, Failure> {
        let keyring = self.keyring()?;
        canary::look(database, &keyring).await?;
        let company = Company::present(database, self.clock.lead()).await?;
        let key_id = keyring.sealing_id();
        let without = company.cannot_open(key_id);
        if !without.is_empty() {
            return Err(Failure::refused(format!(
                "the service on {} cannot open what key {key_id} seals: first add that key to ATTESTO_ENCRYPTION_KEYS_RETIRED there and restart it (a process that was killed counts for {} s longer).",
                listed(&without),
                LIVE.as_secs()
            )));
        }
        canary::check(database, &keyring).await?;
        Ok(keyring)
    }

    /// The encryption keys, if there are any.
    pub fn configured_keyring(&self) -> Result<Option<Keyring>, Failure> {
        admin::keyring(&*self.lookup).map_err(Failure::settings)
    }

    /// The encryption keys, not compared with any database.
    pub fn keyring(&self) -> Result<Arc<Keyring>, Failure> {
        let keyring = self.configured_keyring()?.ok_or_else(|| {
            Failure::usage(
                "this command seals or opens a secret: set ATTESTO_ENCRYPTION_KEY (or ATTESTO_ENCRYPTION_KEY_FILE) to the key the service runs with.",
            )
        })?;
        Ok(Arc::new(keyring))
    }
}

/// How a command ended badly: what to say on stderr, and the exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// 1 or 2.
    pub exit: u8,
    /// Full sentences without a secret in them; one line a problem.
    pub message: String,
}

impl Failure {
    /// Exit 1: not found, already in that state, or something outside failed.
    pub fn refused(message: impl Into<String>) -> Self {
        Self {
            exit: 1,
            message: message.into(),
        }
    }

    /// Exit 2: what was asked cannot be meant.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: 2,
            message: message.into(),
        }
    }

    /// Exit 2, for settings that cannot be used: one line each.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "it is handed to `map_err` as it is"
    )]
    pub fn settings(problems: Vec<String>) -> Self {
        Self::usage(problems.join("\n"))
    }

    /// The exit code for the shell.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(self.exit)
    }
}

impl From<CanaryError> for Failure {
    fn from(error: CanaryError) -> Self {
        match error {
            CanaryError::Database(error) => error.into(),
            wrong => Self::refused(format!("{wrong}.")),
        }
    }
}

impl From<MalformedId> for Failure {
    fn from(problem: MalformedId) -> Self {
        Self::usage(problem.to_string())
    }
}

impl From<crate::db::Error> for Failure {
    fn from(error: crate::db::Error) -> Self {
        if matches!(error, crate::db::Error::PoolTimedOut) {
            Self::refused(
                "the database accepted no connection in time: is it running, and where DATABASE_URL says?",
            )
        } else if crate::db::is_unavailable(&error) {
            Self::refused(format!("the database cannot be reached: {error}"))
        } else if crate::db::is_busy(&error) {
            Self::refused(
                "somebody else is changing the same right now (another command, a migration, an import): nothing was changed; try again in a moment.",
            )
        } else if crate::db::is_missing_table(&error) {
            Self::refused(
                "the database has not been prepared for this release: run `attesto migrate` first.",
            )
        } else {
            Self::refused(format!("the database refused: {error}"))
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::refused(format!("cannot write the result: {error}"))
    }
}
