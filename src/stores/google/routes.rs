//! `POST /v1/google/verify`, `/v1/google/acknowledge`,
//! `/v1/google/consume`, `/v1/google/refund-review` and `/v1/webhooks/google/{tenantId}`.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use super::api_error::GoogleNotFound;
use super::error_response::{GoogleActionError, GoogleVerifyError};
use super::notifications::{GoogleNotifications, PubsubMessage};
use super::openapi::{
    self, AcknowledgeResponseSchema, ConsumeResponseSchema, GoogleNotificationErrorResponses,
    GooglePushSchema as PushRequest, GoogleVerifyErrorResponses, GoogleVerifyResponseSchema,
    RefundReviewRequestSchema, RefundReviewResponseSchema,
};
use super::refund_review::{
    RefundReviewError, RefundReviewRequest, ReviewRefusal, SentRefundReview,
};
use super::request_body::{
    AcknowledgeRequest, AcknowledgeRequestSchema, GooglePushBody, GoogleVerifyRequest,
    MAX_PUSH_BYTES,
};
use super::response_body::{AcknowledgedPurchase, ConsumedPurchase, VerifiedPurchase};
use super::translate::PurchaseStatus;
use super::verify::GoogleVerifier;
use crate::audit::VerificationLog;
use crate::events::{AcceptedNotification, EventSource, NotificationMetrics};
use crate::http::Problem;
use crate::http::json::{self, JsonAnswer, JsonBody};
use crate::stores::shared::routes::{
    NotificationState, VerifyState, parse_tenant_id, read_notification,
};
use crate::tenants::caller::bearer_token;
use crate::tenants::{Authenticator, Caller};

/// `POST /v1/google/verify`, `acknowledge`, `consume` and `refund-review`, for tenants' backends.
pub fn verify_routes(
    verifier: GoogleVerifier,
    authenticator: Authenticator,
    verification_log: VerificationLog,
) -> OpenApiRouter {
    verify_openapi_router().with_state(VerifyState {
        verifier: Arc::new(verifier),
        authenticator,
        verification_log,
    })
}

/// `POST /v1/webhooks/google/{tenantId}`, for Pub/Sub.
pub(crate) fn notification_routes(
    notifications: GoogleNotifications,
    metrics: NotificationMetrics,
) -> OpenApiRouter {
    notification_openapi_router().with_state(NotificationState {
        notifications,
        metrics,
    })
}

/// The description of all routes.
pub(crate) fn openapi_document() -> utoipa::openapi::OpenApi {
    let mut document = verify_openapi_router().into_openapi();
    document.merge(notification_openapi_router().into_openapi());
    document
}

fn verify_openapi_router() -> OpenApiRouter<VerifyState<GoogleVerifier>> {
    OpenApiRouter::new()
        .routes(routes!(verify_purchase))
        .routes(routes!(acknowledge_purchase))
        .routes(routes!(consume_purchase))
        .routes(routes!(review_refund))
}

fn notification_openapi_router() -> OpenApiRouter<NotificationState<GoogleNotifications>> {
    OpenApiRouter::new()
        .routes(routes!(receive_notification).layer(json::accept_notifications(MAX_PUSH_BYTES)))
}

