//! The route `GET /v1/subjects/{source}/{key}`

use std::collections::BTreeMap;
use std::time::Duration;

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use serde_json::{Value, json};
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoResponses, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::routes::VerifyState;
use super::subject_source::SubjectSources;
use crate::audit::VerificationLog;
use crate::events::feed::{EventFeed, KnownSubject, MAX_SUBJECT_KEY_CHARS, describe_read_errors};
use crate::events::{EventSource, EventSubject, PurchaseState};
use crate::http::api_docs::{self, DocumentedError, error_responses};
use crate::http::json::JsonAnswer;
use crate::http::problem::{Issue, always_false};
use crate::http::query_string::QueryParameters;
use crate::http::{ErrorCode, Problem};
use crate::tenants::{Authenticator, Caller};

/// Reads what events say of a purchase, and asks its store.
#[derive(Clone)]
struct SubjectReader {
    feed: EventFeed,
    stores: SubjectSources,
}

type SubjectRouteState = VerifyState<SubjectReader>;

pub(crate) fn subject_routes(
    feed: EventFeed,
    stores: SubjectSources,
    authenticator: Authenticator,
    verification_log: VerificationLog,
) -> OpenApiRouter {
    openapi_router().with_state(VerifyState {
        verifier: Arc::new(SubjectReader { feed, stores }),
        authenticator,
        verification_log,
    })
}

pub(crate) fn openapi_document() -> utoipa::openapi::OpenApi {
    openapi_router().into_openapi()
}

fn openapi_router() -> OpenApiRouter<SubjectRouteState> {
    OpenApiRouter::new().routes(routes!(read_subject))
}

/// What is answered when something is known.
#[derive(ToSchema)]
#[schema(as = events::SubjectAnswer)]
#[serde(untagged)]
#[expect(dead_code, reason = "describes `KnownSubject` and `Problem` together")]
enum SubjectAnswerSchema {
    Known(Box<KnownSubject>),
    Rejected(SubjectRejectionSchema),
}

/// A store's "no". Only where the store was asked.
#[derive(ToSchema)]
#[schema(as = events::SubjectRefused, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `Problem`")]
struct SubjectRejectionSchema {
    #[schema(schema_with = always_false)]
    valid: bool,
    /// Why not, in the words of the store's verify route.
    #[schema(examples("PURCHASE_NOT_FOUND"))]
    error: String,
    /// What it means, in a sentence for people. It may change from release to release.
    #[schema(examples("Google knows no purchase with this token."))]
    message: String,
    /// Facts for a program, as those of the store's verify route.
    #[schema(value_type = Option<Object>, required = false, nullable = false)]
    details: Option<Value>,
    /// The same as the header `X-Request-Id`. The log has a line with it.
    #[schema(examples("req_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    request_id: String,
}

struct SubjectErrorResponses;

impl IntoResponses for SubjectErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut errors = describe_read_errors(malformed_source(), subject_not_found());
        errors.extend([
            DocumentedError::new(
                "the store is to be asked, and the tenant has no credentials for it",
                Problem::new(
                    ErrorCode::CredentialsMissing,
                    "This tenant has no credentials for this store.",
                ),
            ),
            DocumentedError::new(
                "Apple was to be asked, and gave no answer",
                Problem::new(
                    ErrorCode::AppleApiError,
                    "Apple answered with an error of its own.",
                )
                .with_detail("status", 500)
                .with_detail("appleErrorCode", 5_000_000),
            ),
            DocumentedError::new(
                "Google was to be asked, and gave no answer",
                Problem::new(
                    ErrorCode::GoogleApiError,
                    "Google answered with an error of its own.",
                )
                .with_detail("status", 503)
                .with_detail("googleErrorCode", "backendError")
                .with_retry_after(Duration::from_mins(1)),
            ),
        ]);
        error_responses(errors)
    }
}

/// What is a purchase worth, as far as is known here?
///
/// The state with the newest `asOf` of all stored events about it, and the event that it is from. Nothing is asked of the
/// store, unless `refresh` is true: then the answer is what the store says now, as the verify route tells it, and the store's
/// "no" is answered with 200 and `valid: false`. Let the customer in while `state.entitled` is true and `entitledUntil` is
/// null or in the future.
#[utoipa::path(
    get,
    path = "/v1/subjects/{source}/{key}",
    operation_id = "readSubject",
    tag = "events",
    security(("apiKey" = [])),
    params(
        ("source" = String, Path, description = "The store: `apple` or `google`.", pattern = "^(apple|google)$", example = "apple"),
        ("key" = String, Path, description = "The purchase's `subject.key`, percent-encoded: for Apple the original transaction id, for Google the first purchase token.", min_length = 1, max_length = 4096, example = "2000000100000001"),
        ("refresh" = Option<bool>, Query, description = "Whether to ask the store now.", example = false),
    ),
    responses(
        (
            status = 200,
            description = "What is known of it, or the store's no",
            body = SubjectAnswerSchema,
            examples(
                ("known" = (summary = "From the newest event.", value = json!(known_example()))),
                ("refused" = (summary = "Google was asked, and knows no such purchase.", value = json!(api_docs::error_example(&Problem::rejection("PURCHASE_NOT_FOUND", "Google knows no purchase with this token."))))),
            ),
        ),
        SubjectErrorResponses,
    ),
)]
async fn read_subject(
    State(state): State<SubjectRouteState>,
    caller: Caller,
    Path((source, key)): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<JsonAnswer<KnownSubject>, Problem> {
    let source: EventSource = source.parse().map_err(|_| malformed_source())?;
    if key.chars().count() > MAX_SUBJECT_KEY_CHARS {
        let message = format!("must have 1 to {MAX_SUBJECT_KEY_CHARS} characters");
        return Err(Problem::invalid_request(&[Issue::new("key", message)]));
    }
    let mut parameters = QueryParameters::parse(query.as_deref());
    let is_refresh_asked = parameters.optional_boolean("refresh").unwrap_or_default();
    parameters.finish()?;
    let SubjectReader { feed, stores } = &*state.verifier;
    let known = feed.find_subject(&caller.tenant, source, &key).await?;
    if !is_refresh_asked {
        return known.map(JsonAnswer).ok_or_else(subject_not_found);
    }
    let last_sequence = known.and_then(|known| known.last_sequence);
    let refresh = async {
        let found = stores.refresh_subject(source, &caller.tenant, &key).await?;
        Ok::<_, Problem>(KnownSubject::from_store(
            source,
            &found.subject,
            found.state,
            found.state_error,
            last_sequence,
        ))
    };
    let purchase_id = || key.as_str().into();
    state
        .answer(source, &caller.tenant, purchase_id, refresh)
        .await
}

fn known_example() -> Value {
    json!({
        "source": "google",
        "subject": EventSubject::example_json(),
        "state": PurchaseState::example_json(),
        "stateError": null,
        "asOf": "2026-04-10T14:22:10.020Z",
        "eventId": "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
        "sequence": 7,
        "lastSequence": 7,
    })
}

fn malformed_source() -> Problem {
    Problem::invalid_request(&[Issue::new("source", "must be \"apple\" or \"google\"")])
}

fn subject_not_found() -> Problem {
    Problem::new(
        ErrorCode::NotFound,
        "No stored event of this tenant is about this purchase. With `?refresh=true` the store is asked.",
    )
}
