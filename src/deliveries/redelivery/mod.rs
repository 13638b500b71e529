//! "Deliver that again": one event, or all that a filter finds.
//!
//! Promises: a redelivery is a delivery of its own, with its own attempts, of the same event with the same body; the
//! event's own delivery keeps its schedule, unless a redelivery succeeds, which ends it; a filter is worked off at a
//! bounded rate by whichever process is there, and a process that dies in the middle leaves nothing out and repeats
//! nothing.
//!
//! - [`request`]: [`Filter`], [`Request`], and why one is refused
//! - [`redeliveries`]: [`Redeliveries`], which takes requests and works them off
//! - [`store`]: the queries

pub mod redeliveries;
pub mod request;
mod store;

pub use redeliveries::Redeliveries;
pub use request::{EventStatus, RedeliveryError, RedeliveryFilter, RedeliveryRequest};
pub use store::{REDELIVERIES_PER_SECOND, RedeliveryBatch, RedeliveryPreview};
