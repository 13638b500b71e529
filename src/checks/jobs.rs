//! The jobs `drift`, `expiry` and `statistics`, which run checks. They change nothing, so running one twice is
//! harmless.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Map, Value, json};
use strum::VariantArray as _;
use tokio_util::sync::CancellationToken;

use super::check::CheckQuery;
use super::deliveries::CLIENT_CERTIFICATE_ADVICE;
use super::drift;
use super::expiry::{
    self, CredentialKind, DueCredential, SECONDS_PER_DAY, certificate_advice, is_expiring_soon,
};
use super::list::all_checks;
use super::runner::DatabaseContext;
use super::store;
use crate::credentials::reseal;
use crate::credentials::sealed_columns::ENCRYPTION_CANARY;
use crate::deliveries::probe::store::{AffectedCallbacks, list_expiring_certificates};
use crate::jobs::{Job, JobContext};
use crate::replicas::LiveReplicas;

pub(super) const DRIFT_JOB: &str = "drift";
pub(super) const EXPIRY_JOB: &str = "expiry";

/// The number of items of each kind that are logged by name. The others are only counted.
const MAX_LOGGED: i64 = 50;

/// The jobs of this file, in alphabetical order.
pub(crate) fn check_jobs(tools: &JobContext) -> [Job; 3] {
    [
        check_job(
            tools,
            DRIFT_JOB,
            "compares the configuration with what is in use",
            tools.intervals.drift,
            |context| run_drift_job(context).boxed(),
        ),
        check_job(
            tools,
            EXPIRY_JOB,
            "warns of keys that are too old or unused and of certificates that expire soon",
            tools.intervals.expiry,
            |context| run_expiry_job(context).boxed(),
        ),
        check_job(
            tools,
            "statistics",
            "counts for the metrics what takes long to count",
            tools.intervals.statistics,
            |context| run_statistics_job(context).boxed(),
        ),
    ]
}

fn check_job(
    tools: &JobContext,
    name: &'static str,
    description: &'static str,
    interval: Option<Duration>,
    run: fn(DatabaseContext) -> BoxFuture<'static, anyhow::Result<Value>>,
) -> Job {
    let tools = tools.clone();
    Job {
        name,
        description,
        interval,
        run_fn: Arc::new(move |_: CancellationToken| run(DatabaseContext::from_job(&tools))),
    }
}

/// The labels of the metric `attesto_drift_findings`.
pub(super) fn drift_labels() -> Vec<&'static str> {
    let jobs = all_checks().into_iter().filter_map(|check| check.job);
    jobs.filter(|job| job.name == DRIFT_JOB)
        .map(|job| job.label)
        .collect()
}

/// Runs every check of the job `drift`. If the schema is not this release's, only that is counted, and all other counts
/// are zero.
async fn run_drift_job(context: DatabaseContext) -> anyhow::Result<Value> {
    let is_usable = drift::is_schema_usable(&context).await?;
    let (mut counts, mut names) = (Map::new(), Map::new());
    for check in all_checks() {
        let (Some(job), CheckQuery::Counted { query, .. }) = (check.job, &check.query) else {
            continue;
        };
        if job.name != DRIFT_JOB {
            continue;
        }
        if !is_usable && check.name != drift::MIGRATIONS {
            counts.insert(job.label.to_owned(), 0.into());
            continue;
        }
        let found = query(&context).await;
        if let Err(error) = &found
            && context.database.is_refused_by_citus(error).await
        {
            continue;
        }
        let found = found?;
        counts.insert(job.label.to_owned(), found.count.into());
        if found.count > 0 {
            names.insert(job.label.to_owned(), json!(found.names));
        }
    }
    Ok(json!({ "findings": counts, "names": names }))
}

