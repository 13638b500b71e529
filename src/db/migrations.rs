//! The tables, brought to this release: forward only, each migration in a transaction of its own together with the note
//! that it was applied, and never two processes at once.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::migrate::{Migrate as _, MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tokio::time::timeout;

use super::migration_analysis::{self, Compatibility, FIRST_RELEASE_VERSION, TableImpact};
use super::{Database, Error, MIN_POSTGRES_MAJOR};

/// Every migration, embedded in the binary.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// Where what was applied is noted.
const MIGRATIONS_TABLE: &str = "_sqlx_migrations";
/// The lock that keeps two processes apart, as Postgres wants it: a number, unique within the database. It ends with
/// the transaction, so a pooler cannot keep it, and neither can a process that was cancelled or killed.
const ADVISORY_LOCK_KEY: i64 = i64::from_be_bytes(*b"\0attesto");
/// For one migration: how long another process may be migrating before us; then, how long its statements may wait for
/// a table that somebody uses, while everybody else queues behind them. How long they may work is not limited.
const MIGRATION_LOCK_TIMEOUT_SQL: &str =
    "set local statement_timeout = 0; set local lock_timeout = '60s'";
const TABLE_LOCK_TIMEOUT_SQL: &str = "set local lock_timeout = '5s'";
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// One migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigrationInfo {
    /// The number its file begins with.
    pub version: i64,
    /// The rest of its file's name, in words.
    pub name: String,
}

impl From<&Migration> for MigrationInfo {
    fn from(migration: &Migration) -> Self {
        Self {
            version: migration.version,
            name: migration.description.to_string(),
        }
    }
}

/// One migration that is missing, and what it would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMigration {
    /// Which.
    #[serde(flatten)]
    pub step: MigrationInfo,
    /// What it is for.
    pub purpose: String,
    /// What it does to tables; those that it makes come first.
    pub tables: Vec<AffectedTable>,
    /// Whether a process of the release before goes on working. `None`: it is a part of the first release.
    #[serde(flatten)]
    pub promise: Option<Compatibility>,
}

/// What a migration would do to one table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AffectedTable {
    /// The table's name.
    pub table: String,
    /// What would be done to it.
    pub touch: TableImpact,
    /// How many rows it has, as far as the statistics know.
    pub rows: Option<i64>,
    /// How large it is with its indexes.
    pub bytes: Option<i64>,
}

/// What a run of the migrations did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationReport {
    /// Applied by this run, in order.
    pub applied: Vec<MigrationInfo>,
    /// Not applied, because the run was only to look.
    pub pending: Vec<MigrationInfo>,
    /// How many were there before.
    pub already_applied: usize,
}

/// How the database's tables compare with this release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// Exactly this release's.
    UpToDate,
    /// So many migrations are missing.
    Behind(usize),
    /// A newer release was here, and this one does not work on what it left.
    Ahead,
    /// A newer release was here, and promised that this one goes on working.
    AheadAndCompatible,
    /// A migration was applied that this release knows differently or not at all.
    Diverged,
}

/// Why the tables are not brought to this release.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A newer release was here.
    #[error(
        "the database is newer than this release of Attesto: it has migration {found}, and this release knows no more than {known}. Run the newer release; nothing has been changed"
    )]
    DatabaseNewer {
        /// The newest migration in the database.
        found: i64,
        /// The newest of ours.
        known: i64,
    },
    /// Applied, and not one of ours.
    #[error(
        "the database has migration {found}, which this release of Attesto never had: is this Attesto's database, and an official release? Nothing has been changed"
    )]
    UnknownMigration {
        /// Its number.
        found: i64,
    },
    /// Applied from a text other than ours.
    #[error(
        "migration {version} ({name}) was applied to this database from a different text than this release holds. Migrations never change after a release, so one of the two is not an official one. Nothing has been changed",
        version = .0.version,
        name = .0.name
    )]
    ChecksumMismatch(MigrationInfo),
    /// The server is too old.
    #[error("the server is Postgres {0}, and Attesto needs {MIN_POSTGRES_MAJOR} or newer")]
    ServerTooOld(u32),
    /// Another process has been migrating for a minute.
    #[error(
        "another process is changing this database's tables and has not finished within a minute: try again when it has"
    )]
    AlreadyRunning,
    /// A table is in use.
    #[error(
        "migration {version} ({name}) could not get hold of a table within 5 s, because another session uses it in a long transaction. It was rolled back: try again",
        version = .0.version,
        name = .0.name
    )]
    TableLocked(MigrationInfo),
    /// The role may not make tables.
    #[error(
        "the database's role may not create tables: let the owner of the database run `grant create on schema public to <role>` ({0})"
    )]
    PermissionDenied(Error),
    /// Postgres refused a statement of a migration.
    #[error("migration {version} ({name}) failed and was rolled back: {cause}", version = step.version, name = step.name)]
    StatementFailed {
        /// Which.
        step: MigrationInfo,
        /// What Postgres said.
        cause: Error,
    },
    /// Anything else, among it a database that cannot be reached.
    #[error(transparent)]
    Database(#[from] Error),
}

