//! The queries on redeliveries. For the clock see [`crate::deliveries::store`].
//!
//! A redelivery of an event goes to the callbacks that had it, or, if none had it or one is named, to those that it matches. A
//! status is that of the event's deliveries to that callback. Each statement says so itself: Citus inlines no function.

use super::request::{
    EnqueuedDelivery, EventStatus, RedeliveryError, RedeliveryFilter, RedeliveryRequest,
};
use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, DeliveryId, EventId, RedeliveryId, TenantId};
use crate::base::lane::{Lane, LaneSet};
use crate::db::distribution::LaneGroup;
use crate::db::{Database, DbTransaction, Error};
use crate::tenants::lane::lane_column;

/// How often a request whose tenant has no active callback, or whose callback is not active, is looked at again.
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
    tenant: &TenantId,
    event: &EventId,
    callback: Option<CallbackNumber>,
    id: &DeliveryId,
    request: &RedeliveryRequest,
) -> Result<Vec<EnqueuedDelivery>, RedeliveryError> {
    let insert = sqlx::query_as!(
        EnqueuedDelivery,
        r#"
        with enqueued as (
            insert into webhook_deliveries
                (lane, id, event_id, tenant_id, callback, callback_url, requested_by, request_reason)
            select $6, nth_delivery_id($2, row_number() over (order by config.callback) - 1), event.id, event.tenant_id,
                config.callback, config.callback_url, $3, $4
            from webhook_events event
            join webhook_configs config on config.tenant_id = event.tenant_id and config.is_active
            where event.lane = $6 and event.id = $1 and event.tenant_id = $7
                and ($5::int2 is null or config.callback = $5)
                and (
                    exists (
                        select from webhook_deliveries had
                        where had.lane = $6 and had.event_id = event.id and had.callback = config.callback)
                    or (
                        -- Not `not exists`, which the planner may answer with all deliveries of all tenants.
                        ($5::int2 is not null
                            or (
                                select had.id from webhook_deliveries had where had.lane = $6 and had.event_id = event.id limit 1) is null)
                        and callback_takes(config.kind, config.events, config.sources, config.environments, event.event_type,
                            event.source, event.environment, event.external_id, event.platform_event)
                    )
                )
            returning callback, id
        )
        select callback as "callback: CallbackNumber", id as "delivery_id: DeliveryId" from enqueued
        "#,
        event.as_str(),
        id.as_str(),
        &request.requested_by,
        request.reason.as_deref(),
        callback.map(CallbackNumber::column),
        lane_column(tenant),
        tenant.as_str(),
    );
    let mut enqueued = if database.has_change_triggers().await? {
        insert.fetch_all(database.pool()).await?
    } else {
        let mut transaction = database.pool().begin().await?;
        let enqueued = insert.fetch_all(&mut *transaction).await?;
        log_enqueued(&mut transaction, tenant, &enqueued).await?;
        transaction.commit().await?;
        enqueued
    };
    if enqueued.is_empty() {
        return Err(find_redelivery_obstacle(database, tenant, event, callback).await?);
    }
    enqueued.sort_unstable_by_key(|delivery| delivery.callback);
    Ok(enqueued)
}

/// Does what a trigger does on one Postgres: logs redeliveries of one event that an operator asked for.
async fn log_enqueued(
    transaction: &mut DbTransaction,
    tenant: &TenantId,
    enqueued: &[EnqueuedDelivery],
) -> Result<(), Error> {
    for delivery in enqueued {
        let row: serde_json::Value = sqlx::query_scalar(
            "select auditable(to_jsonb(delivery)) from webhook_deliveries delivery where lane = $1 and id = $2",
        )
        .bind(lane_column(tenant))
        .bind(delivery.delivery_id.as_str())
        .fetch_one(&mut **transaction)
        .await?;
        sqlx::query(
            "select note_operation('insert', 'webhook_deliveries', $1, $2, null, $3)
             where coalesce(current_setting('attesto.session', true), '') <> ''",
        )
        .bind(delivery.delivery_id.as_str())
        .bind(tenant.as_str())
        .bind(row)
        .execute(&mut **transaction)
        .await?;
    }
    Ok(())
}

