//! The group `deliveries`: waiting and failed deliveries, and callbacks that cannot be reached.

use std::time::Duration;

use super::check::CountWithNames;
use super::check_result::{CheckResult, MAX_NAMED, format_names, pluralize_count};
use super::expiry;
use super::runner::DatabaseContext;
use super::store;
use crate::db::Error;
use crate::deliveries::hold::store::DeliveryHold;
use crate::deliveries::probe::store::{self as probes, AffectedCallbacks};
use crate::deliveries::queue_stats::QueueStats;
use crate::events::unresolved::store::UnresolvedStats;

/// In a healthy installation, no delivery that could be sent waits longer.
const LAG_WARNING_THRESHOLD: Duration = Duration::from_mins(1);
/// If a delivery that could be sent waits longer, no process delivers.
const LAG_FAILURE_THRESHOLD: Duration = Duration::from_mins(15);

/// A callback that fails for longer has more than a short fault.
pub(super) const MAX_FAILING_TIME: Duration = Duration::from_mins(15);

/// A store that answers tells a state within a minute.
const MAX_STATE_WAIT: Duration = Duration::from_hours(1);

pub(super) const CLIENT_CERTIFICATE_ADVICE: &str = "Ask the receiver's operator for a new one, and set it: `attesto webhook set-config <tenant> --client-certificate-path … --client-key-path …`.";

impl From<AffectedCallbacks> for CountWithNames {
    /// The names have the form `tenant_a (dns)`, or `tenant_a callback 2 (dns)`.
    fn from(found: AffectedCallbacks) -> Self {
        let names = found.first.iter();
        Self {
            count: found.count,
            names: names
                .map(|callback| format!("{} ({})", callback.name, callback.what))
                .collect(),
        }
    }
}

pub(super) fn judge_queue(stats: &QueueStats) -> [CheckResult; 2] {
    let oldest = stats.oldest_due;
    let message = format!(
        "{} due; of those that could be sent, the oldest has been waiting for {} s.",
        pluralize_count(stats.due, "delivery is", "deliveries are"),
        oldest.as_secs()
    );
    let advice = "Does any process deliver (WEBHOOK_DISPATCHER_DISABLED)? Are all slots taken by slow callbacks (WEBHOOK_DISPATCH_CONCURRENCY)?";
    let lag = if oldest > LAG_FAILURE_THRESHOLD {
        CheckResult::fail("deliveries.lag", message, advice)
    } else if oldest > LAG_WARNING_THRESHOLD {
        CheckResult::warn("deliveries.lag", message, advice)
    } else {
        CheckResult::ok("deliveries.lag", message)
    };
    let parked = if stats.parked > 0 {
        CheckResult::warn(
            "deliveries.parked",
            format!(
                "{} parked, because several processes crashed while sending.",
                pluralize_count(stats.parked, "delivery is", "deliveries are")
            ),
            "Find the cause of the crashes first; `attesto webhook redeliver <event>` sends an event again.",
        )
    } else {
        CheckResult::ok("deliveries.parked", "No delivery is parked.")
    };
    [lag, parked]
}

pub(super) fn judge_hold(hold: &DeliveryHold) -> CheckResult {
    CheckResult::warn(
        "deliveries.hold",
        format!(
            "Nothing is sent: deliveries have been held since {}.",
            hold.held_at
        ),
        "Once the system is as it should be: `attesto deliveries release`.",
    )
}

/// The count is that of deliveries; the names are those of callbacks.
pub(super) fn judge_recent_failures(failures: &CountWithNames) -> CheckResult {
    const NAME: &str = "deliveries.failed";
    if failures.count == 0 {
        return CheckResult::ok(
            NAME,
            "No delivery of an event of the last 24 hours failed permanently.",
        );
    }
    CheckResult::warn(
        NAME,
        format!(
            "{} of events of the last 24 hours failed permanently, for {}.",
            pluralize_count(failures.count, "delivery", "deliveries"),
            failures.names.join(", ")
        ),
        "When the callbacks work again: `attesto webhook redeliver --tenant <tenant> --status failed --since 24h`.",
    )
}

