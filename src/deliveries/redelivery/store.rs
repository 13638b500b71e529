//! The queries on redeliveries. For the clock see [`crate::deliveries::store`].

use super::request::{EventStatus, RedeliveryError, RedeliveryFilter, RedeliveryRequest};
use crate::base::clock::Timestamp;
use crate::base::id::{DeliveryId, EventId, RedeliveryId, TenantId};
use crate::db::{Database, Error};

/// How often a request whose tenant has no active callback is looked at again.
const CALLBACK_CHECK_INTERVAL_SECONDS: f64 = 10.0;

/// For each request.
pub const REDELIVERIES_PER_SECOND: u32 = 100;
pub(super) const REDELIVERY_BATCH_SIZE: usize = 20;
/// For one transaction, when most events do not match the filter.
const MAX_SCANNED_EVENTS: i64 = 1000;

/// What a filter matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RedeliveryPreview {
    /// The number of events.
    pub count: u64,
    /// When the oldest of them was received.
    pub oldest: Option<Timestamp>,
}

/// What one batch did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RedeliveryBatch {
    /// How many deliveries were enqueued.
    pub enqueued: usize,
    /// Whether the batch of a request was due.
    pub had_request: bool,
    /// Whose request it was.
    pub tenant: Option<TenantId>,
}

impl RedeliveryBatch {
    fn new(tenant: TenantId, enqueued: i32) -> Self {
        Self {
            enqueued: usize::try_from(enqueued).unwrap_or(0),
            had_request: true,
            tenant: Some(tenant),
        }
    }
}

pub(super) async fn enqueue_event(
    database: &Database,
    event: &EventId,
    id: &DeliveryId,
    request: &RedeliveryRequest,
) -> Result<(), RedeliveryError> {
    let enqueued = sqlx::query!(
        "
        insert into webhook_deliveries (id, event_id, tenant_id, callback_url, requested_by, request_reason)
        select $2, event.id, event.tenant_id, config.callback_url, $3, $4
        from webhook_events event
        join webhook_configs config on config.tenant_id = event.tenant_id and config.is_active
        where event.id = $1
        ",
        event.as_str(),
        id.as_str(),
        &request.requested_by,
        request.reason.as_deref(),
    )
    .execute(database.pool())
    .await?;
    if enqueued.rows_affected() == 1 {
        return Ok(());
    }
    let tenant = sqlx::query_scalar!(
        r#"select tenant_id as "tenant_id: TenantId" from webhook_events where id = $1"#,
        event.as_str()
    )
    .fetch_optional(database.pool())
    .await?;
    Err(match tenant {
        Some(tenant) => RedeliveryError::NoActiveCallback(tenant),
        None => RedeliveryError::EventNotFound(event.clone()),
    })
}

pub(super) async fn preview_matching(
    database: &Database,
    filter: &RedeliveryFilter,
) -> Result<RedeliveryPreview, Error> {
    let row = sqlx::query!(
        r#"
        select count(*) as "count!", min(event.received_at) as oldest
        from webhook_events event
        cross join lateral (
            select case
                when bool_or(delivery.status = 'delivered') then 'delivered'
                when bool_or(delivery.status = 'pending') then 'pending'
                when bool_or(delivery.status = 'failed') then 'failed'
            end as status
            from webhook_deliveries delivery
            where delivery.event_id = event.id
        ) standing
        where event.tenant_id = $1
            and ($2::text is null or standing.status = $2)
            and ($2::text is null or $2 = 'delivered' or event.id in (
                 -- Few, and found by an index: most of a history is not looked at.
                 select unfinished.event_id
                   from webhook_deliveries unfinished
                  where unfinished.tenant_id = $1 and unfinished.status <> 'delivered' and unfinished.status = $2
            ))
            and ($3::text is null or event.event_type = $3)
            and ($4::float8 is null or event.received_at >= attesto_now() - make_interval(secs => $4))
            and (not $5 or exists (
                select
                  from webhook_configs config
                  join webhook_deliveries earlier on earlier.event_id = event.id and earlier.status <> 'delivered'
                   and earlier.callback_url <> config.callback_url
                 where config.tenant_id = event.tenant_id
                   and not exists (
                       select from webhook_deliveries own
                        where own.event_id = event.id and own.callback_url = config.callback_url
                          and own.status in ('pending', 'delivered')
                   )
            ))
        "#,
        filter.tenant.as_str(),
        filter.status.map(EventStatus::as_str),
        filter.event_type.as_deref(),
        filter.received_within.map(|since| since.as_secs_f64()),
        filter.is_for_previous_callback,
    )
    .fetch_one(database.pool())
    .await?;
    Ok(RedeliveryPreview {
        count: u64::try_from(row.count).unwrap_or(0),
        oldest: row.oldest.map(Timestamp::from),
    })
}

pub(super) async fn stop_redelivery(
    database: &Database,
    id: &RedeliveryId,
) -> Result<Option<i32>, Error> {
    sqlx::query_scalar!(
        "
        update webhook_redeliveries set finished_at = attesto_now()
        where id = $1 and finished_at is null
        returning enqueued
        ",
        id.as_str(),
    )
    .fetch_optional(database.pool())
    .await
}

