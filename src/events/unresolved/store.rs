//! The list of unresolved events: the table `unresolved_states`. A row is written with its event, in
//! [`insert_event`](crate::events::store::insert_event). Only the database's clock decides what is due.

use std::time::Duration;

use serde_json::value::RawValue;

use super::unresolved_event::{MAX_UNRESOLVED_TIME, UnresolvedEvent};
use crate::base::id::{EventId, TenantId};
use crate::base::lane::LaneSet;
use crate::db::{Database, Error};
use crate::events::{EventSource, StateError, SubjectType};
use crate::tenants::lane::lane_column;

/// How long a process may take for one event. Another one takes the event over then.
const LEASE_TTL: Duration = Duration::from_secs(30);

/// What of the list a process takes at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClaimLimits {
    pub(crate) events: u32,
    pub(crate) events_per_account: u32,
}

/// Takes due events for [`LEASE_TTL`], those first that are due longest, without those of the accounts `resting` and of
/// inactive tenants.
pub(crate) async fn claim_due_events(
    database: &Database,
    limits: ClaimLimits,
    resting: &[(TenantId, EventSource)],
) -> Result<Vec<UnresolvedEvent>, Error> {
    let tenants: Vec<&str> = resting.iter().map(|(tenant, _)| tenant.as_str()).collect();
    let sources: Vec<&str> = resting.iter().map(|(_, source)| source.as_str()).collect();
    let mut rows = Vec::new();
    let mut claim = database
        .start_claim(LaneSet::ALL, limits.events as usize)
        .await?;
    while let Some((group, left)) = claim.next(rows.len()) {
        let claimed = sqlx::query!(
        r#"
        with due as (
            select waiting.lane, waiting.event_id, waiting.next_attempt_at,
                row_number() over (
                    partition by waiting.tenant_id, waiting.source order by waiting.next_attempt_at, waiting.event_id
                ) as place
            from unresolved_states waiting
            join tenants on tenants.id = waiting.tenant_id and tenants.is_active
            where waiting.lane = any($6) and waiting.next_attempt_at <= attesto_now()
                and not exists (
                    select from unnest($3::text[], $4::text[]) as resting (tenant_id, source)
                    where resting.tenant_id = waiting.tenant_id and resting.source = waiting.source
                )
        ), free as (
            select lane, event_id from unresolved_states
            where (lane, event_id) in (select lane, event_id from due where place <= $2 order by next_attempt_at limit $1)
                and next_attempt_at <= attesto_now() and ($7::int2 is null or lane = $7)
            for update skip locked
        ), claimed as (
            update unresolved_states waiting
            set next_attempt_at = attesto_now() + make_interval(secs => $5), attempt_count = attempt_count + 1
            from free where waiting.lane = free.lane and waiting.event_id = free.event_id
                and ($7::int2 is null or waiting.lane = $7)
            returning waiting.lane, waiting.event_id, waiting.attempt_count, waiting.next_attempt_at, waiting.created_at
        )
        select event.id as "id!: EventId", event.tenant_id as "tenant!: TenantId", event.source as "source!",
            event.event_type as "event_type!", event.environment, event.subject_key, event.subject_product_id,
            event.subject_type, event.app_user_id, event.decoded_payload::text as "data!", event.state_error,
            claimed.attempt_count as "attempt!", claimed.next_attempt_at as "lease!",
            extract(epoch from attesto_now() - claimed.created_at)::float8 as "age!",
            exists (
                select from webhook_events newer
                where newer.lane = event.lane and ($7::int2 is null or newer.lane = $7) and newer.tenant_id = event.tenant_id and newer.source = event.source
                    and newer.subject_key = event.subject_key and newer.sequence > event.sequence
                    and (newer.state ->> 'asOf')::timestamptz > coalesce(event.occurred_at, event.received_at)
            ) as "is_superseded!"
        from claimed
        join webhook_events event on event.lane = claimed.lane and event.id = claimed.event_id
            and ($7::int2 is null or event.lane = $7)
        "#,
        left,
        i64::from(limits.events_per_account),
        &tenants as &[&str],
        &sources as &[&str],
        LEASE_TTL.as_secs_f64(),
        &group.columns(),
        group.only_column(),
    )
    .fetch_all(database.pool())
    .await?;
        rows.extend(claimed);
    }
    let events = rows.into_iter().map(|row| {
        Ok(UnresolvedEvent {
            id: row.id,
            tenant: row.tenant,
            source: parse_word(&row.source)?,
            event_type: row.event_type,
            environment: row.environment.as_deref().map(parse_word).transpose()?,
            subject_key: row.subject_key.unwrap_or_default(),
            product_id: row.subject_product_id,
            subject_type: row
                .subject_type
                .as_deref()
                .map_or(Ok(SubjectType::Subscription), parse_word)?,
            app_user_id: row.app_user_id,
            data: RawValue::from_string(row.data).map_err(|error| Error::Decode(error.into()))?,
            state_error: row
                .state_error
                .as_deref()
                .map_or(Ok(StateError::StoreUnavailable), parse_word)?,
            attempt: row.attempt.unsigned_abs(),
            age: Duration::try_from_secs_f64(row.age).unwrap_or_default(),
            is_superseded: row.is_superseded,
            lease: row.lease,
        })
    });
    events.collect()
}

