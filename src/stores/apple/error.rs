//! Why Apple's routes do not answer with a transaction or a receipt, and the HTTP answer to each reason below it.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::account::AppleEnvironment;
use super::api::{AppleApiError, AppleNotFound};
use super::inspection::SignedDataKind;
use super::payload::NotificationPart;
use super::trust::SignatureError;
use crate::base::json_text::JsonTextError;
use crate::db;
use crate::events::RecordError;
use crate::http::problem::Issue;
use crate::http::{ErrorCode, Problem};
use crate::outbound::UpstreamError;
use crate::stores::shared::credentials::LoadCredentialsError;
use crate::stores::shared::notifications::AdmissionError;

const NO_CREDENTIALS_MESSAGE: &str = "This tenant has no Apple credentials. An operator sets them with `attesto apple set-credentials`.";
const NO_APP_APPLE_ID_MESSAGE: &str = "This tenant has no app Apple id, without which nothing of production can be verified. An operator adds it with `attesto apple set-credentials --app-apple-id`.";
/// Only with `APPLE_OCSP=on`. The log names the responder and the error.
const OCSP_UNAVAILABLE_MESSAGE: &str = "Apple's responder does not say right now whether the certificates that this is signed with were revoked. Nothing is wrong with it so far: ask again when Retry-After says.";

/// Why a transaction is not verified.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppleVerifyError {
    /// Apple knows no such transaction.
    #[error("{reason}")]
    NotFound {
        /// In which way.
        reason: AppleNotFound,
        /// The id was first seen a moment ago: Apple may not know it yet.
        may_be_early: bool,
    },
    /// The request's `signedTransaction` is not accepted, or not now.
    #[error("{0}")]
    InvalidSignature(SignatureError),
    /// The transaction is of another app than the tenant's.
    #[error("the transaction is of another app")]
    BundleIdMismatch {
        /// The tenant's bundle id.
        expected: String,
        /// The transaction's. `None`: it names no app.
        found: Option<String>,
    },
    /// The transaction is of another environment than the requested one.
    #[error("the transaction is of another environment")]
    EnvironmentMismatch {
        /// The requested environment. `None` for `auto`.
        expected: Option<AppleEnvironment>,
        /// The transaction's, in Apple's spelling.
        found: Option<String>,
    },
    /// The request's `signedTransaction` is genuine, and something else than a transaction.
    #[error("it is {0}, not a transaction")]
    NotATransaction(SignedDataKind),
    /// The transaction has another `appAccountToken` than the expected one, or none.
    #[error("the transaction has another app account token, or none")]
    AppUserMismatch {
        /// Whether it names another user. False: it names none.
        is_of_another: bool,
    },
    /// The tenant has no Apple credentials.
    #[error("the tenant has no Apple credentials")]
    NoCredentials,
    /// Production was requested, for which the tenant needs an app Apple id.
    #[error("the tenant has no app Apple id, which production needs")]
    NoAppAppleId,
    /// The tenant's credentials cannot be loaded.
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    /// Apple's API answered neither yes nor no.
    #[error("{0}")]
    Api(#[from] AppleApiError),
    /// The signature of the transaction in Apple's response is not accepted, or not now.
    #[error("what Apple's server sent is not to be believed: {0}")]
    UntrustedResponse(SignatureError),
    /// Apple's response holds another transaction than the requested one.
    #[error("what Apple's server sent is not to be believed: it is about another transaction")]
    ResponseMismatch,
}

impl From<AppleNotFound> for AppleVerifyError {
    fn from(reason: AppleNotFound) -> Self {
        Self::NotFound {
            reason,
            may_be_early: false,
        }
    }
}

