//! What every route shares: the one error body, the JSON extractor, the request log, and the client for calling out.
//!
//! Promises: every answer is JSON, carries its request id, and says nothing of what went wrong inside; every body is
//! bounded by bytes that really arrived; no outgoing call lasts longer than its deadline.
//!
//! - [`envelope`]: what is around every answer: request id, version, error body, log line, caught panics
//! - [`problem`]: the error body, and every code there is
//! - [`described`]: what the API description says of errors
//! - [`body`]: reading a request's body, bounded in bytes and in time
//! - [`health`]: does it live, can it work
//! - [`json`]: a body that is a JSON object, with all that is wrong with it said at once
//! - [`traffic`]: counts of requests, by route
//! - [`outbound`]: calls to a store, with a deadline, quick retries and shared answers

pub mod body;
pub mod described;
pub mod envelope;
pub mod health;
pub mod json;
pub mod outbound;
pub mod problem;
pub mod traffic;

pub use problem::{Code, Problem, Refusal};
