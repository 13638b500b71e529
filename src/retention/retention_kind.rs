//! The kinds of rows that are removed, and their retention periods.

use std::time::Duration;

use crate::config::groups::RetentionSettings;

/// Rows with a retention period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionKind {
    /// Rows of `webhook_events` with their `webhook_deliveries`, once no delivery is pending.
    Events,
    /// Rows of `validation_audit`.
    ValidationAudit,
    /// Rows of `operator_audit`. Its newest row is always kept.
    OperatorAudit,
    /// The column `webhook_deliveries.last_response_body`: the beginning of the callback's response.
    AttemptDetails,
    /// Rows of `webhook_redeliveries` that have finished. Kept as long as events.
    Redeliveries,
    /// Rows of `job_runs`.
    JobRuns,
    /// Rows of `webhook_previous_secrets` whose grace period has ended.
    RetiredSecrets,
    /// Rows of `apple_previous_credentials` and `google_previous_credentials` whose grace period has ended.
    ReplacedCredentials,
}

/// How long runs of jobs are kept. The newest run of each job is always kept.
const JOB_RUNS_TTL: Duration = Duration::from_hours(30 * 24);

impl RetentionKind {
    /// All kinds, in the order in which they are removed and listed.
    pub(crate) const ALL: [Self; 8] = [
        Self::Events,
        Self::Redeliveries,
        Self::AttemptDetails,
        Self::ValidationAudit,
        Self::RetiredSecrets,
        Self::OperatorAudit,
        Self::ReplacedCredentials,
        Self::JobRuns,
    ];

    /// The name in the job's report and in `attesto prune`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::ValidationAudit => "validationAudit",
            Self::OperatorAudit => "operatorAudit",
            Self::AttemptDetails => "attemptDetails",
            Self::Redeliveries => "redeliveries",
            Self::JobRuns => "jobRuns",
            Self::RetiredSecrets => "retiredSecrets",
            Self::ReplacedCredentials => "replacedCredentials",
        }
    }

    /// The retention period. `None`: rows are kept for ever.
    pub(crate) fn retention_period(self, settings: &RetentionSettings) -> Option<Duration> {
        match self {
            Self::Events | Self::Redeliveries => settings.events,
            Self::ValidationAudit => settings.validation_audit,
            Self::OperatorAudit => settings.operator_audit,
            Self::AttemptDetails => settings.attempt_details,
            Self::JobRuns => Some(JOB_RUNS_TTL),
            Self::RetiredSecrets | Self::ReplacedCredentials => Some(Duration::ZERO),
        }
    }
}
