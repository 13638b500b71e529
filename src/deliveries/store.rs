//! Every query of the dispatcher.
//!
//! Only the database's clock says what is due and which lease is over. It is read as `statement_timestamp()`: inside a
//! transaction that waited, `now()` is older. `make_interval(secs => $1)` is added to it everywhere; that is
//! [`Clock::lead`], by which a test moves time, and zero otherwise.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::timeout;

use super::delivery::NextStep;
use super::health::{EndpointHealth, EndpointState, HealthSignal, MAX_IN_FLIGHT_PER_CALLBACK};
use super::outcome::OutcomeClass;
use super::transport::ClaimedDelivery;
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::{DeliveryId, EventId, TenantId};
use crate::db::{Database, DbTransaction, Error};

/// Where processes tell each other that there is work.
pub(super) const WORK_CHANNEL: &str = "attesto_work";
/// How long a worker holds a row without saying that it is still there. Until then what a dead one held counts as being
/// under way, against the limits of its callback too; so it is not long, and it is renewed often.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(20);
/// How many deliveries of one tenant may be under way at once, over all processes.
pub(super) const MAX_IN_FLIGHT_PER_TENANT: i64 = 32;
/// After this many lost leases in a row, a person has to look.
pub(super) const MAX_INTERRUPTIONS: i32 = 5;
/// How long the statements of a turn may take.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(8);
/// How long a commit may take before nobody knows whether it happened.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(4);
/// Leases ended in one statement.
const MAX_LEASES_PER_SWEEP: i64 = 1000;

/// One claimer at a time, in all processes: only then are the limits that hold over all of them exact. It waits in the
/// same message that begins the transaction, and a process that is stopped in the middle is thrown out soon.
///
/// The plans must not depend on how many rows there were when they were made: the table can grow a thousandfold before
/// its statistics do.
const BEGIN_CLAIM_SQL: &str = "set local idle_in_transaction_session_timeout = '2s'; set local enable_seqscan = off; \
    set local enable_bitmapscan = off; set local jit = off; select pg_advisory_xact_lock(7233186720511)";
/// The same for writing only.
const BEGIN_WRITE_SQL: &str = "set local idle_in_transaction_session_timeout = '2s'; set local enable_seqscan = off; \
    set local enable_bitmapscan = off; set local jit = off";

/// The right to write one result: the row, and the number it was claimed under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) delivery_id: DeliveryId,
    pub(super) number: i32,
}

/// A delivery that is ours until its lease is over.
#[derive(Debug)]
pub(super) struct LeasedDelivery {
    pub(super) lease: Lease,
    pub(super) delivery: ClaimedDelivery,
    /// Whether somebody asked for this delivery, beside the one that belongs to the event.
    pub(super) is_redelivery: bool,
    /// Whether a success would say nothing new about the callback.
    pub(super) is_callback_healthy: bool,
    /// How long it was due.
    pub(super) lag: Duration,
}

/// What became of an attempt.
#[derive(Clone, Debug)]
pub(super) struct FinishedAttempt {
    pub(super) lease: Lease,
    pub(super) event_id: EventId,
    pub(super) tenant_id: TenantId,
    pub(super) callback_url: String,
    pub(super) is_redelivery: bool,
    pub(super) next_step: NextStep,
    pub(super) class: OutcomeClass,
    pub(super) status_code: Option<u16>,
    pub(super) body_excerpt: Option<String>,
    /// What it says about the callback, when that is news.
    pub(super) health_signal: Option<HealthSignal>,
}

/// What one turn did.
#[derive(Debug, Default)]
pub(super) struct BatchReport {
    /// The results that were written.
    pub(super) written: HashSet<DeliveryId>,
    pub(super) claimed: Vec<LeasedDelivery>,
    /// Callbacks whose state is another now.
    pub(super) state_changes: Vec<EndpointStateChange>,
}

