//! The job `expiry`: a warning in the log for each secret that should be exchanged and each certificate that ends soon.
//!
//! Twice does no harm: it changes nothing, and says the same again.

use std::sync::Arc;

use futures_util::FutureExt as _;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use super::{Job, Tools};
use crate::deliveries::probe::store::certificates_ending;
use crate::replicas::Company;
use crate::watch::expiry::{self, certificate_advice, ends_soon};

/// Of each kind so many are named; the rest is counted.
const MOST_NAMED: i64 = 50;

/// The job.
pub fn job(tools: &Tools) -> Job {
    let work = tools.clone();
    Job {
        name: "expiry",
        about: "warns of keys that are too old or unused and of certificates that end",
        every: tools.intervals.expiry,
        work: Arc::new(move |_: CancellationToken| expiry(work.clone()).boxed()),
    }
}

async fn expiry(tools: Tools) -> anyhow::Result<Value> {
    let Tools {
        database,
        clock,
        cadences,
        ..
    } = &tools;
    let found = expiry::due(database, cadences, clock.lead(), MOST_NAMED).await?;
    let company = Company::present(database, clock.lead()).await?;
    let now = clock.now();
    let before = expiry::callbacks_warned_before(now, cadences);
    let callbacks = certificates_ending(database, before, MOST_NAMED).await?;

    // Everything was found before anything is said: a run that fails says nothing twice.
    let mut due = Map::new();
    for kind in found {
        let word = kind.kind.as_str();
        due.insert(word.to_owned(), kind.count.into());
        let more = kind.count - i64::try_from(kind.first.len()).unwrap_or(0);
        for one in kind.first {
            tracing::warn!(
                tenantId = %one.tenant,
                credential = word,
                fingerprint = one.fingerprint,
                ageDays = one.days(),
                advice = one.advice(),
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
    for (name, end) in expiry::certificates(&company.replicas) {
        if ends_soon(&name, end, now, cadences) {
            tracing::warn!(
                certificate = name,
                endsAt = %end,
                daysLeft = end.since(now).as_secs() / 86_400,
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