impl From<AppleVerifyError> for Problem {
    fn from(error: AppleVerifyError) -> Self {
        match error {
            AppleVerifyError::NotFound {
                reason,
                may_be_early,
            } => {
                let (reason, message) = match reason {
                    AppleNotFound::Unknown => {
                        (
                            "unknown",
                            "Apple knows no transaction with this id. A purchase of the last minutes may not be there yet: ask again before you refuse it. A wrong bundle id in this tenant's credentials has the same answer.",
                        )
                    }
                    AppleNotFound::MalformedId => (
                        "malformed",
                        "This is not a transaction id: Apple does not recognise its form.",
                    ),
                    AppleNotFound::AppTransactionId => (
                        "app_transaction_id",
                        "This is the id of an app transaction. Send the id of the purchase's own transaction.",
                    ),
                };
                Self::rejection("TRANSACTION_NOT_FOUND", message)
                    .with_detail("reason", reason)
                    .with_detail("mayBeEarly", may_be_early)
            }
            AppleVerifyError::InvalidSignature(SignatureError::OcspUnavailable { retry_after })
            | AppleVerifyError::UntrustedResponse(SignatureError::OcspUnavailable {
                retry_after,
            }) => apple_problem(OCSP_UNAVAILABLE_MESSAGE.to_owned(), Value::Null, None)
                .with_retry_after(retry_after),
            AppleVerifyError::InvalidSignature(reason) => Self::rejection(
                "SIGNATURE_INVALID",
                format!("This is not a transaction that Apple signed: {reason}."),
            )
            .with_detail("class", reason.class()),
            AppleVerifyError::NotATransaction(kind) => Self::rejection(
                "NOT_A_TRANSACTION",
                format!("Apple signed this, and it is {kind}, not a transaction. Send the transaction's own JWS: StoreKit's `VerificationResult<Transaction>.jwsRepresentation`."),
            )
            .with_detail("found", json!(kind)),
            AppleVerifyError::BundleIdMismatch { expected, found } => {
                let message = match &found {
                    Some(found) => format!("This transaction is of the app {found}, not of this tenant's app, {expected}."),
                    None => format!("This transaction names no app, so that it cannot be said to be of this tenant's app, {expected}."),
                };
                Self::rejection("BUNDLE_ID_MISMATCH", message)
                    .with_detail("expected", expected)
                    .with_detail("found", json!(found))
            }
            AppleVerifyError::EnvironmentMismatch { expected, found } => Self::rejection(
                "ENVIRONMENT_MISMATCH",
                "This transaction is of another environment than the one asked about.",
            )
            .with_detail("expected", json!(expected.map(AppleEnvironment::as_str)))
            .with_detail(
                "found",
                json!(found.map(|found| found.to_ascii_lowercase())),
            ),
            AppleVerifyError::AppUserMismatch { is_of_another: true } => Self::rejection(
                "APP_USER_MISMATCH",
                "The app gave this purchase to another user than the expected one: its appAccountToken is a different one.",
            )
            .with_detail("reason", "another"),
            AppleVerifyError::AppUserMismatch { is_of_another: false } => Self::rejection(
                "APP_USER_MISMATCH",
                "This purchase names no user of the app: it has no appAccountToken, or an empty one. A family member's purchase and one made with an offer code have none. The app may bind it to its signed-in user.",
            )
            .with_detail("reason", "none"),
            AppleVerifyError::NoCredentials => {
                Self::new(ErrorCode::CredentialsMissing, NO_CREDENTIALS_MESSAGE)
            }
            AppleVerifyError::NoAppAppleId => {
                Self::new(ErrorCode::CredentialsMissing, NO_APP_APPLE_ID_MESSAGE)
            }
            AppleVerifyError::Credentials(error) => (&*error).into(),
            AppleVerifyError::Api(error) => api_error_problem(error),
            untrusted @ (AppleVerifyError::UntrustedResponse(_)
            | AppleVerifyError::ResponseMismatch) => apple_problem(
                "Apple's server sent a transaction that cannot be believed. Ask again later."
                    .to_owned(),
                json!(200),
                None,
            )
            .with_cause(untrusted),
        }
    }
}

