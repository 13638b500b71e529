//! Tenants: their keys, and their store credentials.

use std::sync::Arc;

use super::finding::unanswered;
use super::finding::{Check, counted, named};
use super::store::{self, Few};
use crate::apple;
use crate::clock::Clock;
use crate::config::settings::Cadences;
use crate::crypto::keyring::Keyring;
use crate::db::{Database, Error};
use crate::google;
use crate::watch::drift;
use crate::watch::expiry::{self, Found, Kind};

/// So many are named.
const NAMED: i64 = 5;
/// Credentials of at most so many tenants are opened and read.
const MOST_READ: i64 = 500;

/// Looks.
pub async fn look(
    database: &Database,
    keyring: Option<&Arc<Keyring>>,
    cadences: Option<&Cadences>,
    clock: &Clock,
) -> Check {
    let mut checks = Vec::new();
    match store::tenants(database).await {
        Ok(0) => {
            return Check::group(
                "tenants",
                "Tenants",
                vec![Check::ok("tenants.count", "There are none yet.")],
            );
        }
        Ok(count) => checks.push(Check::ok(
            "tenants.count",
            format!("{}.", counted(count, "active tenant", "active tenants")),
        )),
        Err(error) => checks.push(unanswered("tenants.count", &error)),
    }
    checks.push(few(
        "tenants.credentials",
        few_of(database, clock, drift::Kind::TenantCredentials).await,
        "Every active tenant has credentials for a store.",
        "can ask about nothing, for want of store credentials",
        "`attesto apple set-credentials` or `attesto google set-credentials`; or `attesto tenant deactivate`.",
    ));
    checks.push(few(
        "tenants.api_keys",
        store::without_keys(database).await,
        "Every active tenant has an API key.",
        "cannot ask, for want of an API key",
        "`attesto key create`, or `attesto tenant deactivate`.",
    ));
    checks.push(few(
        "tenants.app_apple_id",
        store::without_app_apple_id(database).await,
        "Nobody's production purchases are refused for want of the app's Apple id.",
        "cannot verify production purchases: the app's Apple id is missing",
        "`attesto apple set-credentials … --app-apple-id`; App Store Connect shows it under App Information.",
    ));
    if let Some(keyring) = keyring {
        checks.push(readable(database, keyring).await);
    }
    if let Some(cadences) = cadences {
        match expiry::due(database, cadences, clock.lead(), NAMED).await {
            Ok(found) => checks.extend(found.iter().map(|found| age(found, cadences))),
            Err(error) => checks.push(unanswered("tenants.ages", &error)),
        }
    }
    Check::group("tenants", "Tenants", checks)
}

/// What is found of tenants that are not as they were set up.
pub(super) async fn few_of(
    database: &Database,
    clock: &Clock,
    kind: drift::Kind,
) -> Result<Few, Error> {
    let drift::Finding { count, names, .. } =
        drift::of_tenants(database, kind, clock.lead()).await?;
    Ok(Few { count, names })
}

/// Whether anything of this kind is too old.
fn age(found: &Found, cadences: &Cadences) -> Check {
    let (name, well, what, advice) = match found.kind {
        Kind::AppleKey => (
            "tenants.apple_age",
            "No Apple key is to be exchanged yet.",
            "have an Apple key that was set more than",
            "Make a new one in App Store Connect, `attesto apple set-credentials`, then revoke the old one.",
        ),
        Kind::GoogleKey => (
            "tenants.google_age",
            "No service account's key is to be exchanged yet.",
            "have a service account's key that was set more than",
            "Make a new one in Google Cloud, `attesto google set-credentials`, then delete the old one.",
        ),
        Kind::ApiKey => (
            "tenants.unused_keys",
            "Every API key is in use.",
            "API keys were not used for",
            "Ask whose they are; `attesto key revoke` ends one.",
        ),
    };
    if found.count == 0 {
        return Check::ok(name, well);
    }
    let days = found
        .kind
        .after(cadences)
        .map_or(0, |after| after.as_secs() / 86_400);
    let names: Vec<String> = found
        .first
        .iter()
        .map(|due| match due.kind {
            Kind::ApiKey => due.name.clone(),
            _ => due.tenant.to_string(),
        })
        .collect();
    let ago = if found.kind == Kind::ApiKey {
        ""
    } else {
        " ago"
    };
    Check::warn(
        name,
        format!(
            "{} {what} {days} days{ago}: {}.",
            found.count,
            named(&names, found.count)
        ),
        advice,
    )
}

/// What is said of a few of many.
fn few(
    name: &'static str,
    found: Result<Few, Error>,
    well: &'static str,
    what: &'static str,
    advice: &'static str,
) -> Check {
    match found {
        Ok(Few { count: 0, .. }) => Check::ok(name, well),
        Ok(Few { count, names }) => Check::warn(
            name,
            format!("{count} {what}: {}.", named(&names, count)),
            advice,
        ),
        Err(error) => unanswered(name, &error),
    }
}

/// Whether what is sealed is what it should be.
async fn readable(database: &Database, keyring: &Keyring) -> Check {
    const NAME: &str = "tenants.readable";
    let tenants = match store::with_credentials(database, MOST_READ).await {
        Ok(tenants) => tenants,
        Err(error) => return unanswered(NAME, &error),
    };
    let mut problems = Vec::new();
    for tenant in &tenants {
        let apple = apple::store::find(database, keyring, tenant).await;
        let google = google::store::find(database, keyring, tenant).await;
        problems.extend(apple.err().map(|problem| problem.to_string()));
        problems.extend(google.err().map(|problem| problem.to_string()));
    }
    let count = i64::try_from(problems.len()).unwrap_or(i64::MAX);
    match problems.first() {
        None => Check::ok(NAME, "The store credentials can be opened and read."),
        Some(first) => Check::fail(
            NAME,
            format!(
                "{} cannot be used, the first: {first}.",
                counted(count, "store credential", "store credentials")
            ),
            "Set them anew: `attesto apple set-credentials`, `attesto google set-credentials`.",
        ),
    }
}
