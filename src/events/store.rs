//! The queries on events.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use serde_json::value::RawValue;
use time::OffsetDateTime;

use super::event::{NewEvent, SubjectType};
use super::event_type::EventSource;
use super::purchase_state::PurchaseState;
use super::told_state;
use super::unresolved::FIRST_RETRY_DELAY;
use crate::base::clock::Timestamp;
use crate::base::id::{DeliveryId, EventId, TenantId};
use crate::crypto::token::sha256;
use crate::db::{Database, Error};
use crate::deliveries::endpoint::MAX_CALLBACKS;
use crate::tenants::lane::lane_column;

/// Longer texts are truncated in indexed columns: a B-tree entry of Postgres has room for about 2,700 bytes.
const MAX_KEY_BYTES: usize = 1024;

/// The result of writing an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEvent {
    /// The id of the event; for a repeated notification that of the event that was stored first.
    pub event_id: EventId,
    /// False for a repeated notification.
    pub is_new: bool,
    /// Whether at least one delivery was enqueued. Never for a repeated notification.
    pub enqueued: bool,
}

impl StoredEvent {
    pub(super) fn new(event_id: EventId, enqueued: bool) -> Self {
        Self {
            event_id,
            is_new: true,
            enqueued,
        }
    }

    /// `event_id` is the event that was stored first.
    pub(super) fn repeated(event_id: EventId) -> Self {
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
    /// The database failed. Events that were written together share the error.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(Arc<Error>),
}

impl From<Error> for RecordError {
    fn from(error: Error) -> Self {
        Self::Database(Arc::new(error))
    }
}

/// The columns of an event and its deliveries, as they are written.
#[derive(Clone, Debug)]
pub(super) struct EventRow {
    pub(super) id: EventId,
    /// Of the first delivery. The statement derives those of further callbacks from it.
    pub(super) delivery_id: DeliveryId,
    tenant: TenantId,
    source: EventSource,
    external_id: String,
    event_type: &'static str,
    reason: Option<String>,
    platform_event: String,
    environment: Option<&'static str>,
    key_hash: Option<[u8; 32]>,
    subject_key: Option<String>,
    product_id: Option<String>,
    subject_type: Option<&'static str>,
    app_user_id: Option<String>,
    /// The decoded notification, as JSON.
    decoded_payload: String,
    occurred_at: Option<OffsetDateTime>,
    /// The purchase state, as JSON.
    state: Option<String>,
    state_error: Option<&'static str>,
    /// The encoded body, with a place for `sequence`.
    stored_body: Vec<u8>,
    told: ToldState,
}

/// What is remembered of the state of an event, so that the store is asked when no later message comes.
#[derive(Clone, Debug, Default)]
struct ToldState {
    /// The subject's key, where something must happen to it.
    recheck_key: Option<String>,
    /// `None`: nothing is remembered, and what was remembered before stays.
    hash: Option<[u8; 32]>,
    changes_by: Option<OffsetDateTime>,
}

impl ToldState {
    /// Of subscriptions of Google's only: Apple lists its notifications, and to a one-time product nothing need happen.
    fn new(event: &NewEvent) -> Self {
        let subject = event.subject.as_ref();
        let subject = subject.filter(|it| it.r#type == SubjectType::Subscription);
        let (EventSource::Google, Some(subject), Some(state)) =
            (event.source, subject, &event.state)
        else {
            return Self::default();
        };
        let changes_by = told_state::changes_by(state);
        Self {
            recheck_key: changes_by.map(|_| replace_nul(&subject.key).into_owned()),
            hash: Some(told_state::hash(state)),
            changes_by: changes_by.map(OffsetDateTime::from),
        }
    }
}

/// What makes two notifications the same.
pub(super) type NotificationKey<'a> = (&'a TenantId, EventSource, &'a str);

impl EventRow {
    /// `stored_body` is the encoded body, with a place for `sequence`.
    pub(super) fn new(
        event: &NewEvent,
        id: EventId,
        delivery_id: DeliveryId,
        stored_body: Vec<u8>,
    ) -> Self {
        let text = |text: &str| replace_nul(text).into_owned();
        let subject = event.subject.as_ref();
        Self {
            id,
            delivery_id,
            tenant: event.tenant.clone(),
            source: event.source,
            external_id: text(&event.external_id),
            event_type: event.event_type.as_str(),
            reason: event.reason.as_deref().map(text),
            platform_event: text(&event.platform_event),
            environment: event.environment.map(super::EventEnvironment::as_str),
            key_hash: subject.map(|subject| sha256(subject.key.as_bytes())),
            subject_key: subject.map(|subject| truncate_index_key(&subject.key).into_owned()),
            product_id: subject.and_then(|subject| subject.product_id.as_deref().map(text)),
            subject_type: subject.map(|subject| subject.r#type.as_str()),
            app_user_id: event.app_user_id.as_deref().map(text),
            decoded_payload: to_jsonb_text(event.facts.as_ref().unwrap_or(&event.data))
                .into_owned(),
            occurred_at: event.occurred_at.map(OffsetDateTime::from),
            state: event.state.as_ref().map(state_column),
            state_error: event.state_error.map(super::StateError::as_str),
            stored_body,
            told: ToldState::new(event),
        }
    }

    pub(super) fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    pub(super) fn notification(&self) -> NotificationKey<'_> {
        (&self.tenant, self.source, &self.external_id)
    }

