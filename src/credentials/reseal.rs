//! Everything sealed anew with the newest key, a few rows at a time, while every process goes on working.
//!
//! Promises: each value is opened before it is sealed anew, what was sealed is opened and compared before it is
//! written, and it is written only where the value that was read still stands: a secret that is changed meanwhile keeps the change. Each
//! batch is noted in the operators' audit by a row of its own transaction.
//! It can be stopped anywhere and run again, also twice at once. What does not open is left as it is and named with its
//! cause, of which there are three that are never merged: its key is not configured, it does not open with the key that
//! it names, it is not a sealed value.
//!
//! Canaries keep their key for ever: they are what tells a wrong key from a damaged value.

use std::time::Duration;

use serde::Serialize;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::sealed_columns::{self, SealedColumn};
use super::store::{self, SealedRow};
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::{Keyring, UnsealError};
use crate::db::{Database, Error};

/// Rows in one transaction. It holds their locks for a few milliseconds.
const BATCH_ROWS: i64 = 100;
/// The pause between two of them, in which other transactions get the locks.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);
/// How often all columns are gone through: again when another transaction held a row at the same moment.
const MAX_RESEAL_ROUNDS: u32 = 5;
/// More values that do not open than this are counted and not listed.
const MAX_LISTED_FAILURES: usize = 100;

/// How many values of a column are sealed with one key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SealingKeyUsage {
    /// The column that holds the values.
    #[serde(flatten)]
    pub column: SealedColumn,
    /// The key. `None`: what stands there names none.
    pub key_id: Option<u8>,
    /// The number of values that are sealed with this key.
    pub rows: u64,
}

/// What is sealed with which key, canaries too. Reads the first byte of every sealed value.
pub async fn list_key_usage(database: &Database) -> Result<Vec<SealingKeyUsage>, Error> {
    let found = store::count_values_by_key(database, &sealed_columns::ALL_SEALED_COLUMNS).await?;
    let holdings = found
        .into_iter()
        .map(|(column, key_id, rows)| SealingKeyUsage {
            column,
            key_id,
            rows,
        });
    Ok(holdings.collect())
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResealMode {
    /// Seal every value with the current key.
    Apply,
    /// Open everything and write nothing.
    DryRun,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResealProgress {
    /// The column that is gone through.
    #[serde(flatten)]
    pub column: SealedColumn,
    /// Values looked at so far, in all columns.
    pub looked_at: u64,
    /// Values that were to be looked at when it began.
    pub total: u64,
}

/// A value that does not open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct UnopenedValue {
    /// The column of the value.
    #[serde(flatten)]
    pub column: SealedColumn,
    /// Its row: mostly a tenant.
    pub row: String,
    /// Why, in a word: see [`UnsealError::class`].
    pub class: &'static str,
    /// The reason it does not open.
    #[serde(skip)]
    pub cause: UnsealError,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ResealReport {
    /// The key that everything is to be sealed with.
    pub key_id: u8,
    /// Whether it was only looked.
    pub dry_run: bool,
    /// Values sealed anew; in a dry run, those that would have been.
    pub resealed: u64,
    /// Values that do not open.
    pub failed: u64,
    /// The first of them.
    pub failures: Vec<UnopenedValue>,
    /// Values that are still sealed with another key, those that do not open among them.
    pub remaining: u64,
}

/// Why it did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum ResealError {
    /// What was sealed anew does not open to what was sealed: nothing of it was written.
    #[error(
        "a value of {}.{} was sealed anew and does not open to what it was; nothing was written: is this machine's memory sound?",
        .0.table,
        .0.column
    )]
    VerificationFailed(SealedColumn),
    /// A query failed.
    #[error(transparent)]
    Database(#[from] Error),
}

/// Seals every value with the key that seals, until all is done or `stop` is cancelled. The caller has made sure that the
/// keys are this database's ([`super::canary`]). `told` hears of every batch.
pub async fn reseal_values(
    database: &Database,
    keyring: &Keyring,
    run: ResealMode,
    stop: &CancellationToken,
    mut told: impl FnMut(&ResealProgress) + Send,
) -> Result<ResealReport, ResealError> {
    let mut report = ResealReport {
        key_id: keyring.sealing_key_id(),
        dry_run: run == ResealMode::DryRun,
        ..ResealReport::default()
    };
    let total = count_remaining(database, keyring).await?;
    for _ in 0..MAX_RESEAL_ROUNDS {
        report.failed = 0;
        report.failures.clear();
        let mut looked_at = 0;
        let mut overtaken = 0;
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
                let done = match run {
                    ResealMode::DryRun => wanted,
                    ResealMode::Apply if changes.is_empty() => 0,
                    ResealMode::Apply => {
                        store::replace_values(database, column, report.key_id, &changes).await?
                    }
                };
                report.resealed += done;
                overtaken += wanted - done.min(wanted);
                told(&ResealProgress {
                    column,
                    looked_at,
                    total: total.max(looked_at),
                });
                if !is_full {
                    break;
                }
                if run == ResealMode::Apply {
                    let _ = stop.run_until_cancelled(sleep(BATCH_INTERVAL)).await;
                }
            }
        }
        if overtaken == 0 || stop.is_cancelled() {
            break;
        }
    }
    report.remaining = count_remaining(database, keyring).await?;
    Ok(report)
}

/// The rows with what is to be written in each. Those that do not open are noted and left out.
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
                let again = keyring.open(place, &sealed);
                if !again.is_ok_and(|again| again.expose_secret() == secret.expose_secret()) {
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

/// How many values are sealed with another key than the one that seals.
pub async fn count_remaining(database: &Database, keyring: &Keyring) -> Result<u64, Error> {
    let columns: Vec<_> = sealed_columns::secret_columns().collect();
    let found = store::count_values_by_key(database, &columns).await?;
    let others = found
        .iter()
        .filter(|(_, key_id, _)| *key_id != Some(keyring.sealing_key_id()));
    Ok(others.map(|(_, _, rows)| rows).sum())
}
