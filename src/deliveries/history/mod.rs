//! What was received, and what became of it: for people who look.
//!
//! - [`store`]: the queries

pub mod store;

pub use store::{CallbackRow, DeliveryRow, EventRow};
