//! What the simulated stores know. Pure: every change takes the time it happens at.
//!
//! Nothing happens by itself but the passing of time: a subscription that nobody renews runs out, and one that ran
//! out long ago is forgotten. Renewals, failed payments and refunds are asked for.
//!
//! - [`apple`]: transactions and subscriptions of the App Store
//! - [`google`]: purchases of Play
//! - [`notifications`]: what the App Store reports, and to whom
//! - [`pubsub`]: what Play publishes, and to whom
//! - [`fault`]: answers that were asked to go wrong
//! - [`period`]: `P1M` and the like
//! - `refused`: why something cannot be done
//! - `books`: all of it, as it survives a restart

pub mod apple;
pub mod apple_notifications;
mod error;
pub mod fault;
pub mod google;
pub mod google_notifications;
pub mod period;
mod store_state;

pub use error::SimulatorError;
pub(in crate::simulator) use error::random_letters;
pub use period::BillingPeriod;
pub(in crate::simulator) use store_state::StoreState;
