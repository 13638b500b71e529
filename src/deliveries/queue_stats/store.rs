//! The query. Its cost does not depend on the length of the history, and is bounded for a long queue.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::lane::LaneSet;
use crate::db::{Database, DbTransaction, Error};

/// Waiting deliveries are counted up to this number.
pub(crate) const MAX_COUNTED: i64 = 100_000;

/// The state of the queue and of the callbacks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueStats {
    /// Deliveries that are due. Together with `scheduled` at most [`MAX_COUNTED`].
    pub due: i64,
    /// Deliveries that are due later.
    pub scheduled: i64,
    /// Deliveries in flight.
    pub leased: i64,
    /// Deliveries that are parked for an operator.
    pub parked: i64,
    /// How long the oldest delivery that may be sent has been due. Deliveries whose callback is closed, or whose tenant or
    /// callback is inactive, do not count. Zero: there is none.
    pub oldest_due: Duration,
    /// The number of callbacks in each of [`CALLBACK_STATES`].
    pub callbacks: BTreeMap<String, i64>,
}

/// The states of [`EndpointState`](crate::deliveries::health::EndpointState), and `disabled` by an operator.
pub(crate) const CALLBACK_STATES: [&str; 5] = ["active", "throttled", "open", "paused", "disabled"];

impl QueueStats {
    pub(crate) async fn load(database: &Database) -> Result<Self, Error> {
        let is_distributed = database.is_distributed().await?;
        let mut snapshot = database.pool().begin().await?;
        let waiting = sqlx::query!(
            r#"
            select
                count(*) filter (where next_attempt_at <= attesto_now()) as "due!",
                count(*) as "all!"
            from (
                select next_attempt_at
                from webhook_deliveries
                where lane = any($2) and status = 'pending' and lease_until is null and parked_at is null
                limit $1
            ) waiting
            "#,
            MAX_COUNTED,
            &LaneSet::ALL.columns(),
        )
        .fetch_one(&mut *snapshot)
        .await?;
        // The same conditions as in the claim.
        let oldest = if is_distributed {
            load_oldest_due_everywhere(&mut snapshot).await?
        } else {
            sqlx::query_scalar!(
            r#"
            select extract(epoch from
                attesto_now() - min(waiting.next_attempt_at))::float8
            from webhook_callbacks_waiting waiting
            join tenants tenant on tenant.id = waiting.tenant_id and tenant.is_active
            join webhook_configs config
                on config.tenant_id = waiting.tenant_id and config.callback = waiting.callback and config.is_active
            left join webhook_health health
                on health.lane = waiting.lane and health.tenant_id = waiting.tenant_id and health.callback = waiting.callback
                and health.callback_key = waiting.callback_key
            where health.closed_until is null
                or health.closed_until <= attesto_now()
            "#)
        .fetch_one(&mut *snapshot)
        .await?
        };
        let apart = sqlx::query!(
            r#"
            select
                (select count(*) from webhook_deliveries where lane = any($1) and lease_until is not null) as "leased!",
                (select count(*) from webhook_deliveries where lane = any($1) and parked_at is not null) as "parked!"
            "#,
            &LaneSet::ALL.columns(),
        )
        .fetch_one(&mut *snapshot)
        .await?;
        let callbacks = sqlx::query!(
            r#"
            select case
                    when not (config.is_active and tenant.is_active) then 'disabled'
                    else coalesce(health.state, 'active')
                end as "state!",
                count(*) as "count!"
            from webhook_configs config
            join tenants tenant on tenant.id = config.tenant_id
            left join webhook_health health
                on health.lane = tenant_lane(config.tenant_id) and health.tenant_id = config.tenant_id and health.callback = config.callback
                and health.callback_key = hashtextextended(config.callback_url, 0)
            group by 1
            "#
        )
        .fetch_all(&mut *snapshot)
        .await?;
        Ok(Self {
            due: waiting.due,
            scheduled: waiting.all - waiting.due,
            leased: apart.leased,
            parked: apart.parked,
            oldest_due: Duration::from_secs_f64(oldest.unwrap_or(0.0).max(0.0)),
            callbacks: callbacks
                .into_iter()
                .map(|row| (row.state, row.count))
                .collect(),
        })
    }
}

/// How many seconds ago the oldest delivery that may be sent became due, on a distributed database: each worker looks at all deliveries
/// that wait, because Citus does not run a recursive query in several lanes.
async fn load_oldest_due_everywhere(snapshot: &mut DbTransaction) -> Result<Option<f64>, Error> {
    sqlx::query_scalar!(
        r#"
        select extract(epoch from attesto_now() - min(waiting.next_attempt_at))::float8
        from webhook_deliveries waiting
        join tenants tenant on tenant.id = waiting.tenant_id and tenant.is_active
        join webhook_configs config
            on config.tenant_id = waiting.tenant_id and config.callback = waiting.callback and config.is_active
        left join webhook_health health
            on health.lane = waiting.lane and health.tenant_id = waiting.tenant_id and health.callback = waiting.callback
            and health.callback_key = waiting.callback_key
        where waiting.lane = any($1) and waiting.status = 'pending' and waiting.lease_until is null and waiting.parked_at is null
            and (health.closed_until is null or health.closed_until <= attesto_now())
        "#,
        &LaneSet::ALL.columns(),
    )
    .fetch_one(&mut **snapshot)
    .await
}
