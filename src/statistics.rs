//! Takes stock every few seconds, for metrics: what is in the database and cannot be counted as it happens. A scrape
//! shows what was found last and asks nothing.
//!
//! What takes long to count is counted by a job, in one process; every process shows what its last run said.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::credentials::ages;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error, error_class};
use crate::deliveries::hold;
use crate::deliveries::probe::RESULTS;
use crate::deliveries::stock::{CALLBACK_STATES, Stock};
use crate::jobs::{self, Standing};
use crate::metrics::registry::{Kind, as_number};
use crate::metrics::{Gauge, Labelled, Registry, process};
use crate::replicas::Certificates;
use crate::watch::{drift, expiry};

/// How often.
pub const EVERY: Duration = Duration::from_secs(15);
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The numbers that are looked for.
pub struct Statistics {
    turn: tokio::sync::Mutex<()>,
    database: Database,
    clock: Clock,
    up: Gauge,
    depth: Labelled<1, Gauge>,
    oldest_due: Gauge,
    endpoints: Labelled<1, Gauge>,
    skew: Gauge,
    oldest_transaction: Gauge,
    dead_rows: Labelled<1, Gauge>,
    ages: Labelled<1, Gauge>,
    audit: Gauge,
    held: Gauge,
    runs: Runs,
}

/// What the jobs' last runs told.
struct Runs {
    keyring: Arc<Keyring>,
    done: Labelled<1, Gauge>,
    failing: Labelled<1, Gauge>,
    sealed: Labelled<1, Gauge>,
    remaining: Gauge,
    due: Labelled<1, Gauge>,
    drift: Labelled<1, Gauge>,
    probed: Labelled<1, Gauge>,
    table_rows: Labelled<1, Gauge>,
    table_bytes: Labelled<1, Gauge>,
}

impl Statistics {
    /// Adds them to `registry`, and what is known without asking: this release, the process, the pool.
    pub fn new(
        database: &Database,
        keyring: &Arc<Keyring>,
        clock: &Clock,
        certificates: &Certificates,
        registry: &Registry,
    ) -> Self {
        registry
            .gauges(
                "attesto_build_info",
                "Always 1; which release this is.",
                ["version"],
            )
            .with([crate::VERSION])
            .set(1.0);
        process::register(registry, clock);
        let pool = database.clone();
        registry.looked_up(
            "attesto_db_pool_connections",
            "Connections of this process' pool.",
            move |tell| {
                let (used, idle) = pool.connections();
                tell("state=\"used\"", as_number(used));
                tell("state=\"idle\"", as_number(idle));
            },
            Kind::Gauge,
        );
        let pool = database.clone();
        registry.looked_up(
            "attesto_db_pool_connections_max",
            "Connections that this process' pool may have.",
            move |tell| tell("", as_number(pool.most_connections())),
            Kind::Gauge,
        );
        let certificates = certificates.clone();
        registry.looked_up(
            "attesto_certificate_expiry_timestamp_seconds",
            "When a certificate ends that this process lives by, in seconds since the Unix epoch.",
            move |tell| {
                for (name, end) in certificates() {
                    let seconds = u64::try_from(end.seconds()).unwrap_or(0);
                    tell(&format!("certificate=\"{name}\""), as_number(seconds));
                }
            },
            Kind::Gauge,
        );
        Self {
            turn: tokio::sync::Mutex::new(()),
            database: database.clone(),
            clock: clock.clone(),
            up: registry.gauge(
                "attesto_db_up",
                "Whether the database answered when it was last asked for these numbers; while it does not, those beside \
                 this one are old.",
            ),
            depth: registry.gauges(
                "attesto_queue_depth",
                "Deliveries that are not done: due, scheduled for later, leased, parked for a person. At most 100000 due \
                 and scheduled ones are counted.",
                ["state"],
            ),
            oldest_due: registry.gauge(
                "attesto_queue_oldest_due_seconds",
                "How long the delivery has been due that could be sent and waits longest.",
            ),
            endpoints: registry.gauges(
                "attesto_endpoints",
                "Tenants' callbacks by state.",
                ["state"],
            ),
            skew: registry.gauge(
                "attesto_db_clock_skew_seconds",
                "How far the database's clock is ahead of this process'.",
            ),
            oldest_transaction: registry.gauge(
                "attesto_db_oldest_xmin_age_seconds",
                "How long the oldest transaction has been open that keeps dead rows from being cleaned up; backups and exports are left out.",
            ),
            dead_rows: registry.gauges(
                "attesto_db_dead_rows",
                "Dead rows that wait to be cleaned up, as far as Postgres' statistics know.",
                ["table"],
            ),
            ages: registry.gauges(
                "attesto_credential_oldest_age_seconds",
                "How long ago the store credentials were set that were set first.",
                ["store"],
            ),
            audit: registry.gauge(
                "attesto_operator_audit_last_seq",
                "The number of the newest row of operator_audit: it never shrinks.",
            ),
            held: registry.gauge(
                "attesto_deliveries_held",
                "Whether nothing is sent until an operator releases it.",
            ),
            runs: Runs::new(keyring, registry),
        }
    }

