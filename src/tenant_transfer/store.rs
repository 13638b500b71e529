//! The SQL of exports and imports. Statements are built from the list in [`super::tables`] and from the database's
//! catalogue, so that a new column is included everywhere.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgExecutor, Row as _};

use super::error::TransferError;
use super::tables::{ConflictPolicy, HistoryScope, TRANSFERRED_TABLES, TransferTable};
use crate::base::id::TenantId;
use crate::base::lane::LaneSet;
use crate::credentials::sealed_columns::{self, SealedColumn};
use crate::db::row_changes::{CONFIGURED_TABLES, ChangeTransaction};
use crate::db::{Database, Error, is_lock_timeout};
use crate::events::unresolved::MAX_UNRESOLVED_TIME;
use crate::tenants::lane::lane_column;

/// The idle timeout is long because the file is read and unsealed between two batches. The audit rows of the changes
/// are deferred to the end: a transaction that adds to the operators' audit blocks others that add to it, and a history
/// may be long.
const IMPORT_SESSION_SQL: &str = "set local statement_timeout = '120s'; set local idle_in_transaction_session_timeout = '120s'; \
     set constraints all deferred";
/// A batch, converted to rows of its table.
const BATCH_ROWS_SQL: &str =
    "unnest($1::text[]) as given (fields) cross join lateral jsonb_populate_record(null::";

/// The number of rows that are fetched at once. If all had the maximum size, they would need about 300 MB of memory.
const FETCH_ROWS: usize = 100;
/// The idle timeout limits how long the snapshot is kept: while it exists, vacuum cannot remove rows that were deleted
/// since anywhere in the database. The statement timeout can be short, because each fetch reads few rows and no
/// statement waits for row locks.
const EXPORT_SESSION_SQL: &str = "set statement_timeout = '120s'; set idle_in_transaction_session_timeout = '120s'; \
     set lock_timeout = '60s'";
/// Waits for transactions that are writing to the two tables. One transaction for each table, because writers lock the
/// tables in either order. New writers wait meanwhile too.
const WAIT_FOR_WRITERS_SQL: [&str; 2] = [
    "set lock_timeout = '3s'; begin; lock table webhook_events in share mode; commit",
    "begin; lock table webhook_deliveries in share mode; commit; set lock_timeout = '60s'",
];

/// The last error of a delivery whose callback an import has removed.
const ORPHANED_DELIVERY_ERROR: &str =
    "an import of the tenant removed the callback before the event was delivered";

/// A column whose value is of no use in another database.
#[derive(Clone, Copy, Debug)]
pub(super) enum EncodedColumn {
    /// It is sealed with the installation's key.
    Sealed(SealedColumn),
    /// It is compressed with a dictionary of the database.
    Body,
}

impl EncodedColumn {
    fn name(self) -> &'static str {
        match self {
            Self::Sealed(column) => column.column,
            Self::Body => "stored_body",
        }
    }
}

/// The table's column that is written to the file in another form. No table has two.
pub(super) fn encoded_column(table: &str) -> Option<EncodedColumn> {
    if table == "webhook_events" {
        return Some(EncodedColumn::Body);
    }
    sealed_columns::secret_columns()
        .find(|column| column.table == table)
        .map(EncodedColumn::Sealed)
}

