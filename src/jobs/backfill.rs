//! The job `backfill`: fetches from Apple the notifications that did not arrive, and from Google the refunds and the states of
//! subscriptions of which it should have told something.
//!
//! Each tenant's history is read about once a day, what Apple could not deliver every few hours, and all of it at once after this
//! installation was down: a run notices that by the time since the one before it. After a restore of a backup that time is long too, because the runs since then are missing.
//!
//! Both stores are read at the same time, and neither waits for the other: while one has much to read, what becomes due at the other one
//! is read too, at the job's interval.
//!
//! Running it twice is harmless: a notification that is stored is recognised.

use std::ops::AddAssign;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::store;
use super::{Job, JobContext};
use crate::db::Error;
use crate::stores::apple::backfill::round::BackfillRound;
use crate::stores::google::{RefundsRound, RereadRound};

/// The name of the job.
pub(crate) const BACKFILL_JOB: &str = "backfill";
/// The installation was down if no run ended for longer, and for longer than three intervals.
const MIN_DOWNTIME: Duration = Duration::from_mins(15);
/// How often what becomes due at one store is read while the other one is being read, where the job has no interval.
const DEFAULT_INTERVAL: Duration = Duration::from_mins(5);

pub(crate) fn backfill_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: BACKFILL_JOB,
        description: "fetches notifications of Apple's, and refunds and states of Google's, that did not arrive",
        interval: tools.intervals.backfill,
        run_fn: Arc::new(move |stop| run_backfill_job(work.clone(), stop).boxed()),
    }
}

async fn run_backfill_job(tools: JobContext, stop: CancellationToken) -> anyhow::Result<Value> {
    let backfill = tools
        .apple_backfill
        .context("this process cannot call Apple: set ATTESTO_ENCRYPTION_KEY")?;
    let usual = tools.intervals.backfill.unwrap_or_default();
    let since_last_run = store::time_since_last_run(&tools.database, BACKFILL_JOB).await?;
    let was_down = since_last_run.is_some_and(|time| time > MIN_DOWNTIME.max(usual * 3));
    if was_down {
        tracing::info!(
            downSeconds = since_last_run.unwrap_or_default().as_secs(),
            hint = "what the stores could not deliver meanwhile is fetched now",
            "backfill_after_downtime"
        );
    }
    let google = tools
        .google_backfill
        .context("this process cannot call Google: set ATTESTO_ENCRYPTION_KEY")?;
    let round = BackfillRound {
        backfill: &backfill,
        database: &tools.database,
        clock: &tools.clock,
        retention: tools.retention.events,
        stop: &stop,
    };
    let is_all_due = was_down || tools.is_forced;
    // After a downtime Pub/Sub delivers what it has kept first: the next run reads what is still missing then.
    let rereads = !was_down || tools.is_forced;
    let (retention, google, stop) = (tools.retention.events, &google, &stop);
    let read_apple = |is_first: bool| round.read_due_histories(is_first && is_all_due).boxed();
    let read_google = |is_first: bool| {
        let refunds = google.read_due_lists(is_first && is_all_due, retention, stop);
        async move {
            Ok::<_, Error>(GoogleRound {
                refunds: refunds.await?,
                subscriptions: if rereads {
                    Some(google.reread_overdue(stop).await?)
                } else {
                    None
                },
            })
        }
        .boxed()
    };
    let interval = tools.intervals.backfill.unwrap_or(DEFAULT_INTERVAL);
    let (apple_busy, google_busy) = (watch::Sender::new(true), watch::Sender::new(true));
    let (apple, google) = tokio::join!(
        read_while_other_is_read(read_apple, &apple_busy, &google_busy, interval),
        read_while_other_is_read(read_google, &google_busy, &apple_busy, interval),
    );
    let (apple, google) = (apple?, google?);
    Ok(json!({
        "afterDowntime": was_down, "apple": apple, "google": google.refunds, "googleSubscriptions": google.subscriptions,
    }))
}

/// What was done for Google. After a downtime no subscription is read.
#[derive(Debug, Default)]
struct GoogleRound {
    refunds: RefundsRound,
    subscriptions: Option<RereadRound>,
}

impl AddAssign for GoogleRound {
    fn add_assign(&mut self, other: Self) {
        self.refunds += other.refunds;
        if let Some(more) = other.subscriptions {
            *self.subscriptions.get_or_insert_default() += more;
        }
    }
}

/// Reads one store, and again after each `interval` while the other one is being read. `reading` is told whether it is the first time;
/// `busy` tells the other store whether this one is being read.
async fn read_while_other_is_read<'a, R: AddAssign>(
    reading: impl Fn(bool) -> BoxFuture<'a, Result<R, Error>>,
    busy: &watch::Sender<bool>,
    other_busy: &watch::Sender<bool>,
    interval: Duration,
) -> Result<R, Error> {
    let mut other = other_busy.subscribe();
    let first = reading(true).await;
    busy.send_replace(false);
    let mut report = first?;
    while timeout(interval, other.wait_for(|is_busy| !is_busy))
        .await
        .is_err()
    {
        busy.send_replace(true);
        let more = reading(false).await;
        busy.send_replace(false);
        report += more?;
    }
    Ok(report)
}
