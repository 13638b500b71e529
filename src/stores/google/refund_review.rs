//! A use case: a tenant tells Google what it thinks of a refund, and how the purchase was used.
//!
//! Google asks with a notification when a customer's bank wants the money back, and takes one answer within 24 hours: the first one
//! counts. Nothing is asked first, because Google checks the order, the token and the time itself.
//!
//! Source: Google's `orders.reviewrefund`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::Schema;

use super::api_error::{GoogleApiError, GoogleNotFound, PurchaseLookupError};
use super::error_response::GoogleVerifyError;
use super::verify::GoogleVerifier;
use crate::base::id::TenantId;
use crate::http::Problem;
use crate::http::json::{FromJson, JsonFields};
use crate::http::problem::constant_bool_schema;
use crate::stores::shared::refund_questions::BeginAnswerError;

/// How long Google takes an answer, after it has asked.
pub(super) const ANSWER_PERIOD: Duration = Duration::from_hours(24);
/// All of a purchase, in thousandths of a percent.
pub(crate) const MAX_CONSUMPTION_MILLIUNITS: u32 = 100_000;
/// Google takes no more events of usage.
const MAX_USAGE_EVENTS: usize = 1000;

/// What Google is told about a refund.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RefundReviewRequest {
    pub(crate) package_name: String,
    pub(crate) order_id: String,
    /// What Google's question is known by.
    pub(crate) pending_refund_token: String,
    pub(crate) review: RefundReview,
    /// When and where the purchase was used, as Google's `ConsumptionUsageEvent`. Google checks the fields.
    pub(crate) usage_events: Vec<Map<String, Value>>,
}

/// What the developer thinks of a refund.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RefundReview {
    /// Whether the customer could try the content before the purchase.
    pub(crate) sample_content_provided: bool,
    pub(crate) refund_preference: GoogleRefundPreference,
    /// In thousandths of a percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) consumption_percentage_milliunits: Option<u32>,
}

/// What you want Google to decide. Google weighs it, and may decide otherwise.
///
/// - `DECLINE`: no refund.
/// - `APPROVE`: a refund of all.
/// - `NEUTRAL`: either.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    Serialize,
    Deserialize,
    ToSchema,
    strum::EnumString,
    strum::VariantNames,
    clap::ValueEnum,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[strum(serialize_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = google::RefundPreference)]
pub(crate) enum GoogleRefundPreference {
    /// The customer should get nothing back
    Decline,
    /// A refund of all
    Approve,
    /// Google should decide without your advice
    Neutral,
}

/// Google has taken the answer, which is final. A refund is told by an event `…refunded`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = google::SentRefundReview)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SentRefundReview {
    #[schema(schema_with = always_taken)]
    valid: bool,
    /// The release of this server.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
    #[schema(schema_with = always_taken)]
    sent: bool,
    /// The order of the request.
    #[schema(examples("GPA.3345-1234-5678-90123"))]
    order_id: String,
}

fn always_taken() -> Schema {
    constant_bool_schema(true, "Always true: Google has taken it.")
}

/// Why Google was not told what the developer thinks of a refund.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RefundReviewError {
    /// It is of another app, or Google said neither yes nor no.
    #[error(transparent)]
    Verify(#[from] GoogleVerifyError),
    #[error("Google knows no such order")]
    OrderNotFound,
    /// Google knows the order, and does not take the answer.
    #[error("Google does not take the answer: {reason:?}")]
    NotAccepted {
        reason: ReviewRefusal,
        /// Google's code, where it gives one.
        code: Option<String>,
    },
    #[error(transparent)]
    NotBegun(Arc<BeginAnswerError>),
}

impl From<BeginAnswerError> for RefundReviewError {
    fn from(error: BeginAnswerError) -> Self {
        Self::NotBegun(Arc::new(error))
    }
}

/// Why Google does not take an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub(crate) enum ReviewRefusal {
    /// It was answered before, or its time is over.
    Closed,
    /// The token is not of the order, or a value is not one of Google's.
    InvalidValue,
}

