//! A job, and when it is due.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::store::LastJobRun;

/// The work of a run. It ends between two small steps once the token is cancelled; the value it returns is stored in
/// the run's row.
pub type JobFn =
    Arc<dyn Fn(CancellationToken) -> BoxFuture<'static, anyhow::Result<Value>> + Send + Sync>;

/// The names of all jobs. They stay the same in every release.
pub const JOB_NAMES: [&str; 6] = [
    "drift",
    "expiry",
    "probe",
    "reseal",
    "retention",
    "statistics",
];

/// The pause after a run that failed, unless the job's interval is shorter.
const RETRY_INTERVAL: Duration = Duration::from_mins(5);

/// Something that runs periodically.
#[derive(Clone)]
pub struct Job {
    /// One word. It stays the same in every release.
    pub name: &'static str,
    /// Shown by `attesto jobs list`.
    pub description: &'static str,
    /// How often it runs. `None`: only on request.
    pub interval: Option<Duration>,
    /// Running it twice, also at the same time, is harmless.
    pub run_fn: JobFn,
}

impl Job {
    /// Whether it is due, given its last run.
    pub fn is_due(&self, last: Option<&LastJobRun>) -> bool {
        match (self.interval, last) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(every), Some(last)) => match last.outcome.as_deref() {
                // It is running, or its process died.
                None => last.is_lapsed,
                // Some work was left.
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
