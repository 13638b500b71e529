//! Scheduled jobs: which process runs them, when, and what happens when it dies or stops.

#![expect(clippy::unwrap_used, reason = "a helper of a test fails like the test")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::lane::LaneSet;
use attesto::base::progress::ignore_progress;
use attesto::config::groups::{ExpiryThresholds, JobIntervals, RetentionSettings};
use attesto::jobs::{
    self, Job, JobContext, JobOutcome, JobRunError, JobScheduler, list_last_runs, run_job_now,
};
use attesto::replicas::ReplicaHeartbeat;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::world::attesto::World;
use crate::world::postgres::{Fresh, fresh_database, pass_time};
use crate::world::shell::Ran;
use crate::world::wait::wait_until;

const HOUR: Duration = Duration::from_hours(1);

/// A database and a clock that the test moves.
struct Office {
    fresh: Fresh,
    tools: JobContext,
    /// How often the job ran.
    count: Arc<AtomicUsize>,
}

impl Office {
    async fn open() -> Self {
        let fresh = fresh_database().await;
        let tools = JobContext {
            database: fresh.database.clone(),
            keyring: None,
            sender: None,
            apple_backfill: None,
            google_backfill: None,
            clock: Clock::fixed(Timestamp::from_millis(0)),
            intervals: JobIntervals {
                is_enabled: true,
                backfill: None,
                retention: Some(HOUR),
                reseal: None,
                expiry: None,
                drift: None,
                probe: None,
                statistics: None,
            },
            is_forced: false,
            retention: RetentionSettings {
                events: None,
                validation_audit: None,
                operator_audit: None,
                attempt_details: None,
                first_seen: None,
            },
            cadences: ExpiryThresholds {
                apple_key_max_age: None,
                google_key_max_age: None,
                api_key_max_unused: None,
                certificate_warning_period: Duration::ZERO,
            },
            report: Arc::new(ignore_progress),
        };
        Self {
            fresh,
            tools,
            count: Arc::default(),
        }
    }

    /// A job that counts its runs, and fails if `fails`.
    fn job(&self, fails: bool) -> Job {
        let count = self.count.clone();
        Job {
            name: "counting",
            description: "counts",
            interval: Some(HOUR),
            run_fn: Arc::new(move |_| {
                let number = count.fetch_add(1, Ordering::SeqCst) + 1;
                async move {
                    anyhow::ensure!(!fails, "it was to fail");
                    Ok(json!({ "number": number }))
                }
                .boxed()
            }),
        }
    }

    fn jobs(&self, job: &Job) -> JobScheduler {
        JobScheduler::new(&self.tools, vec![job.clone()])
    }

    async fn last(&self) -> jobs::LastJobRun {
        let runs = list_last_runs(&self.fresh.database).await;
        runs.unwrap().pop().unwrap()
    }

    async fn pass(&self, by: Duration) {
        pass_time(&self.fresh.database, &self.tools.clock, by).await;
    }

