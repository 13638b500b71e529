//! The one error body: `{"valid":false,"error":CODE,"message":…,"details":{…}?,"requestId":…}`.
//!
//! A handler returns a [`Problem`], also when a store's "no" is the answer; the request layer
//! (`http::request_layer`) adds the request id, writes the body and logs the code. What a caller can act on is in
//! `message` and `details`; what only an operator can act on is the `cause`, which is logged and never sent.

use std::time::Duration;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use utoipa::ToSchema;
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};

/// Every error code of the public contract, with its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(
    missing_docs,
    reason = "each is explained in `ErrorCode::description`, which is also the API description's"
)]
pub enum ErrorCode {
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
    /// A store's "no", which is an answer: status 200, and this word in `error`, such as `TRANSACTION_NOT_FOUND`.
    Rejected(&'static str),
}

impl ErrorCode {
    /// All but the stores' own words for a "no".
    pub const ALL: [Self; 12] = [
        Self::InvalidRequest,
        Self::CredentialsMissing,
        Self::Unauthenticated,
        Self::SignatureInvalid,
        Self::TenantNotFound,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::RateLimited,
        Self::InternalError,
        Self::AppleApiError,
        Self::GoogleApiError,
        Self::Unavailable,
    ];

    /// What it means, in a few words for the API description.
    pub fn description(self) -> &'static str {
        match self {
            Self::InvalidRequest => {
                "400: the request is malformed; `details.issues` lists everything that is wrong with it."
            }
            Self::CredentialsMissing => {
                "400: the tenant is not set up for this store, or not for its production."
            }
            Self::Unauthenticated => {
                "401: no API key, or one that is malformed, unknown, revoked, or of an inactive tenant. For Google's pushes: a token that does not convince."
            }
            Self::SignatureInvalid => {
                "401: a notification that Apple did not sign, or not for this tenant."
            }
            Self::TenantNotFound => "404: there is no active tenant of this id.",
            Self::NotFound => "404: there is nothing at this path.",
            Self::MethodNotAllowed => "405: this path does not take this method.",
            Self::RateLimited => {
                "429: the tenant's own limit, or the store's quota, is used up; wait as long as `Retry-After` says."
            }
            Self::InternalError => "500: something is wrong inside Attesto, and in its log.",
            Self::AppleApiError => "502: Apple did not answer, or not with a yes or no.",
            Self::GoogleApiError => "502: Google did not answer, or not with a yes or no.",
            Self::Unavailable => {
                "503: the database, or what else is needed, cannot be reached, or too much is in hand; ask again after `Retry-After`."
            }
            Self::Rejected(_) => "200: the store says no.",
        }
    }

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
            Self::Rejected(word) => word,
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
            Self::Rejected(_) => StatusCode::OK,
        }
    }
}

/// One thing that is wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, ToSchema)]
pub struct Issue {
    /// Which field, as `a.b`. Empty when it is the request as a whole.
    #[schema(examples("purchaseToken"))]
    pub path: String,
    /// What is wrong with it and what it should be.
    #[schema(examples("is missing"))]
    pub message: String,
}

impl Issue {
    /// An issue at a field.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
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
    pub code: ErrorCode,
    /// One sentence for the caller.
    pub message: String,
    /// Facts a program can use.
    pub details: Map<String, Value>,
    /// Sent as `Retry-After` in whole seconds, rounded up, and as `details.retryAfterSeconds`.
    pub retry_after: Option<Duration>,
    /// For the operator's log only.
    pub cause: Option<ErrorCause>,
}

/// Why an error happened, for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorCause {
    /// What kind of error, and nothing of its content: all that is logged in production.
    pub class: String,
    /// What it says. May name hosts, tables and values.
    pub text: String,
}

impl ErrorCause {
    /// An error, with its type as the class.
    pub fn from_error<E: std::fmt::Display>(error: &E) -> Self {
        Self {
            class: error_type_name::<E>().to_owned(),
            text: error.to_string(),
        }
    }
}

/// The type's name with its path, without our own crate's name.
fn error_type_name<E>() -> &'static str {
    let name = std::any::type_name::<E>();
    let name = name.trim_start_matches('&');
    name.strip_prefix("attesto::").unwrap_or(name)
}

