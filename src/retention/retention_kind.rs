//! What is removed, and after how long.

use std::time::Duration;

use crate::config::groups::RetentionSettings;

/// Rows with a retention period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionKind {
    /// `webhook_events` with their `webhook_deliveries`, once every delivery has ended.
    Events,
    /// `validation_audit`.
    ValidationAudit,
    /// `operator_audit`; its newest row always stays.
    OperatorAudit,
    /// `webhook_deliveries.last_response_body`: the beginning of the callback's answer.
    AttemptDetails,
    /// `webhook_redeliveries` that have ended. Kept as long as the events they are about.
    Redeliveries,
    /// `job_runs`.
    JobRuns,
    /// `webhook_previous_secrets` that no longer sign.
    RetiredSecrets,
    /// `apple_previous_credentials` and `google_previous_credentials` that can no longer be rolled back to.
    ReplacedCredentials,
}

/// The last run of each job is kept for ever.
const JOB_RUNS_TTL: Duration = Duration::from_hours(30 * 24);

impl RetentionKind {
    /// In the order in which they are removed and shown.
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

    /// The word in the job's report and in `attesto prune`.
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

    /// `None`: for ever.
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
