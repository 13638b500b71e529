//! The job `probe`: connects to callbacks that are not sent anything, so that one that cannot be reached is known before an
//! event is for it.
//!
//! Twice does no harm: it asks nothing of anybody and changes no delivery.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, Tools};
use crate::deliveries::probe;

/// Where nobody says how often: a callback that got something within this time is well.
const USUAL: Duration = Duration::from_hours(1);

/// The job.
pub fn job(tools: &Tools) -> Job {
    let work = tools.clone();
    Job {
        name: "probe",
        about: "connects to callbacks that got nothing lately, sending nothing",
        every: tools.intervals.probe,
        work: Arc::new(move |stop| probe(work.clone(), stop).boxed()),
    }
}

async fn probe(tools: Tools, stop: CancellationToken) -> anyhow::Result<Value> {
    let sender = tools
        .sender
        .context("callbacks cannot be called: this machine has no certificates to trust")?;
    let every = tools.intervals.probe.unwrap_or(USUAL);
    let lead = tools.clock.lead();
    let tally = probe::go_round(&tools.database, &sender, every, lead, &stop).await?;
    Ok(json!({ "callbacks": tally }))
}
