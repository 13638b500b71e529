//! The SQL. All statements only read; lists are sorted newest first and have a limit.

use serde::Serialize;
use serde_json::Value;

use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use crate::base::lane::LaneSet;
use crate::db::{Database, Error};
use crate::deliveries::health::{EndpointHealth, EndpointState};
use crate::deliveries::redelivery::EventStatus;
use crate::tenants::lane::lane_column;

/// An event, without its payloads.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventRow {
    /// The event's id, `evt_…`.
    pub id: EventId,
    /// The event's type, the same for both stores: see [`EventType`](crate::events::EventType).
    pub event: String,
    /// A more precise reason, if the type has one.
    pub reason: Option<String>,
    /// The store's name of the notification's type.
    pub platform_event: String,
    /// The store: `apple` or `google`.
    pub source: String,
    /// The store's id of the notification.
    pub external_id: String,
    /// `production` or `sandbox`, if the store names the environment.
    pub environment: Option<String>,
    /// The key of the subscription or purchase that the event is about.
    pub subject: Option<String>,
    /// The event's number among those of that subject.
    pub sequence: Option<i64>,
    /// What the purchase was worth when the event was stored: a `PurchaseState` of `events`, as it was sent.
    pub state: Option<Value>,
    /// Why the state was not known.
    pub state_error: Option<String>,
    /// The app's id of the user, if the app passed one to the store.
    pub app_user_id: Option<String>,
    /// When the event happened, according to the store.
    pub occurred_at: Option<Timestamp>,
    /// When Attesto received it.
    pub received_at: Timestamp,
    /// The event's [`EventStatus`]. `None`: it has no deliveries, because there was no active callback when it was
    /// received.
    pub status: Option<String>,
}

/// The delivery of one event to one callback.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeliveryRow {
    /// The delivery's id, `del_…`.
    pub id: DeliveryId,
    /// The event that is delivered.
    pub event_id: EventId,
    /// The name of the event.
    pub event: String,
    /// The number of the callback among those of the tenant.
    pub callback: CallbackNumber,
    /// The callback's URL when the delivery was enqueued.
    pub callback_url: String,
    /// The status: `pending`, `delivered` or `failed`.
    pub status: String,
    /// The number of attempts that were counted.
    pub attempt_count: i32,
    /// When the next attempt is due. `None` if none is planned.
    pub next_attempt_at: Option<Timestamp>,
    /// When the last attempt ended.
    pub last_attempt_at: Option<Timestamp>,
    /// How the last attempt ended: see [`OutcomeClass`](crate::deliveries::OutcomeClass).
    pub last_outcome: Option<String>,
    /// Why the last attempt failed, in one sentence. Not for tenants: it may name an address of the operator's network.
    pub last_error: Option<String>,
    /// The HTTP status of the last answer.
    pub last_response_code: Option<i32>,
    /// The first kilobyte of the body of the last answer.
    pub last_response_body: Option<String>,
    /// When the event was delivered.
    pub delivered_at: Option<Timestamp>,
    /// When the delivery failed permanently.
    pub failed_at: Option<Timestamp>,
    /// When it was parked for an operator, because its lease expired several times in a row.
    pub parked_at: Option<Timestamp>,
    /// Who requested this redelivery. `None`: it was enqueued with its event.
    pub requested_by: Option<String>,
    /// The reason that was given for the redelivery.
    pub request_reason: Option<String>,
    /// When it was enqueued.
    pub created_at: Timestamp,
}

/// The health of a callback, and how many deliveries wait for it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CallbackRow {
    /// `active`, `throttled`, `open` or `paused`.
    pub state: &'static str,
    /// How many requests may be in flight at once.
    pub allowed: u8,
    /// Failures since the last success.
    pub failures: u32,
    /// When the first of these failures was.
    pub failing_since: Option<Timestamp>,
    /// When the last success was, exact to the minute while the callback is healthy.
    pub last_success_at: Option<Timestamp>,
    /// When the last failure was.
    pub last_failure_at: Option<Timestamp>,
    /// While the callback is closed: nothing is sent before this time.
    pub closed_until: Option<Timestamp>,
    /// Pending deliveries, including those to URLs that it had before.
    pub pending: i64,
    /// How many of the pending deliveries are parked.
    pub parked: i64,
    /// When the oldest pending delivery was enqueued.
    pub oldest_pending_at: Option<Timestamp>,
    /// Of the last attempt that failed, among the deliveries that are not delivered: why, in one sentence.
    pub last_error: Option<String>,
}

