//! The SQL of retention. Ages are computed with the database's clock.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use time::OffsetDateTime;

use super::RetentionKind;
use crate::audit::operator_audit;
use crate::base::lane::{Lane, LaneSet};
use crate::db::{Database, Error};

/// The maximum number of rows that one transaction removes.
pub(super) const BATCH_SIZE: i64 = 500;

#[derive(Debug, Default)]
pub(super) struct PrunedBatch {
    pub(super) removed: u64,
    /// Rows that were examined: fewer than [`BATCH_SIZE`] if no more are left.
    pub(super) scanned: u64,
    /// The last event that was examined. The next batch begins after it, because events with pending deliveries stay.
    pub(super) cursor: Option<(OffsetDateTime, String)>,
}

impl PrunedBatch {
    /// A batch in which every row that was examined is removed.
    fn of_removed(removed: u64) -> Self {
        Self {
            removed,
            scanned: removed,
            cursor: None,
        }
    }
}

/// Removes rows of one lane, except of kinds whose tables have none.
pub(super) async fn prune_batch(
    database: &Database,
    kind: RetentionKind,
    lane: Lane,
    kept: Duration,
    after: Option<(OffsetDateTime, String)>,
) -> Result<PrunedBatch, Error> {
    let age = kept.as_secs_f64();
    let pool = database.pool();
    let done = match kind {
        RetentionKind::Events => return prune_events(database, lane, age, after).await,
        RetentionKind::OperatorAudit => return prune_operator_audit_batch(database, kept).await,
        RetentionKind::FirstSeen => return prune_first_seen(database, lane, age).await,
        RetentionKind::Redeliveries => {
            let mut change = database.begin_single_change(&["webhook_redeliveries"], None).await?;
            let done = sqlx::query!(
                "
                delete from webhook_redeliveries where lane = $3 and id = any(array(
                    select id from webhook_redeliveries
                    where lane = $3 and finished_at < attesto_now() - make_interval(secs => $1)
                    limit $2 for update skip locked
                ))
                ",
                age,
                BATCH_SIZE,
                lane.column()
            )
            .execute(&mut change)
            .await?;
            change.commit().await?;
            done
        }
        RetentionKind::AttemptDetails => {
            sqlx::query!(
                "
                update webhook_deliveries set last_response_body = null where lane = $3 and id = any(array(
                    select id from webhook_deliveries
                    where lane = $3 and status <> 'pending' and last_response_body is not null
                        and coalesce(delivered_at, failed_at, created_at)
                            < attesto_now() - make_interval(secs => $1)
                    order by coalesce(delivered_at, failed_at, created_at), id
                    limit $2 for no key update skip locked
                ))
                ",
                age,
                BATCH_SIZE,
                lane.column()
            )
            .execute(pool)
            .await?
        }
        RetentionKind::ValidationAudit => {
            sqlx::query!(
                "
                delete from validation_audit where lane = $3 and id = any(array(
                    select id from validation_audit
                    where lane = $3 and occurred_at < attesto_now() - make_interval(secs => $1)
                    order by occurred_at
                    limit $2 for update skip locked
                ))
                ",
                age,
                BATCH_SIZE,
                lane.column()
            )
            .execute(pool)
            .await?
        }
        RetentionKind::RetiredSecrets => return prune_retired_secrets(database, age).await,
        RetentionKind::ReplacedCredentials => return prune_replaced_credentials(database, age).await,
        RetentionKind::JobRuns => {
            sqlx::query!(
                "
                delete from job_runs where id = any(array(
                    select old.id from job_runs old
                    where old.finished_at < attesto_now() - make_interval(secs => $1)
                        and exists (select from job_runs newer where newer.job = old.job and newer.id > old.id)
                    limit $2 for update skip locked
                ))
                ",
                age,
                BATCH_SIZE
            )
            .execute(pool)
            .await?
        }
    };
    Ok(PrunedBatch::of_removed(done.rows_affected()))
}

