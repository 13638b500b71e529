//! Metrics about the database's content. They are read from the database at an interval, because no single process sees
//! every change. A scrape returns the values that were read last, and reads nothing.
//!
//! Values that take long to count are counted by a job in one process. Every process shows the result of the job's last
//! run.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use strum::VariantArray as _;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::expiry::CredentialKind;
use super::jobs::drift_labels;
use super::store;
use crate::base::clock::{Clock, Timestamp};
use crate::credentials::age;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error, error_class};
use crate::deliveries::hold;
use crate::deliveries::probe::PROBE_RESULTS;
use crate::deliveries::queue_stats::{CALLBACK_STATES, QueueStats};
use crate::events::unresolved::store::UnresolvedStats;
use crate::jobs::{self, JobHealth};
use crate::replicas::CertificateExpiries;
use crate::stores::apple::backfill::store::{HistoryStats, load_history_stats};
use crate::telemetry::metrics::{Gauge, MetricVec, MetricsRegistry};
use crate::telemetry::metrics::{ObservableKind, u64_to_f64};
use crate::telemetry::process_metrics::register_process_metrics;

/// The interval at which the database is read.
pub const REFRESH_INTERVAL: Duration = Duration::from_secs(15);
const REFRESH_TIMEOUT: Duration = Duration::from_secs(10);

/// The metrics that are read from the database.
pub struct DatabaseGauges {
    refresh_lock: tokio::sync::Mutex<()>,
    database: Database,
    clock: Clock,
    database_up: Gauge,
    queue_depth: MetricVec<1, Gauge>,
    oldest_due: Gauge,
    endpoints_by_state: MetricVec<1, Gauge>,
    clock_skew: Gauge,
    oldest_transaction: Gauge,
    dead_rows: MetricVec<1, Gauge>,
    credential_ages: MetricVec<1, Gauge>,
    last_audit_seq: Gauge,
    deliveries_held: Gauge,
    unresolved_states: MetricVec<1, Gauge>,
    oldest_unresolved_state: Gauge,
    client_certificate_expiry: Gauge,
    history_gauges: HistoryGauges,
    job_gauges: JobGauges,
}

/// The gauges whose values are in the summaries of the jobs' last runs.
struct JobGauges {
    keyring: Arc<Keyring>,
    last_success: MetricVec<1, Gauge>,
    job_failing: MetricVec<1, Gauge>,
    sealed_values: MetricVec<1, Gauge>,
    reseal_remaining: Gauge,
    credentials_due: MetricVec<1, Gauge>,
    drift_findings: MetricVec<1, Gauge>,
    callbacks_probed: MetricVec<1, Gauge>,
    table_rows: MetricVec<1, Gauge>,
    table_bytes: MetricVec<1, Gauge>,
}

/// How far the stores' histories of notifications were read.
struct HistoryGauges {
    oldest_read: MetricVec<1, Gauge>,
    recovered: MetricVec<1, Gauge>,
}

impl HistoryGauges {
    fn new(registry: &MetricsRegistry) -> Self {
        Self {
            oldest_read: registry.register_gauge_vec(
                "attesto_history_read_age_seconds",
                "How long ago a store's history of notifications was last read to its end, of the tenant for which that is longest.",
                ["store"],
            ),
            recovered: registry.register_gauge_vec(
                "attesto_recovered_notifications",
                "Notifications that had not arrived and that the job backfill has fetched, of active tenants.",
                ["store"],
            ),
        }
    }

    fn set_from_stats(&self, stats: HistoryStats) {
        self.oldest_read
            .with_label_values(["apple"])
            .set(stats.oldest_success_age.as_secs_f64());
        self.recovered
            .with_label_values(["apple"])
            .set(count_to_f64(stats.recovered));
    }
}

