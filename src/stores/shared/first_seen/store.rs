//! The SQL of first verifications. Times are the database's.

use super::check::UserHashes;
use crate::base::clock::Timestamp;
use crate::base::id::TenantId;
use crate::db::{self, Database};
use crate::tenants::lane::lane_column;
use crate::tenants::store::TenantChangeError;

/// How many rows one statement removes.
const DELETE_BATCH: i64 = 10_000;

/// The first verification of a purchase.
pub(super) struct FirstUser {
    pub(super) user_hash: Vec<u8>,
    pub(super) first_seen_at: Timestamp,
}

/// The first verification of the purchase: the stored one, or this one. `None`: the tenant's key was removed meanwhile.
///
/// A purchase that was verified within a day costs one look into the index and no write. Of two first verifications at once the
/// second waits for the first, and finds it. What is written locks the tenant's key until it is committed, so that the key is
/// removed before (and nothing is written) or after (and what was written is seen by those who remove it).
pub(super) async fn find_or_insert_first_user(
    database: &Database,
    tenant: &TenantId,
    hashes: &UserHashes,
) -> Result<Option<FirstUser>, db::Error> {
    let row = sqlx::query!(
        r#"
        with known as (
            select user_hash, first_seen_at, last_seen_at from first_seen_purchases
            where lane = $4 and tenant_id = $1 and purchase_hash = $2
        ), written as (
            insert into first_seen_purchases as stored
                (lane, tenant_id, purchase_hash, user_hash, first_seen_at, last_seen_at)
            select $4, $1, $2, $3, attesto_now(), attesto_now()
            from (select from first_seen_keys where tenant_id = $1 for key share) key
            where not exists (select from known where last_seen_at > attesto_now() - interval '1 day')
            on conflict (lane, tenant_id, purchase_hash) do update set last_seen_at = excluded.last_seen_at
            returning user_hash, first_seen_at
        )
        select user_hash as "user_hash!", first_seen_at as "first_seen_at!"
        from (select user_hash, first_seen_at from written union all select user_hash, first_seen_at from known) as found
        limit 1
        "#,
        tenant.as_str(),
        hashes.purchase.as_slice(),
        hashes.user.as_slice(),
        lane_column(tenant),
    )
    .fetch_optional(database.pool())
    .await?;
    Ok(row.map(|row| FirstUser {
        user_hash: row.user_hash,
        first_seen_at: row.first_seen_at.into(),
    }))
}

pub(super) async fn insert_key(
    database: &Database,
    tenant: &TenantId,
    sealed: &[u8],
) -> Result<(), TenantChangeError> {
    let mut change = database
        .begin_single_change(&["first_seen_keys"], Some(tenant.as_str()))
        .await?;
    sqlx::query!(
        "insert into first_seen_keys (tenant_id, key_enc) values ($1, $2) on conflict (tenant_id) do nothing",
        tenant.as_str(),
        sealed,
    )
    .execute(&mut change)
    .await
    .map_err(|error| {
        db::map_constraint_error(error, "first_seen_keys_tenant_id_fkey", || {
            TenantChangeError::TenantNotFound(tenant.clone())
        })
    })?;
    change.commit().await?;
    Ok(())
}

pub(super) async fn delete_key(
    database: &Database,
    tenant: &TenantId,
) -> Result<(), TenantChangeError> {
    let mut change = database
        .begin_single_change(&["first_seen_keys"], Some(tenant.as_str()))
        .await?;
    let found = sqlx::query_scalar!(
        r#"
        with removed as (delete from first_seen_keys where tenant_id = $1)
        select exists (select from tenants where id = $1) as "found!"
        "#,
        tenant.as_str()
    )
    .fetch_one(&mut change)
    .await?;
    change.commit().await?;
    if found {
        Ok(())
    } else {
        Err(TenantChangeError::TenantNotFound(tenant.clone()))
    }
}

/// Removes all purchases of the tenant, in statements that do not run for long. Returns how many there were.
pub(super) async fn delete_purchases(
    database: &Database,
    tenant: &TenantId,
) -> Result<u64, db::Error> {
    let mut removed = 0;
    loop {
        let batch = sqlx::query!(
            "
            delete from first_seen_purchases where lane = $3 and tenant_id = $1 and purchase_hash = any(array(
                select purchase_hash from first_seen_purchases where lane = $3 and tenant_id = $1 limit $2
            ))
            ",
            tenant.as_str(),
            DELETE_BATCH,
            lane_column(tenant),
        )
        .execute(database.pool())
        .await?
        .rows_affected();
        removed += batch;
        if batch < DELETE_BATCH.unsigned_abs() {
            return Ok(removed);
        }
    }
}
