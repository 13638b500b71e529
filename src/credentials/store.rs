//! The canaries' rows, and what is sealed with which key. Statements over every sealed column are made from the list
//! in [`super::sealed_columns`], so that a column that is added there is never forgotten here.

use std::time::Duration;

use sqlx::AssertSqlSafe;

use super::sealed_columns::{self, SealedColumn};
use crate::db::{Database, Error};

/// Every canary: the key's id and the sealed text.
pub(super) async fn load_canaries(database: &Database) -> Result<Vec<(u8, Vec<u8>)>, Error> {
    let rows = sqlx::query!("select key_id, canary_enc from encryption_canaries order by key_id")
        .fetch_all(database.pool())
        .await?;
    // The column's check constraint keeps ids from 1 to 255.
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((u8::try_from(row.key_id).ok()?, row.canary_enc)))
        .collect())
}

/// Adds the canary of a key that has none yet; leaves one that is there.
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

/// What stands in one sealed column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SealedRow {
    /// The row's name, as in [`crate::crypto::keyring::SealContext`].
    pub(super) row: String,
    /// The sealed value.
    pub(super) blob: Vec<u8>,
}

/// How many values are sealed with which key, by column. The key's id is a sealed value's first byte; `None` for a
/// value that is too short to have one, or has the id that no key has.
pub(super) async fn count_values_by_key(
    database: &Database,
    columns: &[SealedColumn],
) -> Result<Vec<(SealedColumn, Option<u8>, u64)>, Error> {
    let mut holdings = Vec::new();
    for column in columns {
        let SealedColumn {
            table,
            column: name,
            ..
        } = column;
        // The names come from our own list.
        let statement = format!(
            "select case when octet_length({name}) > 0 then nullif(get_byte({name}, 0), 0) end, count(*) \
               from {table} group by 1 order by 1"
        );
        let rows: Vec<(Option<i32>, i64)> = sqlx::query_as(AssertSqlSafe(statement))
            .fetch_all(database.pool())
            .await?;
        holdings.extend(rows.into_iter().map(|(id, rows)| {
            let id = id.and_then(|id| u8::try_from(id).ok());
            (*column, id, u64::try_from(rows).unwrap_or(0))
        }));
    }
    Ok(holdings)
}

/// Whether anything is sealed with this key, canaries aside.
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

/// The next rows after `after` whose value is not sealed with this key, in the order of their names.
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

/// Any few rows of a column.
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

/// Puts each new value, sealed with the key of that id, where the old one still stands, all in one short transaction with
/// the row that notes it. A row that another transaction is writing is left to it. Returns how many were written.
pub(super) async fn replace_values(
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
    let statement = format!(
        "with change as (select * from unnest($1::text[], $2::bytea[], $3::bytea[]) as change (row_name, was, is_now)), \
              free as ( \
                  select holder.{row} as row_name, change.was, change.is_now from {table} holder \
                    join change on change.row_name = holder.{row}::text and change.was = holder.{name} \
                   order by 1, 2 for no key update of holder skip locked \
              ), \
              put as ( \
                  update {table} holder set {name} = free.is_now from free \
                   where holder.{row} = free.row_name and holder.{name} = free.was returning 1 \
              ), \
              counted as (select count(*) as rows from put), \
              noted as ( \
                  select note_operation('reseal', 'encryption', 'key ' || $4, null, null, \
                      jsonb_build_object('table', '{table}', 'column', '{name}', 'resealed', rows)) \
                    from counted where rows > 0 \
              ) \
         select (select rows from counted) from (select count(*) from noted) as noted"
    );
    let rows: Vec<&str> = changes.iter().map(|(row, _)| row.row.as_str()).collect();
    let was: Vec<&[u8]> = changes.iter().map(|(row, _)| row.blob.as_slice()).collect();
    let is_now: Vec<&[u8]> = changes.iter().map(|(_, new)| new.as_slice()).collect();
    let put: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(rows)
        .bind(was)
        .bind(is_now)
        .bind(key_id.to_string())
        .fetch_one(database.pool())
        .await?;
    Ok(u64::try_from(put).unwrap_or(0))
}

/// The age of the oldest of each store. `None`: there are none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OldestCredentials {
    /// The age of the oldest In-App Purchase key.
    pub apple: Option<Duration>,
    /// Google's service accounts.
    pub google: Option<Duration>,
}

/// The age of the oldest credentials of each store.
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
