//! Holds all deliveries until an operator releases them. For a database that was restored from a backup: its receivers may
//! have got already what it would send again.
//!
//! Guarantees: the hold is stored in the database, so all processes obey it and it survives restarts; when
//! [`store::hold_deliveries`] returns, no further delivery starts; events that arrive meanwhile are stored and wait.
//!
//! - [`store`]: the queries
//! - [`mod@hold_with_retry`]: holds deliveries at start-up, also when the database is not available yet

mod hold_with_retry;
pub mod store;

pub use hold_with_retry::hold_with_retry;
pub use store::{DeliveryHold, WaitingDeliveries};
