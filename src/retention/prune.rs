//! The job `retention`, and the same for `attesto prune`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Map, Value};
use strum::VariantArray as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::RetentionKind;
use super::store::{self, BATCH_SIZE};
use crate::base::progress::ReportProgress;
use crate::db::{Database, Error};
use crate::jobs::{Job, JobContext};

/// The pause between two batches, so that the job does not slow down requests and deliveries.
const BATCH_INTERVAL: Duration = Duration::from_millis(20);

pub(crate) fn retention_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "retention",
        description: "removes rows that are past their retention period",
        interval: tools.intervals.retention,
        run_fn: Arc::new(move |stop| run_retention_job(work.clone(), stop).boxed()),
    }
}

async fn run_retention_job(tools: JobContext, stop: CancellationToken) -> anyhow::Result<Value> {
    let mut removed = Map::new();
    let kind_count = RetentionKind::VARIANTS.len() as u64;
    for (&kind, finished) in RetentionKind::VARIANTS.iter().zip(0..) {
        let Some(period) = kind.retention_period(&tools.retention) else {
            continue;
        };
        let report = |_, _, what: &str| {
            (tools.report)(finished, kind_count, &format!("{}, {what}", kind.as_str()));
        };
        let count = prune_expired(&tools.database, kind, period, &stop, &report).await?;
        removed.insert(kind.as_str().to_owned(), count.into());
    }
    Ok(removed.into())
}

/// Removes all rows of this kind that are older than `kept`, until `stop` is cancelled. Returns how many were removed.
pub async fn prune_expired(
    database: &Database,
    kind: RetentionKind,
    kept: Duration,
    stop: &CancellationToken,
    report: ReportProgress<'_>,
) -> Result<u64, Error> {
    let mut removed = 0;
    for lane in kind.lanes().iter() {
        let mut after = None;
        while !stop.is_cancelled() {
            report(0, 1, &format!("{removed} rows removed"));
            let batch = store::prune_batch(database, kind, lane, kept, after).await?;
            removed += batch.removed;
            if batch.scanned < BATCH_SIZE.unsigned_abs() {
                break;
            }
            after = batch.cursor;
            let _ = stop.run_until_cancelled(sleep(BATCH_INTERVAL)).await;
        }
    }
    Ok(removed)
}

/// How many rows of this kind [`prune_expired`] would remove. Reads all of them.
pub(crate) async fn count_expired(
    database: &Database,
    kind: RetentionKind,
    kept: Duration,
) -> Result<u64, Error> {
    store::count_expired_rows(database, kind, kept).await
}
