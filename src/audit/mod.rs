//! The log of verifications, and the operator audit log.
//!
//! Guarantees: a change by an operator is logged in its own transaction, or not made. Logging never delays a
//! verification or makes it fail. Memory stays bounded however long the database is unreachable; dropped rows are
//! counted and logged. Of a purchase only a keyed hash is stored, which can be compared and not reversed.
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
