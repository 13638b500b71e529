//! All checks, in the order of what they need.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::finding::{Check, Status};
use super::{
    database, deliveries, drift, files, keys, listener, logs, processes, settings, stores, tenants,
};
use crate::clock::Clock;
use crate::config::settings::Cadences;
use crate::config::{Raw, Stores};
use crate::crypto::keyring::Keyring;
use crate::db::Database;

/// How long one group of checks may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is examined.
pub struct Patient<'a> {
    /// The settings as they were given.
    pub raw: Raw<'a>,
    /// The names of all variables there are.
    pub variables: Vec<String>,
    /// The database, or why it is not even known which.
    pub database: Result<Database, String>,
    /// The encryption keys. `None`: there are none, or they cannot be read, which is a finding of the settings.
    pub keyring: Option<Arc<Keyring>>,
    /// What time it is.
    pub clock: Clock,
    /// Whether the stores may be called.
    pub online: bool,
}

/// Looks at everything.
pub async fn examine(patient: &Patient<'_>) -> Check {
    let raw = &patient.raw;
    let mut checks = vec![settings::look(raw, &patient.variables), files::look(raw)];
    checks.extend(listener::look(raw, patient.clock.now()));
    let database = match &patient.database {
        Ok(database) => {
            let found = within("database", database::look(database, &patient.clock).boxed()).await;
            let usable = found.status != Status::Fail || is_prepared(&found);
            checks.push(found);
            if usable {
                Ok(database)
            } else {
                Err("because of the database")
            }
        }
        Err(problem) => {
            checks.push(Check::fail(
                "database",
                problem.clone(),
                "Set DATABASE_URL as for `attesto serve`.",
            ));
            Err("because of the database")
        }
    };
    match database {
        Ok(database) => {
            let keyring = patient.keyring.as_ref();
            let clock = &patient.clock;
            checks.push(within("keys", keys::look(database, keyring).boxed()).await);
            let cadences = Cadences::read(raw).ok();
            let cadences = cadences.as_ref();
            let look = processes::look(database, clock, cadences);
            checks.push(within("processes", look.boxed()).await);
            let look = tenants::look(database, keyring, cadences, clock);
            checks.push(within("tenants", look.boxed()).await);
            let look = deliveries::look(database, clock, cadences);
            checks.push(within("deliveries", look.boxed()).await);
            checks.push(within("drift", drift::look(database, clock).boxed()).await);
            checks.push(within("logs", logs::look(database).boxed()).await);
        }
        Err(because) => {
            for name in [
                "keys",
                "processes",
                "tenants",
                "deliveries",
                "drift",
                "logs",
            ] {
                checks.push(Check::skipped(
                    name,
                    format!("{name}: not looked at {because}"),
                ));
            }
        }
    }
    checks.push(match Stores::read(raw) {
        Ok(found) => {
            within(
                "stores",
                stores::look(&found, patient.online, &patient.clock).boxed(),
            )
            .await
        }
        Err(_) => Check::skipped("stores", "stores: not looked at because of the settings"),
    });
    Check::group(
        "doctor",
        format!("Attesto {} on {}", crate::VERSION, crate::replicas::host()),
        checks,
    )
}

/// Whether the database answers and has this release's tables, whatever else is wrong with it.
fn is_prepared(found: &Check) -> bool {
    let well = |name| {
        let mut checks = found.checks.iter();
        checks.any(|check| check.name == name && check.status < Status::Fail)
    };
    well("database.reachable") && well("database.migrations")
}

async fn within(name: &'static str, look: BoxFuture<'_, Check>) -> Check {
    timeout(PATIENCE, look).await.unwrap_or_else(|_| {
        Check::fail(
            name,
            format!("{name}: no answer within {} s", PATIENCE.as_secs()),
            "Is the database overloaded, or locked? `select * from pg_stat_activity` shows what it does.",
        )
    })
}
