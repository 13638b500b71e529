//! A use case: is an app transaction genuine, and of this tenant's app? It proves the purchase or the download of the app itself, and which
//! version that was.
//!
//! Checked in this order: the signature is Apple's; it is an app transaction; the app is the tenant's; the environment is the requested
//! one; in production, Apple's number of the app is the tenant's. What Apple's API returns is checked in the same way.
//!
//! Source: Apple's "Get App Transaction Info" and `JWSAppTransactionDecodedPayload`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Value, json};
use utoipa::ToSchema;

use super::account::{AppleCredentials, AppleEnvironment, EnvironmentChoice};
use super::api::AppleApiError;
use super::error::AppleVerifyError;
use super::inspection::SignedDataKind;
use super::payload::{self, Millis};
use super::trust::SignatureError;
use super::verify::{AppleVerifier, ask_environments, signed_kind, without_escaping};
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::http::Problem;
use crate::http::api_docs::always_true;
use crate::http::json::{FromJson, JsonFields};

/// The longest JWS, which fits into a body of 16 KB.
const MAX_SIGNED_CHARS: usize = 16_000;
/// Apple's code: the customer has no app transaction.
const NO_APP_TRANSACTION: i64 = 4_040_019;

/// Which app transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AppTransactionRequest {
    pub(crate) subject: AppTransactionRef,
    /// The environment it must be of. `None`: the tenant's setting.
    pub(crate) environment: Option<EnvironmentChoice>,
}

/// How a request names the app transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AppTransactionRef {
    /// Apple's API is asked for it, by any transaction of the customer or by its own id.
    TransactionId(String),
    /// StoreKit 2's JWS. Apple is not asked.
    Signed(String),
}

/// Why there is no app transaction.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AppTransactionError {
    /// As for a transaction.
    #[error("{0}")]
    Verify(AppleVerifyError),
    /// The customer of the transaction has none.
    #[error("the customer has no app transaction")]
    NotFound,
    #[error("it is {0}, not an app transaction")]
    NotAnAppTransaction(SignedDataKind),
    /// Of an app with the tenant's bundle id and another number.
    #[error("it is of an app with another Apple id")]
    AppAppleIdMismatch {
        expected: i64,
        /// `None`: it names none.
        found: Option<i64>,
    },
}

/// A yes: this app transaction is genuine and of this tenant's app.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = apple::VerifiedAppTransaction)]
pub(crate) struct VerifiedAppTransaction {
    /// Always true in this answer.
    #[schema(schema_with = always_true)]
    valid: bool,
    /// The release of Attesto that answered.
    #[schema(examples(json!(crate::VERSION)))]
    version: &'static str,
    /// Where the app was obtained.
    pub(crate) environment: AppleEnvironment,
    /// What Apple says of it.
    pub(crate) app_transaction: AppTransactionDetails,
}

/// The facts of an app transaction, as Apple signed them. What Apple did not say is null.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = apple::AppTransaction)]
pub(crate) struct AppTransactionDetails {
    /// Its id, the same for all downloads of the app by this customer.
    #[schema(examples("704567890123456789"))]
    app_transaction_id: Option<String>,
    /// The app's bundle id.
    #[schema(examples("com.example.app"))]
    bundle_id: Option<String>,
    /// Apple's number of the app. Null in the sandbox.
    #[schema(examples(1_234_567_890_i64))]
    app_apple_id: Option<i64>,
    /// The version of the app that is installed: its build number on iOS.
    #[schema(examples("42"))]
    application_version: Option<String>,
    /// The version that the customer bought or downloaded first. In the sandbox always `1.0`.
    #[schema(examples("7"))]
    pub(crate) original_application_version: Option<String>,
    /// When the customer bought or downloaded the app first.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub(crate) original_purchase_date: Option<Timestamp>,
    /// Where that was: `iOS`, `macOS`, `tvOS` or `visionOS`.
    #[schema(examples("iOS"))]
    original_platform: Option<String>,
    /// When the customer ordered the app before it was released. Null without such an order.
    #[schema(value_type = Option<String>, format = DateTime)]
    preorder_date: Option<Timestamp>,
    /// When Apple signed this.
    #[schema(value_type = Option<String>, format = DateTime)]
    receipt_creation_date: Option<Timestamp>,
    /// With `deviceVerificationNonce` and the device's own id: a proof that it is of that device, in base64. Your app checks it.
    #[schema(examples("pBYpDYZ4m0Nn"))]
    device_verification: Option<String>,
    /// The UUID that is hashed into `deviceVerification`.
    #[schema(examples("0b3f2f6e-6c0f-4a2e-9d0b-2f4f5d1c7a10"))]
    device_verification_nonce: Option<String>,
    /// The app transaction as Apple signed it: a JWS.
    #[schema(examples("eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJyZWNlaXB0VHlwZSI….MEUCIQDf…"))]
    #[serde(serialize_with = "without_escaping")]
    signed_app_transaction_info: String,
    /// What Apple signed, decoded and otherwise untouched: what this release does not know is in it too.
    #[schema(value_type = Object)]
    raw_decoded_payload: Box<RawValue>,
}

