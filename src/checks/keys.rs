//! The group `keys`: whether every key in use is configured, and sealed values can be unsealed.

use std::collections::BTreeMap;

use super::check::Judged;
use super::check_result::{CheckResult, pluralize_count};
use super::runner::DatabaseContext;
use crate::credentials::canary::{self, CanaryStatus};
use crate::credentials::reseal::SealingKeyUsage;
use crate::credentials::sealed_columns;
use crate::credentials::sealed_value_check::{self, SealedColumnCheck};
use crate::crypto::keyring::Keyring;
use crate::db::Error;

/// The number of values of each column that are unsealed.
const SAMPLE_SIZE: i64 = 20;

/// `None` without a keyring, which makes the group be skipped.
pub(super) async fn load_canary_statuses(
    context: &DatabaseContext,
) -> Result<Option<Vec<(u8, CanaryStatus)>>, Error> {
    match context.keyring.as_deref() {
        Some(keyring) => canary::load_canary_statuses(&context.database, keyring)
            .await
            .map(Some),
        None => Ok(None),
    }
}

pub(super) async fn open_samples(
    context: &DatabaseContext,
) -> Result<Vec<SealedColumnCheck>, Error> {
    match context.keyring.as_deref() {
        Some(keyring) => {
            sealed_value_check::check_sealed_values(&context.database, keyring, SAMPLE_SIZE).await
        }
        None => Ok(Vec::new()),
    }
}

pub(super) fn judge_sample(sample: &SealedColumnCheck) -> CheckResult {
    const NAME: &str = "keys.sample";
    let (table, column) = (sample.column.table, sample.column.column);
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let bad = sample.failures.len() as u64;
    match sample.failures.first() {
        None => CheckResult::ok(
            NAME,
            format!(
                "{table}.{column}: {} opened.",
                pluralize_count(
                    count(sample.opened),
                    "value of a sample was",
                    "values of a sample were"
                )
            ),
        ),
        Some(first) => CheckResult::fail(
            NAME,
            format!(
                "{table}.{column}: {} of {} checked, the first of {} ({}): {}.",
                pluralize_count(count(bad), "value does not open", "values do not open"),
                sample.opened + bad,
                first.row,
                first.class,
                first.cause
            ),
            "Add the missing key, or set the damaged values again (`attesto apple set-credentials`, `google set-credentials`, `webhook set-config`). `attesto encryption rotate --dry-run` lists all of them.",
        ),
    }
}

pub(super) fn judge_canaries(statuses: Option<&[(u8, CanaryStatus)]>) -> Judged {
    const NAME: &str = "keys.canary";
    let Some(statuses) = statuses else {
        return Judged::GroupSkipped("Encryption keys: skipped because of the settings");
    };
    let wrong = statuses
        .iter()
        .find(|(_, status)| *status == CanaryStatus::Mismatch);
    let result = match wrong {
        Some((id, _)) => CheckResult::fail(
            NAME,
            format!("Encryption key {id} is not the key this database was sealed with."),
            "Configure the right key under this id, or give the new key another id (`attesto encryption generate-key`).",
        ),
        None if statuses.is_empty() => CheckResult::ok(NAME, "Nothing was ever sealed here."),
        None => CheckResult::ok(NAME, "The configured keys are those of this database."),
    };
    result.into()
}

pub(super) fn judge_key_usage(
    usage: &[SealingKeyUsage],
    keyring: Option<&Keyring>,
) -> Vec<CheckResult> {
    const NAME: &str = "keys.in_use";
    let Some(keyring) = keyring else {
        return Vec::new();
    };
    let mut by_key: BTreeMap<Option<u8>, u64> = BTreeMap::new();
    for column in usage
        .iter()
        .filter(|used| used.column != sealed_columns::ENCRYPTION_CANARY)
    {
        *by_key.entry(column.key_id).or_default() += column.rows;
    }
    let mut checks = Vec::new();
    for (id, rows) in &by_key {
        match id {
            None => checks.push(CheckResult::fail(
                NAME,
                format!("{rows} values are not sealed values."),
                "They were written by hand, or a restore went wrong: `attesto encryption rotate --dry-run` lists them.",
            )),
            Some(id) if !keyring.key_ids().any(|known| known == *id) => checks.push(CheckResult::fail(
                NAME,
                format!("{rows} values are sealed with encryption key {id}, which is not configured."),
                "Add it to ATTESTO_ENCRYPTION_KEYS_RETIRED. Without it they cannot be opened.",
            )),
            Some(_) => {}
        }
    }
    if checks.is_empty() {
        checks.push(CheckResult::ok(NAME, "Every key in use is configured."));
    }
    let sealing = keyring.sealing_key_id();
    let others: u64 = by_key
        .iter()
        .filter(|(id, _)| **id != Some(sealing))
        .map(|(_, rows)| rows)
        .sum();
    if others > 0 {
        checks.push(CheckResult::warn(
            "keys.rotation",
            format!("{others} values are sealed with another key than {sealing}, the current one."),
            "`attesto encryption rotate` seals them again with the current key, while the service runs.",
        ));
    }
    checks
}
