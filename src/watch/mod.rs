//! What an installation is watched for: secrets that should be exchanged, certificates that end, and whatever is no longer
//! as it was set up.
//!
//! Promises: it looks and changes nothing; what it finds says whose it is and what to type, and never more of a secret than
//! its fingerprint; a look costs the same however long the history of events is.
//!
//! - [`drift`]: what is set up, compared with what is there
//! - [`expiry`]: keys that are too old or that nobody uses, and certificates that end
//! - `store`: the queries

pub mod drift;
pub mod expiry;
mod store;
