//! The route `GET /v1/refund-questions`

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRef, RawQuery, State};
use serde_json::{Value, json};
use utoipa::IntoResponses;
use utoipa::openapi::{RefOr, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::open_questions::{
    DEFAULT_PAGE_QUESTIONS, MAX_PAGE_QUESTIONS, OpenQuestionPage, OpenQuestionQuery,
    load_open_questions,
};
use crate::db::Database;
use crate::http::Problem;
use crate::http::api_docs::{DocumentedError, error_responses};
use crate::http::problem::Issue;
use crate::http::query_string::QueryParameters;
use crate::tenants::caller::describe_auth_errors;
use crate::tenants::{Authenticator, Caller};

/// No store waits longer for an answer.
const MAX_DUE_WITHIN: Duration = Duration::from_hours(24 * 7);

#[derive(Clone)]
struct QuestionRouteState {
    database: Database,
    authenticator: Authenticator,
}

impl FromRef<QuestionRouteState> for Authenticator {
    fn from_ref(state: &QuestionRouteState) -> Self {
        state.authenticator.clone()
    }
}

pub(crate) fn question_routes(database: &Database, authenticator: Authenticator) -> OpenApiRouter {
    openapi_router().with_state(QuestionRouteState {
        database: database.clone(),
        authenticator,
    })
}

pub(crate) fn openapi_document() -> utoipa::openapi::OpenApi {
    openapi_router().into_openapi()
}

fn openapi_router() -> OpenApiRouter<QuestionRouteState> {
    OpenApiRouter::new().routes(routes!(list_refund_questions))
}

struct QuestionErrorResponses;

impl IntoResponses for QuestionErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let malformed = Issue::new(
            "limit",
            format!("must be a whole number from 1 to {MAX_PAGE_QUESTIONS}"),
        );
        let mut errors = vec![DocumentedError::new(
            "a parameter is malformed",
            Problem::invalid_request(&[malformed]),
        )];
        errors.extend(describe_auth_errors());
        error_responses(errors)
    }
}

/// List what the stores ask about refunds and wait for
///
/// The questions of Apple (`…consumption_request`, 12 hours) and Google (`product.refund_review`, 24 hours) that still take an
/// answer, those first whose `answerBy` is nearest. Each has what the answer needs. One that was answered is not in the list, whether by
/// `POST /v1/apple/consumption`, `POST /v1/google/refund-review` or by the tenant's default answer.
#[utoipa::path(
    get,
    path = "/v1/refund-questions",
    operation_id = "listRefundQuestions",
    tag = "answers",
    security(("apiKey" = [])),
    params(
        ("after" = Option<String>, Query, description = "The cursor: `next` of the answer before. Left out: from the nearest deadline on.", pattern = "^[1-9][0-9]{0,17}-[0-9a-f]{64}$", example = "1775917330000000-9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"),
        ("dueWithin" = Option<u64>, Query, description = "Only questions whose `answerBy` is at most so many seconds away.", minimum = 0, maximum = 604_800, example = 21_600),
        ("limit" = Option<u64>, Query, description = "The most questions of the answer; 50 if left out.", minimum = 1, maximum = 100, example = 50),
    ),
    responses(
        (
            status = 200,
            description = "The questions; none if no store waits for an answer",
            body = OpenQuestionPage,
            examples(("page" = (summary = "A question of Google, which the tenant's default answer will answer.", value = json!(page_example())))),
        ),
        QuestionErrorResponses,
    ),
)]
async fn list_refund_questions(
    State(state): State<QuestionRouteState>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<OpenQuestionPage>, Problem> {
    let mut parameters = QueryParameters::parse(query.as_deref());
    let most = u64::try_from(MAX_PAGE_QUESTIONS).unwrap_or(u64::MAX);
    let after = parameters.optional_parsed("after");
    let due_within = parameters.optional_number("dueWithin", 0..=MAX_DUE_WITHIN.as_secs());
    let limit = parameters.optional_number("limit", 1..=most);
    parameters.finish()?;
    let query = OpenQuestionQuery {
        tenant: Some(caller.tenant),
        due_within: due_within.map(Duration::from_secs),
        after,
        limit: limit
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(DEFAULT_PAGE_QUESTIONS),
    };
    Ok(Json(load_open_questions(&state.database, &query).await?))
}

fn page_example() -> Value {
    json!({
        "questions": [{
            "tenantId": "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
            "source": "google",
            "transactionId": null,
            "orderId": "GPA.3345-1234-5678-90123",
            "pendingRefundToken": "AO-J1OxKq3ld",
            "environment": null,
            "askedAt": "2026-04-10T14:22:10.000Z",
            "answerBy": "2026-04-11T14:22:10.000Z",
            "remainingSeconds": 72_000,
            "hasDefaultAnswer": true,
            "defaultAnswerAt": "2026-04-11T12:22:10.000Z",
            "defaultAnswerError": null,
        }],
        "next": null,
    })
}
