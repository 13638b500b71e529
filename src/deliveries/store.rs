//! The queue's queries: claim, write results, renew, release and sweep leases.
//!
//! The database's clock alone decides what is due and which lease has expired. It is read as `attesto_now()`,
//! the start of the statement: inside a transaction that had to wait, `now()` is older.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use time::OffsetDateTime;
use tokio::time::timeout;

use super::body::BodyStore;
use super::delivery::NextStep;
use super::health::{EndpointHealth, EndpointState, HealthSignal, MAX_IN_FLIGHT_PER_CALLBACK};
use super::job::DeliveryJob;
use super::outcome::AttemptOutcome;
use crate::base::clock::Timestamp;
use crate::base::id::{CallbackNumber, DeliveryId, EventId, TenantId};
use crate::base::lane::{Lane, LaneSet};
use crate::db::distribution::LaneGroup;
use crate::db::{Database, DbTransaction, Error};
use crate::tenants::lane::{lane_column, tenant_lane};

/// The NOTIFY channel on which processes tell each other that deliveries are due.
pub(super) const WORK_CHANNEL: &str = "attesto_work";
/// How long a lease lasts unless it is renewed. The deliveries of a process that died count as in flight until then, also
/// against the limits of their callbacks. So a lease is short, and it is renewed often.
pub(super) const LEASE_TTL: Duration = Duration::from_secs(20);
/// How many deliveries of one tenant may be in flight at once, over all processes.
pub(super) const MAX_IN_FLIGHT_PER_TENANT: i64 = 32;
/// After this many expired leases in a row a delivery is parked until an operator redelivers it.
pub(super) const MAX_INTERRUPTIONS: i32 = 5;
/// How long the statements of a batch may take.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(8);
/// A commit that takes longer may or may not have happened.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(4);
const MAX_LEASES_PER_SWEEP: i64 = 1000;

/// The timeout ends the transaction of a process that stops in the middle, and with it the locks of its lanes.
///
/// The plans must not depend on the table's statistics: the table can grow a thousandfold before they are updated. They are kept:
/// otherwise Postgres would plan a claim anew each time, for the lanes that it names, which takes longer than the claim.
const BEGIN_SQL: &str = "set local idle_in_transaction_session_timeout = '2s'; set local enable_seqscan = off; \
    set local enable_bitmapscan = off; set local jit = off; set local plan_cache_mode = force_generic_plan";
/// The same on a distributed database. Citus plans a statement for its lane, which a plan for any parameters does not know.
const BEGIN_DISTRIBUTED_SQL: &str =
    "set local idle_in_transaction_session_timeout = '2s'; set local jit = off";

/// A statement whose text begins with the query `waiting`: the callbacks with unfinished deliveries in some lanes, due or not, and when
/// the first delivery of each is due. The first two parameters are those of a [`LaneGroup`].
///
/// The function `callbacks_waiting_in_lanes` in the migrations is the same for a view. A statement does not call it, because Citus
/// inlines no function.
macro_rules! query_waiting_callbacks {
    ($query:ident!($($row:ident)?), $rest:literal, $($argument:expr),+ $(,)?) => {
        sqlx::$query!(
            $($row,)?
            r#"
            with recursive waiting as (
                select first.lane, first.tenant_id, first.callback, first.callback_key, first.next_attempt_at
                from unnest($1::int2[]) as wanted (lane)
                cross join lateral (
                    select delivery.lane, delivery.tenant_id, delivery.callback, delivery.callback_key, delivery.next_attempt_at
                    from webhook_deliveries delivery
                    where delivery.status = 'pending' and delivery.lease_until is null and delivery.parked_at is null
                        and delivery.lane = wanted.lane and ($2::int2 is null or delivery.lane = $2)
                    order by delivery.tenant_id, delivery.callback, delivery.callback_key, delivery.next_attempt_at
                    limit 1
                ) first
                union all
                select next.lane, next.tenant_id, next.callback, next.callback_key, next.next_attempt_at
                from waiting
                cross join lateral (
                    select delivery.lane, delivery.tenant_id, delivery.callback, delivery.callback_key, delivery.next_attempt_at
                    from webhook_deliveries delivery
                    where delivery.status = 'pending' and delivery.lease_until is null and delivery.parked_at is null
                        and (delivery.lane, delivery.tenant_id, delivery.callback, delivery.callback_key)
                            > (waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key)
                        and ($2::int2 is null or delivery.lane = $2)
                    order by delivery.lane, delivery.tenant_id, delivery.callback, delivery.callback_key,
                        delivery.next_attempt_at
                    limit 1
                ) next
                where next.lane = waiting.lane
            )"# + $rest,
            $($argument),+
        )
    };
}

/// The right to write the result of one attempt: the row with its lane, and the number under which it was claimed. A row
/// whose lease was released, swept or claimed again has another number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) lane: Lane,
    pub(super) delivery_id: DeliveryId,
    pub(super) number: i32,
}

/// A job that belongs to this process until its lease ends.
#[derive(Debug)]
pub(super) struct ClaimedDelivery {
    pub(super) job: Arc<DeliveryJob>,
    pub(super) lease: Lease,
    /// Whether an operator requested it, in addition to the delivery that was enqueued with the event.
    pub(super) is_redelivery: bool,
    /// Whether a success would change nothing in the health of the callback.
    pub(super) is_callback_healthy: bool,
    /// How long it had been due when it was claimed.
    pub(super) lag: Duration,
}

