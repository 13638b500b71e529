//! One request to one callback.
//!
//! Guarantees: a request ends within the timeout, including the answer's body; only addresses that the egress policy has
//! just checked are connected to, directly or through the operator's proxy, no redirect is followed and no proxy of the
//! environment is used; an answer costs a few kilobytes of memory, whatever the receiver sends; the stored bytes are sent unchanged.
//!
//! - [`send`]: [`Sender`], which puts the other files together
//! - [`request`]: the headers of one attempt
//! - [`connect`]: a connection to a checked address, with TLS for the name that was checked
//! - [`failure`]: why an attempt failed, in one sentence
//! - [`read_budget`]: bounds how much is read for one answer
//! - [`pool`]: idle connections, kept for a few seconds
//! - [`retry_after`]: the header `Retry-After`

mod connect;
mod failure;
mod pool;
mod read_budget;
mod request;
mod retry_after;
mod send;

pub use connect::TlsTrust;
pub use send::{ProbeOutcome, Sender, SenderSettings};
