//! What the API description says of errors, made from the errors themselves: their codes, statuses, sentences and details
//! are those a caller will meet.
//!
//! A feature lists what can go wrong with a route as [`DocumentedError`] and gives the list to [`error_responses`].

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaType, Type};
use utoipa::openapi::{ContentBuilder, Header, Ref, RefOr, Response, ResponseBuilder};
use utoipa::{PartialSchema, ToSchema};

use super::problem::{ErrorBody, ErrorCode, Problem, constant_bool_schema};

/// The request id in every example.
const EXAMPLE_REQUEST_ID: &str = "req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E";

/// What a UUID looks like.
pub const UUID_PATTERN: &str =
    "^[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}$";

/// Something that can go wrong with a route.
#[derive(Clone, Debug)]
pub struct DocumentedError {
    condition: &'static str,
    problem: Problem,
}

impl DocumentedError {
    /// `when` completes "it is answered when": a clause without a full stop. `problem` is what is answered then.
    pub fn new(condition: &'static str, problem: impl Into<Problem>) -> Self {
        let problem = problem.into();
        Self { condition, problem }
    }

    /// What can happen to every request.
    pub fn internal_error() -> Self {
        Self::new(
            "something is wrong inside Attesto; it is in the log, under the request id",
            Problem::internal_error("an example"),
        )
    }

    /// What can happen to every request that needs the database.
    pub fn database_unavailable() -> Self {
        Self::new(
            "the database cannot be reached: ask again after `Retry-After`",
            Problem::database_unavailable("an example"),
        )
    }
}

/// The entries of these errors in a route's description, by status.
pub fn error_responses(
    errors: impl IntoIterator<Item = DocumentedError>,
) -> BTreeMap<String, RefOr<Response>> {
    let mut by_status = BTreeMap::<u16, Vec<DocumentedError>>::new();
    for error in errors {
        let of_status = by_status.entry(error.problem.status()).or_default();
        of_status.push(error);
    }
    by_status
        .into_iter()
        .map(|(status, errors)| (status.to_string(), error_response(&errors).into()))
        .collect()
}

/// Several errors of one status.
fn error_response(errors: &[DocumentedError]) -> Response {
    let line =
        |error: &DocumentedError| format!("`{}`: {}", error.problem.code.as_str(), error.condition);
    let description = match errors {
        [one] => line(one),
        more => {
            let lines: Vec<_> = more.iter().map(|it| format!("- {}", line(it))).collect();
            lines.join("\n")
        }
    };
    let mut content =
        ContentBuilder::new().schema(Some(Ref::from_schema_name(ErrorBody::name().as_ref())));
    let mut names = Vec::new();
    for error in errors {
        let code = error.problem.code.as_str();
        names.push(code);
        let same = names.iter().filter(|name| **name == code).count();
        let name = match same {
            1 => code.to_owned(),
            more => format!("{code}_{more}"),
        };
        let example = ExampleBuilder::new()
            .summary(to_sentence(error.condition))
            .value(Some(error_example(&error.problem)));
        content = content.examples_from_iter([(name, example.build())]);
    }
    let mut response = ResponseBuilder::new()
        .description(description)
        .content("application/json", content.build());
    let waits = errors
        .iter()
        .filter(|error| error.problem.retry_after.is_some());
    if waits.count() > 0 {
        let header = response_header(
            ObjectBuilder::new()
                .schema_type(Type::Integer)
                .minimum(Some(1)),
            "How many seconds to wait before asking again. With 502 only where the store said so.",
            json!(2),
        );
        response = response.header("Retry-After", header);
    }
    if names.contains(&ErrorCode::Unauthenticated.as_str()) {
        let header = response_header(
            ObjectBuilder::new().schema_type(Type::String),
            "What kind of credentials is asked for.",
            json!("Bearer"),
        );
        response = response.header("WWW-Authenticate", header);
    }
    response.build()
}

/// A header of an answer.
pub fn response_header(schema: ObjectBuilder, description: &str, example: Value) -> Header {
    HeaderBuilder::new()
        .schema(Some(schema.examples([example])))
        .description(Some(description))
        .build()
}

/// The body of an error or of a store's "no", as it is sent.
pub fn error_example(problem: &Problem) -> Value {
    error_body_json(problem.code.as_str(), &problem.message, &problem.details)
}

fn error_body_json(error: &str, message: &str, details: &Map<String, Value>) -> Value {
    json!(ErrorBody {
        valid: false,
        error,
        message,
        details: (!details.is_empty()).then_some(details),
        request_id: EXAMPLE_REQUEST_ID,
    })
}

/// Begins with a capital and ends with a full stop.
fn to_sentence(clause: &str) -> String {
    let mut characters = clause.chars();
    let first = characters.next().map(|first| first.to_ascii_uppercase());
    first.into_iter().chain(characters).chain(['.']).collect()
}

/// A string that is one of these words, each with its meaning.
pub fn string_enum_schema(about: &str, words: &[(&str, &str)]) -> Schema {
    let lines: Vec<_> = words
        .iter()
        .map(|(word, meaning)| format!("- `{word}`: {meaning}"))
        .collect();
    ObjectBuilder::new()
        .schema_type(Type::String)
        .description(Some(format!("{about}\n\n{}", lines.join("\n"))))
        .enum_values(Some(words.iter().map(|(word, _)| *word)))
        .build()
        .into()
}

/// A string in a request that may be left out, or null.
pub fn optional_string_schema(about: &str) -> ObjectBuilder {
    ObjectBuilder::new()
        .schema_type(SchemaType::from_iter([Type::String, Type::Null]))
        .description(Some(about))
}

/// `valid` of an answer that says yes.
pub fn always_true() -> Schema {
    constant_bool_schema(
        true,
        "Always true: the purchase is genuine, known to the store, and of this tenant's app. Whether it is paid for now is in `status`.",
    )
}

impl PartialSchema for ErrorCode {
    fn schema() -> RefOr<Schema> {
        let all = Self::ALL.map(|code| (code.as_str(), code.description()));
        string_enum_schema("What kind of error it is: never changes its meaning.", &all).into()
    }
}

impl ToSchema for ErrorCode {
    fn name() -> std::borrow::Cow<'static, str> {
        "ErrorCode".into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_one_status_are_told_together() {
        let wait = std::time::Duration::from_secs(2);
        let described = error_responses([
            DocumentedError::new(
                "it asked too often",
                Problem::new(ErrorCode::RateLimited, "Wait.").with_retry_after(wait),
            ),
            DocumentedError::new(
                "the store says so",
                Problem::new(ErrorCode::RateLimited, "Wait too."),
            ),
            DocumentedError::internal_error(),
        ]);
        let described = json!(described);
        assert_eq!(
            described["429"]["description"],
            "- `RATE_LIMITED`: it asked too often\n- `RATE_LIMITED`: the store says so"
        );
        let examples = &described["429"]["content"]["application/json"]["examples"];
        assert_eq!(examples["RATE_LIMITED"]["summary"], "It asked too often.");
        let second = &examples["RATE_LIMITED_2"]["value"];
        let keys: Vec<_> = second.as_object().expect("a body").keys().collect();
        assert_eq!(keys, ["valid", "error", "message", "requestId"]);
        assert!(described["429"]["headers"]["Retry-After"].is_object());
        assert!(described["500"].get("headers").is_none());
    }
}
