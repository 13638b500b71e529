//! `attesto webhook`: a tenant's callbacks, their secrets, its events and their deliveries.
//!
//! - [`command`]: the list of commands, and the dispatch to them
//! - [`mod@callbacks`] has `add`, `list`, `set-filter`, `remove`
//! - [`mod@config`] has `set-config`, `get`, `retire-secret`
//! - [`mod@networks`] has `allow`, `disallow`
//! - [`mod@ping`] has `ping`
//! - [`mod@signature`] has `verify-signature`
//! - [`mod@redelivery`] has `redeliver`, `stop-redelivery`
//! - [`mod@history`] has `list-events`, `list-deliveries`
//! - [`mod@show`] has `show`

mod callbacks;
mod command;
mod config;
mod history;
mod networks;
mod ping;
mod redelivery;
mod show;
mod signature;

pub(super) use command::{WebhookCommand, run};
