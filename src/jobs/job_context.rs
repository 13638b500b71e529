//! The input of jobs.

use std::sync::Arc;

use crate::base::clock::Clock;
use crate::base::progress::SharedReport;
use crate::config::groups::{ExpiryThresholds, JobIntervals, RetentionSettings};
use crate::crypto::keyring::Keyring;
use crate::db::Database;
use crate::deliveries::Sender;
use crate::stores::apple::AppleBackfill;
use crate::stores::google::GoogleBackfill;

/// The input of jobs.
#[derive(Clone)]
pub struct JobContext {
    /// The database that the jobs read and clean up.
    pub database: Database,
    /// The encryption keys. `None` if none is configured: jobs that need them fail.
    pub keyring: Option<Arc<Keyring>>,
    /// Connects to callbacks. `None` if this machine has no root certificates: the job `probe` fails.
    pub sender: Option<Sender>,
    /// Reads Apple's history of notifications. `None` if no encryption key is configured: the job `backfill` fails.
    pub apple_backfill: Option<AppleBackfill>,
    /// Reads Google's lists of refunds. `None` as above.
    pub google_backfill: Option<GoogleBackfill>,
    /// The clock for ages that are not computed by the database.
    pub clock: Clock,
    /// How often each job runs.
    pub intervals: JobIntervals,
    /// Whether the run was started by a command. It then also repeats work that an earlier run did recently.
    pub is_forced: bool,
    /// The retention periods, for the job `retention`.
    pub retention: RetentionSettings,
    /// The thresholds for warnings, for the job `expiry`.
    pub cadences: ExpiryThresholds,
    /// Shows how far a run is that a command started.
    pub report: SharedReport,
}
