//! Seals all values again with the current key, a few rows at a time, while every process goes on working.
//!
//! Guarantees: each value is unsealed, sealed with the current key, unsealed again and compared before it is written.
//! It is written only if the stored value is still the one that was read, so that a concurrent change is never
//! overwritten. Each batch is recorded in the operators' audit within its own transaction. A run can be stopped at any
//! time and repeated, and several can run at once. A value that cannot be unsealed is left unchanged and listed with
//! its cause: its key is not configured, decryption with that key fails, or it is not a sealed value. These three
//! causes are always reported separately.
//!
//! Canaries are never sealed again: they show whether a key is wrong or a value is damaged.

use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::sealed_columns::{self, SealedColumn};
use super::store::{self, SealedRow};
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::db::{Database, Error};

/// Rows in one transaction. Their locks are held for a few milliseconds.
const BATCH_ROWS: i64 = 100;
/// The pause between two batches, so that a run does not slow down other work on the database.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How many times all columns are processed. Another round is needed when rows were locked or changed by other
/// transactions.
const MAX_RESEAL_ROUNDS: u32 = 5;
/// The report lists this many values that cannot be unsealed, and only counts the others.
const MAX_LISTED_FAILURES: usize = 100;

/// How many values of a column are sealed with one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SealingKeyUsage {
    /// The column that holds the values.
    #[serde(flatten)]
    pub column: SealedColumn,
    /// The id of the key. `None`: the values are too short to name a key, or name the id 0.
    pub key_id: Option<u8>,
    /// The number of values that are sealed with this key.
    pub rows: u64,
}

/// Counts the values of each column by key, canaries included. Reads the first byte of every sealed value.
pub async fn list_key_usage(database: &Database) -> Result<Vec<SealingKeyUsage>, Error> {
    let found = store::count_values_by_key(database, &sealed_columns::ALL_SEALED_COLUMNS).await?;
    let usage = found
        .into_iter()
        .map(|(column, key_id, rows)| SealingKeyUsage {
            column,
            key_id,
            rows,
        });
    Ok(usage.collect())
}

/// Whether a run writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResealMode {
    /// Seal every value with the current key.
    Apply,
    /// Unseal every value and write nothing.
    DryRun,
}

/// The progress of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResealProgress {
    /// The column that is being processed.
    #[serde(flatten)]
    pub column: SealedColumn,
    /// Values read so far in this round, in all columns.
    pub looked_at: u64,
    /// Values to read, counted when the run began.
    pub total: u64,
}

/// A value that cannot be unsealed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnopenedValue {
    /// The column of the value.
    #[serde(flatten)]
    pub column: SealedColumn,
    /// The row's key as text: a tenant's id in most tables.
    pub row: String,
    /// The class of the cause: see [`UnsealError::class`].
    pub class: &'static str,
    /// The reason it does not open.
    #[serde(skip)]
    pub cause: UnsealError,
}

/// The result of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResealReport {
    /// The id of the key that values were sealed with.
    pub key_id: u8,
    /// Whether the run was a dry run, which writes nothing.
    pub dry_run: bool,
    /// Values that were sealed again; in a dry run, values that would have been.
    pub resealed: u64,
    /// Values that could not be unsealed.
    pub failed: u64,
    /// The first [`MAX_LISTED_FAILURES`] of the values that could not be unsealed.
    pub failures: Vec<UnopenedValue>,
    /// Values that are still sealed with another key, including those that could not be unsealed.
    pub remaining: u64,
}

/// Why a run was aborted.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// A value was sealed and could not be unsealed to the same plaintext. Nothing of its batch was written.
    #[error(
        "a value of {}.{} was sealed with the current key and could not be decrypted to the same plaintext; its batch was not written: test this machine's memory",
        .0.table,
        .0.column
    )]
    VerificationFailed(SealedColumn),
    /// A query failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

