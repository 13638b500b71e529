//! The use case: would Apple take these credentials? Asked before they are stored.
//!
//! Apple is asked about a transaction that there is none of. Whoever is told so has been let in.

use std::sync::Arc;

use super::account::{AppleCredentials, AppleEnvironment};
use super::api::{AppStoreClient, AppleApiError, TransactionLookupError};
use crate::base::id::TenantId;

/// The id of no transaction: the smallest number that looks like one.
const NONEXISTENT_TRANSACTION_ID: &str = "1";

/// What Apple says in each environment that these credentials would be used in.
pub async fn check_credentials(
    app_store: &AppStoreClient,
    tenant: &TenantId,
    credentials: &Arc<AppleCredentials>,
) -> Vec<(AppleEnvironment, Result<(), AppleApiError>)> {
    let mut said = Vec::new();
    for environment in environments_to_check(credentials) {
        let answer = app_store
            .get_transaction_info(tenant, credentials, environment, NONEXISTENT_TRANSACTION_ID)
            .await;
        said.push((
            environment,
            match answer {
                Ok(_) | Err(TransactionLookupError::NotFound(_)) => Ok(()),
                Err(TransactionLookupError::Api(failure)) => Err(failure),
            },
        ));
    }
    said
}

/// Production is passed over where it would be for want of the app's Apple id, unless nothing else is left.
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
