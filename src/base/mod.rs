//! Small tools that know nothing about purchases.
//!
//! - [`clock`]: the current time, and the text format of a moment
//! - [`error`]: shortens errors of libraries
//! - [`id`]: a type for each kind of identifier
//! - [`backoff`]: growing delays between attempts
//! - [`cache`]: values with a time to live, shared loads, invalidation by key
//! - [`single_flight`]: concurrent callers share one call
//! - [`shutdown`]: the signals that stop the process, and core dumps

pub mod backoff;
pub mod cache;
pub mod clock;
pub mod error;
pub mod id;
pub mod shutdown;
pub mod single_flight;