impl DatabaseGauges {
    /// Also registers the metrics that need no query: the release, the process, the pool and the certificates.
    pub fn new(
        database: &Database,
        keyring: &Arc<Keyring>,
        clock: &Clock,
        certificates: &CertificateExpiries,
        registry: &MetricsRegistry,
    ) -> Self {
        register_build_info(registry);
        register_process_metrics(registry, clock);
        let pool = database.clone();
        registry.register_observable(
            "attesto_db_pool_connections",
            "Connections of this process' pool.",
            move |record| {
                let (used, idle) = pool.connection_counts();
                record(Some(("state", "used")), u64_to_f64(used));
                record(Some(("state", "idle")), u64_to_f64(idle));
            },
            ObservableKind::Gauge,
        );
        let pool = database.clone();
        registry.register_observable(
            "attesto_db_pool_connections_max",
            "Connections that this process' pool may have.",
            move |record| record(None, u64_to_f64(pool.max_connections())),
            ObservableKind::Gauge,
        );
        let certificates = certificates.clone();
        registry.register_observable(
            "attesto_certificate_expiry_timestamp_seconds",
            "When a certificate that this process uses expires, in seconds since the Unix epoch.",
            move |record| {
                for (name, validity) in certificates() {
                    let seconds = u64::try_from(validity.not_after.as_secs()).unwrap_or(0);
                    record(Some(("certificate", name)), u64_to_f64(seconds));
                }
            },
            ObservableKind::Gauge,
        );
        Self {
            refresh_lock: tokio::sync::Mutex::new(()),
            database: database.clone(),
            clock: clock.clone(),
            database_up: registry.register_gauge(
                "attesto_db_up",
                "Whether the last read of the database for these metrics succeeded; if not, the others are out of date.",
            ),
            queue_depth: registry.register_gauge_vec(
                "attesto_queue_depth",
                "Deliveries that have not ended: due, scheduled for later, leased, or parked until an operator acts. At most 100000 due \
                 and scheduled ones are counted.",
                ["state"],
            ),
            oldest_due: registry.register_gauge(
                "attesto_queue_oldest_due_seconds",
                "How long the oldest delivery that could be sent has been due.",
            ),
            endpoints_by_state: registry.register_gauge_vec(
                "attesto_endpoints",
                "Tenants' callbacks by state.",
                ["state"],
            ),
            clock_skew: registry.register_gauge(
                "attesto_db_clock_skew_seconds",
                "How far the database's clock is ahead of this process'.",
            ),
            oldest_transaction: registry.register_gauge(
                "attesto_db_oldest_xmin_age_seconds",
                "Age of the oldest transaction that keeps dead rows from being cleaned up; backups and exports are not counted.",
            ),
            dead_rows: registry.register_gauge_vec(
                "attesto_db_dead_rows",
                "Dead rows that wait to be cleaned up, as far as Postgres' statistics know.",
                ["table"],
            ),
            credential_ages: registry.register_gauge_vec(
                "attesto_credential_oldest_age_seconds",
                "Age of the oldest store credentials, counted from when they were last set.",
                ["store"],
            ),
            last_audit_seq: registry.register_gauge(
                "attesto_operator_audit_last_seq",
                "The number of the newest row of operator_audit: it never shrinks.",
            ),
            deliveries_held: registry.register_gauge(
                "attesto_deliveries_held",
                "Whether all deliveries are held until an operator releases them.",
            ),
            unresolved_states: registry.register_gauge_vec(
                "attesto_unresolved_states",
                "Events without a state, whose store is asked for it.",
                ["store"],
            ),
            oldest_unresolved_state: registry.register_gauge(
                "attesto_unresolved_states_oldest_seconds",
                "How long the oldest of them has been waiting for its state.",
            ),
            client_certificate_expiry: register_client_certificate_expiry(registry),
            history_gauges: HistoryGauges::new(registry),
            job_gauges: JobGauges::new(keyring, registry),
        }
    }