/// What is read of the payload.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct AppTransactionPayload {
    receipt_type: Option<String>,
    app_transaction_id: Option<String>,
    bundle_id: Option<String>,
    app_apple_id: Option<i64>,
    application_version: Option<String>,
    original_application_version: Option<String>,
    original_purchase_date: Option<Millis>,
    original_platform: Option<String>,
    preorder_date: Option<Millis>,
    receipt_creation_date: Option<Millis>,
    device_verification: Option<String>,
    device_verification_nonce: Option<String>,
}

impl AppTransactionRequest {
    /// What is hashed into the validation log.
    pub(super) fn audit_identifier(&self) -> Cow<'_, str> {
        match &self.subject {
            AppTransactionRef::TransactionId(text) | AppTransactionRef::Signed(text) => text.into(),
        }
    }
}

impl FromJson for AppTransactionRequest {
    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let id = body.optional_string("transactionId", 1..=128);
        let signed = body.optional_string("signedAppTransaction", 1..=MAX_SIGNED_CHARS);
        let is_given = ["transactionId", "signedAppTransaction"].map(|name| body.has_field(name));
        match is_given {
            [true, true] => body.add_issue(
                "",
                "give either transactionId or signedAppTransaction, not both",
            ),
            [false, false] => body.add_issue("", "give transactionId or signedAppTransaction"),
            _ => {}
        }
        let environment = EnvironmentChoice::from_json_field(body);
        Some(Self {
            subject: match (id, signed) {
                (Some(id), None) => AppTransactionRef::TransactionId(id),
                (None, Some(jws)) => AppTransactionRef::Signed(jws),
                _ => return None,
            },
            environment,
        })
    }
}

impl From<AppleVerifyError> for AppTransactionError {
    fn from(error: AppleVerifyError) -> Self {
        match error {
            AppleVerifyError::Api(AppleApiError::Unexpected {
                status: 404,
                code: Some(NO_APP_TRANSACTION),
                ..
            }) => Self::NotFound,
            error => Self::Verify(error),
        }
    }
}

impl From<AppTransactionError> for Problem {
    fn from(error: AppTransactionError) -> Self {
        match error {
            AppTransactionError::Verify(error) => error.into(),
            AppTransactionError::NotFound => Self::rejection(
                "APP_TRANSACTION_NOT_FOUND",
                "Apple knows the transaction, and no app transaction of its customer.",
            ),
            AppTransactionError::NotAnAppTransaction(kind) => Self::rejection(
                "NOT_AN_APP_TRANSACTION",
                format!("Apple signed this, and it is {kind}, not an app transaction. Send the app transaction's own JWS: StoreKit's `VerificationResult<AppTransaction>.jwsRepresentation`."),
            )
            .with_detail("found", json!(kind)),
            AppTransactionError::AppAppleIdMismatch { expected, found } => Self::rejection(
                "APP_APPLE_ID_MISMATCH",
                "This app transaction is of an app with another Apple id than this tenant's app. An operator corrects a wrong one with `attesto apple set-credentials --app-apple-id`.",
            )
            .with_detail("expected", json!(expected))
            .with_detail("found", json!(found)),
        }
    }
}

