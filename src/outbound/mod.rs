//! Calls to others: pooled, bounded in time and size, retried a little.
//!
//! Promises: no call lasts longer than its deadline, no answer is larger than its bound, no error repeats a URL.
//! Callbacks of tenants are called by `deliveries`, which trusts them less.
//!
//! - [`client()`] builds the one HTTP client; [`client_believing`] one for a service at this machine
//! - [`Upstream`] makes one logical call to a store, retries included
//! - [`Bulkhead`] bounds how many one tenant may have running

pub use crate::base::error::root_cause;

mod bulkhead;
mod http_client;
mod upstream;

pub use bulkhead::Bulkhead;
pub use http_client::{
    CertificateTrust, HttpClientError, build_http_client, build_local_http_client,
};
pub use upstream::{
    RetryDecision, Upstream, UpstreamError, UpstreamResponse, describe_json_error,
    parse_retry_after, push_path_segment,
};
