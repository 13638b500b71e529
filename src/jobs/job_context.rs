//! What jobs work with.

use std::sync::Arc;

use crate::base::clock::Clock;
use crate::config::groups::{ExpiryThresholds, JobIntervals, RetentionSettings};
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::deliveries::Sender;

/// What jobs work with.
#[derive(Clone)]
pub struct JobContext {
    /// Where everything is.
    pub database: Database,
    /// The encryption keys. `None`: this process was given none, and the jobs that need them fail.
    pub keyring: Option<Arc<Keyring>>,
    /// Connects to callbacks. `None`: this machine trusts nobody, and the job that needs it fails.
    pub sender: Option<Sender>,
    /// What time it is.
    pub clock: Clock,
    /// How often each runs.
    pub intervals: JobIntervals,
    /// Whether somebody asks for a run: then also what a run did lately is done again.
    pub is_forced: bool,
    /// How long what is kept.
    pub retention: RetentionSettings,
    /// When what is warned of.
    pub cadences: ExpiryThresholds,
}