/// Is this Google Play purchase real, and what is it now?
///
/// Google is asked. A 200 is a verdict: `valid: true` with the purchase, or `valid: false` with the reason in `error`. Any
/// other status is none. Where the tenant is set up for it, a purchase that owes its acknowledgement is acknowledged before the
/// answer; whether that worked is in `acknowledgement` and changes nothing else.
#[utoipa::path(
    post,
    path = "/v1/google/verify",
    operation_id = "verifyGoogle",
    tag = "verify",
    security(("apiKey" = [])),
    request_body(
        content = GoogleVerifyRequest,
        description = "Which purchase, and what must be true of it. At most 16 KB.",
        examples(
            ("subscription" = (summary = "A subscription", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "mbcdefghijklmnopqrstuvwx.AO-J1Ozn",
                "type": "subscription",
                "expectedAppUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            }))),
            ("product" = (summary = "A one-time product", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "nopqrstuvwxyzabcdefghijk.AO-J1Oyy",
                "type": "product",
                "productId": "coins_100",
            }))),
            ("token" = (summary = "Either, by its token alone", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "mbcdefghijklmnopqrstuvwx.AO-J1Ozn",
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "A verdict: the purchase, or `valid: false` and why not",
            body = GoogleVerifyResponseSchema,
            examples(
                ("subscription" = (summary = "A subscription that is paid for, and has to be acknowledged.", value = json!(openapi::subscription_example()))),
                ("product" = (summary = "A product that was used up.", value = json!(openapi::product_example()))),
                ("PURCHASE_NOT_FOUND" = (summary = "Google knows no such purchase.", value = json!(openapi::rejection_example(GoogleVerifyError::NotFound { reason: GoogleNotFound::Unknown, may_be_early: true })))),
                ("PURCHASE_NOT_FOUND_gone" = (summary = "Google knew it once.", value = json!(openapi::rejection_example(GoogleVerifyError::NotFound { reason: GoogleNotFound::Gone, may_be_early: false })))),
                ("PACKAGE_NAME_MISMATCH" = (summary = "It is not of this tenant's app.", value = json!(openapi::rejection_example(GoogleVerifyError::PackageNameMismatch { expected: "com.example.app".to_owned() })))),
                ("PRODUCT_ID_MISMATCH" = (summary = "It is of another product.", value = json!(openapi::rejection_example(GoogleVerifyError::ProductIdMismatch { found: vec!["pro_yearly".to_owned()] })))),
                ("APP_USER_MISMATCH" = (summary = "It is of another user.", value = json!(openapi::rejection_example(GoogleVerifyError::AppUserMismatch { is_anothers: true })))),
            ),
        ),
        GoogleVerifyErrorResponses,
    ),
)]
async fn verify_purchase(
    State(state): State<VerifyState<GoogleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<GoogleVerifyRequest>,
) -> Result<JsonAnswer<VerifiedPurchase>, Problem> {
    let verification = state.verifier.verify_for_caller(&caller, &request);
    let purchase_id = || request.purchase_token.as_str().into();
    state
        .answer(
            EventSource::Google,
            &caller.tenant,
            purchase_id,
            verification,
        )
        .await
}

/// Acknowledge a Google Play purchase
///
/// Google refunds a purchase that is neither acknowledged nor consumed in time: until `state.acknowledgeBy` of the verify
/// route, in most cases three days. The purchase is verified first, as by the verify route, and acknowledged only when it is
/// paid. The answer to a second request is the same, with `alreadyDone`. A subscription that was bought again in Play, outside
/// your app, is bound to its user with the acknowledgement, and only then.
#[utoipa::path(
    post,
    path = "/v1/google/acknowledge",
    operation_id = "acknowledgeGoogle",
    tag = "answers",
    security(("apiKey" = [])),
    request_body(
        content = AcknowledgeRequestSchema,
        description = "Which purchase, and what must be true of it. At most 16 KB.",
        examples(
            ("token" = (summary = "A purchase, by its token alone", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "mbcdefghijklmnopqrstuvwx.AO-J1Ozn",
            }))),
            ("bind" = (summary = "A subscription that was bought again in Play, and its user", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "mbcdefghijklmnopqrstuvwx.AO-J1Ozn",
                "type": "subscription",
                "externalAccountIds": { "obfuscatedAccountId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55" },
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "It is acknowledged, or `valid: false` and why not",
            body = AcknowledgeResponseSchema,
            examples(
                ("acknowledged" = (summary = "Google has taken the acknowledgement.", value = json!(openapi::acknowledged_example()))),
                ("PURCHASE_PENDING" = (summary = "It is not paid yet.", value = json!(openapi::action_rejection_example(GoogleActionError::Pending)))),
                ("PURCHASE_ENDED" = (summary = "It was refunded.", value = json!(openapi::action_rejection_example(GoogleActionError::Ended { status: PurchaseStatus::Canceled })))),
                ("PURCHASE_NOT_FOUND" = (summary = "Google knew it once.", value = json!(openapi::action_rejection_example(GoogleVerifyError::NotFound { reason: GoogleNotFound::Gone, may_be_early: false })))),
            ),
        ),
        GoogleVerifyErrorResponses,
    ),
)]
async fn acknowledge_purchase(
    State(state): State<VerifyState<GoogleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<AcknowledgeRequest>,
) -> Result<JsonAnswer<AcknowledgedPurchase>, Problem> {
    let acknowledgement = state
        .verifier
        .acknowledge_purchase(&caller.tenant, &request);
    let purchase_id = || request.purchase.purchase_token.as_str().into();
    state
        .answer(
            EventSource::Google,
            &caller.tenant,
            purchase_id,
            acknowledgement,
        )
        .await
}

