//! What each outcome is in HTTP: a refusal, which is an answer, or a problem, which is none.

use std::time::Duration;

use serde_json::{Value, json};

use super::api::GoogleApiError;
use super::notifications::{GoogleNotificationError, PushAuthError};
use super::verify::{GoogleRejection, GoogleVerifyError, NotFoundReason};
use crate::http::problem::Issue;
use crate::http::{ErrorCode, Problem};

/// When a push may come again that could not be judged for want of Google's keys, which are asked for once a minute.
const KEYS_RETRY_AFTER: Duration = Duration::from_mins(1);

impl From<PushAuthError> for Problem {
    fn from(refused: PushAuthError) -> Self {
        match refused {
            // One text whatever the reason, which is in the log.
            PushAuthError::InvalidToken(why) => Self::new(
                ErrorCode::Unauthenticated,
                "This push's token does not convince. It must be signed by Google for the account and the audience that the tenant is set up with.",
            )
            .with_cause(why)
            // It holds nothing of the token.
            .with_cause_class(why.to_string()),
            PushAuthError::KeysUnavailable => Self::new(
                ErrorCode::Unavailable,
                "Google's signing keys cannot be reached right now. Try again shortly.",
            )
            .with_retry_after(KEYS_RETRY_AFTER)
            .with_cause(refused),
            PushAuthError::TenantInactive => Self::tenant_not_found(),
            PushAuthError::Credentials(error) => (&*error).into(),
            PushAuthError::Database(error) => (&*error).into(),
        }
    }
}

impl From<GoogleNotificationError> for Problem {
    fn from(outcome: GoogleNotificationError) -> Self {
        match outcome {
            GoogleNotificationError::PackageNameMismatch { expected } => {
                Self::invalid_request(&[Issue::new(
                    "message.data",
                    format!("is about another app; packageName must be {expected}"),
                )])
            }
            GoogleNotificationError::TenantInactive => Self::tenant_not_found(),
            GoogleNotificationError::Database(error) => error.into(),
        }
    }
}

impl From<GoogleVerifyError> for Problem {
    fn from(outcome: GoogleVerifyError) -> Self {
        match outcome {
            GoogleVerifyError::Rejected(no) => rejection_response(no),
            GoogleVerifyError::NoCredentials => no_credentials_problem(),
            GoogleVerifyError::Credentials(error) => (&*error).into(),
            GoogleVerifyError::Api(failure) => api_error_problem(failure),
        }
    }
}

pub(super) fn no_credentials_problem() -> Problem {
    Problem::new(
        ErrorCode::CredentialsMissing,
        "This tenant has no Google credentials. An operator sets them with `attesto google set-credentials`.",
    )
}

pub(super) fn rejection_response(no: GoogleRejection) -> Problem {
    match no {
        GoogleRejection::NotFound(missing) => {
            let reason = match missing {
                NotFoundReason::Unknown => "unknown",
                NotFoundReason::Gone => "gone",
                NotFoundReason::OtherType => "other_type",
            };
            Problem::rejection("PURCHASE_NOT_FOUND", missing.to_string())
                .with_detail("reason", reason)
        }
        GoogleRejection::PackageNameMismatch { expected } => Problem::rejection(
            "PACKAGE_NAME_MISMATCH",
            format!("This purchase is not of this tenant's app, {expected}."),
        )
        .with_detail("expected", expected),
        GoogleRejection::ProductIdMismatch { found } => Problem::rejection(
            "PRODUCT_ID_MISMATCH",
            "This purchase is of another product than the one asked about.",
        )
        .with_detail("found", found),
        GoogleRejection::AppUserMismatch => Problem::rejection(
            "APP_USER_MISMATCH",
            "The app did not give this purchase to the expected user: its obfuscated account id is another one, or there is none.",
        ),
    }
}

