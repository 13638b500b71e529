//! The group `tenants`: their API keys and store credentials.

use std::collections::BTreeSet;
use std::time::Duration;

use super::check::Judged;
use super::check_result::{CheckResult, format_names, pluralize_count};
use super::expiry::{CredentialKind, DueCredentialGroup, SECONDS_PER_DAY};
use super::runner::DatabaseContext;
use super::store;
use crate::base::error::to_sentence;
use crate::base::id::TenantId;
use crate::db::Error;
use crate::replicas::LiveReplicas;
use crate::replicas::live_replicas::format_name_list;
use crate::stores::apple;
use crate::stores::google;

/// How long ago Apple's history of notifications was last read at most. The job does it once a day.
pub(super) const MAX_HISTORY_AGE: Duration = Duration::from_hours(3 * 24);
/// The maximum number of tenants whose credentials are unsealed.
const MAX_TENANTS_OPENED: i64 = 500;

pub(super) fn judge_tenant_count(count: i64) -> Judged {
    const NAME: &str = "tenants.count";
    if count == 0 {
        return Judged::LastResults(vec![CheckResult::ok(NAME, "There are no active tenants.")]);
    }
    let message = pluralize_count(count, "active tenant", "active tenants");
    CheckResult::ok(NAME, to_sentence(message)).into()
}

/// Whether notifications of a tenant were refused lately because they were too many.
pub(super) fn judge_intake(replicas: &LiveReplicas) -> CheckResult {
    const NAME: &str = "tenants.intake";
    let throttled = replicas
        .replicas
        .iter()
        .flat_map(|replica| replica.notices.throttled_tenants.keys());
    let names: BTreeSet<&str> = throttled.map(TenantId::as_str).collect();
    if names.is_empty() {
        return CheckResult::ok(
            NAME,
            "No tenant's budget for notifications was spent today.",
        );
    }
    CheckResult::warn(
        NAME,
        format!(
            "Notifications were refused with 429 within a day, because a budget was spent: {}.",
            format_name_list(&names)
        ),
        "The stores send them again. If they are genuine: `attesto tenant set-limits <tenant> --intake-events N --intake-megabytes N`; otherwise find out what that tenant's topic sends.",
    )
}

pub(super) fn judge_credential_age(due: &DueCredentialGroup) -> CheckResult {
    let (name, none, what, advice) = match due.kind {
        CredentialKind::AppleInAppPurchase => (
            "tenants.apple_age",
            "No Apple key needs to be replaced yet.",
            ("Apple key was", "Apple keys were"),
            "Create a new key in App Store Connect, `attesto apple set-credentials`, then revoke the old one.",
        ),
        CredentialKind::GoogleServiceAccount => (
            "tenants.google_age",
            "No service account key needs to be replaced yet.",
            ("service account key was", "service account keys were"),
            "Create a new key in Google Cloud, `attesto google set-credentials`, then delete the old one.",
        ),
        CredentialKind::ApiKey => (
            "tenants.unused_keys",
            "Every API key is in use.",
            ("API key was", "API keys were"),
            "Ask the tenant whether it is still needed; `attesto key revoke` revokes it.",
        ),
    };
    if due.count == 0 {
        return CheckResult::ok(name, none);
    }
    let days = due.max_age.as_secs() / SECONDS_PER_DAY;
    let when = match due.kind {
        CredentialKind::ApiKey => format!("not used for {days} days"),
        _ => format!("set more than {days} days ago"),
    };
    let names: Vec<String> = due
        .oldest
        .iter()
        .map(|credential| match due.kind {
            CredentialKind::ApiKey => credential.name.clone(),
            _ => credential.tenant.to_string(),
        })
        .collect();
    let count = pluralize_count(due.count, what.0, what.1);
    let names = format_names(&names, due.count);
    CheckResult::warn(name, format!("{count} {when}: {names}."), advice)
}

/// Unseals and parses the stored credentials, and returns a message for each that cannot be used. `None` without a
/// keyring.
pub(super) async fn open_credentials(
    context: &DatabaseContext,
) -> Result<Option<Vec<String>>, Error> {
    let Some(keyring) = context.keyring.as_deref() else {
        return Ok(None);
    };
    let database = &context.database;
    let mut problems = Vec::new();
    for tenant in store::list_tenants_with_credentials(database, MAX_TENANTS_OPENED).await? {
        let apple = apple::store::load_credentials(database, keyring, &tenant).await;
        let google = google::store::load_credentials(database, keyring, &tenant).await;
        problems.extend(apple.err().map(|problem| problem.to_string()));
        problems.extend(google.err().map(|problem| problem.to_string()));
    }
    Ok(Some(problems))
}

pub(super) fn judge_credentials(problems: &[String]) -> CheckResult {
    const NAME: &str = "tenants.readable";
    let count = i64::try_from(problems.len()).unwrap_or(i64::MAX);
    match problems.first() {
        None => CheckResult::ok(NAME, "The store credentials can be opened and read."),
        Some(first) => CheckResult::fail(
            NAME,
            format!(
                "{} cannot be used, the first: {first}.",
                pluralize_count(count, "store credential", "store credentials")
            ),
            "Set them again: `attesto apple set-credentials`, `attesto google set-credentials`.",
        ),
    }
}