/// A callback whose state is another now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndpointStateChange {
    pub(super) tenant_id: TenantId,
    pub(super) previous_state: EndpointState,
    pub(super) health: EndpointHealth,
}

/// Why a turn is not done, as far as is known.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(super) struct BatchError {
    #[source]
    pub(super) error: Error,
    /// The commit may have happened all the same, and with it these claims.
    pub(super) maybe_claimed: Vec<Lease>,
}

impl From<Error> for BatchError {
    fn from(error: Error) -> Self {
        Self {
            error,
            maybe_claimed: Vec::new(),
        }
    }
}

/// What is to do next, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct NextDue {
    /// Until the next delivery that may be sent is due. `None`: none waits, or what waits may not be sent.
    pub(super) delivery: Option<Duration>,
    /// Until the next batch of a redelivery.
    pub(super) redelivery_batch: Option<Duration>,
}

/// What sweeping found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SweepReport {
    /// Leases that ended without a word from whoever held them.
    pub(super) interrupted: usize,
    /// Deliveries that now wait for a person.
    pub(super) parked: Vec<DeliveryId>,
}

/// The deliveries, as a dispatcher sees them.
#[derive(Clone, Debug)]
pub(super) struct DeliveryStore {
    database: Database,
    clock: Clock,
}

impl DeliveryStore {
    pub(super) fn new(database: &Database, clock: &Clock) -> Self {
        Self {
            database: database.clone(),
            clock: clock.clone(),
        }
    }

    fn lead(&self) -> f64 {
        self.clock.lead().as_secs_f64()
    }

    /// Writes `results` and claims up to `wish` deliveries, in one transaction. `after` is the tenant who was served
    /// last: among equals, those after it come first.
    pub(super) async fn write_results_and_claim(
        &self,
        results: &[FinishedAttempt],
        wish: usize,
        after: &str,
    ) -> Result<BatchReport, BatchError> {
        let working = timeout(
            TRANSACTION_TIMEOUT,
            self.prepare_transaction(results, wish, after),
        )
        .await;
        let (transaction, mut turn) = working.map_err(|_| timeout_error())??;
        // From here on somebody may hold these rows for us, whatever we hear of it.
        let unsure = |error: Error, turn: &BatchReport| BatchError {
            error,
            maybe_claimed: turn.claimed.iter().map(|one| one.lease.clone()).collect(),
        };
        match timeout(COMMIT_TIMEOUT, transaction.commit()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(unsure(error, &turn)),
            Err(_) => return Err(unsure(timeout_error(), &turn)),
        }
        match timeout(COMMIT_TIMEOUT, self.load_bodies(&mut turn.claimed)).await {
            Ok(Ok(())) => Ok(turn),
            Ok(Err(error)) => Err(unsure(error, &turn)),
            Err(_) => Err(unsure(timeout_error(), &turn)),
        }
    }

    /// Everything of a turn but its commit.
    async fn prepare_transaction(
        &self,
        results: &[FinishedAttempt],
        wish: usize,
        after: &str,
    ) -> Result<(DbTransaction, BatchReport), Error> {
        let begin = if wish > 0 {
            BEGIN_CLAIM_SQL
        } else {
            BEGIN_WRITE_SQL
        };
        let mut transaction = self.database.pool().begin_with(begin).await?;
        let mut turn = BatchReport::default();
        if !results.is_empty() {
            lock_delivery_rows(&mut transaction, results).await?;
            turn.written = self.write_results(&mut transaction, results).await?;
            let accepted: Vec<_> = results
                .iter()
                .filter(|result| turn.written.contains(&result.lease.delivery_id))
                .collect();
            settle_original_deliveries(&mut transaction, &accepted, self.lead()).await?;
            turn.state_changes = self.update_health(&mut transaction, &accepted).await?;
        }
        if wish > 0 {
            turn.claimed = self.claim_due(&mut transaction, wish, after).await?;
        }
        Ok((transaction, turn))
    }