/// Why a notification is not stored.
#[derive(Debug, thiserror::Error)]
pub enum AppleNotificationError {
    /// There is no tenant with this id, or it is inactive.
    #[error("there is no active tenant of this id")]
    TenantInactive,
    /// It is not taken in, whatever it is.
    #[error(transparent)]
    NotAdmitted(#[from] AdmissionError),
    /// The tenant has no Apple credentials.
    #[error("the tenant has no Apple credentials")]
    NoCredentials,
    /// It is of production, for which the tenant needs an app Apple id.
    #[error("the tenant has no app Apple id, which production needs")]
    NoAppAppleId,
    /// The tenant's credentials cannot be loaded.
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    /// It is not accepted, or not now.
    #[error("{0}")]
    Rejected(#[from] NotificationRejection),
    /// Apple signed it, and Postgres does not store it.
    #[error("its signed payload cannot be stored: {0}")]
    NotStorable(#[from] JsonTextError),
    /// It has no `notificationUUID`, or one that is too long.
    #[error("the notification has no id")]
    NoNotificationUuid,
    /// The database did not store it.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(Arc<db::Error>),
}

/// Why a notification is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotificationRejection {
    /// Its signature is not accepted, or not now.
    #[error("{0}")]
    InvalidSignature(SignatureError),
    /// Apple signed it, but no block of it names an app.
    #[error("it is no notification: it says nowhere which app it is about")]
    NotANotification,
    /// Its bundle id is not the tenant's.
    #[error("it is about another app")]
    BundleIdMismatch,
    /// Its app Apple id is not the tenant's.
    #[error("its app has another Apple id, or none")]
    AppAppleIdMismatch,
    /// Its environment is not one of the tenant's, or missing.
    #[error("it is of another environment than the tenant is set up for")]
    EnvironmentMismatch,
    /// The signature of a part is not accepted, or not now.
    #[error("its {0} does not convince: {1}")]
    InvalidPartSignature(NotificationPart, SignatureError),
    /// A part has not the type that its field's name says.
    #[error("its {0} is something else of Apple's")]
    WrongPartType(NotificationPart),
    /// A part is of another app or environment than the notification.
    #[error("its {0} is of another app or another environment than the rest")]
    PartMismatch(NotificationPart),
}

impl NotificationRejection {
    /// The word in `details.class` of the answer.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::InvalidSignature(reason) | Self::InvalidPartSignature(_, reason) => {
                reason.class()
            }
            Self::NotANotification => "not_a_notification",
            Self::BundleIdMismatch => "other_app",
            Self::AppAppleIdMismatch => "other_app_apple_id",
            Self::EnvironmentMismatch => "other_environment",
            Self::WrongPartType(_) => "other_part",
            Self::PartMismatch(_) => "misplaced_part",
        }
    }
}

impl AppleNotificationError {
    /// Whether the same notification is refused each time it comes, as long as the tenant's settings are the same.
    pub(super) fn is_final_refusal(&self) -> bool {
        match self {
            Self::Rejected(
                NotificationRejection::InvalidSignature(SignatureError::OcspUnavailable { .. })
                | NotificationRejection::InvalidPartSignature(
                    _,
                    SignatureError::OcspUnavailable { .. },
                ),
            )
            | Self::TenantInactive
            | Self::NotAdmitted(_)
            | Self::NoCredentials
            | Self::Credentials(_) => false,
            // The database is there, and does not take this notification.
            Self::Database(error) => !db::is_unavailable(error),
            Self::Rejected(_)
            | Self::NoAppAppleId
            | Self::NotStorable(_)
            | Self::NoNotificationUuid => true,
        }
    }
}

impl From<RecordError> for AppleNotificationError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::InactiveTenant => Self::TenantInactive,
            RecordError::Database(error) => Self::Database(error),
        }
    }
}

impl From<AppleNotificationError> for Problem {
    fn from(error: AppleNotificationError) -> Self {
        match error {
            AppleNotificationError::TenantInactive => Self::tenant_not_found(),
            AppleNotificationError::NotAdmitted(error) => error.into(),
            AppleNotificationError::NoCredentials => {
                Self::new(ErrorCode::CredentialsMissing, NO_CREDENTIALS_MESSAGE)
            }
            AppleNotificationError::NoAppAppleId => {
                Self::new(ErrorCode::CredentialsMissing, NO_APP_APPLE_ID_MESSAGE)
            }
            AppleNotificationError::Credentials(error) => (&*error).into(),
            AppleNotificationError::Rejected(
                NotificationRejection::InvalidSignature(SignatureError::OcspUnavailable {
                    retry_after,
                })
                | NotificationRejection::InvalidPartSignature(
                    _,
                    SignatureError::OcspUnavailable { retry_after },
                ),
            ) => Self::new(ErrorCode::Unavailable, OCSP_UNAVAILABLE_MESSAGE)
                .with_retry_after(retry_after),
            AppleNotificationError::Rejected(reason) => Self::new(
                ErrorCode::SignatureInvalid,
                format!("This notification does not convince: {reason}."),
            )
            .with_detail("class", reason.class())
            .with_cause(reason)
            // The text holds nothing of the notification, so that production may log it.
            .with_cause_class(reason.to_string()),
            AppleNotificationError::NotStorable(error) => Self::invalid_request(&[Issue::new(
                "signedPayload",
                format!("cannot be stored: {error}"),
            )]),
            AppleNotificationError::NoNotificationUuid => Self::invalid_request(&[Issue::new(
                "notificationUUID",
                "must be in the signed payload, with 1 to 256 characters",
            )]),
            AppleNotificationError::Database(error) => (&*error).into(),
        }
    }
}

fn apple_problem(message: String, status: Value, code: Option<i64>) -> Problem {
    Problem::new(ErrorCode::AppleApiError, message)
        .with_detail("status", status)
        .with_detail("appleErrorCode", json!(code))
}

