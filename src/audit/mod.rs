//! What is kept of what was asked.
//!
//! Promises: a verification is never slowed, failed or held back by being noted; memory stays bounded however long the
//! database is away, and what had to be dropped is counted and said; what is kept of a purchase is a keyed hash, which
//! can be compared and not turned back.
//!
//! - [`verifications`]: each answer about a purchase, noted behind the answer
//! - [`identifier`]: the hash of what was asked about
//! - [`store`]: the queries

pub mod identifier;
pub mod store;
pub mod verifications;

pub use verifications::{Verdict, Verifications};