    /// Reads what is sent. Not in the claim: whoever stops reading in the middle of a large answer must not hold the
    /// lock that all claimers wait for.
    async fn load_bodies(&self, claimed: &mut [LeasedDelivery]) -> Result<(), Error> {
        if claimed.is_empty() {
            return Ok(());
        }
        let events: Vec<String> = claimed
            .iter()
            .map(|one| one.delivery.event_id.to_string())
            .collect();
        let rows = sqlx::query!(
            r#"select id as "id: EventId", body from webhook_events where id = any($1)"#,
            &events,
        )
        .fetch_all(self.database.pool())
        .await?;
        let bodies: HashMap<EventId, Bytes> = rows
            .into_iter()
            .map(|row| (row.id, Bytes::from(row.body)))
            .collect();
        for one in claimed {
            // An event outlives its deliveries.
            let body = bodies
                .get(&one.delivery.event_id)
                .ok_or(Error::RowNotFound)?;
            one.delivery.body = body.clone();
        }
        Ok(())
    }

    /// Writes what became of attempts, as far as the rows are still ours.
    async fn write_results(
        &self,
        transaction: &mut DbTransaction,
        results: &[FinishedAttempt],
    ) -> Result<HashSet<DeliveryId>, Error> {
        let each = results.iter();
        let ids: Vec<String> = each
            .clone()
            .map(|r| r.lease.delivery_id.to_string())
            .collect();
        let leases: Vec<i32> = each.clone().map(|r| r.lease.number).collect();
        let counts: Vec<bool> = each
            .clone()
            .map(|r| r.next_step.is_attempt_counted())
            .collect();
        let statuses: Vec<String> = each
            .clone()
            .map(|r| r.next_step.status().to_owned())
            .collect();
        let pauses: Vec<Option<f64>> = each
            .clone()
            .map(|r| r.next_step.retry_delay().map(|pause| pause.as_secs_f64()))
            .collect();
        let outcomes: Vec<String> = each.clone().map(|r| r.class.as_str().to_owned()).collect();
        let codes: Vec<Option<i32>> = each.clone().map(|r| r.status_code.map(i32::from)).collect();
        let excerpts: Vec<Option<String>> = each.map(|r| r.body_excerpt.clone()).collect();
        let written = sqlx::query_scalar!(
            r#"
            with result as (
                select
                    id, lease_no, counts, pause, outcome, code, excerpt,
                    statement_timestamp() + make_interval(secs => $1) as now,
                    status as verdict
                from unnest($2::text[], $3::int[], $4::bool[], $5::text[], $6::float8[], $7::text[], $8::int[], $9::text[])
                    as result (id, lease_no, counts, status, pause, outcome, code, excerpt)
            )
            update webhook_deliveries delivery set
                lease_until = null,
                -- A delivery that failed is delivered all the same when another has brought the event meanwhile: of the
                -- row as it is now, which somebody may have written while this statement waited for it.
                status = case when settled_by is null then verdict else 'delivered' end,
                attempt_count = attempt_count + counts::int,
                interruptions = case when counts then 0 else interruptions end,
                next_attempt_at =
                    case when settled_by is null and verdict = 'pending' then now + make_interval(secs => pause) end,
                delivered_at = case when settled_by is not null or verdict = 'delivered' then now end,
                failed_at = case when settled_by is null and verdict = 'failed' then now end,
                last_outcome = outcome,
                last_attempt_at = case when counts then now else last_attempt_at end,
                last_response_code = case when counts then code else last_response_code end,
                last_response_body = case when counts then excerpt else last_response_body end
            from result
            where delivery.id = result.id and delivery.lease_no = result.lease_no and delivery.lease_until is not null
            returning delivery.id as "id: DeliveryId"
            "#,
            self.lead(),
            &ids,
            &leases,
            &counts,
            &statuses,
            &pauses as &[Option<f64>],
            &outcomes,
            &codes as &[Option<i32>],
            &excerpts as &[Option<String>],
        )
        .fetch_all(&mut **transaction)
        .await?;
        Ok(written.into_iter().collect())
    }

