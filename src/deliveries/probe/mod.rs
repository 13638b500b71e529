//! Can callbacks be reached that are not sent anything?
//!
//! Promises: nothing is posted and nothing of a delivery changes, neither its attempts nor how its callback is judged; each
//! address is judged as for a delivery; a few callbacks are connected to at once and twenty a second at most; a callback to
//! which events were delivered lately is left alone, but for once a day; while deliveries are held, all of them are.
//!
//! - [`round`]: all of them, one after the other
//! - `result`: what a look can find, in words
//! - [`store`]: what was found

mod result;
pub mod round;
pub mod store;

pub use result::PROBE_RESULTS;
pub use round::{ProbeCounts, ProbeRound, probe_all_callbacks};
pub use store::LastProbe;
