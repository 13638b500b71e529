//! The job `retention`: what is kept only for a time.
//!
//! Promises: an event with a delivery that has not ended, one that waits for a person too, stays whatever its age; a
//! setting of zero keeps for ever; rows go a few hundred at a time, oldest first, so that no lock is held for long and a
//! process that is to stop stops.
//!
//! Twice does no harm: what is gone is not found again, and rows that another run is at are left to it.
//!
//! - [`kind`]: what is kept, and for how long
//! - [`mod@prune`]: the work

pub mod prune;
pub mod retention_kind;
mod store;

pub use prune::{count_expired, prune_expired, retention_job};
pub use retention_kind::RetentionKind;
