//! Google's routes as `/openapi.json` describes them: the bodies they read, the errors, and an example of each answer.
//!
//! The examples of errors and rejections are made by the code that sends them, so their texts are those that are sent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoResponses, ToSchema};

use super::api_error::GoogleApiError;
use super::error_response::{GoogleActionError, GoogleNotificationError, GoogleVerifyError};
use super::refund_review::{GoogleRefundPreference, RefundReviewError, SentRefundReview};
use super::request_body::{GooglePushBody, GoogleVerifyRequest};
use super::response_body::{AcknowledgedPurchase, ConsumedPurchase, VerifiedPurchase};
use super::trust::PushTokenError;
use crate::events::{EventSubject, PurchaseState};
use crate::http::api_docs::{self, DocumentedError, string_enum_schema};
use crate::http::problem::{Issue, always_false};
use crate::http::{Problem, body, json};
use crate::outbound::UpstreamError;
use crate::stores::shared::notifications::describe_admission_errors;
use crate::tenants::caller;

/// What is answered when there is a verdict.
#[derive(ToSchema)]
#[schema(as = google::Answer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `VerifiedPurchase` and `Problem` together"
)]
pub(super) enum GoogleVerifyResponseSchema {
    Verified(Box<VerifiedPurchase>),
    Rejected(GoogleRejectionSchema),
}

/// A "no": do not grant.
#[derive(ToSchema)]
#[schema(as = google::Refused, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem`")]
pub(super) struct GoogleRejectionSchema {
    #[schema(schema_with = always_false)]
    valid: bool,
    #[schema(schema_with = rejection_codes)]
    error: String,
    /// What it means, in a sentence for people. It may change from release to release.
    #[schema(examples("Google knows no purchase with this token."))]
    message: String,
    #[schema(required = false, nullable = false)]
    details: Option<GoogleRejectionDetailsSchema>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    request_id: String,
}

/// Facts for a program. Left out when there are none; which there are depends on `error`.
#[derive(ToSchema)]
#[schema(as = google::RefusedDetails, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem::details`")]
pub(super) struct GoogleRejectionDetailsSchema {
    /// With `PURCHASE_NOT_FOUND`: `unknown`; `gone`, Google knew it once; `other_type`, it is of another type. With
    /// `APP_USER_MISMATCH`: `none`, it names no user and may be bound; `another`, it is another user's.
    #[schema(required = false, nullable = false, examples("gone"))]
    reason: Option<String>,
    /// With `PURCHASE_NOT_FOUND`: Google may not know the token yet, because it was sold a moment ago. Ask again in a minute.
    #[schema(required = false, nullable = false, examples(true))]
    may_be_early: Option<bool>,
    /// With `PACKAGE_NAME_MISMATCH`: the tenant's package name.
    #[schema(required = false, nullable = false, examples("com.example.app"))]
    expected: Option<String>,
    /// With `PRODUCT_ID_MISMATCH`: the products that the purchase is of, where that is known.
    #[schema(required = false, nullable = false, examples(json!(["pro_yearly"])))]
    found: Option<Vec<String>>,
}

/// Why a purchase is not the one that the request describes.
const VERIFY_REJECTION_CODES: [(&str, &str); 4] = [
    (
        "PURCHASE_NOT_FOUND",
        "Google knows no such purchase, or no longer; `details.reason` says which.",
    ),
    (
        "PACKAGE_NAME_MISMATCH",
        "the purchase is not of this tenant's app.",
    ),
    (
        "PRODUCT_ID_MISMATCH",
        "it is genuine, and of another product than `productId`.",
    ),
    (
        "APP_USER_MISMATCH",
        "it is genuine, and of another user than `expectedAppUserId`, or of none; `details.reason` says which.",
    ),
];
/// Why a purchase cannot be acknowledged or consumed.
const ACTION_REJECTION_CODES: [(&str, &str); 3] = [
    (
        "PURCHASE_PENDING",
        "it is genuine, and not paid yet: ask again when it is.",
    ),
    (
        "PURCHASE_ENDED",
        "it was cancelled, refunded, or has ended; `details.status` says which, as in the answer of the verify route.",
    ),
    (
        "NOT_CONSUMABLE",
        "it is a subscription. Only from `/v1/google/consume`.",
    ),
];

fn rejection_codes() -> Schema {
    string_enum_schema("Why not.", &VERIFY_REJECTION_CODES)
}

fn action_rejection_codes() -> Schema {
    let codes = [&VERIFY_REJECTION_CODES[..], &ACTION_REJECTION_CODES].concat();
    string_enum_schema("Why not.", &codes)
}

