//! Apple's routes as `/openapi.json` describes them: what they take, what can go wrong, and an example of each answer.
//!
//! Errors and refusals are described by themselves: their texts here are those that are sent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoResponses, ToSchema};

use super::account::EnvironmentChoice;
use super::action_error::AppleActionError;
use super::api::AppleApiError;
use super::app_transaction::{AppTransactionError, VerifiedAppTransaction};
use super::consumption::{AppleRefundPreference, DeliveryStatus, SentConsumption};
use super::error::{AppleNotificationError, AppleVerifyError, NotificationRejection};
use super::offers::OfferRequest;
use super::transaction_actions::{BoundPurchase, FinishedTransaction};
use super::trust::SignatureError;
use super::verify::{AppleVerifyRequest, VerifiedTransaction};
use crate::http::api_docs::{self, DocumentedError, string_enum_schema};
use crate::http::problem::{Issue, always_false, constant_bool_schema};
use crate::http::{Problem, body, json};
use crate::outbound::UpstreamError;
use crate::stores::shared::first_seen::for_app_user_id_schema;
use crate::stores::shared::notifications::describe_admission_errors;
use crate::tenants::caller;

/// A question about an App Store transaction: by its id, or by the JWS that StoreKit gave your app.
#[derive(ToSchema)]
#[schema(as = apple::VerifyRequest)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes what `AppleVerifyRequest::from_json` reads"
)]
pub(super) enum AppleVerifyRequestSchema {
    ById(VerifyByIdSchema),
    Signed(VerifySignedSchema),
}

/// A question about the transaction of this id. Apple is asked.
#[derive(ToSchema)]
#[schema(as = apple::VerifyById, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes what `AppleVerifyRequest::from_json` reads"
)]
pub(super) struct VerifyByIdSchema {
    /// The transaction's id: StoreKit's `Transaction.id`.
    #[schema(min_length = 1, max_length = 128, examples("2000000123456789"))]
    transaction_id: String,
    environment: Option<EnvironmentChoice>,
    #[schema(schema_with = expected_app_user_id, required = false)]
    expected_app_user_id: Option<String>,
    #[schema(schema_with = for_app_user_id_schema, required = false)]
    for_app_user_id: Option<String>,
    #[schema(schema_with = refresh, required = false)]
    refresh: Option<bool>,
}

/// A question about this signed transaction. The signature is checked here, and Apple is not asked, unless by `refresh`.
#[derive(ToSchema)]
#[schema(as = apple::VerifySigned, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes what `AppleVerifyRequest::from_json` reads"
)]
pub(super) struct VerifySignedSchema {
    /// The transaction as StoreKit 2 gives it to your app: `VerificationResult.jwsRepresentation`.
    #[schema(
        min_length = 1,
        max_length = 16_000,
        examples("eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJ0cmFuc2FjdGlvbklkIj….MEUCIQDf…")
    )]
    signed_transaction: String,
    environment: Option<EnvironmentChoice>,
    #[schema(schema_with = expected_app_user_id, required = false)]
    expected_app_user_id: Option<String>,
    #[schema(schema_with = for_app_user_id_schema, required = false)]
    for_app_user_id: Option<String>,
    #[schema(schema_with = refresh, required = false)]
    refresh: Option<bool>,
}

/// A question about an app transaction: exactly one of `transactionId` and `signedAppTransaction`.
#[derive(ToSchema)]
#[schema(as = apple::AppTransactionRequest, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes what `AppTransactionRequest::from_json` reads"
)]
pub(super) struct AppTransactionRequestSchema {
    /// Any transaction of the customer, or the app transaction's own id: Apple is asked.
    #[schema(min_length = 1, max_length = 128, examples("2000000123456789"))]
    transaction_id: Option<String>,
    /// The app transaction as StoreKit 2 gives it to your app, which is verified here: `VerificationResult<AppTransaction>.jwsRepresentation`.
    #[schema(
        min_length = 1,
        max_length = 16_000,
        examples("eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJyZWNlaXB0VHlwZSI….MEUCIQDf…")
    )]
    signed_app_transaction: Option<String>,
    environment: Option<EnvironmentChoice>,
}

