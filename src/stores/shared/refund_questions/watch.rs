//! The loop that answers the stores' questions about refunds with the answers of tenants' settings.
//! Any number of processes can run one on the same database.
//!
//! A question is on the list since its notification was received. Two hours before its deadline, or after half of the time that it
//! has, and unless the backend has answered it, the tenant's default answer is sent. While the store gives no answer it is tried again
//! every minute, until the deadline. A tenant without a default answer is named in the log, once when a question is due and
//! once when it is over.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use tokio::time::timeout;

use super::store::{self, ClaimLimits, RefundOutcome, RefundQuestion, RetryPlan};
use crate::base::backoff::{delay_after, spread};
use crate::db::{Database, Error};
use crate::events::EventSource;
use crate::stores::shared::worker::ListWorker;
use crate::telemetry::metrics::{Counter, MetricVec, MetricsRegistry};

/// What one round answers at once. Apple's own limit for a tenant is far higher.
const CLAIM_LIMITS: ClaimLimits = ClaimLimits {
    questions: 16,
    questions_per_tenant: 4,
};
/// For one answer. Shorter than the lease.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// The pause after the first failure. It doubles up to the maximum, which is short: the deadline is near.
const FIRST_RETRY_DELAY: Duration = Duration::from_secs(15);
const MAX_RETRY_DELAY: Duration = Duration::from_mins(1);

/// What became of a default answer.
#[derive(Clone, Debug)]
pub(crate) enum DefaultAnswer {
    /// The tenant has none.
    NotSet,
    Sent,
    /// The store will not take it.
    Refused(String),
    /// It may be taken later.
    Failed {
        class: String,
        cause: String,
        /// Whether the store may have taken it all the same: it was sent, and there was no answer.
        may_be_taken: bool,
    },
}

/// Sends the default answers of tenants to one store.
pub(crate) trait RefundAnswerSource: Send + Sync {
    /// Sends the default answer of the question's tenant, if there is one.
    fn send_default<'a>(&'a self, question: &'a RefundQuestion) -> BoxFuture<'a, DefaultAnswer>;
}

/// The stores, each told about its own questions.
#[derive(Clone)]
pub(crate) struct DefaultAnswers {
    pub(crate) apple: Arc<dyn RefundAnswerSource>,
    pub(crate) google: Arc<dyn RefundAnswerSource>,
}

/// How many questions ended in which way.
#[derive(Clone)]
pub(crate) struct RefundAnswerMetrics {
    outcomes: MetricVec<2, Counter>,
}

impl RefundAnswerMetrics {
    /// Every series exists from the start, so that the first question is an increase.
    pub(crate) fn new(registry: &MetricsRegistry) -> Self {
        let outcomes = registry.register_counter_vec(
            "attesto_refund_questions_total",
            "Questions of stores about refunds that the backend had not answered when their deadline came near, by what became of them.",
            ["store", "outcome"],
        );
        let all = [
            RefundOutcome::DefaultSent,
            RefundOutcome::Refused,
            RefundOutcome::Missed,
        ];
        for source in [EventSource::Apple, EventSource::Google] {
            for outcome in all {
                outcomes.with_label_values([source.as_str(), outcome.into()]);
            }
        }
        Self { outcomes }
    }

    fn count(&self, source: EventSource, outcome: RefundOutcome) {
        self.outcomes
            .with_label_values([source.as_str(), outcome.into()])
            .inc();
    }
}

/// Sends the default answers of tenants.
pub struct RefundAnswerWatch {
    database: Database,
    answers: DefaultAnswers,
    metrics: RefundAnswerMetrics,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RefundAnswerRound {
    /// Questions that were due and are answered by no other process.
    pub claimed: usize,
    /// Of these, the ones whose store took the default answer.
    pub sent: usize,
}

impl ListWorker for RefundAnswerWatch {
    const POLL_INTERVAL: Duration = Duration::from_secs(15);
    const FAILURE_EVENT: &str = "refund_questions_not_watched";

    async fn work(&mut self) -> Result<bool, Arc<Error>> {
        Ok(self.tick().await?.claimed > 0)
    }
}

impl RefundAnswerWatch {
    pub(crate) fn new(
        database: &Database,
        answers: DefaultAnswers,
        metrics: RefundAnswerMetrics,
    ) -> Self {
        Self {
            database: database.clone(),
            answers,
            metrics,
        }
    }

