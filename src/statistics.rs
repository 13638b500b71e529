//! Takes stock every few seconds, for metrics: what is in the database and cannot be counted as it happens. A scrape
//! shows what was found last and asks nothing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::credentials::sealed::CANARY;
use crate::credentials::{ages, reseal};
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error, error_class};
use crate::deliveries::hold;
use crate::deliveries::stock::{CALLBACK_STATES, Stock};
use crate::metrics::registry::{Kind, as_number};
use crate::metrics::{Gauge, Labelled, Registry, process};

/// How often.
pub const EVERY: Duration = Duration::from_secs(15);
/// How often it is looked which keys seal what, in looks: that reads every secret's first byte.
const SEALED_EVERY: u64 = 20;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The numbers that are looked for.
pub struct Statistics {
    database: Database,
    keyring: Arc<Keyring>,
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
    sealed: Labelled<1, Gauge>,
    remaining: Gauge,
}

impl Statistics {
    /// Adds them to `registry`, and what is known without asking: this release, the process, the pool.
    pub fn new(
        database: &Database,
        keyring: &Arc<Keyring>,
        clock: &Clock,
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
        Self {
            database: database.clone(),
            keyring: keyring.clone(),
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
                "How long the oldest transaction has been open that keeps dead rows from being cleaned up.",
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
            sealed: registry.gauges(
                "attesto_sealed_values",
                "Secrets in the database, by the id of the encryption key that sealed them.",
                ["key_id"],
            ),
            remaining: registry.gauge(
                "attesto_reencrypt_remaining",
                "Secrets that are sealed with another key than the one this process seals with.",
            ),
        }
    }

    /// Takes stock now and every few seconds, until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let mut looks: u64 = 0;
        let looking = async {
            loop {
                self.look(looks.is_multiple_of(SEALED_EVERY)).await;
                looks += 1;
                sleep(EVERY).await;
            }
        };
        stop.run_until_cancelled(looking).await;
    }

    /// Takes stock once, and of the secrets too if `sealed`.
    pub async fn look(&self, sealed: bool) {
        let found = timeout(PATIENCE, self.found(sealed)).await;
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

    async fn found(&self, sealed: bool) -> Result<(), Error> {
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
        if sealed {
            self.look_at_keys().await?;
        }
        Ok(())
    }

    async fn look_at_keys(&self) -> Result<(), Error> {
        let mut by_key: BTreeMap<u8, u64> = self.keyring.ids().map(|id| (id, 0)).collect();
        for holding in reseal::holdings(&self.database).await? {
            if holding.column != CANARY {
                *by_key.entry(holding.key_id.unwrap_or(0)).or_default() += holding.rows;
            }
        }
        for (id, values) in &by_key {
            self.sealed.with([&id.to_string()]).set(as_number(*values));
        }
        let sealing = self.keyring.sealing_id();
        let others = by_key.iter().filter(|(id, _)| **id != sealing);
        self.remaining
            .set(as_number(others.map(|(_, values)| values).sum()));
        Ok(())
    }
}

fn number(count: i64) -> f64 {
    as_number(u64::try_from(count).unwrap_or(0))
}
