//! What each outcome is in HTTP: a refusal, which is an answer, or a problem, which is none.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use super::account::Environment;
use super::api::{Absent, Failure};
use super::notifications::{NotAccepted, Refused};
use super::store::FindError;
use super::trust::Distrust;
use super::verify::{No, NotVerified};
use crate::http::problem::{Declined, Issue};
use crate::http::{Code, Problem, Refusal};

/// With `APPLE_OCSP=on`, when a responder is away. The log says which, and why.
const UNANSWERED: &str = "Apple's responder does not say right now whether the certificates that this is signed with were revoked. Nothing is wrong with it so far: ask again when Retry-After says.";

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Unknown => Self::no_active_tenant(),
            Refused::Database(error) => (&*error).into(),
        }
    }
}

impl From<NotAccepted> for Problem {
    fn from(outcome: NotAccepted) -> Self {
        match outcome {
            NotAccepted::NoCredentials => no_credentials(),
            NotAccepted::NoAppAppleId => no_app_apple_id(),
            NotAccepted::Credentials(error) => credentials_problem(&error),
            NotAccepted::Untrusted(why) => {
                let message = format!("This notification does not convince: {why}.");
                Self::new(Code::SignatureInvalid, message)
                    .detail("class", why.class())
                    .cause(why)
                    // It holds nothing of the notification.
                    .class(why.to_string())
            }
            NotAccepted::Unanswered { retry_after } => {
                Self::new(Code::Unavailable, UNANSWERED).retry_after(retry_after)
            }
            NotAccepted::NoId => Self::invalid(&[Issue::at(
                "notificationUUID",
                "must be in the signed payload, with 1 to 256 characters",
            )]),
            NotAccepted::Inactive => Self::no_active_tenant(),
            NotAccepted::Database(error) => error.into(),
        }
    }
}

pub(super) fn unanswered(retry_after: Duration) -> Problem {
    apple(UNANSWERED.to_owned(), Value::Null, None).retry_after(retry_after)
}

pub(super) fn no_credentials() -> Problem {
    Problem::new(
        Code::CredentialsMissing,
        "This tenant has no Apple credentials. An operator sets them with `attesto apple set-credentials`.",
    )
}

pub(super) fn no_app_apple_id() -> Problem {
    Problem::new(
        Code::CredentialsMissing,
        "This tenant has no app Apple id, without which nothing of production can be verified. An operator adds it with `attesto apple set-credentials --app-apple-id`.",
    )
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
            NotVerified::NoAppAppleId => no_app_apple_id(),
            NotVerified::Credentials(error) => credentials_problem(&error),
            NotVerified::Apple(failure) => problem(failure),
            NotVerified::Unanswered { retry_after } => unanswered(retry_after),
            NotVerified::Unbelievable(what) => apple(
                "Apple's server sent a transaction that cannot be believed. Ask again later."
                    .to_owned(),
                json!(200),
                None,
            )
            .cause(what),
        }))
    }
}

pub(super) fn refusal(no: No) -> Refusal {
    match no {
        No::NotFound(absent) => {
            let (reason, message) = match absent {
                Absent::Unknown => ("unknown", "Apple knows no transaction with this id."),
                Absent::NotAnId => (
                    "malformed",
                    "This is not a transaction id: Apple does not recognise its form.",
                ),
                Absent::AppTransactionId => (
                    "app_transaction_id",
                    "This is the id of an app transaction. Send the id of the purchase's own transaction.",
                ),
            };
            Refusal::new("TRANSACTION_NOT_FOUND", message).detail("reason", reason)
        }
        No::Distrusted(distrust) => distrusted(distrust),
        No::OtherApp { expected } => Refusal::new(
            "BUNDLE_ID_MISMATCH",
            format!("This transaction is not of this tenant's app, {expected}."),
        )
        .detail("expected", expected),
        No::OtherEnvironment { expected, found } => Refusal::new(
            "ENVIRONMENT_MISMATCH",
            "This transaction is of another environment than the one asked about.",
        )
        .detail("expected", json!(expected.map(Environment::as_str)))
        .detail(
            "found",
            json!(found.map(|found| found.to_ascii_lowercase())),
        ),
        No::OtherUser => Refusal::new(
            "APP_USER_MISMATCH",
            "The app did not give this purchase to the expected user: its appAccountToken is another one, or there is none.",
        ),
    }
}

