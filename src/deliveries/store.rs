//! Every query of the dispatcher.
//!
//! Only the database's clock says what is due and which lease is over. It is read as `statement_timestamp()`: inside a
//! transaction that waited, `now()` is older. `make_interval(secs => $1)` is added to it everywhere; that is
//! [`Clock::lead`], by which a test moves time, and zero otherwise.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::time::timeout;

use super::courier::Parcel;
use super::delivery::Next;
use super::health::{Health, MOST, Signal, State};
use super::outcome::Class;
use crate::clock::{Clock, Timestamp};
use crate::db::{Database, Error, Transaction};
use crate::id::{DeliveryId, EventId, TenantId};

/// Where processes tell each other that there is work.
pub(super) const CHANNEL: &str = "attesto_work";
/// How long a worker holds a row without saying that it is still there. Until then what a dead one held counts as being
/// under way, against the limits of its callback too; so it is not long, and it is renewed often.
pub(super) const LEASE: Duration = Duration::from_secs(20);
/// How many deliveries of one tenant may be under way at once, over all processes.
pub(super) const MOST_OF_A_TENANT: i64 = 32;
/// After this many lost leases in a row, a person has to look.
pub(super) const INTERRUPTIONS: i32 = 5;
/// How long the statements of a turn may take.
const WORKING: Duration = Duration::from_secs(8);
/// How long a commit may take before nobody knows whether it happened.
const COMMITTING: Duration = Duration::from_secs(4);
/// Leases ended in one statement.
const SWEEP: i64 = 1000;

/// One claimer at a time, in all processes: only then are the limits that hold over all of them exact. It waits in the
/// same message that begins the transaction, and a process that is stopped in the middle is thrown out soon.
///
/// The plans must not depend on how many rows there were when they were made: the table can grow a thousandfold before
/// its statistics do.
const CLAIMING: &str = "set local idle_in_transaction_session_timeout = '2s'; set local enable_seqscan = off; \
    set local enable_bitmapscan = off; set local jit = off; select pg_advisory_xact_lock(7233186720511)";
/// The same for writing only.
const WRITING: &str = "set local idle_in_transaction_session_timeout = '2s'; set local enable_seqscan = off; \
    set local enable_bitmapscan = off; set local jit = off";

/// The right to write one result: the row, and the number it was claimed under.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Lease {
    pub(super) delivery: DeliveryId,
    pub(super) no: i32,
}

/// A delivery that is ours until its lease is over.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) lease: Lease,
    pub(super) parcel: Parcel,
    /// Whether somebody asked for this delivery, beside the one that belongs to the event.
    pub(super) requested: bool,
    /// Whether a success would say nothing new about the callback.
    pub(super) settled: bool,
    /// How long it was due.
    pub(super) waited: Duration,
}

/// What became of an attempt.
#[derive(Clone, Debug)]
pub(super) struct Finished {
    pub(super) lease: Lease,
    pub(super) event: EventId,
    pub(super) tenant: TenantId,
    pub(super) url: String,
    pub(super) requested: bool,
    pub(super) next: Next,
    pub(super) class: Class,
    pub(super) code: Option<u16>,
    pub(super) excerpt: Option<String>,
    /// What it says about the callback, when that is news.
    pub(super) signal: Option<Signal>,
}

/// What one turn did.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// The results that were written.
    pub(super) written: HashSet<DeliveryId>,
    pub(super) claimed: Vec<Claimed>,
    /// Callbacks whose state is another now.
    pub(super) changes: Vec<StateChange>,
}

/// A callback whose state is another now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StateChange {
    pub(super) tenant: TenantId,
    pub(super) from: State,
    pub(super) health: Health,
}

/// Why a turn is not done, as far as is known.
#[derive(Debug, thiserror::Error)]
#[error("{error}")]
pub(super) struct TurnError {
    #[source]
    pub(super) error: Error,
    /// The commit may have happened all the same, and with it these claims.
    pub(super) unsure: Vec<Lease>,
}

impl From<Error> for TurnError {
    fn from(error: Error) -> Self {
        Self {
            error,
            unsure: Vec::new(),
        }
    }
}

/// What is to do next, and when.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Agenda {
    /// Until the next delivery that may be sent is due. `None`: none waits, or what waits may not be sent.
    pub(super) due: Option<Duration>,
    /// Until the next batch of a redelivery.
    pub(super) batch: Option<Duration>,
}

/// What sweeping found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// Leases that ended without a word from whoever held them.
    pub(super) interrupted: usize,
    /// Deliveries that now wait for a person.
    pub(super) parked: Vec<DeliveryId>,
}

/// The deliveries, as a dispatcher sees them.
#[derive(Clone, Debug)]
pub(super) struct Store {
    database: Database,
    clock: Clock,
}