/// The columns of a table in order, without `lane` and generated ones.
async fn list_table_columns(with: impl PgExecutor<'_>, table: &str) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "select attname::text from pg_attribute
          where attrelid = to_regclass($1) and attnum > 0 and not attisdropped and attgenerated = '' and attname <> 'lane'
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

/// A `repeatable read` transaction, whose view of the database does not change.
pub(super) struct TenantSnapshot {
    connection: PgConnection,
    /// When the snapshot was taken, by the database's clock.
    pub(super) taken_at: time::OffsetDateTime,
    /// The number of the newest migration.
    pub(super) schema_version: i64,
}

/// What an export needs to know about a tenant.
pub(super) struct ExportedTenant {
    pub(super) name: String,
    pub(super) is_active: bool,
    /// Deliveries that a process is sending: their lease has not expired.
    pub(super) deliveries_in_progress: i64,
    /// Deliveries with status `pending`.
    pub(super) pending_deliveries: i64,
    /// Whether a redelivery has not finished.
    pub(super) has_open_redelivery: bool,
}

impl TenantSnapshot {
    /// The snapshot of an inactive tenant is complete. Every transaction that stored an event or claimed a delivery
    /// while the tenant was active has committed before; every later one sees that the tenant is inactive in the
    /// statement that would write.
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
        sqlx::query_as!(
            ExportedTenant,
            r#"
            select name, is_active,
                (select count(*) from webhook_deliveries
                  where lane = $2 and tenant_id = $1 and status = 'pending' and lease_until > now())
                    as "deliveries_in_progress!",
                (select count(*) from webhook_deliveries
                  where lane = $2 and tenant_id = $1 and status = 'pending') as "pending_deliveries!",
                exists (select from webhook_redeliveries
                  where lane = $2 and tenant_id = $1 and finished_at is null) as "has_open_redelivery!"
            from tenants where id = $1
            "#,
            tenant.as_str(),
            lane_column(tenant),
        )
        .fetch_optional(&mut self.connection)
        .await
    }

    pub(super) async fn list_columns(&mut self, table: &str) -> Result<Vec<String>, Error> {
        list_table_columns(&mut self.connection, table).await
    }

    /// Calls `each` for each of the tenant's rows of a table, with the columns but for the encoded one, and the encoded
    /// value.
    pub(super) async fn for_each_row<E: From<Error>>(
        &mut self,
        part: &TransferTable,
        history: HistoryScope,
        tenant: &TenantId,
        columns: &[String],
        mut each: impl FnMut(Box<RawValue>, Option<Vec<u8>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let encoded = encoded_column(part.name).map(EncodedColumn::name);
        let open: Vec<_> = columns
            .iter()
            .filter(|name| encoded != Some(name.as_str()))
            .map(|name| format!("line.{name}"))
            .collect();
        // The names come from the list of tables and from the catalogue. None of them needs quotes.
        let statement = format!(
            "declare moved no scroll cursor for \
             select to_json(shown)::text as fields, {encoded} as encoded from {table} line \
               cross join lateral (select {open}) as shown where {in_lane} and line.{key} = $1 and {which}",
            in_lane = part.lane_condition("line", 2),
            encoded = encoded.map_or("null::bytea".to_owned(), |name| format!("line.{name}")),
            open = open.join(", "),
            table = part.name,
            key = part.tenant_column,
            which = part.filter_for(history),
        );
        sqlx::query(AssertSqlSafe(statement))
            .persistent(false)
            .bind(tenant.as_str())
            .bind(lane_column(tenant))
            .execute(&mut self.connection)
            .await?;
        loop {
            let fetch = format!("fetch forward {FETCH_ROWS} from moved");
            let rows = sqlx::query(AssertSqlSafe(fetch)).persistent(false);
            let rows = rows.fetch_all(&mut self.connection).await?;
            let is_last = rows.len() < FETCH_ROWS;
            for row in rows {
                let (fields, encoded) = split_row(&row)?;
                each(fields, encoded)?;
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

/// An event of the file that exists here with another id.
#[derive(Clone, Debug)]
pub(super) struct ExistingEvent {
    /// Its id in this database.
    pub(super) event_id: String,
    /// Whether it has deliveries here. If so, those of the file are left out.
    pub(super) has_deliveries: bool,
}

/// The table of the networks that a tenant's callback is allowed to reach.
pub(super) const NETWORKS_TABLE: &str = "webhook_allowed_networks";

/// Rows of one table that are to be inserted.
#[derive(Default)]
pub(super) struct RowBatch {
    /// Each row as JSON, without the encoded value.
    pub(super) rows: Vec<String>,
    /// The encoded value of each row.
    pub(super) encoded: Vec<Option<Vec<u8>>>,
}

/// The transaction of an import.
pub(super) struct TenantImport {
    transaction: ChangeTransaction,
    tenant: TenantId,
    /// The operator, as the session variable `attesto.session` names them.
    audit_session: Option<String>,
    pub(super) schema_version: i64,
}

impl TenantImport {
    pub(super) async fn begin_import(
        database: &Database,
        tenant: &TenantId,
    ) -> Result<Self, Error> {
        let begin = database.begin_change_with(
            IMPORT_SESSION_SQL,
            CONFIGURED_TABLES,
            Some(tenant.as_str()),
        );
        let mut transaction = begin.await?;
        let session = sqlx::query_scalar("select current_setting('attesto.session', true)")
            .fetch_one(&mut **transaction)
            .await?;
        let schema_version = load_schema_version(&mut **transaction).await?;
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
        .fetch_one(&mut **self.transaction)
        .await
    }

    pub(super) async fn list_columns(&mut self, table: &str) -> Result<Vec<String>, Error> {
        list_table_columns(&mut **self.transaction, table).await
    }

    /// Deletes the rows that the file replaces. Allowed networks are only deleted if they are to be imported.
    pub(super) async fn delete_replaced_rows(&mut self, with_networks: bool) -> Result<(), Error> {
        let removed = TRANSFERRED_TABLES.iter().rev();
        let removed = removed
            .filter(|part| part.on_conflict == ConflictPolicy::DeleteFirst)
            .filter(|part| with_networks || part.name != NETWORKS_TABLE);
        for part in removed {
            let statement = format!(
                "delete from {} where {} and {} = $1",
                part.name,
                part.lane_condition(part.name, 2),
                part.tenant_column
            );
            sqlx::query(AssertSqlSafe(statement))
                .bind(self.tenant.as_str())
                .bind(lane_column(&self.tenant))
                .execute(&mut **self.transaction)
                .await?;
        }
        Ok(())
    }

    /// Sets whether each of the following changes writes a row of the operators' audit.
    pub(super) async fn set_row_audit(&mut self, each: bool) -> Result<(), Error> {
        let session = self.audit_session.as_deref().filter(|_| each).unwrap_or("");
        sqlx::query("select set_config('attesto.session', $1, true)")
            .bind(session)
            .execute(&mut **self.transaction)
            .await
            .map(drop)
    }

    /// Inserts rows and returns how many did not exist. They become rows of this tenant, whatever tenant they name. The
    /// tenant's own row is updated only if the tenant is to be `replaced`; its column `is_active` is not changed then.
    pub(super) async fn insert_rows(
        &mut self,
        part: &TransferTable,
        columns: &[String],
        batch: &RowBatch,
        replaced: bool,
    ) -> Result<u64, Error> {
        let table = part.name;
        // The lane follows from the tenant, whatever the file says.
        let lane = part.has_lane.then(|| "lane".to_owned());
        let columns: Vec<String> = columns.iter().cloned().chain(lane).collect();
        let names = columns.join(", ");
        let which = part.import_condition();
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
             select {given} from unnest($1::text[], $2::bytea[]) as line (fields, encoded) \
              cross join lateral jsonb_populate_record(null::{table}, \
                    fields::jsonb || $3::jsonb || case when encoded is null then '{{}}' else jsonb_build_object($4::text, encoded) end \
                ) as given \
              where {which} and $5::text is not null and $6::int2 is not null and $7::int2[] is not null {present}",
            given = columns
                .iter()
                .map(|name| format!("given.{name}"))
                .collect::<Vec<_>>()
                .join(", "),
        );
        let mut instead = BTreeMap::from([(part.tenant_column, serde_json::json!(self.tenant))]);
        if part.has_lane {
            instead.insert("lane", lane_column(&self.tenant).into());
        }
        let fixed: BTreeMap<&str, serde_json::Value> =
            serde_json::from_str(part.overrides).unwrap_or_default();
        instead.extend(fixed);
        let instead =
            serde_json::to_string(&instead).map_err(|error| Error::Encode(error.into()))?;
        let done = sqlx::query(AssertSqlSafe(statement))
            .bind(&batch.rows)
            .bind(&batch.encoded)
            .bind(instead)
            .bind(encoded_column(table).map_or("", EncodedColumn::name))
            .bind(self.tenant.as_str())
            .bind(lane_column(&self.tenant))
            .bind(LaneSet::ALL.columns())
            .execute(&mut **self.transaction)
            .await?;
        Ok(done.rows_affected())
    }

    /// How many of these rows exist and belong to this tenant.
    pub(super) async fn count_existing_rows(
        &mut self,
        part: &TransferTable,
        batch: &RowBatch,
    ) -> Result<u64, Error> {
        let statement = format!(
            "select count(*) from {BATCH_ROWS_SQL}{table}, fields::jsonb) as line \
              where exists (select from {table} here where {in_lane} and here.{key} = $2 and ({same}))",
            in_lane = part.lane_condition("here", 3),
            table = part.name,
            key = part.tenant_column,
            same = part.match_condition,
        );
        let count: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind(&batch.rows)
            .bind(self.tenant.as_str())
            .bind(lane_column(&self.tenant))
            .fetch_one(&mut **self.transaction)
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Finds the events of this batch that exist here with another id, because their store reported them to this
    /// installation too. Returns the id in the file and the event found.
    pub(super) async fn find_existing_events(
        &mut self,
        batch: &RowBatch,
    ) -> Result<Vec<(String, ExistingEvent)>, Error> {
        let statement = format!(
            "select line.id, here.id, exists (select from webhook_deliveries where lane = $3 and event_id = here.id) \
               from {BATCH_ROWS_SQL}webhook_events, fields::jsonb) as line \
               join webhook_events here on here.lane = $3 and here.tenant_id = $2 and here.source = line.source \
                    and here.external_id = line.external_id \
              where here.id <> line.id"
        );
        let rows: Vec<(String, String, bool)> = sqlx::query_as(AssertSqlSafe(statement))
            .bind(&batch.rows)
            .bind(self.tenant.as_str())
            .bind(lane_column(&self.tenant))
            .fetch_all(&mut **self.transaction)
            .await?;
        let rows = rows.into_iter().map(|(id, event, has_deliveries)| {
            let existing = ExistingEvent {
                event_id: event,
                has_deliveries,
            };
            (id, existing)
        });
        Ok(rows.collect())
    }

    /// Writes the deferred audit rows. From here on, other transactions that write audit rows wait for this one.
    pub(super) async fn check_deferred_constraints(&mut self) -> Result<(), Error> {
        self.set_row_audit(true).await?;
        sqlx::query("set constraints all immediate")
            .execute(&mut **self.transaction)
            .await
            .map(drop)
    }

    /// Lists the events whose state was not told where they come from, as far as it is still asked for.
    pub(super) async fn list_unresolved_states(&mut self) -> Result<(), Error> {
        sqlx::query!(
            "insert into unresolved_states \
                    (lane, event_id, tenant_id, source, key_hash, state_error, next_attempt_at, created_at) \
             select event.lane, event.id, event.tenant_id, event.source, sha256(convert_to(event.subject_key, 'UTF8')), event.state_error, \
                    attesto_now(), event.received_at \
               from webhook_events event \
              where event.lane = $3 and event.tenant_id = $1 and event.state_error is not null and event.state is null \
                and event.subject_key is not null and event.received_at > attesto_now() - make_interval(secs => $2) \
                and not exists (select from webhook_events told \
                                 where told.lane = $3 and told.tenant_id = event.tenant_id and told.source = event.source \
                                   and told.external_id = 'state:' || event.id) \
             on conflict do nothing",
            self.tenant.as_str(),
            MAX_UNRESOLVED_TIME.as_secs_f64(),
            lane_column(&self.tenant),
        )
        .execute(&mut **self.transaction)
        .await
        .map(drop)
    }

    /// Marks the pending deliveries to callbacks that the file has replaced by none as failed: nothing would send them. Returns their
    /// number. The numbers of these callbacks are not given to others.
    pub(super) async fn abandon_orphaned_deliveries(&mut self) -> Result<u64, Error> {
        let newest = sqlx::query_scalar!(
            "select max(callback) from webhook_deliveries where lane = $2 and tenant_id = $1",
            self.tenant.as_str(),
            lane_column(&self.tenant),
        )
        .fetch_one(&mut **self.transaction)
        .await?;
        sqlx::query!(
            "update webhook_configs config set last_callback = greatest(last_callback, $2) \
              where config.tenant_id = $1 and config.callback = 1",
            self.tenant.as_str(),
            newest,
        )
        .execute(&mut **self.transaction)
        .await?;
        let abandoned = sqlx::query!(
            "update webhook_deliveries delivery set \
                status = 'failed', failed_at = attesto_now(), next_attempt_at = null, lease_until = null, \
                lease_no = lease_no + 1, parked_at = null, last_error = $2 \
              where delivery.lane = $3 and delivery.tenant_id = $1 and delivery.status = 'pending' \
                and delivery.callback <> 1 \
                and not exists (select from webhook_configs config \
                                 where config.tenant_id = $1 and config.callback = delivery.callback)",
            self.tenant.as_str(),
            ORPHANED_DELIVERY_ERROR,
            lane_column(&self.tenant),
        )
        .execute(&mut **self.transaction)
        .await?;
        Ok(abandoned.rows_affected())
    }

    /// Makes the tenant inactive if `as_inactive`. Returns whether it is active; `None`: the file has no tenant.
    pub(super) async fn set_and_load_active(
        &mut self,
        as_inactive: bool,
    ) -> Result<Option<bool>, Error> {
        if as_inactive {
            sqlx::query!(
                "update tenants set is_active = false where id = $1 and is_active",
                self.tenant.as_str()
            )
            .execute(&mut **self.transaction)
            .await?;
        }
        sqlx::query_scalar!(
            "select is_active from tenants where id = $1",
            self.tenant.as_str()
        )
        .fetch_optional(&mut **self.transaction)
        .await
    }

    /// The number of the tenant's pending deliveries.
    pub(super) async fn count_pending_deliveries(&mut self) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"select count(*) as "count!" from webhook_deliveries where lane = $2 and tenant_id = $1 and status = 'pending'"#,
            self.tenant.as_str(),
            lane_column(&self.tenant),
        )
        .fetch_one(&mut **self.transaction)
        .await
    }

    /// Writes the audit row of the import.
    pub(super) async fn record_import(&mut self, after: &serde_json::Value) -> Result<(), Error> {
        let (tenant, transaction) = (&self.tenant, &mut self.transaction);
        crate::audit::store::record_operation(
            &mut ***transaction,
            "import",
            "tenants",
            tenant.as_str(),
            Some(tenant),
            after,
        )
        .await
    }

    /// Commits the import. If the value is dropped instead, everything is rolled back.
    pub(super) async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await
    }
}

/// Writes the audit row of an export.
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
