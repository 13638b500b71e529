//! Who runs the jobs: every process looks now and then what is due, and whoever is first runs it.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::store::{self, JobClaim, LEASE_TTL, PreviousRun};
use super::{Job, JobContext};
use crate::base::backoff::spread;
use crate::base::clock::{Clock, Timestamp};
use crate::db::{Database, Error, error_class};
use crate::replicas::host_name;

/// When it is first looked what is due: not while the process has just begun to serve.
const INITIAL_DELAY: Duration = Duration::from_secs(2);
/// How often after that.
const POLL_INTERVAL: Duration = Duration::from_secs(15);
/// How often a run says that it still runs: three times before it is given up for dead.
const LEASE_RENEW_INTERVAL: Duration = Duration::from_secs(LEASE_TTL.as_secs() / 4);

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobOutcome {
    /// All of it was done.
    Done,
    /// It failed.
    Failed,
    /// The process is to stop; the rest is for the next run.
    Stopped,
}

impl JobOutcome {
    /// The word it is kept under.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
        }
    }
}

/// A run that was ours.
#[derive(Debug)]
pub struct JobRun {
    /// Which job.
    pub job: &'static str,
    /// How it ended.
    pub outcome: JobOutcome,
    /// What it did, or why it failed.
    pub result: Result<Value, anyhow::Error>,
    /// How long it took.
    pub duration: Duration,
}

/// Why there was no run.
#[derive(Debug, thiserror::Error)]
pub enum JobRunError {
    /// Somebody else runs it.
    #[error(
        "{job} has been running on {host} since {since}: wait until it has ended, `attesto jobs list` shows it"
    )]
    AlreadyRunning {
        /// Which job.
        job: &'static str,
        /// Where.
        host: String,
        /// Since when.
        since: Timestamp,
    },
    /// The database.
    #[error(transparent)]
    Database(#[from] Error),
}

/// The jobs of a process that serves.
pub struct JobScheduler {
    database: Database,
    clock: Clock,
    jobs: Vec<Job>,
}

impl JobScheduler {
    /// Runs none yet.
    pub fn new(tools: &JobContext, jobs: Vec<Job>) -> Self {
        Self {
            database: tools.database.clone(),
            clock: tools.clock.clone(),
            jobs,
        }
    }

    /// Runs what is due until `stop`, and returns when what it runs has ended.
    pub async fn run(self, stop: CancellationToken) {
        let mut silent_about_it = false;
        let mut running = JoinSet::new();
        let mut pause = INITIAL_DELAY;
        loop {
            // Not all processes at once.
            let jittered = spread(pause, fastrand::f64());
            if stop.run_until_cancelled(sleep(jittered)).await.is_none() {
                break;
            }
            pause = POLL_INTERVAL;
            match self.start_due_jobs(&mut running, &stop).await {
                Ok(()) => silent_about_it = false,
                Err(error) if !silent_about_it => {
                    let class = error_class(&error);
                    tracing::warn!(cause = %error, causeClass = class, "could not look which jobs are due; it is tried again");
                    silent_about_it = true;
                }
                Err(_) => {}
            }
            while running.try_join_next().is_some() {}
        }
        while running.join_next().await.is_some() {}
    }

    /// Looks once, and returns when what was due has ended.
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
        let last_runs = store::list_last_runs(&self.database, self.clock.lead()).await?;
        for job in &self.jobs {
            let last = last_runs.iter().find(|run| run.job == job.name);
            if !job.is_due(last) {
                continue;
            }
            let lead = self.clock.lead();
            let seen = last.map_or(PreviousRun::NoRun, |last| PreviousRun::Id(last.id));
            let claim = store::claim_job(
                &self.database,
                job.name,
                seen,
                &host_name(),
                job.interval,
                lead,
            )
            .await?;
            if let JobClaim::Claimed(id) = claim {
                let (database, clock) = (self.database.clone(), self.clock.clone());
                let (job, stop) = (job.clone(), stop.clone());
                running.spawn(async move {
                    execute_claimed_run(&database, &clock, &job, id, &stop).await;
                });
            }
        }
        Ok(())
    }
}

/// Runs one job now, due or not, unless it runs already.
pub async fn run_job_now(
    database: &Database,
    clock: &Clock,
    job: &Job,
    stop: &CancellationToken,
) -> Result<JobRun, JobRunError> {
    let claim = store::claim_job(
        database,
        job.name,
        PreviousRun::Any,
        &host_name(),
        None,
        clock.lead(),
    )
    .await?;
    match claim {
        JobClaim::Claimed(id) => Ok(execute_claimed_run(database, clock, job, id, stop).await),
        JobClaim::AlreadyRunning { host, since } => Err(JobRunError::AlreadyRunning {
            job: job.name,
            host,
            since,
        }),
        JobClaim::Superseded => unreachable!("nothing was said of an earlier run"),
    }
}

/// Does the work of a run that is ours, keeps saying so, and writes how it ended.
async fn execute_claimed_run(
    database: &Database,
    clock: &Clock,
    job: &Job,
    id: i64,
    stop: &CancellationToken,
) -> JobRun {
    let begun = Instant::now();
    let stop = stop.child_token();
    let mut work = JoinSet::new();
    work.spawn((job.run_fn)(stop.clone()));
    let told = loop {
        match timeout(LEASE_RENEW_INTERVAL, work.join_next()).await {
            Ok(Some(Ok(told))) => break told,
            Ok(Some(Err(panicked))) => break Err(anyhow::Error::new(panicked)),
            Ok(None) => break Err(anyhow::anyhow!("it ended without a word")),
            Err(_) => match store::renew_lease(database, id, clock.lead()).await {
                Ok(true) => {}
                // Somebody else runs it by now.
                Ok(false) => stop.cancel(),
                Err(error) => {
                    let class = error_class(&error);
                    tracing::warn!(job = job.name, cause = %error, causeClass = class, "could not say that the job still runs");
                }
            },
        }
    };
    let outcome = match &told {
        Err(_) => JobOutcome::Failed,
        Ok(_) if stop.is_cancelled() => JobOutcome::Stopped,
        Ok(_) => JobOutcome::Done,
    };
    let took = begun.elapsed();
    let (summary, error) = match &told {
        Ok(value) => (Some(value), None),
        Err(error) => (None, Some(format!("{error:#}"))),
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
    let written = store::finish_run(
        database,
        id,
        outcome.as_str(),
        summary,
        error.as_deref(),
        clock.lead(),
    )
    .await;
    if let Err(error) = written {
        let class = error_class(&error);
        tracing::warn!(job = job.name, cause = %error, causeClass = class, "could not write how the job ended: it is taken for interrupted");
    }
    JobRun {
        job: job.name,
        outcome,
        result: told,
        duration: took,
    }
}