    /// Takes stock now and every few seconds, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let looking = async {
            loop {
                self.look().await;
                sleep(EVERY).await;
            }
        };
        stop.run_until_cancelled(looking).await;
    }

    /// Takes stock once. One look after the other: what an earlier one found must not be shown over what a later one did.
    pub async fn look(&self) {
        let _turn = self.turn.lock().await;
        let found = timeout(PATIENCE, self.found()).await;
        let up = match found {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                let class = error_class(&error);
                tracing::debug!(cause = %error, causeClass = class, "could not take stock for metrics");
                false
            }
            Err(_) => false,
        };
        self.up.set(f64::from(u8::from(up)));
    }

    async fn found(&self) -> Result<(), Error> {
        let stock = Stock::take(&self.database, &self.clock).await?;
        for (state, count) in [
            ("due", stock.due),
            ("scheduled", stock.scheduled),
            ("leased", stock.leased),
            ("parked", stock.parked),
        ] {
            self.depth.with([state]).set(number(count));
        }
        self.oldest_due.set(stock.oldest_due.as_secs_f64());
        for state in CALLBACK_STATES {
            let count = stock.callbacks.get(state).copied().unwrap_or(0);
            self.endpoints.with([state]).set(number(count));
        }
        let held = hold::store::standing(&self.database).await?.is_some();
        self.held.set(f64::from(u8::from(held)));
        let vitals = self.database.vitals(&self.clock).await?;
        self.skew.set(vitals.clock_skew);
        self.oldest_transaction
            .set(vitals.oldest_transaction.as_secs_f64());
        for (table, rows) in vitals.dead_rows {
            self.dead_rows.with([&table]).set(number(rows));
        }
        let oldest = ages::oldest(&self.database).await?;
        for (store, age) in [("apple", oldest.apple), ("google", oldest.google)] {
            let age = age.map_or(0.0, |age| age.as_secs_f64());
            self.ages.with([store]).set(age);
        }
        self.audit
            .set(number(crate::audit::store::last_seq(&self.database).await?));
        for standing in jobs::standings(&self.database).await? {
            self.runs.show(&standing);
        }
        Ok(())
    }
}

