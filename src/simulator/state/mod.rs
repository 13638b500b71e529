//! The data of the simulated stores. Pure: every change takes the time at which it happens.
//!
//! Only time passes by itself: a subscription that is not renewed expires, and Play forgets it 60 days later. Renewals,
//! failed payments and refunds happen on request.
//!
//! - [`apple`]: transactions and subscriptions of the App Store, apps and keys
//! - [`apple_notifications`]: the notification of each change, the log of those sent, and the history API's query
//! - [`google`]: purchases of Play, and service accounts
//! - `google_orders`: Play's answers by token or order id alone
//! - [`google_refund_reviews`]: refunds about which Play asks the developer
//! - [`google_notifications`]: the notifications of each change, and the log of those published
//! - [`fault`]: answers that go wrong on request
//! - `bounded_log`: the newest entries of a log
//! - [`period`]: billing periods such as `P1M`
//! - `store_state`: the part that survives a restart
//! - `json`, `error`: helpers of both stores

pub mod apple;
pub mod apple_notifications;
pub(in crate::simulator) mod bounded_log;
mod error;
pub mod fault;
pub mod google;
pub mod google_notifications;
pub(in crate::simulator) mod google_orders;
pub mod google_refund_reviews;
pub(in crate::simulator) mod json;
pub mod period;
mod store_state;

pub use error::SimulatorError;
pub(in crate::simulator) use error::{duration_from_days, random_letters};
pub use period::BillingPeriod;
pub(in crate::simulator) use store_state::StoreState;
