//! `attesto jobs`: lists the periodic jobs and runs one.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::context::{CommandContext, CommandError};
use super::verify::VerifyDependencies;
use crate::base::clock::Timestamp;
use crate::base::error::to_sentence;
use crate::base::progress::ignore_progress;
use crate::config::groups::{ExpiryThresholds, JobIntervals, RetentionSettings, WebhookSettings};
use crate::db::{Database, describe_chain};
use crate::deliveries::Sender;
use crate::events::EventRecorder;
use crate::jobs::backfill::BACKFILL_JOB;
use crate::jobs::{self, Job, JobContext, JobOutcome, JobRun, JobRunError, LastJobRun};
use crate::stores::apple::AppleBackfill;
use crate::stores::google::GoogleBackfill;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum JobsCommand {
    /// List the periodic jobs: interval, result of the last run, time of the next
    List,
    /// Run a job now, in this process, unless it is running elsewhere
    Run {
        /// Name of the job, as `attesto jobs list` shows it
        name: String,
    },
}

pub(crate) async fn run(
    command: JobsCommand,
    context: &CommandContext,
) -> Result<(), CommandError> {
    match command {
        JobsCommand::List => list_jobs(context).await,
        JobsCommand::Run { name } => {
            let mut job_context = build_job_context(context).await?;
            if name == BACKFILL_JOB && job_context.keyring.is_some() {
                add_backfills(&mut job_context, context).await?;
            }
            let ran = run_job(&job_context, &name, context).await?;
            print_job_run(&ran, context)
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobListRow {
    name: &'static str,
    about: &'static str,
    /// From the process that ran it last; from this environment before the first run and after `jobs run`.
    interval_seconds: Option<u64>,
    last_run_at: Option<Timestamp>,
    host: Option<String>,
    /// `done`, `failed`, `stopped`, `interrupted`, or `running`.
    outcome: Option<String>,
    duration_ms: Option<u64>,
    told: Option<Value>,
    error: Option<String>,
    /// `null`: it only runs on request, or is running now.
    next_run_at: Option<Timestamp>,
}

impl JobListRow {
    fn new(job: &Job, last: Option<LastJobRun>) -> Self {
        let interval = last
            .as_ref()
            .and_then(|last| last.interval)
            .or(job.interval);
        let next = match &last {
            Some(last) if last.outcome.is_some() || last.is_lapsed => {
                interval.map(|every| last.started_at.plus(every))
            }
            _ => None,
        };
        let took = |last: &LastJobRun| Some(last.finished_at?.duration_since(last.started_at));
        Self {
            name: job.name,
            about: job.description,
            interval_seconds: interval.as_ref().map(Duration::as_secs),
            last_run_at: last.as_ref().map(|last| last.started_at),
            duration_ms: last
                .as_ref()
                .and_then(took)
                .map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
            outcome: last.as_ref().map(|last| {
                let unfinished = if last.is_lapsed {
                    "interrupted"
                } else {
                    "running"
                };
                last.outcome
                    .clone()
                    .unwrap_or_else(|| unfinished.to_owned())
            }),
            host: last.as_ref().map(|last| last.host.clone()),
            told: last.as_ref().and_then(|last| last.summary.clone()),
            error: last.and_then(|last| last.error),
            next_run_at: next,
        }
    }
}

async fn list_jobs(context: &CommandContext) -> Result<(), CommandError> {
    let job_context = build_job_context(context).await?;
    let mut last_runs = jobs::list_last_runs(&job_context.database).await?;
    let shown: Vec<_> = crate::app::all_jobs(&job_context)
        .iter()
        .map(|job| {
            let last = last_runs.iter().position(|run| run.job == job.name);
            JobListRow::new(job, last.map(|at| last_runs.swap_remove(at)))
        })
        .collect();
    let columns = [
        "name",
        "intervalSeconds",
        "lastRunAt",
        "outcome",
        "durationMs",
        "nextRunAt",
        "host",
    ];
    context
        .output
        .write_rows(&shown, &columns, "There are no jobs.")?;
    Ok(())
}

/// For jobs that a command runs. The keyring may be missing: a job that needs it fails with a message.
pub(super) async fn build_job_context(
    context: &CommandContext,
) -> Result<JobContext, CommandError> {
    let database: Database = context.open_database().await?;
    let webhooks = context.read_settings(WebhookSettings::from_raw)?;
    let sending = context.read_sender_settings(&webhooks, &database)?;
    Ok(JobContext {
        sender: Sender::new(sending, &context.clock).ok(),
        apple_backfill: None,
        google_backfill: None,
        database,
        keyring: context.find_configured_keyring()?.map(Arc::new),
        clock: context.clock.clone(),
        intervals: context
            .read_settings(JobIntervals::from_raw)?
            .with_probe_only_if_delivering(webhooks.is_dispatcher_enabled),
        is_forced: true,
        retention: context.read_settings(RetentionSettings::from_raw)?,
        cadences: context.read_settings(ExpiryThresholds::from_raw)?,
        report: Arc::new(ignore_progress),
    })
}

/// What it stores is found by the dispatchers of the service at their next poll.
async fn add_backfills(
    job_context: &mut JobContext,
    context: &CommandContext,
) -> Result<(), CommandError> {
    let dependencies = VerifyDependencies::load(context).await?;
    let recorder = EventRecorder::new(&dependencies.database, &context.clock, |_| {});
    let apple = dependencies.build_apple(context)?;
    job_context.apple_backfill = Some(AppleBackfill::new(&apple, recorder.clone()));
    let google = dependencies.build_google(context);
    job_context.google_backfill = Some(GoogleBackfill::new(&google, recorder));
    Ok(())
}

pub(super) async fn run_job(
    job_context: &JobContext,
    name: &str,
    context: &CommandContext,
) -> Result<JobRun, CommandError> {
    let jobs = crate::app::all_jobs(job_context);
    let job = jobs.iter().find(|job| job.name == name).ok_or_else(|| {
        let names: Vec<_> = jobs.iter().map(|job| job.name).collect();
        // What was typed is not repeated: it may be a secret in the wrong place.
        CommandError::usage_error(format!(
            "there is no job of that name. The jobs are: {}.",
            names.join(", ")
        ))
    })?;
    let (stop, _waiting) = context.cancel_on_signal()?;
    jobs::run_job_now(&job_context.database, job, &stop)
        .await
        .map_err(|error| match error {
            JobRunError::Database(error) => error.into(),
            running @ JobRunError::AlreadyRunning { .. } => CommandError::from_cause(running),
        })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JobRunView<'a> {
    name: &'static str,
    outcome: &'static str,
    duration_ms: u64,
    told: Option<&'a Value>,
    error: Option<String>,
}

fn print_job_run(ran: &JobRun, context: &CommandContext) -> Result<(), CommandError> {
    let shown = JobRunView {
        name: ran.job,
        outcome: ran.outcome.as_str(),
        duration_ms: u64::try_from(ran.duration.as_millis()).unwrap_or(u64::MAX),
        told: ran.result.as_ref().ok(),
        error: ran
            .result
            .as_ref()
            .err()
            .map(|error| describe_chain(error.as_ref())),
    };
    context.output.write_object(&shown)?;
    check_job_outcome(ran)
}

/// Exit 0 only when the job was done.
pub(super) fn check_job_outcome(ran: &JobRun) -> Result<(), CommandError> {
    match (&ran.outcome, &ran.result) {
        (JobOutcome::Done, _) => Ok(()),
        (_, Err(error)) => Err(CommandError::failed(format!(
            "{} failed: {}",
            ran.job,
            to_sentence(describe_chain(error.as_ref()))
        ))),
        (_, Ok(_)) => Err(CommandError::failed(format!(
            "{} was stopped before its end; the next run continues it.",
            ran.job
        ))),
    }
}
