//! The kinds of rows that are removed, and their retention periods.

use std::time::Duration;

use crate::base::lane::{Lane, LaneSet};
use crate::config::groups::RetentionSettings;

/// Rows with a retention period, in the order in which they are removed and listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "camelCase")]
pub enum RetentionKind {
    /// Rows of `webhook_events` with their `webhook_deliveries`, once no delivery is pending.
    Events,
    /// Rows of `webhook_redeliveries` that have finished. Kept as long as events.
    Redeliveries,
    /// The column `webhook_deliveries.last_response_body`: the beginning of the callback's response.
    AttemptDetails,
    /// Rows of `validation_audit`.
    ValidationAudit,
    /// Rows of `first_seen_purchases`.
    FirstSeen,
    /// Rows of `webhook_previous_secrets` whose grace period has ended.
    RetiredSecrets,
    /// Rows of `operator_audit`. Its newest row is always kept.
    OperatorAudit,
    /// Rows of `apple_previous_credentials` and `google_previous_credentials` whose grace period has ended.
    ReplacedCredentials,
    /// Rows of `job_runs`.
    JobRuns,
}

/// How long runs of jobs are kept. The newest run of each job is always kept.
const JOB_RUNS_TTL: Duration = Duration::from_hours(30 * 24);

impl RetentionKind {
    /// The name in the job's report and in `attesto prune`.
    pub(crate) fn as_str(self) -> &'static str {
        self.into()
    }

    /// The lanes in which rows are removed, one after the other. Of a kind whose tables have no lanes it is one, in which all rows
    /// are removed.
    pub(super) fn lanes(self) -> LaneSet {
        match self {
            Self::Events
            | Self::Redeliveries
            | Self::AttemptDetails
            | Self::ValidationAudit
            | Self::FirstSeen => LaneSet::ALL,
            Self::RetiredSecrets
            | Self::OperatorAudit
            | Self::ReplacedCredentials
            | Self::JobRuns => Lane::all().take(1).collect(),
        }
    }

    /// The retention period. `None`: rows are kept for ever.
    pub(crate) fn retention_period(self, settings: &RetentionSettings) -> Option<Duration> {
        match self {
            Self::Events | Self::Redeliveries => settings.events,
            Self::ValidationAudit => settings.validation_audit,
            Self::FirstSeen => settings.first_seen,
            Self::OperatorAudit => settings.operator_audit,
            Self::AttemptDetails => settings.attempt_details,
            Self::JobRuns => Some(JOB_RUNS_TTL),
            Self::RetiredSecrets | Self::ReplacedCredentials => Some(Duration::ZERO),
        }
    }
}