impl Runs {
    /// What alerts look at is there from the beginning.
    fn new(keyring: &Arc<Keyring>, registry: &Registry) -> Self {
        let runs = Self {
            keyring: keyring.clone(),
            sealed: registry.gauges(
                "attesto_sealed_values",
                "Secrets in the database, by the id of the encryption key that sealed them.",
                ["key_id"],
            ),
            remaining: registry.gauge(
                "attesto_reencrypt_remaining",
                "Secrets that are sealed with another key than the one this process seals with.",
            ),
            due: registry.gauges(
                "attesto_credentials_due",
                "Keys of active tenants that are older than they should be, or that nobody uses.",
                ["credential"],
            ),
            drift: registry.gauges(
                "attesto_drift_findings",
                "What is no longer as it was set up, as the job drift counted it.",
                ["kind"],
            ),
            probed: registry.gauges(
                "attesto_callbacks_probed",
                "Callbacks by what was found when they were last connected to without sending anything.",
                ["result"],
            ),
            table_rows: registry.gauges(
                "attesto_db_table_rows",
                "Rows of a table, as far as Postgres' statistics know.",
                ["table"],
            ),
            table_bytes: registry.gauges(
                "attesto_db_table_bytes",
                "What a table takes on disk, with its indexes.",
                ["table"],
            ),
            done: registry.gauges(
                "attesto_job_last_success_timestamp_seconds",
                "When the last run of a job began that did all there was to do, in seconds since the Unix epoch; 0: none \
                 ever did.",
                ["job"],
            ),
            failing: registry.gauges(
                "attesto_job_failing",
                "Whether the last run of a job failed.",
                ["job"],
            ),
        };
        for job in jobs::NAMES {
            runs.done.with([job]);
            runs.failing.with([job]);
        }
        for kind in expiry::Kind::ALL {
            runs.due.with([kind.as_str()]);
        }
        for kind in drift::Kind::ALL {
            runs.drift.with([kind.as_str()]);
        }
        for result in RESULTS {
            runs.probed.with([result]);
        }
        for id in keyring.ids() {
            runs.sealed.with([&id.to_string()]);
        }
        let keys = keyring.clone();
        registry.looked_up(
            "attesto_sealed_values_refused_total",
            "Sealed values that did not open: their key is not configured, they were changed or moved, or are none.",
            move |tell| {
                for (class, count) in keys.refused() {
                    tell(&format!("class=\"{class}\""), as_number(count));
                }
            },
            Kind::Counter,
        );
        runs
    }

    fn show(&self, standing: &Standing) {
        let job = standing.job.as_str();
        if let Some(done) = standing.done_at {
            self.done.with([job]).set(number(done.seconds()));
        }
        let failing = f64::from(u8::from(standing.is_failing));
        self.failing.with([job]).set(failing);
        let Some(told) = &standing.told else {
            return;
        };
        match job {
            "statistics" => {
                self.show_keys(&told["sealed"]);
                show(&self.due, &told["due"]);
                for (table, size) in members(&told["tables"]) {
                    self.table_rows.with([table]).set(counted(&size["rows"]));
                    self.table_bytes.with([table]).set(counted(&size["bytes"]));
                }
            }
            "drift" => show(&self.drift, &told["findings"]),
            "probe" => show(&self.probed, &told["callbacks"]),
            _ => {}
        }
    }

    fn show_keys(&self, sealed: &Value) {
        let ids = self.keyring.ids().map(|id| id.to_string());
        let mut by_key: BTreeMap<String, u64> = ids.map(|id| (id, 0)).collect();
        for (id, values) in members(sealed) {
            by_key.insert(id.clone(), values.as_u64().unwrap_or(0));
        }
        let sealing = self.keyring.sealing_id().to_string();
        let mut others = 0;
        for (id, values) in &by_key {
            self.sealed.with([id]).set(as_number(*values));
            if *id != sealing {
                others += values;
            }
        }
        self.remaining.set(as_number(others));
    }
}

/// What a run told, a count for each name. The names are ours.
fn show(gauges: &Labelled<1, Gauge>, told: &Value) {
    for (name, count) in members(told) {
        gauges.with([name]).set(counted(count));
    }
}

fn members(told: &Value) -> impl Iterator<Item = (&String, &Value)> {
    told.as_object().into_iter().flatten()
}

fn counted(count: &Value) -> f64 {
    as_number(count.as_u64().unwrap_or(0))
}

fn number(count: i64) -> f64 {
    as_number(u64::try_from(count).unwrap_or(0))
}