/// A claimed delivery after its attempt.
#[derive(Debug)]
pub(super) struct FinishedAttempt {
    pub(super) claimed: ClaimedDelivery,
    pub(super) outcome: AttemptOutcome,
    pub(super) next_step: NextStep,
}

impl FinishedAttempt {
    /// What the attempt says about the callback, unless it changes nothing.
    fn health_signal(&self) -> Option<HealthSignal> {
        let signal = HealthSignal::from_outcome(&self.outcome);
        let is_news = !(self.claimed.is_callback_healthy && signal == HealthSignal::Success);
        is_news.then_some(signal)
    }

    fn is_successful_redelivery(&self) -> bool {
        self.claimed.is_redelivery && self.next_step == NextStep::Delivered
    }
}

/// What one batch did.
#[derive(Debug, Default)]
pub(super) struct BatchReport {
    /// The deliveries whose results were written.
    pub(super) written: HashSet<DeliveryId>,
    /// The lanes in which this batch claimed. Other processes were claiming in the rest of those that were asked for.
    pub(super) locked: LaneSet,
    pub(super) claimed: Vec<ClaimedDelivery>,
    pub(super) state_changes: Vec<EndpointStateChange>,
}

/// A callback whose state has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct EndpointStateChange {
    pub(super) tenant_id: TenantId,
    pub(super) callback: CallbackNumber,
    pub(super) previous_state: EndpointState,
    pub(super) health: EndpointHealth,
}

/// A batch failed, or its commit was not confirmed.
#[derive(Debug, thiserror::Error)]
#[error("{}", crate::db::describe_cause(error))]
pub(super) struct BatchError {
    #[source]
    pub(super) error: Error,
    /// What was claimed if the commit happened all the same.
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

/// How long until there is something to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NextDue {
    /// By lane, without lanes in which no delivery waits that may be sent.
    pub(super) deliveries: Vec<(Lane, Duration)>,
    pub(super) redelivery_batch: Option<Duration>,
}

/// What a sweep found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SweepReport {
    /// How many leases had expired.
    pub(super) interrupted: usize,
    /// The lanes of these deliveries.
    pub(super) lanes: LaneSet,
    /// The deliveries that were parked.
    pub(super) parked: Vec<DeliveryId>,
}

/// The queue, as a dispatcher uses it.
#[derive(Clone, Debug)]
pub(super) struct DeliveryStore {
    database: Database,
    bodies: BodyStore,
}

impl DeliveryStore {
    pub(super) fn new(database: &Database) -> Self {
        Self {
            database: database.clone(),
            bodies: BodyStore::new(database),
        }
    }

    /// Writes `results` and claims up to `limit` deliveries in those of `lanes` in which no other process is claiming, in one
    /// transaction. `last_served` is the tenant of the last delivery that was claimed:
    /// among equals, those with a higher id come first.
    pub(super) async fn write_results_and_claim(
        &self,
        results: &[FinishedAttempt],
        lanes: LaneSet,
        limit: usize,
        last_served: &str,
    ) -> Result<BatchReport, BatchError> {
        let preparing = self.prepare_transaction(results, lanes, limit, last_served);
        let prepared = timeout(TRANSACTION_TIMEOUT, preparing).await;
        let (transaction, rows, mut report) = prepared.map_err(|_| timeout_error())??;
        // From here on this process may hold these rows, whether or not it learns of it.
        let uncertain = |error: Error| BatchError {
            error,
            maybe_claimed: rows.iter().map(ClaimedRow::lease).collect(),
        };
        let finishing = async {
            timeout(COMMIT_TIMEOUT, transaction.commit())
                .await
                .map_err(|_| timeout_error())??;
            timeout(COMMIT_TIMEOUT, self.load_bodies(&rows))
                .await
                .map_err(|_| timeout_error())?
        };
        let bodies = finishing.await.map_err(uncertain)?;
        // A delivery without a readable body is not sent. Its lease expires, and after five times it is parked.
        let claimed = rows.into_iter().filter_map(|row| {
            let body = bodies.get(&row.event_id)?.clone();
            Some(row.into_claimed(body))
        });
        report.claimed = claimed.collect();
        Ok(report)
    }

    /// Everything of a batch but its commit.
    async fn prepare_transaction(
        &self,
        results: &[FinishedAttempt],
        lanes: LaneSet,
        limit: usize,
        last_served: &str,
    ) -> Result<(DbTransaction, Vec<ClaimedRow>, BatchReport), Error> {
        let mut transaction = self.begin().await?;
        let mut report = BatchReport {
            locked: lock_free_lanes(&mut transaction, lanes).await?,
            ..BatchReport::default()
        };
        let groups = self
            .database
            .group_rows(results, |result| result.claimed.lease.lane)
            .await?;
        for (group, results) in groups.iter().filter(|(_, results)| !results.is_empty()) {
            let lane = group.only_column();
            lock_delivery_rows(&mut transaction, lane, results).await?;
            let written = self.write_results(&mut transaction, lane, results).await?;
            let accepted: Vec<_> = results
                .iter()
                .copied()
                .filter(|result| written.contains(&result.claimed.job.id))
                .collect();
            report.written.extend(written);
            settle_original_deliveries(&mut transaction, lane, &accepted).await?;
            let changes = self
                .update_health(&mut transaction, lane, &accepted)
                .await?;
            report.state_changes.extend(changes);
        }
        let claimed = self
            .claim_in_lanes(&mut transaction, report.locked, limit, last_served)
            .await?;
        Ok((transaction, claimed, report))
    }

