//! The job `statistics`: counts what takes long to count, once for all processes. They show it from the run's row.
//!
//! Twice does no harm: it changes nothing.

use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, Tools};
use crate::credentials::reseal;
use crate::credentials::sealed::CANARY;
use crate::watch::expiry;

/// The job.
pub fn job(tools: &Tools) -> Job {
    let work = tools.clone();
    Job {
        name: "statistics",
        about: "counts for metrics what takes long to count",
        every: tools.intervals.statistics,
        work: Arc::new(move |_: CancellationToken| statistics(work.clone()).boxed()),
    }
}

async fn statistics(tools: Tools) -> anyhow::Result<Value> {
    let database = &tools.database;
    let mut sealed: Map<String, Value> = Map::new();
    for holding in reseal::holdings(database).await? {
        if holding.column != CANARY {
            // 0 is no key.
            let key_id = holding.key_id.unwrap_or(0).to_string();
            let so_far = sealed.get(&key_id).and_then(Value::as_u64).unwrap_or(0);
            sealed.insert(key_id, (so_far + holding.rows).into());
        }
    }
    let mut due = Map::new();
    for found in expiry::due(database, &tools.cadences, tools.clock.lead(), 1).await? {
        due.insert(found.kind.as_str().to_owned(), found.count.into());
    }
    let mut tables = Map::new();
    for table in database.sizes().await? {
        let size = json!({ "rows": table.rows, "bytes": table.bytes });
        tables.insert(table.name, size);
    }
    Ok(json!({ "sealed": sealed, "due": due, "tables": tables }))
}
