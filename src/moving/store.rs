//! The queries of moving a tenant. They are made of the list in [`super::content`] and of the database's own catalogue, so that a
//! column that is added is never forgotten.

use std::collections::BTreeMap;

use futures_util::TryStreamExt as _;
use serde_json::value::RawValue;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgExecutor, Row as _};

use super::content::{History, MOVED, Part, Present};
use crate::credentials::sealed::{self, SealedColumn};
use crate::db::{Database, Error, Transaction};
use crate::id::TenantId;

/// Between two batches a file is read and opened.
const PATIENTLY: &str =
    "set local statement_timeout = '120s'; set local idle_in_transaction_session_timeout = '120s'";

/// The column of a table that holds what is sealed. A table has one at most.
pub(super) fn sealed_column(table: &str) -> Option<SealedColumn> {
    sealed::secrets().find(|column| column.table == table)
}

/// The columns of a table that are not made by the database itself, in their order.
async fn columns(with: impl PgExecutor<'_>, table: &str) -> Result<Vec<String>, Error> {
    sqlx::query_scalar(
        "select attname::text from pg_attribute
          where attrelid = to_regclass('public.' || $1) and attnum > 0 and not attisdropped and attgenerated = ''
          order by attnum",
    )
    .bind(table)
    .fetch_all(with)
    .await
}

async fn schema_version(with: impl PgExecutor<'_>) -> Result<i64, Error> {
    sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success")
        .fetch_one(with)
        .await
}

/// One state of the database, which does not change while this lives.
pub(super) struct Snapshot {
    connection: PgConnection,
    /// When it was taken, by the database's clock.
    pub(super) taken_at: time::OffsetDateTime,
    /// The newest migration.
    pub(super) schema_version: i64,
}

/// The tenant as far as an export asks.
pub(super) struct Owner {
    pub(super) name: String,
    pub(super) is_active: bool,
    /// Deliveries that somebody is sending.
    pub(super) under_way: i64,
    /// Deliveries that are still to be sent.
    pub(super) waiting: i64,
    /// Whether a redelivery of many is not through.
    pub(super) redelivering: bool,
}

impl Snapshot {
    pub(super) async fn take(database: &Database) -> Result<Self, Error> {
        let mut connection = database.connect_directly("attesto-export").await?;
        connection
            .execute(
                "set statement_timeout = 0; set idle_in_transaction_session_timeout = 0; set lock_timeout = '60s';
                 begin transaction isolation level repeatable read read only",
            )
            .await?;
        let taken_at = sqlx::query_scalar("select now()")
            .fetch_one(&mut connection)
            .await?;
        let schema_version = schema_version(&mut connection).await?;
        Ok(Self {
            connection,
            taken_at,
            schema_version,
        })
    }

    pub(super) async fn owner(&mut self, tenant: &TenantId) -> Result<Option<Owner>, Error> {
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
        Ok(row.map(|row| Owner {
            name: row.name,
            is_active: row.is_active,
            under_way: row.under_way,
            waiting: row.waiting,
            redelivering: row.redelivering,
        }))
    }

    pub(super) async fn columns(&mut self, table: &str) -> Result<Vec<String>, Error> {
        columns(&mut self.connection, table).await
    }

    /// The tenant's rows of a table, one after the other: the fields of `columns` that are not sealed, and what stands sealed.
    pub(super) async fn rows<E: From<Error>>(
        &mut self,
        part: &Part,
        history: History,
        tenant: &TenantId,
        columns: &[String],
        mut each: impl FnMut(Box<RawValue>, Option<Vec<u8>>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sealed = sealed_column(part.table).map(|column| column.column);
        let open: Vec<_> = columns
            .iter()
            .filter(|name| sealed != Some(name.as_str()))
            .map(|name| format!("line.{name}"))
            .collect();
        // The names come from our own list and from the catalogue; none needs quotes.
        let statement = format!(
            "select to_json(shown)::text, {sealed} from {table} line \
               cross join lateral (select {open}) as shown where line.{key} = $1 and {which}",
            sealed = sealed.map_or("null::bytea".to_owned(), |name| format!("line.{name}")),
            open = open.join(", "),
            table = part.table,
            key = part.key,
            which = part.rows(history),
        );
        let mut rows = sqlx::query(AssertSqlSafe(statement))
            .bind(tenant.as_str())
            .fetch(&mut self.connection);
        while let Some(row) = rows.try_next().await? {
            let (fields, secret) = split(&row)?;
            each(fields, secret)?;
        }
        Ok(())
    }

    pub(super) async fn end(mut self) -> Result<(), Error> {
        self.connection.execute("commit").await?;
        self.connection.close().await
    }
}

fn split(row: &PgRow) -> Result<(Box<RawValue>, Option<Vec<u8>>), Error> {
    let fields: String = row.try_get(0)?;
    let fields = RawValue::from_string(fields).map_err(|error| Error::Decode(error.into()))?;
    Ok((fields, row.try_get(1)?))
}

/// Rows of one table on their way in.
#[derive(Default)]
pub(super) struct Batch {
    /// Each as JSON.
    pub(super) rows: Vec<String>,
    /// What stands sealed in each.
    pub(super) secrets: Vec<Option<Vec<u8>>>,
}

/// A tenant that is being unpacked: all of it, or nothing.
pub(super) struct Unpacking {
    transaction: Transaction,
    tenant: TenantId,
    /// Who is at the keyboard, as the session says it.
    session: Option<String>,
    pub(super) schema_version: i64,
}

impl Unpacking {
    pub(super) async fn begin(database: &Database, tenant: &TenantId) -> Result<Self, Error> {
        let begin = database.pool().begin_with(PATIENTLY);
        let mut transaction = begin.await?;
        let session = sqlx::query_scalar("select current_setting('attesto.session', true)")
            .fetch_one(&mut *transaction)
            .await?;
        let schema_version = schema_version(&mut *transaction).await?;
        Ok(Self {
            transaction,
            tenant: tenant.clone(),
            session,
            schema_version,
        })
    }