/// What is answered when there is a verdict.
#[derive(ToSchema)]
#[schema(as = apple::AppTransactionAnswer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `VerifiedAppTransaction` and `Problem` together"
)]
pub(super) enum AppTransactionResponseSchema {
    Verified(Box<VerifiedAppTransaction>),
    Rejected(AppTransactionRejectionSchema),
}

/// A "no": it proves nothing.
#[derive(ToSchema)]
#[schema(as = apple::AppTransactionRefused, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem`")]
pub(super) struct AppTransactionRejectionSchema {
    #[schema(schema_with = always_false)]
    valid: bool,
    #[schema(schema_with = app_transaction_rejection_codes)]
    error: String,
    /// What it means, in a sentence for people. It may change from release to release.
    #[schema(examples("Apple knows no transaction with this id."))]
    message: String,
    /// Facts for a program, as those of the verify route. Left out when there are none.
    #[schema(value_type = Option<Object>, required = false, nullable = false)]
    details: Option<Value>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    request_id: String,
}

fn app_transaction_rejection_codes() -> Schema {
    string_enum_schema(
        "Why not.",
        &[
            ("TRANSACTION_NOT_FOUND", "Apple knows no such transaction."),
            (
                "APP_TRANSACTION_NOT_FOUND",
                "Apple knows the transaction, and no app transaction of its customer.",
            ),
            ("SIGNATURE_INVALID", "Apple did not sign it."),
            (
                "NOT_AN_APP_TRANSACTION",
                "Apple signed it, and it is something else; `details.found` says what.",
            ),
            ("BUNDLE_ID_MISMATCH", "it is genuine, and of another app."),
            (
                "APP_APPLE_ID_MISMATCH",
                "it is genuine, and of an app with another Apple id than the tenant's. In production only.",
            ),
            (
                "ENVIRONMENT_MISMATCH",
                "it is genuine, and of another environment than the one asked about.",
            ),
        ],
    )
}

/// A "no" about an app transaction, as it is answered.
pub(super) fn app_transaction_rejection_example(error: impl Into<AppTransactionError>) -> Value {
    api_docs::error_example(&error.into().into())
}

/// How a purchase was used.
#[derive(ToSchema)]
#[schema(as = apple::ConsumptionRequest, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes what `ConsumptionRequest::from_json` reads"
)]
pub(super) struct ConsumptionRequestSchema {
    /// The transaction that Apple asked about: `data.data.transactionInfo.transactionId` of the event.
    #[schema(min_length = 1, max_length = 128, examples("2000000123456789"))]
    transaction_id: String,
    /// The environment of the event. Left out, the tenant's setting decides.
    environment: Option<EnvironmentChoice>,
    #[schema(schema_with = customer_consented)]
    customer_consented: bool,
    /// Whether the customer could try the content before the purchase: a sample, a trial, or a description of what it does.
    #[schema(examples(false))]
    sample_content_provided: bool,
    delivery_status: DeliveryStatus,
    /// How much was used, in thousandths of a percent: 50000 is a half. Leave it out where that is not known.
    #[schema(minimum = 0, maximum = 100_000, examples(50_000))]
    consumption_percentage: Option<u32>,
    refund_preference: Option<AppleRefundPreference>,
}

/// What is answered when Apple was told, or says no.
#[derive(ToSchema)]
#[schema(as = apple::ConsumptionAnswer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `SentConsumption` and `Problem` together"
)]
pub(super) enum ConsumptionResponseSchema {
    Sent(SentConsumption),
    Rejected(AppleActionRejectionSchema),
}

/// What is answered when Apple was told, or says no.
#[derive(ToSchema)]
#[schema(as = apple::FinishAnswer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `FinishedTransaction` and `Problem` together"
)]
pub(super) enum FinishResponseSchema {
    Finished(FinishedTransaction),
    Rejected(AppleActionRejectionSchema),
}