/// Consume a one-time product of Google Play
///
/// Its user can buy it again after that, and it is acknowledged. The purchase is verified first, as by the verify route, and
/// consumed only when it is paid. Grant what was bought first, and keep a record of it by the purchase token: a product that
/// is consumed gives no access any more. The answer to a second request is the same, with `alreadyDone`.
#[utoipa::path(
    post,
    path = "/v1/google/consume",
    operation_id = "consumeGoogle",
    tag = "answers",
    security(("apiKey" = [])),
    request_body(
        content = GoogleVerifyRequest,
        description = "Which purchase, and what must be true of it. At most 16 KB.",
        examples(
            ("product" = (summary = "A one-time product", value = json!({
                "packageName": "com.example.app",
                "purchaseToken": "opqrstuvwxyzabcdefghijkl.AO-J1Oww",
                "type": "product",
                "productId": "coins_100",
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "It is consumed, or `valid: false` and why not",
            body = ConsumeResponseSchema,
            examples(
                ("consumed" = (summary = "Google has consumed it.", value = json!(openapi::consumed_example()))),
                ("PURCHASE_PENDING" = (summary = "It is not paid yet.", value = json!(openapi::action_rejection_example(GoogleActionError::Pending)))),
                ("PURCHASE_ENDED" = (summary = "It was refunded.", value = json!(openapi::action_rejection_example(GoogleActionError::Ended { status: PurchaseStatus::Canceled })))),
                ("NOT_CONSUMABLE" = (summary = "It is a subscription.", value = json!(openapi::action_rejection_example(GoogleActionError::NotConsumable)))),
            ),
        ),
        GoogleVerifyErrorResponses,
    ),
)]
async fn consume_purchase(
    State(state): State<VerifyState<GoogleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<GoogleVerifyRequest>,
) -> Result<JsonAnswer<ConsumedPurchase>, Problem> {
    let consumption = state.verifier.consume_purchase(&caller.tenant, &request);
    let purchase_id = || request.purchase_token.as_str().into();
    state
        .answer(
            EventSource::Google,
            &caller.tenant,
            purchase_id,
            consumption,
        )
        .await
}

/// Tell Google what you think of a refund
///
/// Google asks for it with an event `product.refund_review` when a customer's bank wants the money back, and waits until the event's
/// `answerBy`: 24 hours. Google takes one answer only, the first one. Send it with the order and the token of the event.
#[utoipa::path(
    post,
    path = "/v1/google/refund-review",
    operation_id = "reviewGoogleRefund",
    tag = "answers",
    security(("apiKey" = [])),
    request_body(
        content = RefundReviewRequestSchema,
        description = "Which refund, and what you think of it. At most 16 KB.",
        examples(
            ("used" = (summary = "The purchase was used, and no refund is wanted", value = json!({
                "packageName": "com.example.app",
                "orderId": "GPA.3345-1234-5678-90123",
                "pendingRefundToken": "AO-J1OxKq3ld",
                "sampleContentProvided": true,
                "refundPreference": "DECLINE",
                "consumptionPercentageMilliunits": 45_200,
                "consumptionUsageEvents": [{
                    "consumptionTime": "2026-04-10T14:22:10Z",
                    "consumptionItemDescription": "Level 7 was played for an hour.",
                }],
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "Google has it, or `valid: false` and why not",
            body = RefundReviewResponseSchema,
            examples(
                ("sent" = (summary = "Google has taken it.", value = json!(SentRefundReview::example_json()))),
                ("NOT_ACCEPTED" = (summary = "It was answered before, or too late.", value = json!(openapi::review_rejection_example(RefundReviewError::NotAccepted { reason: ReviewRefusal::Closed, code: None })))),
                ("ORDER_NOT_FOUND" = (summary = "Google knows no such order.", value = json!(openapi::review_rejection_example(RefundReviewError::OrderNotFound)))),
            ),
        ),
        GoogleVerifyErrorResponses,
    ),
)]
async fn review_refund(
    State(state): State<VerifyState<GoogleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<RefundReviewRequest>,
) -> Result<JsonAnswer<SentRefundReview>, Problem> {
    let review = state
        .verifier
        .answer_refund_review(&caller.tenant, &request);
    let purchase_id = || request.order_id.as_str().into();
    state
        .answer(EventSource::Google, &caller.tenant, purchase_id, review)
        .await
}

/// Take in a notification of Google Play
///
/// For Google, not for you: set up a Pub/Sub push subscription of the app's topic with authentication and without payload
/// unwrapping, its endpoint being this address. The token that Pub/Sub sends must be signed by Google, carry the address
/// that was given as `--pubsub-service-account`, and be meant for `--pubsub-audience`; where that was not set, for this
/// address. When the answer is 200, the event is stored, and so is its delivery to the tenant's callback; a repeat is
/// answered alike and stored once. A message that cannot be read is stored as `unknown`.
#[utoipa::path(
    post,
    path = "/v1/webhooks/google/{tenantId}",
    operation_id = "receiveGoogle",
    tag = "webhooks",
    security(("googlePush" = [])),
    params(("tenantId" = String, Path, description = "The tenant's id.", pattern = "^tenant_[0-7][0-9A-HJKMNP-TV-Z]{25}$", example = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E")),
    request_body(
        content = PushRequest,
        description = "What Pub/Sub pushes. At most 1 MB; its content type is not looked at.",
        examples(("push" = (summary = "A push, its message in base64.", value = json!({
            "message": {
                "messageId": "136969346945",
                "publishTime": "2026-04-10T14:22:10.123Z",
                "data": "eyJ2ZXJzaW9uIjoiMS4wIiwicGFja2FnZU5hbWUiOiJjb20uZXhhbXBsZS5hcHAifQ==",
            },
            "subscription": "projects/example/subscriptions/attesto",
        })))),
    ),
    responses(
        (
            status = 200,
            description = "It is stored, now or before",
            body = AcceptedNotification,
            examples(
                ("stored" = (summary = "Stored, and on its way to the tenant's callback.", value = json!(AcceptedNotification::example_json("136969346945", true)))),
                ("repeat" = (summary = "It had come before.", value = json!(AcceptedNotification::example_json("136969346945", false)))),
            ),
        ),
        GoogleNotificationErrorResponses,
    ),
)]
async fn receive_notification(
    State(state): State<NotificationState<GoogleNotifications>>,
    Path(tenant): Path<String>,
    request: Request,
) -> Result<axum::Json<AcceptedNotification>, Problem> {
    let acceptance = accept_push(&state.notifications, &tenant, request);
    state.answer(EventSource::Google, acceptance).await
}

async fn accept_push(
    notifications: &GoogleNotifications,
    tenant: &str,
    request: Request,
) -> Result<AcceptedNotification, Problem> {
    let tenant = parse_tenant_id(tenant)?;
    let (parts, body) = request.into_parts();
    let push = notifications
        .authenticate_push(&tenant, bearer_token(&parts.headers))
        .await?;
    let (message, raw): (GooglePushBody, _) = read_notification(&tenant, parts, body).await?;
    let message = PubsubMessage {
        id: message.id,
        data: message.data,
        publish_time: message.publish_time,
        raw,
    };
    Ok(notifications.accept_notification(&push, message).await?)
}
