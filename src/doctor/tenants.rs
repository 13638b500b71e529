//! Tenants: their keys, and their store credentials.

use std::sync::Arc;

use super::check_result::query_failed;
use super::check_result::{CheckResult, format_names, pluralize_count};
use super::store::{self, CountWithNames};
use crate::base::clock::Clock;
use crate::config::settings::ExpiryThresholds;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error};
use crate::stores::apple;
use crate::stores::google;
use crate::watch::drift;
use crate::watch::expiry::{self, CredentialKind, DueCredentialGroup};

/// So many are named.
const MAX_NAMED: i64 = 5;
/// Credentials of at most so many tenants are opened and read.
const MAX_TENANTS_READ: i64 = 500;

/// Looks.
pub async fn check_tenants(
    database: &Database,
    keyring: Option<&Arc<Keyring>>,
    cadences: Option<&ExpiryThresholds>,
    clock: &Clock,
) -> CheckResult {
    let mut checks = Vec::new();
    match store::count_active_tenants(database).await {
        Ok(0) => {
            return CheckResult::group(
                "tenants",
                "Tenants",
                vec![CheckResult::ok("tenants.count", "There are none yet.")],
            );
        }
        Ok(count) => checks.push(CheckResult::ok(
            "tenants.count",
            format!(
                "{}.",
                pluralize_count(count, "active tenant", "active tenants")
            ),
        )),
        Err(error) => checks.push(query_failed("tenants.count", &error)),
    }
    checks.push(warn_if_tenants_found(
        "tenants.credentials",
        find_tenants_with_drift(database, clock, drift::DriftKind::CredentialsMissing).await,
        "Every active tenant has credentials for a store.",
        "can ask about nothing, for want of store credentials",
        "`attesto apple set-credentials` or `attesto google set-credentials`; or `attesto tenant deactivate`.",
    ));
    checks.push(warn_if_tenants_found(
        "tenants.api_keys",
        store::list_tenants_without_api_keys(database).await,
        "Every active tenant has an API key.",
        "cannot ask, for want of an API key",
        "`attesto key create`, or `attesto tenant deactivate`.",
    ));
    checks.push(warn_if_tenants_found(
        "tenants.app_apple_id",
        store::list_tenants_without_app_apple_id(database).await,
        "Nobody's production purchases are refused for want of the app's Apple id.",
        "cannot verify production purchases: the app's Apple id is missing",
        "`attesto apple set-credentials … --app-apple-id`; App Store Connect shows it under App Information.",
    ));
    if let Some(keyring) = keyring {
        checks.push(check_credentials_readable(database, keyring).await);
    }
    if let Some(cadences) = cadences {
        match expiry::find_due_credentials(database, cadences, clock.lead(), MAX_NAMED).await {
            Ok(found) => checks.extend(
                found
                    .iter()
                    .map(|found| check_credential_age(found, cadences)),
            ),
            Err(error) => checks.push(query_failed("tenants.ages", &error)),
        }
    }
    CheckResult::group("tenants", "Tenants", checks)
}

/// What is found of tenants that are not as they were set up.
pub(super) async fn find_tenants_with_drift(
    database: &Database,
    clock: &Clock,
    kind: drift::DriftKind,
) -> Result<CountWithNames, Error> {
    let drift::DriftFinding { count, names, .. } =
        drift::find_tenant_drift(database, kind, clock.lead()).await?;
    Ok(CountWithNames { count, names })
}

/// Whether anything of this kind is too old.
fn check_credential_age(found: &DueCredentialGroup, cadences: &ExpiryThresholds) -> CheckResult {
    let (name, well, what, advice) = match found.kind {
        CredentialKind::AppleKey => (
            "tenants.apple_age",
            "No Apple key is to be exchanged yet.",
            "have an Apple key that was set more than",
            "Make a new one in App Store Connect, `attesto apple set-credentials`, then revoke the old one.",
        ),
        CredentialKind::GoogleKey => (
            "tenants.google_age",
            "No service account's key is to be exchanged yet.",
            "have a service account's key that was set more than",
            "Make a new one in Google Cloud, `attesto google set-credentials`, then delete the old one.",
        ),
        CredentialKind::ApiKey => (
            "tenants.unused_keys",
            "Every API key is in use.",
            "API keys were not used for",
            "Ask whose they are; `attesto key revoke` ends one.",
        ),
    };
    if found.count == 0 {
        return CheckResult::ok(name, well);
    }
    let days = found
        .kind
        .max_age(cadences)
        .map_or(0, |after| after.as_secs() / 86_400);
    let names: Vec<String> = found
        .oldest
        .iter()
        .map(|due| match due.kind {
            CredentialKind::ApiKey => due.name.clone(),
            _ => due.tenant.to_string(),
        })
        .collect();
    let ago = if found.kind == CredentialKind::ApiKey {
        ""
    } else {
        " ago"
    };
    CheckResult::warn(
        name,
        format!(
            "{} {what} {days} days{ago}: {}.",
            found.count,
            format_names(&names, found.count)
        ),
        advice,
    )
}

/// What is said of a few of many.
fn warn_if_tenants_found(
    name: &'static str,
    found: Result<CountWithNames, Error>,
    well: &'static str,
    what: &'static str,
    advice: &'static str,
) -> CheckResult {
    match found {
        Ok(CountWithNames { count: 0, .. }) => CheckResult::ok(name, well),
        Ok(CountWithNames { count, names }) => CheckResult::warn(
            name,
            format!("{count} {what}: {}.", format_names(&names, count)),
            advice,
        ),
        Err(error) => query_failed(name, &error),
    }
}

/// Whether what is sealed is what it should be.
async fn check_credentials_readable(database: &Database, keyring: &Keyring) -> CheckResult {
    const NAME: &str = "tenants.readable";
    let tenants = match store::list_tenants_with_credentials(database, MAX_TENANTS_READ).await {
        Ok(tenants) => tenants,
        Err(error) => return query_failed(NAME, &error),
    };
    let mut problems = Vec::new();
    for tenant in &tenants {
        let apple = apple::store::load_credentials(database, keyring, tenant).await;
        let google = google::store::load_credentials(database, keyring, tenant).await;
        problems.extend(apple.err().map(|problem| problem.to_string()));
        problems.extend(google.err().map(|problem| problem.to_string()));
    }
    let count = i64::try_from(problems.len()).unwrap_or(i64::MAX);
    match problems.first() {
        None => CheckResult::ok(NAME, "The store credentials can be opened and read."),
        Some(first) => CheckResult::fail(
            NAME,
            format!(
                "{} cannot be used, the first: {first}.",
                pluralize_count(count, "store credential", "store credentials")
            ),
            "Set them anew: `attesto apple set-credentials`, `attesto google set-credentials`.",
        ),
    }
}
