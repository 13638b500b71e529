//! Applies missing migrations: forward only, each in a transaction of its own together with the row that records it,
//! and never in two processes at once.

use std::collections::HashMap;
use std::time::Duration;

use serde::Serialize;
use sqlx::migrate::{Migrate as _, MigrateError, Migration, Migrator};
use sqlx::postgres::PgConnection;
use sqlx::{Connection as _, Executor as _};
use tokio::time::timeout;

use super::error_text::server_message;
use super::migration_header::{self, Compatibility, FIRST_RELEASE_VERSION, TableImpact};
use super::{Database, Error, MIN_POSTGRES_MAJOR, describe_cause};

/// All migrations of this release. They are compiled into the binary.
pub static MIGRATOR: Migrator = sqlx::migrate!();

/// The table in which sqlx records applied migrations.
const MIGRATIONS_TABLE: &str = "_sqlx_migrations";
/// Excludes other processes that migrate, and nothing else: reading goes on. Every role may take an advisory lock; this one needs the
/// right to write to the table. It ends with the transaction, so it is released even if the process is killed, and it works
/// through a pooler.
const LOCK_MIGRATIONS_SQL: &str = "lock table _sqlx_migrations in share row exclusive mode";
/// The first timeout limits how long a migration waits for another process that migrates; the second, how long its
/// statements wait for a table lock, while other sessions wait behind them. The duration of the statements themselves
/// is not limited.
const MIGRATION_LOCK_TIMEOUT_SQL: &str =
    "set local statement_timeout = 0; set local lock_timeout = '60s'";
const TABLE_LOCK_TIMEOUT_SQL: &str = "set local lock_timeout = '5s'";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The only encoding that stores every character which apps, users and stores send.
const REQUIRED_ENCODING: &str = "UTF8";
/// How to create a database with that encoding on every server. The locale of a server whose default is another encoding
/// would not fit.
pub const UTF8_DATABASE_OPTIONS: &str =
    "encoding 'UTF8' lc_collate 'C' lc_ctype 'C' template template0";

/// A migration of this release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MigrationInfo {
    /// The number at the beginning of its file's name.
    pub version: i64,
    /// The rest of its file's name, with spaces instead of underscores.
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

/// A migration that has not been applied, and its effects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedMigration {
    /// The migration that would run.
    #[serde(flatten)]
    pub step: MigrationInfo,
    /// Its purpose, from its header.
    pub purpose: String,
    /// What it does to tables; those that it creates come first.
    pub tables: Vec<AffectedTable>,
    /// Whether the previous release can still work. `None`: the migration belongs to the first release.
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
    /// Number of rows, from the statistics.
    pub rows: Option<i64>,
    /// Size with its indexes, in bytes.
    pub bytes: Option<i64>,
}

/// The result of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MigrationReport {
    /// Applied by this run, in order.
    pub applied: Vec<MigrationInfo>,
    /// Not applied, because it was a dry run.
    pub pending: Vec<MigrationInfo>,
    /// How many had been applied before.
    pub already_applied: usize,
}

/// How the database's tables compare with this release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemaState {
    /// The schema of this release.
    UpToDate,
    /// This many migrations are missing.
    Behind(usize),
    /// A newer release migrated the database, and this release cannot work with the new schema.
    Ahead,
    /// A newer release migrated the database, and its migrations state that this release can still work.
    AheadAndCompatible,
    /// An applied migration is unknown to this release, or its checksum differs.
    Diverged,
}

