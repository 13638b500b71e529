//! Answers to Google's questions about refunds: the backend's, and that of the tenant's settings where the backend gives none.

use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::refund_review::{RefundReviewError, RefundReviewRequest, SentRefundReview};
use super::store;
use super::verify::GoogleVerifier;
use crate::base::id::TenantId;
use crate::db::{describe_cause, error_class};
use crate::events::EventSource;
use crate::stores::shared::refund_questions::{
    BegunAnswer, DefaultAnswer, RefundAnswerSource, RefundQuestion, RefundQuestionKey,
};

/// Sends the default answers of tenants to Google.
pub(crate) struct GoogleRefundAnswers {
    google: GoogleVerifier,
}

impl GoogleVerifier {
    /// Sends the backend's answer; the tenant's default answer is not sent after it.
    pub(crate) async fn answer_refund_review(
        &self,
        tenant: &TenantId,
        request: &RefundReviewRequest,
    ) -> Result<SentRefundReview, RefundReviewError> {
        let key = RefundQuestionKey {
            source: EventSource::Google,
            purchase_id: &request.order_id,
            refund_token: Some(&request.pending_refund_token),
        };
        let may_be_taken = AtomicBool::new(false);
        let sending = self.review_refund(tenant, request, &may_be_taken);
        BegunAnswer::send(&self.database, tenant, key, sending).await
    }
}

impl GoogleRefundAnswers {
    pub(crate) fn new(google: &GoogleVerifier) -> Self {
        Self {
            google: google.clone(),
        }
    }

    async fn send(&self, question: &RefundQuestion) -> DefaultAnswer {
        let may_be_taken = AtomicBool::new(question.may_be_taken);
        let failed = |class: &str, cause: String| DefaultAnswer::Failed {
            class: class.to_owned(),
            cause,
            may_be_taken: may_be_taken.load(Ordering::Relaxed),
        };
        let (google, tenant) = (&self.google, &question.tenant);
        let review = match store::find_default_review(&google.database, tenant).await {
            Ok(Some(review)) => review,
            Ok(None) => return DefaultAnswer::NotSet,
            Err(error) => return failed(&error_class(&error), describe_cause(&error)),
        };
        let package_name = match google.require_credentials(tenant).await {
            Ok(credentials) => credentials.package_name.clone(),
            Err(error) => return failed("google credentials", error.to_string()),
        };
        let request = RefundReviewRequest {
            package_name,
            order_id: question.purchase_id.clone(),
            pending_refund_token: question.refund_token.clone().unwrap_or_default(),
            review,
            usage_events: Vec::new(),
        };
        match google.review_refund(tenant, &request, &may_be_taken).await {
            Ok(_) => DefaultAnswer::Sent,
            Err(
                error @ (RefundReviewError::NotAccepted { .. } | RefundReviewError::OrderNotFound),
            ) => DefaultAnswer::Refused(error.to_string()),
            Err(error) => failed("google refund review", error.to_string()),
        }
    }
}

impl RefundAnswerSource for GoogleRefundAnswers {
    fn send_default<'a>(&'a self, question: &'a RefundQuestion) -> BoxFuture<'a, DefaultAnswer> {
        self.send(question).boxed()
    }
}
