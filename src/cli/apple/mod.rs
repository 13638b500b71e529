//! `attesto apple`: a tenant's App Store credentials.
//!
//! - [`command`]: the list of commands, and the dispatch to them
//! - [`credentials`]: `set-credentials`, `get-credentials`, `rollback-credentials`
//! - [`test_notification`]: `request-test-notification`

mod command;
mod credentials;
mod test_notification;

pub(super) use command::{AppleCommand, run};
