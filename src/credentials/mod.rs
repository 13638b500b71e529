//! Stored secrets: which columns are sealed, whether the keys are the right ones, and caches of unsealed values.
//!
//! Guarantees: a process stops using a changed credential when the notification of the change arrives. While
//! notifications do not arrive, no cached credential is used. A plaintext is wiped from memory when its time to live is
//! over, used or not. A process with a wrong encryption key is noticed before it seals or serves anything.
//!
//! - [`tenant_cache`]: caches a tenant's unsealed credential
//! - [`canary`]: checks that the configured keys are those of this database
//! - [`sealed_columns`]: the list of all sealed columns
//! - [`history`]: replaced credentials, kept so that the replacement can be rolled back
//! - [`token_cache`]: caches access tokens for the stores until shortly before they expire
//! - [`reseal`]: seals all values again with the current key, while other processes work
//! - [`sealed_value_check`]: checks that a sample of the sealed values can be unsealed
//! - [`age`]: the age of the stored credentials

pub mod age;
pub mod canary;
pub mod history;
pub mod reseal;
pub mod sealed_columns;
pub mod sealed_value_check;
mod store;
pub mod tenant_cache;
pub mod token_cache;

pub use tenant_cache::TenantCache;