impl Database {
    /// Applies what is missing, or with `dry_run` only says what that is. Can be run again and by several processes at
    /// once: all but one of them wait. Uses a connection of its own.
    pub async fn migrate(&self, dry_run: bool) -> Result<MigrationReport, MigrationError> {
        let mut connection = self.connect_to_migrate().await?;
        let mut report = MigrationReport {
            applied: Vec::new(),
            pending: Vec::new(),
            already_applied: 0,
        };
        if dry_run {
            let pending = pending_migrations(
                self.migrator,
                &load_applied_migrations(&mut connection).await?,
            )?;
            report.already_applied = self.migrator.iter().count() - pending.len();
            report.pending = pending.into_iter().map(MigrationInfo::from).collect();
        } else {
            while let Some(step) = apply_next_migration(self.migrator, &mut connection).await? {
                tracing::info!(
                    version = step.version,
                    name = step.name,
                    "migration applied"
                );
                report.applied.push(step);
            }
            report.already_applied = self.migrator.iter().count() - report.applied.len();
        }
        // Everything is committed; how the farewell goes no longer matters.
        let _ = connection.close().await;
        Ok(report)
    }

    /// Whether the database's role may make tables.
    pub async fn can_migrate(&self) -> Result<bool, Error> {
        let mut connection = self.connect_directly("attesto-migrate").await?;
        let allowed = sqlx::query_scalar(
            "select coalesce(has_schema_privilege(current_schema(), 'create'), false)",
        )
        .fetch_one(&mut connection)
        .await?;
        let _ = connection.close().await;
        Ok(allowed)
    }

    /// How the database's tables compare with this release. One short read.
    pub async fn load_schema_state(&self) -> Result<SchemaState, Error> {
        let mut reading = self.pool().begin().await?;
        let applied = load_applied_migrations(reading.sqlx_connection()).await?;
        Ok(match pending_migrations(self.migrator, &applied) {
            Ok(pending) if pending.is_empty() => SchemaState::UpToDate,
            Ok(pending) => SchemaState::Behind(pending.len()),
            Err(MigrationError::DatabaseNewer { known, .. }) => {
                let mut later = applied.iter().filter(|(version, _)| **version > known);
                if later.all(|(_, applied)| applied.previous_works) {
                    SchemaState::AheadAndCompatible
                } else {
                    SchemaState::Ahead
                }
            }
            Err(_) => SchemaState::Diverged,
        })
    }

    /// What is missing, in order, and what each would do.
    pub async fn plan_migrations(&self) -> Result<Vec<PlannedMigration>, MigrationError> {
        let mut connection = self.connect_to_migrate().await?;
        let applied = load_applied_migrations(&mut connection).await?;
        let mut planned = Vec::new();
        for migration in pending_migrations(self.migrator, &applied)? {
            let sql = migration.sql.as_str();
            let mut tables = Vec::new();
            for (table, touch) in migration_analysis::table_impacts(sql) {
                let size = load_table_size(&mut connection, &table).await?;
                tables.push(AffectedTable {
                    table,
                    touch,
                    rows: size.map(|(rows, _)| rows).filter(|rows| *rows >= 0),
                    bytes: size.map(|(_, bytes)| bytes),
                });
            }
            planned.push(PlannedMigration {
                step: migration.into(),
                purpose: migration_analysis::parse_purpose(sql),
                tables,
                promise: migration_compatibility(migration),
            });
        }
        let _ = connection.close().await;
        Ok(planned)
    }

    async fn connect_to_migrate(&self) -> Result<PgConnection, MigrationError> {
        let connection = timeout(CONNECT_TIMEOUT, self.connect_directly("attesto-migrate"))
            .await
            .map_err(|_| Error::Io(std::io::ErrorKind::TimedOut.into()))??;
        check_server_version(&connection)?;
        Ok(connection)
    }
}

/// What a migration promises to a release that does not know it. `None`: there is no such release.
fn migration_compatibility(migration: &Migration) -> Option<Compatibility> {
    // A test sees to it that all of them say something.
    let nothing = || Compatibility {
        previous_works: false,
        why: None,
    };
    (migration.version >= FIRST_RELEASE_VERSION).then(|| {
        migration_analysis::parse_compatibility(migration.sql.as_str()).unwrap_or_else(nothing)
    })
}

/// How many rows a table has, as far as the statistics know, and how large it is with its indexes. `None`: it is not there.
async fn load_table_size(
    connection: &mut PgConnection,
    table: &str,
) -> Result<Option<(i64, i64)>, Error> {
    let found = sqlx::query_as(
        "select reltuples::int8, pg_total_relation_size(oid) from pg_class where oid = to_regclass($1)",
    );
    found
        .bind(table)
        .persistent(false)
        .fetch_optional(connection)
        .await
}

