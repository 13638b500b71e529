//! Checks whether Apple accepts credentials, before they are stored.
//!
//! Apple is asked for a transaction: of the app, where one is given, else one that does not exist. Either answer means that it
//! accepted the token. It does not prove the bundle id: with a wrong one Apple knows no transaction either. What proves it is a
//! transaction of the app that Apple knows, or that Apple has sent notifications about the app.

use std::sync::Arc;

use super::account::{AppleCredentials, AppleEnvironment};
use super::api::{AppStoreClient, AppleApiError, AppleNotFound, TransactionLookupError};
use crate::base::id::TenantId;

/// An id that no transaction has.
const NONEXISTENT_TRANSACTION_ID: &str = "1";

/// What Apple's answers say of the bundle id. Each means that Apple accepts the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleIdProof {
    /// Apple knows a transaction of the app, or has sent notifications about it.
    Proven,
    /// Apple answers as for an app without purchases, and as for a wrong bundle id.
    Unproven,
    /// Apple does not know the given transaction of the app.
    TransactionUnknown(AppleNotFound),
    /// Apple knows no such app.
    AppUnknown,
}

/// Apple's answer in each environment that the credentials would be used in, by a transaction `of_the_app` where one is
/// given.
pub async fn check_credentials(
    app_store: &AppStoreClient,
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
    of_the_app: Option<&str>,
) -> Vec<(AppleEnvironment, Result<BundleIdProof, AppleApiError>)> {
    let mut results = Vec::new();
    for environment in environments_to_check(credentials) {
        let result =
            check_environment(app_store, tenant, credentials, environment, of_the_app).await;
        results.push((environment, result));
    }
    results
}

async fn check_environment(
    app_store: &AppStoreClient,
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
    environment: AppleEnvironment,
    of_the_app: Option<&str>,
) -> Result<BundleIdProof, AppleApiError> {
    let id = of_the_app.unwrap_or(NONEXISTENT_TRANSACTION_ID);
    let answer = app_store
        .get_transaction_info(tenant, credentials, environment, id)
        .await;
    match answer {
        Ok(_) => return Ok(BundleIdProof::Proven),
        Err(TransactionLookupError::NotFound(reason)) if of_the_app.is_some() => {
            return Ok(BundleIdProof::TransactionUnknown(reason));
        }
        Err(TransactionLookupError::NotFound(_)) => {}
        Err(TransactionLookupError::Api(failure)) => return Err(failure),
    }
    let sent = app_store
        .has_notifications(tenant, credentials, environment)
        .await;
    Ok(match sent {
        Ok(Some(true)) => BundleIdProof::Proven,
        Ok(None) => BundleIdProof::AppUnknown,
        // The key was accepted above, which is what the check is about.
        Ok(Some(false)) | Err(_) => BundleIdProof::Unproven,
    })
}

/// Production is skipped without an app Apple id, as in verification, unless it is the only choice.
fn environments_to_check(credentials: &AppleCredentials) -> Vec<AppleEnvironment> {
    let choice = credentials.environment;
    let all = [AppleEnvironment::Production, AppleEnvironment::Sandbox];
    let is_used = |environment: AppleEnvironment| {
        choice.allows_environment(environment)
            && (environment == AppleEnvironment::Sandbox
                || credentials.app_apple_id.is_some()
                || !choice.allows_environment(AppleEnvironment::Sandbox))
    };
    all.into_iter().filter(|one| is_used(*one)).collect()
}
