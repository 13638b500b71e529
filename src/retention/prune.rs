//! The work of the job, and the same for `attesto prune`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Map, Value};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::RetentionKind;
use super::store::{self, BATCH_SIZE};
use crate::db::{Database, Error};
use crate::jobs::{Job, JobContext};

/// The pause between two batches, so that everybody else comes first.
const BATCH_INTERVAL: Duration = Duration::from_millis(20);

/// The job.
pub fn retention_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "retention",
        description: "removes what is older than it is to be kept",
        interval: tools.intervals.retention,
        run_fn: Arc::new(move |stop| run_retention_job(work.clone(), stop).boxed()),
    }
}

async fn run_retention_job(tools: JobContext, stop: CancellationToken) -> anyhow::Result<Value> {
    let mut told = Map::new();
    for kind in RetentionKind::ALL {
        let Some(kept) = kind.retention_period(&tools.retention) else {
            continue;
        };
        let gone = prune_expired(&tools.database, kind, kept, tools.clock.lead(), &stop).await?;
        told.insert(kind.as_str().to_owned(), gone.into());
    }
    Ok(told.into())
}

/// Removes everything of this kind that is older than `kept`, until `stop`. Gives how many rows.
pub async fn prune_expired(
    database: &Database,
    kind: RetentionKind,
    kept: Duration,
    lead: Duration,
    stop: &CancellationToken,
) -> Result<u64, Error> {
    let mut gone = 0;
    let mut after = None;
    while !stop.is_cancelled() {
        let batch = store::prune_batch(database, kind, kept, lead, after).await?;
        gone += batch.removed;
        if batch.scanned < BATCH_SIZE.unsigned_abs() {
            break;
        }
        after = batch.cursor;
        let _ = stop.run_until_cancelled(sleep(BATCH_INTERVAL)).await;
    }
    Ok(gone)
}

/// How many rows of this kind are older than `kept` and would go. Reads them all.
pub async fn count_expired(
    database: &Database,
    kind: RetentionKind,
    kept: Duration,
    lead: Duration,
) -> Result<u64, Error> {
    store::count_expired_rows(database, kind, kept, lead).await
}
