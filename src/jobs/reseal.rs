//! The job `reseal`: seals all values with the current key, so that a key rotation is completed without a command.
//!
//! It waits until every process seals with the same key as this one. Until then the rotation is still being rolled out:
//! two processes with different settings would reseal the same rows in turn, and a process without the new key could
//! not unseal them.
//!
//! Running it twice is harmless, because a row is written only if its value is still the one that was read.

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

pub(crate) fn reseal_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "reseal",
        description: "seals secrets again with the current encryption key",
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
    let live = LiveReplicas::load(database).await?;
    let others = live.hosts_sealing_with_other_key(key_id);
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
