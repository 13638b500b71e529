//! Lives of purchases, played on the simulated stores, and what the receiver of docs/integrate.md makes of them.

pub(crate) mod reference_receiver;