pub(super) async fn insert_redelivery(
    database: &Database,
    id: &RedeliveryId,
    filter: &RedeliveryFilter,
    request: &RedeliveryRequest,
) -> Result<(), RedeliveryError> {
    let active = sqlx::query_scalar!(
        r#"
        with callback as (
            select from webhook_configs where tenant_id = $2 and is_active
        ), inserted as (
            insert into webhook_redeliveries
                (id, tenant_id, status, event_type, received_from, received_until, requested_by, reason, next_batch_at,
                 created_at, previous_callback_only)
            select $1, $2, $3, $4,
                case when $5::float8 is null then '-infinity' else now - make_interval(secs => $5) end,
                now, $6, $7, now, now, $8
            from (select attesto_now() as now) clock
            where exists (select from callback)
        )
        select exists (select from callback) as "active!"
        "#,
        id.as_str(),
        filter.tenant.as_str(),
        filter.status.map(EventStatus::as_str),
        filter.event_type.as_deref(),
        filter.received_within.map(|since| since.as_secs_f64()),
        &request.requested_by,
        request.reason.as_deref(),
        filter.is_for_previous_callback,
    )
    .fetch_one(database.pool())
    .await?;
    if active {
        return Ok(());
    }
    let tenant = sqlx::query_scalar!(
        "select exists (select from tenants where id = $1)",
        filter.tenant.as_str()
    )
    .fetch_one(database.pool())
    .await?;
    Err(if tenant == Some(true) {
        RedeliveryError::NoActiveCallback(filter.tenant.clone())
    } else {
        RedeliveryError::TenantNotFound(filter.tenant.clone())
    })
}

/// Enqueues the deliveries of the next events of one request and saves its progress, in one statement.
#[expect(clippy::too_many_lines, reason = "one statement")]
pub(super) async fn enqueue_next_batch(
    database: &Database,
    ids: &[String],
) -> Result<RedeliveryBatch, Error> {
    let batch = sqlx::query!(
        r#"
        with clock as (
            select attesto_now() as now
        ), request as (
            select request.*
            from webhook_redeliveries request
            where request.finished_at is null
                and request.next_batch_at <= attesto_now()
            order by request.next_batch_at
            limit 1
            for no key update skip locked
        ), callback as (
            select config.callback_url
            from request
            join webhook_configs config on config.tenant_id = request.tenant_id and config.is_active
        ), looked_at as (
            select event.id, event.received_at, event.event_type,
                row_number() over (order by event.received_at, event.id) as position
            from request
            cross join callback
            cross join lateral (
                select event.id, event.received_at, event.event_type
                from webhook_events event
                where event.tenant_id = request.tenant_id
                    and event.received_at >= coalesce(request.cursor_received_at, request.received_from)
                    and event.received_at <= request.received_until
                    and (request.cursor_event_id is null
                        or (event.received_at, event.id) > (request.cursor_received_at, request.cursor_event_id))
                order by event.received_at, event.id
                limit $1
            ) event
        ), picked as (
            select looked_at.id, looked_at.received_at, looked_at.position,
                row_number() over (order by looked_at.position) as turn
            from request
            cross join looked_at
            cross join lateral (
                select case
                    when bool_or(delivery.status = 'delivered') then 'delivered'
                    when bool_or(delivery.status = 'pending') then 'pending'
                    when bool_or(delivery.status = 'failed') then 'failed'
                end as status
                from webhook_deliveries delivery
                where delivery.event_id = looked_at.id
            ) standing
            where (request.status is null or standing.status = request.status)
                and (request.event_type is null or looked_at.event_type = request.event_type)
                and (not request.previous_callback_only or (
                    exists (
                        select from webhook_deliveries earlier
                        where earlier.event_id = looked_at.id and earlier.status <> 'delivered'
                            and earlier.callback_url <> (select callback_url from callback)
                    ) and not exists (
                        select from webhook_deliveries own
                        where own.event_id = looked_at.id and own.callback_url = (select callback_url from callback)
                            and own.status in ('pending', 'delivered')
                    )
                ))
            order by looked_at.position
            limit $2
        ), enqueued as (
            insert into webhook_deliveries (id, event_id, tenant_id, callback_url, requested_by, request_reason)
            select new.id, picked.id, request.tenant_id, callback.callback_url, request.requested_by, request.reason
            from request
            cross join callback
            cross join picked
            join unnest($3::text[]) with ordinality as new (id, turn) on new.turn = picked.turn
            returning 1
        ), progress as (
            select
                (select count(*) from picked)::int as enqueued,
                -- As far as was looked, or as far as the batch is full.
                case when (select count(*) from picked) = $2
                    then (select max(position) from picked)
                    else (select max(position) from looked_at)
                end as position,
                (select count(*) from picked) < $2 and (select count(*) from looked_at) < $1 as finished
        )
        update webhook_redeliveries redelivery set
            cursor_received_at = coalesce(last.received_at, redelivery.cursor_received_at),
            cursor_event_id = coalesce(last.id, redelivery.cursor_event_id),
            enqueued = redelivery.enqueued + progress.enqueued,
            -- A request that could not be worked on for a while does not catch up.
            next_batch_at = case when exists (select from callback)
                then greatest(redelivery.next_batch_at, clock.now - interval '1 second')
                    + make_interval(secs => progress.enqueued / $4::float8)
                else clock.now + make_interval(secs => $5)
            end,
            finished_at = case when progress.finished and exists (select from callback) then clock.now end
        from clock, request
        cross join progress
        left join looked_at last on last.position = progress.position
        where redelivery.id = request.id
        returning progress.enqueued as "enqueued!", redelivery.tenant_id as "tenant: TenantId"
        "#,
        MAX_SCANNED_EVENTS,
        i64::try_from(REDELIVERY_BATCH_SIZE).unwrap_or(i64::MAX),
        ids,
        f64::from(REDELIVERIES_PER_SECOND),
        CALLBACK_CHECK_INTERVAL_SECONDS,
    )
    .fetch_optional(database.pool())
    .await?;
    let done = batch.map(|batch| RedeliveryBatch::new(batch.tenant, batch.enqueued));
    Ok(done.unwrap_or_default())
}
