//! What is kept of what was asked, and of what operators changed.
//!
//! Promises: a change by an operator is noted in its own transaction or not made; a verification is never slowed, failed or held back by being noted; memory stays bounded however long the
//! database is away, and what had to be dropped is counted and said; what is kept of a purchase is a keyed hash, which
//! can be compared and not turned back.
//!
//! - [`verifications`]: each answer about a purchase, noted behind the answer
//! - [`identifier`]: the hash of what was asked about
//! - [`operators`]: the chain of what operators changed, read and checked
//! - [`store`]: the queries

pub mod operator_audit;
pub mod purchase_hash;
pub mod store;
pub mod verification_log;

pub use verification_log::{VerificationLog, VerificationOutcome};
