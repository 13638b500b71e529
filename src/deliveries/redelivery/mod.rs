//! Delivers stored events again: one event, or all that match a filter.
//!
//! Guarantees: a redelivery is a delivery with its own attempts, of the same event with the same body; the original delivery to the
//! same callback keeps its schedule, unless a redelivery succeeds, which ends it; the events that match a filter are enqueued at a bounded
//! rate by any process, and a process that dies in the middle leaves out no event and enqueues none twice.
//!
//! - [`request`]: filters, requests and their errors
//! - [`redeliveries`]: [`Redeliveries`], which accepts requests and enqueues events
//! - [`store`]: the queries

mod redeliveries;
mod request;
mod store;

pub use redeliveries::Redeliveries;
pub use request::{
    EnqueuedDelivery, EventStatus, RedeliveryError, RedeliveryFilter, RedeliveryRequest,
};
pub use store::{REDELIVERIES_PER_SECOND, RedeliveryBatch, RedeliveryPreview};
