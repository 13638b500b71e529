//! How many deliveries wait and in which states callbacks are, for metrics and diagnosis.
//!
//! - [`store`]: the queries

mod store;

pub(crate) use store::{CALLBACK_STATES, QueueStats};