impl Problem {
    /// A problem with a sentence for the caller.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Map::new(),
            retry_after: None,
            cause: None,
        }
    }

    /// Everything that is wrong with a request, with the field of each issue. Empty without issues.
    pub(crate) fn issues_text(&self) -> String {
        let issues = self.details.get("issues").and_then(Value::as_array);
        let issues = issues.into_iter().flatten().filter_map(|issue| {
            let (path, message) = (issue["path"].as_str()?, issue["message"].as_str()?);
            Some(format!("{path} {message}").trim_start().to_owned())
        });
        issues.collect::<Vec<_>>().join("; ")
    }

    /// A store's "no": status 200, `valid: false`, and `word` in `error`.
    pub fn rejection(word: &'static str, message: impl Into<String>) -> Self {
        Self::new(ErrorCode::Rejected(word), message)
    }

    /// The HTTP status it is sent with.
    pub fn status(&self) -> u16 {
        self.code.status().as_u16()
    }

    /// The request has a wrong shape; all of it is said at once.
    pub fn invalid_request(issues: &[Issue]) -> Self {
        let message = match issues {
            [Issue { path, message }] if path.is_empty() => message.clone(),
            [Issue { path, message }] => format!("{path}: {message}"),
            more => format!(
                "The request has {} problems; see details.issues.",
                more.len()
            ),
        };
        Self::new(ErrorCode::InvalidRequest, message).with_detail("issues", json!(issues))
    }

    /// The tenant in the path does not exist or is not active; the answer does not reveal which.
    pub fn tenant_not_found() -> Self {
        Self::new(
            ErrorCode::TenantNotFound,
            "There is no active tenant of this id.",
        )
    }

    /// Something broke inside. The caller learns nothing but that; `cause` goes to the log.
    pub fn internal_error<E: std::fmt::Display>(cause: E) -> Self {
        Self::new(
            ErrorCode::InternalError,
            "Something went wrong inside Attesto. It has been logged under this request id.",
        )
        .with_cause(cause)
    }

    /// The database cannot be reached; the caller may try again.
    pub fn database_unavailable<E: std::fmt::Display>(cause: E) -> Self {
        Self::new(
            ErrorCode::Unavailable,
            "Attesto cannot reach its database right now. Try again shortly.",
        )
        .with_retry_after(Duration::from_secs(2))
        .with_cause(cause)
    }

    /// Adds a fact a program can use.
    #[must_use]
    pub fn with_detail(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.details.insert(name.to_owned(), value.into());
        self
    }

    /// Says when to try again; at least one second.
    #[must_use]
    pub fn with_retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        let seconds = retry_after_seconds(after);
        self.with_detail("retryAfterSeconds", seconds)
    }

    /// Adds what the operator's log should say and the caller should not see.
    #[must_use]
    pub fn with_cause<E: std::fmt::Display>(mut self, cause: E) -> Self {
        self.cause = Some(ErrorCause::from_error(&cause));
        self
    }

    /// Names the kind of the cause, in a few words that hold nothing of a caller's: production's log says no more of it.
    #[must_use]
    pub fn with_cause_class(mut self, class: impl Into<String>) -> Self {
        if let Some(cause) = &mut self.cause {
            cause.class = class.into();
        }
        self
    }
}

/// A wait as whole seconds, rounded up and at least one: `Retry-After` has no fractions.
pub fn retry_after_seconds(wait: Duration) -> u64 {
    (wait.as_secs() + u64::from(wait.subsec_nanos() > 0)).max(1)
}

impl From<crate::db::Error> for Problem {
    fn from(error: crate::db::Error) -> Self {
        Self::from(&error)
    }
}

