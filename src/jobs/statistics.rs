//! The job `statistics`: counts what takes long to count, once for all processes. They show it from the run's row.
//!
//! Twice does no harm: it changes nothing.

use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, JobContext};
use crate::credentials::reseal;
use crate::credentials::sealed_columns::ENCRYPTION_CANARY;
use crate::watch::expiry;

/// The job.
pub fn statistics_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "statistics",
        description: "counts for metrics what takes long to count",
        interval: tools.intervals.statistics,
        run_fn: Arc::new(move |_: CancellationToken| run_statistics_job(work.clone()).boxed()),
    }
}

async fn run_statistics_job(tools: JobContext) -> anyhow::Result<Value> {
    let database = &tools.database;
    let mut sealed: Map<String, Value> = Map::new();
    for holding in reseal::list_key_usage(database).await? {
        if holding.column != ENCRYPTION_CANARY {
            // 0 is no key.
            let key_id = holding.key_id.unwrap_or(0).to_string();
            let so_far = sealed.get(&key_id).and_then(Value::as_u64).unwrap_or(0);
            sealed.insert(key_id, (so_far + holding.rows).into());
        }
    }
    let mut due = Map::new();
    for found in
        expiry::find_due_credentials(database, &tools.cadences, tools.clock.lead(), 1).await?
    {
        due.insert(found.kind.as_str().to_owned(), found.count.into());
    }
    let mut tables = Map::new();
    for table in database.table_sizes().await? {
        let size = json!({ "rows": table.rows, "bytes": table.bytes });
        tables.insert(table.name, size);
    }
    Ok(json!({ "sealed": sealed, "due": due, "tables": tables }))
}