/// What is answered when Google was told, or says no.
#[derive(ToSchema)]
#[schema(as = google::AcknowledgeAnswer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `AcknowledgedPurchase` and `Problem` together"
)]
pub(super) enum AcknowledgeResponseSchema {
    Acknowledged(Box<AcknowledgedPurchase>),
    Rejected(ActionRejectionSchema),
}

/// What is answered when Google was told, or says no.
#[derive(ToSchema)]
#[schema(as = google::ConsumeAnswer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `ConsumedPurchase` and `Problem` together"
)]
pub(super) enum ConsumeResponseSchema {
    Consumed(Box<ConsumedPurchase>),
    Rejected(ActionRejectionSchema),
}

/// A "no": nothing was done.
#[derive(ToSchema)]
#[schema(as = google::ActionRefused, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem`")]
pub(super) struct ActionRejectionSchema {
    #[schema(schema_with = always_false)]
    valid: bool,
    #[schema(schema_with = action_rejection_codes)]
    error: String,
    /// What it means, in a sentence for people. It may change from release to release.
    #[schema(examples("This purchase is not paid yet."))]
    message: String,
    /// Facts for a program: those of the verify route, and `status` with `PURCHASE_ENDED`. Left out when there are none.
    #[schema(value_type = Option<Object>, required = false, nullable = false)]
    details: Option<Value>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    request_id: String,
}

/// What you think of a refund that Google asks about.
#[derive(ToSchema)]
#[schema(as = google::RefundReviewRequest, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes what `RefundReviewRequest::from_json` reads"
)]
pub(super) struct RefundReviewRequestSchema {
    /// The app's package name; it must be the one that this tenant is set up with.
    #[schema(min_length = 1, max_length = 200, examples("com.example.app"))]
    package_name: String,
    /// The order: `data.pendingRefundReviewNotification.orderId` of the event.
    #[schema(min_length = 1, max_length = 200, examples("GPA.3345-1234-5678-90123"))]
    order_id: String,
    /// Google's token of the question: `data.pendingRefundReviewNotification.pendingRefundToken` of the event.
    #[schema(min_length = 1, max_length = 4096, examples("AO-J1OxKq3ld"))]
    pending_refund_token: String,
    /// Whether the customer could try the content before the purchase: a sample, a trial, or a description of what it does.
    #[schema(examples(true))]
    sample_content_provided: bool,
    refund_preference: GoogleRefundPreference,
    /// How much was used, in thousandths of a percent: 45200 is 45.2 percent. Leave it out where that is not known.
    #[schema(minimum = 0, maximum = 100_000, examples(45_200))]
    consumption_percentage_milliunits: Option<u32>,
    /// When, where and how it was used: up to 1000 objects of Google's type `ConsumptionUsageEvent`, which Google checks.
    #[schema(value_type = Option<Vec<Object>>)]
    consumption_usage_events: Option<Vec<Value>>,
}

/// What is answered when Google was told, or says no.
#[derive(ToSchema)]
#[schema(as = google::RefundReviewAnswer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `SentRefundReview` and `Problem` together"
)]
pub(super) enum RefundReviewResponseSchema {
    Sent(SentRefundReview),
    Rejected(ReviewRejectionSchema),
}

/// A "no": Google took nothing.
#[derive(ToSchema)]
#[schema(as = google::RefundReviewRefused, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem`")]
pub(super) struct ReviewRejectionSchema {
    #[schema(schema_with = always_false)]
    valid: bool,
    #[schema(schema_with = review_rejection_codes)]
    error: String,
    /// What it means, in a sentence for people. It may change from release to release.
    #[schema(examples("Google knows no order of this tenant's app with this id."))]
    message: String,
    /// Facts for a program. With `NOT_ACCEPTED` a `reason` and Google's `googleErrorCode`, with `PACKAGE_NAME_MISMATCH` the `expected`
    /// name. Left out when there are none.
    #[schema(value_type = Option<Object>, required = false, nullable = false)]
    details: Option<Value>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    request_id: String,
}

fn review_rejection_codes() -> Schema {
    string_enum_schema(
        "Why not.",
        &[
            (
                "ORDER_NOT_FOUND",
                "Google knows no such order of the tenant's app.",
            ),
            (
                "NOT_ACCEPTED",
                "Google knows the order and does not take the answer; `details.reason` says why: `closed`, it was answered before or too late; `invalid_value`, the token is not of this order, or a value is not one of Google's.",
            ),
            (
                "PACKAGE_NAME_MISMATCH",
                "`packageName` is not this tenant's app.",
            ),
        ],
    )
}

/// A "no" to what Google was to be told of a refund, as it is answered.
pub(super) fn review_rejection_example(error: RefundReviewError) -> Value {
    api_docs::error_example(&error.into())
}