impl Store {
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
    pub(super) async fn turn(
        &self,
        results: &[Finished],
        wish: usize,
        after: &str,
    ) -> Result<Turn, TurnError> {
        let working = timeout(WORKING, self.write_and_claim(results, wish, after)).await;
        let (transaction, mut turn) = working.map_err(|_| late())??;
        // From here on somebody may hold these rows for us, whatever we hear of it.
        let unsure = |error: Error, turn: &Turn| TurnError {
            error,
            unsure: turn.claimed.iter().map(|one| one.lease.clone()).collect(),
        };
        match timeout(COMMITTING, transaction.commit()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(unsure(error, &turn)),
            Err(_) => return Err(unsure(late(), &turn)),
        }
        match timeout(COMMITTING, self.bodies(&mut turn.claimed)).await {
            Ok(Ok(())) => Ok(turn),
            Ok(Err(error)) => Err(unsure(error, &turn)),
            Err(_) => Err(unsure(late(), &turn)),
        }
    }

    /// Everything of a turn but its commit.
    async fn write_and_claim(
        &self,
        results: &[Finished],
        wish: usize,
        after: &str,
    ) -> Result<(Transaction, Turn), Error> {
        let begin = if wish > 0 { CLAIMING } else { WRITING };
        let mut transaction = self.database.pool().begin_with(begin).await?;
        let mut turn = Turn::default();
        if !results.is_empty() {
            lock_in_order(&mut transaction, results).await?;
            turn.written = self.write(&mut transaction, results).await?;
            let accepted: Vec<_> = results
                .iter()
                .filter(|result| turn.written.contains(&result.lease.delivery))
                .collect();
            settle(&mut transaction, &accepted, self.lead()).await?;
            turn.changes = self.note_health(&mut transaction, &accepted).await?;
        }
        if wish > 0 {
            turn.claimed = self.claim(&mut transaction, wish, after).await?;
        }
        Ok((transaction, turn))
    }

