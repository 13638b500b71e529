//! What each outcome is in HTTP: a refusal, which is an answer, or a problem, which is none.

use std::time::Duration;

use serde_json::{Value, json};

use super::account::AppleEnvironment;
use super::api::{AppleApiError, AppleNotFound};
use super::notifications::{ActiveTenantError, AppleNotificationError};
use super::trust::SignatureError;
use super::verify::{AppleRejection, AppleVerifyError};
use crate::http::problem::Issue;
use crate::http::{ErrorCode, Problem};

/// With `APPLE_OCSP=on`, when a responder is away. The log says which, and why.
const OCSP_UNAVAILABLE_MESSAGE: &str = "Apple's responder does not say right now whether the certificates that this is signed with were revoked. Nothing is wrong with it so far: ask again when Retry-After says.";

impl From<ActiveTenantError> for Problem {
    fn from(refused: ActiveTenantError) -> Self {
        match refused {
            ActiveTenantError::NotFound => Self::tenant_not_found(),
            ActiveTenantError::Database(error) => (&*error).into(),
        }
    }
}

impl From<AppleNotificationError> for Problem {
    fn from(outcome: AppleNotificationError) -> Self {
        match outcome {
            AppleNotificationError::NoCredentials => no_credentials_problem(),
            AppleNotificationError::NoAppAppleId => no_app_apple_id_problem(),
            AppleNotificationError::Credentials(error) => (&*error).into(),
            AppleNotificationError::Rejected(why) => {
                let message = format!("This notification does not convince: {why}.");
                Self::new(ErrorCode::SignatureInvalid, message)
                    .with_detail("class", why.class())
                    .with_cause(why)
                    // It holds nothing of the notification.
                    .with_cause_class(why.to_string())
            }
            AppleNotificationError::OcspUnavailable { retry_after } => {
                Self::new(ErrorCode::Unavailable, OCSP_UNAVAILABLE_MESSAGE)
                    .with_retry_after(retry_after)
            }
            AppleNotificationError::NoNotificationUuid => Self::invalid_request(&[Issue::new(
                "notificationUUID",
                "must be in the signed payload, with 1 to 256 characters",
            )]),
            AppleNotificationError::TenantInactive => Self::tenant_not_found(),
            AppleNotificationError::Database(error) => error.into(),
        }
    }
}

pub(super) fn ocsp_unavailable_problem(retry_after: Duration) -> Problem {
    apple_problem(OCSP_UNAVAILABLE_MESSAGE.to_owned(), Value::Null, None)
        .with_retry_after(retry_after)
}

pub(super) fn no_credentials_problem() -> Problem {
    Problem::new(
        ErrorCode::CredentialsMissing,
        "This tenant has no Apple credentials. An operator sets them with `attesto apple set-credentials`.",
    )
}

pub(super) fn no_app_apple_id_problem() -> Problem {
    Problem::new(
        ErrorCode::CredentialsMissing,
        "This tenant has no app Apple id, without which nothing of production can be verified. An operator adds it with `attesto apple set-credentials --app-apple-id`.",
    )
}

impl From<AppleVerifyError> for Problem {
    fn from(outcome: AppleVerifyError) -> Self {
        match outcome {
            AppleVerifyError::Rejected(no) => rejection_response(no),
            AppleVerifyError::NoCredentials => no_credentials_problem(),
            AppleVerifyError::NoAppAppleId => no_app_apple_id_problem(),
            AppleVerifyError::Credentials(error) => (&*error).into(),
            AppleVerifyError::Api(failure) => api_error_problem(failure),
            AppleVerifyError::OcspUnavailable { retry_after } => {
                ocsp_unavailable_problem(retry_after)
            }
            AppleVerifyError::UntrustedResponse(what) => apple_problem(
                "Apple's server sent a transaction that cannot be believed. Ask again later."
                    .to_owned(),
                json!(200),
                None,
            )
            .with_cause(what),
        }
    }
}

pub(super) fn rejection_response(no: AppleRejection) -> Problem {
    match no {
        AppleRejection::NotFound(absent) => {
            let (reason, message) = match absent {
                AppleNotFound::Unknown => ("unknown", "Apple knows no transaction with this id."),
                AppleNotFound::MalformedId => (
                    "malformed",
                    "This is not a transaction id: Apple does not recognise its form.",
                ),
                AppleNotFound::AppTransactionId => (
                    "app_transaction_id",
                    "This is the id of an app transaction. Send the id of the purchase's own transaction.",
                ),
            };
            Problem::rejection("TRANSACTION_NOT_FOUND", message).with_detail("reason", reason)
        }
        AppleRejection::InvalidSignature(distrust) => invalid_signature_response(distrust),
        AppleRejection::BundleIdMismatch { expected } => Problem::rejection(
            "BUNDLE_ID_MISMATCH",
            format!("This transaction is not of this tenant's app, {expected}."),
        )
        .with_detail("expected", expected),
        AppleRejection::EnvironmentMismatch { expected, found } => Problem::rejection(
            "ENVIRONMENT_MISMATCH",
            "This transaction is of another environment than the one asked about.",
        )
        .with_detail("expected", json!(expected.map(AppleEnvironment::as_str)))
        .with_detail(
            "found",
            json!(found.map(|found| found.to_ascii_lowercase())),
        ),
        AppleRejection::AppUserMismatch => Problem::rejection(
            "APP_USER_MISMATCH",
            "The app did not give this purchase to the expected user: its appAccountToken is another one, or there is none.",
        ),
    }
}

fn invalid_signature_response(distrust: SignatureError) -> Problem {
    Problem::rejection(
        "SIGNATURE_INVALID",
        format!("This is not a transaction that Apple signed: {distrust}."),
    )
    .with_detail("class", distrust.class())
}

fn apple_problem(message: String, status: Value, code: Option<i64>) -> Problem {
    Problem::new(ErrorCode::AppleApiError, message)
        .with_detail("status", status)
        .with_detail("appleErrorCode", json!(code))
}

pub(super) fn api_error_problem(failure: AppleApiError) -> Problem {
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
            let said = code.map_or_else(String::new, |code| format!(" and error {code}"));
            let advice = match code {
                Some(4_000_000..=4_039_999 | 4_040_001 | 4_040_003) => {
                    "Asking again will not help: check that this tenant's bundle id and key belong to the same app."
                }
                _ => "Ask again later.",
            };
            let problem = apple_problem(
                format!("Apple answered with status {status}{said}, which says neither yes nor no. {advice}"),
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
        AppleApiError::NoResponse(_) => "apple no answer".to_owned(),
        AppleApiError::TooManyInFlight => "apple crowded".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::UpstreamError;

    #[test]
    fn every_failure_is_told_apart() {
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
