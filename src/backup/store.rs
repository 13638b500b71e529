//! The SQL of backups. It uses connections of its own without a statement timeout: counting the rows of a large table
//! takes longer than a request may.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _};

use super::error::BackupError;
use super::report::BackupVerifyReport;
use crate::credentials::sealed_columns;
use crate::db::migrations::UTF8_DATABASE_OPTIONS;
use crate::db::{Database, Error};

/// A `repeatable read` transaction whose snapshot is exported. The snapshot does not change while the transaction is
/// open.
pub(super) struct BackupSnapshot {
    connection: PgConnection,
    /// The name of the exported snapshot, with which `pg_dump` reads the same state.
    pub(super) name: String,
    /// When the snapshot was taken, by the database's clock.
    pub(super) taken_at: time::OffsetDateTime,
}

/// What a manifest says about a database.
pub(super) struct DatabaseContent {
    pub(super) tables: BTreeMap<String, i64>,
    pub(super) schema_version: i64,
    pub(super) key_ids: BTreeSet<u8>,
    /// Whether any sealed column but that of the canaries has a value.
    pub(super) has_secrets: bool,
}

async fn connect_without_timeouts(database: &Database) -> Result<PgConnection, Error> {
    let mut connection = database.connect_directly("attesto-backup").await?;
    connection
        .execute("set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; set lock_timeout = '60s'")
        .await?;
    Ok(connection)
}

/// The major version of the server.
pub(super) async fn server_major_version(database: &Database) -> Result<u32, Error> {
    let number: i32 =
        sqlx::query_scalar("select current_setting('server_version_num')::int / 10000")
            .fetch_one(database.pool())
            .await?;
    Ok(u32::try_from(number).unwrap_or(0))
}

impl BackupSnapshot {
    pub(super) async fn begin_snapshot(database: &Database) -> Result<Self, Error> {
        let mut connection = connect_without_timeouts(database).await?;
        connection
            .execute("begin transaction isolation level repeatable read read only")
            .await?;
        let (name, taken_at) = sqlx::query_as("select pg_export_snapshot(), now()")
            .fetch_one(&mut connection)
            .await?;
        Ok(Self {
            connection,
            name,
            taken_at,
        })
    }

    pub(super) async fn load_content(&mut self) -> Result<DatabaseContent, Error> {
        read_content(&mut self.connection).await
    }

    pub(super) async fn end_snapshot(mut self) -> Result<(), Error> {
        self.connection.execute("commit").await?;
        self.connection.close().await
    }
}

/// The same for a database that no other session writes to.
pub(super) async fn load_database_content(database: &Database) -> Result<DatabaseContent, Error> {
    let mut connection = connect_without_timeouts(database).await?;
    let content = read_content(&mut connection).await?;
    connection.close().await?;
    Ok(content)
}

async fn read_content(connection: &mut PgConnection) -> Result<DatabaseContent, Error> {
    let names: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', schema.nspname, class.relname) from pg_class class
           join pg_namespace schema on schema.oid = class.relnamespace
          where class.relkind = 'r' and class.relpersistence <> 't'
            and schema.nspname not in ('pg_catalog', 'information_schema') and schema.nspname !~ '^pg_toast'
          order by 1",
    )
    .fetch_all(&mut *connection)
    .await?;
    let mut tables = BTreeMap::new();
    for name in names {
        // The name comes from the catalogue and is quoted by `format('%I')`.
        let count = format!("select count(*) from {name}");
        let rows: i64 = sqlx::query_scalar(AssertSqlSafe(count))
            .fetch_one(&mut *connection)
            .await?;
        tables.insert(name, rows);
    }
    let schema_version: i64 =
        sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
            .fetch_one(&mut *connection)
            .await?;
    let mut key_ids = BTreeSet::new();
    let mut has_secrets = false;
    for column in sealed_columns::secret_columns() {
        // A backup of an older release does not have every sealed column. The name is looked up as in the statement below, so
        // that tables outside `public` are not taken for missing.
        let is_there: bool = sqlx::query_scalar(
            "select exists (select from pg_attribute
              where attrelid = to_regclass($1) and attname = $2 and attnum > 0 and not attisdropped)",
        )
        .bind(column.table)
        .bind(column.column)
        .fetch_one(&mut *connection)
        .await?;
        if !is_there {
            continue;
        }
        let (table, name) = (column.table, column.column);
        let ids = format!(
            "select distinct get_byte({name}, 0) from {table} where octet_length({name}) > 0"
        );
        let ids: Vec<i32> = sqlx::query_scalar(AssertSqlSafe(ids))
            .fetch_all(&mut *connection)
            .await?;
        has_secrets |= !ids.is_empty();
        // No key has the id 0. A value with this id is not a sealed value, and is reported when sealed values are
        // checked.
        key_ids.extend(
            ids.into_iter()
                .filter_map(|id| u8::try_from(id).ok())
                .filter(|id| *id > 0),
        );
    }
    Ok(DatabaseContent {
        tables,
        schema_version,
        key_ids,
        has_secrets,
    })
}