pub(super) async fn preview_event(
    database: &Database,
    tenant: &TenantId,
    event: &EventId,
    callback: Option<CallbackNumber>,
) -> Result<u64, RedeliveryError> {
    let count = sqlx::query_scalar!(
        r#"
        select count(*) as "count!"
        from webhook_events event
        join webhook_configs config on config.tenant_id = event.tenant_id and config.is_active
        where event.lane = $3 and event.id = $1 and event.tenant_id = $4
            and ($2::int2 is null or config.callback = $2)
            and (
                exists (
                    select from webhook_deliveries had
                    where had.lane = $3 and had.event_id = event.id and had.callback = config.callback)
                or (
                    ($2::int2 is not null
                        or (
                            select had.id from webhook_deliveries had where had.lane = $3 and had.event_id = event.id limit 1) is null)
                    and callback_takes(config.kind, config.events, config.sources, config.environments, event.event_type,
                        event.source, event.environment, event.external_id, event.platform_event)
                )
            )
        "#,
        event.as_str(),
        callback.map(CallbackNumber::column),
        lane_column(tenant),
        tenant.as_str(),
    )
    .fetch_one(database.pool())
    .await?;
    if count == 0 {
        return Err(find_redelivery_obstacle(database, tenant, event, callback).await?);
    }
    Ok(count.unsigned_abs())
}

