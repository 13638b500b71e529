//! Whether a purchase was verified before for another user of its tenant, for tenants that have asked for it.
//!
//! Neither users nor purchases are stored: only hashes, which cannot be computed without the tenant's sealed key.
//!
//! - [`check`]: compares the user of a verification with the first one
//! - [`setting`]: turns it on and off for a tenant
//! - [`store`]: the SQL

pub(crate) mod check;
pub(crate) mod setting;
mod store;

pub use check::{FirstSeen, FirstSeenError};
pub(crate) use check::{FirstSeenCheck, MAX_FOR_USER_CHARS, for_app_user_id_schema};