    /// Refreshes now and at every [`REFRESH_INTERVAL`], until `stop` is cancelled.
    pub async fn run(&self, stop: CancellationToken) {
        let refresh_loop = async {
            loop {
                self.refresh_gauges().await;
                sleep(REFRESH_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(refresh_loop).await;
    }

    /// Refreshes once. Only one refresh runs at a time, so that an older result never overwrites a newer one.
    pub async fn refresh_gauges(&self) {
        let _guard = self.refresh_lock.lock().await;
        let found = timeout(REFRESH_TIMEOUT, self.load_and_set_gauges()).await;
        let up = match found {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let class = error_class(&error);
                tracing::debug!(
                    cause = crate::db::describe_cause(&error),
                    causeClass = class,
                    "gauges_refresh_failed"
                );
                false
            }
            Err(_) => false,
        };
        self.database_up.set(f64::from(u8::from(up)));
    }

    async fn load_and_set_gauges(&self) -> Result<(), Error> {
        let stats = QueueStats::load(&self.database).await?;
        for (state, count) in [
            ("due", stats.due),
            ("scheduled", stats.scheduled),
            ("leased", stats.leased),
            ("parked", stats.parked),
        ] {
            self.queue_depth
                .with_label_values([state])
                .set(count_to_f64(count));
        }
        self.oldest_due.set(stats.oldest_due.as_secs_f64());
        for state in CALLBACK_STATES {
            let count = stats.callbacks.get(state).copied().unwrap_or(0);
            self.endpoints_by_state
                .with_label_values([state])
                .set(count_to_f64(count));
        }
        let held = hold::store::load_active_hold(&self.database)
            .await?
            .is_some();
        self.deliveries_held.set(f64::from(u8::from(held)));
        let unresolved = UnresolvedStats::load(&self.database).await?;
        for (store, count) in [("apple", unresolved.apple), ("google", unresolved.google)] {
            self.unresolved_states
                .with_label_values([store])
                .set(count_to_f64(count));
        }
        self.oldest_unresolved_state
            .set(unresolved.oldest.as_secs_f64());
        let history = load_history_stats(&self.database, self.clock.now()).await?;
        self.history_gauges.set_from_stats(history);
        let health = self.database.load_health(&self.clock).await?;
        self.clock_skew.set(health.clock_skew);
        self.oldest_transaction
            .set(health.oldest_transaction.as_secs_f64());
        for (table, rows) in health.dead_rows {
            self.dead_rows
                .with_label_values([&table])
                .set(count_to_f64(rows));
        }
        let oldest = age::load_oldest_credentials(&self.database).await?;
        for (store, age) in [("apple", oldest.apple), ("google", oldest.google)] {
            let age = age.map_or(0.0, |age| age.as_secs_f64());
            self.credential_ages.with_label_values([store]).set(age);
        }
        let expiry = store::load_first_client_certificate_expiry(&self.database).await?;
        self.client_certificate_expiry
            .set(count_to_f64(expiry.map_or(0, Timestamp::as_secs)));
        self.last_audit_seq.set(count_to_f64(
            crate::audit::store::last_operator_audit_seq(&self.database).await?,
        ));
        for health in jobs::list_job_health(&self.database).await? {
            self.job_gauges.set_from_health(&health);
        }
        Ok(())
    }
}

fn register_build_info(registry: &MetricsRegistry) {
    registry
        .register_gauge_vec(
            "attesto_build_info",
            "Always 1; the label is the release of this process.",
            ["version"],
        )
        .with_label_values([crate::VERSION])
        .set(1.0);
}

fn register_client_certificate_expiry(registry: &MetricsRegistry) -> Gauge {
    registry.register_gauge(
        "attesto_client_certificate_expiry_timestamp_seconds",
        "When the first client certificate of an active callback expires, in seconds since the Unix epoch; 0: there is none.",
    )
}

impl JobGauges {
    /// Sets every label to 0 from the start, so that alerts find the series before the first run.
    fn new(keyring: &Arc<Keyring>, registry: &MetricsRegistry) -> Self {
        let runs = Self {
            keyring: keyring.clone(),
            sealed_values: registry.register_gauge_vec(
                "attesto_sealed_values",
                "Secrets in the database, by the id of the encryption key that sealed them.",
                ["key_id"],
            ),
            reseal_remaining: registry.register_gauge(
                "attesto_reencrypt_remaining",
                "Secrets that are sealed with another key than the one this process seals with.",
            ),
            credentials_due: registry.register_gauge_vec(
                "attesto_credentials_due",
                "Keys of active tenants that are older than they should be, or unused.",
                ["credential"],
            ),
            drift_findings: registry.register_gauge_vec(
                "attesto_drift_findings",
                "Findings of the job drift: configuration that no longer matches what is in use.",
                ["kind"],
            ),
            callbacks_probed: registry.register_gauge_vec(
                "attesto_callbacks_probed",
                "Callbacks by what was found when they were last connected to without sending anything.",
                ["result"],
            ),
            table_rows: registry.register_gauge_vec(
                "attesto_db_table_rows",
                "Rows of a table, as far as Postgres' statistics know.",
                ["table"],
            ),
            table_bytes: registry.register_gauge_vec(
                "attesto_db_table_bytes",
                "Size of a table on disk, with its indexes.",
                ["table"],
            ),
            last_success: registry.register_gauge_vec(
                "attesto_job_last_success_timestamp_seconds",
                "When the last successful run of a job began, in seconds since the Unix epoch; 0: there was none.",
                ["job"],
            ),
            job_failing: registry.register_gauge_vec(
                "attesto_job_failing",
                "Whether the last run of a job failed.",
                ["job"],
            ),
        };
        for job in jobs::JOB_NAMES {
            runs.last_success.with_label_values([job]);
            runs.job_failing.with_label_values([job]);
        }
        for &kind in CredentialKind::VARIANTS {
            runs.credentials_due.with_label_values([kind.as_str()]);
        }
        for label in drift_labels() {
            runs.drift_findings.with_label_values([label]);
        }
        for result in PROBE_RESULTS {
            runs.callbacks_probed.with_label_values([result]);
        }
        for id in keyring.key_ids() {
            runs.sealed_values.with_label_values([&id.to_string()]);
        }
        let keys = keyring.clone();
        registry.register_observable(
            "attesto_sealed_values_refused_total",
            "Sealed values that could not be decrypted: their key is not configured, they were changed or moved, or they are not sealed values.",
            move |record| {
                for (class, count) in keys.unseal_failures() {
                    record(Some(("class", class)), u64_to_f64(count));
                }
            },
            ObservableKind::Counter,
        );
        runs
    }

    fn set_from_health(&self, health: &JobHealth) {
        let job = health.job.as_str();
        if let Some(done) = health.last_success_at {
            self.last_success
                .with_label_values([job])
                .set(count_to_f64(done.as_secs()));
        }
        let failing = f64::from(u8::from(health.is_failing));
        self.job_failing.with_label_values([job]).set(failing);
        let Some(summary) = &health.last_summary else {
            return;
        };
        match job {
            "statistics" => {
                self.set_sealed_values(&summary["sealed"]);
                set_labelled_counts(&self.credentials_due, &summary["due"]);
                for (table, size) in object_entries(&summary["tables"]) {
                    self.table_rows
                        .with_label_values([table])
                        .set(json_count_to_f64(&size["rows"]));
                    self.table_bytes
                        .with_label_values([table])
                        .set(json_count_to_f64(&size["bytes"]));
                }
            }
            "drift" => set_labelled_counts(&self.drift_findings, &summary["findings"]),
            "probe" => set_labelled_counts(&self.callbacks_probed, &summary["callbacks"]),
            _ => {}
        }
    }

    fn set_sealed_values(&self, sealed: &Value) {
        let ids = self.keyring.key_ids().map(|id| id.to_string());
        let mut by_key: BTreeMap<String, u64> = ids.map(|id| (id, 0)).collect();
        for (id, values) in object_entries(sealed) {
            by_key.insert(id.clone(), values.as_u64().unwrap_or(0));
        }
        let sealing = self.keyring.sealing_key_id().to_string();
        let mut others = 0;
        for (id, values) in &by_key {
            self.sealed_values
                .with_label_values([id])
                .set(u64_to_f64(*values));
            if *id != sealing {
                others += values;
            }
        }
        self.reseal_remaining.set(u64_to_f64(others));
    }
}

/// Label values come from the summaries of Attesto's jobs, so their number is bounded.
fn set_labelled_counts(gauges: &MetricVec<1, Gauge>, counts: &Value) {
    for (name, count) in object_entries(counts) {
        gauges
            .with_label_values([name])
            .set(json_count_to_f64(count));
    }
}

fn object_entries(object: &Value) -> impl Iterator<Item = (&String, &Value)> {
    object.as_object().into_iter().flatten()
}

fn json_count_to_f64(count: &Value) -> f64 {
    u64_to_f64(count.as_u64().unwrap_or(0))
}

fn count_to_f64(count: i64) -> f64 {
    u64_to_f64(u64::try_from(count).unwrap_or(0))
}
