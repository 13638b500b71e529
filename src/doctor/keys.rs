//! The encryption keys: is each that is needed there, and does what is sealed open.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::check_result::query_failed;
use super::check_result::{CheckResult, pluralize_count};
use crate::credentials::canary::{self, CanaryStatus};
use crate::credentials::reseal::{self, SealingKeyUsage};
use crate::credentials::sealed_columns;
use crate::credentials::sealed_value_check::{self, SealedColumnCheck};
use crate::crypto::keyring::Keyring;
use crate::db::Database;

/// Values of each column that are opened.
const SAMPLE_SIZE: i64 = 20;

/// Looks.
pub async fn check_encryption_keys(
    database: &Database,
    keyring: Option<&Arc<Keyring>>,
) -> CheckResult {
    let Some(keyring) = keyring else {
        return CheckResult::skipped(
            "keys",
            "Encryption keys: not looked at because of the settings",
        );
    };
    let mut checks = Vec::new();
    match canary::load_canary_statuses(database, keyring).await {
        Ok(verdicts) => checks.push(check_canaries(&verdicts)),
        Err(error) => checks.push(query_failed("keys.canary", &error)),
    }
    match reseal::list_key_usage(database).await {
        Ok(holdings) => checks.extend(check_keys_in_use(&holdings, keyring)),
        Err(error) => checks.push(query_failed("keys.in_use", &error)),
    }
    match sealed_value_check::check_sealed_values(database, keyring, SAMPLE_SIZE).await {
        Ok(proofs) => checks.extend(proofs.iter().map(check_sealed_sample)),
        Err(error) => checks.push(query_failed("keys.sample", &error)),
    }
    CheckResult::group("keys", "Encryption keys", checks)
}

fn check_sealed_sample(proof: &SealedColumnCheck) -> CheckResult {
    const NAME: &str = "keys.sample";
    let (table, column) = (proof.column.table, proof.column.column);
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let bad = proof.failures.len() as u64;
    match proof.failures.first() {
        None => CheckResult::ok(
            NAME,
            format!(
                "{table}.{column}: {} opened.",
                pluralize_count(
                    count(proof.opened),
                    "value of a sample was",
                    "values of a sample were"
                )
            ),
        ),
        Some(first) => CheckResult::fail(
            NAME,
            format!(
                "{table}.{column}: {} of {} looked at, the first of {} ({}): {}.",
                pluralize_count(count(bad), "value does not open", "values do not open"),
                proof.opened + bad,
                first.row,
                first.class,
                first.cause
            ),
            "Add the key that is missing; or set what is damaged anew (`attesto apple set-credentials`, `google set-credentials`, `webhook set-config`). `attesto encryption rotate --dry-run` lists all of them.",
        ),
    }
}

fn check_canaries(verdicts: &[(u8, CanaryStatus)]) -> CheckResult {
    const NAME: &str = "keys.canary";
    let wrong = verdicts
        .iter()
        .find(|(_, verdict)| *verdict == CanaryStatus::Mismatch);
    match wrong {
        Some((id, _)) => CheckResult::fail(
            NAME,
            format!("Encryption key {id} is not the key this database was sealed with."),
            "Configure the right one under this id, or give the new one an id of its own (`attesto encryption generate-key`).",
        ),
        None if verdicts.is_empty() => CheckResult::ok(NAME, "Nothing was ever sealed here."),
        None => CheckResult::ok(NAME, "The configured keys are those of this database."),
    }
}

fn check_keys_in_use(holdings: &[SealingKeyUsage], keyring: &Keyring) -> Vec<CheckResult> {
    const NAME: &str = "keys.in_use";
    let mut by_key: BTreeMap<Option<u8>, u64> = BTreeMap::new();
    for holding in holdings
        .iter()
        .filter(|held| held.column != sealed_columns::ENCRYPTION_CANARY)
    {
        *by_key.entry(holding.key_id).or_default() += holding.rows;
    }
    let mut checks = Vec::new();
    for (id, rows) in &by_key {
        match id {
            None => checks.push(CheckResult::fail(
                NAME,
                format!("{rows} values are no sealed values."),
                "Somebody wrote them by hand, or a restore went wrong: `attesto encryption rotate --dry-run` names them.",
            )),
            Some(id) if !keyring.key_ids().any(|known| known == *id) => checks.push(CheckResult::fail(
                NAME,
                format!("{rows} values are sealed with encryption key {id}, which is not configured."),
                "Add it to ATTESTO_ENCRYPTION_KEYS_RETIRED. Without it they cannot be opened by anybody.",
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
            format!("{others} values are sealed with another key than {sealing}, which seals now."),
            "`attesto encryption rotate` seals them anew, while the service runs.",
        ));
    }
    checks
}