pub(super) fn judge_unresolved_states(stats: UnresolvedStats) -> CheckResult {
    const NAME: &str = "deliveries.states";
    let count = stats.apple + stats.google;
    if count == 0 {
        return CheckResult::ok(NAME, "No event waits for the state of its purchase.");
    }
    let message = format!(
        "{} for the state of the purchase ({} of Apple, {} of Google), the oldest for {} min.",
        pluralize_count(count, "event waits", "events wait"),
        stats.apple,
        stats.google,
        stats.oldest.as_secs() / 60
    );
    if stats.oldest > MAX_STATE_WAIT {
        CheckResult::warn(
            NAME,
            message,
            "The log says why: `purchase_state_not_read` names the store's answer. Is JOBS_DISABLED set in every process? Of a replaced purchase the store has not reported the new one.",
        )
    } else {
        CheckResult::ok(NAME, message)
    }
}

/// `None` if the settings cannot be read.
pub(super) async fn list_expiring_certificates(
    context: &DatabaseContext,
) -> Result<Option<CountWithNames>, Error> {
    let Some(thresholds) = &context.thresholds else {
        return Ok(None);
    };
    let cutoff = expiry::callback_expiry_cutoff(context.clock.now(), thresholds);
    let found = probes::list_expiring_certificates(&context.database, cutoff, MAX_NAMED).await?;
    Ok(Some(found.into()))
}

/// `None` if the settings cannot be read.
pub(super) async fn list_expiring_client_certificates(
    context: &DatabaseContext,
) -> Result<Option<CountWithNames>, Error> {
    let Some(thresholds) = &context.thresholds else {
        return Ok(None);
    };
    let cutoff = expiry::callback_expiry_cutoff(context.clock.now(), thresholds);
    let found = store::list_expiring_client_certificates(&context.database, cutoff, MAX_NAMED);
    Ok(Some(found.await?.into()))
}

pub(super) fn judge_client_certificates(tenants: &CountWithNames) -> CheckResult {
    const NAME: &str = "deliveries.client_certificates";
    if tenants.count == 0 {
        return CheckResult::ok(NAME, "No client certificate for a callback expires soon.");
    }
    CheckResult::warn(
        NAME,
        format!(
            "{}: {}.",
            pluralize_count(
                tenants.count,
                "client certificate for a callback expires soon",
                "client certificates for callbacks expire soon"
            ),
            format_names(&tenants.names, tenants.count)
        ),
        CLIENT_CERTIFICATE_ADVICE,
    )
}

pub(super) fn judge_callback_certificates(tenants: &CountWithNames) -> CheckResult {
    const NAME: &str = "deliveries.certificates";
    if tenants.count == 0 {
        return CheckResult::ok(NAME, "No callback's certificate is known to expire soon.");
    }
    CheckResult::warn(
        NAME,
        format!(
            "{}: {}.",
            pluralize_count(
                tenants.count,
                "callback's certificate expires soon",
                "callbacks' certificates expire soon"
            ),
            format_names(&tenants.names, tenants.count)
        ),
        "Inform these tenants: once it has expired, nothing is delivered to them.",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::CheckStatus;

    #[test]
    fn a_delay_is_a_warning_and_after_15_minutes_a_failure() {
        let judged = |seconds, parked| {
            let stats = QueueStats {
                oldest_due: Duration::from_secs(seconds),
                parked,
                ..QueueStats::default()
            };
            let found = judge_queue(&stats);
            (found[0].status, found[1].status)
        };
        assert_eq!(judged(0, 0), (CheckStatus::Ok, CheckStatus::Ok));
        assert_eq!(judged(61, 1), (CheckStatus::Warn, CheckStatus::Warn));
        assert_eq!(judged(901, 0), (CheckStatus::Fail, CheckStatus::Ok));
    }

    #[test]
    fn a_state_that_waits_for_more_than_an_hour_is_a_warning() {
        let judged = |google, seconds| {
            let stats = UnresolvedStats {
                apple: 0,
                google,
                oldest: Duration::from_secs(seconds),
            };
            judge_unresolved_states(stats).status
        };
        assert_eq!(judged(0, 0), CheckStatus::Ok);
        assert_eq!(judged(1, 3600), CheckStatus::Ok);
        assert_eq!(judged(1, 3601), CheckStatus::Warn);
    }
}
