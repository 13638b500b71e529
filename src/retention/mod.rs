//! The job `retention`: removes rows that are past their retention period.
//!
//! Promises: an event with a delivery that has not ended, parked ones included, stays whatever its age; a
//! setting of zero keeps rows for ever; rows are removed a few hundred at a time, oldest first, so that no lock is held for long
//! and a process that is asked to stop can stop.
//!
//! Running it twice is harmless: removed rows are not found again, and rows that another run has locked are skipped.
//!
//! - [`retention_kind`]: what is removed, and after how long
//! - [`mod@prune`]: the job, and the same for `attesto prune`
//! - `store`: the SQL

pub mod prune;
pub mod retention_kind;
mod store;

pub use prune::prune_expired;
pub(crate) use prune::{count_expired, retention_job};
pub use retention_kind::RetentionKind;
