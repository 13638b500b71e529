//! A periodic job, and when it is due.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::store::LastJobRun;

/// The work of a run. It returns between two small steps after the token was cancelled. The returned value is stored in
/// the run's row.
pub type JobFn =
    Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, anyhow::Result<Value>> + Send + Sync>;

/// The names of all jobs. They never change between releases.
pub const JOB_NAMES: [&str; 7] = [
    "backfill",
    "drift",
    "expiry",
    "probe",
    "reseal",
    "retention",
    "statistics",
];

/// How long after a failed run a job is run again, unless its interval is shorter.
const RETRY_INTERVAL: Duration = Duration::from_mins(5);

/// A periodic job.
#[derive(Clone)]
pub struct Job {
    /// The name, a single word. It never changes between releases.
    pub name: &'static str,
    /// The description that `attesto jobs list` shows.
    pub description: &'static str,
    /// How often the job runs. `None`: only on command.
    pub interval: Option<Duration>,
    /// The work. Running it twice, even at the same time, must be harmless.
    pub run_fn: JobFn,
}

impl Job {
    /// Whether the job is due, given its last run.
    pub fn is_due(&self, last: Option<&LastJobRun>) -> bool {
        match (self.interval, last) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(every), Some(last)) => match last.outcome.as_deref() {
                // The run has not ended. It is due again only if the lease expired, because its process died.
                None => last.is_lapsed,
                // The run ended early, so work remains.
                Some("stopped" | "interrupted") => true,
                Some("failed") => last.age >= every.min(RETRY_INTERVAL),
                Some(_) => last.age >= every,
            },
        }
    }
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({}, every {:?})", self.name, self.interval)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::base::clock::Timestamp;

    #[test]
    fn a_job_is_due_after_its_interval_and_sooner_when_work_was_left() {
        let job = |every: Option<u64>| Job {
            name: "x",
            description: "",
            interval: every.map(Duration::from_mins),
            run_fn: Arc::new(|_| async { Ok(Value::Null) }.boxed()),
        };
        let last = |outcome: Option<&str>, minutes: u64, is_lapsed: bool| LastJobRun {
            id: 1,
            job: "x".to_owned(),
            host: String::new(),
            interval: None,
            started_at: Timestamp::from_millis(0),
            finished_at: None,
            outcome: outcome.map(str::to_owned),
            summary: None,
            error: None,
            age: Duration::from_mins(minutes),
            is_lapsed,
        };
        for (expected, every, last) in [
            (false, None, None),
            (false, None, Some(last(Some("done"), 999, true))),
            (true, Some(60), None),
            (false, Some(60), Some(last(Some("done"), 59, true))),
            (true, Some(60), Some(last(Some("done"), 60, true))),
            (false, Some(60), Some(last(Some("failed"), 4, true))),
            (true, Some(60), Some(last(Some("failed"), 5, true))),
            (true, Some(1), Some(last(Some("failed"), 1, true))),
            (true, Some(60), Some(last(Some("stopped"), 0, true))),
            (true, Some(60), Some(last(Some("interrupted"), 0, true))),
            (false, Some(60), Some(last(None, 999, false))),
            (true, Some(60), Some(last(None, 1, true))),
        ] {
            assert_eq!(job(every).is_due(last.as_ref()), expected, "{last:?}");
        }
    }
}
