//! The use case: would Google take these credentials? Asked before they are stored.
//!
//! Google is asked about a purchase that there is none of. Whoever is told so has been let in, and may see this app's
//! purchases.

use std::sync::Arc;

use super::account::GoogleServiceAccount;
use super::api::{GoogleApiError, PlayClient, PurchaseLookupError};
use crate::base::id::TenantId;

/// The token of no purchase.
const NONEXISTENT_PURCHASE_TOKEN: &str = "attesto-tries-its-credentials";

/// What Google says.
pub async fn check_credentials(
    play: &PlayClient,
    tenant: &TenantId,
    account: &Arc<GoogleServiceAccount>,
    package_name: &str,
) -> Result<(), GoogleApiError> {
    match play
        .get_subscription(tenant, account, package_name, NONEXISTENT_PURCHASE_TOKEN)
        .await
    {
        Ok(_) | Err(PurchaseLookupError::NotFound(_)) => Ok(()),
        Err(PurchaseLookupError::Api(failure)) => Err(failure),
    }
}