/// What is answered when Apple was told, or says no.
#[derive(ToSchema)]
#[schema(as = apple::AppAccountTokenAnswer)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes `BoundPurchase` and `Problem` together")]
pub(super) enum AppAccountTokenResponseSchema {
    Bound(BoundPurchase),
    Rejected(AppleActionRejectionSchema),
}

/// A "no": Apple took nothing.
#[derive(ToSchema)]
#[schema(as = apple::ActionRefused, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem`")]
pub(super) struct AppleActionRejectionSchema {
    #[schema(schema_with = always_false)]
    valid: bool,
    #[schema(schema_with = action_rejection_codes)]
    error: String,
    /// What it means, in a sentence for people. It may change from release to release.
    #[schema(examples("Apple knows no transaction with this id."))]
    message: String,
    /// Facts for a program: those of the verify route, and with `NOT_ACCEPTED` a `reason` and Apple's `appleErrorCode`.
    #[schema(value_type = Option<Object>, required = false, nullable = false)]
    details: Option<Value>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    request_id: String,
}

fn customer_consented() -> Schema {
    constant_bool_schema(
        true,
        "The customer has consented to Apple being told. Must be true: without consent Apple takes nothing.",
    )
}

fn action_rejection_codes() -> Schema {
    string_enum_schema(
        "Why not.",
        &[
            ("TRANSACTION_NOT_FOUND", "Apple knows no such transaction."),
            (
                "NOT_ACCEPTED",
                "Apple knows the transaction and does not take this about it; `details.reason` says why: `product_type`, not about a product of this type; `family_shared`, the family of the buyer shares it; `not_original`, it is not the first transaction of the purchase; `invalid_value`, a value is not one of Apple's.",
            ),
        ],
    )
}

/// An offer that is to be signed.
#[derive(ToSchema)]
#[schema(as = apple::OfferRequest)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes what `OfferRequest::from_json` reads")]
pub(super) enum AppleOfferRequestSchema {
    Promotional(PromotionalOfferSchema),
    Introductory(IntroductoryOfferSchema),
}

/// A promotional offer: for customers who have or had a subscription of the same group.
#[derive(ToSchema)]
#[schema(as = apple::PromotionalOffer, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes what `OfferRequest::from_json` reads")]
pub(super) struct PromotionalOfferSchema {
    #[schema(schema_with = promotional_type)]
    r#type: String,
    /// The subscription that is offered.
    #[schema(
        min_length = 1,
        max_length = 200,
        examples("com.example.app.pro.monthly")
    )]
    product_id: String,
    /// The offer's identifier in App Store Connect.
    #[schema(min_length = 1, max_length = 200, examples("spring_half_price"))]
    offer_id: String,
    /// Any transaction of the customer, or the id of the app's own transaction (`appTransactionId`). Apple recommends to name one.
    #[schema(min_length = 1, max_length = 128, examples("2000000123456789"))]
    transaction_id: Option<String>,
    #[schema(schema_with = app_account_token, required = false)]
    app_account_token: Option<String>,
}

/// A decision whether a customer gets the introductory offer, in place of Apple's own.
#[derive(ToSchema)]
#[schema(as = apple::IntroductoryOffer, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes what `OfferRequest::from_json` reads")]
pub(super) struct IntroductoryOfferSchema {
    #[schema(schema_with = introductory_type)]
    r#type: String,
    /// The subscription that is offered.
    #[schema(
        min_length = 1,
        max_length = 200,
        examples("com.example.app.pro.monthly")
    )]
    product_id: String,
    /// Any transaction of the customer, or the id of the app's own transaction (`appTransactionId`).
    #[schema(min_length = 1, max_length = 128, examples("2000000123456789"))]
    transaction_id: String,
    /// Whether the customer gets the offer.
    #[schema(examples(true))]
    allow_introductory_offer: bool,
}

fn promotional_type() -> Schema {
    string_enum_schema("Which offer.", &[("promotional", "a promotional offer.")])
}

fn introductory_type() -> Schema {
    string_enum_schema(
        "Which offer.",
        &[("introductory", "the introductory offer.")],
    )
}

