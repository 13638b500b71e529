//! `attesto apple`: a tenant's App Store credentials, notifications and offers.
//!
//! - [`command`]: the list of commands, and the dispatch to them
//! - [`mod@credentials`] has `set-credentials`, `get-credentials`, `rollback-credentials`
//! - [`mod@test_notification`] has `request-test-notification`
//! - [`mod@backfill`] has `backfill`
//! - [`mod@orders`] has `order` and `refunds`
//! - [`mod@app_transaction`] has `app-transaction`
//! - [`mod@consumption`] has `consumption`, `set-default-answer`, `remove-default-answer`
//! - [`mod@transaction_actions`] has `finish` and `set-app-account-token`
//! - [`mod@offers`] has `sign-offer`

mod app_transaction;
mod backfill;
mod command;
mod consumption;
mod credentials;
mod offers;
mod orders;
mod test_notification;
mod transaction_actions;

pub(super) use command::{AppleCommand, run};
pub(super) use credentials::parse_app_apple_id;