impl AppleVerifier {
    /// Verifies the app transaction that `request` names.
    pub(crate) async fn verify_app_transaction(
        &self,
        tenant: &TenantId,
        request: &AppTransactionRequest,
    ) -> Result<VerifiedAppTransaction, AppTransactionError> {
        let credentials = self.require_credentials(tenant).await?;
        let choice = request.environment.unwrap_or(credentials.environment);
        let has_id = credentials.app_apple_id.is_some();
        let (expected, jws, is_from_store) = match &request.subject {
            AppTransactionRef::TransactionId(id) => {
                let (environment, jws) = ask_environments(choice, &credentials, |environment| {
                    self.app_store
                        .get_app_transaction_info(tenant, &credentials, environment, id)
                })
                .await?;
                (Some(environment), Cow::Owned(jws), true)
            }
            AppTransactionRef::Signed(jws) => {
                if choice == EnvironmentChoice::Production && !has_id {
                    return Err(AppleVerifyError::NoAppAppleId.into());
                }
                let expected = match choice {
                    EnvironmentChoice::Auto => None,
                    EnvironmentChoice::Production => Some(AppleEnvironment::Production),
                    EnvironmentChoice::Sandbox => Some(AppleEnvironment::Sandbox),
                };
                (expected, Cow::Borrowed(jws.as_str()), false)
            }
        };
        let untrusted = |error| {
            if is_from_store {
                AppleVerifyError::UntrustedResponse(error)
            } else {
                AppleVerifyError::InvalidSignature(error)
            }
        };
        let payload = self.verify_jws(&jws).await.map_err(untrusted)?;
        let read: AppTransactionPayload =
            serde_json::from_slice(&payload).map_err(|_| untrusted(SignatureError::BadPayload))?;
        // The same keys sign transactions, which are no proof of the purchase of the app.
        if read.receipt_type.is_none() {
            return Err(AppTransactionError::NotAnAppTransaction(signed_kind(&jws)));
        }
        let environment = check_app(&credentials, expected, &read)?;
        let raw =
            payload::to_raw_json(payload).ok_or_else(|| untrusted(SignatureError::BadPayload))?;
        Ok(VerifiedAppTransaction {
            valid: true,
            version: crate::VERSION,
            environment,
            app_transaction: read.into_details(jws.into_owned(), raw),
        })
    }
}

/// Checks the bundle id, the environment and the number of the app.
fn check_app(
    credentials: &AppleCredentials,
    expected: Option<AppleEnvironment>,
    read: &AppTransactionPayload,
) -> Result<AppleEnvironment, AppTransactionError> {
    if read.bundle_id.as_deref() != Some(&*credentials.bundle_id) {
        return Err(AppleVerifyError::BundleIdMismatch {
            expected: credentials.bundle_id.clone(),
            found: read.bundle_id.clone(),
        }
        .into());
    }
    let found = read.receipt_type.as_deref();
    let environment = found
        .and_then(AppleEnvironment::from_apple_str)
        .filter(|found| expected.is_none_or(|expected| expected == *found))
        .ok_or_else(|| AppleVerifyError::EnvironmentMismatch {
            expected,
            found: read.receipt_type.clone(),
        })?;
    if environment == AppleEnvironment::Production {
        let expected = credentials
            .app_apple_id
            .ok_or(AppleVerifyError::NoAppAppleId)?;
        if read.app_apple_id != Some(expected) {
            let found = read.app_apple_id;
            return Err(AppTransactionError::AppAppleIdMismatch { expected, found });
        }
    }
    Ok(environment)
}

impl AppTransactionPayload {
    fn into_details(self, jws: String, raw: Box<RawValue>) -> AppTransactionDetails {
        let date = |date: Option<Millis>| date.map(|Millis(date)| date);
        AppTransactionDetails {
            app_transaction_id: self.app_transaction_id,
            bundle_id: self.bundle_id,
            app_apple_id: self.app_apple_id,
            application_version: self.application_version,
            original_application_version: self.original_application_version,
            original_purchase_date: date(self.original_purchase_date),
            original_platform: self.original_platform,
            preorder_date: date(self.preorder_date),
            receipt_creation_date: date(self.receipt_creation_date),
            device_verification: self.device_verification,
            device_verification_nonce: self.device_verification_nonce,
            signed_app_transaction_info: jws,
            raw_decoded_payload: raw,
        }
    }
}

impl VerifiedAppTransaction {
    /// An answer, for the API description.
    pub(super) fn example_json() -> Value {
        json!({
            "valid": true,
            "version": crate::VERSION,
            "environment": "production",
            "appTransaction": {
                "appTransactionId": "704567890123456789",
                "bundleId": "com.example.app",
                "appAppleId": 1_234_567_890,
                "applicationVersion": "42",
                "originalApplicationVersion": "7",
                "originalPurchaseDate": "2024-04-10T14:22:10.000Z",
                "originalPlatform": "iOS",
                "preorderDate": null,
                "receiptCreationDate": "2026-04-10T14:22:10.000Z",
                "deviceVerification": null,
                "deviceVerificationNonce": null,
                "signedAppTransactionInfo": "eyJhbGciOiJFUzI1NiIsIng1YyI6Wy….eyJyZWNlaXB0VHlwZSI….MEUCIQDf…",
                "rawDecodedPayload": { "receiptType": "Production", "bundleId": "com.example.app" },
            },
        })
    }
}
