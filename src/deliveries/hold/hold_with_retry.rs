//! Holds deliveries at start-up: a process that is configured to do so sends nothing before the hold is stored.

use std::time::Duration;

use tokio::time::sleep;

use super::store::{count_waiting_deliveries, hold_deliveries};
use crate::base::backoff::Backoff;
use crate::db::{Database, Error, error_class};

const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Tries until the hold is stored: the database may not be available or not be migrated yet. `host` is stored as the machine that
/// requested the hold.
pub async fn hold_with_retry(database: &Database, host: &str) {
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    while let Err(error) = try_hold(database, host).await {
        tracing::debug!(
            error = crate::db::describe_cause(&error),
            class = error_class(&error),
            "deliveries_not_held_yet"
        );
        sleep(backoff.next_delay(fastrand::f64())).await;
    }
}

async fn try_hold(database: &Database, host: &str) -> Result<(), Error> {
    let new = hold_deliveries(database, host).await?;
    // The hold is stored, even if counting fails.
    let waiting = count_waiting_deliveries(database).await.unwrap_or_default();
    tracing::warn!(
        new,
        due = waiting.due,
        later = waiting.later,
        "deliveries_held"
    );
    Ok(())
}
