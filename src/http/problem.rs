//! The one error body: `{"valid":false,"error":CODE,"message":…,"details":{…}?,"requestId":…}`.
//!
//! A handler returns a [`Problem`]; the request layer (`http::envelope`) adds the request id, writes the body and logs the code. What
//! a caller can act on is said in `message` and `details`; what only an operator can act on is the `cause`, which is
//! logged and never sent.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

/// Every error code of the public contract, with its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is explained at its status in `Code::status`, and in the API description"
)]
pub enum Code {
    InvalidRequest,
    CredentialsMissing,
    Unauthenticated,
    SignatureInvalid,
    TenantNotFound,
    NotFound,
    MethodNotAllowed,
    RateLimited,
    InternalError,
    AppleApiError,
    GoogleApiError,
    Unavailable,
}

impl Code {
    /// The code as it is sent.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "INVALID_REQUEST",
            Self::CredentialsMissing => "CREDENTIALS_MISSING",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::SignatureInvalid => "SIGNATURE_INVALID",
            Self::TenantNotFound => "TENANT_NOT_FOUND",
            Self::NotFound => "NOT_FOUND",
            Self::MethodNotAllowed => "METHOD_NOT_ALLOWED",
            Self::RateLimited => "RATE_LIMITED",
            Self::InternalError => "INTERNAL_ERROR",
            Self::AppleApiError => "APPLE_API_ERROR",
            Self::GoogleApiError => "GOOGLE_API_ERROR",
            Self::Unavailable => "UNAVAILABLE",
        }
    }

    /// The HTTP status it is sent with.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest | Self::CredentialsMissing => StatusCode::BAD_REQUEST,
            Self::Unauthenticated | Self::SignatureInvalid => StatusCode::UNAUTHORIZED,
            Self::TenantNotFound | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::InternalError => StatusCode::INTERNAL_SERVER_ERROR,
            Self::AppleApiError | Self::GoogleApiError => StatusCode::BAD_GATEWAY,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

/// One thing wrong with a request: where, and what.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Issue {
    /// The field, as `a.b[0]`; empty for the body as a whole.
    pub path: String,
    /// What is wrong with it and what it should be.
    pub message: String,
}

impl Issue {
    /// An issue at a field.
    pub fn at(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            message: message.into(),
        }
    }
}

/// An error on its way to a caller.
#[derive(Clone, Debug)]
pub struct Problem {
    /// What kind, and so which status.
    pub code: Code,
    /// One sentence for the caller.
    pub message: String,
    /// Facts a program can use.
    pub details: Map<String, Value>,
    /// Sent as `Retry-After` in whole seconds, rounded up, and as `details.retryAfterSeconds`.
    pub retry_after: Option<Duration>,
    /// For the operator's log only.
    pub cause: Option<String>,
}

impl Problem {
    /// A problem with a sentence for the caller.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Map::new(),
            retry_after: None,
            cause: None,
        }
    }

    /// The request has a wrong shape; all of it is said at once.
    pub fn invalid(issues: &[Issue]) -> Self {
        let message = match issues {
            [Issue { path, message }] if path.is_empty() => message.clone(),
            [Issue { path, message }] => format!("{path}: {message}"),
            more => format!(
                "The request has {} problems; see details.issues.",
                more.len()
            ),
        };
        Self::new(Code::InvalidRequest, message).detail("issues", json!(issues))
    }

    /// Something broke inside. The caller learns nothing but that; `cause` goes to the log.
    pub fn internal(cause: impl std::fmt::Display) -> Self {
        let mut problem = Self::new(
            Code::InternalError,
            "Something went wrong inside Attesto. It has been logged under this request id.",
        );
        problem.cause = Some(cause.to_string());
        problem
    }

    /// The database cannot be reached; the caller may try again.
    pub fn unavailable(cause: impl std::fmt::Display) -> Self {
        let mut problem = Self::new(
            Code::Unavailable,
            "Attesto cannot reach its database right now. Try again shortly.",
        )
        .retry_after(Duration::from_secs(2));
        problem.cause = Some(cause.to_string());
        problem
    }

    /// Adds a fact a program can use.
    #[must_use]
    pub fn detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Says when to try again; at least one second.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        let seconds = whole_seconds(after);
        self.detail("retryAfterSeconds", seconds)
    }

    /// Adds what the operator's log should say and the caller should not see.
    #[must_use]
    pub fn cause(mut self, cause: impl std::fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }
}

/// A wait as whole seconds, rounded up and at least one: `Retry-After` has no fractions.
pub fn whole_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl From<crate::db::Error> for Problem {
    fn from(error: crate::db::Error) -> Self {
        if crate::db::is_unavailable(&error) {
            Self::unavailable(error)
        } else {
            Self::internal(error)
        }
    }
}

impl IntoResponse for Problem {
    /// The status and the problem itself as an extension; the request layer, which knows the request id, writes the
    /// body.
    fn into_response(self) -> Response {
        let mut response = self.code.status().into_response();
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_rounded_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
    }

    #[test]
    fn one_issue_is_the_message_and_several_are_counted() {
        let one = Problem::invalid(&[Issue::at("type", "must be \"subscription\" or \"product\"")]);
        assert_eq!(one.message, "type: must be \"subscription\" or \"product\"");
        let two = Problem::invalid(&[
            Issue::at("type", "is missing"),
            Issue::at("packageName", "is missing"),
        ]);
        assert_eq!(
            two.message,
            "The request has 2 problems; see details.issues."
        );
        assert_eq!(two.details["issues"][1]["path"], "packageName");
    }
}
