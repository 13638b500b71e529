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

use super::{Job, Tools};
use crate::credentials::canary;
use crate::credentials::reseal::{self, Run};
use crate::replicas::Company;
use crate::replicas::company::listed;

/// The job.
pub fn job(tools: &Tools) -> Job {
    let work = tools.clone();
    Job {
        name: "reseal",
        about: "seals secrets anew with the newest encryption key",
        every: tools.intervals.reseal,
        work: Arc::new(move |stop| reseal(work.clone(), stop).boxed()),
    }
}

async fn reseal(tools: Tools, stop: CancellationToken) -> anyhow::Result<Value> {
    let database = &tools.database;
    let keyring = tools
        .keyring
        .context("this process has no encryption key: set ATTESTO_ENCRYPTION_KEY")?;
    let key_id = keyring.sealing_id();
    let company = Company::present(database, tools.clock.lead()).await?;
    let others = company.seal_otherwise(key_id);
    if !others.is_empty() {
        return Ok(json!({
            "keyId": key_id,
            "waits": format!("{} seal with another key", listed(&others)),
        }));
    }
    canary::check(database, &keyring).await?;
    let report = reseal::run(database, &keyring, Run::ForReal, &stop, |_| {}).await?;
    if let Some(first) = report.failures.first() {
        anyhow::bail!(
            "{} values do not open, the first of them {}.{} of {} ({}): {}; `attesto encryption rotate` lists them",
            report.failed,
            first.column.table,
            first.column.column,
            first.row,
            first.class,
            first.cause.beside_a_right_canary()
        );
    }
    Ok(json!({
        "keyId": key_id,
        "resealed": report.resealed,
        "remaining": report.remaining,
    }))
}
