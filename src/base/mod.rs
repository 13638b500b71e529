//! Small tools that know nothing about purchases.
//!
//! - `certificate`: when an X.509 certificate is valid
//! - [`clock`]: the current time, and the text format of a moment
//! - [`error`]: shortens errors of libraries
//! - `governor_clock`: the same time for rate limiters
//! - [`id`]: a type for each kind of identifier
//! - [`backoff`]: growing delays between attempts
//! - [`cache`]: values with a time to live, shared loads, invalidation by key
//! - `json_text`: whether Postgres stores a JSON text
//! - [`lane`]: the parts in which deliveries are claimed
//! - `lookup_lanes`: bounds what strangers can have looked up
//! - [`progress`]: reports how far a long operation is
//! - [`single_flight`]: concurrent callers share one call
//! - `tls_error`: why a TLS connection failed, in one sentence
//! - [`shutdown`]: the signals that stop the process, and core dumps

pub mod backoff;
pub mod cache;
pub(crate) mod certificate;
pub mod clock;
pub mod error;
pub(crate) mod governor_clock;
pub mod id;
pub(crate) mod json_text;
pub mod lane;
pub(crate) mod lookup_lanes;
pub mod progress;
pub mod shutdown;
pub mod single_flight;
pub(crate) mod tls_error;
