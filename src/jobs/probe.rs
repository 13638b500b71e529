//! The job `probe`: connects to callbacks that got no delivery recently, so that an unreachable one is noticed before
//! the next event.
//!
//! Running it twice is harmless, because it sends nothing and changes no delivery. A run that was stopped or failed is
//! resumed where it ended: callbacks that were probed recently are not probed again.
//!
//! A process that does not deliver does not schedule it, because such a process may not be able to reach callbacks.
//! While deliveries are held it connects to no callback: this may be a restored copy of an installation, and the
//! callbacks belong to the original.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, JobContext};
use crate::deliveries::probe::{self, ProbeRound};

/// If the job has no interval: a callback that got a delivery within this time is not probed.
const DEFAULT_PROBE_INTERVAL: Duration = Duration::from_hours(1);

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
    // Less than the interval, so that a callback that was probed late in one run is probed again in the next.
    let known_for = (!tools.is_forced).then_some(every / 2);
    let keyring = tools.keyring.as_deref();
    let round =
        probe::probe_all_callbacks(&tools.database, keyring, &sender, every, known_for, &stop);
    let round = round.await?;
    Ok(match round {
        ProbeRound::Completed { tally, not_kept: 0 } => json!({ "callbacks": tally }),
        ProbeRound::Completed { tally, not_kept } => {
            json!({ "callbacks": tally, "notKept": not_kept })
        }
        ProbeRound::Held(hold) => json!({
            "waits": format!(
                "deliveries have been held since {}: no callback is connected to until `attesto deliveries release`",
                hold.held_at
            ),
        }),
    })
}
