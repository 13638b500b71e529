//! What each outcome is in HTTP: a refusal, which is an answer, or a problem, which is none.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::api::Failure;
use super::notifications::{NotAccepted, Refused};
use super::store::FindError;
use super::verify::{Missing, No, NotVerified};
use crate::http::problem::{Declined, Issue};
use crate::http::{Code, Problem, Refusal};

/// When a push may come again that could not be judged for want of Google's keys, which are asked for once a minute.
const KEYS_AGAIN: Duration = Duration::from_mins(1);

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            // One text whatever the reason, which is in the log.
            Refused::Untrusted(why) => Self::new(
                Code::Unauthenticated,
                "This push's token does not convince. It must be signed by Google for the account and the audience that the tenant is set up with.",
            )
            .cause(why)
            // It holds nothing of the token.
            .class(why.to_string()),
            Refused::NoKeys => Self::new(
                Code::Unavailable,
                "Google's signing keys cannot be reached right now. Try again shortly.",
            )
            .retry_after(KEYS_AGAIN)
            .cause(refused),
            Refused::Inactive => Self::no_active_tenant(),
            Refused::Credentials(error) => credentials_problem(&error),
            Refused::Database(error) => (&*error).into(),
        }
    }
}

impl From<NotAccepted> for Problem {
    fn from(outcome: NotAccepted) -> Self {
        match outcome {
            NotAccepted::OtherApp { expected } => Self::invalid(&[Issue::at(
                "message.data",
                format!("is about another app; packageName must be {expected}"),
            )]),
            NotAccepted::Inactive => Self::no_active_tenant(),
            NotAccepted::Database(error) => error.into(),
        }
    }
}

fn credentials_problem(error: &Arc<FindError>) -> Problem {
    match &**error {
        FindError::Database(cause) => cause.into(),
        sealed => Problem::internal(sealed),
    }
}

impl From<NotVerified> for Declined {
    fn from(outcome: NotVerified) -> Self {
        Self::Failed(Box::new(match outcome {
            NotVerified::No(no) => return Self::No(Box::new(refusal(no))),
            NotVerified::NoCredentials => no_credentials(),
            NotVerified::Credentials(error) => credentials_problem(&error),
            NotVerified::Google(failure) => problem(failure),
        }))
    }
}

pub(super) fn no_credentials() -> Problem {
    Problem::new(
        Code::CredentialsMissing,
        "This tenant has no Google credentials. An operator sets them with `attesto google set-credentials`.",
    )
}

pub(super) fn refusal(no: No) -> Refusal {
    match no {
        No::NotFound(missing) => {
            let reason = match missing {
                Missing::Unknown => "unknown",
                Missing::Gone => "gone",
                Missing::OtherType => "other_type",
            };
            Refusal::new("PURCHASE_NOT_FOUND", missing.to_string()).detail("reason", reason)
        }
        No::OtherApp { expected } => Refusal::new(
            "PACKAGE_NAME_MISMATCH",
            format!("This purchase is not of this tenant's app, {expected}."),
        )
        .detail("expected", expected),
        No::OtherProduct { found } => Refusal::new(
            "PRODUCT_ID_MISMATCH",
            "This purchase is of another product than the one asked about.",
        )
        .detail("found", found),
        No::OtherUser => Refusal::new(
            "APP_USER_MISMATCH",
            "The app did not give this purchase to the expected user: its obfuscated account id is another one, or there is none.",
        ),
    }
}