impl RefundReviewError {
    fn from_lookup(error: PurchaseLookupError, package_name: &str) -> Self {
        let refused = |reason, code| Self::NotAccepted { reason, code };
        match error {
            PurchaseLookupError::NotFound(GoogleNotFound::Unknown) => Self::OrderNotFound,
            PurchaseLookupError::NotFound(GoogleNotFound::Gone) => {
                refused(ReviewRefusal::Closed, None)
            }
            PurchaseLookupError::NotFound(
                GoogleNotFound::Malformed | GoogleNotFound::OtherType,
            ) => refused(ReviewRefusal::InvalidValue, None),
            // Another change of the same order: the first answer counts.
            PurchaseLookupError::Api(GoogleApiError::Unexpected {
                status: 409,
                reason: Some(code),
                ..
            }) => refused(ReviewRefusal::Closed, Some(code)),
            PurchaseLookupError::Api(GoogleApiError::Unexpected {
                status: 400,
                reason: Some(code),
                ..
            }) => refused(ReviewRefusal::InvalidValue, Some(code)),
            error => GoogleVerifyError::from_lookup(error, package_name).into(),
        }
    }
}

impl From<RefundReviewError> for Problem {
    fn from(error: RefundReviewError) -> Self {
        match error {
            RefundReviewError::Verify(error) => error.into(),
            RefundReviewError::NotBegun(error) => (&*error).into(),
            RefundReviewError::OrderNotFound => Self::rejection(
                "ORDER_NOT_FOUND",
                "Google knows no order of this tenant's app with this id.",
            ),
            RefundReviewError::NotAccepted { reason, code } => {
                let message = match reason {
                    ReviewRefusal::Closed => {
                        "Google takes no answer any more: this refund was answered before, perhaps by an earlier try of this request, or its 24 hours are over."
                    }
                    ReviewRefusal::InvalidValue => {
                        "Google does not take a value of this request: check that orderId and pendingRefundToken are of the same event, and the usage events."
                    }
                };
                Self::rejection("NOT_ACCEPTED", message)
                    .with_detail("reason", Value::from(<&str>::from(reason)))
                    .with_detail("googleErrorCode", json!(code))
            }
        }
    }
}

impl FromJson for RefundReviewRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let package_name = body.required_string("packageName", 1..=200);
        let order_id = body.required_string("orderId", 1..=200);
        let pending_refund_token = body.required_string("pendingRefundToken", 1..=4096);
        let review = RefundReview::from_json(body);
        let usage_events = read_usage_events(body);
        Some(Self {
            package_name: package_name?,
            order_id: order_id?,
            pending_refund_token: pending_refund_token?,
            review: review?,
            usage_events,
        })
    }
}

impl FromJson for RefundReview {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        body.require_field("sampleContentProvided");
        let sample_content_provided = body.optional_boolean("sampleContentProvided");
        body.require_field("refundPreference");
        let refund_preference = body.optional_enum("refundPreference");
        let consumption_percentage_milliunits = body.optional_integer(
            "consumptionPercentageMilliunits",
            0..=MAX_CONSUMPTION_MILLIUNITS,
        );
        Some(Self {
            sample_content_provided: sample_content_provided?,
            refund_preference: refund_preference?,
            consumption_percentage_milliunits,
        })
    }
}

fn read_usage_events(body: &mut JsonFields<'_>) -> Vec<Map<String, Value>> {
    let events = match body.get_value("consumptionUsageEvents") {
        None => Some(Vec::new()),
        Some(events) => events
            .as_array()
            .filter(|events| events.len() <= MAX_USAGE_EVENTS)
            .and_then(|events| {
                let events = events.iter().map(|event| event.as_object().cloned());
                events.collect::<Option<Vec<_>>>()
            }),
    };
    if events.is_none() {
        let message = format!("must be a list of at most {MAX_USAGE_EVENTS} objects");
        body.add_issue("consumptionUsageEvents", message);
    }
    events.unwrap_or_default()
}

impl GoogleVerifier {
    /// Sends the answer. Google takes the first one only, and does not tell which one it has. `may_be_taken`: the same answer was sent before,
    /// and what became of it is not known. After such a try, of this call or of one before, Google's "closed" means that it has the answer. It
    /// is set when this call made such a try.
    pub(crate) async fn review_refund(
        &self,
        tenant: &TenantId,
        request: &RefundReviewRequest,
        may_be_taken: &AtomicBool,
    ) -> Result<SentRefundReview, RefundReviewError> {
        let credentials = self.require_credentials(tenant).await?;
        let package_name = &credentials.package_name;
        if request.package_name != *package_name {
            let expected = package_name.clone();
            return Err(GoogleVerifyError::PackageNameMismatch { expected }.into());
        }
        let mut body = json!(request.review);
        body["pendingRefundToken"] = json!(request.pending_refund_token);
        if !request.usage_events.is_empty() {
            body["consumptionUsageEvents"] = json!(request.usage_events);
        }
        let answered = self
            .play
            .review_refund(
                tenant,
                &credentials.account,
                package_name,
                &request.order_id,
                body,
                may_be_taken,
            )
            .await
            .map_err(|error| {
                let error = error.redact_purchase_token(&request.pending_refund_token);
                RefundReviewError::from_lookup(error, package_name)
            });
        match answered {
            Err(RefundReviewError::NotAccepted {
                reason: ReviewRefusal::Closed,
                ..
            }) if may_be_taken.load(Ordering::Relaxed) => {}
            answered => answered?,
        }
        Ok(SentRefundReview {
            valid: true,
            version: crate::VERSION,
            sent: true,
            order_id: request.order_id.clone(),
        })
    }
}

