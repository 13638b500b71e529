//! The SQL of runs, in `job_runs`. Due times are computed with the database's clock.

use std::time::Duration;

use serde_json::Value;

use crate::base::clock::Timestamp;
use crate::db::{Database, Error};

/// How long a run owns its job without a renewal of its lease.
pub(super) const LEASE_TTL: Duration = Duration::from_mins(1);

/// The last run of a job.
#[derive(Clone, Debug, PartialEq)]
pub struct LastJobRun {
    /// Ids grow from run to run.
    pub id: i64,
    /// The job's name.
    pub job: String,
    /// The host it ran on.
    pub host: String,
    /// The job's interval in the process that ran it. `None`: the run was started by a command.
    pub interval: Option<Duration>,
    /// When the run started, by the database's clock.
    pub started_at: Timestamp,
    /// When the run ended. `None` while it runs.
    pub finished_at: Option<Timestamp>,
    /// `done`, `failed`, `stopped` or `interrupted`. `None` while it runs.
    pub outcome: Option<String>,
    /// The summary that the job returned.
    pub summary: Option<Value>,
    /// The cause of a failure.
    pub error: Option<String>,
    /// The time since the start of the run.
    pub age: Duration,
    /// Whether its lease has expired.
    pub is_lapsed: bool,
}

/// The last run of every job that was ever run.
pub async fn list_last_runs(database: &Database) -> Result<Vec<LastJobRun>, Error> {
    let rows = sqlx::query!(
        r#"
        with recursive named as (
            (select job from job_runs order by job limit 1)
            union all
            select (select next.job from job_runs next where next.job > named.job order by next.job limit 1)
            from named where named.job is not null
        )
        select run.id as "id!", run.job as "job!", run.host as "host!", run.interval_seconds,
            run.started_at as "started_at!", run.finished_at, run.outcome, run.told, run.error,
            extract(epoch from clock.now - run.started_at)::float8 as "age!",
            run.lease_until < clock.now as "is_lapsed!"
        from named
        cross join lateral (select * from job_runs where job = named.job order by id desc limit 1) run
        cross join (select attesto_now() as now) clock
        order by run.job
        "#)
    .fetch_all(database.pool())
    .await?;
    let runs = rows.into_iter().map(|row| LastJobRun {
        id: row.id,
        job: row.job,
        host: row.host,
        interval: row
            .interval_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map(Duration::from_secs),
        started_at: row.started_at.into(),
        finished_at: row.finished_at.map(Timestamp::from),
        outcome: row.outcome,
        summary: row.told,
        error: row.error,
        age: Duration::try_from_secs_f64(row.age).unwrap_or_default(),
        is_lapsed: row.is_lapsed,
    });
    Ok(runs.collect())
}

/// How long ago the last run of a job ended that has ended, by the database's clock. `None`: none has.
pub(super) async fn time_since_last_run(
    database: &Database,
    job: &str,
) -> Result<Option<Duration>, Error> {
    let age = sqlx::query_scalar!(
        r#"
        select extract(epoch from attesto_now() - case outcome when 'interrupted' then lease_until else finished_at end)::float8
            as "age!"
        from job_runs
        where job = $1 and finished_at is not null
        order by id desc limit 1
        "#,
        job
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(age.map(|age| Duration::try_from_secs_f64(age).unwrap_or_default()))
}

/// The state of a job for metrics.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct JobHealth {
    pub(crate) job: String,
    /// When the last successful run started.
    pub(crate) last_success_at: Option<Timestamp>,
    /// The summary that this run returned.
    pub(crate) last_summary: Option<Value>,
    /// Whether a later run failed.
    pub(crate) is_failing: bool,
}

/// The state of every job that ever ran. The query skips from job to job, so its cost does not grow with the number of
/// runs.
pub(crate) async fn list_job_health(database: &Database) -> Result<Vec<JobHealth>, Error> {
    sqlx::query_as!(
        JobHealth,
        r#"
        with recursive named as (
            (select job from job_runs order by job limit 1)
            union all
            select (select next.job from job_runs next where next.job > named.job order by next.job limit 1)
            from named where named.job is not null
        )
        select named.job as "job!", done.started_at as "last_success_at?: Timestamp", done.told as "last_summary?",
            exists (
                select from job_runs last
                where last.job = named.job and last.outcome = 'failed' and last.id > coalesce(done.id, 0)
            ) as "is_failing!"
        from named
        left join lateral (
            select id, started_at, told from job_runs
            where job = named.job and outcome = 'done' order by id desc limit 1
        ) done on true
        where named.job is not null
        "#
    )
    .fetch_all(database.pool())
    .await
}

/// The result of an attempt to start a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JobClaim {
    /// The run was started, with this id.
    Claimed(i64),
    /// Another run was started since `seen`.
    Superseded,
    /// A run has not ended yet.
    AlreadyRunning { host: String, since: Timestamp },
}

