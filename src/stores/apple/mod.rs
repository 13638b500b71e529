//! Apple: is this transaction real, and what is it now.
//!
//! Promises: nothing is believed that does not lead to a pinned root of Apple's; nothing Apple leaves unsaid is read
//! as a "no"; a tenant's private key is opened only to sign a question to Apple, and is never shown. A notification that
//! is believed is never lost, whatever it says.
//!
//! - [`payload`]: Apple's JSON, no meaning
//! - [`trust`]: signature and chain, and why something is refused
//! - [`ocsp`]: whether a certificate was revoked since, if somebody wants to know
//! - [`translate`]: from Apple's words to ours, as tables
//! - [`account`]: the key that asks, and the tokens it signs
//! - [`state`]: what a purchase is worth, as one pure function
//! - [`store`]: credentials, sealed
//! - [`api`]: the App Store Server API, and what its answers mean
//! - [`verify`]: a use case: is this transaction real
//! - [`notifications`]: the other: something happened
//! - [`inspection`]: a signed thing taken apart for a person
//! - [`test_notification`]: and a third, for an operator: does that arrive here
//! - [`trial`]: and a fourth, for the same: would Apple take these credentials
//! - [`mod@routes`]: the first two over HTTP; `questions` reads what is asked, `answers` says what comes of it
//! - `description`: how those are described to callers

pub mod account;
pub mod api;
mod chains;
pub mod check_credentials;
mod error_response;
pub mod inspection;
pub mod notifications;
pub mod ocsp;
mod openapi;
pub mod payload;
mod request_body;
pub mod routes;
#[cfg_attr(
    not(test),
    expect(dead_code, reason = "the answers and events that carry it follow")
)]
pub(crate) mod state;
pub mod store;
pub mod test_notification;
pub mod translate;
pub mod trust;
pub mod verify;

pub use notifications::AppleNotifications;
pub use routes::{notification_routes, openapi_document, verify_routes};
pub use verify::{AppleSettings, AppleVerifier};
