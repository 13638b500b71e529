//! The log of verifications, and the operator audit log.
//!
//! Promises: a change by an operator is logged in its own transaction or not made; logging never delays a verification
//! or makes it fail; memory stays bounded however long the database is unreachable, and dropped rows are counted and
//! reported; of a purchase only a keyed hash is stored, which can be compared and not reversed.
//!
//! - [`verification_log`]: a row for each verification, written after the answer was sent
//! - [`purchase_hash`]: the hash of a transaction id or purchase token
//! - [`operator_audit`]: the hash chain of operators' changes, read and verified
//! - [`store`]: the SQL

pub mod operator_audit;
pub mod purchase_hash;
pub mod store;
pub mod verification_log;

pub use verification_log::{VerificationLog, VerificationOutcome};
