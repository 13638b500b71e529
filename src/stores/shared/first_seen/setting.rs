//! Turns the comparison of users on and off for a tenant.

use super::store;
use crate::base::id::TenantId;
use crate::credentials::sealed_columns::FIRST_SEEN_KEY;
use crate::crypto::ExposeSecret as _;
use crate::crypto::keyring::Keyring;
use crate::crypto::token;
use crate::db::Database;
use crate::tenants::store::TenantChangeError;

/// Makes the tenant's key. A tenant that has one keeps it, and with it all that was seen.
pub(crate) async fn enable(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
) -> Result<(), TenantChangeError> {
    let key = token::generate_token();
    let place = FIRST_SEEN_KEY.context_for(tenant.as_str());
    let sealed = keyring.seal(place, key.expose_secret().as_bytes());
    store::insert_key(database, tenant, &sealed).await
}

/// Removes the tenant's key and all that was seen. Returns how many purchases that were.
///
/// The key goes first: from then on no hash can be tested, whatever interrupts the rest.
pub(crate) async fn disable(
    database: &Database,
    tenant: &TenantId,
) -> Result<u64, TenantChangeError> {
    store::delete_key(database, tenant).await?;
    Ok(store::delete_purchases(database, tenant).await?)
}