    /// Reads what is sent. Not in the claim: whoever stops reading in the middle of a large answer must not hold the
    /// lock that all claimers wait for.
    async fn bodies(&self, claimed: &mut [Claimed]) -> Result<(), Error> {
        if claimed.is_empty() {
            return Ok(());
        }
        let events: Vec<String> = claimed
            .iter()
            .map(|one| one.parcel.event.to_string())
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
            let body = bodies.get(&one.parcel.event).ok_or(Error::RowNotFound)?;
            one.parcel.body = body.clone();
        }
        Ok(())
    }

    /// Writes what became of attempts, as far as the rows are still ours.
    async fn write(
        &self,
        transaction: &mut Transaction,
        results: &[Finished],
    ) -> Result<HashSet<DeliveryId>, Error> {
        let each = results.iter();
        let ids: Vec<String> = each.clone().map(|r| r.lease.delivery.to_string()).collect();
        let leases: Vec<i32> = each.clone().map(|r| r.lease.no).collect();
        let counts: Vec<bool> = each.clone().map(|r| r.next.counts()).collect();
        let statuses: Vec<String> = each.clone().map(|r| r.next.status().to_owned()).collect();
        let pauses: Vec<Option<f64>> = each
            .clone()
            .map(|r| r.next.pause().map(|pause| pause.as_secs_f64()))
            .collect();
        let outcomes: Vec<String> = each.clone().map(|r| r.class.as_str().to_owned()).collect();
        let codes: Vec<Option<i32>> = each.clone().map(|r| r.code.map(i32::from)).collect();
        let excerpts: Vec<Option<String>> = each.map(|r| r.excerpt.clone()).collect();
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
    async fn note_health(
        &self,
        transaction: &mut Transaction,
        results: &[&Finished],
    ) -> Result<Vec<StateChange>, Error> {
        // In one order in all processes, so that none waits for another that waits for it.
        let mut news: BTreeMap<(&str, &str), Vec<Signal>> = BTreeMap::new();
        for result in results {
            if let Some(signal) = result.signal {
                let callback = (result.tenant.as_str(), result.url.as_str());
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
            let before = Health {
                state: State::from_word(&row.state),
                allowed: u8::try_from(row.allowed).unwrap_or(1),
                failures: natural(row.failures),
                unreachable: natural(row.unreachable),
                failing_since: row.failing_since.map(Timestamp::from),
                last_success_at: row.last_success_at.map(Timestamp::from),
                last_failure_at: row.last_failure_at.map(Timestamp::from),
                closed_until: row.closed_until.map(Timestamp::from),
                closings: natural(row.closings),
            };
            let signals = news.get(&(row.tenant.as_str(), row.url.as_str()));
            let after = signals
                .into_iter()
                .flatten()
                .fold(before, |health, signal| health.after(*signal, now));
            columns.push(&row.tenant, row.key, &after);
            if before.state != after.state {
                changes.push(StateChange {
                    tenant: row.tenant,
                    from: before.state,
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
            &columns.failing_since as &[Moment],
            &columns.last_success_at as &[Moment],
            &columns.last_failure_at as &[Moment],
            &columns.closed_until as &[Moment],
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
    async fn claim(
        &self,
        transaction: &mut Transaction,
        wish: usize,
        after: &str,
    ) -> Result<Vec<Claimed>, Error> {
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
            MOST_OF_A_TENANT,
            LEASE.as_secs_f64(),
            i16::from(MOST),
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
        let claimed = rows.into_iter().map(|row| Claimed {
            lease: Lease {
                delivery: row.id.clone(),
                no: row.lease_no,
            },
            parcel: Parcel {
                delivery: row.id,
                event: row.event_id,
                tenant: row.tenant_id,
                word: row.event_type,
                url: row.callback_url,
                body: Bytes::new(),
                number: natural(row.attempt_count).saturating_add(1),
            },
            requested: row.requested,
            settled: row.settled,
            waited: Duration::try_from_secs_f64(row.waited).unwrap_or_default(),
        });
        Ok(claimed.collect())
    }

    /// When there is something to do next.
    pub(super) async fn agenda(&self) -> Result<Agenda, Error> {
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
            MOST_OF_A_TENANT,
        )
        .fetch_one(self.database.pool())
        .await?;
        let until = |seconds: Option<f64>| {
            seconds.map(|seconds| Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(LEASE))
        };
        Ok(Agenda {
            due: until(row.due),
            batch: until(row.batch),
        })
    }

    /// Says that we still work on these. Returns those that are still ours.
    pub(super) async fn renew(&self, leases: &[Lease]) -> Result<HashSet<DeliveryId>, Error> {
        let (ids, numbers) = split(leases);
        let renewed = sqlx::query_scalar!(
            r#"
            update webhook_deliveries delivery
            set lease_until = statement_timestamp() + make_interval(secs => $1::float8 + $2::float8)
            from unnest($3::text[], $4::int[]) as held (id, lease_no)
            where delivery.id = held.id and delivery.lease_no = held.lease_no and delivery.lease_until is not null
            returning delivery.id as "id: DeliveryId"
            "#,
            self.lead(),
            LEASE.as_secs_f64(),
            &ids,
            &numbers,
        )
        .fetch_all(self.database.pool())
        .await?;
        Ok(renewed.into_iter().collect())
    }

    /// Gives back what was not sent, or may not have been: due as before, to anybody, and nothing counted. Returns how
    /// many were still ours.
    pub(super) async fn release(&self, leases: &[Lease]) -> Result<u64, Error> {
        let (ids, numbers) = split(leases);
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
    pub(super) async fn sweep(&self) -> Result<Swept, Error> {
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
            INTERRUPTIONS,
            SWEEP,
        )
        .fetch_all(self.database.pool())
        .await?;
        Ok(Swept {
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
async fn lock_in_order(transaction: &mut Transaction, results: &[Finished]) -> Result<(), Error> {
    let arrived = results
        .iter()
        .filter(|result| result.requested && result.next == Next::Delivered);
    let events: Vec<String> = arrived.map(|result| result.event.to_string()).collect();
    if events.is_empty() {
        return Ok(());
    }
    let each = results.iter();
    let own: Vec<String> = each.map(|r| r.lease.delivery.to_string()).collect();
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
async fn settle(
    transaction: &mut Transaction,
    results: &[&Finished],
    lead: f64,
) -> Result<(), Error> {
    let arrived = results
        .iter()
        .filter(|result| result.requested && result.next == Next::Delivered);
    let events: Vec<String> = arrived.clone().map(|r| r.event.to_string()).collect();
    let deliveries: Vec<String> = arrived.map(|r| r.lease.delivery.to_string()).collect();
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
pub(super) async fn announce(database: &Database) -> Result<(), Error> {
    sqlx::query("select pg_notify($1, '')")
        .bind(CHANNEL)
        .execute(database.pool())
        .await?;
    Ok(())
}

/// The database did not answer in time.
pub(super) fn late() -> Error {
    Error::Io(std::io::ErrorKind::TimedOut.into())
}

fn split(leases: &[Lease]) -> (Vec<String>, Vec<i32>) {
    let each = leases.iter();
    each.map(|lease| (lease.delivery.to_string(), lease.no))
        .unzip()
}

/// Counters are never negative.
fn natural(number: i32) -> u32 {
    u32::try_from(number).unwrap_or(0)
}

type Moment = Option<time::OffsetDateTime>;

/// Rows of `webhook_health`, column by column, as `unnest` takes them.
#[derive(Default)]
struct HealthColumns {
    tenants: Vec<String>,
    keys: Vec<i64>,
    states: Vec<String>,
    allowed: Vec<i16>,
    failures: Vec<i32>,
    unreachable: Vec<i32>,
    failing_since: Vec<Moment>,
    last_success_at: Vec<Moment>,
    last_failure_at: Vec<Moment>,
    closed_until: Vec<Moment>,
    closings: Vec<i32>,
}

impl HealthColumns {
    fn push(&mut self, tenant: &TenantId, key: i64, health: &Health) {
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
