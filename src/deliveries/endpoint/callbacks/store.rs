//! The queries on the callbacks of a tenant, beside those in [`crate::deliveries::endpoint::store`].

use sqlx::PgExecutor;

use crate::base::id::{CallbackNumber, TenantId};
use crate::crypto::keyring::Keyring;
use crate::db::row_changes::ChangeTransaction;
use crate::db::{Database, DbTransaction, Error, is_lock_timeout};
use crate::deliveries::endpoint::store::{
    ENDPOINT_TABLES, EndpointChangeError, NewEndpoint, SecretChange, endpoint_not_found,
    insert_endpoint,
};
use crate::deliveries::endpoint::{CallbackFilterChange, MAX_CALLBACKS};
use crate::tenants::lane::lane_column;

/// What the deliveries that are given up say as their last error.
const REMOVED_CALLBACK_ERROR: &str =
    "an operator removed the callback before the event was delivered";
/// The tables that have rows of a callback, and whose changes are logged.
const REMOVED_TABLES: &[&str] = &[
    "webhook_configs",
    "webhook_previous_secrets",
    "webhook_client_certificates",
    "webhook_redeliveries",
];
/// Waits for the transactions that are writing deliveries: an event that was being stored when its callback was switched off may
/// still have one for it. New ones wait meanwhile, so not for long.
const WAIT_FOR_WRITERS_SQL: &str =
    "set local lock_timeout = '3s'; lock table webhook_deliveries in share mode";

/// Why a callback was not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// Commands without a number are about the first callback.
    #[error(
        "callback 1 of {0} stays, because commands without --callback are about it: switch it off with `attesto webhook set-config {0} --is-active false`"
    )]
    FirstCallback(TenantId),
    /// The tenant has no such callback.
    #[error("{0} has no callback {1}: `attesto webhook list {0}` lists its callbacks")]
    CallbackNotFound(TenantId, CallbackNumber),
    /// Deliveries wait for it.
    #[error(
        "{waiting} deliveries wait for callback {callback} of {tenant}: let them be sent first, or give them up with --abandon-waiting"
    )]
    DeliveriesWaiting {
        /// The tenant that owns the callback.
        tenant: TenantId,
        /// The number of the callback that was to be removed.
        callback: CallbackNumber,
        /// How many deliveries are not finished.
        waiting: i64,
    },
    /// An operator switched it on meanwhile.
    #[error("callback {1} of {0} was switched on at the same time: try again")]
    SwitchedOn(TenantId, CallbackNumber),
    /// Some transaction has been writing for seconds.
    #[error("other transactions have been writing deliveries for 3 s: try again")]
    WritesInProgress,
    /// The database failed.
    #[error("{}", crate::db::describe_cause(.0))]
    Database(#[from] Error),
}

/// Creates a callback, the first of the tenant or a further one. Returns its number.
pub async fn add_endpoint(
    database: &Database,
    keyring: &Keyring,
    tenant: &TenantId,
    new: &NewEndpoint<'_>,
) -> Result<(CallbackNumber, SecretChange), EndpointChangeError> {
    loop {
        let mut transaction = database
            .begin_change(ENDPOINT_TABLES, Some(tenant.as_str()))
            .await?;
        // The row of the first callback is locked until the commit, so that the limit is exact.
        let number = sqlx::query_scalar!(
            r#"
            update webhook_configs set last_callback = last_callback + 1
            where tenant_id = $1 and callback = 1
            returning last_callback as "number: CallbackNumber"
            "#,
            tenant.as_str(),
        )
        .fetch_optional(&mut **transaction)
        .await?;
        let number = number.unwrap_or(CallbackNumber::FIRST);
        let count = sqlx::query_scalar!(
            r#"select count(*) as "count!" from webhook_configs where tenant_id = $1"#,
            tenant.as_str(),
        )
        .fetch_one(&mut **transaction)
        .await?;
        if count >= MAX_CALLBACKS {
            return Err(EndpointChangeError::TooManyCallbacks(tenant.clone()));
        }
        let made = insert_endpoint(&mut transaction, keyring, tenant, number, new).await?;
        if let Some(made) = made {
            transaction.commit().await?;
            return Ok((number, made));
        }
        // Another process has just created the first callback: try again, for the next number.
    }
}