    pub(super) async fn is_there(&mut self) -> Result<bool, Error> {
        sqlx::query_scalar!(
            r#"select exists (select from tenants where id = $1) as "is_there!""#,
            self.tenant.as_str()
        )
        .fetch_one(&mut *self.transaction)
        .await
    }

    pub(super) async fn columns(&mut self, table: &str) -> Result<Vec<String>, Error> {
        columns(&mut *self.transaction, table).await
    }

    /// Takes away what the file is to say instead.
    pub(super) async fn make_room(&mut self) -> Result<(), Error> {
        let removed = MOVED.iter().rev();
        for part in removed.filter(|part| part.present == Present::Removed) {
            let statement = format!("delete from {} where {} = $1", part.table, part.key);
            sqlx::query(AssertSqlSafe(statement))
                .bind(self.tenant.as_str())
                .execute(&mut *self.transaction)
                .await?;
        }
        Ok(())
    }

    /// Whether the rows that follow leave rows in the log of changes, each its own.
    pub(super) async fn note_each(&mut self, each: bool) -> Result<(), Error> {
        let session = self.session.as_deref().filter(|_| each).unwrap_or("");
        sqlx::query("select set_config('attesto.session', $1, true)")
            .bind(session)
            .execute(&mut *self.transaction)
            .await
            .map(drop)
    }

    /// Writes rows, whatever tenant they name as this one's. Gives how many were not there already.
    pub(super) async fn insert(
        &mut self,
        part: &Part,
        columns: &[String],
        batch: &Batch,
        is_inactive: bool,
    ) -> Result<u64, Error> {
        let table = part.table;
        let names = columns.join(", ");
        // A delivery goes nowhere without its event, and not with another tenant's.
        let which = if table == "webhook_deliveries" {
            "exists (select from webhook_events event where event.id = given.event_id and event.tenant_id = $5)"
        } else {
            "true"
        };
        let present = match part.present {
            Present::Overwritten => {
                let others = columns.iter().filter(|name| *name != part.key);
                let set: Vec<_> = others
                    .map(|name| format!("{name} = excluded.{name}"))
                    .collect();
                format!(
                    "on conflict ({}) do update set {}",
                    part.key,
                    set.join(", ")
                )
            }
            Present::Removed => String::new(),
            Present::Kept => "on conflict do nothing".to_owned(),
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
        let mut instead = BTreeMap::from([(part.key, serde_json::json!(self.tenant))]);
        if table == "tenants" && is_inactive {
            instead.insert("is_active", false.into());
        }
        let fixed: BTreeMap<&str, serde_json::Value> =
            serde_json::from_str(part.instead).unwrap_or_default();
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

    /// Deliveries of the tenant that are still to be sent.
    pub(super) async fn waiting(&mut self) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"select count(*) as "count!" from webhook_deliveries where tenant_id = $1 and status = 'pending'"#,
            self.tenant.as_str()
        )
        .fetch_one(&mut *self.transaction)
        .await
    }

    /// The row about the import.
    pub(super) async fn note(&mut self, after: &serde_json::Value) -> Result<(), Error> {
        let (tenant, transaction) = (&self.tenant, &mut self.transaction);
        crate::audit::store::note_operation(
            &mut **transaction,
            "import",
            "tenants",
            tenant.as_str(),
            Some(tenant),
            after,
        )
        .await
    }

    /// Makes it so. Whoever lets go of it instead has changed nothing.
    pub(super) async fn commit(self) -> Result<(), Error> {
        self.transaction.commit().await
    }
}

/// The row about an export.
pub(super) async fn note_export(
    database: &Database,
    tenant: &TenantId,
    after: &serde_json::Value,
) -> Result<(), Error> {
    crate::audit::store::note_operation(
        database.pool(),
        "export",
        "tenants",
        tenant.as_str(),
        Some(tenant),
        after,
    )
    .await
}
