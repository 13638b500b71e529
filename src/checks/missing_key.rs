//! Tells a lost encryption key from one that was not made yet.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::timeout;

use crate::credentials::reseal;
use crate::db::Database;

/// How long the database may delay the message.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// How the problem of a missing key begins.
const MISSING_KEY_PROBLEM: &str = "ATTESTO_ENCRYPTION_KEY: is missing";

/// Replaces the problem of a missing encryption key where the database holds values that are sealed with one: with a new key,
/// none of them could be opened. Leaves the problems as they are where there is no database, or it cannot be asked.
pub(crate) async fn explain_missing_key(
    database: Option<&Database>,
    mut problems: Vec<String>,
) -> Vec<String> {
    let missing = problems
        .iter_mut()
        .find(|problem| problem.starts_with(MISSING_KEY_PROBLEM));
    if let Some(problem) = missing
        && let Some(database) = database
        && let Some(ids) = find_sealing_key_ids(database).await
    {
        let keys: Vec<String> = ids.iter().map(ToString::to_string).collect();
        *problem = format!(
            "{MISSING_KEY_PROBLEM}, and the database holds values sealed with encryption key {}: set it to that key, or \
             ATTESTO_ENCRYPTION_KEY_FILE to a file that holds it. It is kept apart from the database and its backups; a new key opens \
             none of these values",
            keys.join(", ")
        );
    }
    problems
}

/// The ids of the keys that values of the database are sealed with, ascending. `None`: there are none, or the database cannot be
/// asked.
async fn find_sealing_key_ids(database: &Database) -> Option<BTreeSet<u8>> {
    let usage = timeout(LOOKUP_TIMEOUT, reseal::list_key_usage(database)).await;
    let usage = usage.ok()?.ok()?;
    let ids: BTreeSet<u8> = usage.iter().filter_map(|usage| usage.key_id).collect();
    (!ids.is_empty()).then_some(ids)
}
