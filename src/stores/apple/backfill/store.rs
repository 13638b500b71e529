//! The queries on `apple_history_reads`. All times in it are of the processes' clock, as the dates that Apple is asked for.

use std::time::Duration;

use serde_json::Value;
use time::OffsetDateTime;

use super::super::account::AppleEnvironment;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::base::lane::LaneSet;
use crate::db::{Database, Error};
use crate::tenants::lane::lane_column;

/// A history that is due.
#[derive(Clone, Debug)]
pub(super) struct DueHistory {
    pub(super) tenant: TenantId,
    pub(super) environment: AppleEnvironment,
    pub(super) tenant_created_at: Timestamp,
    /// `None`: it was never read.
    pub(super) read_until: Option<Timestamp>,
    /// Whether it was read to its end before.
    pub(super) was_completed: bool,
    /// The JSON of a [`super::reader::HistoryPosition`].
    pub(super) position: Option<Value>,
}

/// What a reading has changed.
#[derive(Clone, Debug)]
pub(super) struct HistoryProgress {
    pub(super) read_until: Timestamp,
    /// `None`: it was not read to its end.
    pub(super) completed_at: Option<Timestamp>,
    pub(super) next_read_at: Timestamp,
    pub(super) position: Option<Value>,
    pub(super) error: Option<String>,
    /// Whether Apple knows the app in this environment. `None`: Apple did not say.
    pub(super) is_app_known: Option<bool>,
    pub(super) recovered: u64,
}

/// The histories of active tenants that are due at `now`, longest due first. One that failed is due when the tenant's credentials
/// were changed since then.
pub(super) async fn list_due_histories(
    database: &Database,
    now: Timestamp,
    limit: i64,
) -> Result<Vec<DueHistory>, Error> {
    let rows = sqlx::query!(
        r#"
        select tenant.id as "tenant: TenantId", tenant.created_at, environment.name as "environment!",
            history.read_until as "read_until?", history.last_success_at as "last_success_at?",
            history.position as "position?"
        from tenants tenant
        join apple_credentials stored on stored.tenant_id = tenant.id
        cross join (values ('production'), ('sandbox')) environment (name)
        left join apple_history_reads history
            on history.lane = tenant_lane(tenant.id) and history.tenant_id = tenant.id and history.environment = environment.name
        where tenant.is_active and stored.environment in ('auto', environment.name)
            and (environment.name = 'sandbox' or stored.app_apple_id is not null)
            and (history.next_read_at is null or history.next_read_at <= $1
                or (history.error is not null and stored.updated_at > history.written_at))
        order by history.next_read_at nulls first, tenant.id, environment.name
        limit $2
        "#,
        OffsetDateTime::from(now),
        limit,
    )
    .fetch_all(database.pool())
    .await?;
    let due = rows.into_iter().map(|row| DueHistory {
        tenant: row.tenant,
        environment: match row.environment.as_str() {
            "production" => AppleEnvironment::Production,
            _ => AppleEnvironment::Sandbox,
        },
        tenant_created_at: row.created_at.into(),
        read_until: row.read_until.map(Timestamp::from),
        was_completed: row.last_success_at.is_some(),
        position: row.position,
    });
    Ok(due.collect())
}

/// Makes every history due at `now`, as a whole: one that has no position gets one that no reading goes on from.
pub(super) async fn make_all_due(database: &Database, now: Timestamp) -> Result<(), Error> {
    sqlx::query!(
        r#"
        update apple_history_reads
        set next_read_at = least(next_read_at, $1), position = coalesce(position, '{"isWholeDue": true}')
        where lane = any($2)
        "#,
        OffsetDateTime::from(now),
        &LaneSet::ALL.columns(),
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// Stores how far a history has been read.
pub(super) async fn record_progress(
    database: &Database,
    tenant: &TenantId,
    environment: AppleEnvironment,
    progress: &HistoryProgress,
) -> Result<(), Error> {
    sqlx::query!(
        "
        insert into apple_history_reads as history
            (lane, tenant_id, environment, read_until, last_success_at, next_read_at, position, error, recovered,
             is_app_known)
        values ($10, $1, $2, $3, $4, $5, $6, $7, $8, coalesce($9, true))
        on conflict (lane, tenant_id, environment) do update set
            read_until = excluded.read_until,
            last_success_at = coalesce(excluded.last_success_at, history.last_success_at),
            next_read_at = excluded.next_read_at,
            position = excluded.position,
            error = excluded.error,
            recovered = history.recovered + excluded.recovered,
            is_app_known = coalesce($9, history.is_app_known),
            written_at = excluded.written_at
        ",
        tenant.as_str(),
        environment.as_str(),
        OffsetDateTime::from(progress.read_until),
        progress.completed_at.map(OffsetDateTime::from),
        OffsetDateTime::from(progress.next_read_at),
        progress.position,
        progress.error,
        i64::try_from(progress.recovered).unwrap_or(i64::MAX),
        progress.is_app_known,
        lane_column(tenant),
    )
    .execute(database.pool())
    .await?;
    Ok(())
}

/// The histories of all active tenants together, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct HistoryStats {
    /// Since when a history was not read to its end, of the one for which that is longest; without those of apps that Apple does
    /// not know in that environment.
    pub(crate) oldest_success_age: Duration,
    pub(crate) recovered: i64,
}

pub(crate) async fn load_history_stats(
    database: &Database,
    now: Timestamp,
) -> Result<HistoryStats, Error> {
    let row = sqlx::query!(
        r#"
        select coalesce(extract(epoch from $1 - min(coalesce(history.last_success_at, history.read_until))
                filter (where history.is_app_known)), 0)::float8 as "age!",
            coalesce(sum(history.recovered), 0)::bigint as "recovered!"
        from apple_history_reads history
        join tenants tenant on tenant.id = history.tenant_id
        join apple_credentials stored on stored.tenant_id = tenant.id
        where history.lane = any($2) and tenant.is_active and stored.environment in ('auto', history.environment)
            and (history.environment = 'sandbox' or stored.app_apple_id is not null)
        "#,
        OffsetDateTime::from(now),
        &LaneSet::ALL.columns(),
    )
    .fetch_one(database.pool())
    .await?;
    Ok(HistoryStats {
        oldest_success_age: Duration::try_from_secs_f64(row.age).unwrap_or_default(),
        recovered: row.recovered,
    })
}
