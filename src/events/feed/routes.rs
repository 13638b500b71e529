//! `GET /v1/events`, `GET /v1/events/{eventId}` and `POST /v1/events/{eventId}/redeliver`.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRef, Path, RawQuery, State};
use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use utoipa::openapi::{RefOr, Response};
use utoipa::{IntoResponses, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::openapi::{
    self, EventSchema, FeedPageSchema, describe_page_errors, describe_read_errors, event_not_found,
    malformed_event_id,
};
use super::reader::{DEFAULT_PAGE_EVENTS, EventFeed, FeedPage, FeedQuery, MAX_PAGE_EVENTS};
use super::subject::MAX_SUBJECT_KEY_CHARS;
use crate::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use crate::deliveries::redelivery::{
    EnqueuedDelivery, Redeliveries, RedeliveryError, RedeliveryRequest,
};
use crate::http::Problem;
use crate::http::api_docs::{DocumentedError, error_responses};
use crate::http::json::{FromJson, JsonFields, OptionalJsonBody};
use crate::http::problem::Issue;
use crate::http::query_string::QueryParameters;
use crate::tenants::{Authenticator, Caller};

/// The numbers of callbacks are `smallint` in the database.
const MAX_CALLBACK_NUMBER: u32 = 32767;
/// The longest that a request may wait. Shorter than what load balancers wait for an answer.
const MAX_WAIT: Duration = Duration::from_secs(30);

#[derive(Clone)]
struct EventRouteState {
    feed: EventFeed,
    authenticator: Authenticator,
    shutting_down: CancellationToken,
}

impl FromRef<EventRouteState> for Authenticator {
    fn from_ref(state: &EventRouteState) -> Self {
        state.authenticator.clone()
    }
}

/// No request waits once `shutting_down` is cancelled.
pub(crate) fn event_routes(
    feed: EventFeed,
    authenticator: Authenticator,
    shutting_down: CancellationToken,
) -> OpenApiRouter {
    openapi_router().with_state(EventRouteState {
        feed,
        authenticator,
        shutting_down,
    })
}

pub(crate) fn openapi_document() -> utoipa::openapi::OpenApi {
    openapi_router().into_openapi()
}

fn openapi_router() -> OpenApiRouter<EventRouteState> {
    OpenApiRouter::new()
        .routes(routes!(read_events))
        .routes(routes!(read_event))
        .routes(routes!(redeliver_event))
}

struct PageErrorResponses;

impl IntoResponses for PageErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses(describe_page_errors())
    }
}

struct EventErrorResponses;

impl IntoResponses for EventErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        error_responses(describe_read_errors(
            malformed_event_id(),
            event_not_found(),
        ))
    }
}

struct RedeliveryErrorResponses;

impl IntoResponses for RedeliveryErrorResponses {
    fn responses() -> BTreeMap<String, RefOr<Response>> {
        let mut errors = describe_read_errors(malformed_event_id(), event_not_found());
        errors.push(DocumentedError::new(
            "the tenant has no callback that events are sent to",
            no_active_callback(),
        ));
        error_responses(errors)
    }
}

/// Read the tenant's events back, and wait for new ones
///
/// For backends that cannot be called, and for catching up. Begin without `after`, and send the `next` of each answer as the
/// `after` of the next request: you get every event once, in an order that never changes. It is about the order of receipt;
/// which of two states of a purchase is newer, `asOf` says. With `wait`, an answer without events is held back until there is
/// one. An answer has up to `limit` events, fewer where they are large.
#[utoipa::path(
    get,
    path = "/v1/events",
    operation_id = "readEvents",
    tag = "events",
    security(("apiKey" = [])),
    params(
        ("after" = Option<String>, Query, description = "The cursor: `next` of the answer before. Left out: from the oldest stored event on.", pattern = "^[1-9][0-9]{0,18}-[0-7][0-9A-HJKMNP-TV-Z]{25}$", example = "120-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"),
        ("subject" = Option<String>, Query, description = "Only events about the purchase with this `subject.key`.", min_length = 1, max_length = 4096, example = "2000000100000001"),
        ("limit" = Option<u64>, Query, description = "The most events of the answer; 50 if left out.", minimum = 1, maximum = 100, example = 50),
        ("wait" = Option<u64>, Query, description = "For how many seconds the answer is held back while there is no event. Set the timeout of your client higher.", minimum = 0, maximum = 30, example = 25),
    ),
    responses(
        (
            status = 200,
            description = "The events after the cursor; none if there was none in time",
            body = FeedPageSchema,
            examples(("page" = (summary = "One event.", value = json!(openapi::page_example())))),
        ),
        PageErrorResponses,
    ),
)]
async fn read_events(
    State(state): State<EventRouteState>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Json<FeedPage>, Problem> {
    let mut parameters = QueryParameters::parse(query.as_deref());
    let most = u64::try_from(MAX_PAGE_EVENTS).unwrap_or(u64::MAX);
    let limit = parameters.optional_number("limit", 1..=most);
    let query = FeedQuery {
        after: parameters.optional_parsed("after"),
        subject: parameters.optional_string("subject", 1..=MAX_SUBJECT_KEY_CHARS),
        limit: limit
            .and_then(|limit| usize::try_from(limit).ok())
            .unwrap_or(DEFAULT_PAGE_EVENTS),
    };
    let wait = parameters.optional_number("wait", 0..=MAX_WAIT.as_secs());
    parameters.finish()?;
    let wait = Duration::from_secs(wait.unwrap_or(0));
    let page = state
        .feed
        .wait_for_page(&caller.tenant, &query, wait, &state.shutting_down)
        .await?;
    Ok(Json(page))
}

/// Read one event back
///
/// The answer is what the callback gets, byte for byte.
#[utoipa::path(
    get,
    path = "/v1/events/{eventId}",
    operation_id = "readEvent",
    tag = "events",
    security(("apiKey" = [])),
    params(("eventId" = String, Path, description = "The event's id.", pattern = "^evt_[0-7][0-9A-HJKMNP-TV-Z]{25}$", example = "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E")),
    responses(
        (
            status = 200,
            description = "The event",
            body = EventSchema,
            examples(("event" = (summary = "A renewal.", value = json!(openapi::event_example())))),
        ),
        EventErrorResponses,
    ),
)]
async fn read_event(
    State(state): State<EventRouteState>,
    caller: Caller,
    Path(event): Path<String>,
) -> Result<impl IntoResponse, Problem> {
    let event = parse_event_id(&event)?;
    let body = state.feed.load_event(&caller.tenant, &event).await?;
    let body = body.ok_or_else(event_not_found)?;
    let json = HeaderValue::from_static("application/json");
    Ok(([(header::CONTENT_TYPE, json)], body))
}

