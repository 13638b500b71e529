//! Answers to Apple's questions about refunds: the backend's, and that of the tenant's settings where the backend gives none.

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::account::EnvironmentChoice;
use super::action_error::AppleActionError;
use super::consumption::{ConsumptionRequest, SentConsumption};
use super::error::AppleVerifyError;
use super::store;
use super::verify::AppleVerifier;
use crate::base::id::TenantId;
use crate::db::{describe_cause, error_class};
use crate::events::EventSource;
use crate::stores::shared::refund_questions::{
    BegunAnswer, DefaultAnswer, RefundAnswerSource, RefundQuestion, RefundQuestionKey,
};

/// Sends the default answers of tenants to Apple.
pub(crate) struct AppleRefundAnswers {
    apple: AppleVerifier,
}

impl AppleVerifier {
    /// Sends the backend's answer; the tenant's default answer is not sent after it.
    pub(crate) async fn answer_consumption_request(
        &self,
        tenant: &TenantId,
        request: &ConsumptionRequest,
    ) -> Result<SentConsumption, AppleActionError> {
        let key = RefundQuestionKey {
            source: EventSource::Apple,
            purchase_id: &request.transaction_id,
            refund_token: None,
        };
        let sending = self.send_consumption(tenant, request);
        BegunAnswer::send(&self.database, tenant, key, sending).await
    }
}

impl AppleRefundAnswers {
    pub(crate) fn new(apple: &AppleVerifier) -> Self {
        Self {
            apple: apple.clone(),
        }
    }

    async fn send(&self, question: &RefundQuestion) -> DefaultAnswer {
        let tenant = &question.tenant;
        let information = match store::find_default_consumption(&self.apple.database, tenant).await
        {
            Ok(Some(information)) => information,
            Ok(None) => return DefaultAnswer::NotSet,
            Err(error) => {
                return DefaultAnswer::Failed {
                    class: error_class(&error),
                    cause: describe_cause(&error),
                    may_be_taken: false,
                };
            }
        };
        let environment = question.environment.as_deref();
        let request = ConsumptionRequest {
            transaction_id: question.purchase_id.clone(),
            environment: environment.and_then(EnvironmentChoice::parse),
            information,
        };
        let Err(cause) = self.apple.send_consumption(tenant, &request).await else {
            return DefaultAnswer::Sent;
        };
        match &cause {
            AppleActionError::NotAccepted { .. }
            | AppleActionError::Verify(AppleVerifyError::NotFound { .. }) => {
                DefaultAnswer::Refused(cause.to_string())
            }
            _ => DefaultAnswer::Failed {
                class: "apple consumption".to_owned(),
                cause: cause.to_string(),
                // It makes no difference: Apple takes every answer.
                may_be_taken: false,
            },
        }
    }
}

impl RefundAnswerSource for AppleRefundAnswers {
    fn send_default<'a>(&'a self, question: &'a RefundQuestion) -> BoxFuture<'a, DefaultAnswer> {
        self.send(question).boxed()
    }
}
