//! The loop of a worker that takes what is due off a list in the database.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::base::backoff::spread;
use crate::db::{Error, error_class};

/// Works on one list. Any number of processes can do so on the same database.
pub(crate) trait ListWorker: Send + Sized {
    /// How often the list is read while nothing on it is due.
    const POLL_INTERVAL: Duration;
    /// The log event of a round that failed.
    const FAILURE_EVENT: &str;

    /// Does one round, of which nothing runs on when this returns. Returns whether something was due.
    fn work(&mut self) -> impl Future<Output = Result<bool, Arc<Error>>> + Send;

    /// Works until `stop` is cancelled. What it has begun then is taken over by another process, or after the next start.
    fn run(mut self, stop: CancellationToken) -> impl Future<Output = ()> + Send {
        async move {
            let mut was_failure_logged = false;
            while let Some(worked) = stop.run_until_cancelled(self.work()).await {
                let pause = match &worked {
                    Ok(true) => Duration::ZERO,
                    Ok(false) | Err(_) => Self::POLL_INTERVAL,
                };
                // Logged once for each outage, not for each attempt.
                if let Err(error) = worked.as_ref().map_err(Arc::as_ref)
                    && !was_failure_logged
                {
                    tracing::warn!(
                        cause = crate::db::describe_cause(error),
                        causeClass = error_class(error),
                        hint = "it is tried again",
                        "{}",
                        Self::FAILURE_EVENT
                    );
                }
                was_failure_logged = worked.is_err();
                let pause = spread(pause, fastrand::f64());
                if stop.run_until_cancelled(sleep(pause)).await.is_none() {
                    return;
                }
            }
        }
    }
}
