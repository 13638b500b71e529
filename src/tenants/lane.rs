//! The lane of a tenant.
//!
//! Every table that grows with what users buy has the column `lane`, first in its keys and indexes. A statement names the
//! lanes of the rows that it reads or writes.

use crate::base::id::TenantId;
use crate::base::lane::Lane;
use crate::crypto::token::sha256;

/// Depends on the id alone, and never changes. The SQL function `tenant_lane` computes the same.
pub fn tenant_lane(tenant: &TenantId) -> Lane {
    Lane::of_hash(&sha256(tenant.as_str().as_bytes()))
}

/// [`tenant_lane`] as the columns `lane` have it.
pub fn lane_column(tenant: &TenantId) -> i16 {
    tenant_lane(tenant).column()
}
