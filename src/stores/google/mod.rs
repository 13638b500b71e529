//! Google Play: is this purchase real, and what is it now.
//!
//! Promises: an answer comes from Google and from nowhere else; "no" is said only when Google said so, and an error,
//! a refusal of the credentials or a quota is never mistaken for one; a purchase of another app is never called this
//! tenant's. A notification is believed only from the account the tenant named, and what is believed is never lost,
//! whatever else cannot be learned.
//!
//! - [`payload`]: Google's JSON, with no meaning added
//! - [`translate`]: from Google's words to ours, as tables
//! - [`account`]: the service account, and the access tokens bought with it
//! - [`api`]: calls to the Play Developer API, and what each answer means
//! - [`trust`]: is a push from Google, and from the account that the tenant named
//! - [`chain`]: which purchase was the first of a subscription
//! - [`state`]: what a purchase is worth, as one pure function
//! - [`store`]: the tenant's credentials, sealed; which purchase replaced which
//! - [`verify`]: a use case: is this purchase real
//! - [`notifications`]: the other: something happened to a purchase
//! - [`trial`]: and a third, for an operator: would Google take these credentials
//! - [`mod@routes`]: the first two in HTTP; `questions` reads what is asked, `answers` says what comes of it
//! - `description`: how those are described to callers

pub mod account;
pub mod api;
pub mod chain;
pub mod check_credentials;
mod error_response;
pub mod notifications;
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
pub mod translate;
pub mod trust;
pub mod verify;

pub use notifications::GoogleNotifications;
pub use routes::{notification_routes, openapi_document, verify_routes};
pub use verify::{GoogleSettings, GoogleVerifier};
