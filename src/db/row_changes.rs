//! Changes of rows that operators configure, logged in `operator_audit` and announced to the caches of all processes.
//!
//! On one Postgres triggers do both. Citus refuses triggers on distributed tables, so there the transaction of a change does
//! what the triggers would: it reads the rows before the change and compares them after it.

use std::ops::{Deref, DerefMut};

use serde_json::Value;

use super::{Database, DbTransaction, Error};

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
        let is_distributed = self.is_distributed().await?;
        let mut transaction = self.pool().begin_with(statements).await?;
        let before = if is_distributed {
            let rows = sqlx::query_scalar(
                "select coalesce(jsonb_agg(to_jsonb(stored)), '[]') from auditable_rows($1, $2) stored",
            );
            let rows = rows.bind(tables).bind(key);
            Some(rows.fetch_one(&mut *transaction).await?)
        } else {
            None
        };
        Ok(ChangeTransaction {
            transaction,
            tables,
            key: key.map(str::to_owned),
            before,
        })
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