fn parse_word<T: std::str::FromStr>(word: &str) -> Result<T, Error>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    word.parse()
        .map_err(|error: T::Err| Error::Decode(error.into()))
}

/// Puts a claimed event off, because `missing` is what is still missing. Without effect if it was claimed or woken since.
pub(crate) async fn put_off_event(
    database: &Database,
    event: &UnresolvedEvent,
    missing: StateError,
    delay: Duration,
) -> Result<(), Error> {
    sqlx::query!(
        "update unresolved_states \
            set next_attempt_at = attesto_now() + make_interval(secs => $3), state_error = $4 \
          where lane = $5 and event_id = $1 and next_attempt_at = $2",
        event.id.as_str(),
        event.lease,
        delay.as_secs_f64(),
        missing.as_str(),
        lane_column(&event.tenant),
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// Takes an event off the list.
pub(crate) async fn remove_event(
    database: &Database,
    tenant: &TenantId,
    event: &EventId,
) -> Result<(), Error> {
    sqlx::query!(
        "delete from unresolved_states where lane = $2 and event_id = $1",
        event.as_str(),
        lane_column(tenant),
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// Events of one account that were taken off the list.
#[derive(Clone, Debug)]
pub(crate) struct RemovedEvents {
    pub(crate) tenant: TenantId,
    pub(crate) source: String,
    pub(crate) count: i64,
    /// The ids of some of them.
    pub(crate) first: Vec<String>,
}

/// Takes off the list what has been on it for [`MAX_UNRESOLVED_TIME`].
pub(crate) async fn remove_old_events(database: &Database) -> Result<Vec<RemovedEvents>, Error> {
    let rows = sqlx::query!(
        r#"
        with gone as (
            delete from unresolved_states where lane = any($2) and created_at <= attesto_now() - make_interval(secs => $1)
            returning event_id, tenant_id, source
        )
        select tenant_id as "tenant!: TenantId", source as "source!", count(*) as "count!",
            (array_agg(event_id order by event_id))[1:3] as "first!"
        from gone group by tenant_id, source
        "#,
        MAX_UNRESOLVED_TIME.as_secs_f64(),
        &LaneSet::ALL.columns(),
    )
    .fetch_all(database.pool())
    .await?;
    let removed = rows.into_iter().map(|row| RemovedEvents {
        tenant: row.tenant,
        source: row.source,
        count: row.count,
        first: row.first,
    });
    Ok(removed.collect())
}

/// How many events of active tenants wait for their state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct UnresolvedStats {
    pub(crate) apple: i64,
    pub(crate) google: i64,
    /// How long the oldest has been waiting. Zero: none waits.
    pub(crate) oldest: Duration,
}

impl UnresolvedStats {
    pub(crate) async fn load(database: &Database) -> Result<Self, Error> {
        let row = sqlx::query!(
            r#"
            select count(*) filter (where waiting.source = 'apple') as "apple!",
                count(*) filter (where waiting.source = 'google') as "google!",
                extract(epoch from attesto_now() - min(waiting.created_at))::float8 as oldest
            from unresolved_states waiting
            join tenants on tenants.id = waiting.tenant_id and tenants.is_active
            where waiting.lane = any($1)
            "#,
            &LaneSet::ALL.columns(),
        )
        .fetch_one(database.pool())
        .await?;
        Ok(Self {
            apple: row.apple,
            google: row.google,
            oldest: Duration::try_from_secs_f64(row.oldest.unwrap_or(0.0)).unwrap_or_default(),
        })
    }
}
