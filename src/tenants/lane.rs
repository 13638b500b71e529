//! The lane of a tenant.

use crate::base::id::TenantId;
use crate::base::lane::Lane;
use crate::crypto::token::sha256;

/// Depends on the id alone, and never changes. The SQL function `tenant_lane` computes the same.
pub fn tenant_lane(tenant: &TenantId) -> Lane {
    Lane::of_hash(&sha256(tenant.as_str().as_bytes()))
}
