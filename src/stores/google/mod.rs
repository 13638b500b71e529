//! Google Play: is this purchase real, and what is it now.
//!
//! Guarantees: an answer comes from Google and from nowhere else; "no" is said only when Google said so, and an error,
//! a refusal of the credentials or a quota is never mistaken for one; a purchase of another app is never called this
//! tenant's. A notification is accepted only from the account that the tenant named, and what is accepted is never lost,
//! whatever else cannot be learned.
//!
//! - [`payload`]: Google's JSON, with no meaning added
//! - [`translate`]: from Google's words to Attesto's, as tables
//! - [`account`]: a tenant's service account, read from its key file
//! - [`access_token`]: access tokens, exchanged for the service account's assertions
//! - [`api`]: calls to the Play Developer API, and what each answer means
//! - [`api_error`]: why such a call brought no purchase
//! - [`trust`]: is a push from Google, and from the account that the tenant named
//! - [`refused_tokens`]: a short memory of push tokens that several tenants refused
//! - [`chain`]: which purchase was the first of a subscription
//! - [`state`]: what a purchase is worth, as one pure function
//! - [`store`]: the tenant's credentials, sealed; which purchase replaced which
//! - [`verify`]: a use case: is this purchase real
//! - [`acknowledge`]: two use cases: acknowledge this purchase, consume this product
//! - [`refund_review`]: a use case: tell Google what to decide on a refund
//! - [`refund_answers`]: the answers to Google's questions about refunds, of backends and of tenants' settings
//! - [`notifications`]: a use case: something happened to a purchase
//! - [`late_state`]: what the purchase of a stored event is worth, where that was not known when it was received
//! - [`owed`]: purchases that must be acknowledged soon, of which their tenants are told
//! - [`purchase_lookup`]: what Google says of the purchase that a notification or a verify request is about
//! - `refunds`: which refunds are known, and fetches those whose notification did not arrive
//! - `rereads`: subscriptions of which Google should have told something
//! - [`check_credentials`]: a use case, for an operator: does Google accept these credentials
//! - [`routes`]: these in HTTP; [`request_body`], [`response_body`] and [`error_response`] read and write what is
//!   sent
//! - [`openapi`]: their description for callers

mod access_token;
pub mod account;
mod acknowledge;
pub(crate) mod api;
mod api_error;
mod chain;
pub(crate) mod check_credentials;
mod error_response;
mod late_state;
mod notifications;
mod openapi;
mod owed;
pub mod payload;
mod purchase_lookup;
mod refund_answers;
mod refund_review;
mod refunds;
mod refused_tokens;
mod request_body;
mod rereads;
mod response_body;
mod routes;
pub(crate) mod state;
pub mod store;
mod subject_source;
pub mod translate;
pub mod trust;
pub(crate) mod verify;

pub(crate) use api_error::GoogleApiError;
pub(crate) use late_state::GoogleStates;
pub(crate) use notifications::GoogleNotifications;
pub use owed::AcknowledgementWatch;
pub(crate) use payload::ExternalAccountIds;
pub(crate) use refund_answers::GoogleRefundAnswers;
pub(crate) use refund_review::{
    GoogleRefundPreference, MAX_CONSUMPTION_MILLIUNITS, RefundReview, RefundReviewRequest,
};
pub use refunds::backfill::GoogleBackfill;
pub(crate) use refunds::backfill::{GoogleBackfillError, RefundsReport, RefundsRound};
pub(crate) use request_body::AcknowledgeRequest;
pub use request_body::GoogleVerifyRequest;
pub(crate) use rereads::reader::RereadReport;
pub(crate) use rereads::reader::RereadRound;
pub use routes::verify_routes;
pub(crate) use routes::{notification_routes, openapi_document};
pub use verify::{GoogleSettings, GoogleVerifier};
