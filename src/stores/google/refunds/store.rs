//! The queries on `voided_purchases` and `google_voided_reads`. Times of readings are of the processes' clock, as those that Google is asked for.

use std::time::Duration;

use time::OffsetDateTime;

use super::known_refund::ToldPart;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::base::lane::LaneSet;
use crate::db::{Database, Error};
use crate::tenants::lane::lane_column;

/// How long a refund is remembered: Google lists it for 30 days, and Pub/Sub repeats a message for 31.
const KEPT_FOR: Duration = Duration::from_hours(65 * 24);

/// A tenant's list that is due.
#[derive(Clone, Debug)]
pub(super) struct DueList {
    pub(super) tenant: TenantId,
    pub(super) tenant_created_at: Timestamp,
    /// `None`: it was never read.
    pub(super) read_until: Option<Timestamp>,
}

/// What a reading has changed.
#[derive(Clone, Debug)]
pub(super) struct ReadingProgress {
    pub(super) read_until: Timestamp,
    /// `None`: it failed.
    pub(super) succeeded_at: Option<Timestamp>,
    pub(super) next_read_at: Timestamp,
    pub(super) error: Option<String>,
    pub(super) recovered: u64,
}

/// Whether the event of a refund is stored, or was and may have been pruned. One that was noted only may be missing: its process
/// may have ended before the event was stored.
pub(super) async fn is_refund_told(
    database: &Database,
    tenant: &TenantId,
    refund_hash: &[u8],
) -> Result<bool, Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select from voided_purchases noted
            where noted.lane = $3 and noted.tenant_id = $1 and noted.refund_hash = $2 and (
                exists (
                    select from webhook_events event
                    where event.lane = $3 and event.tenant_id = noted.tenant_id and event.source = 'google'
                        and event.external_id = noted.external_id
                )
                or noted.created_at < (select received_before from pruned_events)
            )
        ) as "is_told!"
        "#,
        tenant.as_str(),
        refund_hash,
        lane_column(tenant),
    )
    .fetch_one(database.pool())
    .await
}

/// The events that tell refunds of parts of a purchase.
pub(super) async fn list_told_parts(
    database: &Database,
    tenant: &TenantId,
    purchase_token: &str,
) -> Result<Vec<ToldPart>, Error> {
    let rows = sqlx::query!(
        r#"
        select external_id, occurred_at as "occurred_at!"
        from webhook_events
        where lane = $3 and tenant_id = $1 and subject_key = $2 and source = 'google' and platform_event = 'google.voided'
            and reason = 'partial' and occurred_at is not null
        order by occurred_at
        "#,
        tenant.as_str(),
        purchase_token,
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await?;
    let parts = rows.into_iter().map(|row| ToldPart {
        external_id: row.external_id,
        occurred_at: row.occurred_at.into(),
    });
    Ok(parts.collect())
}

/// Notes that an event with `external_id` tells a refund, unless another one does. Returns the external id of the one that does;
/// `None` without the tenant.
pub(super) async fn note_refund(
    database: &Database,
    tenant: &TenantId,
    refund_hash: &[u8],
    external_id: &str,
) -> Result<Option<String>, Error> {
    sqlx::query_scalar!(
        "
        insert into voided_purchases as noted (lane, tenant_id, refund_hash, external_id)
        select $4, id, $2, $3 from tenants where id = $1
        on conflict (lane, tenant_id, refund_hash) do update set external_id = noted.external_id
        returning external_id
        ",
        tenant.as_str(),
        refund_hash,
        external_id,
        lane_column(tenant),
    )
    .fetch_optional(database.pool())
    .await
}

/// Forgets refunds that neither Google's list nor a push can tell any more.
pub(super) async fn remove_old(database: &Database) -> Result<(), Error> {
    sqlx::query!(
        "delete from voided_purchases where lane = any($2) and created_at <= attesto_now() - make_interval(secs => $1)",
        KEPT_FOR.as_secs_f64(),
        &LaneSet::ALL.columns(),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

/// The lists of active tenants that are due at `now`, longest due first; with `is_all_due` all of them.
pub(super) async fn list_due_lists(
    database: &Database,
    now: Timestamp,
    is_all_due: bool,
) -> Result<Vec<DueList>, Error> {
    let rows = sqlx::query!(
        r#"
        select tenant.id as "tenant: TenantId", tenant.created_at, list.read_until as "read_until?"
        from tenants tenant
        join google_credentials stored on stored.tenant_id = tenant.id
        left join google_voided_reads list on list.lane = tenant_lane(tenant.id) and list.tenant_id = tenant.id
        where tenant.is_active and ($2 or list.next_read_at is null or list.next_read_at <= $1)
        order by list.next_read_at nulls first, tenant.id
        "#,
        OffsetDateTime::from(now),
        is_all_due,
    )
    .fetch_all(database.pool())
    .await?;
    let due = rows.into_iter().map(|row| DueList {
        tenant: row.tenant,
        tenant_created_at: row.created_at.into(),
        read_until: row.read_until.map(Timestamp::from),
    });
    Ok(due.collect())
}

/// Stores how far a list has been read.
pub(super) async fn record_reading(
    database: &Database,
    tenant: &TenantId,
    progress: &ReadingProgress,
) -> Result<(), Error> {
    sqlx::query!(
        "
        insert into google_voided_reads as list
            (lane, tenant_id, read_until, last_success_at, next_read_at, error, recovered)
        values ($7, $1, $2, $3, $4, $5, $6)
        on conflict (lane, tenant_id) do update set
            read_until = excluded.read_until,
            last_success_at = coalesce(excluded.last_success_at, list.last_success_at),
            next_read_at = excluded.next_read_at,
            error = excluded.error,
            recovered = list.recovered + excluded.recovered
        ",
        tenant.as_str(),
        OffsetDateTime::from(progress.read_until),
        progress.succeeded_at.map(OffsetDateTime::from),
        OffsetDateTime::from(progress.next_read_at),
        progress.error,
        i64::try_from(progress.recovered).unwrap_or(i64::MAX),
        lane_column(tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}
