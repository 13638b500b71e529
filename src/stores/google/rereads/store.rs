//! The queries on the subscriptions of which Google should have told something: columns of `subjects`. Their times are Google's, and
//! compared with the processes' clock.

use time::OffsetDateTime;

use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::db::{Database, Error};
use crate::tenants::lane::lane_column;

/// A subscription of which Google should have told something, and has not.
#[derive(Clone, Debug)]
pub(super) struct OverdueSubscription {
    /// The subject's key: its first purchase token.
    pub(super) key: String,
    /// Of the state that was told last.
    pub(super) told_state_hash: Vec<u8>,
    /// The number of the subject's newest event.
    pub(super) last_sequence: i64,
    /// When Google should have told something.
    pub(super) changes_by: Timestamp,
    key_hash: Vec<u8>,
    /// The same as `changes_by`, to the microsecond.
    due_at: OffsetDateTime,
}

/// The subscriptions of a tenant of which Google should have told something until `due_until`, longest overdue first.
pub(super) async fn list_overdue(
    database: &Database,
    tenant: &TenantId,
    due_until: Timestamp,
    after: Option<&OverdueSubscription>,
    limit: i64,
) -> Result<Vec<OverdueSubscription>, Error> {
    let rows = sqlx::query!(
        r#"
        select key_hash, recheck_key as "key!", told_state_hash as "told_state_hash!", last_sequence, changes_by as "changes_by!"
        from subjects
        where lane = $6 and tenant_id = $1 and source = 'google' and recheck_key is not null and told_state_hash is not null
            and changes_by <= $2
            and ($3::timestamptz is null or (changes_by, key_hash) > ($3, $4::bytea))
        order by changes_by, key_hash
        limit $5
        "#,
        tenant.as_str(),
        OffsetDateTime::from(due_until),
        after.map(|after| after.due_at),
        after.map(|after| after.key_hash.as_slice()),
        limit,
        lane_column(tenant),
    )
    .fetch_all(database.pool())
    .await?;
    let overdue = rows.into_iter().map(|row| OverdueSubscription {
        key: row.key,
        told_state_hash: row.told_state_hash,
        last_sequence: row.last_sequence,
        changes_by: row.changes_by.into(),
        key_hash: row.key_hash,
        due_at: row.changes_by,
    });
    Ok(overdue.collect())
}

/// Whether no event of the subscription was stored since it was found to be overdue.
pub(super) async fn is_newest(
    database: &Database,
    tenant: &TenantId,
    overdue: &OverdueSubscription,
) -> Result<bool, Error> {
    sqlx::query_scalar!(
        r#"
        select exists (
            select from subjects
            where lane = $4 and tenant_id = $1 and source = 'google' and key_hash = $2 and last_sequence = $3
        ) as "is_newest!"
        "#,
        tenant.as_str(),
        overdue.key_hash,
        overdue.last_sequence,
        lane_column(tenant),
    )
    .fetch_one(database.pool())
    .await
}

/// Expects a change at `changes_by` only. Without effect if an event was stored meanwhile, which has said it itself.
pub(super) async fn put_off(
    database: &Database,
    tenant: &TenantId,
    overdue: &OverdueSubscription,
    changes_by: Timestamp,
) -> Result<(), Error> {
    sqlx::query!(
        "update subjects set changes_by = $5 \
          where lane = $6 and tenant_id = $1 and source = 'google' and key_hash = $2 and last_sequence = $3 \
            and changes_by = $4",
        tenant.as_str(),
        overdue.key_hash,
        overdue.last_sequence,
        overdue.due_at,
        OffsetDateTime::from(changes_by),
        lane_column(tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}

/// Expects nothing more of the subscription, unless an event was stored meanwhile.
pub(super) async fn stop_expecting(
    database: &Database,
    tenant: &TenantId,
    overdue: &OverdueSubscription,
) -> Result<(), Error> {
    sqlx::query!(
        "update subjects set changes_by = null, recheck_key = null \
          where lane = $4 and tenant_id = $1 and source = 'google' and key_hash = $2 and last_sequence = $3",
        tenant.as_str(),
        overdue.key_hash,
        overdue.last_sequence,
        lane_column(tenant),
    )
    .execute(database.pool())
    .await
    .map(drop)
}