/// Why a redelivery of this event goes to no callback.
async fn find_redelivery_obstacle(
    database: &Database,
    tenant: &TenantId,
    event: &EventId,
    callback: Option<CallbackNumber>,
) -> Result<RedeliveryError, Error> {
    let row = sqlx::query!(
        r#"
        select tenant_id as "tenant: TenantId",
            exists (
                select from webhook_configs config
                where config.tenant_id = event.tenant_id and config.is_active
                    and ($2::int2 is null or config.callback = $2)
            ) as "has_callback!"
        from webhook_events event
        where lane = $3 and id = $1 and tenant_id = $4
        "#,
        event.as_str(),
        callback.map(CallbackNumber::column),
        lane_column(tenant),
        tenant.as_str(),
    )
    .fetch_optional(database.pool())
    .await?;
    let Some(row) = row else {
        return Ok(RedeliveryError::EventNotFound(event.clone()));
    };
    Ok(match (callback, row.has_callback) {
        (None, false) => RedeliveryError::NoActiveCallback(row.tenant),
        (None, true) => RedeliveryError::EventOfNoCallback(event.clone()),
        (Some(callback), false) => RedeliveryError::CallbackNotActive(row.tenant, callback),
        (Some(callback), true) => RedeliveryError::EventFilteredOut(event.clone(), callback),
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
        where event.lane = $7 and event.tenant_id = $1 and event.received_at > '-infinity'
            and ($2::text is null or $2 = 'delivered' or event.id in (
                 -- Few, and found by an index: most of a history is not looked at.
                 select unfinished.event_id
                   from webhook_deliveries unfinished
                  where unfinished.lane = $7 and unfinished.tenant_id = $1 and unfinished.status <> 'delivered' and unfinished.status = $2
            ))
            and ($3::text is null or event.event_type = $3)
            and ($4::float8 is null or event.received_at >= attesto_now() - make_interval(secs => $4))
            and exists (
                select from webhook_configs config
                cross join lateral (
                    select
                        case
                            when bool_or(delivery.status = 'delivered') then 'delivered'
                            when bool_or(delivery.status = 'pending') then 'pending'
                            when bool_or(delivery.status = 'failed') then 'failed'
                        end as status,
                        bool_or(delivery.status <> 'delivered' and delivery.callback_url <> config.callback_url)
                            as waits_elsewhere,
                        bool_or(delivery.status <> 'failed' and delivery.callback_url = config.callback_url) as is_here
                    from webhook_deliveries delivery
                    where delivery.lane = $7 and delivery.event_id = event.id
                        and delivery.callback = config.callback
                ) standing
                where config.tenant_id = event.tenant_id and config.is_active
                    and ($6::int2 is null or config.callback = $6::int2)
                    and ($2 is null or standing.status = $2)
                    and (not $5 or (standing.waits_elsewhere and not standing.is_here))
                    and (standing.status is not null or (
                        ($6::int2 is not null
                            or (
                                select delivery.id from webhook_deliveries delivery
                                where delivery.lane = $7 and delivery.event_id = event.id limit 1) is null)
                        and callback_takes(config.kind, config.events, config.sources, config.environments,
                            event.event_type, event.source, event.environment, event.external_id, event.platform_event)
                    ))
            )
        "#,
        filter.tenant.as_str(),
        filter.status.map(EventStatus::as_str),
        filter.event_type.as_deref(),
        filter.received_within.map(|since| since.as_secs_f64()),
        filter.is_for_previous_callback,
        filter.callback.map(CallbackNumber::column),
        lane_column(&filter.tenant),
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
        where lane = any($2) and id = $1 and finished_at is null
        returning enqueued
        ",
        id.as_str(),
        &LaneSet::ALL.columns(),
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
    let mut change = database
        .begin_single_change(&["webhook_redeliveries"], Some(filter.tenant.as_str()))
        .await?;
    let active = sqlx::query_scalar!(
        r#"
        with callback as (
            -- Citus passes on no result without columns.
            select 1 as one from webhook_configs
            where tenant_id = $2 and is_active and ($9::int2 is null or callback = $9)
        ), inserted as (
            insert into webhook_redeliveries
                (lane, id, tenant_id, status, event_type, received_from, received_until, requested_by, reason,
                 next_batch_at, created_at, previous_callback_only, callback)
            select $10, $1, $2, $3, $4,
                case when $5::float8 is null then '-infinity' else now - make_interval(secs => $5) end,
                now, $6, $7, now, now, $8, $9
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
        filter.callback.map(CallbackNumber::column),
        lane_column(&filter.tenant),
    )
    .fetch_one(&mut change)
    .await?;
    change.commit().await?;
    if active {
        return Ok(());
    }
    let tenant = sqlx::query_scalar!(
        "select exists (select from tenants where id = $1)",
        filter.tenant.as_str()
    )
    .fetch_one(database.pool())
    .await?;
    let of_tenant = filter.tenant.clone();
    Err(match filter.callback {
        _ if tenant != Some(true) => RedeliveryError::TenantNotFound(of_tenant),
        None => RedeliveryError::NoActiveCallback(of_tenant),
        Some(callback) => RedeliveryError::CallbackNotActive(of_tenant, callback),
    })
}

/// The lanes in which the request is that is due longest. `None`: no request is due, as far as a distributed database told.
async fn find_due_group(database: &Database) -> Result<Option<LaneGroup>, Error> {
    if !database.is_distributed().await? {
        let (lanes, only) = (LaneSet::ALL, None);
        return Ok(Some(LaneGroup { lanes, only }));
    }
    let lane = sqlx::query_scalar!(
        "select lane from webhook_redeliveries
         where lane = any($1) and finished_at is null and next_batch_at <= attesto_now()
         order by next_batch_at limit 1",
        &LaneSet::ALL.columns(),
    )
    .fetch_optional(database.pool())
    .await?;
    let lane = lane.and_then(Lane::from_column);
    Ok(lane.map(|lane| LaneGroup {
        lanes: LaneSet::from(lane),
        only: Some(lane),
    }))
}

/// Enqueues the deliveries of the next events of one request and saves its progress, in one statement.
#[expect(clippy::too_many_lines, reason = "one statement and its columns")]
pub(super) async fn enqueue_next_batch(
    database: &Database,
    ids: &[String],
) -> Result<RedeliveryBatch, Error> {
    let Some(group) = find_due_group(database).await? else {
        return Ok(RedeliveryBatch::default());
    };
    let batch = sqlx::query!(
        r#"
        with clock as (
            select attesto_now() as now
        ), request as (
            select request.*
            from webhook_redeliveries request
            where request.lane = any($6) and request.finished_at is null
                and request.next_batch_at <= attesto_now()
            order by request.next_batch_at
            limit 1
            for no key update skip locked
        ), is_possible as (
            select 1 as one
            from request
            where exists (
                select from webhook_configs config
                where config.tenant_id = request.tenant_id and config.is_active
                    and (request.callback is null or config.callback = request.callback)
            )
        ), looked_at as (
            select event.id, event.received_at, event.event_type, event.source, event.environment, event.external_id,
                event.platform_event,
                row_number() over (order by event.received_at, event.id) as position
            from request
            cross join is_possible
            cross join lateral (
                select event.id, event.received_at, event.event_type, event.source, event.environment, event.external_id,
                    event.platform_event
                from webhook_events event
                where event.lane = request.lane and ($7::int2 is null or event.lane = $7) and event.tenant_id = request.tenant_id
                    and event.received_at >= coalesce(request.cursor_received_at, request.received_from)
                    and event.received_at <= request.received_until
                    and (request.cursor_event_id is null
                        or (event.received_at, event.id) > (request.cursor_received_at, request.cursor_event_id))
                order by event.received_at, event.id
                limit $1
            ) event
        ), picked as (
            select looked_at.id, looked_at.position, target.callbacks, target.callback_urls,
                row_number() over (order by looked_at.position) as turn
            from request
            cross join looked_at
            cross join lateral (
                select array_agg(config.callback order by config.callback) as callbacks,
                    array_agg(config.callback_url order by config.callback) as callback_urls
                from webhook_configs config
                cross join lateral (
                    select
                        case
                            when bool_or(delivery.status = 'delivered') then 'delivered'
                            when bool_or(delivery.status = 'pending') then 'pending'
                            when bool_or(delivery.status = 'failed') then 'failed'
                        end as status,
                        bool_or(delivery.status <> 'delivered' and delivery.callback_url <> config.callback_url)
                            as waits_elsewhere,
                        bool_or(delivery.status <> 'failed' and delivery.callback_url = config.callback_url) as is_here
                    from webhook_deliveries delivery
                    where delivery.lane = request.lane and ($7::int2 is null or delivery.lane = $7) and delivery.event_id = looked_at.id
                        and delivery.callback = config.callback
                ) standing
                where config.tenant_id = request.tenant_id and config.is_active
                    and (request.callback is null or config.callback = request.callback)
                    and (request.status is null or standing.status = request.status)
                    and (not request.previous_callback_only or (standing.waits_elsewhere and not standing.is_here))
                    and (standing.status is not null or (
                        (request.callback is not null
                            or (
                                select delivery.id from webhook_deliveries delivery
                                where delivery.lane = request.lane and ($7::int2 is null or delivery.lane = $7) and delivery.event_id = looked_at.id limit 1) is null)
                        and callback_takes(config.kind, config.events, config.sources, config.environments,
                            looked_at.event_type, looked_at.source, looked_at.environment, looked_at.external_id, looked_at.platform_event)
                    ))
            ) target
            where (request.event_type is null or looked_at.event_type = request.event_type) and target.callbacks is not null
            order by looked_at.position
            limit $2
        ), enqueued as (
            insert into webhook_deliveries
                (lane, id, event_id, tenant_id, callback, callback_url, requested_by, request_reason)
            select request.lane, nth_delivery_id(new.id, target.nth - 1), picked.id, request.tenant_id, target.callback,
                target.callback_url, request.requested_by, request.reason
            from request
            cross join picked
            join unnest($3::text[]) with ordinality as new (id, turn) on new.turn = picked.turn
            cross join lateral unnest(picked.callbacks, picked.callback_urls)
                with ordinality as target (callback, callback_url, nth)
            returning 1
        ), batch as (
            select (select count(*) from enqueued)::int as enqueued
        ), progress as (
            select
                batch.enqueued,
                clock.now,
                -- A request that could not be worked on for a while does not catch up.
                greatest(request.next_batch_at, clock.now - interval '1 second')
                    + make_interval(secs => batch.enqueued / $4::float8) as next_batch_at,
                clock.now + make_interval(secs => $5) as next_check_at,
                -- As far as was looked, or as far as the batch is full.
                case when (select count(*) from picked) = $2
                    then (select max(position) from picked)
                    else (select max(position) from looked_at)
                end as position,
                (select count(*) from picked) < $2 and (select count(*) from looked_at) < $1 as finished
            from clock, batch, request
        )
        update webhook_redeliveries redelivery set
            cursor_received_at = coalesce(last.received_at, redelivery.cursor_received_at),
            cursor_event_id = coalesce(last.id, redelivery.cursor_event_id),
            enqueued = redelivery.enqueued + progress.enqueued,
            next_batch_at = case when exists (select from is_possible) then progress.next_batch_at else progress.next_check_at end,
            finished_at = case when progress.finished and exists (select from is_possible) then progress.now end
        from request
        cross join progress
        left join looked_at last on last.position = progress.position
        where redelivery.lane = request.lane and redelivery.id = request.id
            and ($7::int2 is null or redelivery.lane = $7)
        returning progress.enqueued as "enqueued!", redelivery.tenant_id as "tenant: TenantId"
        "#,
        MAX_SCANNED_EVENTS,
        i64::try_from(REDELIVERY_BATCH_SIZE).unwrap_or(i64::MAX),
        ids,
        f64::from(REDELIVERIES_PER_SECOND),
        CALLBACK_CHECK_INTERVAL_SECONDS,
        &group.columns(),
        group.only_column(),
    )
    .fetch_optional(database.pool())
    .await?;
    let done = batch.map(|batch| RedeliveryBatch::new(batch.tenant, batch.enqueued));
    Ok(done.unwrap_or_default())
}