    async fn begin(&self) -> Result<DbTransaction, Error> {
        let statements = if self.database.is_distributed().await? {
            BEGIN_DISTRIBUTED_SQL
        } else {
            BEGIN_SQL
        };
        self.database.pool().begin_with(statements).await
    }

    /// Claims in all lanes at once; on a distributed database in one after the other, beginning anywhere.
    async fn claim_in_lanes(
        &self,
        transaction: &mut DbTransaction,
        lanes: LaneSet,
        limit: usize,
        last_served: &str,
    ) -> Result<Vec<ClaimedRow>, Error> {
        let mut claimed = Vec::new();
        if lanes.is_empty() {
            return Ok(claimed);
        }
        let mut claim = self.database.start_claim(lanes, limit).await?;
        while let Some((group, left)) = claim.next(claimed.len()) {
            claimed.extend(
                self.claim_due(transaction, group, left, last_served)
                    .await?,
            );
        }
        Ok(claimed)
    }

    /// Loads the bodies, without those that cannot be decoded. Not part of the claim: a client that stops reading in the middle of a large
    /// answer must not hold the locks of its lanes.
    async fn load_bodies(&self, claimed: &[ClaimedRow]) -> Result<HashMap<EventId, Bytes>, Error> {
        if claimed.is_empty() {
            return Ok(HashMap::new());
        }
        // Each event once, although several callbacks may get it.
        let wanted: BTreeMap<_, _> = claimed
            .iter()
            .map(|row| (row.event_id.to_string(), tenant_lane(&row.tenant_id)))
            .collect();
        let wanted: Vec<_> = wanted.into_iter().collect();
        let mut found = HashMap::new();
        let groups = self.database.group_rows(&wanted, |(_, lane)| *lane).await?;
        for (group, wanted) in groups {
            let events = to_column(&wanted, |(event, _)| event.clone());
            let lanes = to_column(&wanted, |(_, lane)| lane.column());
            let loading = self
                .bodies
                .load_bodies_of_lanes(group.only_column(), &lanes, &events);
            found.extend(loading.await?);
        }
        // An event is never deleted before its deliveries.
        if !claimed.iter().all(|row| found.contains_key(&row.event_id)) {
            return Err(Error::RowNotFound);
        }
        let mut bodies = HashMap::new();
        for (event, body) in found {
            match body {
                Ok(body) => drop(bodies.insert(event, Bytes::from(body))),
                Err(error) => tracing::error!(
                    eventId = event.as_str(),
                    error = %error,
                    hint = "the event is not delivered; other events are",
                    "stored_body_unreadable"
                ),
            }
        }
        Ok(bodies)
    }

    /// Writes the results of attempts, except those whose lease is no longer ours.
    async fn write_results(
        &self,
        transaction: &mut DbTransaction,
        lane: Option<i16>,
        results: &[&FinishedAttempt],
    ) -> Result<HashSet<DeliveryId>, Error> {
        let ids = to_column(results, |r| r.claimed.job.id.to_string());
        let leases = to_column(results, |r| r.claimed.lease.number);
        let counts = to_column(results, |r| r.next_step.is_attempt_counted());
        let statuses = to_column(results, |r| r.next_step.status().to_owned());
        let delays = to_column(results, |r| {
            r.next_step.retry_delay().map(|delay| delay.as_secs_f64())
        });
        let outcomes = to_column(results, |r| r.outcome.class().as_str().to_owned());
        let codes = to_column(results, |r| r.outcome.status_code().map(i32::from));
        let excerpts = to_column(results, |r| r.outcome.body_excerpt().map(str::to_owned));
        let errors = to_column(results, |r| r.outcome.detail().map(str::to_owned));
        let written = sqlx::query_scalar!(
            r#"
            with result as (
                select
                    lane, id, lease_no, counts, outcome, code, excerpt, error,
                    attesto_now() as now, attesto_now() + make_interval(secs => pause) as retry_at,
                    status as verdict
                from unnest($1::text[], $2::int[], $3::bool[], $4::text[], $5::float8[], $6::text[], $7::int[], $8::text[], $9::text[],
                        $10::int2[])
                    as result (id, lease_no, counts, status, pause, outcome, code, excerpt, error, lane)
            )
            update webhook_deliveries delivery set
                lease_until = null,
                -- A delivery that failed counts as delivered when a redelivery has delivered the event meanwhile. This is
                -- the row as it is now: another process may have written it while this statement waited for it.
                status = case when settled_by is null then verdict else 'delivered' end,
                attempt_count = attempt_count + counts::int,
                interruptions = case when counts then 0 else interruptions end,
                next_attempt_at =
                    case when settled_by is null and verdict = 'pending' then retry_at end,
                delivered_at = case when settled_by is not null or verdict = 'delivered' then now end,
                failed_at = case when settled_by is null and verdict = 'failed' then now end,
                last_outcome = outcome,
                last_error = error,
                last_attempt_at = case when counts then now else last_attempt_at end,
                last_response_code = case when counts then code else last_response_code end,
                last_response_body = case when counts then excerpt else last_response_body end
            from result
            where delivery.lane = result.lane and delivery.id = result.id
                and delivery.lease_no = result.lease_no and delivery.lease_until is not null
                and ($11::int2 is null or delivery.lane = $11)
            returning delivery.id as "id: DeliveryId"
            "#,
            &ids,
            &leases,
            &counts,
            &statuses,
            &delays as &[Option<f64>],
            &outcomes,
            &codes as &[Option<i32>],
            &excerpts as &[Option<String>],
            &errors as &[Option<String>],
            &to_column(results, |r| r.claimed.lease.lane.column()),
            lane,
        )
        .fetch_all(&mut **transaction)
        .await?;
        Ok(written.into_iter().collect())
    }

