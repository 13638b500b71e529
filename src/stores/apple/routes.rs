//! `POST /v1/apple/verify`, `POST /v1/apple/app-transaction`, what Apple is told (`consumption`, `finish`, `app-account-token`),
//! `POST /v1/apple/offers/sign` and `POST /v1/webhooks/apple/{tenantId}`.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use super::account::AppleEnvironment;
use super::action_error::{AppleActionError, NotAcceptedReason};
use super::api::AppleNotFound;
use super::app_transaction::{AppTransactionError, AppTransactionRequest, VerifiedAppTransaction};
use super::consumption::{ConsumptionRequest, SentConsumption};
use super::error::AppleVerifyError;
use super::inspection::SignedDataKind;
use super::notifications::{AppleNotifications, SignedNotification};
use super::offers::{OfferRequest, SignedOffer};
use super::openapi::{
    self, AppAccountTokenResponseSchema, AppTransactionRequestSchema, AppTransactionResponseSchema,
    AppleNotificationErrorResponses, AppleOfferErrorResponses, AppleOfferRequestSchema,
    AppleVerifyErrorResponses, AppleVerifyRequestSchema, AppleVerifyResponseSchema,
    ConsumptionRequestSchema, ConsumptionResponseSchema, FinishResponseSchema,
};
use super::request_body::{ApplePushBody, MAX_PUSH_BYTES};
use super::transaction_actions::{
    AppAccountTokenRequest, BoundPurchase, FinishRequest, FinishedTransaction,
};
use super::trust::SignatureError;
use super::verify::{AppleVerifier, AppleVerifyRequest, VerifiedTransaction};
use crate::audit::VerificationLog;
use crate::events::{AcceptedNotification, EventSource, NotificationMetrics};
use crate::http::Problem;
use crate::http::json::{self, JsonAnswer, JsonBody};
use crate::stores::shared::routes::{
    NotificationState, VerifyState, parse_tenant_id, read_notification,
};
use crate::tenants::{Authenticator, Caller};

/// The routes that take an API key: verify, and what Apple is told or signed for.
pub fn verify_routes(
    verifier: AppleVerifier,
    authenticator: Authenticator,
    verification_log: VerificationLog,
) -> OpenApiRouter {
    verify_openapi_router().with_state(VerifyState {
        verifier: Arc::new(verifier),
        authenticator,
        verification_log,
    })
}

/// The route `POST /v1/webhooks/apple/{tenantId}`.
pub fn notification_routes(
    notifications: AppleNotifications,
    metrics: NotificationMetrics,
) -> OpenApiRouter {
    notification_openapi_router().with_state(NotificationState {
        notifications,
        metrics,
    })
}

/// The OpenAPI description of all routes.
pub fn openapi_document() -> utoipa::openapi::OpenApi {
    let mut both = verify_openapi_router().into_openapi();
    both.merge(notification_openapi_router().into_openapi());
    both
}

fn verify_openapi_router() -> OpenApiRouter<VerifyState<AppleVerifier>> {
    OpenApiRouter::new()
        .routes(routes!(verify_purchase))
        .routes(routes!(verify_app_transaction))
        .routes(routes!(send_consumption))
        .routes(routes!(finish_transaction))
        .routes(routes!(set_app_account_token))
        .routes(routes!(sign_offer))
}

fn notification_openapi_router() -> OpenApiRouter<NotificationState<AppleNotifications>> {
    OpenApiRouter::new()
        .routes(routes!(receive_notification).layer(json::accept_notifications(MAX_PUSH_BYTES)))
}