    /// About how many bytes are sent to the database.
    pub(super) fn size(&self) -> usize {
        /// All other columns.
        const OTHERS: usize = 512;
        let state = self.state.as_ref().map_or(0, String::len);
        self.decoded_payload.len() + self.stored_body.len() + state + OTHERS
    }
}

/// What became of an event in the statement that was to write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InsertOutcome {
    /// The tenant is inactive or does not exist.
    TenantInactive,
    /// The notification was stored before. [`confirm_event`] tells which event that is.
    Repeated,
    /// The event is committed; `enqueued`: with at least one delivery.
    Stored { enqueued: bool },
}

impl InsertOutcome {
    fn new(is_active: bool, is_new: bool, enqueued: bool) -> Self {
        match (is_active, is_new) {
            (false, _) => Self::TenantInactive,
            (true, false) => Self::Repeated,
            (true, true) => Self::Stored { enqueued },
        }
    }
}

/// What the statement raises when it has given an event a number in its subject's sequence and then finds the notification
/// stored: another process stored it meanwhile. The number is given back with the rest of the statement.
const NOTIFICATION_REPEATED: &str = "AT001";

/// Writes an event and a delivery for each active callback of its tenant that is sent such events; an event with a subject and without a state is also
/// listed in `unresolved_states`. One statement: all are written or none is, and a client that disconnects cannot leave a
/// transaction open. The same statement checks that the tenant is active: an earlier check may be out of date, and an export
/// of an inactive tenant must contain all of its events.
pub(super) async fn insert_event(
    database: &Database,
    event: &EventRow,
) -> Result<InsertOutcome, Error> {
    loop {
        let row = sqlx::query!(
            r#"
            with tenant as (
                select id from tenants where id = $2 and is_active
            ), subject as (
                -- Locks the subject's row until the commit, so that its events are committed in the order of their numbers.
                insert into subjects as stored
                    (lane, tenant_id, source, key_hash, last_sequence, recheck_key, told_state_hash, changes_by)
                select $24, tenant.id, $3, $19, 1, $21, $22, $23
                from tenant
                where $19::bytea is not null
                  and not exists (
                    select from webhook_events where lane = $24 and tenant_id = $2 and source = $3 and external_id = $4
                  )
                on conflict (lane, tenant_id, source, key_hash) do update set
                    last_sequence = stored.last_sequence + 1,
                    recheck_key = case when excluded.told_state_hash is null then stored.recheck_key else excluded.recheck_key end,
                    told_state_hash = coalesce(excluded.told_state_hash, stored.told_state_hash),
                    changes_by = case when excluded.told_state_hash is null then stored.changes_by else excluded.changes_by end
                returning last_sequence
            ), event as (
                insert into webhook_events
                    (lane, id, tenant_id, source, external_id, event_type, reason, platform_event, environment, subject_key,
                     subject_product_id, subject_type, app_user_id, decoded_payload, occurred_at,
                     sequence, state, state_error, stored_body)
                select $24, $1, tenant.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13::text::jsonb,
                    $14::timestamptz, subject.last_sequence, $16::text::jsonb, $17, $18
                from tenant left join subject on true
                on conflict (lane, tenant_id, source, external_id) where external_id is not null do nothing
                returning id
            ), delivery as (
                -- Where it goes is decided now: a later change of the configuration redirects nothing.
                insert into webhook_deliveries (lane, id, event_id, tenant_id, callback, callback_url)
                select $24, nth_delivery_id($15, row_number() over (order by config.callback) - 1), event.id,
                    config.tenant_id, config.callback, config.callback_url
                from event, webhook_configs as config
                where config.tenant_id = $2 and config.is_active
                    and callback_takes(config.kind, config.events, config.sources, config.environments, $5, $3, $8, $4, $7)
                returning id
            ), unresolved as (
                insert into unresolved_states
                    (lane, event_id, tenant_id, source, key_hash, state_error, next_attempt_at, created_at)
                select $24, event.id, $2, $3, $19, $17, clock.now + make_interval(secs => $20), clock.now
                from event cross join (select attesto_now() as now) clock
                where $19::bytea is not null and $16::text is null and $17::text is not null
            )
            select exists (select from tenant) as "is_active!", exists (select from event) as "is_new!",
                exists (select from delivery) as "enqueued!",
                case when exists (select from subject) and not exists (select from event)
                    then raise_notification_repeated() end as repeated
            "#,
            event.id.as_str(),
            event.tenant.as_str(),
            event.source.as_str(),
            &event.external_id,
            event.event_type,
            event.reason.as_deref(),
            &event.platform_event,
            event.environment,
            event.subject_key.as_deref(),
            event.product_id.as_deref(),
            event.subject_type,
            event.app_user_id.as_deref(),
            &event.decoded_payload,
            event.occurred_at,
            event.delivery_id.as_str(),
            event.state.as_deref(),
            event.state_error,
            &event.stored_body,
            event.key_hash.as_ref().map(<[u8; 32]>::as_slice),
            FIRST_RETRY_DELAY.as_secs_f64(),
            event.told.recheck_key.as_deref(),
            event.told.hash.as_ref().map(<[u8; 32]>::as_slice),
            event.told.changes_by,
            lane_column(&event.tenant),
        )
        .fetch_one(database.pool());
        match database.writes().observe(row).await {
            Ok(row) => return Ok(InsertOutcome::new(row.is_active, row.is_new, row.enqueued)),
            Err(error) if is_repeated(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Writes several events, each as [`insert_event`] does, in one statement: all are written or none is. No notification may be in it
/// twice. The outcomes are in the order of `events`.
///
/// Every lookup is a lateral join with a limit: a probe of an index for each event, and never a join with a whole table, whatever the
/// statistics say. Rows are locked in the order of their keys, all subjects before the first event, so that
/// statements of several processes do not wait for each other in a circle.
#[expect(clippy::too_many_lines, reason = "one statement and its columns")]
pub(super) async fn insert_events(
    database: &Database,
    events: &[EventRow],
) -> Result<Vec<InsertOutcome>, Error> {
    fn column<'a, T>(events: &'a [EventRow], value: impl Fn(&'a EventRow) -> T) -> Vec<T> {
        events.iter().map(value).collect()
    }
    let rows = sqlx::query!(
        r#"
        with input as materialized (
            select event.*, tenant.id is not null as is_active, earlier.id is not null as is_repeated
            from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[],
                    $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::timestamptz[], $15::text[],
                    $16::text[], $17::text[], $18::bytea[], $19::bytea[], $21::text[], $22::bytea[], $23::timestamptz[],
                    $25::int2[])
                with ordinality as event (id, tenant_id, source, external_id, event_type, reason, platform_event, environment,
                    subject_key, subject_product_id, subject_type, app_user_id, decoded_payload, occurred_at, delivery_id,
                    state, state_error, stored_body, key_hash, recheck_key, told_state_hash, changes_by, lane, place)
            left join lateral (
                select tenants.id from tenants where tenants.id = event.tenant_id and tenants.is_active limit 1
            ) tenant on true
            left join lateral (
                select stored.id from webhook_events stored
                where stored.lane = event.lane and stored.tenant_id = event.tenant_id and stored.source = event.source
                    and stored.external_id = event.external_id
                limit 1
            ) earlier on true
        ), fresh as materialized (
            select input.*,
                row_number() over subject as nth,
                count(*) over (partition by tenant_id, source, key_hash) as of_subject,
                first_value(recheck_key) over told as last_recheck_key,
                first_value(told_state_hash) over told as last_told_state_hash,
                first_value(changes_by) over told as last_changes_by
            from input
            where is_active and not is_repeated
            window subject as (partition by tenant_id, source, key_hash order by place),
                -- The last event that tells a state comes first.
                told as (partition by tenant_id, source, key_hash order by told_state_hash is null, place desc)
        ), subject as (
            -- Locks the subjects' rows until the commit, so that their events are committed in the order of their numbers.
            insert into subjects as stored
                (lane, tenant_id, source, key_hash, last_sequence, recheck_key, told_state_hash, changes_by)
            select lane, tenant_id, source, key_hash, of_subject, last_recheck_key, last_told_state_hash, last_changes_by
            from fresh
            where key_hash is not null and nth = 1
            order by tenant_id, source, key_hash
            on conflict (lane, tenant_id, source, key_hash) do update set
                last_sequence = stored.last_sequence + excluded.last_sequence,
                recheck_key = case when excluded.told_state_hash is null then stored.recheck_key else excluded.recheck_key end,
                told_state_hash = coalesce(excluded.told_state_hash, stored.told_state_hash),
                changes_by = case when excluded.told_state_hash is null then stored.changes_by else excluded.changes_by end
            returning tenant_id, source, key_hash, last_sequence
        ), event as (
            insert into webhook_events
                (lane, id, tenant_id, source, external_id, event_type, reason, platform_event, environment, subject_key,
                 subject_product_id, subject_type, app_user_id, decoded_payload, occurred_at,
                 sequence, state, state_error, stored_body)
            select fresh.lane, fresh.id, fresh.tenant_id, fresh.source, fresh.external_id, fresh.event_type, fresh.reason,
                fresh.platform_event, fresh.environment, fresh.subject_key, fresh.subject_product_id, fresh.subject_type,
                fresh.app_user_id, fresh.decoded_payload::jsonb, fresh.occurred_at,
                subject.last_sequence - fresh.of_subject + fresh.nth, fresh.state::jsonb, fresh.state_error,
                fresh.stored_body
            from fresh
            left join subject on subject.tenant_id = fresh.tenant_id and subject.source = fresh.source
                and subject.key_hash = fresh.key_hash
            -- Always true, once all subjects are written.
            where (select count(*) from subject) >= 0
            order by fresh.tenant_id, fresh.source, fresh.external_id
            on conflict (lane, tenant_id, source, external_id) where external_id is not null do nothing
            returning id
        ), delivery as (
            -- Where it goes is decided now: a later change of the configuration redirects nothing.
            insert into webhook_deliveries (lane, id, event_id, tenant_id, callback, callback_url)
            select fresh.lane, nth_delivery_id(fresh.delivery_id, config.nth), event.id, fresh.tenant_id, config.callback,
                config.callback_url
            from event
            join fresh on fresh.id = event.id
            cross join lateral (
                select callback, callback_url, row_number() over (order by callback) - 1 as nth
                from webhook_configs
                where webhook_configs.tenant_id = fresh.tenant_id and webhook_configs.is_active
                    and callback_takes(kind, events, sources, environments, fresh.event_type, fresh.source,
                        fresh.environment, fresh.external_id, fresh.platform_event)
                limit $24
            ) config
            order by fresh.place, config.nth
            returning event_id
        ), unresolved as (
            insert into unresolved_states
                (lane, event_id, tenant_id, source, key_hash, state_error, next_attempt_at, created_at)
            select fresh.lane, event.id, fresh.tenant_id, fresh.source, fresh.key_hash, fresh.state_error,
                clock.now + make_interval(secs => $20), clock.now
            from event
            join fresh on fresh.id = event.id
            cross join (select attesto_now() as now) clock
            where fresh.key_hash is not null and fresh.state is null and fresh.state_error is not null
        )
        select input.is_active as "is_active!", event.id is not null as "is_new!",
            input.id in (select event_id from delivery) as "enqueued!",
            case when input.is_active and not input.is_repeated and event.id is null and input.key_hash is not null
                then raise_notification_repeated() end as repeated
        from input
        left join event on event.id = input.id
        order by input.place
        "#,
        &column(events, |event| event.id.as_str()) as &[&str],
        &column(events, |event| event.tenant.as_str()) as &[&str],
        &column(events, |event| event.source.as_str()) as &[&str],
        &column(events, |event| event.external_id.as_str()) as &[&str],
        &column(events, |event| event.event_type) as &[&str],
        &column(events, |event| event.reason.as_deref()) as &[Option<&str>],
        &column(events, |event| event.platform_event.as_str()) as &[&str],
        &column(events, |event| event.environment) as &[Option<&str>],
        &column(events, |event| event.subject_key.as_deref()) as &[Option<&str>],
        &column(events, |event| event.product_id.as_deref()) as &[Option<&str>],
        &column(events, |event| event.subject_type) as &[Option<&str>],
        &column(events, |event| event.app_user_id.as_deref()) as &[Option<&str>],
        &column(events, |event| event.decoded_payload.as_str()) as &[&str],
        &column(events, |event| event.occurred_at) as &[Option<OffsetDateTime>],
        &column(events, |event| event.delivery_id.as_str()) as &[&str],
        &column(events, |event| event.state.as_deref()) as &[Option<&str>],
        &column(events, |event| event.state_error) as &[Option<&str>],
        &column(events, |event| event.stored_body.as_slice()) as &[&[u8]],
        &column(events, |event| event.key_hash.as_ref().map(<[u8; 32]>::as_slice))
            as &[Option<&[u8]>],
        FIRST_RETRY_DELAY.as_secs_f64(),
        &column(events, |event| event.told.recheck_key.as_deref()) as &[Option<&str>],
        &column(events, |event| event.told.hash.as_ref().map(<[u8; 32]>::as_slice))
            as &[Option<&[u8]>],
        &column(events, |event| event.told.changes_by) as &[Option<OffsetDateTime>],
        MAX_CALLBACKS,
        &column(events, |event| lane_column(&event.tenant)),
    )
    .fetch_all(database.pool());
    let rows = database.writes().observe(rows).await?;
    let outcomes = rows
        .into_iter()
        .map(|row| InsertOutcome::new(row.is_active, row.is_new, row.enqueued));
    Ok(outcomes.collect())
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
pub(super) async fn confirm_event(
    database: &Database,
    event: &NewEvent,
) -> Result<Option<EventId>, Error> {
    let confirm = sqlx::query_scalar!(
        r#"
        select id as "id: EventId" from webhook_events
        where lane = $4 and tenant_id = $1 and source = $2 and external_id = $3
        for key share
        "#,
        event.tenant.as_str(),
        event.source.as_str(),
        &replace_nul(&event.external_id),
        lane_column(&event.tenant),
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
        r#"
        select id as "id: EventId" from webhook_events
        where lane = $4 and tenant_id = $1 and source = $2 and external_id = $3
        "#,
        tenant.as_str(),
        source.as_str(),
        external_id,
        lane_column(tenant),
    )
    .fetch_optional(database.pool())
    .await
}

/// Which of these notifications are stored, by the store's ids.
pub(crate) async fn find_stored_ids(
    database: &Database,
    tenant: &TenantId,
    source: EventSource,
    external_ids: &[String],
) -> Result<HashSet<String>, Error> {
    let external_ids: Vec<String> = external_ids
        .iter()
        .map(|id| replace_nul(id).into_owned())
        .collect();
    let ids = sqlx::query_scalar!(
        "select external_id from webhook_events \
          where lane = $4 and tenant_id = $1 and source = $2 and external_id = any($3)",
        tenant.as_str(),
        source.as_str(),
        &external_ids,
        lane_column(tenant),
    );
    Ok(ids.fetch_all(database.pool()).await?.into_iter().collect())
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

/// From when on all received events are kept: after what was pruned, by any process and with any retention period, and after what a
/// job with this retention period may be pruning now. `None`: none is pruned.
pub(crate) async fn events_kept_since(
    database: &Database,
    retention: Option<Duration>,
    now: Timestamp,
) -> Result<Option<Timestamp>, Error> {
    let pruned_before = sqlx::query_scalar!("select received_before from pruned_events")
        .fetch_optional(database.pool())
        .await?;
    let expired_before = retention.map(|kept| now.minus(kept));
    Ok(pruned_before.map(Timestamp::from).max(expired_before))
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
