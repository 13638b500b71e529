//! What waits to be delivered, and how the callbacks are: for metrics and for diagnosis.
//!
//! - [`store`]: the queries

pub mod store;

pub use store::{CALLBACK_STATES, MAX_COUNTED, QueueStats};
