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
mod api_key_cache;
mod api_key_usage;
pub mod caller;
mod rate_limiter;
pub mod store;
pub mod tenant;

pub use api_key::{ApiKey, ApiKeyEnvironment, RawApiKey};
pub use caller::{Authenticator, Caller};
pub use tenant::{DisplayName, RateLimit, RateLimitOverrides, Tenant};
