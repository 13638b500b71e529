//! Reports how far a long operation is.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::interval;

/// How often work is reported that does not count its steps.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

/// Takes the number of finished steps, the number of all, and what is being done now.
pub type ReportProgress<'a> = &'a (dyn Fn(u64, u64, &str) + Send + Sync);

/// The same for what outlives the caller.
pub type SharedReport = Arc<dyn Fn(u64, u64, &str) + Send + Sync>;

/// For callers that show no progress.
pub fn ignore_progress(_: u64, _: u64, _: &str) {}

/// The output of `work`. `report` is called at once and then four times a second, until it ends.
pub(crate) async fn report_while<T>(work: impl Future<Output = T>, report: impl Fn()) -> T {
    let mut work = std::pin::pin!(work);
    let mut ticks = interval(REPORT_INTERVAL);
    loop {
        tokio::select! {
            biased;
            done = &mut work => return done,
            _ = ticks.tick() => report(),
        }
    }
}
