//! The job `expiry`: a warning in the log for each secret that should be exchanged and each certificate that ends soon.
//!
//! Twice does no harm: it changes nothing, and says the same again.

use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, JobContext};
use crate::deliveries::probe::store::list_expiring_certificates;
use crate::replicas::LiveReplicas;
use crate::watch::expiry::{self, certificate_advice, is_expiring_soon};

/// Of each kind so many are named; the rest is counted.
const MAX_NAMED: i64 = 50;

/// The job.
pub fn expiry_job(tools: &JobContext) -> Job {
    let work = tools.clone();
    Job {
        name: "expiry",
        description: "warns of keys that are too old or unused and of certificates that end",
        interval: tools.intervals.expiry,
        run_fn: Arc::new(move |_: CancellationToken| run_expiry_job(work.clone()).boxed()),
    }
}

async fn run_expiry_job(tools: JobContext) -> anyhow::Result<Value> {
    let JobContext {
        database,
        clock,
        cadences,
        ..
    } = &tools;
    let found = expiry::find_due_credentials(database, cadences, clock.lead(), MAX_NAMED).await?;
    let company = LiveReplicas::load(database, clock.lead()).await?;
    let now = clock.now();
    let before = expiry::callback_expiry_cutoff(now, cadences);
    let callbacks = list_expiring_certificates(database, before, MAX_NAMED).await?;

    // Everything was found before anything is said: a run that fails says nothing twice.
    let mut due = Map::new();
    for kind in found {
        let word = kind.kind.as_str();
        due.insert(word.to_owned(), kind.count.into());
        let more = kind.count - i64::try_from(kind.oldest.len()).unwrap_or(0);
        for one in kind.oldest {
            tracing::warn!(
                tenantId = %one.tenant,
                credential = word,
                fingerprint = one.fingerprint,
                ageDays = one.age_days(),
                advice = one.rotation_advice(),
                "credential_rotation_due"
            );
        }
        if more > 0 {
            tracing::warn!(
                credential = word,
                more,
                advice = "`attesto doctor` says how many there are",
                "credential_rotation_due"
            );
        }
    }
    let mut certificates = Map::new();
    for (name, end) in expiry::earliest_certificate_expiries(&company.replicas) {
        if is_expiring_soon(&name, end, now, cadences) {
            tracing::warn!(
                certificate = name,
                endsAt = %end,
                daysLeft = end.duration_since(now).as_secs() / 86_400,
                advice = certificate_advice(&name),
                "certificate_expires_soon"
            );
        }
        certificates.insert(name, json!(end));
    }
    for (tenant, end) in &callbacks.first {
        tracing::warn!(
            certificate = "callback",
            tenantId = %tenant,
            endsAt = end,
            advice = "tell them: from that day on nothing is delivered there",
            "certificate_expires_soon"
        );
    }
    Ok(json!({ "due": due, "certificates": certificates, "callbacks": callbacks.count }))
}
