//! The encryption keys: is each that is needed there, and does what is sealed open.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::finding::unanswered;
use super::finding::{Check, counted};
use crate::credentials::canary::{self, Verdict};
use crate::credentials::proof::{self, Proof};
use crate::credentials::reseal::{self, Holding};
use crate::credentials::sealed;
use crate::crypto::keyring::Keyring;
use crate::db::Database;

/// Values of each column that are opened.
const SAMPLE: i64 = 20;

/// Looks.
pub async fn look(database: &Database, keyring: Option<&Arc<Keyring>>) -> Check {
    let Some(keyring) = keyring else {
        return Check::skipped(
            "keys",
            "Encryption keys: not looked at because of the settings",
        );
    };
    let mut checks = Vec::new();
    match canary::verdicts(database, keyring).await {
        Ok(verdicts) => checks.push(canaries(&verdicts)),
        Err(error) => checks.push(unanswered("keys.canary", &error)),
    }
    match reseal::holdings(database).await {
        Ok(holdings) => checks.extend(in_use(&holdings, keyring)),
        Err(error) => checks.push(unanswered("keys.in_use", &error)),
    }
    match proof::sample(database, keyring, SAMPLE).await {
        Ok(proofs) => checks.extend(proofs.iter().map(opened)),
        Err(error) => checks.push(unanswered("keys.sample", &error)),
    }
    Check::group("keys", "Encryption keys", checks)
}

fn opened(proof: &Proof) -> Check {
    const NAME: &str = "keys.sample";
    let (table, column) = (proof.column.table, proof.column.column);
    let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let bad = proof.failures.len() as u64;
    match proof.failures.first() {
        None => Check::ok(
            NAME,
            format!(
                "{table}.{column}: {} opened.",
                counted(
                    count(proof.opened),
                    "value of a sample was",
                    "values of a sample were"
                )
            ),
        ),
        Some(first) => Check::fail(
            NAME,
            format!(
                "{table}.{column}: {} of {} looked at, the first of {} ({}): {}.",
                counted(count(bad), "value does not open", "values do not open"),
                proof.opened + bad,
                first.row,
                first.class,
                first.cause
            ),
            "Add the key that is missing; or set what is damaged anew (`attesto apple set-credentials`, `google set-credentials`, `webhook set-config`). `attesto encryption rotate --dry-run` lists all of them.",
        ),
    }
}

fn canaries(verdicts: &[(u8, Verdict)]) -> Check {
    const NAME: &str = "keys.canary";
    let wrong = verdicts
        .iter()
        .find(|(_, verdict)| *verdict == Verdict::Wrong);
    match wrong {
        Some((id, _)) => Check::fail(
            NAME,
            format!("Encryption key {id} is not the key this database was sealed with."),
            "Configure the right one under this id, or give the new one an id of its own (`attesto encryption generate-key`).",
        ),
        None if verdicts.is_empty() => Check::ok(NAME, "Nothing was ever sealed here."),
        None => Check::ok(NAME, "The configured keys are those of this database."),
    }
}

fn in_use(holdings: &[Holding], keyring: &Keyring) -> Vec<Check> {
    const NAME: &str = "keys.in_use";
    let mut by_key: BTreeMap<Option<u8>, u64> = BTreeMap::new();
    for holding in holdings.iter().filter(|held| held.column != sealed::CANARY) {
        *by_key.entry(holding.key_id).or_default() += holding.rows;
    }
    let mut checks = Vec::new();
    for (id, rows) in &by_key {
        match id {
            None => checks.push(Check::fail(
                NAME,
                format!("{rows} values are no sealed values."),
                "Somebody wrote them by hand, or a restore went wrong: `attesto encryption rotate --dry-run` names them.",
            )),
            Some(id) if !keyring.ids().any(|known| known == *id) => checks.push(Check::fail(
                NAME,
                format!("{rows} values are sealed with encryption key {id}, which is not configured."),
                "Add it to ATTESTO_ENCRYPTION_KEYS_RETIRED. Without it they cannot be opened by anybody.",
            )),
            Some(_) => {}
        }
    }
    if checks.is_empty() {
        checks.push(Check::ok(NAME, "Every key in use is configured."));
    }
    let sealing = keyring.sealing_id();
    let others: u64 = by_key
        .iter()
        .filter(|(id, _)| **id != Some(sealing))
        .map(|(_, rows)| rows)
        .sum();
    if others > 0 {
        checks.push(Check::warn(
            "keys.rotation",
            format!("{others} values are sealed with another key than {sealing}, which seals now."),
            "`attesto encryption rotate` seals them anew, while the service runs.",
        ));
    }
    checks
}