/// The numbers of a tenant's callbacks, in order.
pub async fn list_callback_numbers(
    database: &Database,
    tenant: &TenantId,
) -> Result<Vec<CallbackNumber>, Error> {
    sqlx::query_scalar!(
        r#"
        select callback as "callback: CallbackNumber" from webhook_configs
        where tenant_id = $1
        order by callback
        "#,
        tenant.as_str(),
    )
    .fetch_all(database.pool())
    .await
}

/// Changes which events a callback is sent, of those that are stored from now on.
pub async fn change_filter(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
    change: &CallbackFilterChange,
) -> Result<(), EndpointChangeError> {
    let mut transaction = database
        .begin_single_change(&["webhook_configs"], Some(tenant.as_str()))
        .await?;
    let changed = sqlx::query!(
        "
        update webhook_configs set
            events = coalesce($3, events), sources = coalesce($4, sources),
            environments = coalesce($5, environments), updated_at = attesto_now()
        where tenant_id = $1 and callback = $2
        ",
        tenant.as_str(),
        callback.column(),
        change.events.as_deref(),
        change.sources.as_deref(),
        change.environments.as_deref(),
    )
    .execute(&mut transaction)
    .await?;
    transaction.commit().await?;
    if changed.rows_affected() == 0 {
        return Err(endpoint_not_found(tenant, callback));
    }
    Ok(())
}

/// Removes a callback with its secrets and what is known of its health. Deliveries that wait for it are marked as failed if
/// `is_abandoning`, otherwise nothing is changed. Returns how many were.
///
/// The result of an attempt that is in progress is not written.
pub async fn remove_endpoint(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
    is_abandoning: bool,
) -> Result<i64, RemovalError> {
    if callback == CallbackNumber::FIRST {
        return Err(RemovalError::FirstCallback(tenant.clone()));
    }
    let was_active = sqlx::query_scalar!(
        "select is_active from webhook_configs where tenant_id = $1 and callback = $2",
        tenant.as_str(),
        callback.column(),
    )
    .fetch_optional(database.pool())
    .await?;
    let was_active =
        was_active.ok_or_else(|| RemovalError::CallbackNotFound(tenant.clone(), callback))?;
    let still_waiting = |waiting| RemovalError::DeliveriesWaiting {
        tenant: tenant.clone(),
        callback,
        waiting,
    };
    let waiting = count_waiting(database.pool(), tenant, callback).await?;
    if waiting > 0 && !is_abandoning {
        return Err(still_waiting(waiting));
    }
    if !is_abandoning {
        // Nothing is written before it is known that nothing waits: no event is stored without a delivery to a callback that stays.
        let mut transaction = lock_deliveries(database, tenant).await?;
        let waiting = count_waiting(&mut **transaction, tenant, callback).await?;
        if waiting > 0 {
            return Err(still_waiting(waiting));
        }
        delete_rows(&mut transaction, tenant, callback).await?;
        transaction.commit().await?;
        return Ok(0);
    }
    // From here on no event that begins to be stored has a delivery to it.
    set_active(database, tenant, callback, false).await?;
    let removed = async {
        lock_deliveries(database, tenant).await?.commit().await?;
        delete_endpoint(database, tenant, callback).await
    };
    let removed = removed.await;
    if matches!(&removed, Err(error) if !matches!(error, RemovalError::SwitchedOn(..))) {
        set_active(database, tenant, callback, was_active).await?;
    }
    removed
}

async fn count_waiting(
    executor: impl PgExecutor<'_>,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<i64, Error> {
    // The second condition on the status is that of an index.
    sqlx::query_scalar!(
        r#"
        select count(*) as "count!" from webhook_deliveries
        where lane = $3 and tenant_id = $1 and callback = $2 and status = 'pending' and status <> 'delivered'
        "#,
        tenant.as_str(),
        callback.column(),
        lane_column(tenant),
    )
    .fetch_one(executor)
    .await
}

