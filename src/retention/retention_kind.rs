//! What is kept, and for how long.

use std::time::Duration;

use crate::config::groups::RetentionSettings;

/// Something that is kept for a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionKind {
    /// `webhook_events` with their `webhook_deliveries`, once every delivery has ended.
    Events,
    /// `validation_audit`.
    ValidationAudit,
    /// `operator_audit`; the newest row always stays.
    OperatorAudit,
    /// What callbacks answered: `webhook_deliveries.last_response_body`.
    AttemptDetails,
    /// `webhook_redeliveries` that have ended. As long as events: without those they say nothing.
    Redeliveries,
    /// `job_runs`.
    JobRuns,
    /// `webhook_previous_secrets` that no longer sign.
    RetiredSecrets,
    /// `apple_previous_credentials` and `google_previous_credentials` that one can no longer go back to.
    ReplacedCredentials,
}

/// Runs of jobs are kept this long; the last one of each is kept for ever.
const JOB_RUNS_TTL: Duration = Duration::from_hours(30 * 24);

impl RetentionKind {
    /// In the order in which they are pruned and shown.
    pub const ALL: [Self; 8] = [
        Self::Events,
        Self::Redeliveries,
        Self::AttemptDetails,
        Self::ValidationAudit,
        Self::RetiredSecrets,
        Self::OperatorAudit,
        Self::ReplacedCredentials,
        Self::JobRuns,
    ];

    /// What it is called.
    pub fn as_str(self) -> &'static str {
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

    /// How long it is kept. `None`: for ever.
    pub fn retention_period(self, settings: &RetentionSettings) -> Option<Duration> {
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
