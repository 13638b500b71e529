//! Runs the jobs. Every process looks for due jobs at an interval, and the first one that claims a job runs it.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::store::{self, JobClaim, LEASE_TTL, PreviousRun};
use super::{Job, JobContext};
use crate::base::backoff::spread;
use crate::base::clock::Timestamp;
use crate::db::{Database, Error, describe_cause, describe_chain, error_class};
use crate::replicas::host_name;

/// The delay before the first look, because the process has just started to serve.
const INITIAL_DELAY: Duration = Duration::from_secs(2);
/// The interval at which due jobs are looked for.
const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// A running job renews its lease three times before it would expire.
const LEASE_RENEW_INTERVAL: Duration = Duration::from_secs(LEASE_TTL.as_secs() / 4);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// All the work was done.
    Done,
    /// The job returned an error or panicked.
    Failed,
    /// The process was asked to stop. The next run does the remaining work.
    Stopped,
}

impl JobOutcome {
    /// The value in the run's row.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// A run that has ended.
#[derive(Debug)]
pub struct JobRun {
    /// The name of the job.
    pub job: &'static str,
    /// The outcome, which is also stored in the run's row.
    pub outcome: JobOutcome,
    /// The summary that the job returned, or its error.
    pub result: Result<Value, anyhow::Error>,
    /// The duration, by the monotonic clock.
    pub duration: Duration,
}

/// Why a requested run did not start.
#[derive(Debug, thiserror::Error)]
pub enum JobRunError {
    /// It is already running.
    #[error(
        "{job} has been running on {host} since {since}: wait until it has ended, `attesto jobs list` shows it"
    )]
    AlreadyRunning {
        /// The job's name.
        job: &'static str,
        /// The host it runs on.
        host: String,
        /// When it started.
        since: Timestamp,
    },
    /// The claim could not be read or written.
    #[error("{}", describe_cause(.0))]
    Database(#[from] Error),
}

/// The jobs of a process that serves.
pub struct JobScheduler {
    database: Database,
    jobs: Vec<Job>,
}

impl JobScheduler {
    /// A scheduler for these jobs. It does not start any.
    pub fn new(tools: &JobContext, jobs: Vec<Job>) -> Self {
        Self {
            database: tools.database.clone(),
            jobs,
        }
    }

    /// Runs due jobs until `stop` is cancelled, and returns when the running ones have ended.
    pub async fn run(self, stop: CancellationToken) {
        let mut was_failure_logged = false;
        let mut running = JoinSet::new();
        let mut pause = INITIAL_DELAY;
        loop {
            // Jitter, so that processes that started together do not look at the same time.
            let jittered = spread(pause, fastrand::f64());
            if stop.run_until_cancelled(sleep(jittered)).await.is_none() {
                break;
            }
            pause = POLL_INTERVAL;
            match self.start_due_jobs(&mut running, &stop).await {
                Ok(()) => was_failure_logged = false,
                Err(error) if !was_failure_logged => {
                    let class = error_class(&error);
                    tracing::warn!(
                        cause = describe_cause(&error),
                        causeClass = class,
                        hint = "it is tried again",
                        "due_jobs_not_read"
                    );
                    was_failure_logged = true;
                }
                Err(_) => {}
            }
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }

    /// Runs the jobs that are due now, and returns when they have ended.
    pub async fn run_due_once(&self, stop: &CancellationToken) -> Result<(), Error> {
        let mut running = JoinSet::new();
        let begun = self.start_due_jobs(&mut running, stop).await;
        while running.join_next().await.is_some() {}
        begun
    }

    async fn start_due_jobs(
        &self,
        running: &mut JoinSet<()>,
        stop: &CancellationToken,
    ) -> Result<(), Error> {
        let last_runs = store::list_last_runs(&self.database).await?;
        for job in &self.jobs {
            let last = last_runs.iter().find(|run| run.job == job.name);
            if !job.is_due(last) {
                continue;
            }
            let seen = last.map_or(PreviousRun::NoRun, |last| PreviousRun::Id(last.id));
            let claim =
                store::claim_job(&self.database, job.name, seen, &host_name(), job.interval)
                    .await?;
            if let JobClaim::Claimed(id) = claim {
                let (database, job, stop) = (self.database.clone(), job.clone(), stop.clone());
                running.spawn(async move {
                    execute_claimed_run(&database, &job, id, &stop).await;
                });
            }
        }
        Ok(())
    }
}

/// Runs a job now, due or not, unless it is already running.
pub async fn run_job_now(
    database: &Database,
    job: &Job,
    stop: &CancellationToken,
) -> Result<JobRun, JobRunError> {
    let claim = store::claim_job(database, job.name, PreviousRun::Any, &host_name(), None).await?;
    match claim {
        JobClaim::Claimed(id) => Ok(execute_claimed_run(database, job, id, stop).await),
        JobClaim::AlreadyRunning { host, since } => Err(JobRunError::AlreadyRunning {
            job: job.name,
            host,
            since,
        }),
        JobClaim::Superseded => unreachable!("no earlier run was given"),
    }
}

/// Runs the work of a claimed run, renews its lease meanwhile, and writes the outcome.
async fn execute_claimed_run(
    database: &Database,
    job: &Job,
    id: i64,
    stop: &CancellationToken,
) -> JobRun {
    let started_at = Instant::now();
    let stop = stop.child_token();
    let mut work = JoinSet::new();
    work.spawn((job.run_fn)(stop.clone()));
    let result = loop {
        match timeout(LEASE_RENEW_INTERVAL, work.join_next()).await {
            Ok(Some(Ok(result))) => break result,
            Ok(Some(Err(panicked))) => break Err(anyhow::Error::new(panicked)),
            Ok(None) => break Err(anyhow::anyhow!("the job ended without a result")),
            Err(_) => match store::renew_lease(database, id).await {
                Ok(true) => {}
                // The lease expired, so another process may have claimed the job.
                Ok(false) => stop.cancel(),
                Err(error) => {
                    let class = error_class(&error);
                    tracing::warn!(
                        job = job.name,
                        cause = describe_cause(&error),
                        causeClass = class,
                        hint = "another process may take the job over",
                        "job_lease_not_renewed"
                    );
                }
            },
        }
    };
    let outcome = match &result {
        Err(_) => JobOutcome::Failed,
        Ok(_) if stop.is_cancelled() => JobOutcome::Stopped,
        Ok(_) => JobOutcome::Done,
    };
    let took = started_at.elapsed();
    let (summary, error) = match &result {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(describe_chain(error.as_ref()))),
    };
    let latency = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
    match &error {
        None => tracing::info!(
            job = job.name,
            outcome = outcome.as_str(),
            latencyMs = latency,
            told = summary.map(tracing::field::display),
            "job_run"
        ),
        Some(cause) => tracing::error!(
            job = job.name,
            outcome = outcome.as_str(),
            latencyMs = latency,
            cause,
            causeClass = "job",
            "job_run"
        ),
    }
    let written =
        store::finish_run(database, id, outcome.as_str(), summary, error.as_deref()).await;
    if let Err(error) = written {
        let class = error_class(&error);
        tracing::warn!(
            job = job.name,
            cause = describe_cause(&error),
            causeClass = class,
            hint = "the run will be recorded as interrupted",
            "job_outcome_not_written"
        );
    }
    JobRun {
        job: job.name,
        outcome,
        result,
        duration: took,
    }
}
