//! The App Store: verifies transactions and receives notifications.
//!
//! Guarantees: only what leads to a pinned root certificate of Apple is accepted; what Apple does not answer is never
//! read as "no"; a tenant's private key is unsealed only to sign tokens for Apple's API and offers, and is never shown; a
//! notification that Apple signed for the tenant is never dropped, whatever its type.
//!
//! - [`payload`]: Apple's JSON types
//! - [`trust`]: the signature and certificate chain of a JWS, and why it is not accepted
//! - [`ocsp`]: whether a certificate was revoked, with `APPLE_OCSP=on`
//! - [`translate`]: from Apple's types and statuses to the event vocabulary
//! - [`state`]: what a purchase is worth, as one pure function
//! - `late_state`: what the purchase of a stored event is worth, where that was not known when it was received
//! - `subscription`: asks Apple about a whole subscription
//! - [`account`]: environments, the tenant's signing key, and the tokens for Apple's API
//! - [`store`]: the tenant's credentials in the database
//! - [`api`]: calls to the App Store Server API, and the meaning of each response
//! - [`error`]: why a request has no verdict or receipt, and the HTTP answer to each reason
//! - [`verify`]: verifies a transaction
//! - `app_transaction`: verifies an app transaction, which proves the purchase of the app itself
//! - `offers`: signs an offer of a subscription
//! - `consumption`: tells Apple how a purchase was used, for a decision on a refund
//! - `transaction_actions`: finishes a transaction, or names the user of a purchase
//! - `refund_answers`: the answers to Apple's questions about refunds, of backends and of tenants' settings
//! - `action_error`: why Apple was not told something, and the HTTP answer to each reason
//! - [`notifications`]: accepts a notification
//! - [`backfill`]: reads Apple's history of notifications, and stores those that are missing
//! - [`inspection`]: explains a JWS to a person
//! - [`receipt`]: finds the transactions in an app receipt
//! - [`orders`]: the purchases of an order, and the refunds of a customer
//! - [`test_notification`]: has Apple send a test notification
//! - [`check_credentials`]: asks Apple whether it accepts a tenant's credentials
//! - [`mod@routes`]: the routes; `request_body` reads their bodies, `openapi` describes them

pub mod account;
mod action_error;
pub mod api;
mod app_transaction;
pub mod backfill;
mod chains;
pub mod check_credentials;
mod consumption;
pub mod error;
pub mod inspection;
mod late_state;
pub mod notifications;
pub mod ocsp;
mod offers;
mod openapi;
pub mod orders;
pub mod payload;
pub mod receipt;
mod refund_answers;
mod request_body;
pub mod routes;
pub(crate) mod state;
pub mod store;
mod subject_source;
mod subscription;
pub mod test_notification;
mod transaction_actions;
pub mod translate;
pub mod trust;
pub mod verify;

pub(crate) use app_transaction::{AppTransactionRef, AppTransactionRequest};
pub use backfill::AppleBackfill;
pub(crate) use consumption::{
    AppleRefundPreference, ConsumptionInformation, ConsumptionRequest, DeliveryStatus,
    MAX_CONSUMPTION_PERCENTAGE,
};
pub(crate) use late_state::AppleStates;
pub use notifications::AppleNotifications;
pub(crate) use offers::{OfferRequest, OfferTerms};
pub(crate) use refund_answers::AppleRefundAnswers;
pub use routes::{notification_routes, openapi_document, verify_routes};
pub(crate) use transaction_actions::{AppAccountTokenRequest, FinishRequest};
pub use verify::{AppleSettings, AppleVerifier, AppleVerifyRequest};
