//! Nothing is sent until somebody says so: for a system that was restored, whose receivers already have what it would
//! send again.
//!
//! Promises: the hold is in the database, so every process that delivers obeys it and no restart forgets it; when
//! [`store::hold`] returns, no delivery is begun any more; what arrives meanwhile is stored and waits.
//!
//! - [`store`]: held, released, and how much waits
//! - [`mod@insist`]: held before anything is sent, however long the database takes to come

pub mod hold_with_retry;
pub mod store;

pub use hold_with_retry::hold_with_retry;
pub use store::{DeliveryHold, WaitingDeliveries};
