//! The use case: would Google take these credentials? Asked before they are stored.
//!
//! Google is asked about a purchase that there is none of. Whoever is told so has been let in, and may see this app's
//! purchases.

use std::sync::Arc;

use super::account::ServiceAccount;
use super::api::{Failure, NoPurchase, Play};
use crate::id::TenantId;

/// The token of no purchase.
const NO_PURCHASE: &str = "attesto-tries-its-credentials";

/// What Google says.
pub async fn try_out(
    play: &Play,
    tenant: &TenantId,
    account: &Arc<ServiceAccount>,
    package_name: &str,
) -> Result<(), Failure> {
    match play
        .subscription(tenant, account, package_name, NO_PURCHASE)
        .await
    {
        Ok(_) | Err(NoPurchase::Absent(_)) => Ok(()),
        Err(NoPurchase::Failure(failure)) => Err(failure),
    }
}