/// Seals every value with the current key, until all are done or `stop` is cancelled. The caller must check first that
/// the keys are those of this database ([`super::canary`]). `on_progress` is called after every batch.
pub async fn reseal_values(
    database: &Database,
    keyring: &Keyring,
    mode: ResealMode,
    stop: &CancellationToken,
    mut on_progress: impl FnMut(&ResealProgress) + Send,
) -> Result<ResealReport, ResealError> {
    let mut report = ResealReport {
        key_id: keyring.sealing_key_id(),
        dry_run: mode == ResealMode::DryRun,
        ..ResealReport::default()
    };
    let total = count_remaining(database, keyring).await?;
    for _ in 0..MAX_RESEAL_ROUNDS {
        report.failed = 0;
        report.failures.clear();
        let mut looked_at = 0;
        let mut skipped = 0;
        for column in sealed_columns::secret_columns() {
            let mut after: Option<SealedRow> = None;
            while !stop.is_cancelled() {
                let rows = store::list_values_of_other_keys(
                    database,
                    column,
                    keyring.sealing_key_id(),
                    after.as_ref(),
                    BATCH_ROWS,
                )
                .await?;
                let Some(last) = rows.last() else { break };
                after = Some(last.clone());
                looked_at += rows.len() as u64;
                let is_full = rows.len() as u64 == BATCH_ROWS.unsigned_abs();
                let changes = reseal_rows(keyring, column, rows, &mut report)?;
                let wanted = changes.len() as u64;
                let done = match mode {
                    ResealMode::DryRun => wanted,
                    ResealMode::Apply if changes.is_empty() => 0,
                    ResealMode::Apply => {
                        store::replace_values(database, column, report.key_id, &changes).await?
                    }
                };
                report.resealed += done;
                skipped += wanted - done.min(wanted);
                on_progress(&ResealProgress {
                    column,
                    looked_at,
                    total: total.max(looked_at),
                });
                if !is_full {
                    break;
                }
                if mode == ResealMode::Apply {
                    let _ = stop.run_until_cancelled(sleep(BATCH_INTERVAL)).await;
                }
            }
        }
        if skipped == 0 || stop.is_cancelled() {
            break;
        }
    }
    report.remaining = count_remaining(database, keyring).await?;
    Ok(report)
}

/// Seals each row's value again and returns it with its row. Adds rows that cannot be unsealed to the report.
fn reseal_rows(
    keyring: &Keyring,
    column: SealedColumn,
    rows: Vec<SealedRow>,
    report: &mut ResealReport,
) -> Result<Vec<(SealedRow, Vec<u8>)>, ResealError> {
    let mut changes = Vec::with_capacity(rows.len());
    for row in rows {
        let place = column.context_for(&row.row);
        match keyring.open(place, &row.blob) {
            Ok(secret) => {
                let sealed = keyring.seal(place, secret.expose_secret());
                let unsealed = keyring.open(place, &sealed);
                if !unsealed
                    .is_ok_and(|unsealed| unsealed.expose_secret() == secret.expose_secret())
                {
                    return Err(ResealError::VerificationFailed(column));
                }
                changes.push((row, sealed));
            }
            Err(cause) => {
                report.failed += 1;
                if report.failures.len() < MAX_LISTED_FAILURES {
                    report.failures.push(UnopenedValue {
                        column,
                        row: row.row,
                        class: cause.class(),
                        cause,
                    });
                }
            }
        }
    }
    Ok(changes)
}

/// How many values are sealed with a key other than the current one.
pub async fn count_remaining(database: &Database, keyring: &Keyring) -> Result<u64, Error> {
    let columns: Vec<_> = sealed_columns::secret_columns().collect();
    let found = store::count_values_by_key(database, &columns).await?;
    let others = found
        .iter()
        .filter(|(_, key_id, _)| *key_id != Some(keyring.sealing_key_id()));
    Ok(others.map(|(_, _, rows)| rows).sum())
}
