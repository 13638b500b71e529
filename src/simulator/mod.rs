//! A simulated App Store and a simulated Google Play, which make real signatures.
//!
//! Their signatures verify against their own root only; requests are checked as the real stores check them; only
//! purchases made here exist, and time is the clock's. The simulator shares no code with `stores`, which calls it, so
//! that a mistake there is not repeated here.
//!
//! One port serves everything; the path decides: `/apple/production`, `/apple/sandbox`, `/google/play`,
//! `/google/token`, `/google/certs`, and `/control`, which lists its operations.
//!
//! - [`server`]: starts and stops the simulator
//! - [`control`]: makes purchases, changes them and adds faults, from Rust or over HTTP
//! - `app_store_api`, `play_api`: the stores' own APIs
//! - `notification_push`: signs and posts App Store notifications
//! - [`pubsub`]: pushes Play's notifications
//! - [`state`]: purchases, apps, accounts and faults
//! - [`identity`]: the stores' keys, and those of the developer who calls them
//! - [`app_receipt`]: receipts of `StoreKit` 1
//! - [`pki`]: the certificate authority, and forged signatures
//! - `context`: what all parts of a running simulator share
//! - `request`, `routes`: a store's request and answer, and the router

pub mod app_receipt;
mod app_store_api;
mod context;
pub mod control;
pub mod identity;
mod notification_push;
pub mod pki;
mod play_api;
pub mod pubsub;
mod request;
mod routes;
pub mod server;
pub mod state;
#[cfg(test)]
mod tests;

pub use context::RecordedRequest;
pub use identity::SimulatorIdentity;
pub use pki::JwsForgery;
pub use pubsub::PushTokenFlaw;
pub use server::{Simulator, SimulatorOptions};
pub use state::SimulatorError;
pub use state::fault::Fault;
