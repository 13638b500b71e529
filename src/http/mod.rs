//! What every route shares: the one error body, the JSON extractor, the request log, and the client for calling out.
//!
//! Promises: every answer is JSON, carries its request id, and says nothing of what went wrong inside; every body is
//! bounded by bytes that really arrived; no outgoing call lasts longer than its deadline.
//!
//! - [`problem`]: the error body, and every code there is
//! - [`outbound`]: calls to a store, with a deadline, quick retries and shared answers

pub mod outbound;
pub mod problem;

pub use problem::{Code, Problem};