async fn prune_first_seen(database: &Database, lane: Lane, age: f64) -> Result<PrunedBatch, Error> {
    let done = sqlx::query!(
        "
        with gone as (
            select tenant_id, purchase_hash from first_seen_purchases
            where lane = $3 and last_seen_at < attesto_now() - make_interval(secs => $1)
            order by last_seen_at
            limit $2 for update skip locked
        )
        delete from first_seen_purchases seen using gone
        where seen.lane = $3 and seen.tenant_id = gone.tenant_id and seen.purchase_hash = gone.purchase_hash
        ",
        age,
        BATCH_SIZE,
        lane.column()
    )
    .execute(database.pool())
    .await?;
    Ok(PrunedBatch::of_removed(done.rows_affected()))
}

/// Batches of the operators' audit are larger, because each batch adds an audit row that records it.
async fn prune_operator_audit_batch(
    database: &Database,
    kept: Duration,
) -> Result<PrunedBatch, Error> {
    let removed = operator_audit::prune_operator_audit(database, kept).await?;
    Ok(PrunedBatch {
        removed,
        scanned: if removed == 0 {
            0
        } else {
            BATCH_SIZE.unsigned_abs()
        },
        cursor: None,
    })
}

async fn prune_retired_secrets(database: &Database, age: f64) -> Result<PrunedBatch, Error> {
    let is_distributed = database.is_distributed().await?;
    let mut change = database
        .begin_single_change(&["webhook_previous_secrets"], None)
        .await?;
    let done = if is_distributed {
        // Every node deletes from its copy of the table, and all copies must lose the same rows.
        sqlx::query!(
            "delete from webhook_previous_secrets where expires_at <= attesto_now() - make_interval(secs => $1)",
            age
        )
        .execute(&mut change)
        .await?
    } else {
        sqlx::query!(
            "
            with gone as (
                select tenant_id, callback, number from webhook_previous_secrets
                where expires_at <= attesto_now() - make_interval(secs => $1)
                limit $2 for update skip locked
            )
            delete from webhook_previous_secrets previous using gone
            where previous.tenant_id = gone.tenant_id and previous.callback = gone.callback
                and previous.number = gone.number
            ",
            age,
            BATCH_SIZE
        )
        .execute(&mut change)
        .await?
    };
    change.commit().await?;
    Ok(PrunedBatch::of_removed(done.rows_affected()))
}

/// Removes all rows at once: there is at most one for each tenant and store.
async fn prune_replaced_credentials(database: &Database, age: f64) -> Result<PrunedBatch, Error> {
    let apple = sqlx::query!(
        "delete from apple_previous_credentials \
          where expires_at <= attesto_now() - make_interval(secs => $1)",
        age
    )
    .execute(database.pool())
    .await?;
    let google = sqlx::query!(
        "delete from google_previous_credentials \
          where expires_at <= attesto_now() - make_interval(secs => $1)",
        age
    )
    .execute(database.pool())
    .await?;
    Ok(PrunedBatch {
        removed: apple.rows_affected() + google.rows_affected(),
        ..PrunedBatch::default()
    })
}