pub(super) fn problem(failure: Failure) -> Problem {
    let google = |message: String, status: Value, reason: Option<&str>| {
        Problem::new(Code::GoogleApiError, message)
            .detail("status", status)
            .detail("googleErrorCode", json!(reason))
    };
    let problem = match &failure {
        Failure::Credentials { status, reason, .. } => google(
            format!(
                "Google refuses this tenant's service account ({}). Its key may have been deleted; or it lacks the Play Console permissions to view financial data and to manage orders and subscriptions, which take up to a day to work.",
                reason.as_deref().unwrap_or("no reason given")
            ),
            json!(status),
            reason.as_deref(),
        ),
        Failure::Application { reason } => google(
            "Google Play knows no app of this tenant's package name. Check the name, and that the Play Console gives the service account access to the app.".to_owned(),
            json!(404),
            Some(reason),
        ),
        Failure::Quota {
            status,
            retry_after,
        } => Problem::new(
            Code::RateLimited,
            "Google's quota for this tenant's project is used up. Wait as long as Retry-After says.",
        )
        .detail("status", *status)
        .retry_after(*retry_after),
        Failure::Unexpected {
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
                Some(wait) => problem.retry_after(*wait),
                None => problem,
            }
        }
        Failure::Unreadable(_) => google(
            "Google's answer cannot be read.".to_owned(),
            json!(200),
            None,
        ),
        Failure::NoAnswer(_) => google(
            "Google could not be reached, or did not answer in time. Ask again later.".to_owned(),
            Value::Null,
            None,
        ),
        Failure::Crowded => Problem::new(
            Code::RateLimited,
            "Too many questions of this tenant are waiting for Google. Ask again shortly.",
        )
        .retry_after(std::time::Duration::from_secs(1)),
    };
    let class = failure.class();
    problem.cause(failure).class(class)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::SendError;

    #[test]
    fn every_no_has_its_word() {
        for (no, code, details, part) in [
            (
                No::NotFound(Missing::Unknown),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "unknown" }),
                "Google knows no purchase with this token.",
            ),
            (
                No::NotFound(Missing::Gone),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "gone" }),
                "This purchase is gone:",
            ),
            (
                No::NotFound(Missing::OtherType),
                "PURCHASE_NOT_FOUND",
                json!({ "reason": "other_type" }),
                "is it of the other type?",
            ),
            (
                No::OtherApp {
                    expected: "com.example.app".to_owned(),
                },
                "PACKAGE_NAME_MISMATCH",
                json!({ "expected": "com.example.app" }),
                "com.example.app",
            ),
            (
                No::OtherProduct {
                    found: vec!["a".to_owned()],
                },
                "PRODUCT_ID_MISMATCH",
                json!({ "found": ["a"] }),
                "another product",
            ),
            (
                No::OtherUser,
                "APP_USER_MISMATCH",
                json!({}),
                "expected user",
            ),
        ] {
            let Declined::No(refusal) = Declined::from(NotVerified::No(no)) else {
                panic!("{code} is an answer");
            };
            assert_eq!(refusal.code, code);
            assert_eq!(Value::Object(refusal.details), details);
            assert!(refusal.message.contains(part), "{}", refusal.message);
        }
    }

    #[test]
    fn every_failure_has_its_status_and_no_secret() {
        let secret = "hunter2".to_owned();
        let text = |text: &str| Some(text.to_owned());
        let wait = Duration::from_millis(6500);
        let sealed = FindError::Database(crate::db::Error::Protocol(secret.clone()));
        let away = FindError::Database(crate::db::Error::PoolTimedOut);
        let google =
            |status: Value, code: Value| json!({ "status": status, "googleErrorCode": code });
        for (outcome, code, details) in [
            (
                NotVerified::NoCredentials,
                Code::CredentialsMissing,
                json!({}),
            ),
            (
                NotVerified::Credentials(Arc::new(sealed)),
                Code::InternalError,
                json!({}),
            ),
            (
                NotVerified::Credentials(Arc::new(away)),
                Code::Unavailable,
                json!({ "retryAfterSeconds": 2 }),
            ),
            (
                Failure::Credentials {
                    status: 400,
                    reason: text("invalid_grant"),
                    message: Some(secret.clone()),
                }
                .into(),
                Code::GoogleApiError,
                google(json!(400), json!("invalid_grant")),
            ),
            (
                Failure::Credentials {
                    status: 401,
                    reason: None,
                    message: None,
                }
                .into(),
                Code::GoogleApiError,
                google(json!(401), Value::Null),
            ),
            (
                Failure::Application {
                    reason: "applicationNotFound".to_owned(),
                }
                .into(),
                Code::GoogleApiError,
                google(json!(404), json!("applicationNotFound")),
            ),
            (
                Failure::Quota {
                    status: 429,
                    retry_after: wait,
                }
                .into(),
                Code::RateLimited,
                json!({ "status": 429, "retryAfterSeconds": 7 }),
            ),
            (
                Failure::Unexpected {
                    status: 503,
                    reason: text("backendError"),
                    message: Some(secret.clone()),
                    retry_after: Some(wait),
                }
                .into(),
                Code::GoogleApiError,
                json!({ "status": 503, "googleErrorCode": "backendError", "retryAfterSeconds": 7 }),
            ),
            (
                Failure::Unreadable(secret.clone()).into(),
                Code::GoogleApiError,
                google(json!(200), Value::Null),
            ),
            (
                Failure::NoAnswer(SendError::Connection(secret.clone())).into(),
                Code::GoogleApiError,
                google(Value::Null, Value::Null),
            ),
            (
                Failure::Crowded.into(),
                Code::RateLimited,
                json!({ "retryAfterSeconds": 1 }),
            ),
        ] {
            let Declined::Failed(problem) = Declined::from(outcome) else {
                panic!("{code:?} is no answer");
            };
            assert_eq!(problem.code, code);
            assert_eq!(Value::Object(problem.details), details);
            assert!(!problem.message.contains(&secret), "{}", problem.message);
        }
    }
}