async fn set_active(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
    is_active: bool,
) -> Result<(), Error> {
    let mut change = database
        .begin_single_change(&["webhook_configs"], Some(tenant.as_str()))
        .await?;
    sqlx::query!(
        "
        update webhook_configs set is_active = $3
        where tenant_id = $1 and callback = $2 and is_active <> $3
        ",
        tenant.as_str(),
        callback.column(),
        is_active,
    )
    .execute(&mut change)
    .await?;
    change.commit().await?;
    Ok(())
}

/// Begins a transaction in which nothing else writes deliveries, once those that do have ended.
async fn lock_deliveries(
    database: &Database,
    tenant: &TenantId,
) -> Result<ChangeTransaction, RemovalError> {
    let locked = database
        .begin_change_with(WAIT_FOR_WRITERS_SQL, REMOVED_TABLES, Some(tenant.as_str()))
        .await;
    locked.map_err(|error| {
        if is_lock_timeout(&error) {
            RemovalError::WritesInProgress
        } else {
            error.into()
        }
    })
}

/// Deletes the callback and what is known of it. Redeliveries to it alone are over.
async fn delete_rows(
    transaction: &mut DbTransaction,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<(), Error> {
    for statement in [
        "delete from webhook_health where lane = $3 and tenant_id = $1 and callback = $2",
        "update webhook_redeliveries set finished_at = attesto_now()
         where lane = $3 and tenant_id = $1 and callback = $2 and finished_at is null",
    ] {
        sqlx::query(statement)
            .bind(tenant.as_str())
            .bind(callback.column())
            .bind(lane_column(tenant))
            .execute(&mut **transaction)
            .await?;
    }
    for statement in [
        "delete from webhook_previous_secrets where tenant_id = $1 and callback = $2",
        "delete from webhook_client_certificates where tenant_id = $1 and callback = $2",
        "delete from callback_probes where tenant_id = $1 and callback = $2",
        "delete from webhook_configs where tenant_id = $1 and callback = $2",
    ] {
        sqlx::query(statement)
            .bind(tenant.as_str())
            .bind(callback.column())
            .execute(&mut **transaction)
            .await?;
    }
    Ok(())
}

/// Returns how many deliveries were given up.
async fn delete_endpoint(
    database: &Database,
    tenant: &TenantId,
    callback: CallbackNumber,
) -> Result<i64, RemovalError> {
    let mut transaction = database
        .begin_change_with(
            "set local statement_timeout = '60s'",
            REMOVED_TABLES,
            Some(tenant.as_str()),
        )
        .await?;
    // While the row is locked nothing switches it on, and so no event gets a delivery to it.
    let is_active = sqlx::query_scalar!(
        "select is_active from webhook_configs where tenant_id = $1 and callback = $2 for update",
        tenant.as_str(),
        callback.column(),
    )
    .fetch_optional(&mut **transaction)
    .await?;
    match is_active {
        None => return Err(RemovalError::CallbackNotFound(tenant.clone(), callback)),
        Some(true) => return Err(RemovalError::SwitchedOn(tenant.clone(), callback)),
        Some(false) => {}
    }
    let abandoned = sqlx::query!(
        "
        update webhook_deliveries set
            status = 'failed', failed_at = attesto_now(), next_attempt_at = null, lease_until = null,
            lease_no = lease_no + 1, parked_at = null, last_error = $3
        where lane = $4 and tenant_id = $1 and callback = $2 and status = 'pending' and status <> 'delivered'
        ",
        tenant.as_str(),
        callback.column(),
        REMOVED_CALLBACK_ERROR,
        lane_column(tenant),
    )
    .execute(&mut **transaction)
    .await?;
    delete_rows(&mut transaction, tenant, callback).await?;
    transaction.commit().await?;
    Ok(i64::try_from(abandoned.rows_affected()).unwrap_or(i64::MAX))
}
