//! The queries on events.

use std::borrow::Cow;

use serde_json::Value;
use serde_json::value::RawValue;

use super::event::NewEvent;
use super::event_type::EventSource;
use super::purchase_state::PurchaseState;
use super::unresolved::FIRST_RETRY_DELAY;
use crate::base::id::{DeliveryId, EventId, TenantId};
use crate::crypto::token::sha256;
use crate::db::{Database, Error};

/// Longer texts are truncated in indexed columns: a B-tree entry of Postgres has room for about 2,700 bytes.
const MAX_KEY_BYTES: usize = 1024;

/// The result of writing an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// The id of the event; for a repeated notification that of the event that was stored first.
    pub event_id: EventId,
    /// False for a repeated notification.
    pub is_new: bool,
    /// Whether a delivery was enqueued. Never for a repeated notification.
    pub enqueued: bool,
}

impl StoredEvent {
    fn new(event_id: EventId, enqueued: bool) -> Self {
        Self {
            event_id,
            is_new: true,
            enqueued,
        }
    }

    /// `event_id` is the event that was stored first.
    fn repeated(event_id: EventId) -> Self {
        Self {
            event_id,
            is_new: false,
            enqueued: false,
        }
    }
}

/// Why an event was not written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The tenant is inactive or does not exist.
    #[error("the tenant is not active")]
    InactiveTenant,
    /// The database failed.
    #[error(transparent)]
    Database(#[from] Error),
}

/// What the statement raises when it has given an event a number in its subject's sequence and then finds the notification
/// stored: another process stored it meanwhile. The number is given back with the rest of the statement.
const NOTIFICATION_REPEATED: &str = "AT001";

