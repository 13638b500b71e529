//! The job `backfill`: fetches from Apple the notifications that did not arrive, and from Google the refunds and the states of
//! subscriptions of which it should have told something.
//!
//! Each tenant's history is read about once a day, what Apple could not deliver every few hours, and all of it at once after this
//! installation was down: a run notices that by the time since the one before it. After a restore of a backup that time is long too, because the runs since then are missing.
//!
//! Running it twice is harmless: a notification that is stored is recognised.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::store;
use super::{Job, JobContext};
use crate::stores::apple::backfill::round::BackfillRound;

/// The name of the job.
pub(crate) const BACKFILL_JOB: &str = "backfill";
/// The installation was down if no run ended for longer, and for longer than three intervals.
const MIN_DOWNTIME: Duration = Duration::from_mins(15);

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
    let round = BackfillRound {
        backfill: &backfill,
        database: &tools.database,
        clock: &tools.clock,
        retention: tools.retention.events,
        stop: &stop,
    };
    let report = round
        .read_due_histories(was_down || tools.is_forced)
        .await?;
    let google = tools
        .google_backfill
        .context("this process cannot call Google: set ATTESTO_ENCRYPTION_KEY")?;
    let refunds = google
        .read_due_lists(was_down || tools.is_forced, tools.retention.events, &stop)
        .await?;
    // After a downtime Pub/Sub delivers what it has kept first: the next run reads what is still missing then.
    let subscriptions = if was_down && !tools.is_forced {
        None
    } else {
        Some(google.reread_overdue(&stop).await?)
    };
    Ok(json!({
        "afterDowntime": was_down, "apple": report, "google": refunds, "googleSubscriptions": subscriptions,
    }))
}
