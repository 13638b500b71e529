//! The schema of an event, and the errors of the routes on events.

use serde_json::{Value, json};
use utoipa::ToSchema;

use super::reader::FeedError;
use crate::base::id::EventId;
use crate::deliveries::body::EventBodyError;
use crate::events::{AppUserIdSource, EventSubject, PurchaseState, StateError};
use crate::http::api_docs::DocumentedError;
use crate::http::problem::Issue;
use crate::http::{ErrorCode, Problem};
use crate::tenants::caller::describe_auth_errors;

/// An event, byte for byte as it is sent to the callback. The page about events explains each field.
#[derive(ToSchema)]
#[schema(as = events::Event, rename_all = "camelCase")]
#[expect(
    dead_code,
    reason = "describes the JSON that `NewEvent::to_json_body` writes"
)]
pub(super) struct EventSchema {
    /// What happened, the same for both stores.
    #[schema(examples("subscription.renewed"))]
    event: String,
    /// A more precise reason, where there is one.
    reason: Option<String>,
    /// The store's own name of it.
    #[schema(examples("google.subscription.2"))]
    platform_event: String,
    /// The event's id: keep it to recognise an event that you have.
    #[schema(examples("evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    event_id: String,
    /// The store's id of the notification.
    #[schema(examples("136969346945"))]
    external_id: String,
    /// When it happened, according to the store.
    #[schema(format = DateTime)]
    timestamp: String,
    /// The tenant that the event is for.
    tenant_id: String,
    /// The store: `apple` or `google`.
    #[schema(examples("google"))]
    source: String,
    /// `production` or `sandbox`; null where it is not known.
    environment: Option<String>,
    /// The subscription or purchase; null where it is about none.
    subject: Option<EventSubject>,
    /// The app's own id of the user, where the app gave one to the store.
    app_user_id: Option<String>,
    /// Which purchase names that user.
    app_user_id_source: Option<AppUserIdSource>,
    /// The event's number among those of its subject.
    sequence: Option<i64>,
    /// What the purchase is worth.
    state: Option<PurchaseState>,
    /// Why there is no state, although there is a subject.
    state_error: Option<StateError>,
    /// The decoded notification.
    data: Value,
    /// The notification as the store sent it. Null for an event of Attesto's own.
    raw: Value,
    /// True when Attesto fetched it from the store, which had not delivered it; absent for every other event.
    #[schema(required = false)]
    recovered: bool,
}

/// Events in the order in which they are read.
#[derive(ToSchema)]
#[schema(as = events::Page, rename_all = "camelCase")]
#[expect(dead_code, reason = "describes `FeedPage`")]
pub(super) struct FeedPageSchema {
    /// The events after the cursor, each byte for byte as its callback gets it.
    events: Vec<EventSchema>,
    /// Where to go on: send it as `after` in the next request. Null while the tenant has no event.
    #[schema(examples("120-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E"))]
    next: Option<String>,
    /// Whether more can be read at once. `events` may be empty all the same.
    has_more: bool,
}

pub(super) fn event_example() -> Value {
    json!({
        "event": "subscription.renewed",
        "reason": null,
        "platformEvent": "google.subscription.2",
        "eventId": "evt_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
        "externalId": "136969346945",
        "timestamp": "2026-04-10T14:22:10.007Z",
        "tenantId": "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
        "source": "google",
        "environment": "production",
        "subject": EventSubject::example_json(),
        "appUserId": "7e3fb204-2b0d-4d70-a0c2-6d8a3f6c1e55",
        "appUserIdSource": "purchase",
        "sequence": 7,
        "state": PurchaseState::example_json(),
        "stateError": null,
        "data": { "version": "1.0", "packageName": "com.example.app" },
        "raw": { "message": { "messageId": "136969346945" } },
    })
}

pub(super) fn page_example() -> Value {
    json!({
        "events": [event_example()],
        "next": "120-01J9ZQ4T5W6X7Y8Z9A0B1C2D3E",
        "hasMore": false,
    })
}

/// There is no such event, or it is another tenant's; the answer does not reveal which.
pub(super) fn event_not_found() -> Problem {
    Problem::new(
        ErrorCode::NotFound,
        "This tenant has no event of this id; events are deleted at the end of their retention period.",
    )
}

impl From<FeedError> for Problem {
    fn from(error: FeedError) -> Self {
        match error {
            FeedError::ForeignCursor => {
                Self::invalid_request(&[Issue::new("after", error.to_string())])
            }
            FeedError::TenantWaits => Self::new(
                ErrorCode::RateLimited,
                "Too many requests of this tenant wait for events. Let one request wait and share what it gets.",
            )
            .with_retry_after(std::time::Duration::from_secs(1)),
            FeedError::ProcessWaits => Self::new(
                ErrorCode::Unavailable,
                "Too many requests wait for events. Ask without `wait`, or after Retry-After.",
            )
            .with_retry_after(std::time::Duration::from_secs(1))
            .with_cause(error)
            .with_cause_class("event_feed_full"),
            FeedError::Body(error) => error.into(),
        }
    }
}

impl From<EventBodyError> for Problem {
    fn from(error: EventBodyError) -> Self {
        match error {
            EventBodyError::Database(error) => error.into(),
            unreadable @ EventBodyError::Unreadable { .. } => Self::internal_error(unreadable),
        }
    }
}

pub(super) fn describe_page_errors() -> Vec<DocumentedError> {
    let issue =
        |path: &str, message: String| Problem::invalid_request(&[Issue::new(path, message)]);
    let mut errors = vec![
        DocumentedError::new(
            "a parameter is malformed",
            issue("limit", "must be a whole number from 1 to 100".to_owned()),
        ),
        DocumentedError::new(
            "the cursor is of another database",
            FeedError::ForeignCursor,
        ),
        DocumentedError::new(
            "this tenant has as many waiting requests as it may",
            FeedError::TenantWaits,
        ),
        DocumentedError::new(
            "this process has as many waiting requests as it may",
            FeedError::ProcessWaits,
        ),
    ];
    errors.extend(describe_auth_errors());
    errors
}

/// The errors of a route on one stored thing, which is not found as `not_found` says.
pub(crate) fn describe_read_errors(malformed: Problem, not_found: Problem) -> Vec<DocumentedError> {
    let mut errors = vec![
        DocumentedError::new("the path or the query is malformed", malformed),
        DocumentedError::new("this tenant has none of this name", not_found),
    ];
    errors.extend(describe_auth_errors());
    errors
}

pub(super) fn malformed_event_id() -> Problem {
    Problem::invalid_request(&[Issue::new("eventId", EventId::malformed().to_string())])
}
