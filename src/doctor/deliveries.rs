//! Deliveries: what waits, what failed, and which callbacks are closed.

use std::time::Duration;

use super::finding::unanswered;
use super::finding::{Check, counted, named};
use super::store::{self, Few};
use super::tenants::few_of;
use crate::clock::Clock;
use crate::config::settings::Cadences;
use crate::db::Database;
use crate::deliveries::hold;
use crate::deliveries::probe;
use crate::deliveries::probe::store::Whose;
use crate::deliveries::stock::Stock;
use crate::watch::drift::Kind;
use crate::watch::expiry;

/// Nothing that could be sent waits longer than this when all is well.
const LAG: Duration = Duration::from_mins(1);
/// From here on nobody delivers.
const STANDSTILL: Duration = Duration::from_mins(15);

/// So many are named.
const NAMED: i64 = 5;

/// Looks.
pub async fn look(database: &Database, clock: &Clock, cadences: Option<&Cadences>) -> Check {
    let mut checks = Vec::new();
    match Stock::take(database, clock).await {
        Ok(stock) => checks.extend(stock_checks(&stock)),
        Err(error) => checks.push(unanswered("deliveries.lag", &error)),
    }
    match hold::store::standing(database).await {
        Ok(None) => {}
        Ok(Some(hold)) => checks.push(Check::warn(
            "deliveries.hold",
            format!(
                "Nothing is sent: deliveries are held since {}.",
                hold.held_at
            ),
            "When the system is what it should be: `attesto deliveries release`.",
        )),
        Err(error) => checks.push(unanswered("deliveries.hold", &error)),
    }
    checks.push(match store::abandoned(database, clock.lead()).await {
        Ok(0) => Check::ok("deliveries.leases", "No delivery was left behind."),
        Ok(count) => Check::warn(
            "deliveries.leases",
            format!(
                "{} behind by a process that is gone, and nobody took over.",
                counted(count, "delivery was left", "deliveries were left")
            ),
            "Start a process that delivers (WEBHOOK_DISPATCHER_DISABLED must not be set everywhere).",
        ),
        Err(error) => unanswered("deliveries.leases", &error),
    });
    checks.push(match few_of(database, clock, Kind::CallbackClosed).await {
        Ok(Few { count: 0, .. }) => Check::ok("deliveries.callbacks", "No callback is closed."),
        Ok(Few { count, names }) => Check::warn(
            "deliveries.callbacks",
            format!(
                "{} because of failures, of {}.",
                counted(count, "callback is closed", "callbacks are closed"),
                named(&names, count)
            ),
            "Tell them; `attesto webhook get` shows since when, `attesto webhook ping` tries it now.",
        ),
        Err(error) => unanswered("deliveries.callbacks", &error),
    });
    checks.push(match store::failed_lately(database, clock.lead()).await {
        Ok(Few { count: 0, .. }) => {
            Check::ok("deliveries.failed", "No delivery of the last day's events failed for good.")
        }
        Ok(Few { count, names }) => Check::warn(
            "deliveries.failed",
            format!(
                "{} of the last day's events failed for good, of {}.",
                counted(count, "delivery", "deliveries"),
                names.join(", ")
            ),
            "When their callback is well again: `attesto webhook redeliver --tenant <tenant> --status failed --since 24h`.",
        ),
        Err(error) => unanswered("deliveries.failed", &error),
    });
    checks.extend(probed(database, clock, cadences).await);
    Check::group("deliveries", "Deliveries", checks)
}

/// What the last looks at callbacks found.
async fn probed(database: &Database, clock: &Clock, cadences: Option<&Cadences>) -> Vec<Check> {
    let reachable = match probe::store::unreachable(database, NAMED).await {
        Ok(Whose { count: 0, .. }) => Check::ok(
            "deliveries.reachable",
            "No callback is known to be out of reach.",
        ),
        Ok(found) => Check::warn(
            "deliveries.reachable",
            format!(
                "{} when last looked at: {}.",
                counted(
                    found.count,
                    "callback could not be connected to",
                    "callbacks could not be connected to"
                ),
                of_whom(&found)
            ),
            "`attesto webhook get <tenant>` says why; `attesto jobs run probe` looks again, sending nothing.",
        ),
        Err(error) => unanswered("deliveries.reachable", &error),
    };
    let mut checks = vec![reachable];
    if let Some(cadences) = cadences {
        let before = expiry::callbacks_warned_before(clock.now(), cadences);
        checks.push(
            match probe::store::certificates_ending(database, before, NAMED).await {
                Ok(Whose { count: 0, .. }) => Check::ok(
                    "deliveries.certificates",
                    "No callback's certificate is known to end soon.",
                ),
                Ok(found) => Check::warn(
                    "deliveries.certificates",
                    format!(
                        "{}: {}.",
                        counted(
                            found.count,
                            "callback's certificate ends soon",
                            "callbacks' certificates end soon"
                        ),
                        of_whom(&found)
                    ),
                    "Tell them: from that day on nothing is delivered there.",
                ),
                Err(error) => unanswered("deliveries.certificates", &error),
            },
        );
    }
    checks
}

/// `tenant_a (dns), tenant_b (tls) and 3 more`.
fn of_whom(found: &Whose) -> String {
    let first = found.first.iter();
    let names: Vec<String> = first
        .map(|(tenant, what)| format!("{tenant} ({what})"))
        .collect();
    named(&names, found.count)
}

fn stock_checks(stock: &Stock) -> Vec<Check> {
    let oldest = stock.oldest_due;
    let told = format!(
        "{} due; the one that could be sent and waits longest waits for {} s.",
        counted(stock.due, "delivery is", "deliveries are"),
        oldest.as_secs()
    );
    let advice = "Does any process deliver (WEBHOOK_DISPATCHER_DISABLED)? Are all slots taken by slow callbacks (WEBHOOK_DISPATCH_CONCURRENCY)?";
    let lag = if oldest > STANDSTILL {
        Check::fail("deliveries.lag", told, advice)
    } else if oldest > LAG {
        Check::warn("deliveries.lag", told, advice)
    } else {
        Check::ok("deliveries.lag", told)
    };
    let parked = if stock.parked > 0 {
        Check::warn(
            "deliveries.parked",
            format!(
                "{} set aside, because process after process was lost over it.",
                counted(stock.parked, "delivery is", "deliveries are")
            ),
            "Look at the crashes first; `attesto webhook redeliver <event>` tries one anew.",
        )
    } else {
        Check::ok("deliveries.parked", "No delivery waits for a person.")
    };
    vec![lag, parked]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Status;

    #[test]
    fn a_lag_is_a_warning_and_a_standstill_is_none() {
        let judged = |seconds, parked| {
            let stock = Stock {
                oldest_due: Duration::from_secs(seconds),
                parked,
                ..Stock::default()
            };
            let found = stock_checks(&stock);
            (found[0].status, found[1].status)
        };
        assert_eq!(judged(0, 0), (Status::Ok, Status::Ok));
        assert_eq!(judged(61, 1), (Status::Warn, Status::Warn));
        assert_eq!(judged(901, 0), (Status::Fail, Status::Ok));
    }
}
