//! Tenants, their API keys, and who is calling.
//!
//! Promises: a request is somebody's or it is refused, with one text whatever the reason; a revoked key, a deactivated
//! tenant and a changed limit take effect everywhere within a second; a database that is away is said to be away and
//! never taken for a wrong key; a raw key is shown once and kept nowhere.
//!
//! - [`tenant`]: a tenant, its name, its limits
//! - [`api_key`]: mint, recognise, hash
//! - [`store`]: every query
//! - `directory`: which keys are good, remembered
//! - `limiter`: one bucket a tenant
//! - `usage`: when a key was last used
//! - [`caller`]: from the `Authorization` header to a [`Caller`]

pub mod api_key;
pub mod caller;
mod directory;
mod limiter;
pub mod store;
pub mod tenant;
mod usage;

pub use api_key::{ApiKey, KeyEnvironment, RawKey};
pub use caller::{Caller, Callers};
pub use tenant::{Limits, Name, RateLimit, Tenant};
