//! `attesto jobs`: what runs periodically.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::context::{Context, Failure};
use crate::clock::Timestamp;
use crate::config::settings::{Cadences, JobIntervals, Retention, Webhooks};
use crate::db::Database;
use crate::deliveries::guard::Guard;
use crate::deliveries::{Sender, SenderSettings};
use crate::jobs::{self, Job, LastRun, Outcome, Ran, RunError, Tools};

/// The commands of `attesto jobs`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// List the jobs: how often each runs, how its last run ended, when it runs next
    List,
    /// Run one now, in this process, unless it runs already
    Run {
        /// Which: its name, as `attesto jobs list` shows it
        name: String,
    },
}

/// Runs one of them.
pub async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    match command {
        Command::List => list(context).await,
        Command::Run { name } => {
            let tools = tools(context).await?;
            let ran = run_job(&tools, &name, context).await?;
            tell(&ran, context)
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    name: &'static str,
    about: &'static str,
    /// Of the process that ran it last; of this environment when nobody did, or when somebody asked.
    interval_seconds: Option<u64>,
    last_run_at: Option<Timestamp>,
    host: Option<String>,
    /// `done`, `failed`, `stopped`, `interrupted`, or `running`.
    outcome: Option<String>,
    duration_ms: Option<u64>,
    told: Option<Value>,
    error: Option<String>,
    /// `null`: only when somebody asks, or it runs.
    next_run_at: Option<Timestamp>,
}

impl Shown {
    fn of(job: &Job, last: Option<LastRun>) -> Self {
        let interval = last.as_ref().and_then(|last| last.interval).or(job.every);
        let next = match &last {
            Some(last) if last.outcome.is_some() || last.is_lapsed => {
                interval.map(|every| last.started_at.plus(every))
            }
            _ => None,
        };
        let took = |last: &LastRun| Some(last.finished_at?.since(last.started_at));
        Self {
            name: job.name,
            about: job.about,
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
            told: last.as_ref().and_then(|last| last.told.clone()),
            error: last.and_then(|last| last.error),
            next_run_at: next,
        }
    }
}

async fn list(context: &Context) -> Result<(), Failure> {
    let tools = tools(context).await?;
    let mut last_runs = jobs::last_runs(&tools.database, context.clock.lead()).await?;
    let shown: Vec<_> = jobs::all(&tools)
        .iter()
        .map(|job| {
            let last = last_runs.iter().position(|run| run.job == job.name);
            Shown::of(job, last.map(|at| last_runs.swap_remove(at)))
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
    context.output.rows(&shown, &columns, "There are none.")?;
    Ok(())
}

/// What jobs work with when a command runs them. Only what seals needs the keys; a job that does and has none says so.
pub(super) async fn tools(context: &Context) -> Result<Tools, Failure> {
    let database: Database = context.database().await?;
    let webhooks = context.settings(Webhooks::read)?;
    let guard = Guard::new(webhooks.allow_private).and_never(database.addresses());
    let sending = SenderSettings::new(webhooks.timeout, guard);
    Ok(Tools {
        sender: Sender::new(sending, &context.clock).ok(),
        database,
        keyring: context.configured_keyring()?.map(Arc::new),
        clock: context.clock.clone(),
        intervals: context
            .settings(JobIntervals::read)?
            .of_one_that_delivers(webhooks.dispatch),
        anew: true,
        retention: context.settings(Retention::read)?,
        cadences: context.settings(Cadences::read)?,
    })
}

/// Runs the job of that name to its end.
pub(super) async fn run_job(tools: &Tools, name: &str, context: &Context) -> Result<Ran, Failure> {
    let jobs = jobs::all(tools);
    let job = jobs.iter().find(|job| job.name == name).ok_or_else(|| {
        let names: Vec<_> = jobs.iter().map(|job| job.name).collect();
        Failure::usage(format!(
            "there is no such job; there are {}.",
            names.join(", ")
        ))
    })?;
    let (stop, _waiting) = context.interruption()?;
    jobs::run_now(&tools.database, &tools.clock, job, &stop)
        .await
        .map_err(|error| match error {
            RunError::Database(error) => error.into(),
            runs @ RunError::Runs { .. } => Failure::refused(format!("{runs}.")),
        })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownRun<'a> {
    name: &'static str,
    outcome: &'static str,
    duration_ms: u64,
    told: Option<&'a Value>,
    error: Option<String>,
}

fn tell(ran: &Ran, context: &Context) -> Result<(), Failure> {
    let shown = ShownRun {
        name: ran.job,
        outcome: ran.outcome.as_str(),
        duration_ms: u64::try_from(ran.took.as_millis()).unwrap_or(u64::MAX),
        told: ran.told.as_ref().ok(),
        error: ran.told.as_ref().err().map(|error| format!("{error:#}")),
    };
    context.output.object(&shown)?;
    verdict(ran)
}

/// Success is when it was done.
pub(super) fn verdict(ran: &Ran) -> Result<(), Failure> {
    match (&ran.outcome, &ran.told) {
        (Outcome::Done, _) => Ok(()),
        (_, Err(error)) => Err(Failure::refused(format!("{} failed: {error:#}.", ran.job))),
        (_, Ok(_)) => Err(Failure::refused(format!(
            "{} was stopped before its end; it is taken up again by whoever runs it next.",
            ran.job
        ))),
    }
}
