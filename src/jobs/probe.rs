//! The job `probe`: connects to callbacks that are not sent anything, so that one that cannot be reached is known before an
//! event is for it.
//!
//! Twice does no harm: it asks nothing of anybody and changes no delivery. A run that was stopped or failed is taken up where
//! it ended: what was looked at lately is not connected to again.
//!
//! A process that does not deliver does not run it by itself: it may not be let out to where callbacks are. While deliveries
//! are held it connects to nobody: this may be a copy, and the callbacks are the original's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, JobContext};
use crate::deliveries::probe::{self, ProbeRound};

/// Where nobody says how often: a callback that got something within this time is well.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_hours(1);

/// The job.
pub(crate) fn probe_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "probe",
        description: "connects to callbacks that got nothing lately, sending nothing",
        interval: tools.intervals.probe,
        run_fn: Arc::new(move |stop| run_probe_job(work.clone(), stop).boxed()),
    }
}

async fn run_probe_job(tools: JobContext, stop: CancellationToken) -> anyhow::Result<Value> {
    let sender = tools
        .sender
        .context("callbacks cannot be called: this machine has no certificates to trust")?;
    let every = tools.intervals.probe.unwrap_or(DEFAULT_PROBE_INTERVAL);
    // Less than the interval: who was looked at late in the last round is still looked at in the next.
    let known_for = (!tools.is_forced).then_some(every / 2);
    let lead = tools.clock.lead();
    let round =
        probe::probe_all_callbacks(&tools.database, &sender, every, known_for, lead, &stop).await?;
    Ok(match round {
        ProbeRound::Completed { tally, not_kept: 0 } => json!({ "callbacks": tally }),
        ProbeRound::Completed { tally, not_kept } => {
            json!({ "callbacks": tally, "notKept": not_kept })
        }
        ProbeRound::Held(hold) => json!({
            "waits": format!(
                "deliveries have been held since {}, and nobody is connected to until `attesto deliveries release`",
                hold.held_at
            ),
        }),
    })
}