fn refresh() -> Schema {
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::SchemaType::from_iter([
            utoipa::openapi::schema::Type::Boolean,
            utoipa::openapi::schema::Type::Null,
        ]))
        .description(Some(
            "Whether Apple is asked for the whole subscription although the transaction says enough by itself: `state` then knows of later periods, grace and renewal.",
        ))
        .build()
        .into()
}

fn expected_app_user_id() -> Schema {
    user_uuid(
        "Whose transaction it must be: the UUID that your app gave StoreKit as `appAccountToken`. Another user's is refused with `APP_USER_MISMATCH`, and so is one without.",
    )
}

fn app_account_token() -> Schema {
    user_uuid(
        "The customer's `appAccountToken`, if the app passes one with the purchase. Only the earlier signature names it.",
    )
}

fn user_uuid(description: &str) -> Schema {
    api_docs::optional_string_schema(description)
        .format(Some(utoipa::openapi::SchemaFormat::Custom(
            "uuid".to_owned(),
        )))
        .pattern(Some(api_docs::UUID_PATTERN))
        .examples([json!("7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55")])
        .build()
        .into()
}

/// What is answered when there is a verdict.
#[derive(ToSchema)]
#[schema(as = apple::Answer)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "describes `VerifiedTransaction` and `Problem` together"
)]
pub(super) enum AppleVerifyResponseSchema {
    Yes(Box<VerifiedTransaction>),
    No(AppleRefusedSchema),
}

/// A "no": do not grant.
#[derive(ToSchema)]
#[schema(as = apple::Refused, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem`")]
pub(super) struct AppleRefusedSchema {
    #[schema(schema_with = always_false)]
    valid: bool,
    #[schema(schema_with = refusals)]
    error: String,
    /// What it means, in a sentence for people. It may change from release to release.
    #[schema(examples("Apple knows no transaction with this id."))]
    message: String,
    #[schema(required = false, nullable = false)]
    details: Option<AppleRefusedDetailsSchema>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    request_id: String,
}

/// Facts for a program. Left out when there are none; which there are depends on `error`.
#[derive(ToSchema)]
#[schema(as = apple::RefusedDetails, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem::details`")]
pub(super) struct AppleRefusedDetailsSchema {
    /// With `TRANSACTION_NOT_FOUND`: `unknown`; `malformed`, it cannot be an id; `app_transaction_id`, it is the id of the
    /// app's own transaction. With `APP_USER_MISMATCH`: `none`, it names no user and may be bound to one; `another`, it is
    /// another user's.
    #[schema(required = false, nullable = false, examples("unknown"))]
    reason: Option<String>,
    /// With `TRANSACTION_NOT_FOUND`: Apple may not know the id yet, because it was first asked for less than a minute ago. Ask
    /// again in a minute.
    #[schema(required = false, nullable = false, examples(true))]
    may_be_early: Option<bool>,
    /// With `SIGNATURE_INVALID`: which check was not passed.
    #[schema(required = false, nullable = false, examples("bad_signature"))]
    class: Option<String>,
    /// With `BUNDLE_ID_MISMATCH`: the tenant's bundle id. With `ENVIRONMENT_MISMATCH`: the environment asked about; null when
    /// it was any.
    #[schema(required = false, examples("com.example.app"))]
    expected: Option<String>,
    /// With `ENVIRONMENT_MISMATCH`: the environment that the transaction is of, in lower case; null when it does not say. With
    /// `BUNDLE_ID_MISMATCH`: the app that it is of; null when it names none. With `NOT_A_TRANSACTION`: what it is.
    #[schema(required = false, examples("sandbox"))]
    found: Option<String>,
}

fn refusals() -> Schema {
    string_enum_schema(
        "Why not.",
        &[
            ("TRANSACTION_NOT_FOUND", "Apple knows no such transaction."),
            ("SIGNATURE_INVALID", "Apple did not sign this transaction."),
            (
                "NOT_A_TRANSACTION",
                "Apple signed it, and it is something else than a transaction.",
            ),
            (
                "BUNDLE_ID_MISMATCH",
                "it is genuine, and of another app, or names none.",
            ),
            (
                "ENVIRONMENT_MISMATCH",
                "it is genuine, and of another environment than the one asked about.",
            ),
            (
                "APP_USER_MISMATCH",
                "it is genuine, and of another user than `expectedAppUserId`, or of none.",
            ),
        ],
    )
}

