//! What every route shares: the one error body, the JSON extractor and the request log.
//!
//! Promises: every answer is JSON, carries its request id, and says nothing of what went wrong inside; every body is
//! bounded by bytes that really arrived.
//!
//! - [`envelope`]: what is around every answer: request id, version, error body, log line, caught panics
//! - [`problem`]: the error body, and every code there is
//! - [`described`]: what the API description says of errors
//! - [`body`]: reading a request's body, bounded in bytes and in time
//! - [`health`]: does it live, can it work
//! - [`json`]: a body that is a JSON object, with all that is wrong with it said at once
//! - [`traffic`]: counts of requests, by route

pub mod api_docs;
pub mod body;
pub mod health;
pub mod json;
pub mod problem;
pub mod request_layer;
pub mod request_metrics;

pub use problem::{ErrorCode, Problem};