/// Applies the first missing migration, if one is missing once the lock is ours.
async fn apply_next_migration(
    known: &'static Migrator,
    connection: &mut PgConnection,
) -> Result<Option<MigrationInfo>, MigrationError> {
    let mut transaction = connection.begin().await?;
    transaction.execute(MIGRATION_LOCK_TIMEOUT_SQL).await?;
    sqlx::query("select pg_advisory_xact_lock($1)")
        .bind(ADVISORY_LOCK_KEY)
        .execute(&mut *transaction)
        .await
        .map_err(|error| match sqlstate_code(&error).as_deref() {
            Some("55P03") => MigrationError::AlreadyRunning,
            _ => error.into(),
        })?;
    transaction.execute(TABLE_LOCK_TIMEOUT_SQL).await?;

    // Read only now: whoever had the lock before us may have applied it.
    let applied = load_applied_migrations(&mut transaction).await?;
    let pending = pending_migrations(known, &applied)?;
    let Some(next) = pending.first() else {
        return Ok(None);
    };
    let failed = |error: MigrateError| match error {
        MigrateError::Execute(cause) | MigrateError::ExecuteMigration(cause, _) => {
            match sqlstate_code(&cause).as_deref() {
                Some("42501") => MigrationError::PermissionDenied(cause),
                Some("55P03") => MigrationError::TableLocked(MigrationInfo::from(*next)),
                _ => MigrationError::StatementFailed {
                    step: MigrationInfo::from(*next),
                    cause,
                },
            }
        }
        other => MigrationError::Database(Error::from(other)),
    };
    if applied.is_empty() {
        transaction
            .ensure_migrations_table(MIGRATIONS_TABLE)
            .await
            .map_err(failed)?;
    }
    transaction
        .apply(MIGRATIONS_TABLE, next)
        .await
        .map_err(failed)?;
    let step = MigrationInfo::from(*next);
    if let Some(promise) = migration_compatibility(next) {
        sqlx::query(
            "insert into schema_promises (version, previous_works, why) values ($1, $2, $3)",
        )
        .bind(next.version)
        .bind(promise.previous_works)
        .bind(promise.why)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(Some(step))
}

/// A migration that was applied.
struct AppliedMigration {
    checksum: Vec<u8>,
    /// Whether it promised that a release without it goes on working.
    previous_works: bool,
}

/// What was applied, by number. Under no name, for a pooler between: see [`mod@super::pool`].
async fn load_applied_migrations(
    connection: &mut PgConnection,
) -> Result<HashMap<i64, AppliedMigration>, Error> {
    let are_there: (bool, bool) = sqlx::query_as(
        "select to_regclass($1) is not null, to_regclass('schema_promises') is not null",
    )
    .bind(MIGRATIONS_TABLE)
    .persistent(false)
    .fetch_one(&mut *connection)
    .await?;
    if !are_there.0 {
        return Ok(HashMap::new());
    }
    let text = if are_there.1 {
        "select version, checksum, coalesce(previous_works, false) \
            from _sqlx_migrations left join schema_promises using (version) where success"
    } else {
        "select version, checksum, false from _sqlx_migrations where success"
    };
    let rows: Vec<(i64, Vec<u8>, bool)> = sqlx::query_as(text)
        .persistent(false)
        .fetch_all(connection)
        .await?;
    let rows = rows.into_iter().map(|(version, checksum, previous_works)| {
        let applied = AppliedMigration {
            checksum,
            previous_works,
        };
        (version, applied)
    });
    Ok(rows.collect())
}

/// What is missing, in order; an error when what was applied is not a part of ours.
fn pending_migrations(
    migrator: &'static Migrator,
    applied: &HashMap<i64, AppliedMigration>,
) -> Result<Vec<&'static Migration>, MigrationError> {
    let ours = || migrator.iter();
    let known = ours().map(|migration| migration.version).max().unwrap_or(0);
    if let Some(found) = applied.keys().copied().filter(|found| *found > known).max() {
        return Err(MigrationError::DatabaseNewer { found, known });
    }
    let unknown = |version: &i64| !migrator.version_exists(*version);
    if let Some(found) = applied.keys().copied().filter(unknown).min() {
        return Err(MigrationError::UnknownMigration { found });
    }
    let altered = ours().find(|migration| {
        applied
            .get(&migration.version)
            .is_some_and(|applied| *applied.checksum != *migration.checksum)
    });
    if let Some(migration) = altered {
        return Err(MigrationError::ChecksumMismatch(migration.into()));
    }
    Ok(ours()
        .filter(|migration| !applied.contains_key(&migration.version))
        .collect())
}

fn check_server_version(connection: &PgConnection) -> Result<(), MigrationError> {
    match connection.server_version_num() {
        Some(version) if version / 10_000 < MIN_POSTGRES_MAJOR => {
            Err(MigrationError::ServerTooOld(version / 10_000))
        }
        _ => Ok(()),
    }
}

fn sqlstate_code(error: &Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
