//! Runs the list of checks for `attesto doctor`.

use std::sync::Arc;
use std::time::Duration;

use strum::VariantArray as _;
use tokio::time::timeout;

use super::check::{Check, CheckGroup, CheckQuery, Judged};
use super::check_result::{CheckResult, CheckStatus};
use super::list::all_checks;
use crate::base::clock::Clock;
use crate::config::RawSettings;
use crate::config::groups::ExpiryThresholds;
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::jobs::JobContext;

/// The time limit for all checks of one group together.
const CHECK_GROUP_TIMEOUT: Duration = Duration::from_secs(20);

/// The input of `attesto doctor`.
pub struct CheckContext<'a> {
    /// The settings, not parsed.
    pub raw: RawSettings<'a>,
    /// The names of all environment variables.
    pub variable_names: Vec<String>,
    /// The database, or why `DATABASE_URL` cannot be used.
    pub database: Result<Database, String>,
    /// The encryption keys. `None` if there are none or they cannot be read, which the check of the settings reports.
    pub keyring: Option<Arc<Keyring>>,
    /// The clock that ages are computed with.
    pub clock: Clock,
    /// Whether the stores may be called.
    pub is_online: bool,
}

/// The input of checks that read the database.
pub(super) struct DatabaseContext {
    pub(super) database: Database,
    /// `None` if there are no keys or they cannot be read.
    pub(super) keyring: Option<Arc<Keyring>>,
    pub(super) clock: Clock,
    /// `None` if the settings cannot be read.
    pub(super) thresholds: Option<ExpiryThresholds>,
}

impl DatabaseContext {
    pub(super) fn from_job(job: &JobContext) -> Self {
        Self {
            database: job.database.clone(),
            keyring: job.keyring.clone(),
            clock: job.clock.clone(),
            thresholds: Some(job.cadences),
        }
    }
}

/// Runs every check, group by group. Never fails: a check that cannot run gives a failed or skipped result.
pub async fn run_checks(context: &CheckContext<'_>) -> CheckResult {
    let checks = all_checks();
    let mut database = match &context.database {
        Ok(database) => Some(DatabaseContext {
            database: database.clone(),
            keyring: context.keyring.clone(),
            clock: context.clock.clone(),
            thresholds: ExpiryThresholds::from_raw(&context.raw).ok(),
        }),
        Err(_) => None,
    };
    let mut results = Vec::new();
    for &group in CheckGroup::VARIANTS {
        let (name, _) = group.name_and_title();
        match (&context.database, &database) {
            (Err(problem), _) if group == CheckGroup::Database => results.push(CheckResult::fail(
                name,
                problem.clone(),
                "Set DATABASE_URL as for `attesto serve`.",
            )),
            (_, None) if group.needs_database() => results.push(CheckResult::skipped(
                name,
                format!("{name}: skipped because of the database"),
            )),
            _ => {
                let found = run_group(group, &checks, context, database.as_ref()).await;
                if group == CheckGroup::Database && !found.as_ref().is_some_and(is_database_usable)
                {
                    database = None;
                }
                results.extend(found);
            }
        }
    }
    let host = crate::replicas::host_name();
    CheckResult::group(
        "doctor",
        format!("Attesto {} on {host}", crate::VERSION),
        results,
    )
}

/// `None` if the group has no results.
async fn run_group(
    group: CheckGroup,
    checks: &[Check],
    context: &CheckContext<'_>,
    database: Option<&DatabaseContext>,
) -> Option<CheckResult> {
    let (name, title) = group.name_and_title();
    let running = async {
        let mut results = Vec::new();
        for check in checks.iter().filter(|check| check.group == group) {
            let judged = match (&check.query, database) {
                (CheckQuery::Local(query), _) => query(context).await,
                (_, Some(database)) => check.run(database).await,
                (_, None) => continue,
            };
            match judged {
                Judged::Results(found) => results.extend(found),
                Judged::LastResults(found) => {
                    results.extend(found);
                    break;
                }
                Judged::GroupSkipped(reason) => return Some(CheckResult::skipped(name, reason)),
            }
        }
        (!results.is_empty()).then(|| CheckResult::group(name, title, results))
    };
    timeout(CHECK_GROUP_TIMEOUT, running).await.unwrap_or_else(|_| {
        Some(CheckResult::fail(
            name,
            format!("{name}: no answer within {} s", CHECK_GROUP_TIMEOUT.as_secs()),
            "Is the database overloaded, or locked? `select * from pg_stat_activity` shows what it does.",
        ))
    })
}

/// Whether the database is reachable and has this release's schema. Other failures do not count.
fn is_database_usable(group: &CheckResult) -> bool {
    let has_passed = |name| {
        let mut checks = group.checks.iter();
        checks.any(|check| check.name == name && check.status < CheckStatus::Fail)
    };
    has_passed("database.reachable") && has_passed("database.migrations")
}
