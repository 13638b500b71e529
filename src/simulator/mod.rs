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

mod app_store;
pub mod control;
mod exchange;
pub mod identity;
mod notifications;
pub mod pki;
mod play;
pub mod pubsub;
mod routes;
pub mod server;
mod shared;
pub mod state;
#[cfg(test)]
mod tests;

pub use identity::Identity;
pub use pki::Forgery;
pub use pubsub::TokenFlaw;
pub use server::{Simulator, SimulatorOptions};
pub use shared::Seen;
pub use state::Refused;
pub use state::fault::Fault;
