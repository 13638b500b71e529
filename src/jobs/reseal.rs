//! The job `reseal`: seals everything with the newest key, so that a rotation comes to its end without anyone typing.
//!
//! It waits until every process seals with the key that this one seals with. Until then the rotation is still under way:
//! two processes of different settings would seal the same rows back and forth, and one that lacks the key could open
//! nothing.
//!
//! Twice does no harm: each row is written only where the value that was read still stands.

use std::sync::Arc;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, JobContext};
use crate::credentials::canary;
use crate::credentials::reseal::{self, ResealMode};
use crate::replicas::LiveReplicas;
use crate::replicas::live_replicas::format_name_list;

/// The job.
pub(crate) fn reseal_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "reseal",
        description: "seals secrets anew with the newest encryption key",
        interval: tools.intervals.reseal,
        run_fn: Arc::new(move |stop| run_reseal_job(work.clone(), stop).boxed()),
    }
}

async fn run_reseal_job(tools: JobContext, stop: CancellationToken) -> anyhow::Result<Value> {
    let database = &tools.database;
    let keyring = tools
        .keyring
        .context("this process has no encryption key: set ATTESTO_ENCRYPTION_KEY")?;
    let key_id = keyring.sealing_key_id();
    let company = LiveReplicas::load(database, tools.clock.lead()).await?;
    let others = company.hosts_sealing_with_other_key(key_id);
    if !others.is_empty() {
        return Ok(json!({
            "keyId": key_id,
            "waits": format!("{} seal with another key", format_name_list(&others)),
        }));
    }
    canary::ensure_canaries(database, &keyring).await?;
    let report =
        reseal::reseal_values(database, &keyring, ResealMode::Apply, &stop, |_| {}).await?;
    if let Some(first) = report.failures.first() {
        anyhow::bail!(
            "{} values do not open, the first of them {}.{} of {} ({}): {}; `attesto encryption rotate` lists them",
            report.failed,
            first.column.table,
            first.column.column,
            first.row,
            first.class,
            first.cause.message_with_valid_canary()
        );
    }
    Ok(json!({
        "keyId": key_id,
        "resealed": report.resealed,
        "remaining": report.remaining,
    }))
}