pub(super) fn api_error_problem(failure: GoogleApiError) -> Problem {
    let google = |message: String, status: Value, reason: Option<&str>| {
        Problem::new(ErrorCode::GoogleApiError, message)
            .with_detail("status", status)
            .with_detail("googleErrorCode", json!(reason))
    };
    let problem = match &failure {
        GoogleApiError::Unauthorized { status, reason, .. } => google(
            format!(
                "Google refuses this tenant's service account ({}). Its key may have been deleted; or it lacks the Play Console permissions to view financial data and to manage orders and subscriptions, which take up to a day to work.",
                reason.as_deref().unwrap_or("no reason given")
            ),
            json!(status),
            reason.as_deref(),
        ),
        GoogleApiError::UnknownApp { reason } => google(
            "Google Play knows no app of this tenant's package name. Check the name, and that the Play Console gives the service account access to the app.".to_owned(),
            json!(404),
            Some(reason),
        ),
        GoogleApiError::RateLimited {
            status,
            retry_after,
        } => Problem::new(
            ErrorCode::RateLimited,
            "Google's quota for this tenant's project is used up. Wait as long as Retry-After says.",
        )
        .with_detail("status", *status)
        .with_retry_after(*retry_after),
        GoogleApiError::Unexpected {
            status,
            reason,
            retry_after,
            ..
        } => {
            let problem = google(
                format!(
                    "Google answered with status {status}, which says neither yes nor no. Ask again later."
                ),
                json!(status),
                reason.as_deref(),
            );
            match retry_after {
                Some(wait) => problem.with_retry_after(*wait),
                None => problem,
            }
        }
        GoogleApiError::Unreadable(_) => google(
            "Google's answer cannot be read.".to_owned(),
            json!(200),
            None,
        ),
        GoogleApiError::NoResponse(_) => google(
            "Google could not be reached, or did not answer in time. Ask again later.".to_owned(),
            Value::Null,
            None,
        ),
        GoogleApiError::TooManyInFlight => Problem::new(
            ErrorCode::RateLimited,
            "Too many questions of this tenant are waiting for Google. Ask again shortly.",
        )
        .with_retry_after(std::time::Duration::from_secs(1)),
    };
    let class = failure.api_error_class();
    problem.with_cause(failure).with_cause_class(class)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::outbound::UpstreamError;
    use crate::stores::shared::credentials::LoadCredentialsError;

    #[test]
    fn every_no_has_its_word() {
        for (no, code, details, part) in [
            (
                GoogleRejection::NotFound(NotFoundReason::Unknown),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "unknown" }),
                "Google knows no purchase with this token.",
            ),
            (
                GoogleRejection::NotFound(NotFoundReason::Gone),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "gone" }),
                "This purchase is gone:",
            ),
            (
                GoogleRejection::NotFound(NotFoundReason::OtherType),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "other_type" }),
                "is it of the other type?",
            ),
            (
                GoogleRejection::PackageNameMismatch {
                    expected: "com.example.app".to_owned(),
                },
                "PACKAGE_NAME_MISMATCH",
                json!({ "expected": "com.example.app" }),
                "com.example.app",
            ),
            (
                GoogleRejection::ProductIdMismatch {
                    found: vec!["a".to_owned()],
                },
                "PRODUCT_ID_MISMATCH",
                json!({ "found": ["a"] }),
                "another product",
            ),
            (
                GoogleRejection::AppUserMismatch,
                "APP_USER_MISMATCH",
                json!({}),
                "expected user",
            ),
        ] {
            let problem = Problem::from(GoogleVerifyError::Rejected(no));
            assert_eq!(problem.code, ErrorCode::Rejected(code));
            assert_eq!(Value::Object(problem.details), details);
            assert!(problem.message.contains(part), "{}", problem.message);
        }
    }

    #[test]
    fn every_failure_has_its_status_and_no_secret() {
        let secret = "hunter2".to_owned();
        let text = |text: &str| Some(text.to_owned());
        let wait = Duration::from_millis(6500);
        let sealed = LoadCredentialsError::Database(crate::db::Error::Protocol(secret.clone()));
        let away = LoadCredentialsError::Database(crate::db::Error::PoolTimedOut);
        let google =
            |status: Value, code: Value| json!({ "status": status, "googleErrorCode": code });
        for (outcome, code, details) in [
            (
                GoogleVerifyError::NoCredentials,
                ErrorCode::CredentialsMissing,
                json!({}),
            ),
            (
                GoogleVerifyError::Credentials(Arc::new(sealed)),
                ErrorCode::InternalError,
                json!({}),
            ),
            (
                GoogleVerifyError::Credentials(Arc::new(away)),
                ErrorCode::Unavailable,
                json!({ "retryAfterSeconds": 2 }),
            ),
            (
                GoogleApiError::Unauthorized {
                    status: 400,
                    reason: text("invalid_grant"),
                    message: Some(secret.clone()),
                }
                .into(),
                ErrorCode::GoogleApiError,
                google(json!(400), json!("invalid_grant")),
            ),
            (
                GoogleApiError::Unauthorized {
                    status: 401,
                    reason: None,
                    message: None,
                }
                .into(),
                ErrorCode::GoogleApiError,
                google(json!(401), Value::Null),
            ),
            (
                GoogleApiError::UnknownApp {
                    reason: "applicationNotFound".to_owned(),
                }
                .into(),
                ErrorCode::GoogleApiError,
                google(json!(404), json!("applicationNotFound")),
            ),
            (
                GoogleApiError::RateLimited {
                    status: 429,
                    retry_after: wait,
                }
                .into(),
                ErrorCode::RateLimited,
                json!({ "status": 429, "retryAfterSeconds": 7 }),
            ),
            (
                GoogleApiError::Unexpected {
                    status: 503,
                    reason: text("backendError"),
                    message: Some(secret.clone()),
                    retry_after: Some(wait),
                }
                .into(),
                ErrorCode::GoogleApiError,
                json!({ "status": 503, "googleErrorCode": "backendError", "retryAfterSeconds": 7 }),
            ),
            (
                GoogleApiError::Unreadable(secret.clone()).into(),
                ErrorCode::GoogleApiError,
                google(json!(200), Value::Null),
            ),
            (
                GoogleApiError::NoResponse(UpstreamError::Connection(secret.clone())).into(),
                ErrorCode::GoogleApiError,
                google(Value::Null, Value::Null),
            ),
            (
                GoogleApiError::TooManyInFlight.into(),
                ErrorCode::RateLimited,
                json!({ "retryAfterSeconds": 1 }),
            ),
        ] {
            let problem = Problem::from(outcome);
            assert_eq!(problem.code, code);
            assert_eq!(Value::Object(problem.details), details);
            assert!(!problem.message.contains(&secret), "{}", problem.message);
        }
    }
}