async fn run_expiry_job(context: DatabaseContext) -> anyhow::Result<Value> {
    let DatabaseContext {
        database,
        clock,
        thresholds: Some(thresholds),
        ..
    } = &context
    else {
        anyhow::bail!("the settings cannot be read");
    };
    let mut groups = Vec::new();
    for &kind in CredentialKind::VARIANTS {
        groups.extend(expiry::find_due(&context, kind, MAX_LOGGED).await?);
    }
    let live = LiveReplicas::load(database).await?;
    let now = clock.now();
    let cutoff = expiry::callback_expiry_cutoff(now, thresholds);
    let callbacks = list_expiring_certificates(database, cutoff, MAX_LOGGED).await?;
    let client_certificates =
        store::list_expiring_client_certificates(database, cutoff, MAX_LOGGED).await?;

    // All queries run before the first log line, so that a run that fails and is repeated logs nothing twice.
    let mut due = Map::new();
    for group in groups {
        due.insert(group.kind.as_str().to_owned(), group.count.into());
        log_due_credentials(group.kind, group.count, &group.oldest);
    }
    let mut certificates = Map::new();
    for (name, validity) in expiry::earliest_certificate_expiries(&live.replicas) {
        let end = validity.not_after;
        if is_expiring_soon(&name, validity, now, thresholds) {
            tracing::warn!(
                certificate = name,
                endsAt = %end,
                daysLeft = end.duration_since(now).as_secs() / SECONDS_PER_DAY,
                advice = certificate_advice(&name),
                "certificate_expires_soon"
            );
        }
        certificates.insert(name, json!(end));
    }
    let advice = "inform the tenant: once it has expired, nothing is delivered there";
    log_expiring_certificates("callback", &callbacks, advice);
    let advice = CLIENT_CERTIFICATE_ADVICE;
    log_expiring_certificates("client_certificate", &client_certificates, advice);
    Ok(json!({
        "due": due,
        "certificates": certificates,
        "callbacks": callbacks.count,
        "clientCertificates": client_certificates.count,
    }))
}

fn log_expiring_certificates(certificate: &str, callbacks: &AffectedCallbacks, advice: &str) {
    for callback in &callbacks.first {
        tracing::warn!(
            certificate,
            tenantId = %callback.tenant,
            callback = callback.callback.column(),
            endsAt = callback.what,
            advice,
            "certificate_expires_soon"
        );
    }
}

fn log_due_credentials(kind: CredentialKind, count: i64, oldest: &[DueCredential]) {
    for credential in oldest {
        tracing::warn!(
            tenantId = %credential.tenant,
            credential = kind.as_str(),
            fingerprint = credential.fingerprint,
            ageDays = credential.age_days(),
            advice = credential.rotation_advice(),
            "credential_rotation_due"
        );
    }
    let more = count - i64::try_from(oldest.len()).unwrap_or(0);
    if more > 0 {
        tracing::warn!(
            credential = kind.as_str(),
            more,
            advice = "`attesto doctor` shows how many there are",
            "credential_rotation_due"
        );
    }
}

/// The counts are stored in the run's summary, from which every process sets its metrics.
async fn run_statistics_job(context: DatabaseContext) -> anyhow::Result<Value> {
    let mut sealed: Map<String, Value> = Map::new();
    for column in reseal::list_key_usage(&context.database).await? {
        if column.column != ENCRYPTION_CANARY {
            // No key has the id 0: these values are not sealed values.
            let key_id = column.key_id.unwrap_or(0).to_string();
            let sum = sealed.get(&key_id).and_then(Value::as_u64).unwrap_or(0);
            sealed.insert(key_id, (sum + column.rows).into());
        }
    }
    let mut due = Map::new();
    for &kind in CredentialKind::VARIANTS {
        let count = expiry::find_due(&context, kind, 1).await?;
        let count = count.map_or(0, |group| group.count);
        due.insert(kind.as_str().to_owned(), count.into());
    }
    let mut tables = Map::new();
    for table in context.database.table_sizes().await? {
        let size = json!({ "rows": table.rows, "bytes": table.bytes });
        tables.insert(table.name, size);
    }
    Ok(json!({ "sealed": sealed, "due": due, "tables": tables }))
}
