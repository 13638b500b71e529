//! Holds deliveries at start-up: a process that is configured to do so sends nothing before the hold is stored.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::store::{count_waiting_deliveries, hold_deliveries};
use crate::base::backoff::Backoff;
use crate::db::{Database, Error, error_class};

const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(5);

/// Tries until the hold is stored or `stop` is cancelled: the database may not be available or not be migrated yet. `host` is
/// stored as the machine that requested the hold.
pub async fn hold_with_retry(database: &Database, host: &str, stop: &CancellationToken) {
    let mut backoff = Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF);
    while !stop.is_cancelled() {
        match try_hold(database, host).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(
                    error = crate::db::describe_cause(&error),
                    class = error_class(&error),
                    "deliveries_not_held_yet"
                );
                let delay = backoff.next_delay(fastrand::f64());
                stop.run_until_cancelled(sleep(delay)).await;
            }
        }
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
