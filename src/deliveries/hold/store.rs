//! The queries on holds: the table `delivery_holds`.

use serde::Serialize;

use crate::base::clock::Timestamp;
use crate::base::lane::LaneSet;
use crate::db::{Database, Error};
use crate::deliveries::store::notify_work_channel;

/// A hold that was not released yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryHold {
    /// When deliveries were held.
    pub held_at: Timestamp,
    /// The name of the machine that requested it.
    pub held_by: String,
}

/// The number of deliveries that are not finished.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct WaitingDeliveries {
    /// Due now. Includes those that were in flight when a backup was made.
    pub due: i64,
    /// Due at a later time.
    pub later: i64,
    /// Not sent before an operator acts: the tenant or its callback is inactive, or the delivery is parked.
    pub kept_back: i64,
}

/// Holds deliveries; `false` if they were held already. Waits for a claim that is in progress: when this returns, no further
/// delivery starts in any process.
pub async fn hold_deliveries(database: &Database, host: &str) -> Result<bool, Error> {
    // The same locks as in the claim of the dispatcher.
    let begin = "select from delivery_lanes order by lane for no key update";
    let mut transaction = database
        .begin_change_with(begin, &["delivery_holds"], None)
        .await?;
    let held = sqlx::query!(
        "insert into delivery_holds (held_by) values ($1) on conflict do nothing",
        host
    )
    .execute(&mut **transaction)
    .await?;
    transaction.commit().await?;
    Ok(held.rows_affected() > 0)
}

/// Ends the hold and wakes the dispatchers. `None`: deliveries were not held.
pub async fn release_hold(database: &Database, host: &str) -> Result<Option<DeliveryHold>, Error> {
    let mut change = database
        .begin_single_change(&["delivery_holds"], None)
        .await?;
    let released = sqlx::query_as!(
        DeliveryHold,
        r#"
        update delivery_holds set released_at = now(), released_by = $1
        where released_at is null
        returning held_at as "held_at: Timestamp", held_by
        "#,
        host
    )
    .fetch_optional(&mut change)
    .await?;
    change.commit().await?;
    if released.is_some() {
        notify_work_channel(database, LaneSet::ALL).await?;
    }
    Ok(released)
}

/// `None`: deliveries are not held.
pub async fn load_active_hold(database: &Database) -> Result<Option<DeliveryHold>, Error> {
    sqlx::query_as!(
        DeliveryHold,
        r#"select held_at as "held_at: Timestamp", held_by from delivery_holds where released_at is null"#
    )
    .fetch_optional(database.pool())
    .await
}

/// Reads all unfinished deliveries, so its cost grows with the queue.
pub async fn count_waiting_deliveries(database: &Database) -> Result<WaitingDeliveries, Error> {
    sqlx::query_as!(
        WaitingDeliveries,
        r#"
        select
            count(*) filter (where sendable and is_due) as "due!",
            count(*) filter (where sendable and not is_due) as "later!",
            count(*) filter (where not sendable) as "kept_back!"
        from (
            select
                delivery.parked_at is null and tenant.is_active and coalesce(config.is_active, false) as sendable,
                delivery.lease_until is not null
                    or delivery.next_attempt_at <= attesto_now() as is_due
            from webhook_deliveries delivery
            join tenants tenant on tenant.id = delivery.tenant_id
            left join webhook_configs config
                on config.tenant_id = delivery.tenant_id and config.callback = delivery.callback
            where delivery.lane = any($1) and delivery.status = 'pending'
        ) waiting
        "#,
        &LaneSet::ALL.columns(),
    )
    .fetch_one(database.pool())
    .await
}
