//! Subscriptions whose message did not arrive: Google lists no renewals, so what should have changed by now is read again.
//!
//! - [`reader`]: reads subscriptions again, and tells what has changed
//! - `store`: the queries

pub(super) mod reader;
mod store;