    /// Updates the health of the callbacks about which the results say something new.
    async fn update_health(
        &self,
        transaction: &mut DbTransaction,
        lane: Option<i16>,
        results: &[&FinishedAttempt],
    ) -> Result<Vec<EndpointStateChange>, Error> {
        // In the same order in all processes, so that no two of them wait for each other.
        let mut signals: BTreeMap<CallbackUrl<'_>, Vec<HealthSignal>> = BTreeMap::new();
        for result in results {
            if let Some(signal) = result.health_signal() {
                let job = &result.claimed.job;
                let callback = (&job.tenant_id, job.callback, job.callback_url.as_str());
                signals.entry(callback).or_default().push(signal);
            }
        }
        if signals.is_empty() {
            return Ok(Vec::new());
        }
        let callbacks: Vec<CallbackUrl<'_>> = signals.keys().copied().collect();
        let mut rows = self.lock_health_rows(transaction, lane, &callbacks).await?;
        let mut changes = Vec::new();
        for row in &mut rows {
            let before = row.health;
            let callback = (&row.tenant_id, row.callback, row.callback_url.as_str());
            let signals = signals.get(&callback);
            row.health = signals
                .into_iter()
                .flatten()
                .fold(before, |health, signal| {
                    health.after_signal(*signal, row.now)
                });
            if before.state != row.health.state {
                changes.push(EndpointStateChange {
                    tenant_id: row.tenant_id.clone(),
                    callback: row.callback,
                    previous_state: before.state,
                    health: row.health,
                });
            }
        }
        save_health(transaction, lane, &rows).await?;
        Ok(changes)
    }