/// Writes an event and, if its tenant has an active callback, a delivery; an event with a subject and without a state is also
/// listed in `unresolved_states`. One statement: all are written or none is, and a client that disconnects cannot leave a
/// transaction open. The same statement checks that the tenant is active: an earlier check may be out of date, and an export
/// of an inactive tenant must contain all of its events. `body` is the encoded body, with a place for `sequence`.
pub(super) async fn insert_event(
    database: &Database,
    event: &NewEvent,
    id: &EventId,
    delivery: &DeliveryId,
    body: &[u8],
) -> Result<StoredEvent, RecordError> {
    let external_id = replace_nul(&event.external_id);
    let reason = event.reason.as_deref().map(replace_nul);
    let platform_event = replace_nul(&event.platform_event);
    let subject = event.subject.as_ref();
    let key_hash = subject.map(|subject| sha256(subject.key.as_bytes()));
    let subject_key = subject.map(|subject| truncate_index_key(&subject.key));
    let product_id = subject.and_then(|subject| subject.product_id.as_deref().map(replace_nul));
    let app_user_id = event.app_user_id.as_deref().map(replace_nul);
    let state = event.state.as_ref().map(state_column);
    loop {
        let row = sqlx::query!(
            r#"
            with tenant as (
                select id from tenants where id = $2 and is_active
            ), subject as (
                -- Locks the subject's row until the commit, so that its events are committed in the order of their numbers.
                insert into subjects (tenant_id, source, key_hash, last_sequence)
                select tenant.id, $3, $19, 1
                from tenant
                where $19::bytea is not null
                  and not exists (select from webhook_events where tenant_id = $2 and source = $3 and external_id = $4)
                on conflict (tenant_id, source, key_hash) do update set last_sequence = subjects.last_sequence + 1
                returning last_sequence
            ), event as (
                insert into webhook_events
                    (id, tenant_id, source, external_id, event_type, reason, platform_event, environment, subject_key,
                     subject_product_id, subject_type, app_user_id, decoded_payload, occurred_at,
                     sequence, state, state_error, stored_body)
                select $1, tenant.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::text::jsonb,
                    $14::timestamptz, subject.last_sequence, $16::text::jsonb, $17, $18
                from tenant left join subject on true
                on conflict (tenant_id, source, external_id) do nothing
                returning id
            ), delivery as (
                -- Where it goes is decided now: a later change of the configuration redirects nothing.
                insert into webhook_deliveries (id, event_id, tenant_id, callback_url)
                select $15, event.id, config.tenant_id, config.callback_url
                from event, webhook_configs as config
                where config.tenant_id = $2 and config.is_active
                returning id
            ), unresolved as (
                insert into unresolved_states
                    (event_id, tenant_id, source, key_hash, state_error, next_attempt_at, created_at)
                select event.id, $2, $3, $19, $17, clock.now + make_interval(secs => $20), clock.now
                from event cross join (select attesto_now() as now) clock
                where $19::bytea is not null and $16::text is null and $17::text is not null
            )
            select exists (select from tenant) as "is_active!", exists (select from event) as "is_new!",
                exists (select from delivery) as "enqueued!",
                case when exists (select from subject) and not exists (select from event)
                    then raise_notification_repeated() end as repeated
            "#,
            id.as_str(),
            event.tenant.as_str(),
            event.source.as_str(),
            &external_id,
            event.event_type.as_str(),
            reason.as_deref(),
            &platform_event,
            event.environment.map(super::EventEnvironment::as_str),
            subject_key.as_deref(),
            product_id.as_deref(),
            subject.map(|subject| subject.r#type.as_str()),
            app_user_id.as_deref(),
            &to_jsonb_text(event.facts.as_ref().unwrap_or(&event.data)),
            event.occurred_at.map(time::OffsetDateTime::from),
            delivery.as_str(),
            state.as_deref(),
            event.state_error.map(super::StateError::as_str),
            body,
            key_hash.as_ref().map(<[u8; 32]>::as_slice),
            FIRST_RETRY_DELAY.as_secs_f64(),
        )
        .fetch_one(database.pool());
        let row = match database.writes().observe(row).await {
            Ok(row) => row,
            Err(error) if is_repeated(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        if !row.is_active {
            return Err(RecordError::InactiveTenant);
        }
        if row.is_new {
            return Ok(StoredEvent::new(id.clone(), row.enqueued));
        }
        // A second statement: the first cannot see a row that was committed while it waited for that row.
        let earlier = confirm_event(database, &event.tenant, event.source, &external_id).await?;
        if let Some(event_id) = earlier {
            return Ok(StoredEvent::repeated(event_id));
        }
        // The earlier event was pruned between the two statements: try again.
    }
}

fn state_column(state: &PurchaseState) -> String {
    let state = serde_json::value::to_raw_value(state).expect("strings, numbers and dates");
    to_jsonb_text(&state).into_owned()
}

fn is_repeated(error: &Error) -> bool {
    let code = error
        .as_database_error()
        .and_then(sqlx::error::DatabaseError::code);
    code.as_deref() == Some(NOTIFICATION_REPEATED)
}

/// The event of a repeated notification, as durable as if it were written now.
///
/// That the row is visible does not say that a failover keeps it: when a primary restarts while its synchronous standby is away, what
/// was waiting for the standby becomes visible without it. The answer to the repeat would end the store's attempts, and the
/// standby that takes over knows nothing of the event. A lock of the row is a write of a few bytes, whose commit waits for the
/// standby like that of the event, and by then the standby has everything before it too.
async fn confirm_event(
    database: &Database,
    tenant: &TenantId,
    source: EventSource,
    external_id: &str,
) -> Result<Option<EventId>, Error> {
    let confirm = sqlx::query_scalar!(
        r#"
        select id as "id: EventId" from webhook_events
        where tenant_id = $1 and source = $2 and external_id = $3
        for key share
        "#,
        tenant.as_str(),
        source.as_str(),
        external_id,
    );
    let confirm = confirm.fetch_optional(database.pool());
    database.writes().observe(confirm).await
}

/// The event of a notification, by the store's id of the notification.
pub async fn find_event(
    database: &Database,
    tenant: &TenantId,
    source: EventSource,
    external_id: &str,
) -> Result<Option<EventId>, Error> {
    sqlx::query_scalar!(
        r#"select id as "id: EventId" from webhook_events where tenant_id = $1 and source = $2 and external_id = $3"#,
        tenant.as_str(),
        source.as_str(),
        external_id,
    )
    .fetch_optional(database.pool())
    .await
}

/// Postgres cannot store NUL in text, and an event must not be lost because of one.
fn replace_nul(text: &str) -> Cow<'_, str> {
    if text.contains('\0') {
        text.replace('\0', "\u{fffd}").into()
    } else {
        text.into()
    }
}

/// For an indexed column: see [`MAX_KEY_BYTES`].
pub(super) fn truncate_index_key(text: &str) -> Cow<'_, str> {
    replace_nul(&text[..text.floor_char_boundary(MAX_KEY_BYTES)])
}

/// For a `jsonb` column: unchanged, except that NUL in strings is replaced.
fn to_jsonb_text(json: &RawValue) -> Cow<'_, str> {
    fn clean(value: Value) -> Value {
        match value {
            Value::String(text) => replace_nul(&text).into_owned().into(),
            Value::Array(items) => items.into_iter().map(clean).collect(),
            Value::Object(fields) => fields
                .into_iter()
                .map(|(name, value)| (replace_nul(&name).into_owned(), clean(value)))
                .collect(),
            other => other,
        }
    }
    let text = json.get();
    if !text.contains("\\u0000") {
        return text.into();
    }
    match serde_json::from_str(text) {
        Ok(value) => clean(value).to_string().into(),
        Err(_) => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgres_does_not_take_is_replaced() {
        assert_eq!(replace_nul("a\0b"), "a\u{fffd}b");
        assert_eq!(replace_nul("ab"), "ab");
        assert_eq!(truncate_index_key(&"x".repeat(5000)).len(), MAX_KEY_BYTES);
        assert_eq!(truncate_index_key(&"é".repeat(5000)).len(), MAX_KEY_BYTES);
        assert_eq!(
            truncate_index_key(&format!("x{}", "é".repeat(5000))).len(),
            MAX_KEY_BYTES - 1
        );
        let json = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        let plain = json(r#"{ "b":1.0, "a":[] }"#);
        assert_eq!(to_jsonb_text(&plain), plain.get(), "as it is");
        let bad = json(r#"{"a\u0000":["\u0000x",{"b":"\\u0000"}]}"#);
        let read: Value = serde_json::from_str(&to_jsonb_text(&bad)).expect("JSON");
        assert_eq!(
            read,
            serde_json::json!({ "a\u{fffd}": ["\u{fffd}x", { "b": "\\u0000" }] })
        );
    }
}