    /// Notes how the callbacks behaved. Touches only those of which there is news.
    #[expect(
        clippy::too_many_lines,
        reason = "a reading, a decision and a writing, kept together for whoever reads it"
    )]
    async fn update_health(
        &self,
        transaction: &mut DbTransaction,
        results: &[&FinishedAttempt],
    ) -> Result<Vec<EndpointStateChange>, Error> {
        // In one order in all processes, so that none waits for another that waits for it.
        let mut news: BTreeMap<(&str, &str), Vec<HealthSignal>> = BTreeMap::new();
        for result in results {
            if let Some(signal) = result.health_signal {
                let callback = (result.tenant_id.as_str(), result.callback_url.as_str());
                news.entry(callback).or_default().push(signal);
            }
        }
        if news.is_empty() {
            return Ok(Vec::new());
        }
        let tenants: Vec<String> = news
            .keys()
            .map(|(tenant, _)| (*tenant).to_owned())
            .collect();
        let urls: Vec<String> = news.keys().map(|(_, url)| (*url).to_owned()).collect();
        sqlx::query!(
            "
            insert into webhook_health (tenant_id, callback_url)
            select tenant, url from unnest($1::text[], $2::text[]) as news (tenant, url) order by tenant, url
            on conflict do nothing
            ",
            &tenants,
            &urls,
        )
        .execute(&mut **transaction)
        .await?;
        let rows = sqlx::query!(
            r#"
            select health.tenant_id as "tenant: TenantId", news.url as "url!", health.callback_key as "key!",
                state, allowed, failures, unreachable, failing_since, last_success_at, last_failure_at, closed_until,
                closings, statement_timestamp() + make_interval(secs => $3) as "now!"
            from unnest($1::text[], $2::text[]) as news (tenant, url)
            join webhook_health health
                on health.tenant_id = news.tenant and health.callback_key = hashtextextended(news.url, 0)
            order by health.tenant_id, health.callback_key
            for no key update of health
            "#,
            &tenants,
            &urls,
            self.lead(),
        )
        .fetch_all(&mut **transaction)
        .await?;

        let mut changes = Vec::new();
        let mut columns = HealthColumns::default();
        for row in rows {
            let now = Timestamp::from(row.now);
            let before = EndpointHealth {
                state: EndpointState::from_column(&row.state),
                allowed: u8::try_from(row.allowed).unwrap_or(1),
                failures: to_unsigned(row.failures),
                unreachable: to_unsigned(row.unreachable),
                failing_since: row.failing_since.map(Timestamp::from),
                last_success_at: row.last_success_at.map(Timestamp::from),
                last_failure_at: row.last_failure_at.map(Timestamp::from),
                closed_until: row.closed_until.map(Timestamp::from),
                closings: to_unsigned(row.closings),
            };
            let signals = news.get(&(row.tenant.as_str(), row.url.as_str()));
            let after = signals
                .into_iter()
                .flatten()
                .fold(before, |health, signal| health.after_signal(*signal, now));
            columns.push(&row.tenant, row.key, &after);
            if before.state != after.state {
                changes.push(EndpointStateChange {
                    tenant_id: row.tenant,
                    previous_state: before.state,
                    health: after,
                });
            }
        }
        sqlx::query!(
            "
            update webhook_health health set
                state = news.state, allowed = news.allowed, failures = news.failures, unreachable = news.unreachable,
                failing_since = news.failing_since, last_success_at = news.last_success_at,
                last_failure_at = news.last_failure_at, closed_until = news.closed_until, closings = news.closings
            from unnest($1::text[], $2::int8[], $3::text[], $4::int2[], $5::int[], $6::int[], $7::timestamptz[],
                    $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::int[])
                as news (tenant, key, state, allowed, failures, unreachable, failing_since, last_success_at,
                    last_failure_at, closed_until, closings)
            where health.tenant_id = news.tenant and health.callback_key = news.key
            ",
            &columns.tenants,
            &columns.keys,
            &columns.states,
            &columns.allowed,
            &columns.failures,
            &columns.unreachable,
            &columns.failing_since as &[OptionalDateTime],
            &columns.last_success_at as &[OptionalDateTime],
            &columns.last_failure_at as &[OptionalDateTime],
            &columns.closed_until as &[OptionalDateTime],
            &columns.closings,
        )
        .execute(&mut **transaction)
        .await?;
        Ok(changes)
    }

    /// Claims what is due, tenant by tenant in turn: first whoever has least under way, then one more for each, and so
    /// on. Inside a tenant likewise, callback by callback.
    ///
    /// What a callback admits is [`Health::admits`], said in SQL; a test compares the two.
    #[expect(
        clippy::too_many_lines,
        reason = "one statement, kept whole for whoever reads it"
    )]
    async fn claim_due(
        &self,
        transaction: &mut DbTransaction,
        wish: usize,
        after: &str,
    ) -> Result<Vec<LeasedDelivery>, Error> {
        let rows = sqlx::query!(
            r#"
            with busy as (
                select tenant_id, callback_key, count(*) as requests
                from webhook_deliveries
                where lease_until > statement_timestamp() + make_interval(secs => $1)
                group by tenant_id, callback_key
            ), open as (
                select waiting.tenant_id, waiting.callback_key,
                    coalesce(busy.requests, 0) as under_way,
                    coalesce(of_tenant.requests, 0) as under_way_of_tenant,
                    case when health.closed_until is null then coalesce(health.allowed, 1) else 1 end as admitted,
                    coalesce(health.state = 'active' and health.allowed = $6 and health.failures = 0
                        and health.last_success_at > statement_timestamp() + make_interval(secs => $1 - 60), false)
                        as settled
                from webhook_callbacks_waiting waiting
                join tenants tenant on tenant.id = waiting.tenant_id and tenant.is_active
                join webhook_configs config on config.tenant_id = waiting.tenant_id and config.is_active
                left join webhook_health health
                    on health.tenant_id = waiting.tenant_id and health.callback_key = waiting.callback_key
                left join busy on busy.tenant_id = waiting.tenant_id and busy.callback_key = waiting.callback_key
                left join (select tenant_id, sum(requests)::int8 as requests from busy group by tenant_id) of_tenant
                    on of_tenant.tenant_id = waiting.tenant_id
                where (health.closed_until is null
                        or health.closed_until <= statement_timestamp() + make_interval(secs => $1))
                    and not exists (select from delivery_holds where released_at is null)
            ), candidate as (
                select due.id, open.tenant_id, open.settled,
                    open.under_way_of_tenant + row_number() over (
                        partition by open.tenant_id order by open.under_way + due.position, open.callback_key
                    ) as place
                from open
                cross join lateral (
                    select oldest.id, row_number() over (order by oldest.next_attempt_at) as position
                    from (
                        select delivery.id, delivery.next_attempt_at
                        from webhook_deliveries delivery
                        where delivery.status = 'pending' and delivery.lease_until is null and delivery.parked_at is null
                            and delivery.tenant_id = open.tenant_id and delivery.callback_key = open.callback_key
                            and delivery.next_attempt_at <= statement_timestamp() + make_interval(secs => $1)
                        order by delivery.next_attempt_at
                        limit least(greatest(open.admitted - open.under_way, 0), $2)
                    ) oldest
                ) due
            ), picked as (
                select id, tenant_id, settled, place
                from candidate
                where place <= $4
                order by place, tenant_id <= $3, tenant_id
                limit $2
            ), locked as (
                select delivery.id
                from webhook_deliveries delivery
                join picked on picked.id = delivery.id
                where delivery.status = 'pending' and delivery.lease_until is null and delivery.parked_at is null
                for no key update of delivery skip locked
            )
            update webhook_deliveries delivery set
                lease_no = delivery.lease_no + 1,
                lease_until = statement_timestamp() + make_interval(secs => $1 + $5)
            from locked, picked, webhook_events event
            where delivery.id = locked.id and picked.id = locked.id and event.id = delivery.event_id
            returning delivery.id as "id: DeliveryId", delivery.event_id as "event_id: EventId",
                delivery.tenant_id as "tenant_id: TenantId", delivery.callback_url, delivery.attempt_count,
                delivery.lease_no, delivery.requested_by is not null as "requested!",
                extract(epoch from statement_timestamp() + make_interval(secs => $1) - delivery.next_attempt_at)::float8
                    as "waited!",
                event.event_type, picked.settled as "settled!", picked.place as "place!"
            "#,
            self.lead(),
            i64::try_from(wish).unwrap_or(i64::MAX),
            after,
            MAX_IN_FLIGHT_PER_TENANT,
            LEASE_TTL.as_secs_f64(),
            i16::from(MAX_IN_FLIGHT_PER_CALLBACK),
        )
        .fetch_all(&mut **transaction)
        .await?;
        let mut rows = rows;
        // As they were picked; the update returns them in any order.
        rows.sort_by(|one, other| {
            let rank = |tenant: &TenantId| tenant.as_str() <= after;
            (one.place, rank(&one.tenant_id), &one.tenant_id).cmp(&(
                other.place,
                rank(&other.tenant_id),
                &other.tenant_id,
            ))
        });
        let claimed = rows.into_iter().map(|row| LeasedDelivery {
            lease: Lease {
                delivery_id: row.id.clone(),
                number: row.lease_no,
            },
            delivery: ClaimedDelivery {
                id: row.id,
                event_id: row.event_id,
                tenant_id: row.tenant_id,
                event_type: row.event_type,
                callback_url: row.callback_url,
                body: Bytes::new(),
                attempt_number: to_unsigned(row.attempt_count).saturating_add(1),
            },
            is_redelivery: row.requested,
            is_callback_healthy: row.settled,
            lag: Duration::try_from_secs_f64(row.waited).unwrap_or_default(),
        });
        Ok(claimed.collect())
    }

    /// When there is something to do next.
    pub(super) async fn load_next_due(&self) -> Result<NextDue, Error> {
        let row = sqlx::query!(
            r#"
            with busy as (
                select tenant_id, callback_key, count(*) as requests
                from webhook_deliveries
                where lease_until > statement_timestamp() + make_interval(secs => $1)
                group by tenant_id, callback_key
            )
            select
                (
                    select extract(epoch from
                            min(greatest(first.next_attempt_at, health.closed_until))
                            - statement_timestamp() - make_interval(secs => $1))::float8
                    from webhook_callbacks_waiting waiting
                    join tenants tenant on tenant.id = waiting.tenant_id and tenant.is_active
                    join webhook_configs config on config.tenant_id = waiting.tenant_id and config.is_active
                    left join webhook_health health
                        on health.tenant_id = waiting.tenant_id and health.callback_key = waiting.callback_key
                    left join busy on busy.tenant_id = waiting.tenant_id and busy.callback_key = waiting.callback_key
                    left join (select tenant_id, sum(requests)::int8 as requests from busy group by tenant_id) of_tenant
                        on of_tenant.tenant_id = waiting.tenant_id
                    cross join lateral (
                        select delivery.next_attempt_at
                        from webhook_deliveries delivery
                        where delivery.status = 'pending' and delivery.lease_until is null and delivery.parked_at is null
                            and delivery.tenant_id = waiting.tenant_id and delivery.callback_key = waiting.callback_key
                        order by delivery.next_attempt_at
                        limit 1
                    ) first
                    where not exists (select from delivery_holds where released_at is null)
                        and coalesce(of_tenant.requests, 0) < $2
                        and coalesce(busy.requests, 0)
                            < case when health.closed_until is null then coalesce(health.allowed, 1) else 1 end
                ) as due,
                (
                    select extract(epoch from min(next_batch_at) - statement_timestamp() - make_interval(secs => $1))::float8
                    from webhook_redeliveries
                    where finished_at is null
                ) as batch
            "#,
            self.lead(),
            MAX_IN_FLIGHT_PER_TENANT,
        )
        .fetch_one(self.database.pool())
        .await?;
        let until = |seconds: Option<f64>| {
            seconds
                .map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LEASE_TTL))
        };
        Ok(NextDue {
            delivery: until(row.due),
            redelivery_batch: until(row.batch),
        })
    }

    /// Says that we still work on these. Returns those that are still ours.
    pub(super) async fn renew_leases(
        &self,
        leases: &[Lease],
    ) -> Result<HashSet<DeliveryId>, Error> {
        let (ids, numbers) = unzip_leases(leases);
        let renewed = sqlx::query_scalar!(
            r#"
            update webhook_deliveries delivery
            set lease_until = statement_timestamp() + make_interval(secs => $1::float8 + $2::float8)
            from unnest($3::text[], $4::int[]) as held (id, lease_no)
            where delivery.id = held.id and delivery.lease_no = held.lease_no and delivery.lease_until is not null
            returning delivery.id as "id: DeliveryId"
            "#,
            self.lead(),
            LEASE_TTL.as_secs_f64(),
            &ids,
            &numbers,
        )
        .fetch_all(self.database.pool())
        .await?;
        Ok(renewed.into_iter().collect())
    }

    /// Gives back what was not sent, or may not have been: due as before, to anybody, and nothing counted. Returns how
    /// many were still ours.
    pub(super) async fn release_leases(&self, leases: &[Lease]) -> Result<u64, Error> {
        let (ids, numbers) = unzip_leases(leases);
        let released = sqlx::query!(
            "
            update webhook_deliveries delivery
            set lease_until = null, lease_no = delivery.lease_no + 1
            from unnest($1::text[], $2::int[]) as held (id, lease_no)
            where delivery.id = held.id and delivery.lease_no = held.lease_no and delivery.lease_until is not null
            ",
            &ids,
            &numbers,
        )
        .execute(self.database.pool())
        .await?;
        Ok(released.rows_affected())
    }

    /// Ends the leases whose time is over. The attempt is not counted, the interruption is.
    pub(super) async fn sweep_expired_leases(&self) -> Result<SweepReport, Error> {
        let rows = sqlx::query!(
            r#"
            update webhook_deliveries delivery set
                lease_until = null,
                lease_no = delivery.lease_no + 1,
                interruptions = delivery.interruptions + 1,
                parked_at = case when delivery.interruptions + 1 >= $2
                    then statement_timestamp() + make_interval(secs => $1) end
            where delivery.id in (
                    select expired.id
                    from webhook_deliveries expired
                    where expired.lease_until <= statement_timestamp() + make_interval(secs => $1)
                    order by expired.lease_until
                    limit $3
                    for no key update skip locked
                )
                -- Again, of the row as it is now: somebody may have renewed it after we looked.
                and delivery.lease_until <= statement_timestamp() + make_interval(secs => $1)
            returning delivery.id as "id: DeliveryId", delivery.parked_at
            "#,
            self.lead(),
            MAX_INTERRUPTIONS,
            MAX_LEASES_PER_SWEEP,
        )
        .fetch_all(self.database.pool())
        .await?;
        Ok(SweepReport {
            interrupted: rows.len(),
            parked: rows
                .into_iter()
                .filter(|row| row.parked_at.is_some())
                .map(|row| row.id)
                .collect(),
        })
    }
}

