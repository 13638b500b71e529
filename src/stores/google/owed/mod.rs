//! Purchases that must be acknowledged, or Google refunds them.
//!
//! Guarantees: each purchase whose notification was received unacknowledged is asked about once more well before its deadline,
//! and the tenant is told once, with an event `purchase.acknowledge_due`, if the acknowledgement is still owed then.
//!
//! - [`watch`]: the loop that asks and tells
//! - [`store`]: the list of such purchases

mod store;
mod watch;

pub(super) use store::NewOwedAcknowledgement;
pub use watch::AcknowledgementWatch;
