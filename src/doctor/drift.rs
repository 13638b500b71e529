//! What is no longer as it was set up, as far as no other check says it.

use super::check_result::query_failed;
use super::check_result::{CheckResult, format_names, pluralize_count};
use crate::base::clock::Clock;
use crate::db::Database;
use crate::watch::drift::{self, DriftFinding, DriftKind};

/// Looks.
pub async fn check_drift(database: &Database, clock: &Clock) -> CheckResult {
    // Which keys are here is looked at beside the keys.
    let checks = match drift::find_drift(database, None, clock.lead()).await {
        Ok(found) => found.iter().filter_map(check_drift_finding).collect(),
        Err(error) => vec![query_failed("drift.look", &error)],
    };
    CheckResult::group("drift", "As it was set up", checks)
}

fn check_drift_finding(finding: &DriftFinding) -> Option<CheckResult> {
    let (name, well, what, advice) = match finding.kind {
        // These are said where tenants, deliveries, keys and the database are looked at.
        DriftKind::CredentialsMissing
        | DriftKind::CallbackClosed
        | DriftKind::EncryptionKeysMissing
        | DriftKind::SchemaMismatch => {
            return None;
        }
        DriftKind::CallbackDisabled => (
            "drift.callback_off",
            "No active tenant's callback is switched off.",
            ("callback is switched off", "callbacks are switched off"),
            "Events are stored and not sent. `attesto webhook set-config <tenant> --is-active true` switches it on.",
        ),
        DriftKind::CallbackUnused => (
            "drift.callback_unused",
            "For every callback a delivery is kept, or it is new.",
            (
                "callback has no delivery among what is kept",
                "callbacks have no delivery among what is kept",
            ),
            "All right where nobody bought anything for as long as RETENTION_EVENTS_DAYS says. Else: do the store's notifications lead here? docs/google-notifications.md says how; `attesto webhook ping <tenant>` tries the callback.",
        ),
        DriftKind::AppleUrlMissing => (
            "drift.apple_address",
            "No app is known to lack its address for notifications.",
            (
                "app had no address for notifications when Apple was last asked",
                "apps had no address for notifications when Apple was last asked",
            ),
            "App Store Connect, App Information, App Store Server Notifications: https://<your host>/v1/webhooks/apple/<tenant>; then `attesto apple request-test-notification <tenant>`.",
        ),
        DriftKind::AppleUrlUnreachable => (
            "drift.apple_unreached",
            "No app's address for notifications is known not to work.",
            (
                "app's test notification did not arrive when Apple last sent one",
                "apps' test notifications did not arrive when Apple last sent one",
            ),
            "`attesto apple request-test-notification <tenant>` tries again and says what to mend.",
        ),
        DriftKind::NoAppleEvents => (
            "drift.apple_silent",
            "An event of Apple's is kept for every tenant with a callback, or is not expected yet.",
            (
                "tenant with an Apple key and a callback has nothing of Apple's among what is kept",
                "tenants with an Apple key and a callback have nothing of Apple's among what is kept",
            ),
            "All right where nobody bought anything for as long as RETENTION_EVENTS_DAYS says. `attesto apple request-test-notification <tenant>` says whether App Store Connect has the right address.",
        ),
        DriftKind::GooglePushAccountMissing => (
            "drift.google_pusher",
            "Every tenant with a service account and a callback can be pushed to.",
            (
                "tenant refuses all of Google's notifications: as whom Pub/Sub pushes was not said",
                "tenants refuse all of Google's notifications: as whom Pub/Sub pushes was not said",
            ),
            "`attesto google set-credentials … --pubsub-service-account`, the account of the push subscription; docs/google-notifications.md.",
        ),
        DriftKind::SettingsDiffer => (
            "drift.settings",
            "All processes have the same settings where they should.",
            (
                "group of settings differs between processes",
                "groups of settings differ between processes",
            ),
            "`attesto config check` on each shows them. All right while a change is rolled out.",
        ),
    };
    if finding.count == 0 {
        return Some(CheckResult::ok(name, well));
    }
    let (one, many) = what;
    Some(CheckResult::warn(
        name,
        format!(
            "{}: {}.",
            pluralize_count(finding.count, one, many),
            format_names(&finding.names, finding.count)
        ),
        advice,
    ))
}
