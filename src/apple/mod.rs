//! Apple: is this transaction real, and what is it now.
//!
//! Promises: nothing is believed that does not lead to a pinned root of Apple's; nothing Apple leaves unsaid is read
//! as a "no"; a tenant's private key is opened only to sign a question to Apple, and is never shown.
//!
//! - [`payload`]: Apple's JSON, no meaning
//! - [`trust`]: signature and chain, and why something is refused
//! - [`translate`]: what a transaction is now
//! - [`account`]: the key that asks, and the tokens it signs
//! - [`store`]: credentials, sealed
//! - [`api`]: the App Store Server API, and what its answers mean
//! - [`verify`]: the use case
//! - [`mod@routes`]: the use case over HTTP

pub mod account;
pub mod api;
mod chains;
pub mod payload;
pub mod routes;
pub mod store;
pub mod translate;
pub mod trust;
pub mod verify;

pub use routes::routes;
pub use verify::{Apple, Settings};
