//! `attesto webhook`: a tenant's callback, its secrets, its events and its deliveries.
//!
//! - [`command`]: the list of commands, and the dispatch to them
//! - [`config`]: `set-config`, `get`, `retire-secret`
//! - [`networks`]: `allow`, `disallow`
//! - [`ping`]: `ping`
//! - [`signature`]: `verify-signature`
//! - [`redelivery`]: `redeliver`, `stop-redelivery`
//! - [`history`]: `list-events`, `list-deliveries`

mod command;
mod config;
mod history;
mod networks;
mod ping;
mod redelivery;
mod signature;

pub(super) use command::{WebhookCommand, run};
