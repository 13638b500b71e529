//! Changes of rows that operators configure, logged in `operator_audit` and announced to the caches of all processes.
//!
//! On one Postgres triggers do both. Citus refuses triggers on distributed tables, so there the transaction of a change does
//! what the triggers would: it reads the rows before the change and compares them after it.

use std::ops::{Deref, DerefMut};

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use serde_json::Value;
use sqlx::postgres::{PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Describe, Either, Execute, Executor, Postgres, SqlStr};

use super::{Database, DbPool, DbTransaction, Error};

/// Held from before the rows are read until the commit, so that no other change is taken for this one's, or missed. It is the lock
/// under which rows of the log are added.
const LOCK_SQL: &str = "select from process_locks where name = 'operator_audit' for no key update";

/// The tables whose changes are logged or announced, and that belong to a tenant.
pub(crate) const CONFIGURED_TABLES: &[&str] = &[
    "tenants",
    "api_keys",
    "apple_credentials",
    "google_credentials",
    "webhook_configs",
    "webhook_previous_secrets",
    "webhook_client_certificates",
    "webhook_allowed_networks",
    "first_seen_keys",
    "webhook_redeliveries",
];

/// A transaction that changes rows of such tables.
#[derive(Debug)]
pub(crate) struct ChangeTransaction {
    transaction: DbTransaction,
    tables: &'static [&'static str],
    key: Option<String>,
    /// The rows before the change. `None`: triggers do it.
    before: Option<Value>,
}

impl Database {
    /// Begins a change of rows of these tables that belong to a tenant, or that have this id. Without a key: of any rows.
    pub(crate) async fn begin_change(
        &self,
        tables: &'static [&'static str],
        key: Option<&str>,
    ) -> Result<ChangeTransaction, Error> {
        self.begin_change_with("", tables, key).await
    }

    /// The same, with statements that run in the round trip of `begin`.
    pub(crate) async fn begin_change_with(
        &self,
        statements: &'static str,
        tables: &'static [&'static str],
        key: Option<&str>,
    ) -> Result<ChangeTransaction, Error> {
        let has_triggers = self.has_change_triggers().await?;
        let mut transaction = self.pool().begin_with(statements).await?;
        let before = if has_triggers {
            None
        } else {
            sqlx::query(LOCK_SQL).execute(&mut *transaction).await?;
            let rows = sqlx::query_scalar(
                "select coalesce(jsonb_agg(to_jsonb(stored)), '[]') from auditable_rows($1, $2) stored",
            );
            let rows = rows.bind(tables).bind(key);
            Some(rows.fetch_one(&mut *transaction).await?)
        };
        Ok(ChangeTransaction {
            transaction,
            tables,
            key: key.map(str::to_owned),
            before,
        })
    }

    /// The same for a change that is one statement. Where triggers log it, it needs no transaction around it, and is repeated after a
    /// deadlock as every statement of the pool.
    pub(crate) async fn begin_single_change(
        &self,
        tables: &'static [&'static str],
        key: Option<&str>,
    ) -> Result<SingleChange, Error> {
        Ok(if self.has_change_triggers().await? {
            SingleChange::Logged(self.pool().clone())
        } else {
            SingleChange::Compared(self.begin_change(tables, key).await?)
        })
    }
}

/// A change that is one statement, which is run on `&mut` of this.
#[derive(Debug)]
pub(crate) enum SingleChange {
    /// By triggers.
    Logged(DbPool),
    Compared(ChangeTransaction),
}

impl SingleChange {
    pub(crate) async fn commit(self) -> Result<(), Error> {
        match self {
            Self::Logged(_) => Ok(()),
            Self::Compared(change) => change.commit().await,
        }
    }
}

impl<'c> Executor<'c> for &'c mut SingleChange {
    type Database = Postgres;

    fn fetch_many<'e, 'q: 'e, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self {
            SingleChange::Logged(pool) => (&*pool).fetch_many(query),
            SingleChange::Compared(change) => (&mut *change.transaction).fetch_many(query),
        }
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'c: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        match self {
            SingleChange::Logged(pool) => (&*pool).fetch_optional(query),
            SingleChange::Compared(change) => (&mut *change.transaction).fetch_optional(query),
        }
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'c: 'e,
    {
        match self {
            SingleChange::Logged(pool) => (&*pool).prepare_with(sql, parameters),
            SingleChange::Compared(change) => {
                (&mut *change.transaction).prepare_with(sql, parameters)
            }
        }
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'c: 'e,
    {
        match self {
            SingleChange::Logged(pool) => (&*pool).describe(sql),
            SingleChange::Compared(change) => (&mut *change.transaction).describe(sql),
        }
    }
}

impl ChangeTransaction {
    /// Logs and announces what has changed, and commits.
    pub(crate) async fn commit(mut self) -> Result<(), Error> {
        if let Some(before) = self.before.take() {
            sqlx::query("select note_row_changes($1, $2, $3)")
                .bind(before)
                .bind(self.tables)
                .bind(&self.key)
                .execute(&mut *self.transaction)
                .await?;
        }
        self.transaction.commit().await
    }
}

impl Deref for ChangeTransaction {
    type Target = DbTransaction;

    fn deref(&self) -> &DbTransaction {
        &self.transaction
    }
}

impl DerefMut for ChangeTransaction {
    fn deref_mut(&mut self) -> &mut DbTransaction {
        &mut self.transaction
    }
}
