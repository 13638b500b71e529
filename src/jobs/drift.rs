//! The job `drift`: compares what is set up with what is there, and counts what differs.
//!
//! Twice does no harm: it changes nothing.

use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, JobContext};
use crate::watch::drift;

/// The job.
pub fn drift_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "drift",
        description: "compares what is set up with what is there",
        interval: tools.intervals.drift,
        run_fn: Arc::new(move |_: CancellationToken| run_drift_job(work.clone()).boxed()),
    }
}

async fn run_drift_job(tools: JobContext) -> anyhow::Result<Value> {
    let keyring = tools.keyring.as_deref();
    let found = drift::find_drift(&tools.database, keyring, tools.clock.lead()).await?;
    let (mut counts, mut names) = (Map::new(), Map::new());
    for finding in found {
        let word = finding.kind.as_str().to_owned();
        counts.insert(word.clone(), finding.count.into());
        if finding.count > 0 {
            names.insert(word, json!(finding.names));
        }
    }
    Ok(json!({ "findings": counts, "names": names }))
}
