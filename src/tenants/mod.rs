//! Tenants, their API keys, and the authentication of requests.
//!
//! Guarantees: a request without an active API key is refused, with one text whatever the reason; a revoked key, a deactivated
//! tenant and a changed limit take effect everywhere within a second; an unreachable database is reported as such and
//! never as a wrong key; a raw key is shown once and stored nowhere.
//!
//! - [`tenant`]: a tenant, its name, its limits
//! - [`api_key`]: generating, recognising and hashing a key
//! - [`store`]: the SQL
//! - `api_key_cache`: which keys are active, in memory
//! - `rate_limiter`: one token bucket for each tenant
//! - [`intake`]: how much of the stores' notifications is taken in for a tenant
//! - `api_key_usage`: when a key was last used
//! - [`lane`]: the lane of a tenant
//! - [`caller`]: from the `Authorization` header to a [`Caller`]

pub mod api_key;
mod api_key_cache;
mod api_key_usage;
pub mod caller;
pub mod intake;
pub mod lane;
mod rate_limiter;
pub mod store;
pub mod tenant;

pub use api_key::{ApiKey, ApiKeyEnvironment, RawApiKey};
pub use caller::{Authenticator, Caller};
pub use intake::{IntakeBudgets, IntakeLimit, IntakeLimitOverrides};
pub use tenant::{DisplayName, RateLimit, RateLimitOverrides, RateLimitScope, Tenant};
