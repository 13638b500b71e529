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
mod books;
pub mod fault;
pub mod google;
pub mod notifications;
pub mod period;
pub mod pubsub;
mod refused;

pub(in crate::simulator) use books::State;
pub use period::Period;
pub use refused::Refused;
pub(in crate::simulator) use refused::letters;
