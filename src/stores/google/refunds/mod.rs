//! Refunds: each becomes one event, whether a push or Google's list tells it first.
//!
//! - [`backfill`]: fetches refunds whose notification did not arrive
//! - [`known_refund`]: refunds that are known
//! - `store`: the queries

pub(super) mod backfill;
pub(super) mod known_refund;
mod store;