    /// Locks the health of these callbacks and creates the rows that do not exist.
    async fn lock_health_rows(
        &self,
        transaction: &mut DbTransaction,
        lane: Option<i16>,
        callbacks: &[CallbackUrl<'_>],
    ) -> Result<Vec<HealthRow>, Error> {
        let tenants = to_column(callbacks, |(tenant, ..)| tenant.to_string());
        let numbers = to_column(callbacks, |(_, number, _)| number.column());
        let urls = to_column(callbacks, |(.., url)| (*url).to_owned());
        let lanes = to_column(callbacks, |(tenant, ..)| lane_column(tenant));
        sqlx::query!(
            "
            insert into webhook_health (lane, tenant_id, callback, callback_url)
            select lane, tenant, callback, url
            from unnest($1::text[], $2::int2[], $3::text[], $4::int2[]) as news (tenant, callback, url, lane)
            order by tenant, callback, url
            on conflict do nothing
            ",
            &tenants,
            &numbers,
            &urls,
            &lanes,
        )
        .execute(&mut **transaction)
        .await?;
        let rows = sqlx::query!(
            r#"
            select health.tenant_id as "tenant: TenantId", health.callback as "callback: CallbackNumber",
                news.url as "url!", health.callback_key as "key!",
                state, allowed, failures, unreachable, failing_since, last_success_at, last_failure_at, closed_until,
                closings, attesto_now() as "now!"
            from unnest($1::text[], $2::int2[], $3::text[], $4::int2[]) as news (tenant, callback, url, lane)
            join webhook_health health
                on health.lane = news.lane and health.tenant_id = news.tenant and health.callback = news.callback
                and health.callback_key = hashtextextended(news.url, 0)
                and ($5::int2 is null or health.lane = $5)
            order by health.tenant_id, health.callback, health.callback_key
            for no key update of health
            "#,
            &tenants,
            &numbers,
            &urls,
            &lanes,
            lane,
        )
        .fetch_all(&mut **transaction)
        .await?;
        let rows = rows.into_iter().map(|row| HealthRow {
            tenant_id: row.tenant,
            callback: row.callback,
            callback_url: row.url,
            callback_key: row.key,
            now: row.now.into(),
            health: EndpointHealth {
                state: EndpointState::from_column(&row.state),
                allowed: u8::try_from(row.allowed).unwrap_or(1),
                failures: to_unsigned(row.failures),
                unreachable: to_unsigned(row.unreachable),
                failing_since: row.failing_since.map(Timestamp::from),
                last_success_at: row.last_success_at.map(Timestamp::from),
                last_failure_at: row.last_failure_at.map(Timestamp::from),
                closed_until: row.closed_until.map(Timestamp::from),
                closings: to_unsigned(row.closings),
            },
        });
        Ok(rows.collect())
    }

    /// Claims up to `limit` due deliveries in these lanes, which this transaction has locked: only then are the limits over all
    /// processes exact. Tenants take turns: the tenant with the fewest deliveries in flight is first, then each gets one more, and
    /// so on. The callbacks of a tenant take turns in the same way.
    ///
    /// How many requests a callback may get at once is [`EndpointHealth::max_in_flight`], repeated in SQL; a test compares
    /// the two.
    #[expect(clippy::too_many_lines, reason = "one statement and its columns")]
    async fn claim_due(
        &self,
        transaction: &mut DbTransaction,
        group: LaneGroup,
        limit: i64,
        last_served: &str,
    ) -> Result<Vec<ClaimedRow>, Error> {
        let mut rows = query_waiting_callbacks!(
            query_as!(ClaimedRow),
            r#", busy as (
                select tenant_id, callback, callback_key, count(*) as requests
                from webhook_deliveries
                where lane = any($1) and lease_until is not null and lease_until > attesto_now()
                group by tenant_id, callback, callback_key
            ), open as (
                select waiting.lane, waiting.tenant_id, waiting.callback, waiting.callback_key, waiting.next_attempt_at,
                    coalesce(busy.requests, 0) as under_way,
                    coalesce(of_tenant.requests, 0) as under_way_of_tenant,
                    case when health.closed_until is null then coalesce(health.allowed, 1) else 1 end as admitted,
                    coalesce(health.state = 'active' and health.allowed = $7 and health.failures = 0
                        and health.last_success_at > attesto_now() - make_interval(secs => 60), false)
                        as settled
                from waiting
                join tenants tenant on tenant.id = waiting.tenant_id and tenant.is_active
                join webhook_configs config
                    on config.tenant_id = waiting.tenant_id and config.callback = waiting.callback and config.is_active
                left join webhook_health health
                    on health.lane = waiting.lane and ($2::int2 is null or health.lane = $2) and health.tenant_id = waiting.tenant_id and health.callback = waiting.callback
                    and health.callback_key = waiting.callback_key
                left join busy
                    on busy.tenant_id = waiting.tenant_id and busy.callback = waiting.callback
                    and busy.callback_key = waiting.callback_key
                left join (select tenant_id, sum(requests)::int8 as requests from busy group by tenant_id) of_tenant
                    on of_tenant.tenant_id = waiting.tenant_id
                where waiting.next_attempt_at <= attesto_now()
                    and (health.closed_until is null or health.closed_until <= attesto_now())
                    and not exists (select from delivery_holds where released_at is null)
            ), candidate as (
                select open.lane, due.id, open.tenant_id, open.settled,
                    open.under_way_of_tenant + row_number() over (
                        partition by open.tenant_id
                        order by open.under_way + due.position, open.callback, open.callback_key
                    ) as place
                from open
                cross join lateral (
                    select oldest.id, row_number() over (order by oldest.next_attempt_at) as position
                    from (
                        select delivery.id, delivery.next_attempt_at
                        from webhook_deliveries delivery
                        where delivery.status = 'pending' and delivery.lease_until is null and delivery.parked_at is null
                            and delivery.lane = open.lane and ($2::int2 is null or delivery.lane = $2)
                            and delivery.tenant_id = open.tenant_id and delivery.callback = open.callback
                            and delivery.callback_key = open.callback_key
                            -- Not before the first that waits: the index still has delivered ones there.
                            and delivery.next_attempt_at >= open.next_attempt_at
                            and delivery.next_attempt_at <= attesto_now()
                        order by delivery.next_attempt_at
                        limit least(greatest(open.admitted - open.under_way, 0), $3)
                    ) oldest
                ) due
            ), picked as (
                select lane, id, tenant_id, settled, place, attesto_now() as now
                from candidate
                where place <= $5
                order by place, tenant_id <= $4, tenant_id
                limit $3
            ), locked as (
                select picked.lane, delivery.id, picked.settled, picked.place, picked.now
                from picked
                cross join lateral (
                    select waiting.id, waiting.status, waiting.lease_until, waiting.parked_at
                    from webhook_deliveries waiting
                    where waiting.lane = picked.lane and waiting.id = picked.id and ($2::int2 is null or waiting.lane = $2)
                    -- So that the conditions below are not looked up in an index instead of the id.
                    offset 0
                    for no key update skip locked
                ) delivery
                -- Of the locked row, which another process may have changed since it was picked.
                where delivery.status = 'pending' and delivery.lease_until is null and delivery.parked_at is null
            )
            update webhook_deliveries delivery set
                lease_no = delivery.lease_no + 1,
                lease_until = attesto_now() + make_interval(secs => $6)
            from locked
            where delivery.lane = locked.lane and delivery.id = locked.id
                and ($2::int2 is null or delivery.lane = $2)
            returning delivery.id as "id: DeliveryId", delivery.event_id as "event_id: EventId",
                delivery.tenant_id as "tenant_id: TenantId", delivery.callback as "callback: CallbackNumber",
                delivery.callback_url, delivery.attempt_count,
                delivery.lease_no, delivery.requested_by is not null as "requested!",
                extract(epoch from locked.now - delivery.next_attempt_at)::float8
                    as "waited!",
                (
                    select event.event_type from webhook_events event
                    where event.lane = delivery.lane and event.id = delivery.event_id and ($2::int2 is null or event.lane = $2)
                ) as "event_type!",
                locked.settled as "settled!", locked.place as "place!"
            "#,
            &group.columns(),
            group.only_column(),
            limit,
            last_served,
            MAX_IN_FLIGHT_PER_TENANT,
            LEASE_TTL.as_secs_f64(),
            i16::from(MAX_IN_FLIGHT_PER_CALLBACK),
        )
        .fetch_all(&mut **transaction)
        .await?;
        // In the order in which they were picked: the update returns them in any order.
        let rank = |row: &ClaimedRow| {
            let was_served = row.tenant_id.as_str() <= last_served;
            (row.place, was_served, row.tenant_id.clone())
        };
        rows.sort_by_key(rank);
        Ok(rows)
    }

