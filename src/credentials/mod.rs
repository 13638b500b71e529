//! What is sealed, bound to what; and the cache of what was opened.
//!
//! Promises: a credential that was changed is not used again, by any process, once the change was heard of; while
//! changes are not heard, nothing remembered is believed; plaintext leaves memory when its time is over, whether
//! it is used again or not; a process with the wrong encryption key is noticed before it seals or serves anything.
//!
//! - [`tenant_cache`]: a tenant's opened credential, remembered
//! - [`canary`]: is the configured key the one this database was sealed with
//! - [`sealed_columns`]: every sealed column there is
//! - [`history`]: credentials that were replaced, for as long as one can go back to them
//! - [`token_cache`]: what a store is shown with each call, kept as long as it is good
//! - [`reseal`]: seals every secret again with the newest key, while the service runs
//! - [`sealed_value_check`]: does what is sealed open: a few of each
//! - [`age`]: how long ago credentials were set

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