/// What can go wrong with a question.
pub(super) struct AppleVerifyErrorResponses;

impl IntoResponses for AppleVerifyErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let wait = Duration::from_mins(1);
        let malformed = br#"{"environment":"xcode","expectedAppUserId":"me"}"#;
        let own = [
            DocumentedError::new(
                "the body is malformed; `details.issues` lists everything that is wrong with it",
                json::read_json::<AppleVerifyRequest>(malformed).expect_err("it is malformed"),
            ),
            DocumentedError::new(
                "the body is larger than 16 KB",
                body::body_too_large(16 * 1024),
            ),
            DocumentedError::new(
                "this tenant has no Apple credentials",
                AppleVerifyError::NoCredentials,
            ),
            DocumentedError::new(
                "production was asked about, and this tenant has no app Apple id",
                AppleVerifyError::NoAppAppleId,
            ),
            DocumentedError::new(
                "Apple's limit for this tenant's app is used up",
                AppleVerifyError::Api(AppleApiError::RateLimited { retry_after: wait }),
            ),
            DocumentedError::new(
                "too many questions of this tenant wait for Apple",
                AppleVerifyError::Api(AppleApiError::TooManyInFlight),
            ),
            DocumentedError::new(
                "Apple refuses this tenant's key",
                AppleVerifyError::Api(AppleApiError::Unauthorized { status: 401 }),
            ),
            DocumentedError::new(
                "Apple had an error of its own",
                AppleVerifyError::Api(AppleApiError::Unexpected {
                    status: 500,
                    code: Some(5_000_000),
                    message: None,
                    retry_after: Some(wait),
                }),
            ),
            DocumentedError::new(
                "Apple did not answer",
                AppleVerifyError::Api(UpstreamError::Timeout(wait).into()),
            ),
            DocumentedError::new(
                "Apple does not say right now whether a certificate was revoked; only with `APPLE_OCSP=on`",
                AppleVerifyError::InvalidSignature(SignatureError::OcspUnavailable {
                    retry_after: wait,
                }),
            ),
        ];
        api_docs::error_responses(caller::describe_auth_errors().into_iter().chain(own))
    }
}

/// What can go wrong with an offer.
pub(super) struct AppleOfferErrorResponses;

impl IntoResponses for AppleOfferErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let malformed = br#"{"type":"promotional"}"#;
        let own = [
            DocumentedError::new(
                "the body is malformed; `details.issues` lists everything that is wrong with it",
                json::read_json::<OfferRequest>(malformed).expect_err("it is malformed"),
            ),
            DocumentedError::new(
                "the body is larger than 16 KB",
                body::body_too_large(16 * 1024),
            ),
            DocumentedError::new(
                "this tenant has no Apple credentials",
                AppleVerifyError::NoCredentials,
            ),
        ];
        api_docs::error_responses(caller::describe_auth_errors().into_iter().chain(own))
    }
}

/// What can go wrong with a notification.
pub(super) struct AppleNotificationErrorResponses;

impl IntoResponses for AppleNotificationErrorResponses {
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
                "the body holds no `signedPayload`",
                json::read_json::<super::request_body::ApplePushBody>(b"{}")
                    .err()
                    .expect("it is malformed"),
            ),
            DocumentedError::new(
                "the body is larger than 1 MB",
                body::body_too_large(1024 * 1024),
            ),
            DocumentedError::new(
                "the notification has no `notificationUUID`",
                AppleNotificationError::NoNotificationUuid,
            ),
            DocumentedError::new(
                "this tenant has no Apple credentials",
                AppleNotificationError::NoCredentials,
            ),
            DocumentedError::new(
                "it is of production, and this tenant has no app Apple id",
                AppleNotificationError::NoAppAppleId,
            ),
            DocumentedError::new(
                "Apple did not sign the notification, or a part of it",
                AppleNotificationError::Rejected(NotificationRejection::InvalidSignature(
                    SignatureError::BadSignature,
                )),
            ),
            DocumentedError::new(
                "the notification is about another app, or of another environment than the tenant is set up for",
                AppleNotificationError::Rejected(NotificationRejection::BundleIdMismatch),
            ),
            DocumentedError::new(
                "there is no active tenant of this id",
                AppleNotificationError::TenantInactive,
            ),
            DocumentedError::database_unavailable(),
            DocumentedError::new(
                "Apple does not say right now whether a certificate was revoked; only with `APPLE_OCSP=on`",
                AppleNotificationError::Rejected(NotificationRejection::InvalidSignature(
                    SignatureError::OcspUnavailable {
                        retry_after: Duration::from_mins(1),
                    },
                )),
            ),
        ];
        api_docs::error_responses(own.into_iter().chain(describe_admission_errors()))
    }
}

