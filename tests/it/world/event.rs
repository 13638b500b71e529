//! A sample event for tests that need any event.

use attesto::base::id::TenantId;
use attesto::events::{EventSource, EventType, NewEvent};
use serde_json::value::RawValue;

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
        raw: raw(),
    }
}
