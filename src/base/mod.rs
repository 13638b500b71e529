//! Small tools without knowledge of purchases.
//!
//! - [`clock`]: the time, and how a moment is written
//! - [`error`]: what an error of a library comes down to
//! - [`id`]: a type for each kind of identifier
//! - [`backoff`]: growing pauses between attempts
//! - [`cache`]: values with a lifetime, loaded once for all who ask, invalidated by key
//! - [`single_flight`]: one call for callers who ask the same at the same time
//! - [`shutdown`]: the signal that ends the process

pub mod backoff;
pub mod cache;
pub mod clock;
pub mod error;
pub mod id;
pub mod shutdown;
pub mod single_flight;