impl SentRefundReview {
    /// An answer, for the API description.
    pub(super) fn example_json() -> Value {
        json!({
            "valid": true,
            "version": crate::VERSION,
            "sent": true,
            "orderId": "GPA.3345-1234-5678-90123",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::json::read_json;

    #[test]
    fn a_request_is_read() {
        let usage = json!({ "consumptionTime": "2026-04-10T14:22:10Z", "ipAddress": "192.0.2.7" });
        let body = json!({
            "packageName": "p", "orderId": "GPA.1", "pendingRefundToken": "t", "sampleContentProvided": true,
            "refundPreference": "NEUTRAL", "consumptionPercentageMilliunits": 0, "consumptionUsageEvents": [usage],
        });
        let request =
            read_json::<RefundReviewRequest>(body.to_string().as_bytes()).expect("it is good");
        assert_eq!(
            request.review,
            RefundReview {
                sample_content_provided: true,
                refund_preference: GoogleRefundPreference::Neutral,
                consumption_percentage_milliunits: Some(0),
            }
        );
        assert_eq!(json!(request.usage_events), json!([usage]));
    }

    #[test]
    fn all_issues_of_a_request_are_listed() {
        for (body, paths) in [
            (
                json!({}),
                &[
                    "packageName",
                    "orderId",
                    "pendingRefundToken",
                    "sampleContentProvided",
                    "refundPreference",
                ][..],
            ),
            (
                json!({
                    "packageName": "p", "orderId": "o", "pendingRefundToken": "", "sampleContentProvided": 1,
                    "refundPreference": "decline", "consumptionPercentageMilliunits": 100_001,
                    "consumptionUsageEvents": [1],
                }),
                &[
                    "pendingRefundToken",
                    "sampleContentProvided",
                    "refundPreference",
                    "consumptionPercentageMilliunits",
                    "consumptionUsageEvents",
                ],
            ),
        ] {
            let problem = read_json::<RefundReviewRequest>(body.to_string().as_bytes())
                .expect_err("it is malformed");
            let issues = problem.details["issues"].as_array().expect("a list");
            let found: Vec<_> = issues.iter().map(|issue| &issue["path"]).collect();
            assert_eq!(json!(found), json!(paths));
        }
    }

    #[test]
    fn a_refusal_for_good_is_told_from_an_error() {
        let answer = |error: PurchaseLookupError| {
            let problem = Problem::from(RefundReviewError::from_lookup(error, "com.example.app"));
            (
                problem.code.as_str(),
                json!(problem.details)["reason"].clone(),
            )
        };
        let unexpected = |status, reason: Option<&str>| {
            PurchaseLookupError::Api(GoogleApiError::Unexpected {
                status,
                reason: reason.map(str::to_owned),
                message: None,
                retry_after: None,
            })
        };
        for (error, code, reason) in [
            (
                GoogleNotFound::Unknown.into(),
                "ORDER_NOT_FOUND",
                Value::Null,
            ),
            (GoogleNotFound::Gone.into(), "NOT_ACCEPTED", json!("closed")),
            (
                GoogleNotFound::Malformed.into(),
                "NOT_ACCEPTED",
                json!("invalid_value"),
            ),
            (
                unexpected(400, Some("badRequest")),
                "NOT_ACCEPTED",
                json!("invalid_value"),
            ),
            (
                unexpected(409, Some("conflict")),
                "NOT_ACCEPTED",
                json!("closed"),
            ),
            // A gateway's page is no answer of Google's.
            (unexpected(400, None), "GOOGLE_API_ERROR", Value::Null),
            (unexpected(409, None), "GOOGLE_API_ERROR", Value::Null),
            (
                unexpected(503, Some("backendError")),
                "GOOGLE_API_ERROR",
                Value::Null,
            ),
        ] {
            assert_eq!(answer(error.clone()), (code, reason), "{error:?}");
        }
    }
}
