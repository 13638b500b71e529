//! Delivers events to the callbacks of tenants: a queue of deliveries in Postgres, and the dispatchers that work on it.
//!
//! Guarantees: a stored delivery is retried until the receiver has accepted it or the schedule is over, and then it is
//! reported as failed; every attempt sends the same bytes; a process that dies, hangs or loses the database loses no
//! delivery and overwrites no result of another process; no tenant and no callback delays another; nothing is sent to an
//! address that the egress policy forbids.
//!
//! The queue:
//!
//! - [`delivery`]: the retry policy, pure, and [`schedule`]: the delays between attempts
//! - [`health`]: the health of a callback, and how many requests it may get, pure
//! - [`lane_schedule`]: in which lanes a process claims, and when, pure
//! - [`slots`]: how many deliveries one process may have in flight, pure
//! - [`dispatcher`]: the loop, with its [`metrics`] and [`work_notifier`], which wakes it
//! - [`store`]: claims, results and leases
//! - [`job`]: what one attempt sends, and the trait that the dispatcher sends it with
//! - [`hold`]: stops all deliveries until an operator releases them
//! - [`redelivery`]: delivers stored events again
//!
//! One attempt:
//!
//! - [`signing_sender`]: signs jobs and sends them
//! - [`endpoint`]: a tenant's callback and its secrets
//! - [`body`]: what is sent, as it is stored
//! - [`signature`]: how a delivery is signed
//! - [`sender`]: one request to one callback
//! - [`outcome`]: how an attempt ended
//!
//! For operators:
//!
//! - [`history`]: events and deliveries, and where they stand
//! - [`probe`]: checks callbacks that get no deliveries
//! - [`queue_stats`]: what waits, for metrics and diagnosis

pub mod body;
mod delivery;
mod dispatcher;
pub mod endpoint;
pub mod health;
pub mod history;
pub mod hold;
mod job;
mod lane_schedule;
mod metrics;
mod outcome;
pub(crate) mod probe;
pub(crate) mod queue_stats;
pub mod redelivery;
mod schedule;
pub mod sender;
pub mod signature;
mod signing_sender;
mod slots;
mod store;
mod work_notifier;

pub use dispatcher::{DispatchRound, DispatchStatus, Dispatcher, DispatcherSettings};
pub use job::{DeliveryJob, JobSender};
pub use metrics::DeliveryMetrics;
pub use outcome::{AttemptOutcome, OutcomeClass};
pub use redelivery::Redeliveries;
pub use sender::{Sender, SenderSettings};
pub use signing_sender::SigningSender;
pub use work_notifier::WorkNotifier;
