//! The stored events and deliveries, and the health of callbacks, for operators.
//!
//! - [`store`]: the SQL

pub mod store;

pub use store::{CallbackRow, DeliveryRow, EventRow};