fn distrusted(distrust: Distrust) -> Refusal {
    Refusal::new(
        "SIGNATURE_INVALID",
        format!("This is not a transaction that Apple signed: {distrust}."),
    )
    .detail("class", distrust.class())
}

fn apple(message: String, status: Value, code: Option<i64>) -> Problem {
    Problem::new(Code::AppleApiError, message)
        .detail("status", status)
        .detail("appleErrorCode", json!(code))
}

pub(super) fn problem(failure: Failure) -> Problem {
    let problem = match &failure {
        Failure::Unauthorized { status } => apple(
            "Apple refuses this tenant's key. Check the key id, the issuer id and the bundle id, and that it is a key for In-App Purchase that was not revoked.".to_owned(),
            json!(status),
            None,
        ),
        Failure::RateLimited { retry_after } => Problem::new(
            Code::RateLimited,
            "Apple's limit for this tenant's app is used up. Wait as long as Retry-After says.",
        )
        .detail("status", 429)
        .retry_after(*retry_after),
        Failure::Unexpected { status, code, retry_after, .. } => {
            let said = code.map_or_else(String::new, |code| format!(" and error {code}"));
            let advice = match code {
                Some(4_000_000..=4_039_999 | 4_040_001 | 4_040_003) => {
                    "Asking again will not help: check that this tenant's bundle id and key belong to the same app."
                }
                _ => "Ask again later.",
            };
            let problem = apple(
                format!("Apple answered with status {status}{said}, which says neither yes nor no. {advice}"),
                json!(status),
                *code,
            );
            match retry_after {
                Some(wait) => problem.retry_after(*wait),
                None => problem,
            }
        }
        Failure::Unreadable(_) => apple("Apple's answer cannot be read.".to_owned(), json!(200), None),
        Failure::NoAnswer(_) => apple(
            "Apple could not be reached, or did not answer in time. Ask again later.".to_owned(),
            Value::Null,
            None,
        ),
        Failure::Crowded => Problem::new(
            Code::RateLimited,
            "Too many questions of this tenant are waiting for Apple. Ask again shortly.",
        )
        .retry_after(Duration::from_secs(1)),
    };
    let class = class(&failure);
    problem.cause(failure).class(class)
}

/// What the log says in production: the kind and Apple's own numbers for it, nothing of a purchase.
fn class(failure: &Failure) -> String {
    match failure {
        Failure::Unauthorized { status } => format!("apple credentials {status}"),
        Failure::RateLimited { .. } => "apple rate limit".to_owned(),
        Failure::Unexpected { status, code, .. } => {
            format!(
                "apple unexpected {status} {}",
                code.map_or_else(|| "no code".to_owned(), |code| code.to_string())
            )
        }
        Failure::Unreadable(_) => "apple unreadable".to_owned(),
        Failure::NoAnswer(_) => "apple no answer".to_owned(),
        Failure::Crowded => "apple crowded".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbound::SendError;

    #[test]
    fn every_failure_is_told_apart() {
        let answer = |failure| {
            let problem = problem(failure);
            (problem.code, json!(problem.details))
        };
        assert_eq!(
            answer(Failure::Unauthorized { status: 401 }),
            (
                Code::AppleApiError,
                json!({"status": 401, "appleErrorCode": null})
            )
        );
        assert_eq!(
            answer(Failure::RateLimited {
                retry_after: Duration::from_millis(1500)
            }),
            (
                Code::RateLimited,
                json!({"status": 429, "retryAfterSeconds": 2})
            )
        );
        assert_eq!(
            answer(Failure::Unexpected {
                status: 404,
                code: Some(4_040_004),
                message: None,
                retry_after: Some(Duration::from_secs(3))
            }),
            (
                Code::AppleApiError,
                json!({"status": 404, "appleErrorCode": 4_040_004, "retryAfterSeconds": 3})
            )
        );
        let advice = |code| {
            let (status, message, retry_after) = (400, None, None);
            problem(Failure::Unexpected {
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
            answer(Failure::NoAnswer(SendError::Timeout(Duration::from_secs(
                10
            )))),
            (
                Code::AppleApiError,
                json!({"status": null, "appleErrorCode": null})
            )
        );
        assert_eq!(
            answer(Failure::Crowded),
            (Code::RateLimited, json!({"retryAfterSeconds": 1}))
        );
    }
}
