//! All checks, in the order of what they need.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use super::check_result::{CheckResult, CheckStatus};
use super::{
    database, deliveries, drift, files, keys, listener, logs, processes, settings, stores, tenants,
};
use crate::base::clock::Clock;
use crate::config::settings::ExpiryThresholds;
use crate::config::{RawSettings, StoreSettings};
use crate::crypto::keyring::Keyring;
use crate::db::Database;

/// How long one group of checks may take.
const CHECK_GROUP_TIMEOUT: Duration = Duration::from_secs(20);

/// What is examined.
pub struct CheckContext<'a> {
    /// The settings as they were given.
    pub raw: RawSettings<'a>,
    /// The names of all variables there are.
    pub variable_names: Vec<String>,
    /// The database, or why it is not even known which.
    pub database: Result<Database, String>,
    /// The encryption keys. `None`: there are none, or they cannot be read, which is a finding of the settings.
    pub keyring: Option<Arc<Keyring>>,
    /// What time it is.
    pub clock: Clock,
    /// Whether the stores may be called.
    pub is_online: bool,
}

/// Looks at everything.
pub async fn run_checks(patient: &CheckContext<'_>) -> CheckResult {
    let raw = &patient.raw;
    let mut checks = vec![
        settings::check_settings(raw, &patient.variable_names),
        files::check_files(raw),
    ];
    checks.extend(listener::check_listener(raw, patient.clock.now()));
    let database = match &patient.database {
        Ok(database) => {
            let found = run_with_timeout(
                "database",
                database::check_database(database, &patient.clock).boxed(),
            )
            .await;
            let usable = found.status != CheckStatus::Fail || is_database_usable(&found);
            checks.push(found);
            if usable {
                Ok(database)
            } else {
                Err("because of the database")
            }
        }
        Err(problem) => {
            checks.push(CheckResult::fail(
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
            checks.push(
                run_with_timeout(
                    "keys",
                    keys::check_encryption_keys(database, keyring).boxed(),
                )
                .await,
            );
            let cadences = ExpiryThresholds::from_raw(raw).ok();
            let cadences = cadences.as_ref();
            let look = processes::check_processes(database, clock, cadences);
            checks.push(run_with_timeout("processes", look.boxed()).await);
            let look = tenants::check_tenants(database, keyring, cadences, clock);
            checks.push(run_with_timeout("tenants", look.boxed()).await);
            let look = deliveries::check_deliveries(database, clock, cadences);
            checks.push(run_with_timeout("deliveries", look.boxed()).await);
            checks
                .push(run_with_timeout("drift", drift::check_drift(database, clock).boxed()).await);
            checks.push(run_with_timeout("logs", logs::check_logs(database).boxed()).await);
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
                checks.push(CheckResult::skipped(
                    name,
                    format!("{name}: not looked at {because}"),
                ));
            }
        }
    }
    checks.push(match StoreSettings::from_raw(raw) {
        Ok(found) => {
            run_with_timeout(
                "stores",
                stores::check_stores(&found, patient.is_online, &patient.clock).boxed(),
            )
            .await
        }
        Err(_) => CheckResult::skipped("stores", "stores: not looked at because of the settings"),
    });
    CheckResult::group(
        "doctor",
        format!(
            "Attesto {} on {}",
            crate::VERSION,
            crate::replicas::host_name()
        ),
        checks,
    )
}

/// Whether the database answers and has this release's tables, whatever else is wrong with it.
fn is_database_usable(found: &CheckResult) -> bool {
    let well = |name| {
        let mut checks = found.checks.iter();
        checks.any(|check| check.name == name && check.status < CheckStatus::Fail)
    };
    well("database.reachable") && well("database.migrations")
}

async fn run_with_timeout(name: &'static str, look: BoxFuture<'_, CheckResult>) -> CheckResult {
    timeout(CHECK_GROUP_TIMEOUT, look).await.unwrap_or_else(|_| {
        CheckResult::fail(
            name,
            format!("{name}: no answer within {} s", CHECK_GROUP_TIMEOUT.as_secs()),
            "Is the database overloaded, or locked? `select * from pg_stat_activity` shows what it does.",
        )
    })
}
