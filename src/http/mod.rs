//! What every route shares: the error body, the reading of requests and the request log.
//!
//! Every answer is JSON, carries its request id, and reveals no internal cause. Every body is bounded by the bytes that
//! really arrive.
//!
//! - [`request_layer`]: the layer around every answer: request id, version, error body, log line, caught panics
//! - [`problem`]: the error body, and every error code
//! - [`api_docs`]: errors in the OpenAPI document
//! - [`body`]: reads a request's body, bounded in bytes and in time
//! - [`body_budget`]: bounds what all bodies weigh together, and what those of one client do
//! - [`client_address`]: the address of a client behind proxies
//! - [`connection_info`]: what a request carries of its connection
//! - [`health`]: `/health` and `/ready`
//! - [`json`]: reads a body that is a JSON object, and reports every issue at once
//! - [`query_string`]: reads the query of a URL, and reports every issue at once
//! - [`request_metrics`]: counts requests, by route
//! - [`trusted_proxies`]: the proxies whose statements about a client's address count

pub mod api_docs;
pub mod body;
pub mod body_budget;
pub mod client_address;
pub mod connection_info;
pub mod health;
pub mod json;
pub mod problem;
pub(crate) mod query_string;
pub mod request_layer;
pub mod request_metrics;
pub mod trusted_proxies;

pub use problem::{ErrorCode, Problem};