/// Whether unqualified names are looked up in this schema, which need not exist yet.
pub(super) async fn is_in_search_path(database: &Database, schema: &str) -> Result<bool, Error> {
    sqlx::query_scalar(
        "select exists (
            select from regexp_split_to_table(current_setting('search_path'), '\\s*,\\s*') entry
             where btrim(entry, '\" ') = $1 or (btrim(entry, '\" ') = '$user' and current_user = $1))",
    )
    .bind(schema)
    .fetch_one(database.pool())
    .await
}

/// Whether the database has any tables outside the system schemas.
pub(super) async fn has_tables(database: &Database) -> Result<bool, Error> {
    sqlx::query_scalar(
        "select exists (select from information_schema.tables
          where table_schema not in ('pg_catalog', 'information_schema'))",
    )
    .fetch_one(database.pool())
    .await
}

/// Creates an empty database on the same server. Statements of our role use `schema` in it: the search path of the database
/// that was backed up may have been set for that database alone.
pub(super) async fn create_scratch_database(
    database: &Database,
    name: &str,
    schema: Option<&str>,
) -> Result<(), BackupError> {
    let mut connection = connect_without_timeouts(database).await?;
    let mut created = connection
        .execute(AssertSqlSafe(format!(
            "create database \"{name}\" {UTF8_DATABASE_OPTIONS}"
        )))
        .await;
    if let (Ok(_), Some(schema)) = (&created, schema) {
        let schema = schema.replace('"', "\"\"");
        let set = format!(
            "alter role current_user in database \"{name}\" set search_path = \"{schema}\""
        );
        created = connection.execute(AssertSqlSafe(set)).await;
    }
    let _ = connection.close().await;
    match created {
        Ok(_) => Ok(()),
        Err(error) if matches!(&error, Error::Database(cause) if cause.code().as_deref() == Some("42501")) => {
            Err(BackupError::CannotCreateDatabase)
        }
        Err(error) => Err(error.into()),
    }
}

/// Drops the scratch database and ends its sessions.
pub(super) async fn drop_scratch_database(database: &Database, name: &str) -> Result<(), Error> {
    let mut connection = connect_without_timeouts(database).await?;
    connection
        .execute(AssertSqlSafe(format!(
            "drop database if exists \"{name}\" with (force)"
        )))
        .await?;
    connection.close().await
}

/// Describes every constraint that was not validated and every index that is invalid.
pub(super) async fn list_invalid_objects(database: &Database) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "select format('constraint %s of %s was not checked', conname, conrelid::regclass)
           from pg_constraint where not convalidated
          union all
         select format('index %s is not whole', indexrelid::regclass) from pg_index where not indisvalid
          order by 1",
    )
    .fetch_all(database.pool())
    .await
}

/// Records in the database that this backup of it was made.
pub(super) async fn record_created(
    database: &Database,
    id: &str,
    taken_at: time::OffsetDateTime,
    host: &str,
    bytes: u64,
) -> Result<(), Error> {
    sqlx::query!(
        "insert into backups (id, created_at, host, bytes) values ($1, $2, $3, $4)",
        id,
        taken_at,
        host,
        i64::try_from(bytes).unwrap_or(i64::MAX)
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// Records the result of a verification. Returns false if this database has no row for the backup.
pub(super) async fn record_verified(
    database: &Database,
    report: &BackupVerifyReport,
) -> Result<bool, Error> {
    let noted = sqlx::query!(
        "update backups set verified_at = now(), sound = $2 where id = $1",
        &report.id,
        report.sound
    )
    .execute(database.pool())
    .await?;
    Ok(noted.rows_affected() > 0)
}