impl From<&crate::db::Error> for Problem {
    fn from(error: &crate::db::Error) -> Self {
        // A database that is still being prepared is as good as away.
        let is_away = crate::db::is_unavailable(error) || crate::db::is_missing_table(error);
        let problem = if is_away {
            Self::database_unavailable(crate::db::describe_cause(error))
        } else {
            Self::internal_error(crate::db::describe_cause(error))
        };
        problem.with_cause_class(crate::db::error_class(error))
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

/// The body of every error: there is no verdict.
#[derive(Debug, serde::Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[expect(missing_docs, reason = "the schemas of these fields explain them")]
pub struct ErrorBody<'a> {
    #[schema(schema_with = always_false)]
    pub valid: bool,
    #[schema(value_type = ErrorCode)]
    pub error: &'a str,
    /// What is wrong and what to do about it, in a sentence for people. It may change from release to release.
    #[schema(examples("Send a valid API key as `Authorization: Bearer attesto_live_…`."))]
    pub message: &'a str,
    #[schema(value_type = Option<ErrorDetailsSchema>, required = false, nullable = false)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub details: Option<&'a Map<String, Value>>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    pub request_id: &'a str,
}

/// Facts for a program. Left out when there are none; which there are depends on `error`.
#[derive(ToSchema)]
#[schema(as = ErrorDetails, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem::details`")]
pub struct ErrorDetailsSchema {
    /// With `INVALID_REQUEST`: everything that is wrong with the request.
    #[schema(required = false, nullable = false)]
    issues: Option<Vec<Issue>>,
    /// With `INVALID_REQUEST`: the body is larger than this many bytes.
    #[schema(required = false, nullable = false, examples(16384))]
    max_bytes: Option<i64>,
    /// With `RATE_LIMITED`, `UNAVAILABLE` and sometimes a store's error: the same as the header `Retry-After`.
    #[schema(required = false, nullable = false, minimum = 1, examples(2))]
    retry_after_seconds: Option<i64>,
    /// With `APPLE_API_ERROR`, `GOOGLE_API_ERROR` and `RATE_LIMITED`: the HTTP status of the store's answer. Null when it
    /// did not answer.
    #[schema(required = false, examples(500))]
    status: Option<i64>,
    /// With `APPLE_API_ERROR`: Apple's `errorCode`. Null when Apple gave none.
    #[schema(required = false, examples(5_000_000))]
    apple_error_code: Option<i64>,
    /// With `GOOGLE_API_ERROR`: Google's reason. Null when Google gave none.
    #[schema(required = false, examples("permissionDenied"))]
    google_error_code: Option<String>,
    /// With `SIGNATURE_INVALID`: which check was not passed.
    #[schema(required = false, nullable = false, examples("untrusted_chain"))]
    class: Option<String>,
}

/// `valid` of an answer that does not.
pub fn always_false() -> Schema {
    constant_bool_schema(
        false,
        "Always false. Nothing may be granted; with status 200 that is the verdict, with any other there is none.",
    )
}

pub(crate) fn constant_bool_schema(value: bool, about: &str) -> Schema {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .description(Some(about))
        .enum_values(Some([value]))
        .build()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_class_of_a_cause_says_nothing_of_its_content() {
        let secret = "postgres://attesto:hunter2@db.internal/attesto";
        let problem = Problem::from(crate::db::Error::Configuration(secret.into()));
        let cause = problem.cause.expect("an internal error has a cause");
        assert_eq!(cause.class, "database settings");
        assert!(cause.text.contains("hunter2"));
        assert_eq!(
            ErrorCause::from_error(&std::fmt::Error).class,
            "core::fmt::Error",
            "the type, with where it comes from"
        );
        assert_eq!(
            ErrorCause::from_error(&&crate::tenants::tenant::DisplayNameError).class,
            "tenants::tenant::DisplayNameError"
        );
    }

    #[test]
    fn a_wait_is_rounded_up() {
        for (millis, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (59_999, 60)] {
            assert_eq!(retry_after_seconds(Duration::from_millis(millis)), seconds);
        }
    }

    #[test]
    fn one_issue_is_the_message_and_several_are_counted() {
        let one = Problem::invalid_request(&[Issue::new(
            "type",
            "must be \"subscription\" or \"product\"",
        )]);
        assert_eq!(one.message, "type: must be \"subscription\" or \"product\"");
        let two = Problem::invalid_request(&[
            Issue::new("type", "is missing"),
            Issue::new("packageName", "is missing"),
        ]);
        assert_eq!(
            two.message,
            "The request has 2 problems; see details.issues."
        );
        assert_eq!(two.details["issues"][1]["path"], "packageName");
    }
}
