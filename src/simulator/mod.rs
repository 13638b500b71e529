//! The two stores, played: a fake App Store and a fake Play that sign for real.
//!
//! Promises: what they sign verifies against their own root and nothing else; what they are sent is checked as the
//! stores check it; they know only the purchases that were made here, and time passes for them as the clock says.
//! They are the other side of the wire and share no line of code with the rooms that call the stores, so that a
//! mistake there cannot hide here.
//!
//! One port serves everything, told apart by the path: `/apple/production`, `/apple/sandbox`, `/google/play`,
//! `/google/token`, `/google/certs`, and `/control`, which lists what it can do.
//!
//! - [`server`]: start and stop
//! - [`control`]: make purchases, change them, and let answers go wrong; from Rust or over HTTP
//! - `app_store`, `play`: what the stores answer
//! - [`pubsub`]: pushes what Play publishes
//! - `notifications`: signs and posts what the App Store reports
//! - [`state`]: what the stores know
//! - [`identity`]: their keys, and those of the developer who calls them
//! - [`pki`]: the certificate authority, and forgeries
//! - `shared`, `exchange`, `routes`: how these hang together

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