    fn ran(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn a_due_job_runs_in_one_of_several_replicas() {
    let office = Office::open().await;
    let job = office.job(false);
    let stop = CancellationToken::new();
    let all: Vec<_> = (0..5).map(|_| office.jobs(&job)).collect();
    let everybody = async || {
        let looks = all.iter().map(|jobs| jobs.run_due_once(&stop));
        for look in futures_util::future::join_all(looks).await {
            look.unwrap();
        }
    };
    everybody().await;
    assert_eq!(office.ran(), 1, "the first time, once");
    let last = office.last().await;
    assert_eq!(last.outcome.as_deref(), Some("done"));
    assert_eq!(last.summary, Some(json!({"number": 1})));
    assert_eq!(last.interval, Some(HOUR));

    office.pass(Duration::from_mins(59)).await;
    everybody().await;
    assert_eq!(office.ran(), 1, "not yet");
    office.pass(Duration::from_mins(2)).await;
    everybody().await;
    everybody().await;
    assert_eq!(office.ran(), 2);
}

#[tokio::test]
async fn a_failed_job_records_the_error_and_is_retried_soon() {
    let office = Office::open().await;
    let jobs = office.jobs(&office.job(true));
    let stop = CancellationToken::new();
    jobs.run_due_once(&stop).await.unwrap();
    let last = office.last().await;
    assert_eq!(last.outcome.as_deref(), Some("failed"));
    assert_eq!(last.error.as_deref(), Some("it was to fail"));
    jobs.run_due_once(&stop).await.unwrap();
    assert_eq!(office.ran(), 1);
    office.pass(Duration::from_mins(6)).await;
    jobs.run_due_once(&stop).await.unwrap();
    assert_eq!(office.ran(), 2);
}

#[tokio::test]
async fn a_job_that_panics_has_failed() {
    let office = Office::open().await;
    let job = Job {
        run_fn: Arc::new(|_| async { panic!("hunter2") }.boxed()),
        ..office.job(false)
    };
    let ran = run_job_now(&office.fresh.database, &job, &CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(ran.outcome, JobOutcome::Failed);
    assert_eq!(office.last().await.outcome.as_deref(), Some("failed"));
}

#[tokio::test]
async fn a_running_job_is_not_started_elsewhere_until_its_process_is_dead() {
    let office = Office::open().await;
    let database = &office.fresh.database;
    let stop = CancellationToken::new();
    // A run of a process that was killed meanwhile.
    sqlx::query(
        "insert into job_runs (job, host, interval_seconds, started_at, lease_until)
         values ('counting', 'elsewhere', 3600, now(), now() + interval '60 seconds')",
    )
    .execute(database.pool())
    .await
    .unwrap();
    let job = office.job(false);
    let refused = run_job_now(database, &job, &stop).await.unwrap_err();
    assert!(
        matches!(&refused, JobRunError::AlreadyRunning { host, .. } if host == "elsewhere"),
        "{refused}"
    );
    let jobs = office.jobs(&job);
    jobs.run_due_once(&stop).await.unwrap();
    assert_eq!(office.ran(), 0);

    office.pass(Duration::from_secs(90)).await;
    jobs.run_due_once(&stop).await.unwrap();
    assert_eq!(office.ran(), 1, "long before its hour is over");
    let outcomes: Vec<String> =
        sqlx::query_scalar("select outcome from job_runs where job = 'counting' order by id")
            .fetch_all(database.pool())
            .await
            .unwrap();
    assert_eq!(outcomes, ["interrupted", "done"]);
}

#[tokio::test]
async fn a_job_stops_with_its_process_and_is_resumed_by_the_next() {
    let office = Office::open().await;
    let begun = Arc::new(Notify::new());
    let (said, count) = (begun.clone(), office.count.clone());
    let job = Job {
        run_fn: Arc::new(move |stop| {
            let (said, count) = (said.clone(), count.clone());
            async move {
                said.notify_one();
                stop.cancelled().await;
                count.fetch_add(1, Ordering::SeqCst);
                Ok(json!("as far as it came"))
            }
            .boxed()
        }),
        ..office.job(false)
    };
    let stop = CancellationToken::new();
    let jobs = office.jobs(&job);
    let running = {
        let stop = stop.clone();
        tokio::spawn(async move { jobs.run_due_once(&stop).await })
    };
    begun.notified().await;
    stop.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(office.ran(), 1, "it was waited for");
    let last = office.last().await;
    assert_eq!(last.outcome.as_deref(), Some("stopped"));
    assert_eq!(last.summary, Some(json!("as far as it came")));

    // Not after an hour: at the next check.
    let another = office.job(false);
    office
        .jobs(&another)
        .run_due_once(&CancellationToken::new())
        .await
        .unwrap();
    assert_eq!(office.ran(), 2);
}

fn attesto(fresh: &Fresh, variables: &[(&str, &str)], words: &[&str]) -> Ran {
    fresh.shell().set_all(variables.iter().copied()).run(words)
}

#[tokio::test]
async fn jobs_are_listed_and_run_by_hand() {
    let fresh = fresh_database().await;
    let list = || attesto(&fresh, &[], &["jobs", "list"]);
    let before = list();
    assert_eq!((before.exit, before.complained.as_str()), (0, ""));
    let lines = before.lines();
    let names: Vec<_> = lines
        .iter()
        .map(|job| job["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, jobs::JOB_NAMES);
    let place = |name: &str| names.iter().position(|known| *known == name).unwrap();
    let (reseal, retention) = (place("reseal"), place("retention"));
    let never = &before.lines()[retention];
    assert_eq!(never["intervalSeconds"], 3600);
    assert_eq!(
        (&never["outcome"], &never["nextRunAt"]),
        (&Value::Null, &Value::Null)
    );

    let ran = attesto(&fresh, &[], &["jobs:run", "retention"]);
    assert_eq!((ran.exit, ran.complained.as_str()), (0, ""));
    assert_eq!(ran.lines()[0]["outcome"], "done");
    assert_eq!(ran.lines()[0]["told"]["events"], 0);
    let after = list();
    assert_eq!(after.lines()[retention]["outcome"], "done");
    assert_eq!(
        after.lines()[retention]["host"],
        attesto::replicas::host_name()
    );
    assert!(after.lines()[retention]["durationMs"].is_u64());
    assert!(after.lines()[retention]["nextRunAt"].is_string());

    let keyless = attesto(&fresh, &[], &["jobs", "run", "reseal"]);
    assert_eq!(keyless.exit, 1);
    assert!(keyless.complained.contains("ATTESTO_ENCRYPTION_KEY"));
    assert_eq!(list().lines()[reseal]["outcome"], "failed");
    let unknown = attesto(&fresh, &[], &["jobs", "run", "nothing"]);
    assert_eq!(unknown.exit, 2);
    assert!(unknown.complained.contains("reseal, retention"));

    sqlx::query(
        "insert into job_runs (job, host, started_at, lease_until)
         values ('retention', 'elsewhere', now(), now() + interval '60 seconds')",
    )
    .execute(fresh.database.pool())
    .await
    .unwrap();
    assert_eq!(list().lines()[retention]["outcome"], "running");
    let taken = attesto(&fresh, &[], &["jobs", "run", "retention"]);
    assert_eq!(taken.exit, 1);
    assert!(
        taken.complained.contains("elsewhere"),
        "{}",
        taken.complained
    );
}

#[tokio::test]
async fn a_replica_is_registered_and_removed_when_it_stops() {
    let world = World::new().await;
    let of =
        |text: &'static str| sqlx::query_scalar::<_, i64>(text).fetch_one(world.database().pool());
    let present =
        "select count(*) from replicas where sealing_key_id = 1 and opening_key_ids = '{1}'";
    wait_until("the replica is registered", async || {
        of(present).await.unwrap() > 0
    })
    .await;
    let database = attesto::db::Database::open(&world.fresh.settings);
    world.end().await;
    let left: i64 = sqlx::query_scalar("select count(*) from replicas")
        .fetch_one(database.pool())
        .await
        .unwrap();
    assert_eq!(left, 0);
}

/// The lanes of deliveries are divided among the processes that deliver; none is left out.
#[tokio::test]
async fn lanes_are_shared_by_the_processes_that_deliver() {
    // The server itself does not deliver.
    let world = World::with(&[("WEBHOOK_DISPATCHER_DISABLED", "1")]).await;
    world.send_heartbeat().await;
    let [one, other] =
        [(), ()].map(|()| ReplicaHeartbeat::new(world.database(), world.keyring(), &world.clock));
    one.send_heartbeat().await.unwrap();
    assert_eq!(one.lane_share().lanes(), LaneSet::ALL, "alone");
    other.send_heartbeat().await.unwrap();
    one.send_heartbeat().await.unwrap();
    let [ours, theirs] = [&one, &other].map(|process| process.lane_share().lanes().bits());
    assert_eq!((ours & theirs, ours | theirs), (0, u64::MAX));
    // The other one was killed.
    world.pass(Duration::from_mins(1)).await;
    one.send_heartbeat().await.unwrap();
    assert_eq!(one.lane_share().lanes(), LaneSet::ALL);
}