/// A push as Pub/Sub sends it.
#[derive(ToSchema)]
#[schema(as = google::Push)]
#[expect(dead_code, reason = "describes what `GooglePushBody::from_json` reads")]
pub(super) struct GooglePushSchema {
    message: PushedMessageSchema,
    /// The subscription's name. It is not looked at, so it may be anything.
    #[schema(value_type = Option<Value>, examples("projects/example/subscriptions/attesto"))]
    subscription: Option<String>,
}

/// The message of a push.
#[derive(ToSchema)]
#[schema(as = google::PushedMessage, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes what `GooglePushBody::from_json` reads")]
pub(super) struct PushedMessageSchema {
    /// Pub/Sub's id of the message, the same on every repeat. `message_id` is taken too.
    #[schema(min_length = 1, max_length = 256, examples("136969346945"))]
    message_id: String,
    /// Google's `DeveloperNotification`: JSON in base64. Anything else is stored as `unknown`, so that nothing is lost.
    #[schema(value_type = Option<Value>, examples("eyJ2ZXJzaW9uIjoiMS4wIn0="))]
    data: Option<String>,
    /// When Pub/Sub took the message: RFC 3339. Anything else counts as left out.
    #[schema(value_type = Option<Value>, examples("2026-04-10T14:22:10.123Z"))]
    publish_time: Option<String>,
}

/// The errors of a verify request, and of one to acknowledge or consume.
pub(super) struct GoogleVerifyErrorResponses;

impl IntoResponses for GoogleVerifyErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let wait = Duration::from_mins(1);
        let malformed = br#"{"packageName":"com.example.app","type":"gift"}"#;
        let own = [
            DocumentedError::new(
                "the body is malformed; `details.issues` lists everything that is wrong with it",
                json::read_json::<GoogleVerifyRequest>(malformed).expect_err("it is malformed"),
            ),
            DocumentedError::new(
                "the body is larger than 16 KB",
                body::body_too_large(16 * 1024),
            ),
            DocumentedError::new(
                "this tenant has no Google credentials",
                GoogleVerifyError::NoCredentials,
            ),
            DocumentedError::new(
                "Google's quota for this tenant's project is used up",
                GoogleVerifyError::Api(GoogleApiError::RateLimited {
                    status: 429,
                    retry_after: wait,
                }),
            ),
            DocumentedError::new(
                "too many questions of this tenant wait for Google",
                GoogleVerifyError::Api(GoogleApiError::TooManyInFlight),
            ),
            DocumentedError::new(
                "Google refuses this tenant's service account",
                GoogleVerifyError::Api(GoogleApiError::Unauthorized {
                    status: 401,
                    reason: Some("permissionDenied".to_owned()),
                    message: None,
                }),
            ),
            DocumentedError::new(
                "Google had an error of its own",
                GoogleVerifyError::Api(GoogleApiError::Unexpected {
                    status: 503,
                    reason: Some("backendError".to_owned()),
                    message: None,
                    retry_after: Some(wait),
                }),
            ),
            DocumentedError::new(
                "Google did not answer",
                GoogleVerifyError::Api(GoogleApiError::from(UpstreamError::Timeout(wait))),
            ),
        ];
        api_docs::error_responses(caller::describe_auth_errors().into_iter().chain(own))
    }
}

/// The errors of a push.
pub(super) struct GoogleNotificationErrorResponses;

impl IntoResponses for GoogleNotificationErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let own = [
            DocumentedError::new(
                "the tenant's id in the path is malformed",
                Problem::invalid_request(&[Issue::new(
                    "tenantId",
                    crate::base::id::TenantId::malformed().to_string(),
                )]),
            ),
            DocumentedError::new(
                "the body is no push, such as one of a subscription with payload unwrapping",
                json::read_json::<GooglePushBody>(b"{}")
                    .err()
                    .expect("it is malformed"),
            ),
            DocumentedError::new(
                "the message is about another app",
                GoogleNotificationError::PackageNameMismatch {
                    expected: "com.example.app".to_owned(),
                },
            ),
            DocumentedError::new(
                "the body is larger than 1 MB",
                body::body_too_large(1024 * 1024),
            ),
            DocumentedError::new(
                "the push's token does not convince, or there is no tenant of this id; the log says which",
                GoogleNotificationError::InvalidToken(PushTokenError::Missing),
            ),
            DocumentedError::new(
                "the tenant is inactive",
                GoogleNotificationError::TenantInactive,
            ),
            DocumentedError::database_unavailable(),
            DocumentedError::new(
                "Google's signing keys cannot be had",
                GoogleNotificationError::InvalidToken(PushTokenError::KeysUnavailable),
            ),
        ];
        api_docs::error_responses(own.into_iter().chain(describe_admission_errors()))
    }
}

