//! The use case: would Apple take these credentials? Asked before they are stored.
//!
//! Apple is asked about a transaction that there is none of. Whoever is told so has been let in.

use std::sync::Arc;

use super::account::{Credentials, Environment};
use super::api::{AppStore, Failure, NoTransaction};
use crate::id::TenantId;

/// The id of no transaction: the smallest number that looks like one.
const NO_TRANSACTION: &str = "1";

/// What Apple says in each environment that these credentials would be used in.
pub async fn try_out(
    app_store: &AppStore,
    tenant: &TenantId,
    credentials: &Arc<Credentials>,
) -> Vec<(Environment, Result<(), Failure>)> {
    let mut said = Vec::new();
    for environment in environments(credentials) {
        let answer = app_store
            .transaction(tenant, credentials, environment, NO_TRANSACTION)
            .await;
        said.push((
            environment,
            match answer {
                Ok(_) | Err(NoTransaction::Absent(_)) => Ok(()),
                Err(NoTransaction::Failure(failure)) => Err(failure),
            },
        ));
    }
    said
}

/// Production is passed over where it would be for want of the app's Apple id, unless nothing else is left.
fn environments(credentials: &Credentials) -> Vec<Environment> {
    let choice = credentials.environment;
    let all = [Environment::Production, Environment::Sandbox];
    let is_used = |environment: Environment| {
        choice.allows(environment)
            && (environment == Environment::Sandbox
                || credentials.app_apple_id.is_some()
                || !choice.allows(Environment::Sandbox))
    };
    all.into_iter().filter(|one| is_used(*one)).collect()
}
