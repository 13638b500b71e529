//! Probes: checks whether callbacks can be reached without sending anything to them.
//!
//! Guarantees: no request is sent, and neither deliveries nor the health of callbacks change; addresses are checked as for a
//! delivery; at most eight callbacks are probed at a time, and at most twenty a second; a callback to which an event was
//! delivered recently is probed once a day; while deliveries are held, no callback is probed.
//!
//! - [`round`]: probes all callbacks
//! - [`result`]: the words for what a probe found
//! - [`store`]: the results in the database

mod result;
mod round;
pub(crate) mod store;

pub(crate) use result::PROBE_RESULTS;
pub(crate) use round::{ProbeRound, probe_all_callbacks};
pub(crate) use store::LastProbe;