    /// Does one round, of which nothing runs on when this returns.
    pub async fn tick(&self) -> Result<RefundAnswerRound, Error> {
        store::remove_old(&self.database).await?;
        let claimed = store::claim_due(&self.database, CLAIM_LIMITS).await?;
        let answers = join_all(claimed.iter().map(|question| self.answer(question))).await;
        let mut round = RefundAnswerRound {
            claimed: claimed.len(),
            sent: 0,
        };
        for is_sent in answers {
            round.sent += usize::from(is_sent?);
        }
        Ok(round)
    }

    /// Sends the default answer, and records at once what became of it. Returns whether the store has it.
    ///
    /// A process that ends between the two leaves a question that is answered a second time, after its lease. That is harmless: Apple takes
    /// the newest answer, which is the same; and Google takes the first one only and says so, which the second try knows how to
    /// read (see [`RefundQuestion::may_be_taken`]).
    async fn answer(&self, question: &RefundQuestion) -> Result<bool, Error> {
        let answer = self.send_default(question).await;
        let is_sent = matches!(answer, Some(DefaultAnswer::Sent));
        self.record(question, answer).await?;
        Ok(is_sent)
    }

    /// `None`: the deadline is over.
    async fn send_default(&self, question: &RefundQuestion) -> Option<DefaultAnswer> {
        if question.is_over {
            return None;
        }
        let source = match question.source {
            EventSource::Apple => &self.answers.apple,
            EventSource::Google => &self.answers.google,
        };
        let sending = timeout(SEND_TIMEOUT, source.send_default(question));
        Some(sending.await.unwrap_or_else(|_| DefaultAnswer::Failed {
            class: format!("{} timeout", question.source.as_str()),
            cause: format!("no answer within {SEND_TIMEOUT:?}"),
            may_be_taken: true,
        }))
    }

    async fn record(
        &self,
        question: &RefundQuestion,
        answer: Option<DefaultAnswer>,
    ) -> Result<(), Error> {
        let (tenant, by) = (&question.tenant, question.answer_by);
        let store = question.source.as_str();
        let attempt = question.attempt;
        let (outcome, error) = match answer {
            None => {
                tracing::error!(
                    tenantId = %tenant, store, answerBy = %by, attempts = attempt,
                    hint = "the store decides on the refund without an answer; a default answer is sent by itself: attesto apple set-default-answer, attesto google set-default-answer",
                    "refund_answer_missed"
                );
                (RefundOutcome::Missed, None)
            }
            Some(DefaultAnswer::Sent) => {
                tracing::info!(tenantId = %tenant, store, answerBy = %by, attempts = attempt, "refund_default_answer_sent");
                (RefundOutcome::DefaultSent, None)
            }
            Some(DefaultAnswer::Refused(reason)) => {
                tracing::error!(
                    tenantId = %tenant, store, answerBy = %by, attempts = attempt, cause = reason,
                    causeClass = "refused by the store",
                    hint = "the default answer is not tried again; the backend may still answer",
                    "refund_default_answer_refused"
                );
                (RefundOutcome::Refused, Some(reason))
            }
            Some(DefaultAnswer::NotSet) => {
                // Once, and not each time.
                if attempt == 1 {
                    tracing::warn!(
                        tenantId = %tenant, store, answerBy = %by,
                        hint = "the tenant has no default answer: its backend must answer before answerBy",
                        "refund_answer_due"
                    );
                }
                return store::put_off(
                    &self.database,
                    question,
                    &RetryPlan::after(MAX_RETRY_DELAY),
                )
                .await;
            }
            Some(DefaultAnswer::Failed {
                class,
                cause,
                may_be_taken,
            }) => {
                tracing::warn!(
                    tenantId = %tenant, store, answerBy = %by, attempts = attempt, cause, causeClass = class,
                    hint = "it is tried again until answerBy",
                    "refund_default_answer_failed"
                );
                let delay = delay_after(attempt, FIRST_RETRY_DELAY, MAX_RETRY_DELAY);
                let delay = spread(delay, fastrand::f64());
                let plan = RetryPlan {
                    error: Some(&cause),
                    may_be_taken,
                    ..RetryPlan::after(delay)
                };
                return store::put_off(&self.database, question, &plan).await;
            }
        };
        store::finish(&self.database, question, outcome, error.as_deref()).await?;
        self.metrics.count(question.source, outcome);
        Ok(())
    }
}
