//! `attesto webhook`: a tenant's callback, its secrets, its events and its deliveries.
//!
//! - [`command`]: the list of commands, and the dispatch to them
//! - [`mod@config`] has `set-config`, `get`, `retire-secret`
//! - [`mod@networks`] has `allow`, `disallow`
//! - [`mod@ping`] has `ping`
//! - [`mod@signature`] has `verify-signature`
//! - [`mod@redelivery`] has `redeliver`, `stop-redelivery`
//! - [`mod@history`] has `list-events`, `list-deliveries`
//! - [`mod@show`] has `show`

mod command;
mod config;
mod history;
mod networks;
mod ping;
mod redelivery;
mod show;
mod signature;

pub(super) use command::{WebhookCommand, run};
