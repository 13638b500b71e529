//! Deliveries: what waits, what failed, and which callbacks are closed.

use std::time::Duration;

use super::check_result::query_failed;
use super::check_result::{CheckResult, format_names, pluralize_count};
use super::store::{self, CountWithNames};
use super::tenants::find_tenants_with_drift;
use crate::base::clock::Clock;
use crate::config::settings::ExpiryThresholds;
use crate::db::Database;
use crate::deliveries::hold;
use crate::deliveries::probe;
use crate::deliveries::probe::store::AffectedTenants;
use crate::deliveries::queue_stats::QueueStats;
use crate::watch::drift::DriftKind;
use crate::watch::expiry;

/// Nothing that could be sent waits longer than this when all is well.
const LAG_WARNING_THRESHOLD: Duration = Duration::from_mins(1);
/// From here on nobody delivers.
const LAG_FAILURE_THRESHOLD: Duration = Duration::from_mins(15);

/// So many are named.
const MAX_NAMED: i64 = 5;

/// Looks.
pub async fn check_deliveries(
    database: &Database,
    clock: &Clock,
    cadences: Option<&ExpiryThresholds>,
) -> CheckResult {
    let mut checks = Vec::new();
    match QueueStats::load(database, clock).await {
        Ok(stock) => checks.extend(check_queue_stats(&stock)),
        Err(error) => checks.push(query_failed("deliveries.lag", &error)),
    }
    match hold::store::load_active_hold(database).await {
        Ok(None) => {}
        Ok(Some(hold)) => checks.push(CheckResult::warn(
            "deliveries.hold",
            format!(
                "Nothing is sent: deliveries are held since {}.",
                hold.held_at
            ),
            "When the system is what it should be: `attesto deliveries release`.",
        )),
        Err(error) => checks.push(query_failed("deliveries.hold", &error)),
    }
    checks.push(match store::count_expired_leases(database, clock.lead()).await {
        Ok(0) => CheckResult::ok("deliveries.leases", "No delivery was left behind."),
        Ok(count) => CheckResult::warn(
            "deliveries.leases",
            format!(
                "{} behind by a process that is gone, and nobody took over.",
                pluralize_count(count, "delivery was left", "deliveries were left")
            ),
            "Start a process that delivers (WEBHOOK_DISPATCHER_DISABLED must not be set everywhere).",
        ),
        Err(error) => query_failed("deliveries.leases", &error),
    });
    checks.push(match find_tenants_with_drift(database, clock, DriftKind::CallbackClosed).await {
        Ok(CountWithNames { count: 0, .. }) => CheckResult::ok("deliveries.callbacks", "No callback is closed."),
        Ok(CountWithNames { count, names }) => CheckResult::warn(
            "deliveries.callbacks",
            format!(
                "{} because of failures, of {}.",
                pluralize_count(count, "callback is closed", "callbacks are closed"),
                format_names(&names, count)
            ),
            "Tell them; `attesto webhook get` shows since when, `attesto webhook ping` tries it now.",
        ),
        Err(error) => query_failed("deliveries.callbacks", &error),
    });
    checks.push(match store::list_recent_failures(database, clock.lead()).await {
        Ok(CountWithNames { count: 0, .. }) => {
            CheckResult::ok("deliveries.failed", "No delivery of the last day's events failed for good.")
        }
        Ok(CountWithNames { count, names }) => CheckResult::warn(
            "deliveries.failed",
            format!(
                "{} of the last day's events failed for good, of {}.",
                pluralize_count(count, "delivery", "deliveries"),
                names.join(", ")
            ),
            "When their callback is well again: `attesto webhook redeliver --tenant <tenant> --status failed --since 24h`.",
        ),
        Err(error) => query_failed("deliveries.failed", &error),
    });
    checks.extend(check_probed_callbacks(database, clock, cadences).await);
    CheckResult::group("deliveries", "Deliveries", checks)
}