fn api_error_problem(failure: AppleApiError) -> Problem {
    let problem = match &failure {
        AppleApiError::Unauthorized { status } => apple_problem(
            "Apple refuses this tenant's key. Check the key id, the issuer id and the bundle id, and that it is a key for In-App Purchase that was not revoked.".to_owned(),
            json!(status),
            None,
        ),
        AppleApiError::RateLimited { retry_after } => Problem::new(
            ErrorCode::RateLimited,
            "Apple's limit for this tenant's app is used up. Wait as long as Retry-After says.",
        )
        .with_detail("status", 429)
        .with_retry_after(*retry_after),
        AppleApiError::Unexpected { status, code, retry_after, .. } => {
            let code_text = code.map_or_else(String::new, |code| format!(" and error {code}"));
            let advice = match code {
                Some(4_000_000..=4_039_999 | 4_040_001 | 4_040_003) => {
                    "Asking again will not help: check that this tenant's bundle id and key belong to the same app."
                }
                _ => "Ask again later.",
            };
            let problem = apple_problem(
                format!("Apple answered with status {status}{code_text}, which says neither yes nor no. {advice}"),
                json!(status),
                *code,
            );
            match retry_after {
                Some(wait) => problem.with_retry_after(*wait),
                None => problem,
            }
        }
        AppleApiError::Unreadable(_) => apple_problem("Apple's answer cannot be read.".to_owned(), json!(200), None),
        AppleApiError::NoResponse(_) => apple_problem(
            "Apple could not be reached, or did not answer in time. Ask again later.".to_owned(),
            Value::Null,
            None,
        ),
        AppleApiError::TooManyInFlight => Problem::new(
            ErrorCode::RateLimited,
            "Too many questions of this tenant are waiting for Apple. Ask again shortly.",
        )
        .with_retry_after(Duration::from_secs(1)),
    };
    let class = api_error_class(&failure);
    problem.with_cause(failure).with_cause_class(class)
}

/// What the log says in production: the kind and Apple's own numbers for it, nothing of a purchase.
fn api_error_class(failure: &AppleApiError) -> String {
    match failure {
        AppleApiError::Unauthorized { status } => format!("apple credentials {status}"),
        AppleApiError::RateLimited { .. } => "apple rate limit".to_owned(),
        AppleApiError::Unexpected { status, code, .. } => {
            format!(
                "apple unexpected {status} {}",
                code.map_or_else(|| "no code".to_owned(), |code| code.to_string())
            )
        }
        AppleApiError::Unreadable(_) => "apple unreadable".to_owned(),
        AppleApiError::NoResponse(UpstreamError::Proxy(_)) => "apple egress proxy".to_owned(),
        AppleApiError::NoResponse(_) => "apple no answer".to_owned(),
        AppleApiError::TooManyInFlight => "apple crowded".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_api_error_has_its_code_and_details() {
        let answer = |failure| {
            let problem = api_error_problem(failure);
            (problem.code, json!(problem.details))
        };
        assert_eq!(
            answer(AppleApiError::Unauthorized { status: 401 }),
            (
                ErrorCode::AppleApiError,
                json!({"status": 401, "appleErrorCode": null})
            )
        );
        assert_eq!(
            answer(AppleApiError::RateLimited {
                retry_after: Duration::from_millis(1500)
            }),
            (
                ErrorCode::RateLimited,
                json!({"status": 429, "retryAfterSeconds": 2})
            )
        );
        assert_eq!(
            answer(AppleApiError::Unexpected {
                status: 404,
                code: Some(4_040_004),
                message: None,
                retry_after: Some(Duration::from_secs(3))
            }),
            (
                ErrorCode::AppleApiError,
                json!({"status": 404, "appleErrorCode": 4_040_004, "retryAfterSeconds": 3})
            )
        );
        let advice = |code| {
            let (status, message, retry_after) = (400, None, None);
            api_error_problem(AppleApiError::Unexpected {
                status,
                code,
                message,
                retry_after,
            })
            .message
        };
        assert!(advice(Some(4_000_002)).contains("bundle id"));
        assert!(advice(Some(4_040_004)).ends_with("Ask again later."));
        assert!(advice(None).ends_with("Ask again later."));
        assert_eq!(
            answer(AppleApiError::NoResponse(UpstreamError::Timeout(
                Duration::from_secs(10)
            ))),
            (
                ErrorCode::AppleApiError,
                json!({"status": null, "appleErrorCode": null})
            )
        );
        assert_eq!(
            answer(AppleApiError::TooManyInFlight),
            (ErrorCode::RateLimited, json!({"retryAfterSeconds": 1}))
        );
    }
}
