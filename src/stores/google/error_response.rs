//! Why a route does not answer with what was asked for, and beneath each error its answer in HTTP.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::api_error::{GoogleApiError, GoogleNotFound, PurchaseLookupError};
use super::translate::PurchaseStatus;
use super::trust::PushTokenError;
use crate::db;
use crate::events::RecordError;
use crate::http::problem::Issue;
use crate::http::{ErrorCode, Problem};
use crate::stores::shared::credentials::LoadCredentialsError;
use crate::stores::shared::notifications::AdmissionError;

/// When Pub/Sub should send a push again that needs a key of Google's: the keys are fetched once a minute.
const KEYS_RETRY_AFTER: Duration = Duration::from_mins(1);
/// When a caller should try again while too many calls of its tenant are running.
const TOO_MANY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why `POST /v1/google/verify` does not answer with a purchase.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum GoogleVerifyError {
    /// Google knows no such purchase, knows it no more, or knows it as another type.
    #[error("{reason}")]
    NotFound {
        reason: GoogleNotFound,
        /// The token was first seen a moment ago: Google may not know it yet.
        may_be_early: bool,
    },
    #[error("the purchase is of another app")]
    PackageNameMismatch {
        /// The tenant's package name.
        expected: String,
    },
    #[error("the purchase is of another product")]
    ProductIdMismatch {
        /// The products of the purchase, where Google says them.
        found: Vec<String>,
    },
    /// The purchase has another obfuscated account id than the expected one, or none.
    #[error("the purchase is of another user, or of none")]
    AppUserMismatch {
        /// Whether it names another user, and not none.
        is_anothers: bool,
    },
    #[error("the tenant has no Google credentials")]
    NoCredentials,
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    /// Google said neither yes nor no.
    #[error("{0}")]
    Api(#[from] GoogleApiError),
}

impl GoogleVerifyError {
    /// `package_name` is the tenant's.
    pub(super) fn from_lookup(error: PurchaseLookupError, package_name: &str) -> Self {
        match error {
            PurchaseLookupError::NotFound(reason) => Self::NotFound {
                reason,
                may_be_early: false,
            },
            PurchaseLookupError::OtherApp => Self::PackageNameMismatch {
                expected: package_name.to_owned(),
            },
            PurchaseLookupError::OtherProduct => Self::ProductIdMismatch { found: Vec::new() },
            PurchaseLookupError::Api(error) => Self::Api(error),
        }
    }
}

impl From<GoogleVerifyError> for Problem {
    fn from(error: GoogleVerifyError) -> Self {
        match error {
            GoogleVerifyError::NotFound {
                reason,
                may_be_early,
            } => Self::rejection("PURCHASE_NOT_FOUND", reason.to_string())
                .with_detail(
                    "reason",
                    match reason {
                        GoogleNotFound::Unknown | GoogleNotFound::Malformed => "unknown",
                        GoogleNotFound::Gone => "gone",
                        GoogleNotFound::OtherType => "other_type",
                    },
                )
                .with_detail("mayBeEarly", may_be_early),
            GoogleVerifyError::PackageNameMismatch { expected } => Self::rejection(
                "PACKAGE_NAME_MISMATCH",
                format!("This purchase is not of this tenant's app, {expected}."),
            )
            .with_detail("expected", expected),
            GoogleVerifyError::ProductIdMismatch { found } => Self::rejection(
                "PRODUCT_ID_MISMATCH",
                "This purchase is of another product than the one asked about.",
            )
            .with_detail("found", found),
            GoogleVerifyError::AppUserMismatch { is_anothers: true } => Self::rejection(
                "APP_USER_MISMATCH",
                "The app gave this purchase to another user than the expected one: its obfuscated account id is another.",
            )
            .with_detail("reason", "another"),
            GoogleVerifyError::AppUserMismatch { is_anothers: false } => Self::rejection(
                "APP_USER_MISMATCH",
                "The app gave this purchase to no user: it has no obfuscated account id. It may be bound to the expected user.",
            )
            .with_detail("reason", "none"),
            GoogleVerifyError::NoCredentials => Self::new(
                ErrorCode::CredentialsMissing,
                "This tenant has no Google credentials. An operator sets them with `attesto google set-credentials`.",
            ),
            GoogleVerifyError::Credentials(error) => (&*error).into(),
            GoogleVerifyError::Api(error) => api_problem(error),
        }
    }
}

/// Why `POST /v1/google/acknowledge` or `/v1/google/consume` does not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum GoogleActionError {
    /// It is not there, not this tenant's, or Google said neither yes nor no.
    #[error(transparent)]
    Verify(#[from] GoogleVerifyError),
    #[error("the purchase is not paid yet")]
    Pending,
    /// Cancelled, refunded or over, and never acknowledged or consumed.
    #[error("the purchase has ended")]
    Ended { status: PurchaseStatus },
    #[error("a subscription cannot be consumed")]
    NotConsumable,
}

impl From<GoogleActionError> for Problem {
    fn from(error: GoogleActionError) -> Self {
        match error {
            GoogleActionError::Verify(error) => error.into(),
            GoogleActionError::Pending => Self::rejection(
                "PURCHASE_PENDING",
                "This purchase is not paid yet. Acknowledge or consume it when it is: Google sends a notification then.",
            ),
            GoogleActionError::Ended { status } => Self::rejection(
                "PURCHASE_ENDED",
                "This purchase was cancelled, refunded, or has ended: Google takes no acknowledgement for it, and it is not consumed.",
            )
            .with_detail("status", json!(status)),
            GoogleActionError::NotConsumable => Self::rejection(
                "NOT_CONSUMABLE",
                "This purchase is a subscription, which cannot be consumed. Acknowledge it.",
            ),
        }
    }
}

fn api_problem(error: GoogleApiError) -> Problem {
    let google = |message: &str, status: Value, reason: Option<&str>| {
        Problem::new(ErrorCode::GoogleApiError, message)
            .with_detail("status", status)
            .with_detail("googleErrorCode", json!(reason))
    };
    let problem = match &error {
        GoogleApiError::Unauthorized { status, reason, .. } => google(
            &format!(
                "Google refuses this tenant's service account ({}). Its key may have been deleted; or it lacks the Play Console permissions to view financial data and to manage orders and subscriptions, which take up to a day to work.",
                reason.as_deref().unwrap_or("no reason given")
            ),
            json!(status),
            reason.as_deref(),
        ),
        GoogleApiError::UnknownApp { reason } => google(
            "Google Play knows no app of this tenant's package name. Check the name, and that the Play Console gives the service account access to the app.",
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
            let message = format!(
                "Google answered with status {status}, which says neither yes nor no. Ask again later."
            );
            let problem = google(&message, json!(status), reason.as_deref());
            match retry_after {
                Some(wait) => problem.with_retry_after(*wait),
                None => problem,
            }
        }
        GoogleApiError::Unreadable(_) => {
            google("Google's answer cannot be read.", json!(200), None)
        }
        GoogleApiError::NoResponse(_) => google(
            "Google could not be reached, or did not answer in time. Ask again later.",
            Value::Null,
            None,
        ),
        GoogleApiError::TooManyInFlight => Problem::new(
            ErrorCode::RateLimited,
            "Too many questions of this tenant are waiting for Google. Ask again shortly.",
        )
        .with_retry_after(TOO_MANY_RETRY_AFTER),
    };
    let class = error.class();
    problem.with_cause(error).with_cause_class(class)
}

/// Why `POST /v1/webhooks/google/{tenantId}` does not store a notification.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum GoogleNotificationError {
    /// The push is not authenticated.
    #[error("{0}")]
    InvalidToken(#[from] PushTokenError),
    #[error("{0}")]
    Credentials(Arc<LoadCredentialsError>),
    #[error("the tenant is not active")]
    TenantInactive,
    #[error("the message is about another app")]
    PackageNameMismatch {
        /// The tenant's package name.
        expected: String,
    },
    /// It is not taken in, whatever it is.
    #[error(transparent)]
    NotAdmitted(#[from] AdmissionError),
    #[error("{}", crate::db::describe_cause(.0))]
    Database(Arc<db::Error>),
}

impl From<RecordError> for GoogleNotificationError {
    fn from(error: RecordError) -> Self {
        match error {
            RecordError::InactiveTenant => Self::TenantInactive,
            RecordError::Database(error) => Self::Database(error),
        }
    }
}

impl From<GoogleNotificationError> for Problem {
    fn from(error: GoogleNotificationError) -> Self {
        match error {
            GoogleNotificationError::InvalidToken(error @ PushTokenError::KeysUnavailable) => {
                Self::new(
                    ErrorCode::Unavailable,
                    "Google's signing keys cannot be reached right now. Try again shortly.",
                )
                .with_retry_after(KEYS_RETRY_AFTER)
                .with_cause(error)
            }
            // One text for all reasons: a stranger must not learn which tenants there are. The log has the reason.
            GoogleNotificationError::InvalidToken(error) => Self::new(
                ErrorCode::Unauthenticated,
                "This push's token does not convince. It must be signed by Google for the account and the audience that the tenant is set up with.",
            )
            .with_cause(error)
            .with_cause_class(error.to_string()),
            GoogleNotificationError::Credentials(error) => (&*error).into(),
            GoogleNotificationError::TenantInactive => Self::tenant_not_found(),
            GoogleNotificationError::PackageNameMismatch { expected } => {
                Self::invalid_request(&[Issue::new(
                    "message.data",
                    format!("is about another app; packageName must be {expected}"),
                )])
            }
            GoogleNotificationError::NotAdmitted(error) => error.into(),
            GoogleNotificationError::Database(error) => (&*error).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::UpstreamError;

    #[test]
    fn every_rejection_has_its_code() {
        use GoogleVerifyError::*;
        let expected = "com.example.app".to_owned();
        let found = vec!["a".to_owned()];
        for (error, code, details, text) in [
            (
                NotFound {
                    reason: GoogleNotFound::Unknown,
                    may_be_early: true,
                },
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "unknown", "mayBeEarly": true }),
                "Google knows no purchase with this token.",
            ),
            (
                NotFound {
                    reason: GoogleNotFound::Gone,
                    may_be_early: false,
                },
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "gone", "mayBeEarly": false }),
                "This purchase is gone:",
            ),
            (
                NotFound {
                    reason: GoogleNotFound::OtherType,
                    may_be_early: false,
                },
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "other_type", "mayBeEarly": false }),
                "is it of the other type?",
            ),
            (
                PackageNameMismatch { expected },
                "PACKAGE_NAME_MISMATCH",
                json!({ "expected": "com.example.app" }),
                "com.example.app",
            ),
            (
                ProductIdMismatch { found },
                "PRODUCT_ID_MISMATCH",
                json!({ "found": ["a"] }),
                "another product",
            ),
            (
                AppUserMismatch { is_anothers: true },
                "APP_USER_MISMATCH",
                json!({ "reason": "another" }),
                "another user",
            ),
            (
                AppUserMismatch { is_anothers: false },
                "APP_USER_MISMATCH",
                json!({ "reason": "none" }),
                "no user",
            ),
        ] {
            let problem = Problem::from(error);
            assert_eq!(problem.code, ErrorCode::Rejected(code));
            assert_eq!(Value::Object(problem.details), details);
            assert!(problem.message.contains(text), "{}", problem.message);
        }
    }

    #[test]
    fn every_answer_of_google_about_a_purchase_is_a_rejection() {
        use GoogleVerifyError::*;
        let app = "com.example.app";
        let error = |error: PurchaseLookupError| GoogleVerifyError::from_lookup(error, app);
        for reason in [
            GoogleNotFound::Unknown,
            GoogleNotFound::Malformed,
            GoogleNotFound::Gone,
            GoogleNotFound::OtherType,
        ] {
            assert!(
                matches!(error(reason.into()), NotFound { reason: found, .. } if found == reason)
            );
        }
        let other_app = error(PurchaseLookupError::OtherApp);
        assert!(matches!(other_app, PackageNameMismatch { expected } if expected == app));
        let other_product = error(PurchaseLookupError::OtherProduct);
        assert!(matches!(other_product, ProductIdMismatch { found } if found.is_empty()));
        let too_many = error(GoogleApiError::TooManyInFlight.into());
        assert!(matches!(too_many, Api(GoogleApiError::TooManyInFlight)));
    }

    #[test]
    fn every_failure_has_its_status_and_no_secret() {
        use GoogleApiError::*;
        let secret = "hunter2".to_owned();
        let text = |text: &str| Some(text.to_owned());
        let retry_after = Duration::from_millis(6500);
        let credentials = |error| GoogleVerifyError::Credentials(Arc::new(error));
        let sealed = LoadCredentialsError::Database(crate::db::Error::Protocol(secret.clone()));
        let away = LoadCredentialsError::Database(crate::db::Error::PoolTimedOut);
        let unauthorized = |status, reason, message| Unauthorized {
            status,
            reason,
            message,
        };
        let unexpected = Unexpected {
            status: 503,
            reason: text("backendError"),
            message: Some(secret.clone()),
            retry_after: Some(retry_after),
        };
        let unknown_app = UnknownApp {
            reason: "applicationNotFound".to_owned(),
        };
        let quota = RateLimited {
            status: 429,
            retry_after,
        };
        let connection = UpstreamError::Connection(secret.clone());
        let google =
            |status: Value, code: Value| json!({ "status": status, "googleErrorCode": code });
        for (error, code, details) in [
            (
                GoogleVerifyError::NoCredentials,
                ErrorCode::CredentialsMissing,
                json!({}),
            ),
            (credentials(sealed), ErrorCode::InternalError, json!({})),
            (
                credentials(away),
                ErrorCode::Unavailable,
                json!({ "retryAfterSeconds": 2 }),
            ),
            (
                unauthorized(400, text("invalid_grant"), Some(secret.clone())).into(),
                ErrorCode::GoogleApiError,
                google(json!(400), json!("invalid_grant")),
            ),
            (
                unauthorized(401, None, None).into(),
                ErrorCode::GoogleApiError,
                google(json!(401), Value::Null),
            ),
            (
                unknown_app.into(),
                ErrorCode::GoogleApiError,
                google(json!(404), json!("applicationNotFound")),
            ),
            (
                quota.into(),
                ErrorCode::RateLimited,
                json!({ "status": 429, "retryAfterSeconds": 7 }),
            ),
            (
                unexpected.into(),
                ErrorCode::GoogleApiError,
                json!({ "status": 503, "googleErrorCode": "backendError", "retryAfterSeconds": 7 }),
            ),
            (
                Unreadable(secret.clone()).into(),
                ErrorCode::GoogleApiError,
                google(json!(200), Value::Null),
            ),
            (
                NoResponse(connection).into(),
                ErrorCode::GoogleApiError,
                google(Value::Null, Value::Null),
            ),
            (
                TooManyInFlight.into(),
                ErrorCode::RateLimited,
                json!({ "retryAfterSeconds": 1 }),
            ),
        ] {
            let problem = Problem::from(error);
            assert_eq!(problem.code, code);
            assert_eq!(Value::Object(problem.details), details);
            assert!(!problem.message.contains(&secret), "{}", problem.message);
        }
    }
}