/// What the last looks at callbacks found.
async fn check_probed_callbacks(
    database: &Database,
    clock: &Clock,
    cadences: Option<&ExpiryThresholds>,
) -> Vec<CheckResult> {
    let reachable = match probe::store::list_unreachable_callbacks(database, MAX_NAMED).await {
        Ok(AffectedTenants { count: 0, .. }) => CheckResult::ok(
            "deliveries.reachable",
            "No callback is known to be out of reach.",
        ),
        Ok(found) => CheckResult::warn(
            "deliveries.reachable",
            format!(
                "{} when last looked at: {}.",
                pluralize_count(
                    found.count,
                    "callback could not be connected to",
                    "callbacks could not be connected to"
                ),
                format_tenant_reasons(&found)
            ),
            "`attesto webhook get <tenant>` says why; `attesto jobs run probe` looks again, sending nothing.",
        ),
        Err(error) => query_failed("deliveries.reachable", &error),
    };
    let mut checks = vec![reachable];
    if let Some(cadences) = cadences {
        let before = expiry::callback_expiry_cutoff(clock.now(), cadences);
        checks.push(
            match probe::store::list_expiring_certificates(database, before, MAX_NAMED).await {
                Ok(AffectedTenants { count: 0, .. }) => CheckResult::ok(
                    "deliveries.certificates",
                    "No callback's certificate is known to end soon.",
                ),
                Ok(found) => CheckResult::warn(
                    "deliveries.certificates",
                    format!(
                        "{}: {}.",
                        pluralize_count(
                            found.count,
                            "callback's certificate ends soon",
                            "callbacks' certificates end soon"
                        ),
                        format_tenant_reasons(&found)
                    ),
                    "Tell them: from that day on nothing is delivered there.",
                ),
                Err(error) => query_failed("deliveries.certificates", &error),
            },
        );
    }
    checks
}

/// `tenant_a (dns), tenant_b (tls) and 3 more`.
fn format_tenant_reasons(found: &AffectedTenants) -> String {
    let first = found.first.iter();
    let names: Vec<String> = first
        .map(|(tenant, what)| format!("{tenant} ({what})"))
        .collect();
    format_names(&names, found.count)
}

fn check_queue_stats(stock: &QueueStats) -> Vec<CheckResult> {
    let oldest = stock.oldest_due;
    let told = format!(
        "{} due; the one that could be sent and waits longest waits for {} s.",
        pluralize_count(stock.due, "delivery is", "deliveries are"),
        oldest.as_secs()
    );
    let advice = "Does any process deliver (WEBHOOK_DISPATCHER_DISABLED)? Are all slots taken by slow callbacks (WEBHOOK_DISPATCH_CONCURRENCY)?";
    let lag = if oldest > LAG_FAILURE_THRESHOLD {
        CheckResult::fail("deliveries.lag", told, advice)
    } else if oldest > LAG_WARNING_THRESHOLD {
        CheckResult::warn("deliveries.lag", told, advice)
    } else {
        CheckResult::ok("deliveries.lag", told)
    };
    let parked = if stock.parked > 0 {
        CheckResult::warn(
            "deliveries.parked",
            format!(
                "{} set aside, because process after process was lost over it.",
                pluralize_count(stock.parked, "delivery is", "deliveries are")
            ),
            "Look at the crashes first; `attesto webhook redeliver <event>` tries one anew.",
        )
    } else {
        CheckResult::ok("deliveries.parked", "No delivery waits for a person.")
    };
    vec![lag, parked]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::CheckStatus;

    #[test]
    fn a_lag_is_a_warning_and_a_standstill_is_none() {
        let judged = |seconds, parked| {
            let stock = QueueStats {
                oldest_due: Duration::from_secs(seconds),
                parked,
                ..QueueStats::default()
            };
            let found = check_queue_stats(&stock);
            (found[0].status, found[1].status)
        };
        assert_eq!(judged(0, 0), (CheckStatus::Ok, CheckStatus::Ok));
        assert_eq!(judged(61, 1), (CheckStatus::Warn, CheckStatus::Warn));
        assert_eq!(judged(901, 0), (CheckStatus::Fail, CheckStatus::Ok));
    }
}
