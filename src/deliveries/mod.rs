//! What a tenant's callback is told, and how it gets there.
//!
//! Promises: what was stored is sent until the receiver has it, or until the schedule is over and somebody is told; the
//! same bytes every time; no process that dies, hangs or is cut off loses a delivery or undoes another's result; no
//! tenant and no callback keeps another one waiting; nothing is sent where it must not be.
//!
//! - [`delivery`]: what becomes of a delivery after an attempt: the whole policy, pure
//! - [`schedule`]: the pauses between attempts
//! - [`health`]: how a callback has behaved, and how much it is sent because of it: pure
//! - [`slots`]: how many deliveries one process has under way: pure
//! - [`dispatcher`]: the loop
//! - [`wake`]: "there is work"
//! - [`courier`]: what the loop hands over, and to whom
//! - [`post`]: the courier of the real world: it signs and sends
//! - [`store`]: claims, results, leases
//! - [`redelivery`]: "deliver that again"
//! - [`endpoint`]: where a tenant's callback is, and what signs what is sent there
//! - [`guard`]: which addresses a callback may be at
//! - [`signature`]: how a delivery is signed
//! - [`sender`]: one request to one callback
//! - [`outcome`]: how that went
//! - [`history`]: what was received, and what became of it
//! - [`hold`]: nothing is sent until somebody says so
//! - [`probe`]: can callbacks be reached that are not sent anything
//! - [`stock`]: what waits, and how the callbacks are

pub mod delivery;
pub mod dispatcher;
pub mod endpoint;
pub mod health;
pub mod history;
pub mod hold;
pub mod outcome;
pub mod probe;
pub mod queue_stats;
pub mod redelivery;
pub mod schedule;
pub mod sender;
pub mod signature;
pub mod signing_transport;
pub mod slots;
mod store;
pub mod transport;
pub mod work_notifier;

pub use dispatcher::{DeliveryMetrics, DispatchRound, Dispatcher, DispatcherSettings};
pub use outcome::{AttemptOutcome, OutcomeClass};
pub use redelivery::Redeliveries;
pub use sender::{DeliveryAttempt, Sender, SenderSettings};
pub use transport::{ClaimedDelivery, DeliveryTransport};
pub use work_notifier::WorkNotifier;
