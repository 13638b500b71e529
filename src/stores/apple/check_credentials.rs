//! Checks whether Apple accepts credentials, before they are stored.
//!
//! Apple is asked for a transaction that does not exist: the answer "not found" means that it accepted the token. It has the
//! same answer for every transaction when the bundle id is wrong, so that only a transaction of the app proves the bundle id.

use std::sync::Arc;

use super::account::{AppleCredentials, AppleEnvironment};
use super::api::{AppStoreClient, AppleApiError, TransactionLookupError};
use crate::base::id::TenantId;

/// An id that no transaction has.
const NONEXISTENT_TRANSACTION_ID: &str = "1";

/// Apple's answer in each environment that the credentials would be used in: whether it knows the transaction
/// `of_the_app`, which is false where none is given.
pub async fn check_credentials(
    app_store: &AppStoreClient,
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
    of_the_app: Option<&str>,
) -> Vec<(AppleEnvironment, Result<bool, AppleApiError>)> {
    let id = of_the_app.unwrap_or(NONEXISTENT_TRANSACTION_ID);
    let mut results = Vec::new();
    for environment in environments_to_check(credentials) {
        let answer = app_store
            .get_transaction_info(tenant, credentials, environment, id)
            .await;
        results.push((
            environment,
            match answer {
                Ok(_) => Ok(true),
                Err(TransactionLookupError::NotFound(_)) => Ok(false),
                Err(TransactionLookupError::Api(failure)) => Err(failure),
            },
        ));
    }
    results
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
