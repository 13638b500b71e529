//! The work of the job, and the same for `attesto prune`.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use serde_json::{Map, Value};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Kind;
use super::store::{self, BATCH};
use crate::db::{Database, Error};
use crate::jobs::{Job, Tools};

/// The pause between two batches, so that everybody else comes first.
const PAUSE: Duration = Duration::from_millis(20);

/// The job.
pub fn job(tools: &Tools) -> Job {
    let work = tools.clone();
    Job {
        name: "retention",
        about: "removes what is older than it is to be kept",
        every: tools.intervals.retention,
        work: Arc::new(move |stop| retention(work.clone(), stop).boxed()),
    }
}

async fn retention(tools: Tools, stop: CancellationToken) -> anyhow::Result<Value> {
    let mut told = Map::new();
    for kind in Kind::ALL {
        let Some(kept) = kind.kept(&tools.retention) else {
            continue;
        };
        let gone = prune(&tools.database, kind, kept, tools.clock.lead(), &stop).await?;
        told.insert(kind.as_str().to_owned(), gone.into());
    }
    Ok(told.into())
}

/// Removes everything of this kind that is older than `kept`, until `stop`. Gives how many rows.
pub async fn prune(
    database: &Database,
    kind: Kind,
    kept: Duration,
    lead: Duration,
    stop: &CancellationToken,
) -> Result<u64, Error> {
    let mut gone = 0;
    let mut after = None;
    while !stop.is_cancelled() {
        let batch = store::prune(database, kind, kept, lead, after).await?;
        gone += batch.gone;
        if batch.looked_at < BATCH.unsigned_abs() {
            break;
        }
        after = batch.last;
        let _ = stop.run_until_cancelled(sleep(PAUSE)).await;
    }
    Ok(gone)
}

/// How many rows of this kind are older than `kept` and would go. Reads them all.
pub async fn count(
    database: &Database,
    kind: Kind,
    kept: Duration,
    lead: Duration,
) -> Result<u64, Error> {
    store::count(database, kind, kept, lead).await
}