    /// How long until the next delivery in each of these lanes and the next batch of a redelivery are due.
    pub(super) async fn load_next_due(&self, lanes: LaneSet) -> Result<NextDue, Error> {
        let mut transaction = self.begin().await?;
        let mut next_due = NextDue::default();
        for group in self.database.group_lanes(lanes).await? {
            self.load_due_of_lanes(&mut transaction, group, &mut next_due)
                .await?;
        }
        if self.database.is_distributed().await? {
            // In all lanes, in one statement.
            let pause = sqlx::query_scalar!(
                "select extract(epoch from min(next_batch_at) - attesto_now())::float8
                 from webhook_redeliveries where lane = any($1) and finished_at is null",
                &LaneSet::ALL.columns(),
            )
            .fetch_one(&mut *transaction)
            .await?;
            next_due.redelivery_batch = pause.map(to_pause);
        }
        transaction.commit().await?;
        Ok(next_due)
    }

    async fn load_due_of_lanes(
        &self,
        transaction: &mut DbTransaction,
        group: LaneGroup,
        next_due: &mut NextDue,
    ) -> Result<(), Error> {
        // The batch of a redelivery is looked for in all lanes, as far as one statement may.
        let batch_lanes = match group.only {
            None => LaneSet::ALL,
            Some(lane) => LaneSet::from(lane),
        };
        let rows = query_waiting_callbacks!(
            query!(),
            r#", busy as (
                select tenant_id, callback, callback_key, count(*) as requests
                from webhook_deliveries
                where lane = any($1) and lease_until is not null and lease_until > attesto_now()
                group by tenant_id, callback, callback_key
            ), due as (
                select waiting.lane, min(greatest(waiting.next_attempt_at, health.closed_until)) as due_at
                from waiting
                join tenants tenant on tenant.id = waiting.tenant_id and tenant.is_active
                join webhook_configs config
                    on config.tenant_id = waiting.tenant_id and config.callback = waiting.callback and config.is_active
                left join webhook_health health
                    on health.lane = waiting.lane and ($2::int2 is null or health.lane = $2) and health.tenant_id = waiting.tenant_id and health.callback = waiting.callback
                    and health.callback_key = waiting.callback_key
                left join busy
                    on busy.tenant_id = waiting.tenant_id and busy.callback = waiting.callback
                    and busy.callback_key = waiting.callback_key
                left join (select tenant_id, sum(requests)::int8 as requests from busy group by tenant_id) of_tenant
                    on of_tenant.tenant_id = waiting.tenant_id
                where not exists (select from delivery_holds where released_at is null)
                    and coalesce(of_tenant.requests, 0) < $3
                    and coalesce(busy.requests, 0)
                        < case when health.closed_until is null then coalesce(health.allowed, 1) else 1 end
                group by waiting.lane
            ), batch as (
                select min(next_batch_at) as due_at from webhook_redeliveries where lane = any($4) and finished_at is null
            )
            select lane as "lane?", extract(epoch from due_at - attesto_now())::float8 as "pause?" from due
            union all
            select null, extract(epoch from due_at - attesto_now())::float8 from batch
            "#,
            &group.columns(),
            group.only_column(),
            MAX_IN_FLIGHT_PER_TENANT,
            &batch_lanes.columns(),
        )
        .fetch_all(&mut **transaction)
        .await?;
        for row in rows {
            let Some(seconds) = row.pause else { continue };
            let pause = to_pause(seconds);
            match row.lane {
                Some(number) => {
                    let lane = Lane::from_column(number);
                    next_due.deliveries.extend(lane.map(|lane| (lane, pause)));
                }
                None => next_due.redelivery_batch = Some(pause),
            }
        }
        Ok(())
    }

    /// Renews these leases. Returns the deliveries whose leases are still ours.
    pub(super) async fn renew_leases(
        &self,
        leases: &[Lease],
    ) -> Result<HashSet<DeliveryId>, Error> {
        let mut all_renewed = HashSet::new();
        for (group, leases) in self.database.group_rows(leases, |lease| lease.lane).await? {
            let leases = leases.as_slice();
            let renewed = sqlx::query_scalar!(
            r#"
            update webhook_deliveries delivery
            set lease_until = attesto_now() + make_interval(secs => $1::float8)
            from unnest($2::int2[], $3::text[], $4::int[]) as held (lane, id, lease_no)
            where delivery.lane = held.lane and delivery.id = held.id and delivery.lease_no = held.lease_no and delivery.lease_until is not null
                and ($5::int2 is null or delivery.lane = $5)
            returning delivery.id as "id: DeliveryId"
            "#,
            LEASE_TTL.as_secs_f64(),
            &to_column(leases, |lease| lease.lane.column()),
            &to_column(leases, |lease| lease.delivery_id.to_string()),
            &to_column(leases, |lease| lease.number),
            group.only_column(),
        )
        .fetch_all(self.database.pool())
        .await?;
            all_renewed.extend(renewed);
        }
        Ok(all_renewed)
    }

    /// Releases deliveries that were not sent, or whose attempt was cut off: they are due as before, any process can claim
    /// them, and no attempt is counted. Returns how many leases were still ours.
    pub(super) async fn release_leases(&self, leases: &[Lease]) -> Result<u64, Error> {
        let mut released = 0;
        for (group, leases) in self.database.group_rows(leases, |lease| lease.lane).await? {
            let leases = leases.as_slice();
            let done = sqlx::query!(
            "
            update webhook_deliveries delivery
            set lease_until = null, lease_no = delivery.lease_no + 1
            from unnest($1::int2[], $2::text[], $3::int[]) as held (lane, id, lease_no)
            where delivery.lane = held.lane and delivery.id = held.id and delivery.lease_no = held.lease_no and delivery.lease_until is not null
                and ($4::int2 is null or delivery.lane = $4)
            ",
            &to_column(leases, |lease| lease.lane.column()),
            &to_column(leases, |lease| lease.delivery_id.to_string()),
            &to_column(leases, |lease| lease.number),
            group.only_column(),
        )
        .execute(self.database.pool())
        .await?;
            released += done.rows_affected();
        }
        Ok(released)
    }

    /// Ends expired leases. The interruption is counted, the attempt is not.
    pub(super) async fn sweep_expired_leases(&self) -> Result<SweepReport, Error> {
        let mut report = SweepReport::default();
        for group in self.database.group_lanes(LaneSet::ALL).await? {
            let rows = sqlx::query!(
            r#"
            with expired as (
                select lane, id, attesto_now() as now
                from webhook_deliveries
                where lane = any($3) and lease_until <= attesto_now()
                order by lease_until
                limit $2
                for no key update skip locked
            )
            update webhook_deliveries delivery set
                lease_until = null,
                lease_no = delivery.lease_no + 1,
                interruptions = delivery.interruptions + 1,
                parked_at = case when delivery.interruptions + 1 >= $1
                    then expired.now end
            from expired
            where delivery.lane = expired.lane and delivery.id = expired.id and ($4::int2 is null or delivery.lane = $4)
                -- Checked again in the row as it is now: the lease may have been renewed after the row was selected.
                and delivery.lease_until <= attesto_now()
            returning delivery.id as "id: DeliveryId", delivery.lane, delivery.parked_at
            "#,
            MAX_INTERRUPTIONS,
            MAX_LEASES_PER_SWEEP,
            &group.columns(),
            group.only_column(),
        )
        .fetch_all(self.database.pool())
        .await?;
            report.interrupted += rows.len();
            for row in rows {
                if let Some(lane) = Lane::from_column(row.lane) {
                    report.lanes.insert(lane);
                }
                if row.parked_at.is_some() {
                    report.parked.push(row.id);
                }
            }
        }
        Ok(report)
    }
}