/// Uses two statements: the first one locks the events, so that no delivery can be added to them; the second one then
/// sees every delivery that was added before.
///
/// Must not be cancelled between them: see [`crate::db::database`]. Jobs are not cancelled, and a command ends with its
/// process.
async fn prune_events(
    database: &Database,
    lane: Lane,
    age: f64,
    after: Option<(OffsetDateTime, String)>,
) -> Result<PrunedBatch, Error> {
    let (after_at, after_id) = after.unzip();
    let mut transaction = database.pool().begin().await?;
    let examined = sqlx::query!(
        "
        select id, received_at from webhook_events
        where lane = $5 and received_at < attesto_now() - make_interval(secs => $1) and event_type > ''
            and ($2::timestamptz is null or (received_at, id) > ($2, $3))
        order by received_at, id
        limit $4 for update skip locked
        ",
        age,
        after_at,
        after_id,
        BATCH_SIZE,
        lane.column(),
    )
    .fetch_all(&mut *transaction)
    .await?;
    let Some(last) = examined.last() else {
        return Ok(PrunedBatch::default());
    };
    sqlx::query!(
        "
        insert into pruned_events as pruned (received_before) values (attesto_now() - make_interval(secs => $1))
        on conflict (is_only_row) do update
            set received_before = greatest(pruned.received_before, excluded.received_before)
        ",
        age
    )
    .execute(&mut *transaction)
    .await?;
    let last = Some((last.received_at, last.id.clone()));
    let ids: Vec<String> = examined.iter().map(|row| row.id.clone()).collect();
    let removed = sqlx::query!(
        "
        with done as (
            select id from unnest($1::text[]) as event (id)
            where not exists (
                select from webhook_deliveries delivery
                where delivery.lane = $2 and delivery.event_id = event.id and delivery.status = 'pending'
            )
        ), deliveries as (
            delete from webhook_deliveries where lane = $2 and event_id in (select id from done)
        )
        delete from webhook_events where lane = $2 and id in (select id from done)
        ",
        &ids,
        lane.column(),
    )
    .execute(&mut *transaction)
    .await?;
    transaction.commit().await?;
    Ok(PrunedBatch {
        removed: removed.rows_affected(),
        scanned: examined.len() as u64,
        cursor: last,
    })
}

pub(super) async fn count_expired_rows(
    database: &Database,
    kind: RetentionKind,
    kept: Duration,
) -> Result<u64, Error> {
    let condition = match kind {
        RetentionKind::Events => {
            "from webhook_events event where lane = any($2) and received_at < clock.cutoff and event_type > '' and not exists ( \
                select from webhook_deliveries delivery \
                where delivery.lane = event.lane and delivery.event_id = event.id and delivery.status = 'pending')"
        }
        RetentionKind::Redeliveries => {
            "from webhook_redeliveries where lane = any($2) and finished_at < clock.cutoff"
        }
        RetentionKind::AttemptDetails => {
            "from webhook_deliveries where lane = any($2) and status <> 'pending' and last_response_body is not null \
                and coalesce(delivered_at, failed_at, created_at) < clock.cutoff"
        }
        RetentionKind::ValidationAudit => {
            "from validation_audit where lane = any($2) and occurred_at < clock.cutoff"
        }
        RetentionKind::FirstSeen => {
            "from first_seen_purchases where lane = any($2) and last_seen_at < clock.cutoff"
        }
        RetentionKind::OperatorAudit => {
            "from operator_audit where occurred_at < clock.cutoff and seq < (select max(seq) from operator_audit)"
        }
        RetentionKind::RetiredSecrets => {
            "from webhook_previous_secrets where expires_at <= clock.cutoff"
        }
        RetentionKind::ReplacedCredentials => {
            "from (select expires_at from apple_previous_credentials \
                union all select expires_at from google_previous_credentials) previous \
                where expires_at <= clock.cutoff"
        }
        RetentionKind::JobRuns => {
            "from job_runs old where finished_at < clock.cutoff \
                and exists (select from job_runs newer where newer.job = old.job and newer.id > old.id)"
        }
    };
    // Both texts are constants of this file.
    let statement = format!(
        "select (select count(*) {condition}) \
           from (select attesto_now() - make_interval(secs => $1) as cutoff) clock where $2::int2[] is not null"
    );
    let mut transaction = database.pool().begin().await?;
    // The statement reads every old row, which can take minutes.
    sqlx::query("set local statement_timeout = '10min'")
        .execute(&mut *transaction)
        .await?;
    let count: i64 = sqlx::query_scalar(AssertSqlSafe(statement))
        .bind(kept.as_secs_f64())
        .bind(LaneSet::ALL.columns())
        .fetch_one(&mut *transaction)
        .await?;
    Ok(u64::try_from(count).unwrap_or(0))
}