/// The last run that the caller knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PreviousRun {
    /// Start the run in any case.
    Any,
    /// The job had never run.
    NoRun,
    /// The run with this id.
    Id(i64),
}

/// Starts a run, unless the job is running or another run was started since the caller looked.
///
/// Must not be cancelled: sqlx loses track of a transaction whose `begin` was cancelled.
pub(super) async fn claim_job(
    database: &Database,
    job: &str,
    seen: PreviousRun,
    host: &str,
    interval: Option<Duration>,
) -> Result<JobClaim, Error> {
    let mut transaction = database.pool().begin().await?;
    // A second process waits here for the few milliseconds that the first one needs, and then sees its row.
    sqlx::query!(
        "insert into process_locks (name) values ('job ' || $1) on conflict do nothing",
        job
    )
    .execute(&mut *transaction)
    .await?;
    sqlx::query!(
        "select from process_locks where name = 'job ' || $1 for no key update",
        job
    )
    .fetch_one(&mut *transaction)
    .await?;
    let last = sqlx::query!(
        r#"
        select id, host, started_at, finished_at is null as "runs!",
            lease_until < attesto_now() as "is_lapsed!"
        from job_runs where job = $1 order by id desc limit 1
        "#,
        job
    )
    .fetch_optional(&mut *transaction)
    .await?;
    let is_overtaken = match seen {
        PreviousRun::Any => false,
        PreviousRun::NoRun => last.is_some(),
        PreviousRun::Id(id) => last.as_ref().map(|last| last.id) != Some(id),
    };
    if is_overtaken {
        return Ok(JobClaim::Superseded);
    }
    if let Some(last) = last
        && last.runs
    {
        if !last.is_lapsed {
            return Ok(JobClaim::AlreadyRunning {
                host: last.host,
                since: last.started_at.into(),
            });
        }
        sqlx::query!(
            "update job_runs set outcome = 'interrupted', \
                finished_at = attesto_now() where id = $1",
            last.id
        )
        .execute(&mut *transaction)
        .await?;
    }
    let id = sqlx::query_scalar!(
        "
        insert into job_runs (job, host, interval_seconds, started_at, lease_until)
        select $1, $2, $3, now, now + make_interval(secs => $4)
        from (select attesto_now() as now) clock
        returning id
        ",
        job,
        host,
        interval.map(|every| i64::try_from(every.as_secs()).unwrap_or(i64::MAX)),
        LEASE_TTL.as_secs_f64(),
    )
    .fetch_one(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(JobClaim::Claimed(id))
}

/// Returns false if the run was recorded as ended, because another process may have claimed the job.
pub(super) async fn renew_lease(database: &Database, id: i64) -> Result<bool, Error> {
    let renewed = sqlx::query!(
        "update job_runs set lease_until = attesto_now() + make_interval(secs => $2) \
          where id = $1 and finished_at is null",
        id,
        LEASE_TTL.as_secs_f64(),
    )
    .execute(database.pool())
    .await?;
    Ok(renewed.rows_affected() == 1)
}

/// Has no effect if the run was already recorded as interrupted.
pub(super) async fn finish_run(
    database: &Database,
    id: i64,
    outcome: &str,
    told: Option<&Value>,
    error: Option<&str>,
) -> Result<(), Error> {
    sqlx::query!(
        "update job_runs set finished_at = attesto_now(), outcome = $2, told = $3, \
                error = $4 where id = $1 and finished_at is null",
        id,
        outcome,
        told,
        error,
    )
    .execute(database.pool())
    .await?;
    Ok(())
}