/// Is this App Store transaction real, and what is it now?
///
/// Ask by `transactionId`, and Apple is asked; or by `signedTransaction`, and the signature is checked here. A 200 is a
/// verdict: `valid: true` with the transaction, or `valid: false` with the reason in `error`. Any other status is none.
#[utoipa::path(
    post,
    path = "/v1/apple/verify",
    operation_id = "verifyApple",
    tag = "verify",
    security(("apiKey" = [])),
    request_body(
        content = AppleVerifyRequestSchema,
        description = "Which transaction, and what must be true of it. At most 16 KB.",
        examples(
            ("byId" = (summary = "By its id", value = json!({
                "transactionId": "2000000123456789",
                "expectedAppUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            }))),
            ("signed" = (summary = "As StoreKit signed it", value = json!({
                "signedTransaction": "eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJ0cmFuc2FjdGlvbklkIj….MEUCIQDf…",
                "environment": "production",
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "A verdict: the transaction, or `valid: false` and why not",
            body = AppleVerifyResponseSchema,
            examples(
                ("active" = (summary = "A subscription that is paid for.", value = json!(openapi::subscription_example()))),
                ("refunded" = (summary = "The same, after Apple gave the money back.", value = json!(openapi::refunded_example()))),
                ("TRANSACTION_NOT_FOUND" = (summary = "Apple knows no such transaction.", value = json!(openapi::rejection_example(AppleVerifyError::NotFound { reason: AppleNotFound::Unknown, may_be_early: true })))),
                ("SIGNATURE_INVALID" = (summary = "Apple did not sign this transaction.", value = json!(openapi::rejection_example(AppleVerifyError::InvalidSignature(SignatureError::BadSignature))))),
                ("BUNDLE_ID_MISMATCH" = (summary = "It is of another app.", value = json!(openapi::rejection_example(AppleVerifyError::BundleIdMismatch { expected: "com.example.app".to_owned(), found: Some("com.example.other".to_owned()) })))),
                ("NOT_A_TRANSACTION" = (summary = "Apple signed it, and it is an app transaction.", value = json!(openapi::rejection_example(AppleVerifyError::NotATransaction(SignedDataKind::AppTransaction))))),
                ("ENVIRONMENT_MISMATCH" = (summary = "It is of the sandbox, and production was asked about.", value = json!(openapi::rejection_example(AppleVerifyError::EnvironmentMismatch { expected: Some(AppleEnvironment::Production), found: Some("Sandbox".to_owned()) })))),
                ("APP_USER_MISMATCH" = (summary = "It is of another user.", value = json!(openapi::rejection_example(AppleVerifyError::AppUserMismatch { is_of_another: true })))),
            ),
        ),
        AppleVerifyErrorResponses,
    ),
)]
async fn verify_purchase(
    State(state): State<VerifyState<AppleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<AppleVerifyRequest>,
) -> Result<JsonAnswer<VerifiedTransaction>, Problem> {
    let verification = state.verifier.verify_for_caller(&caller, &request);
    let purchase_id = || request.audit_identifier();
    state
        .answer(
            EventSource::Apple,
            &caller.tenant,
            purchase_id,
            verification,
        )
        .await
}

/// Is this app transaction real: did this customer obtain the app?
///
/// For an app that is paid for up front, or was once: `originalApplicationVersion` and `originalPurchaseDate` say what the customer has bought.
/// Ask by `signedAppTransaction`, and the signature is checked here; or by the id of any transaction of the customer, and Apple is asked. A 200 is
/// a verdict, any other status is none.
#[utoipa::path(
    post,
    path = "/v1/apple/app-transaction",
    operation_id = "verifyAppleAppTransaction",
    tag = "verify",
    security(("apiKey" = [])),
    request_body(
        content = AppTransactionRequestSchema,
        description = "Which app transaction. At most 16 KB.",
        examples(
            ("signed" = (summary = "As StoreKit signed it", value = json!({
                "signedAppTransaction": "eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJyZWNlaXB0VHlwZSI….MEUCIQDf…",
            }))),
            ("byId" = (summary = "By a transaction of the customer", value = json!({
                "transactionId": "2000000123456789",
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "A verdict: the app transaction, or `valid: false` and why not",
            body = AppTransactionResponseSchema,
            examples(
                ("genuine" = (summary = "A customer of this app.", value = json!(VerifiedAppTransaction::example_json()))),
                ("NOT_AN_APP_TRANSACTION" = (summary = "Apple signed it, and it is a transaction.", value = json!(openapi::app_transaction_rejection_example(AppTransactionError::NotAnAppTransaction(SignedDataKind::Transaction))))),
                ("APP_TRANSACTION_NOT_FOUND" = (summary = "The customer has none.", value = json!(openapi::app_transaction_rejection_example(AppTransactionError::NotFound)))),
                ("APP_APPLE_ID_MISMATCH" = (summary = "It is of an app with another Apple id.", value = json!(openapi::app_transaction_rejection_example(AppTransactionError::AppAppleIdMismatch { expected: 1_234_567_890, found: Some(9_876_543_210) })))),
            ),
        ),
        AppleVerifyErrorResponses,
    ),
)]
async fn verify_app_transaction(
    State(state): State<VerifyState<AppleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<AppTransactionRequest>,
) -> Result<JsonAnswer<VerifiedAppTransaction>, Problem> {
    let verification = state
        .verifier
        .verify_app_transaction(&caller.tenant, &request);
    let purchase_id = || request.audit_identifier();
    state
        .answer(
            EventSource::Apple,
            &caller.tenant,
            purchase_id,
            verification,
        )
        .await
}

/// Tell Apple how a purchase was used
///
/// Apple asks for it with an event `…consumption_request`, after a customer asked for a refund, and waits until the event's `answerBy`:
/// 12 hours. Send what you know before that, and only with the customer's consent. Name the transaction and the environment of the event.
/// A request may be repeated, and the newest answer counts. Apple decides later, and an event tells it.
#[utoipa::path(
    post,
    path = "/v1/apple/consumption",
    operation_id = "sendAppleConsumption",
    tag = "answers",
    security(("apiKey" = [])),
    request_body(
        content = ConsumptionRequestSchema,
        description = "Which transaction, and how it was used. At most 16 KB.",
        examples(
            ("used" = (summary = "Half of it was used, and no refund is wanted", value = json!({
                "transactionId": "2000000123456789",
                "environment": "production",
                "customerConsented": true,
                "sampleContentProvided": false,
                "deliveryStatus": "DELIVERED",
                "consumptionPercentage": 50_000,
                "refundPreference": "DECLINE",
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "Apple has it, or `valid: false` and why not",
            body = ConsumptionResponseSchema,
            examples(
                ("sent" = (summary = "Apple has taken it.", value = json!(SentConsumption::example_json()))),
                ("TRANSACTION_NOT_FOUND" = (summary = "Apple knows no such transaction.", value = json!(openapi::action_rejection_example(AppleVerifyError::from(AppleNotFound::Unknown))))),
                ("NOT_ACCEPTED" = (summary = "Apple takes none about this type of product.", value = json!(openapi::action_rejection_example(AppleActionError::NotAccepted { reason: NotAcceptedReason::ProductType, code: 4_000_047 })))),
            ),
        ),
        AppleVerifyErrorResponses,
    ),
)]
async fn send_consumption(
    State(state): State<VerifyState<AppleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<ConsumptionRequest>,
) -> Result<JsonAnswer<SentConsumption>, Problem> {
    let sending = state
        .verifier
        .answer_consumption_request(&caller.tenant, &request);
    let purchase_id = || request.transaction_id.as_str().into();
    state
        .answer(EventSource::Apple, &caller.tenant, purchase_id, sending)
        .await
}

/// Finish a transaction
///
/// The app does that when it has delivered what was bought, and is given the transaction again until then. Where your backend delivers, it
/// finishes the transaction too, once the content is delivered. A request may be repeated.
#[utoipa::path(
    post,
    path = "/v1/apple/finish",
    operation_id = "finishAppleTransaction",
    tag = "answers",
    security(("apiKey" = [])),
    request_body(
        content = FinishRequest,
        description = "Which transaction. At most 16 KB.",
        examples(("delivered" = (summary = "A transaction whose content was delivered", value = json!({
            "transactionId": "2000000123456789",
        })))),
    ),
    responses(
        (
            status = 200,
            description = "It is finished, or `valid: false` and why not",
            body = FinishResponseSchema,
            examples(
                ("finished" = (summary = "It is finished.", value = json!(FinishedTransaction::example_json()))),
                ("TRANSACTION_NOT_FOUND" = (summary = "Apple knows no such transaction.", value = json!(openapi::action_rejection_example(AppleVerifyError::from(AppleNotFound::Unknown))))),
            ),
        ),
        AppleVerifyErrorResponses,
    ),
)]
async fn finish_transaction(
    State(state): State<VerifyState<AppleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<FinishRequest>,
) -> Result<JsonAnswer<FinishedTransaction>, Problem> {
    let finishing = state.verifier.finish_transaction(&caller.tenant, &request);
    let purchase_id = || request.transaction_id.as_str().into();
    state
        .answer(EventSource::Apple, &caller.tenant, purchase_id, finishing)
        .await
}

/// Name the user of a purchase
///
/// For a purchase that names no user, such as one made with an offer code, or the wrong one: its transactions and notifications have the
/// `appAccountToken` from then on. Decide before you ask here whose purchase it is: it is not checked whom the purchase names now. A
/// request may be repeated.
#[utoipa::path(
    post,
    path = "/v1/apple/app-account-token",
    operation_id = "setAppleAppAccountToken",
    tag = "answers",
    security(("apiKey" = [])),
    request_body(
        content = AppAccountTokenRequest,
        description = "Which purchase, and whose it is. At most 16 KB.",
        examples(("user" = (summary = "A purchase, and its user", value = json!({
            "originalTransactionId": "2000000100000001",
            "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
        })))),
    ),
    responses(
        (
            status = 200,
            description = "The purchase names the user, or `valid: false` and why not",
            body = AppAccountTokenResponseSchema,
            examples(
                ("bound" = (summary = "The purchase names the user.", value = json!(BoundPurchase::example_json()))),
                ("NOT_ACCEPTED" = (summary = "It is a later transaction of the purchase.", value = json!(openapi::action_rejection_example(AppleActionError::NotAccepted { reason: NotAcceptedReason::NotOriginal, code: 4_000_187 })))),
                ("TRANSACTION_NOT_FOUND" = (summary = "Apple knows no such transaction.", value = json!(openapi::action_rejection_example(AppleVerifyError::from(AppleNotFound::Unknown))))),
            ),
        ),
        AppleVerifyErrorResponses,
    ),
)]
async fn set_app_account_token(
    State(state): State<VerifyState<AppleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<AppAccountTokenRequest>,
) -> Result<JsonAnswer<BoundPurchase>, Problem> {
    let binding = state
        .verifier
        .set_app_account_token(&caller.tenant, &request);
    let purchase_id = || request.original_transaction_id.as_str().into();
    state
        .answer(EventSource::Apple, &caller.tenant, purchase_id, binding)
        .await
}

/// Sign an offer for a subscription
///
/// Your app passes what is signed to StoreKit when the customer buys. Decide before you ask here whether this customer gets the offer:
/// what is signed is valid for the offer that it names, and nothing about the customer is checked. Name a `transactionId` of the customer,
/// so that no other customer can use the JWS.
#[utoipa::path(
    post,
    path = "/v1/apple/offers/sign",
    operation_id = "signAppleOffer",
    tag = "answers",
    security(("apiKey" = [])),
    request_body(
        content = AppleOfferRequestSchema,
        description = "Which offer, for which product. At most 16 KB.",
        examples(
            ("promotional" = (summary = "A promotional offer", value = json!({
                "type": "promotional",
                "productId": "com.example.app.pro.monthly",
                "offerId": "spring_half_price",
                "transactionId": "2000000123456789",
                "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            }))),
            ("introductory" = (summary = "Whether the customer gets the introductory offer", value = json!({
                "type": "introductory",
                "productId": "com.example.app.pro.monthly",
                "transactionId": "2000000123456789",
                "allowIntroductoryOffer": true,
            }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "It is signed",
            body = SignedOffer,
            examples(
                ("promotional" = (summary = "A promotional offer, in both forms.", value = json!(SignedOffer::promotional_example()))),
                ("introductory" = (summary = "A decision on the introductory offer.", value = json!(SignedOffer::introductory_example()))),
            ),
        ),
        AppleOfferErrorResponses,
    ),
)]
async fn sign_offer(
    State(state): State<VerifyState<AppleVerifier>>,
    caller: Caller,
    JsonBody(request): JsonBody<OfferRequest>,
) -> Result<axum::Json<SignedOffer>, Problem> {
    let signed = state.verifier.sign_offer(&caller.tenant, &request).await?;
    Ok(axum::Json(signed))
}

/// Take in a notification of the App Store
///
/// For Apple, not for you: enter this address in App Store Connect as the URL of the App Store Server Notifications, version
/// 2, for production and for the sandbox. The notification and everything signed inside of it must be signed by Apple, and
/// be of the tenant's app and of an environment that the tenant is set up for. When the answer is 200, the event is stored,
/// and so is its delivery to the tenant's callback; a repeat is answered alike and stored once. What this release has no
/// word for is stored as `unknown`.
#[utoipa::path(
    post,
    path = "/v1/webhooks/apple/{tenantId}",
    operation_id = "receiveApple",
    tag = "webhooks",
    params(("tenantId" = String, Path, description = "The tenant's id.", pattern = "^tenant_[0-7][0-9A-HJKMNP-TV-Z]{25}$", example = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E")),
    request_body(
        content = ApplePushBody,
        description = "What Apple posts. At most 1 MB; its content type is not looked at.",
        examples(("notification" = (summary = "A notification.", value = json!({
            "signedPayload": "eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJub3RpZmljYXRpb25UeXBlIj….MEQCIBvx…",
        })))),
    ),
    responses(
        (
            status = 200,
            description = "It is stored, now or before",
            body = AcceptedNotification,
            examples(
                ("stored" = (summary = "Stored, and on its way to the tenant's callback.", value = json!(AcceptedNotification::example_json("002e14d5-51f5-4503-b5a8-c3a1af68eb20", true)))),
                ("repeat" = (summary = "It had come before.", value = json!(AcceptedNotification::example_json("002e14d5-51f5-4503-b5a8-c3a1af68eb20", false)))),
            ),
        ),
        AppleNotificationErrorResponses,
    ),
)]
async fn receive_notification(
    State(state): State<NotificationState<AppleNotifications>>,
    Path(tenant): Path<String>,
    request: Request,
) -> Result<axum::Json<AcceptedNotification>, Problem> {
    let acceptance = accept_push(&state.notifications, &tenant, request);
    state.answer(EventSource::Apple, acceptance).await
}

async fn accept_push(
    notifications: &AppleNotifications,
    tenant: &str,
    request: Request,
) -> Result<AcceptedNotification, Problem> {
    let tenant = parse_tenant_id(tenant)?;
    let (parts, body) = request.into_parts();
    let admitted = notifications.find_active_tenant(&tenant).await?;
    let (ApplePushBody { signed_payload }, raw) = read_notification(&tenant, parts, body).await?;
    let message = SignedNotification {
        signed_payload,
        raw,
    };
    Ok(notifications.accept_notification(admitted, message).await?)
}
