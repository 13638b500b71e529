//! The job `retention`: removes rows that are past their retention period.
//!
//! Guarantees: an event is kept, whatever its age, while one of its deliveries is pending; a parked delivery is
//! pending. A retention period of zero keeps rows for ever. Rows are removed a few hundred at a time, oldest first, so
//! that locks are held for a short time only, and the job can stop between two batches.
//!
//! Running it twice is harmless: removed rows are not found again, and rows that another run has locked are skipped.
//!
//! - [`retention_kind`]: the kinds of rows that are removed, and their retention periods
//! - [`mod@prune`]: the job, and the same for `attesto prune`
//! - `store`: the SQL

pub mod prune;
pub mod retention_kind;
mod store;

pub use prune::prune_expired;
pub(crate) use prune::{count_expired, retention_job};
pub use retention_kind::RetentionKind;
