//! The SQL of canaries, of counting and replacing sealed values, and of replaced credentials. Statements over all sealed columns
//! are built from the list in [`super::sealed_columns`], so that a column that is added there is included everywhere; those over
//! a store's credentials from its [`CredentialHistory`].

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::history::CredentialHistory;
use super::sealed_columns::{self, SealedColumn};
use crate::base::id::TenantId;
use crate::db::{Database, DbTransaction, Error};

/// Every canary: the id of its key, and the sealed text.
pub(super) async fn load_canaries(database: &Database) -> Result<Vec<(u8, Vec<u8>)>, Error> {
    let rows = sqlx::query!("select key_id, canary_enc from encryption_canaries order by key_id")
        .fetch_all(database.pool())
        .await?;
    // A check constraint of the column limits ids to 1 to 255.
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((u8::try_from(row.key_id).ok()?, row.canary_enc)))
        .collect())
}

/// Inserts the canary of a key, unless the key has one already.
pub(super) async fn add_canary(
    database: &Database,
    key_id: u8,
    canary: &[u8],
) -> Result<(), Error> {
    sqlx::query!(
        "insert into encryption_canaries (key_id, canary_enc) values ($1, $2) on conflict (key_id) do nothing",
        i16::from(key_id),
        canary
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// A sealed value and the name of its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SealedRow {
    /// The row's name, as in [`crate::crypto::keyring::SealContext`].
    pub(super) row: String,
    /// The sealed value.
    pub(super) blob: Vec<u8>,
}

/// How many values of each column are sealed with which key. The key's id is the first byte of a sealed value. It is
/// `None` for values that are empty or have the id 0, which no key has.
pub(super) async fn count_values_by_key(
    database: &Database,
    columns: &[SealedColumn],
) -> Result<Vec<(SealedColumn, Option<u8>, u64)>, Error> {
    let mut counts = Vec::new();
    for column in columns {
        let SealedColumn {
            table,
            column: name,
            ..
        } = column;
        // The names come from the list in `sealed_columns`, not from input.
        let statement = format!(
            "select case when octet_length({name}) > 0 then nullif(get_byte({name}, 0), 0) end, count(*) \
               from {table} group by 1 order by 1"
        );
        let rows: Vec<(Option<i32>, i64)> = sqlx::query_as(AssertSqlSafe(statement))
            .fetch_all(database.pool())
            .await?;
        counts.extend(rows.into_iter().map(|(id, rows)| {
            let id = id.and_then(|id| u8::try_from(id).ok());
            (*column, id, u64::try_from(rows).unwrap_or(0))
        }));
    }
    Ok(counts)
}

/// Whether any value other than a canary is sealed with this key.
pub(super) async fn is_key_in_use(database: &Database, key_id: u8) -> Result<bool, Error> {
    for column in sealed_columns::secret_columns() {
        let SealedColumn {
            table,
            column: name,
            ..
        } = column;
        let statement = format!(
            "select exists (select from {table} where substring({name} from 1 for 1) = $1)"
        );
        let found: bool = sqlx::query_scalar(AssertSqlSafe(statement))
            .bind([key_id].as_slice())
            .fetch_one(database.pool())
            .await?;
        if found {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The next rows after `after` whose value is not sealed with this key, ordered by row name.
pub(super) async fn list_values_of_other_keys(
    database: &Database,
    column: SealedColumn,
    key_id: u8,
    after: Option<&SealedRow>,
    limit: i64,
) -> Result<Vec<SealedRow>, Error> {
    let SealedColumn {
        table,
        column: name,
        row,
    } = column;
    let statement = format!(
        "select {row}::text, {name} from {table} \
          where substring({name} from 1 for 1) <> $1 and ($2 is null or ({row}::text, {name}) > ($2, $3)) \
          order by {row}::text, {name} limit $4"
    );
    let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(AssertSqlSafe(statement))
        .bind([key_id].as_slice())
        .bind(after.map(|after| &after.row))
        .bind(after.map(|after| &after.blob))
        .bind(limit)
        .fetch_all(database.pool())
        .await?;
    let rows = rows.into_iter().map(|(row, blob)| SealedRow { row, blob });
    Ok(rows.collect())
}

/// A random sample of a column's rows.
pub(super) async fn sample_values(
    database: &Database,
    column: SealedColumn,
    limit: i64,
) -> Result<Vec<SealedRow>, Error> {
    let SealedColumn {
        table,
        column: name,
        row,
    } = column;
    let statement = format!("select {row}::text, {name} from {table} order by random() limit $1");
    let rows: Vec<(String, Vec<u8>)> = sqlx::query_as(AssertSqlSafe(statement))
        .bind(limit)
        .fetch_all(database.pool())
        .await?;
    let rows = rows.into_iter().map(|(row, blob)| SealedRow { row, blob });
    Ok(rows.collect())
}

/// Writes the new values, all sealed with the key `key_id`, in one statement together with a row of the operators'
/// audit. A row is skipped if its value has changed or another transaction has locked it. Returns how many rows were
/// written.
pub(super) async fn replace_values(
    database: &Database,
    column: SealedColumn,
    key_id: u8,
    changes: &[(SealedRow, Vec<u8>)],
) -> Result<u64, Error> {
    if database.is_distributed().await? {
        return replace_each_value(database, column, key_id, changes).await;
    }
    let SealedColumn {
        table,
        column: name,
        row,
    } = column;
    let statement = format!(
        "with change as (select * from unnest($1::text[], $2::bytea[], $3::bytea[]) as change (row_name, old_value, new_value)), \
              free as ( \
                  select holder.{row} as row_name, change.old_value, change.new_value from {table} holder \
                    join change on change.row_name = holder.{row}::text and change.old_value = holder.{name} \
                   order by 1, 2 for no key update of holder skip locked \
              ), \
              written as ( \
                  update {table} holder set {name} = free.new_value from free \
                   where holder.{row} = free.row_name and holder.{name} = free.old_value returning 1 \
              ), \
              counted as (select count(*) as rows from written), \
              noted as ( \
                  select note_operation('reseal', 'encryption', 'key ' || $4, null, null, \
                      jsonb_build_object('table', '{table}', 'column', '{name}', 'resealed', rows)) \
                    from counted where rows > 0 \
              ) \
         select (select rows from counted) from (select count(*) from noted) as noted"
    );
    let rows: Vec<&str> = changes.iter().map(|(row, _)| row.row.as_str()).collect();
    let old_values: Vec<&[u8]> = changes.iter().map(|(row, _)| row.blob.as_slice()).collect();
    let new_values: Vec<&[u8]> = changes.iter().map(|(_, new)| new.as_slice()).collect();
    let written: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(rows)
        .bind(old_values)
        .bind(new_values)
        .bind(key_id.to_string())
        .fetch_one(database.pool())
        .await?;
    Ok(u64::try_from(written).unwrap_or(0))
}

/// The same on a distributed database, where Citus does not pass on rows of a reference table that it locks: each row is updated by
/// itself, and one that another transaction has locked is waited for.
async fn replace_each_value(
    database: &Database,
    column: SealedColumn,
    key_id: u8,
    changes: &[(SealedRow, Vec<u8>)],
) -> Result<u64, Error> {
    let SealedColumn {
        table,
        column: name,
        row,
    } = column;
    let statement =
        format!("update {table} set {name} = $3 where {row}::text = $1 and {name} = $2");
    let mut transaction = database.pool().begin().await?;
    let mut written = 0;
    for (changed, new_value) in changes {
        let done = sqlx::query(AssertSqlSafe(statement.clone()))
            .bind(&changed.row)
            .bind(&changed.blob)
            .bind(new_value)
            .execute(&mut *transaction)
            .await?;
        written += done.rows_affected();
    }
    if written > 0 {
        let note = "select note_operation('reseal', 'encryption', 'key ' || $1, null, null, \
            jsonb_build_object('table', $2::text, 'column', $3::text, 'resealed', $4::int8))";
        sqlx::query(note)
            .bind(key_id.to_string())
            .bind(table)
            .bind(name)
            .bind(i64::try_from(written).unwrap_or(i64::MAX))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await?;
    Ok(written)
}

/// Copies a tenant's credentials to where replaced ones are kept, with `retained` as the sealed value, in place of those there.
/// `None`: none are kept.
pub(super) async fn replace_retained(
    transaction: &mut DbTransaction,
    history: CredentialHistory,
    tenant: &TenantId,
    retained: Option<&[u8]>,
    grace: Duration,
) -> Result<(), Error> {
    let SealedColumn { table, column, .. } = history.current;
    let (kept, columns) = (history.previous.table, history.columns);
    let delete = format!("delete from {kept} where tenant_id = $1");
    sqlx::query(AssertSqlSafe(delete))
        .bind(tenant.as_str())
        .execute(&mut **transaction)
        .await?;
    let insert = format!(
        "insert into {kept} (tenant_id, {columns}, {column}, replaced_at, expires_at) \
         select tenant_id, {columns}, $2::bytea, now(), now() + make_interval(secs => $3) from {table} \
          where tenant_id = $1 and $2::bytea is not null"
    );
    sqlx::query(AssertSqlSafe(insert))
        .bind(tenant.as_str())
        .bind(retained)
        .bind(grace.as_secs_f64())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// The sealed values of a tenant's credentials and of those they replaced, both locked. `None` when none are kept any more.
pub(super) async fn lock_both(
    transaction: &mut DbTransaction,
    history: CredentialHistory,
    tenant: &TenantId,
) -> Result<Option<(Vec<u8>, Vec<u8>)>, Error> {
    let SealedColumn { table, column, .. } = history.current;
    let kept = history.previous.table;
    let statement = format!(
        "select stored.{column}, previous.{column} from {table} stored join {kept} previous using (tenant_id) \
          where tenant_id = $1 and previous.expires_at > now() for update"
    );
    sqlx::query_as(AssertSqlSafe(statement))
        .bind(tenant.as_str())
        .fetch_optional(&mut **transaction)
        .await
}

/// Swaps a tenant's credentials and those they replaced: `restored` is the sealed value that is used from now on, `retained` the
/// one that is kept, if any. Each part of the statement sees both rows as they were before it.
pub(super) async fn swap_both(
    transaction: &mut DbTransaction,
    history: CredentialHistory,
    tenant: &TenantId,
    restored: &[u8],
    retained: Option<&[u8]>,
    grace: Duration,
) -> Result<(), Error> {
    let SealedColumn { table, column, .. } = history.current;
    let (kept, columns) = (history.previous.table, history.columns);
    let statement = format!(
        "with restored as ( \
             update {table} set ({columns}, {column}, updated_at) = \
                    (select {columns}, $2::bytea, now() from {kept} where tenant_id = $1) \
              where tenant_id = $1 \
         ), forgotten as ( \
             delete from {kept} where tenant_id = $1 and $3::bytea is null \
         ) \
         update {kept} set ({columns}, {column}, replaced_at, expires_at) = \
                (select {columns}, $3::bytea, now(), now() + make_interval(secs => $4) from {table} where tenant_id = $1) \
          where tenant_id = $1 and $3::bytea is not null"
    );
    sqlx::query(AssertSqlSafe(statement))
        .bind(tenant.as_str())
        .bind(restored)
        .bind(retained)
        .bind(grace.as_secs_f64())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// The age of each store's oldest credentials. `None`: no tenant has any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OldestCredentials {
    /// The age of the oldest In-App Purchase key.
    pub apple: Option<Duration>,
    /// The age of the oldest service account of Google Play.
    pub google: Option<Duration>,
}

/// The age of each store's oldest credentials.
pub(super) async fn load_oldest_credentials(
    database: &Database,
) -> Result<OldestCredentials, Error> {
    let row = sqlx::query!(
        r#"
        select
            (select extract(epoch from now() - min(updated_at))::float8 from apple_credentials) as apple,
            (select extract(epoch from now() - min(updated_at))::float8 from google_credentials) as google
        "#
    )
    .fetch_one(database.pool())
    .await?;
    let age = |seconds: f64| Duration::from_secs_f64(seconds.max(0.0));
    Ok(OldestCredentials {
        apple: row.apple.map(age),
        google: row.google.map(age),
    })
}
