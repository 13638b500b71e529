//! The queries of moving a tenant. They are made of the list in [`super::tables`] and of the database's own catalogue, so that a
//! column that is added is never forgotten.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgExecutor, Row as _};

use super::error::TransferError;
use super::tables::{ConflictPolicy, HistoryScope, TRANSFERRED_TABLES, TransferTable};
use crate::base::id::TenantId;
use crate::credentials::sealed_columns::{self, SealedColumn};
use crate::db::{Database, DbTransaction, Error, is_lock_timeout};

/// Between two batches a file is read and opened. The audit rows of the changes are written at the end: a transaction that adds to the log of
/// changes keeps others from adding, and a history may be long.
const IMPORT_SESSION_SQL: &str = "set local statement_timeout = '120s'; set local idle_in_transaction_session_timeout = '120s'; \
     set constraints all deferred";
/// A batch, as rows of its table.
const BATCH_ROWS_SQL: &str =
    "unnest($1::text[]) as given (fields) cross join lateral jsonb_populate_record(null::";

/// Rows of a snapshot that are in memory at once: with the largest there can be, some 300 MB.
const FETCH_ROWS: usize = 100;
/// How long a snapshot waits for the program: while there is one, nothing that was deleted since is cleaned up anywhere in the
/// database. A statement waits for no other transaction, since a few rows are read whole before any is written to the file.
const EXPORT_SESSION_SQL: &str = "set statement_timeout = '120s'; set idle_in_transaction_session_timeout = '120s'; \
     set lock_timeout = '60s'";
/// Waits for transactions that were already writing, in two transactions: a writer takes the two tables in any order. While it
/// waits, others' writing waits behind it.
const WAIT_FOR_WRITERS_SQL: [&str; 2] = [
    "set lock_timeout = '3s'; begin; lock table webhook_events in share mode; commit",
    "begin; lock table webhook_deliveries in share mode; commit; set lock_timeout = '60s'",
];

/// The column of a table that holds what is sealed. A table has one at most.
pub(super) fn sealed_column(table: &str) -> Option<SealedColumn> {
    sealed_columns::secret_columns().find(|column| column.table == table)
}

/// The columns of a table that are not made by the database itself, in their order.
async fn list_table_columns(with: impl PgExecutor<'_>, table: &str) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "select attname::text from pg_attribute
          where attrelid = to_regclass('public.' || $1) and attnum > 0 and not attisdropped and attgenerated = ''
          order by attnum",
    )
    .bind(table)
    .fetch_all(with)
    .await
}

async fn load_schema_version(with: impl PgExecutor<'_>) -> Result<i64, Error> {
    sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
        .fetch_one(with)
        .await
}

/// One state of the database, which does not change while this lives.
pub(super) struct TenantSnapshot {
    connection: PgConnection,
    /// When it was taken, by the database's clock.
    pub(super) taken_at: time::OffsetDateTime,
    /// The newest migration.
    pub(super) schema_version: i64,
}

/// The tenant as far as an export asks.
pub(super) struct ExportedTenant {
    pub(super) name: String,
    pub(super) is_active: bool,
    /// Deliveries that are being sent.
    pub(super) deliveries_in_progress: i64,
    /// Deliveries that are still to be sent.
    pub(super) pending_deliveries: i64,
    /// Whether a redelivery of many is not through.
    pub(super) has_open_redelivery: bool,
}

impl TenantSnapshot {
    /// Of a tenant that is not active it is all there is: who took in an event or claimed a delivery while the tenant was
    /// active has committed, and who comes later finds it inactive in the very statement that would write.
    pub(super) async fn begin_snapshot(
        database: &Database,
        tenant: &TenantId,
    ) -> Result<Self, TransferError> {
        let mut connection = database.connect_directly("attesto-export").await?;
        connection.execute(EXPORT_SESSION_SQL).await?;
        let mut settled = false;
        let taken_at = loop {
            connection
                .execute("begin transaction isolation level repeatable read read only")
                .await?;
            let row = sqlx::query!(
                r#"
                select now() as "now!", exists (select from tenants where id = $1 and not is_active) as "is_inactive!"
                "#,
                tenant.as_str()
            )
            .fetch_one(&mut connection)
            .await?;
            if settled || !row.is_inactive {
                break row.now;
            }
            connection.execute("rollback").await?;
            for wait in WAIT_FOR_WRITERS_SQL {
                let waited = connection.execute(wait).await;
                waited.map_err(|error| {
                    if is_lock_timeout(&error) {
                        TransferError::WritesInProgress(tenant.clone())
                    } else {
                        error.into()
                    }
                })?;
            }
            settled = true;
        };
        let schema_version = load_schema_version(&mut connection).await?;
        Ok(Self {
            connection,
            taken_at,
            schema_version,
        })
    }

