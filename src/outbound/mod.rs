//! HTTP calls to the stores: pooled, bounded in time and size, with few retries.
//!
//! No call lasts longer than its deadline, no response is larger than its limit, and no error contains a URL. Callbacks
//! of tenants are called by `deliveries`, which trusts them less.
//!
//! - [`build_http_client`]: the client for the Internet; [`build_local_http_client`]: one for a service on this machine
//! - [`StoreClients`]: several clients, so that slow calls of some tenants do not delay others
//! - [`Upstream`]: one logical call to a store, including retries
//! - `tunnel_client`: calls through the operator's egress proxy
//! - [`Bulkhead`]: limits the concurrent calls of one tenant, and leaves room for others

pub use crate::base::error::root_cause;

mod bulkhead;
mod clients;
mod http_client;
mod system_trust;
mod tunnel_client;
mod upstream;

pub use bulkhead::{Bulkhead, CallPermit};
pub(crate) use clients::MAX_CONCURRENT_CALLS;
pub use clients::StoreClients;
pub use http_client::{
    CertificateTrust, HttpClientError, build_http_client, build_local_http_client,
};
pub(crate) use system_trust::system_verifier;
pub(crate) use upstream::server_text;
pub use upstream::{
    RetryDecision, Upstream, UpstreamError, UpstreamResponse, describe_json_error,
    parse_retry_after, push_path_segment,
};