/// A subscription that is paid for, as it is answered.
pub(super) fn subscription_example() -> Value {
    json!({
        "valid": true,
        "version": crate::VERSION,
        "environment": "production",
        "status": "active",
        "appUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
        "appUserIdSource": "purchase",
        "subject": {
            "key": "2000000100000001",
            "productId": "com.example.app.pro.monthly",
            "type": "subscription",
            "current": true,
            "supersededBy": null
        },
        "state": {
            "status": "active",
            "entitled": true,
            "entitledUntil": "2026-05-10T14:22:10.000Z",
            "productId": "com.example.app.pro.monthly",
            "basePlanId": null,
            "offerId": null,
            "period": "regular",
            "willRenew": null,
            "renewsAs": null,
            "renewsAt": null,
            "ownership": "purchased",
            "quantity": 1,
            "refundableQuantity": null,
            "acknowledgeBy": null,
            "basis": "transaction",
            "asOf": "2026-04-10T14:22:11.000Z"
        },
        "stateError": null,
        "transaction": {
            "transactionId": "2000000123456789",
            "originalTransactionId": "2000000100000001",
            "bundleId": "com.example.app",
            "productId": "com.example.app.pro.monthly",
            "purchaseDate": "2026-04-10T14:22:10.000Z",
            "originalPurchaseDate": "2026-03-10T14:22:12.000Z",
            "expiresDate": "2026-05-10T14:22:10.000Z",
            "type": "Auto-Renewable Subscription",
            "inAppOwnershipType": "PURCHASED",
            "quantity": 1,
            "webOrderLineItemId": "2000000044444444",
            "revocationDate": null,
            "revocationReason": null,
            "offerType": null,
            "offerIdentifier": null,
            "appAccountToken": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
            "storefront": "USA",
            "storefrontId": "143441",
            "transactionReason": "RENEWAL",
            "currency": "USD",
            "price": 9990,
            "signedTransactionInfo": "eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJ0cmFuc2FjdGlvbklkIj….MEUCIQDf…",
            "rawDecodedPayload": {
                "transactionId": "2000000123456789",
                "originalTransactionId": "2000000100000001",
                "bundleId": "com.example.app",
                "expiresDate": 1_778_422_930_000_i64,
                "price": 9990
            }
        }
    })
}

/// The same after Apple gave the money back.
pub(super) fn refunded_example() -> Value {
    let mut answer = subscription_example();
    answer["status"] = json!("refunded");
    let state = &mut answer["state"];
    state["status"] = json!("refunded");
    state["entitled"] = json!(false);
    state["willRenew"] = json!(false);
    state["entitledUntil"] = Value::Null;
    state["basis"] = json!("store");
    state["asOf"] = json!("2026-04-12T08:00:01.000Z");
    answer["transaction"]["revocationDate"] = json!("2026-04-12T08:00:00.000Z");
    answer["transaction"]["revocationReason"] = json!(0);
    answer
}

/// A "no" to what Apple was to be told, as it is answered.
pub(super) fn action_rejection_example(error: impl Into<AppleActionError>) -> Value {
    api_docs::error_example(&error.into().into())
}

/// A "no", as it is answered.
pub(super) fn rejection_example(error: AppleVerifyError) -> Value {
    api_docs::error_example(&error.into())
}