    pub(super) async fn load_tenant(
        &mut self,
        tenant: &TenantId,
    ) -> Result<Option<ExportedTenant>, Error> {
        let row = sqlx::query!(
            r#"
            select name, is_active,
                (select count(*) from webhook_deliveries
                  where tenant_id = $1 and status = 'pending' and lease_until > now()) as "under_way!",
                (select count(*) from webhook_deliveries where tenant_id = $1 and status = 'pending') as "waiting!",
                exists (select from webhook_redeliveries where tenant_id = $1 and finished_at is null) as "redelivering!"
            from tenants where id = $1
            "#,
            tenant.as_str()
        )
        .fetch_optional(&mut self.connection)
        .await?;
        Ok(row.map(|row| ExportedTenant {
            name: row.name,
            is_active: row.is_active,
            deliveries_in_progress: row.under_way,
            pending_deliveries: row.waiting,
            has_open_redelivery: row.redelivering,
        }))
    }

    pub(super) async fn list_columns(&mut self, table: &str) -> Result<Vec<String>, Error> {
        list_table_columns(&mut self.connection, table).await
    }

    /// The tenant's rows of a table, one after the other: the fields of `columns` that are not sealed, and what stands sealed.
    pub(super) async fn for_each_row<E: From<Error>>(
        &mut self,
        part: &TransferTable,
        history: HistoryScope,
        tenant: &TenantId,
        columns: &[String],
        mut each: impl FnMut(Box<RawValue>, Option<Vec<u8>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sealed = sealed_column(part.name).map(|column| column.column);
        let open: Vec<_> = columns
            .iter()
            .filter(|name| sealed != Some(name.as_str()))
            .map(|name| format!("line.{name}"))
            .collect();
        // The names come from our own list and from the catalogue; none needs quotes.
        let statement = format!(
            "declare moved no scroll cursor for \
             select to_json(shown)::text as fields, {sealed} as secret from {table} line \
               cross join lateral (select {open}) as shown where line.{key} = $1 and {which}",
            sealed = sealed.map_or("null::bytea".to_owned(), |name| format!("line.{name}")),
            open = open.join(", "),
            table = part.name,
            key = part.tenant_column,
            which = part.filter_for(history),
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(tenant.as_str())
            .execute(&mut self.connection)
            .await?;
        loop {
            let fetch = format!("fetch forward {FETCH_ROWS} from moved");
            let rows = sqlx::query(AssertSqlSafe(fetch)).persistent(false);
            let rows = rows.fetch_all(&mut self.connection).await?;
            let is_last = rows.len() < FETCH_ROWS;
            for row in rows {
                let (fields, secret) = split_row(&row)?;
                each(fields, secret)?;
            }
            if is_last {
                self.connection.execute("close moved").await?;
                return Ok(());
            }
        }
    }

    pub(super) async fn end_snapshot(mut self) -> Result<(), Error> {
        self.connection.execute("commit").await?;
        self.connection.close().await
    }
}

fn split_row(row: &PgRow) -> Result<(Box<RawValue>, Option<Vec<u8>>), Error> {
    let fields: String = row.try_get(0)?;
    let fields = RawValue::from_string(fields).map_err(|error| Error::Decode(error.into()))?;
    Ok((fields, row.try_get(1)?))
}

/// Where an event is that the file calls by another id.
#[derive(Clone, Debug)]
pub(super) struct ExistingEvent {
    /// Its id here.
    pub(super) event_id: String,
    /// Whether it has deliveries here, which are what is to become of it.
    pub(super) has_deliveries: bool,
}

/// The networks that are open to a tenant's callback.
pub(super) const NETWORKS_TABLE: &str = "webhook_allowed_networks";

/// Rows of one table on their way in.
#[derive(Default)]
pub(super) struct RowBatch {
    /// Each as JSON.
    pub(super) rows: Vec<String>,
    /// What stands sealed in each.
    pub(super) secrets: Vec<Option<Vec<u8>>>,
}

/// A tenant that is being unpacked: all of it, or nothing.
pub(super) struct TenantImport {
    transaction: DbTransaction,
    tenant: TenantId,
    /// Who is at the keyboard, as the session says it.
    audit_session: Option<String>,
    pub(super) schema_version: i64,
}

impl TenantImport {
    pub(super) async fn begin_import(
        database: &Database,
        tenant: &TenantId,
    ) -> Result<Self, Error> {
        let begin = database.pool().begin_with(IMPORT_SESSION_SQL);
        let mut transaction = begin.await?;
        let session = sqlx::query_scalar("select current_setting('attesto.session', true)")
            .fetch_one(&mut *transaction)
            .await?;
        let schema_version = load_schema_version(&mut *transaction).await?;
        Ok(Self {
            transaction,
            tenant: tenant.clone(),
            audit_session: session,
            schema_version,
        })
    }

    pub(super) async fn tenant_exists(&mut self) -> Result<bool, Error> {
        sqlx::query_scalar!(
            r#"select exists (select from tenants where id = $1) as "is_there!""#,
            self.tenant.as_str()
        )
        .fetch_one(&mut *self.transaction)
        .await
    }

    pub(super) async fn list_columns(&mut self, table: &str) -> Result<Vec<String>, Error> {
        list_table_columns(&mut *self.transaction, table).await
    }

    /// Takes away what the file is to say instead, but for the networks where those are not asked for.
    pub(super) async fn delete_replaced_rows(&mut self, with_networks: bool) -> Result<(), Error> {
        let removed = TRANSFERRED_TABLES.iter().rev();
        let removed = removed
            .filter(|part| part.on_conflict == ConflictPolicy::DeleteFirst)
            .filter(|part| with_networks || part.name != NETWORKS_TABLE);
        for part in removed {
            let statement = format!(
                "delete from {} where {} = $1",
                part.name, part.tenant_column
            );
            sqlx::query(AssertSqlSafe(statement))
                .bind(self.tenant.as_str())
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }

    /// Whether the rows that follow leave rows in the log of changes, each its own.
    pub(super) async fn set_row_audit(&mut self, each: bool) -> Result<(), Error> {
        let session = self.audit_session.as_deref().filter(|_| each).unwrap_or("");
        sqlx::query("select set_config('attesto.session', $1, true)")
            .bind(session)
            .execute(&mut *self.transaction)
            .await
            .map(drop)
    }

    /// Writes rows, whatever tenant they name as this one's. Gives how many were not there already. Only where the tenant is to be
    /// `replaced` does its own row become what the file says; whether it is active stays as it is here.
    pub(super) async fn insert_rows(
        &mut self,
        part: &TransferTable,
        columns: &[String],
        batch: &RowBatch,
        replaced: bool,
    ) -> Result<u64, Error> {
        let table = part.name;
        let names = columns.join(", ");
        // A delivery goes nowhere without its event, and not with another tenant's.
        let which = if table == "webhook_deliveries" {
            "exists (select from webhook_events event where event.id = given.event_id and event.tenant_id = $5)"
        } else {
            "true"
        };
        let present = match part.on_conflict {
            ConflictPolicy::Overwrite if replaced && columns.len() > 1 => {
                let others = columns
                    .iter()
                    .filter(|name| *name != part.tenant_column && *name != "is_active");
                let set: Vec<_> = others
                    .map(|name| format!("{name} = excluded.{name}"))
                    .collect();
                format!(
                    "on conflict ({}) do update set {}",
                    part.tenant_column,
                    set.join(", ")
                )
            }
            ConflictPolicy::DeleteFirst => String::new(),
            ConflictPolicy::Overwrite | ConflictPolicy::KeepExisting => {
                "on conflict do nothing".to_owned()
            }
        };
        let statement = format!(
            "insert into {table} ({names}) \
             select {given} from unnest($1::text[], $2::bytea[]) as line (fields, secret) \
              cross join lateral jsonb_populate_record(null::{table}, \
                    fields::jsonb || $3::jsonb || case when secret is null then '{{}}' else jsonb_build_object($4::text, secret) end \
                ) as given \
              where {which} and $5::text is not null {present}",
            given = columns
                .iter()
                .map(|name| format!("given.{name}"))
                .collect::<Vec<_>>()
                .join(", "),
        );
        let mut instead = BTreeMap::from([(part.tenant_column, serde_json::json!(self.tenant))]);
        let fixed: BTreeMap<&str, serde_json::Value> =
            serde_json::from_str(part.overrides).unwrap_or_default();
        instead.extend(fixed);
        let instead =
            serde_json::to_string(&instead).map_err(|error| Error::Encode(error.into()))?;
        let done = sqlx::query(AssertSqlSafe(statement))
            .bind(&batch.rows)
            .bind(&batch.secrets)
            .bind(instead)
            .bind(sealed_column(table).map_or("", |column| column.column))
            .bind(self.tenant.as_str())
            .execute(&mut *self.transaction)
            .await?;
        Ok(done.rows_affected())
    }

    /// How many of these rows are there as this tenant's.
    pub(super) async fn count_existing_rows(
        &mut self,
        part: &TransferTable,
        batch: &RowBatch,
    ) -> Result<u64, Error> {
        let statement = format!(
            "select count(*) from {BATCH_ROWS_SQL}{table}, fields::jsonb) as line \
              where exists (select from {table} here where here.{key} = $2 and ({same}))",
            table = part.name,
            key = part.tenant_column,
            same = part.match_condition,
        );
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(&batch.rows)
            .bind(self.tenant.as_str())
            .fetch_one(&mut *self.transaction)
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Those of these events that are there under another id, since their store reported them here too: by the id that the file
    /// calls each by.
    pub(super) async fn find_existing_events(
        &mut self,
        batch: &RowBatch,
    ) -> Result<Vec<(String, ExistingEvent)>, Error> {
        let statement = format!(
            "select line.id, here.id, exists (select from webhook_deliveries where event_id = here.id) \
               from {BATCH_ROWS_SQL}webhook_events, fields::jsonb) as line \
               join webhook_events here on here.tenant_id = $2 and here.source = line.source \
                    and here.external_id = line.external_id \
              where here.id <> line.id"
        );
        let rows: Vec<(String, String, bool)> = sqlx::query_as(AssertSqlSafe(statement))
            .bind(&batch.rows)
            .bind(self.tenant.as_str())
            .fetch_all(&mut *self.transaction)
            .await?;
        let rows = rows.into_iter().map(|(id, event, has_deliveries)| {
            let elsewhere = ExistingEvent {
                event_id: event,
                has_deliveries,
            };
            (id, elsewhere)
        });
        Ok(rows.collect())
    }

    /// Writes the deferred audit rows: from here on other transactions wait.
    pub(super) async fn check_deferred_constraints(&mut self) -> Result<(), Error> {
        self.set_row_audit(true).await?;
        sqlx::query("set constraints all immediate")
            .execute(&mut *self.transaction)
            .await
            .map(drop)
    }

    /// Whether the tenant is active here, after it was made inactive where that was asked for. `None`: the file had none.
    pub(super) async fn set_and_load_active(
        &mut self,
        as_inactive: bool,
    ) -> Result<Option<bool>, Error> {
        if as_inactive {
            sqlx::query!(
                "update tenants set is_active = false where id = $1 and is_active",
                self.tenant.as_str()
            )
            .execute(&mut *self.transaction)
            .await?;
        }
        sqlx::query_scalar!(
            "select is_active from tenants where id = $1",
            self.tenant.as_str()
        )
        .fetch_optional(&mut *self.transaction)
        .await
    }

    /// Deliveries of the tenant that are still to be sent.
    pub(super) async fn count_pending_deliveries(&mut self) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"select count(*) as "count!" from webhook_deliveries where tenant_id = $1 and status = 'pending'"#,
            self.tenant.as_str()
        )
        .fetch_one(&mut *self.transaction)
        .await
    }

    /// The row about the import.
    pub(super) async fn record_import(&mut self, after: &serde_json::Value) -> Result<(), Error> {
        let (tenant, transaction) = (&self.tenant, &mut self.transaction);
        crate::audit::store::record_operation(
            &mut **transaction,
            "import",
            "tenants",
            tenant.as_str(),
            Some(tenant),
            after,
        )
        .await
    }

    /// Commits. A value that is dropped instead has changed nothing.
    pub(super) async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await
    }
}

/// The row about an export.
pub(super) async fn record_export(
    database: &Database,
    tenant: &TenantId,
    after: &serde_json::Value,
) -> Result<(), Error> {
    crate::audit::store::record_operation(
        database.pool(),
        "export",
        "tenants",
        tenant.as_str(),
        Some(tenant),
        after,
    )
    .await
}