/// Locks those of the lanes in which no other process is claiming, until the end of the transaction.
async fn lock_free_lanes(
    transaction: &mut DbTransaction,
    lanes: LaneSet,
) -> Result<LaneSet, Error> {
    if lanes.is_empty() {
        return Ok(LaneSet::EMPTY);
    }
    let locked = sqlx::query_scalar!(
        "select lane from delivery_lanes where lane = any($1) order by lane for no key update skip locked",
        &lanes.columns(),
    )
    .fetch_all(&mut **transaction)
    .await?;
    Ok(locked.into_iter().filter_map(Lane::from_column).collect())
}

/// A redelivery that succeeded also writes the event's original delivery. So all rows that this transaction writes are
/// locked first, in the same order in all processes: no two of them wait for each other.
async fn lock_delivery_rows(
    transaction: &mut DbTransaction,
    lane: Option<i16>,
    results: &[&FinishedAttempt],
) -> Result<(), Error> {
    let redelivered = results.iter().filter(|r| r.is_successful_redelivery());
    let redelivered: Vec<_> = redelivered.map(|r| &r.claimed).collect();
    if redelivered.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "
        with written as materialized (
            select lane, id from unnest($1::int2[], $2::text[]) as own (lane, id)
            union
            select original.lane, original.id
            from unnest($3::int2[], $4::text[]) as redelivered (lane, event_id)
            join webhook_deliveries original
                on original.lane = redelivered.lane and original.event_id = redelivered.event_id
                and original.status = 'pending' and original.requested_by is null
                and ($5::int2 is null or original.lane = $5)
        )
        select from written
        join webhook_deliveries delivery on delivery.lane = written.lane and delivery.id = written.id
            and ($5::int2 is null or delivery.lane = $5)
        order by delivery.id
        for no key update of delivery
        ",
        &to_column(results, |r| r.claimed.lease.lane.column()),
        &to_column(results, |r| r.claimed.job.id.to_string()),
        &to_column(&redelivered, |claimed| claimed.lease.lane.column()),
        &to_column(&redelivered, |claimed| claimed.job.event_id.to_string()),
        lane,
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Ends the original delivery to the same callback of each event that a redelivery has delivered. One that is in flight may finish: its
/// column `settled_by` decides what its result means.
async fn settle_original_deliveries(
    transaction: &mut DbTransaction,
    lane: Option<i16>,
    results: &[&FinishedAttempt],
) -> Result<(), Error> {
    let redelivered = results.iter().filter(|r| r.is_successful_redelivery());
    let jobs: Vec<_> = redelivered.map(|r| &r.claimed.job).collect();
    let events = to_column(&jobs, |job| job.event_id.to_string());
    if events.is_empty() {
        return Ok(());
    }
    sqlx::query!(
        "
        with arrived as (
            select arrived.*, attesto_now() as now
            from unnest($1::text[], $2::int2[], $3::text[], $4::int2[]) as arrived (event, callback, delivery, lane)
        )
        update webhook_deliveries delivery set
            settled_by = arrived.delivery,
            status = case when lease_until is null then 'delivered' else status end,
            next_attempt_at = case when lease_until is null then null else next_attempt_at end,
            delivered_at = case
                when lease_until is null then arrived.now else delivered_at
            end
        from arrived
        where delivery.lane = arrived.lane and delivery.event_id = arrived.event and delivery.callback = arrived.callback
            and delivery.status = 'pending' and delivery.requested_by is null
            and ($5::int2 is null or delivery.lane = $5)
        ",
        &events,
        &to_column(&jobs, |job| job.callback.column()),
        &to_column(&jobs, |job| job.id.to_string()),
        &to_column(&jobs, |job| lane_column(&job.tenant_id)),
        lane,
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Tells all processes that deliveries are due in these lanes.
pub(super) async fn notify_work_channel(database: &Database, lanes: LaneSet) -> Result<(), Error> {
    sqlx::query("select pg_notify($1, $2)")
        .bind(WORK_CHANNEL)
        .bind(format_work_payload(lanes))
        .execute(database.pool())
        .await?;
    Ok(())
}

/// What a notification on [`WORK_CHANNEL`] says.
fn format_work_payload(lanes: LaneSet) -> String {
    if lanes == LaneSet::ALL {
        String::new()
    } else {
        format!("{:x}", lanes.bits())
    }
}

/// The lanes that a notification on [`WORK_CHANNEL`] names. `None`: it names none.
pub(super) fn parse_work_payload(payload: &str) -> Option<LaneSet> {
    u64::from_str_radix(payload, 16)
        .ok()
        .map(LaneSet::from_bits)
}

/// For a database that did not answer in time.
pub(super) fn timeout_error() -> Error {
    Error::Io(std::io::ErrorKind::TimedOut.into())
}

/// One row of the claim, before the body is read.
struct ClaimedRow {
    id: DeliveryId,
    event_id: EventId,
    tenant_id: TenantId,
    callback: CallbackNumber,
    callback_url: String,
    attempt_count: i32,
    lease_no: i32,
    requested: bool,
    waited: f64,
    event_type: String,
    settled: bool,
    place: i64,
}

impl ClaimedRow {
    fn lease(&self) -> Lease {
        Lease {
            lane: tenant_lane(&self.tenant_id),
            delivery_id: self.id.clone(),
            number: self.lease_no,
        }
    }

    fn into_claimed(self, body: Bytes) -> ClaimedDelivery {
        ClaimedDelivery {
            lease: self.lease(),
            job: Arc::new(DeliveryJob {
                id: self.id,
                event_id: self.event_id,
                tenant_id: self.tenant_id,
                event_type: self.event_type,
                callback: self.callback,
                callback_url: self.callback_url,
                body,
                attempt_number: to_unsigned(self.attempt_count).saturating_add(1),
            }),
            is_redelivery: self.requested,
            is_callback_healthy: self.settled,
            lag: Duration::try_from_secs_f64(self.waited).unwrap_or_default(),
        }
    }
}

/// A tenant, one of its callbacks, and the URL of that callback.
type CallbackUrl<'a> = (&'a TenantId, CallbackNumber, &'a str);

/// A locked row of `webhook_health`.
struct HealthRow {
    tenant_id: TenantId,
    callback: CallbackNumber,
    callback_url: String,
    callback_key: i64,
    /// The database's clock.
    now: Timestamp,
    health: EndpointHealth,
}

async fn save_health(
    transaction: &mut DbTransaction,
    lane: Option<i16>,
    rows: &[HealthRow],
) -> Result<(), Error> {
    let number = |number: u32| i32::try_from(number).unwrap_or(i32::MAX);
    let moments = |moment: fn(&EndpointHealth) -> Option<Timestamp>| {
        to_column(rows, |row| moment(&row.health).map(OffsetDateTime::from))
    };
    sqlx::query!(
        "
            update webhook_health health set
                state = news.state, allowed = news.allowed, failures = news.failures, unreachable = news.unreachable,
                failing_since = news.failing_since, last_success_at = news.last_success_at,
                last_failure_at = news.last_failure_at, closed_until = news.closed_until, closings = news.closings
            from unnest($1::text[], $2::int8[], $3::text[], $4::int2[], $5::int[], $6::int[], $7::timestamptz[],
                    $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::int[], $12::int2[], $13::int2[])
                as news (tenant, key, state, allowed, failures, unreachable, failing_since, last_success_at,
                    last_failure_at, closed_until, closings, callback, lane)
            where health.lane = news.lane and health.tenant_id = news.tenant and health.callback = news.callback and health.callback_key = news.key
                and ($14::int2 is null or health.lane = $14)
            ",
        &to_column(rows, |row| row.tenant_id.to_string()),
        &to_column(rows, |row| row.callback_key),
        &to_column(rows, |row| row.health.state.as_str().to_owned()),
        &to_column(rows, |row| i16::from(row.health.allowed)),
        &to_column(rows, |row| number(row.health.failures)),
        &to_column(rows, |row| number(row.health.unreachable)),
        &moments(|health| health.failing_since) as &[Option<OffsetDateTime>],
        &moments(|health| health.last_success_at) as &[Option<OffsetDateTime>],
        &moments(|health| health.last_failure_at) as &[Option<OffsetDateTime>],
        &moments(|health| health.closed_until) as &[Option<OffsetDateTime>],
        &to_column(rows, |row| number(row.health.closings)),
        &to_column(rows, |row| row.callback.column()),
        &to_column(rows, |row| lane_column(&row.tenant_id)),
        lane,
    )
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// One value of each row, as `unnest` takes them.
fn to_column<R, T>(rows: &[R], value: impl Fn(&R) -> T) -> Vec<T> {
    rows.iter().map(value).collect()
}

fn to_pause(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LEASE_TTL)
}

/// Counters are never negative.
fn to_unsigned(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_payload_names_lanes_or_none() {
        for bits in [1, 1 << 63, 0xdead_beef] {
            let lanes = LaneSet::from_bits(bits);
            assert_eq!(parse_work_payload(&format_work_payload(lanes)), Some(lanes));
        }
        assert_eq!(parse_work_payload(&format_work_payload(LaneSet::ALL)), None);
        assert_eq!(parse_work_payload("of a later release"), None);
    }
}