/// Why the migrations were not applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    /// A newer release migrated the database.
    #[error(
        "the database is newer than this release of Attesto: it has migration {found}, and this release knows no more than {known}. Run the newer release; nothing has been changed"
    )]
    DatabaseNewer {
        /// The newest migration in the database.
        found: i64,
        /// The newest migration of this release.
        known: i64,
    },
    /// A migration was applied that this release does not know.
    #[error(
        "the database has migration {found}, which this release of Attesto never had: is this Attesto's database, and an official release? Nothing has been changed"
    )]
    UnknownMigration {
        /// The number of the unknown migration.
        found: i64,
    },
    /// The text of an applied migration differs from that of this release.
    #[error(
        "migration {version} ({name}) was applied to this database from a different text than this release holds. Migrations never change after a release, so one of the two is not an official one. Nothing has been changed",
        version = .0.version,
        name = .0.name
    )]
    ChecksumMismatch(MigrationInfo),
    /// The server is too old.
    #[error("the server is Postgres {0}, and Attesto needs {MIN_POSTGRES_MAJOR} or newer")]
    ServerTooOld(u32),
    /// The database cannot store every character.
    #[error(
        "the database's encoding is {0}, which cannot store every character, and Attesto needs UTF8. The encoding of a database cannot be changed: create another one with `create database <name> {UTF8_DATABASE_OPTIONS}` and set DATABASE_URL to it. Nothing has been changed"
    )]
    EncodingNotUtf8(String),
    /// Another process held the migration lock for a minute.
    #[error(
        "another process is changing this database's tables and has not finished within a minute: try again when it has"
    )]
    AlreadyRunning,
    /// A table lock was not granted within 5 seconds.
    #[error(
        "migration {version} ({name}) could not get hold of a table within 5 s, because another session uses it in a long transaction. It was rolled back: try again",
        version = .0.version,
        name = .0.name
    )]
    TableLocked(MigrationInfo),
    /// The role may not create tables.
    #[error(
        "the database's role may not create tables: let the owner of the database run `grant create on schema public to <role>` ({})",
        server_message(.0)
    )]
    PermissionDenied(Error),
    /// Postgres refused a statement of a migration.
    #[error("migration {version} ({name}) failed and was rolled back: {}", server_message(cause), version = step.version, name = step.name)]
    StatementFailed {
        /// The migration that failed.
        step: MigrationInfo,
        /// The error of Postgres.
        cause: Error,
    },
    /// Any other error, for example a database that cannot be reached.
    #[error("{}", describe_cause(.0))]
    Database(#[from] Error),
}

impl Database {
    /// Applies the missing migrations, or with `dry_run` only lists them. Can be run repeatedly and by several processes at
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
                    "migration_applied"
                );
                report.applied.push(step);
            }
            report.already_applied = self.migrator.iter().count() - report.applied.len();
        }
        // Everything is committed: an error at closing does not matter.
        let _ = connection.close().await;
        Ok(report)
    }

    /// Whether the database's role may create tables.
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

    /// Compares the database's schema with this release's. One short read.
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

    /// The missing migrations in order, and what each would do.
    pub async fn plan_migrations(&self) -> Result<Vec<PlannedMigration>, MigrationError> {
        let mut connection = self.connect_to_migrate().await?;
        let applied = load_applied_migrations(&mut connection).await?;
        let mut planned = Vec::new();
        for migration in pending_migrations(self.migrator, &applied)? {
            let sql = migration.sql.as_str();
            let mut tables = Vec::new();
            for (table, touch) in migration_header::parse_table_impacts(sql) {
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
                purpose: migration_header::parse_purpose(sql),
                tables,
                promise: migration_compatibility(migration),
            });
        }
        let _ = connection.close().await;
        Ok(planned)
    }

    async fn connect_to_migrate(&self) -> Result<PgConnection, MigrationError> {
        let mut connection = timeout(CONNECT_TIMEOUT, self.connect_directly("attesto-migrate"))
            .await
            .map_err(|_| Error::Io(std::io::ErrorKind::TimedOut.into()))??;
        check_server_version(&connection)?;
        check_server_encoding(&mut connection).await?;
        Ok(connection)
    }

    /// [`MigrationError::EncodingNotUtf8`] when the database cannot store every character.
    pub async fn check_encoding(&self) -> Result<(), MigrationError> {
        let mut reading = self.pool().begin().await?;
        check_server_encoding(reading.sqlx_connection()).await
    }
}

