//! One request to one callback.
//!
//! Promises: it ends within the timeout, body and all; only an address that was judged a moment before is dialled, and
//! nothing else is: no redirect is followed, no proxy of the environment is used; whatever the receiver sends, it costs
//! a few kilobytes of memory; the stored bytes are sent as they are.
//!
//! - [`request`]: the headers of one attempt
//! - [`dial`]: a connection to a judged address, and TLS to the name it was judged for
//! - [`meter`]: an answer that goes on and on ends
//! - [`pool`]: connections that were left in good order, for a few seconds
//! - [`retry_after`]: what `Retry-After` says
//! - [`send`]: [`Sender`], which puts these together

pub mod connect;
pub mod pool;
pub mod read_budget;
pub mod request;
pub mod retry_after;
pub mod send;

pub use connect::TlsTrust;
pub use request::DeliveryAttempt;
pub use send::{ProbeOutcome, Sender, SenderSettings};