/// Before a redelivery that succeeded settles rows of others: everything that is written here, in one order in all
/// processes, so that none waits for another that waits for it.
async fn lock_delivery_rows(
    transaction: &mut DbTransaction,
    results: &[FinishedAttempt],
) -> Result<(), Error> {
    let arrived = results
        .iter()
        .filter(|result| result.is_redelivery && result.next_step == NextStep::Delivered);
    let events: Vec<String> = arrived.map(|result| result.event_id.to_string()).collect();
    if events.is_empty() {
        return Ok(());
    }
    let each = results.iter();
    let own: Vec<String> = each.map(|r| r.lease.delivery_id.to_string()).collect();
    sqlx::query!(
        "
        select from webhook_deliveries
        where id = any($1) or (event_id = any($2) and status = 'pending' and requested_by is null)
        order by id
        for no key update
        ",
        &own,
        &events,
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Where a redelivery succeeded, the event's own delivery has nothing left to do. One that is under way is let end: it
/// is told by `settled_by` what its result means.
async fn settle_original_deliveries(
    transaction: &mut DbTransaction,
    results: &[&FinishedAttempt],
    lead: f64,
) -> Result<(), Error> {
    let arrived = results
        .iter()
        .filter(|result| result.is_redelivery && result.next_step == NextStep::Delivered);
    let events: Vec<String> = arrived.clone().map(|r| r.event_id.to_string()).collect();
    let deliveries: Vec<String> = arrived.map(|r| r.lease.delivery_id.to_string()).collect();
    if events.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "
        update webhook_deliveries delivery set
            settled_by = arrived.delivery,
            status = case when lease_until is null then 'delivered' else status end,
            next_attempt_at = case when lease_until is null then null else next_attempt_at end,
            delivered_at = case
                when lease_until is null then statement_timestamp() + make_interval(secs => $3) else delivered_at
            end
        from unnest($1::text[], $2::text[]) as arrived (event, delivery)
        where delivery.event_id = arrived.event and delivery.status = 'pending' and delivery.requested_by is null
        ",
        &events,
        &deliveries,
        lead,
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Tells every process that there is work.
pub(super) async fn notify_work_channel(database: &Database) -> Result<(), Error> {
    sqlx::query("select pg_notify($1, '')")
        .bind(WORK_CHANNEL)
        .execute(database.pool())
        .await?;
    Ok(())
}

/// The database did not answer in time.
pub(super) fn timeout_error() -> Error {
    Error::Io(std::io::ErrorKind::TimedOut.into())
}

fn unzip_leases(leases: &[Lease]) -> (Vec<String>, Vec<i32>) {
    let each = leases.iter();
    each.map(|lease| (lease.delivery_id.to_string(), lease.number))
        .unzip()
}

/// Counters are never negative.
fn to_unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

type OptionalDateTime = Option<time::OffsetDateTime>;

/// Rows of `webhook_health`, column by column, as `unnest` takes them.
#[derive(Default)]
struct HealthColumns {
    tenants: Vec<String>,
    keys: Vec<i64>,
    states: Vec<String>,
    allowed: Vec<i16>,
    failures: Vec<i32>,
    unreachable: Vec<i32>,
    failing_since: Vec<OptionalDateTime>,
    last_success_at: Vec<OptionalDateTime>,
    last_failure_at: Vec<OptionalDateTime>,
    closed_until: Vec<OptionalDateTime>,
    closings: Vec<i32>,
}

impl HealthColumns {
    fn push(&mut self, tenant: &TenantId, key: i64, health: &EndpointHealth) {
        let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
        let moment = |moment: Option<Timestamp>| moment.map(time::OffsetDateTime::from);
        self.tenants.push(tenant.to_string());
        self.keys.push(key);
        self.states.push(health.state.as_str().to_owned());
        self.allowed.push(i16::from(health.allowed));
        self.failures.push(number(health.failures));
        self.unreachable.push(number(health.unreachable));
        self.failing_since.push(moment(health.failing_since));
        self.last_success_at.push(moment(health.last_success_at));
        self.last_failure_at.push(moment(health.last_failure_at));
        self.closed_until.push(moment(health.closed_until));
        self.closings.push(number(health.closings));
    }
}
