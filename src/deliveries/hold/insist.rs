//! A process that was told to hold deliveries sends nothing before it has said so in the database.

use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::store::{hold, waiting};
use crate::db::{Database, Error, error_class};

/// The first pause before it is tried again; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// Holds deliveries, and tries until it is done or `stop` is cancelled: the database may be away, and its tables may be
/// older than the hold.
pub async fn insist(database: &Database, host: &str, stop: &CancellationToken) {
    let mut pause = FIRST_PAUSE;
    while !stop.is_cancelled() {
        match attempt(database, host).await {
            Ok(()) => return,
            Err(error) => {
                tracing::debug!(%error, class = error_class(&error), "deliveries are not held yet");
                stop.run_until_cancelled(sleep(pause)).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        }
    }
}

async fn attempt(database: &Database, host: &str) -> Result<(), Error> {
    let new = hold(database, host).await?;
    // The hold stands, whatever counting takes.
    let waiting = waiting(database, Duration::ZERO).await.unwrap_or_default();
    tracing::warn!(
        new,
        due = waiting.due,
        later = waiting.later,
        "deliveries_held"
    );
    Ok(())
}
