//! The use case: does Google accept these credentials? Asked before they are stored.
//!
//! Google is asked about a purchase that does not exist. The answer that there is none means that the service account was
//! accepted and may read this app's purchases.

use std::sync::Arc;

use super::account::GoogleServiceAccount;
use super::api::PlayClient;
use super::api_error::{GoogleApiError, PurchaseLookupError};
use crate::base::id::TenantId;

const NONEXISTENT_PURCHASE_TOKEN: &str = "attesto-tries-its-credentials";

pub(crate) async fn check_credentials(
    play: &PlayClient,
    tenant: &TenantId,
    account: &Arc<GoogleServiceAccount>,
    package_name: &str,
) -> Result<(), GoogleApiError> {
    match play
        .get_subscription(tenant, account, package_name, NONEXISTENT_PURCHASE_TOKEN)
        .await
    {
        Err(PurchaseLookupError::Api(error)) => Err(error),
        Ok(_)
        | Err(
            PurchaseLookupError::NotFound(_)
            | PurchaseLookupError::OtherApp
            | PurchaseLookupError::OtherProduct,
        ) => Ok(()),
    }
}