/// The events of a tenant; if `status` is given, only those with this status. If `callback` is given, the status is that of the
/// deliveries to this callback, and only events that have one are listed.
pub async fn list_events(
    database: &Database,
    tenant: &TenantId,
    status: Option<EventStatus>,
    callback: Option<CallbackNumber>,
    limit: u32,
) -> Result<Vec<EventRow>, Error> {
    let rows = sqlx::query!(
        r#"
        select event.id as "id!: EventId", event.event_type as "event_type!", event.reason,
               event.platform_event as "platform_event!", event.source as "source!",
               event.external_id as "external_id!", event.environment, event.subject_key, event.sequence,
               event.state::text as state, event.state_error, event.app_user_id, event.occurred_at,
               event.received_at as "received_at!", standing.status
          from (
               select * from webhook_events
                where lane = $5 and tenant_id = $1 and received_at > '-infinity' and ($2::text is null or $2 = 'delivered')
               union all
               -- Few, and found by an index. Apart, because beside an `or` every event of the tenant is looked at first.
               select * from webhook_events
                where lane = $5 and tenant_id = $1 and $2 in ('pending', 'failed') and id = any(array(
                      select unfinished.event_id
                        from webhook_deliveries unfinished
                       where unfinished.lane = $5 and unfinished.tenant_id = $1 and unfinished.status <> 'delivered' and unfinished.status = $2
                ))
          ) event
         cross join lateral (
               select case
                          when bool_or(at_callback.status = 'pending') then 'pending'
                          when bool_or(at_callback.status = 'failed') then 'failed'
                          when bool_or(at_callback.status = 'delivered') then 'delivered'
                      end as status
                 from (
                      select case
                                 when bool_or(delivery.status = 'delivered') then 'delivered'
                                 when bool_or(delivery.status = 'pending') then 'pending'
                                 else 'failed'
                             end as status
                        from webhook_deliveries delivery
                       where delivery.lane = $5 and delivery.event_id = event.id and ($4::int2 is null or delivery.callback = $4)
                       group by delivery.callback
                 ) at_callback
          ) standing
         where ($2::text is null or standing.status = $2) and ($4::int2 is null or standing.status is not null)
         order by event.received_at desc, event.id desc
         limit $3
        "#,
        tenant.as_str(),
        status.map(EventStatus::as_str),
        i64::from(limit),
        callback.map(CallbackNumber::column),
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await?;
    let rows = rows.into_iter().map(|row| EventRow {
        id: row.id,
        event: row.event_type,
        reason: row.reason,
        platform_event: row.platform_event,
        source: row.source,
        external_id: row.external_id,
        environment: row.environment,
        subject: row.subject_key,
        sequence: row.sequence,
        state: row.state.and_then(|json| serde_json::from_str(&json).ok()),
        state_error: row.state_error,
        app_user_id: row.app_user_id,
        occurred_at: row.occurred_at.map(Timestamp::from),
        received_at: row.received_at.into(),
        status: row.status,
    });
    Ok(rows.collect())
}

/// The deliveries of a tenant; if `status`, `callback` or `ids` are given, only those with this status, to this callback, or with
/// one of these ids.
pub async fn list_deliveries(
    database: &Database,
    tenant: &TenantId,
    status: Option<EventStatus>,
    callback: Option<CallbackNumber>,
    ids: Option<&[DeliveryId]>,
    limit: u32,
) -> Result<Vec<DeliveryRow>, Error> {
    let ids: Option<Vec<String>> =
        ids.map(|ids| ids.iter().map(|id| id.as_str().to_owned()).collect());
    sqlx::query_as!(
        DeliveryRow,
        r#"
        select delivery.id as "id: DeliveryId", delivery.event_id as "event_id: EventId", event.event_type as event,
               delivery.callback as "callback: CallbackNumber", delivery.callback_url, delivery.status,
               delivery.attempt_count,
               -- The column keeps its value when no further attempt is planned.
               case when delivery.status = 'pending' and delivery.parked_at is null
                    then delivery.next_attempt_at
               end as "next_attempt_at: Timestamp",
               delivery.last_attempt_at as "last_attempt_at: Timestamp", delivery.last_outcome, delivery.last_error,
               delivery.last_response_code, delivery.last_response_body,
               delivery.delivered_at as "delivered_at: Timestamp", delivery.failed_at as "failed_at: Timestamp",
               delivery.parked_at as "parked_at: Timestamp", delivery.requested_by, delivery.request_reason,
               delivery.created_at as "created_at: Timestamp"
          from webhook_deliveries delivery
          join webhook_events event on event.lane = $6 and event.id = delivery.event_id
         where delivery.lane = $6 and delivery.tenant_id = $1 and ($2::text is null or delivery.status = $2)
           and ($2::text is null or $2 = 'delivered' or delivery.status <> 'delivered') -- an index has just those
           and ($3::text[] is null or delivery.id = any($3))
           and ($5::int2 is null or delivery.callback = $5)
         order by delivery.created_at desc, delivery.id desc
         limit $4
        "#,
        tenant.as_str(),
        status.map(EventStatus::as_str),
        ids.as_deref(),
        i64::from(limit),
        callback.map(CallbackNumber::column),
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await
}

/// The health of a callback at its present URL. `None`: the tenant has no such callback.
pub async fn load_callback(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<Option<CallbackRow>, Error> {
    let row = sqlx::query!(
        r#"
        select health.state as "state?", health.allowed as "allowed?", health.failures as "failures?",
               health.failing_since, health.last_success_at, health.last_failure_at, health.closed_until,
               waiting.pending as "pending!", waiting.parked as "parked!", waiting.oldest,
               failed.last_error as "last_error?"
          from webhook_configs config
          left join webhook_health health
                 on health.lane = $3 and health.tenant_id = config.tenant_id and health.callback = config.callback
                and health.callback_key = hashtextextended(config.callback_url, 0)
         cross join lateral (
               select count(*) as pending, count(delivery.parked_at) as parked, min(delivery.created_at) as oldest
                 from webhook_deliveries delivery
                where delivery.lane = $3 and delivery.tenant_id = config.tenant_id and delivery.callback = config.callback
                  and delivery.status = 'pending' and delivery.status <> 'delivered'
          ) waiting
          left join lateral (
               select delivery.last_error
                 from webhook_deliveries delivery
                where delivery.lane = $3 and delivery.tenant_id = config.tenant_id and delivery.callback = config.callback
                  and delivery.status <> 'delivered' and delivery.callback_url = config.callback_url and delivery.last_error is not null
                order by delivery.last_attempt_at desc nulls last
                limit 1
          ) failed on true
         where config.tenant_id = $1 and config.callback = $2
        "#,
        tenant.as_str(),
        callback.column(),
        lane_column(tenant),
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(|row| CallbackRow {
        state: row
            .state
            .as_deref()
            .map_or(EndpointHealth::default().state, EndpointState::from_column)
            .as_str(),
        allowed: row
            .allowed
            .and_then(|allowed| u8::try_from(allowed).ok())
            .unwrap_or(EndpointHealth::default().allowed),
        failures: row
            .failures
            .and_then(|failures| u32::try_from(failures).ok())
            .unwrap_or(0),
        failing_since: row.failing_since.map(Timestamp::from),
        last_success_at: row.last_success_at.map(Timestamp::from),
        last_failure_at: row.last_failure_at.map(Timestamp::from),
        closed_until: row.closed_until.map(Timestamp::from),
        pending: row.pending,
        parked: row.parked,
        oldest_pending_at: row.oldest.map(Timestamp::from),
        last_error: row.last_error,
    }))
}

/// The tenant that owns an event, for operators, who name an event without its tenant. `None`: there is no such event.
pub async fn find_event_tenant(
    database: &Database,
    event: &EventId,
) -> Result<Option<TenantId>, Error> {
    sqlx::query_scalar!(
        r#"select tenant_id as "tenant_id: TenantId" from webhook_events where lane = any($2) and id = $1"#,
        event.as_str(),
        &LaneSet::ALL.columns(),
    )
    .fetch_optional(database.pool())
    .await
}

/// Whether the tenant has this event.
pub(crate) async fn has_event(
    database: &Database,
    tenant: &TenantId,
    event: &EventId,
) -> Result<bool, Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select from webhook_events where lane = $3 and id = $2 and tenant_id = $1
        ) as "is_there!"
        "#,
        tenant.as_str(),
        event.as_str(),
        lane_column(tenant),
    )
    .fetch_one(database.pool())
    .await
}