/// An event that is delivered again.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = events::Redelivery)]
struct EnqueuedRedelivery {
    /// The tenant that the event is for.
    #[schema(value_type = String)]
    tenant_id: TenantId,
    /// The event that is delivered again.
    #[schema(value_type = String, examples("evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    event_id: EventId,
    /// The first of the new deliveries.
    #[schema(value_type = String, examples("del_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    delivery_id: DeliveryId,
    /// All new deliveries, one for each callback.
    deliveries: Vec<EnqueuedDelivery>,
}

/// Where an event is delivered again.
#[derive(Clone, Copy, Debug, Default, ToSchema)]
#[schema(as = events::RedeliverRequest)]
struct RedeliverRequest {
    /// The number of a callback. Left out: the callbacks that had the event, or, if none had it, those that are sent such events.
    #[schema(value_type = Option<u16>, minimum = 1, maximum = 32767, examples(2))]
    callback: Option<CallbackNumber>,
}

impl FromJson for RedeliverRequest {
    const FIELDS: Option<&'static [&'static str]> = Some(&["callback"]);

    fn from_json(body: &mut JsonFields<'_>) -> Option<Self> {
        let callback = body.optional_integer("callback", 1..=MAX_CALLBACK_NUMBER);
        let callback = callback.and_then(|number| CallbackNumber::new(number.into()));
        Some(Self { callback })
    }
}

/// Deliver one event again
///
/// With attempts of its own, to the URLs that the tenant's callbacks have now. A request without a body delivers it to the
/// callbacks that had it before, or, if none had it, to those that are sent such events.
#[utoipa::path(
    post,
    path = "/v1/events/{eventId}/redeliver",
    operation_id = "redeliverEvent",
    tag = "events",
    security(("apiKey" = [])),
    params(("eventId" = String, Path, description = "The event's id.", pattern = "^evt_[0-7][0-9A-HJKMNP-TV-Z]{25}$", example = "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E")),
    request_body(
        content = Option<RedeliverRequest>,
        description = "Which callback; may be left out. At most 16 KB.",
        examples(
            ("one" = (summary = "To one callback", value = json!({ "callback": 2 }))),
        ),
    ),
    responses(
        (
            status = 200,
            description = "It is enqueued",
            body = EnqueuedRedelivery,
            examples(("enqueued" = (summary = "A new delivery.", value = json!({
                "tenantId": "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
                "eventId": "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
                "deliveryId": "del_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
                "deliveries": [{ "callback": 1, "deliveryId": "del_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E" }],
            })))),
        ),
        RedeliveryErrorResponses,
    ),
)]
async fn redeliver_event(
    State(state): State<EventRouteState>,
    caller: Caller,
    Path(event): Path<String>,
    OptionalJsonBody(target): OptionalJsonBody<RedeliverRequest>,
) -> Result<Json<EnqueuedRedelivery>, Problem> {
    let event = parse_event_id(&event)?;
    let feed = &state.feed;
    if !feed.has_event(&caller.tenant, &event).await? {
        return Err(event_not_found());
    }
    let request = RedeliveryRequest {
        requested_by: format!("API key {}", caller.key),
        reason: None,
    };
    let redeliveries = Redeliveries::new(feed.database(), feed.clock());
    let enqueued = redeliveries
        .redeliver_event(&caller.tenant, &event, target.callback, &request)
        .await;
    let deliveries = enqueued.map_err(|error| match error {
        RedeliveryError::NoActiveCallback(_) => no_active_callback(),
        RedeliveryError::EventNotFound(_) | RedeliveryError::TenantNotFound(_) => event_not_found(),
        RedeliveryError::CallbackNotActive(..) => {
            wrong_callback("is not the number of an active callback of this tenant")
        }
        RedeliveryError::EventFilteredOut(..) => wrong_callback("is not sent such events"),
        RedeliveryError::EventOfNoCallback(_) => {
            wrong_callback("is missing: no active callback had this event")
        }
        RedeliveryError::Database(error) => error.into(),
    })?;
    Ok(Json(EnqueuedRedelivery {
        tenant_id: caller.tenant,
        event_id: event,
        delivery_id: deliveries[0].delivery_id.clone(),
        deliveries,
    }))
}

fn wrong_callback(problem: &str) -> Problem {
    Problem::invalid_request(&[Issue::new("callback", problem)])
}

fn parse_event_id(segment: &str) -> Result<EventId, Problem> {
    segment.parse().map_err(|_| malformed_event_id())
}

fn no_active_callback() -> Problem {
    Problem::invalid_request(&[Issue::new(
        "",
        "This tenant has no active callback: its operator sets one with `attesto webhook set-config`.",
    )])
}
