//! A sample event for tests that need any event.

use attesto::base::id::TenantId;
use attesto::db::Database;
use attesto::deliveries::body::load_event_body;
use attesto::deliveries::history::store::find_event_tenant;
use attesto::events::{EventSource, EventType, NewEvent};
use serde_json::value::RawValue;

/// What the callback is sent of an event.
pub(crate) async fn event_body(database: &Database, id: &str) -> String {
    let event = id.parse().unwrap();
    let tenant = find_event_tenant(database, &event).await.unwrap().unwrap();
    let body = load_event_body(database, &tenant, &event).await;
    body.unwrap().unwrap()
}

/// A test notification from Google.
pub(crate) fn test_event(tenant: &TenantId, external_id: &str) -> NewEvent {
    let raw = || RawValue::from_string("{}".into()).unwrap();
    NewEvent {
        tenant: tenant.clone(),
        source: EventSource::Google,
        external_id: external_id.to_owned(),
        event_type: EventType::Test,
        reason: None,
        platform_event: "google.test".into(),
        occurred_at: None,
        environment: None,
        subject: None,
        app_user_id: None,
        app_user_id_source: None,
        state: None,
        state_error: None,
        data: raw(),
        facts: None,
        raw: raw(),
        shared_content: None,
        answer_by: None,
        is_recovered: false,
    }
}