/// The answer about a subscription that is paid for.
pub(super) fn subscription_example() -> Value {
    let mut state = PurchaseState::example_json();
    state["acknowledgeBy"] = json!("2026-04-13T14:22:10.000Z");
    state["asOf"] = json!("2026-04-10T14:25:00.000Z");
    json!({
        "valid": true,
        "version": crate::VERSION,
        "status": "active",
        "appUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
        "appUserIdSource": "purchase",
        "subject": EventSubject::example_json(),
        "state": state,
        "stateError": null,
        "acknowledgement": null,
        "purchase": {
            "kind": "androidpublisher#subscriptionPurchaseV2",
            "packageName": "com.example.app",
            "productId": "pro_monthly",
            "purchaseToken": "mbcdefghijklmnopqrstuvwx.AO-J1Ozn",
            "startTime": "2026-04-10T14:22:10.000Z",
            "expiryTime": "2026-05-10T14:22:10.000Z",
            "autoRenewing": true,
            "priceCurrencyCode": "USD",
            "priceAmountMicros": "9990000",
            "countryCode": "US",
            "paymentState": 1,
            "acknowledgementState": 0,
            "acknowledgeBy": "2026-04-13T14:22:10.000Z",
            "orderId": "GPA.3345-1234-5678-90123",
            "obfuscatedExternalAccountId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            "linkedPurchaseToken": null,
            "testPurchase": false,
            "rawResponse": {
                "kind": "androidpublisher#subscriptionPurchaseV2",
                "subscriptionState": "SUBSCRIPTION_STATE_ACTIVE"
            }
        }
    })
}

/// The answer about a one-time product.
pub(super) fn product_example() -> Value {
    json!({
        "valid": true,
        "version": crate::VERSION,
        "status": "consumed",
        "appUserId": null,
        "appUserIdSource": null,
        "subject": {
            "key": "nopqrstuvwxyzabcdefghijk.AO-J1Oyy",
            "productId": "coins_100",
            "type": "product",
            "current": true,
            "supersededBy": null
        },
        "state": {
            "status": "consumed",
            "entitled": false,
            "entitledUntil": null,
            "productId": "coins_100",
            "basePlanId": null,
            "offerId": null,
            "period": null,
            "willRenew": false,
            "renewsAs": null,
            "renewsAt": null,
            "ownership": "purchased",
            "quantity": 1,
            "refundableQuantity": null,
            "acknowledgeBy": null,
            "basis": "store",
            "asOf": "2026-04-10T14:25:00.000Z"
        },
        "stateError": null,
        "acknowledgement": null,
        "purchase": {
            "kind": "androidpublisher#productPurchase",
            "packageName": "com.example.app",
            "productId": "coins_100",
            "purchaseToken": "nopqrstuvwxyzabcdefghijk.AO-J1Oyy",
            "purchaseTimeMillis": "1775830930000",
            "purchaseState": 0,
            "consumptionState": 1,
            "acknowledgementState": 1,
            "acknowledgeBy": null,
            "orderId": "GPA.3345-1234-5678-90124",
            "quantity": 1,
            "obfuscatedExternalAccountId": null,
            "testPurchase": false,
            "rawResponse": {
                "kind": "androidpublisher#productPurchase",
                "consumptionState": 1
            }
        }
    })
}

/// The answer to an acknowledgement that Google took.
pub(super) fn acknowledged_example() -> Value {
    json!({
        "valid": true,
        "version": crate::VERSION,
        "acknowledged": true,
        "alreadyDone": false,
        "appUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
        "appUserBound": false,
        "subject": EventSubject::example_json(),
    })
}

/// The answer to a request to consume a product, which Google did.
pub(super) fn consumed_example() -> Value {
    json!({
        "valid": true,
        "version": crate::VERSION,
        "consumed": true,
        "alreadyDone": false,
        "appUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
        "subject": {
            "key": "opqrstuvwxyzabcdefghijkl.AO-J1Oww",
            "productId": "coins_100",
            "type": "product",
            "current": true,
            "supersededBy": null,
        },
    })
}

/// The answer of a request to acknowledge or consume that Google says no to.
pub(super) fn action_rejection_example(error: impl Into<GoogleActionError>) -> Value {
    api_docs::error_example(&error.into().into())
}

/// The answer of a verify request that Google says no to.
pub(super) fn rejection_example(error: GoogleVerifyError) -> Value {
    api_docs::error_example(&error.into())
}