/// Whether releases without this migration can still work. `None`: there is no such release.
fn migration_compatibility(migration: &Migration) -> Option<Compatibility> {
    // A test checks that every header states it.
    let nothing = || Compatibility {
        previous_works: false,
        why: None,
    };
    (migration.version > FIRST_RELEASE_VERSION).then(|| {
        migration_header::parse_compatibility(migration.sql.as_str()).unwrap_or_else(nothing)
    })
}

/// Number of rows, from the statistics, and size with indexes of a table. `None`: there is no such table.
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

/// Locks out other processes that migrate, until the end of the transaction. `false`: this transaction is to be rolled back and the
/// lock to be tried again.
///
/// In an empty database the table is created first. It is locked then too: another process may have created it since it was looked
/// for, and nothing is created then.
async fn lock_migrations(connection: &mut PgConnection) -> Result<bool, MigrationError> {
    let created = if is_migrations_table_there(connection).await? {
        Ok(())
    } else {
        match connection.ensure_migrations_table(MIGRATIONS_TABLE).await {
            Err(MigrateError::Execute(error)) => Err(error),
            Err(other) => return Err(Error::from(other).into()),
            Ok(()) => Ok(()),
        }
    };
    let locked = match created {
        Ok(()) => connection.execute(LOCK_MIGRATIONS_SQL).await,
        Err(error) => Err(error),
    };
    match locked {
        Ok(_) => Ok(true),
        Err(error) => match sqlstate_code(&error).as_deref() {
            // Another process has created the table meanwhile, or the table's row type.
            Some("23505" | "42P07" | "42710") => Ok(false),
            Some("55P03") => Err(MigrationError::AlreadyRunning),
            Some("42501") => Err(MigrationError::PermissionDenied(error)),
            _ => Err(error.into()),
        },
    }
}

async fn is_migrations_table_there(connection: &mut PgConnection) -> Result<bool, Error> {
    sqlx::query_scalar("select to_regclass($1) is not null")
        .bind(MIGRATIONS_TABLE)
        .persistent(false)
        .fetch_one(connection)
        .await
}

/// Applies the first missing migration, if one is still missing once the lock is held.
async fn apply_next_migration(
    known: &'static Migrator,
    connection: &mut PgConnection,
) -> Result<Option<MigrationInfo>, MigrationError> {
    // Without the lock first: it needs the right to write, which a role that only serves may not have.
    let applied = load_applied_migrations(connection).await?;
    if pending_migrations(known, &applied)?.is_empty() {
        return Ok(None);
    }
    let mut transaction = connection.begin().await?;
    transaction.execute(MIGRATION_LOCK_TIMEOUT_SQL).await?;
    while !lock_migrations(&mut transaction).await? {
        transaction.rollback().await?;
        transaction = connection.begin().await?;
        transaction.execute(MIGRATION_LOCK_TIMEOUT_SQL).await?;
    }
    transaction.execute(TABLE_LOCK_TIMEOUT_SQL).await?;

    // Read again under the lock: the process that held it before may have applied it.
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

/// A migration that was applied to this database.
struct AppliedMigration {
    checksum: Vec<u8>,
    /// Whether it states that a release without it goes on working.
    previous_works: bool,
}

/// The applied migrations by number. Statements are unnamed, because of poolers: see [`mod@super::pool`].
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

/// The missing migrations in order. An error if the applied migrations are not the first ones of this release.
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

async fn check_server_encoding(connection: &mut PgConnection) -> Result<(), MigrationError> {
    let encoding: String = sqlx::query_scalar("select current_setting('server_encoding')")
        .persistent(false)
        .fetch_one(connection)
        .await?;
    if encoding == REQUIRED_ENCODING {
        Ok(())
    } else {
        Err(MigrationError::EncodingNotUtf8(encoding))
    }
}

fn sqlstate_code(error: &Error) -> Option<String> {
    Some(error.as_database_error()?.code()?.into_owned())
}
