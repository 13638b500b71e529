//! The loop that delivers. Any number of processes can run one on the same database.
//!
//! A round is one transaction, followed by requests with no transaction open:
//!
//! 1. The results of finished attempts are written, as far as their leases are still ours, and as many due deliveries are
//!    claimed as there are free slots ([`DeliveryStore::write_results_and_claim`]).
//! 2. Each claimed job is sent at once. Its result waits for the next round.
//!
//! A round begins when an attempt has finished, when the [`WorkNotifier`] says that there is work, and when the next delivery
//! is due. It claims in the lanes that the [`LaneSchedule`] names. After a round that left free slots its lanes are surveyed for what
//! is due next, and at the poll interval all lanes are. A process that dies leaves leases behind, which other processes sweep
//! when they have expired. A process that is asked to stop lets its attempts finish and releases the rest.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::delivery::Delivery;
use super::health::EndpointState;
use super::job::JobSender;
use super::lane_schedule::LaneSchedule;
use super::metrics::DeliveryMetrics;
use super::outcome::{AttemptOutcome, OutcomeClass};
use super::redelivery::Redeliveries;
use super::slots;
use super::store::{
    ClaimedDelivery, DeliveryStore, EndpointStateChange, FinishedAttempt, LEASE_TTL, Lease,
    timeout_error,
};
use super::work_notifier::WorkNotifier;
use crate::base::backoff::{Backoff, spread};
use crate::base::clock::Clock;
use crate::base::lane::LaneSet;
use crate::db::{Database, DatabaseConnectError, Error, describe_cause, error_class};
use crate::replicas::LaneShare;
use crate::telemetry::metrics::{MetricsRegistry, ObservableKind};
use crate::tenants::lane::tenant_lane;

/// Three renewals may fail before a lease is lost.
const LEASE_RENEWAL_INTERVAL: Duration = Duration::from_millis(4500);
/// A request whose lease could not be renewed is aborted this long before the lease expires, so that no other process
/// sends the same delivery at the same time.
const LEASE_SAFETY_MARGIN: Duration = Duration::from_secs(5);
/// How often expired leases of other processes are looked for.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long the first finished attempt waits for others, to be written together.
const GATHER_TIMEOUT: Duration = Duration::from_millis(1);
const MAX_RESULTS_PER_BATCH: usize = 512;
/// After a round that left free slots: how long until the database is asked what is due next. Also how long a lane is left to another
/// process that was claiming in it.
const IDLE_NEXT_DUE_DELAY: Duration = Duration::from_millis(30);
/// The same after a round that used all slots: then only redeliveries wait for the answer.
const BUSY_NEXT_DUE_DELAY: Duration = Duration::from_secs(1);
/// For one database operation. A renewal that takes longer has failed early enough to abort its request.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(8);
/// The delay between attempts to reach the database. It doubles up to the maximum.
const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(3);

/// How a dispatcher works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatcherSettings {
    /// How many deliveries may be in flight at once. Slow ones do not count: see [`slots`].
    pub concurrency: usize,
    /// How often the database is asked for work that no notification announced.
    pub poll_interval: Duration,
    /// How many times a delivery is retried after its first attempt.
    pub max_retries: u32,
    /// How long attempts in flight may take to finish when the process stops.
    pub shutdown_timeout: Duration,
}

/// Whether this process delivers. Clones share it.
#[derive(Clone, Debug)]
pub struct DispatchStatus {
    is_enabled: bool,
    /// What keeps the dispatcher from claiming deliveries. `None` while it works, and before its first attempt.
    problem: Arc<Mutex<Option<DatabaseConnectError>>>,
    /// Whether the dispatcher may not begin yet.
    is_unprepared: Arc<AtomicBool>,
    /// What to do where it gets no connection: a clause that may be public.
    connection_advice: Arc<Mutex<Option<String>>>,
}

impl DispatchStatus {
    /// `is_enabled`: whether this process has a dispatcher.
    pub fn new(is_enabled: bool) -> Self {
        Self {
            is_enabled,
            problem: Arc::default(),
            is_unprepared: Arc::default(),
            connection_advice: Arc::default(),
        }
    }

    /// Sets whether the dispatcher must wait until the database was migrated and the encryption keys were checked.
    pub fn set_unprepared(&self, is_unprepared: bool) {
        self.is_unprepared.store(is_unprepared, Ordering::Relaxed);
    }

    /// Why this process delivers nothing, if so, in words that may be public.
    pub fn notice(&self) -> Option<String> {
        if !self.is_enabled {
            return Some("off: this process only receives".to_owned());
        }
        let advice = self.connection_advice.lock().clone();
        if self.is_unprepared.load(Ordering::Relaxed) {
            let advice = advice.map_or(String::new(), |advice| format!(" ({advice})"));
            return Some(format!(
                "waiting: the database or the encryption key is not checked yet{advice}"
            ));
        }
        let problem = (*self.problem.lock())?;
        let is_short = matches!(
            problem,
            DatabaseConnectError::TooManyConnections | DatabaseConnectError::PoolExhausted
        );
        Some(match advice.filter(|_| is_short) {
            Some(advice) => format!("waiting: {problem} ({advice})"),
            None => format!("waiting: {problem}"),
        })
    }

    /// Sets what to do where the dispatcher gets no connection: a clause that may be public.
    pub(crate) fn set_connection_advice(&self, advice: String) {
        *self.connection_advice.lock() = Some(advice);
    }

    /// Shows it in `registry`.
    pub fn register_in(&self, registry: &MetricsRegistry) {
        let status = self.clone();
        registry.register_observable(
            "attesto_dispatcher_up",
            "Whether this process delivers: 0 while its dispatcher is off or cannot use the database.",
            move |report| report(None, f64::from(u8::from(status.notice().is_none()))),
            ObservableKind::Gauge,
        );
    }

    fn set_problem(&self, problem: Option<DatabaseConnectError>) {
        *self.problem.lock() = problem;
    }
}

/// Claims deliveries, sends them and writes the results.
pub struct Dispatcher {
    store: DeliveryStore,
    redeliveries: Redeliveries,
    sender: Box<dyn JobSender>,
    work_notifier: WorkNotifier,
    settings: DispatcherSettings,
    metrics: DeliveryMetrics,
    status: DispatchStatus,
    request_tasks: JoinSet<AttemptOutcome>,
    in_flight: HashMap<Id, InFlightDelivery>,
    unwritten_results: Vec<FinishedAttempt>,
    /// Whether the first of `unwritten_results` may be in the database already: their commit was not confirmed.
    maybe_written: bool,
    /// Claims whose commit was not confirmed.
    maybe_claimed: Vec<Lease>,
    /// The tenant of the last claimed delivery; empty at first.
    last_served_tenant: String,
    schedule: LaneSchedule,
    share: LaneShare,
    /// Whether the last claim used every free slot. Then this process helps in no lane of others.
    is_busy: bool,
}

/// A claimed delivery whose request is running.
struct InFlightDelivery {
    claimed: ClaimedDelivery,
    started_at: Instant,
    /// The lease is certainly ours until then, by the clock of this process.
    lease_valid_until: Instant,
    abort_handle: AbortHandle,
    span: Span,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DispatchRound {
    /// Results that were written.
    pub written: usize,
    /// Results that were not written, because another process held the lease by then.
    pub leases_lost: usize,
    /// Attempts that were started.
    pub started: usize,
    /// Whether every free slot was used, so that more deliveries may be due.
    pub used_all_slots: bool,
}

impl Dispatcher {
    /// A dispatcher that has claimed nothing yet, and whose metrics are in no registry.
    pub fn new(
        database: &Database,
        clock: &Clock,
        sender: impl JobSender,
        work_notifier: WorkNotifier,
        settings: DispatcherSettings,
    ) -> Self {
        Self {
            store: DeliveryStore::new(database),
            redeliveries: Redeliveries::new(database, clock),
            sender: Box::new(sender),
            work_notifier,
            settings,
            metrics: DeliveryMetrics::new(&MetricsRegistry::default()),
            status: DispatchStatus::new(true),
            request_tasks: JoinSet::new(),
            in_flight: HashMap::new(),
            unwritten_results: Vec::new(),
            maybe_written: false,
            maybe_claimed: Vec::new(),
            last_served_tenant: String::new(),
            schedule: LaneSchedule::new(),
            share: LaneShare::default(),
            is_busy: false,
        }
    }

    /// While it is busy, it claims in the lanes of this share, instead of all.
    #[must_use]
    pub fn with_lane_share(self, share: LaneShare) -> Self {
        Self { share, ..self }
    }

    /// How long a lane of another process may be due before this one claims there although it is busy, for tests.
    #[must_use]
    pub fn with_neglect_timeout(mut self, timeout: Duration) -> Self {
        self.schedule.set_neglect_timeout(timeout);
        self
    }

    /// Uses these metrics from now on.
    #[must_use]
    pub fn with_metrics(self, metrics: DeliveryMetrics) -> Self {
        Self { metrics, ..self }
    }

    /// Says in `status` whether it can work.
    #[must_use]
    pub fn with_status(self, status: DispatchStatus) -> Self {
        Self { status, ..self }
    }

    /// The metrics that this dispatcher counts into.
    pub fn metrics(&self) -> DeliveryMetrics {
        self.metrics.clone()
    }

    /// Delivers until `stop` is cancelled. Then lets attempts in flight finish, at most for the shutdown timeout, and
    /// releases the rest.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut plan = DispatchPlan::new(self.settings.poll_interval);
        let mut outage = DatabaseOutage::new(self.status.clone());
        while !stop.is_cancelled() {
            let started_at = Instant::now();
            match self.run_planned_work(&mut plan).await {
                Ok(()) => outage.report_recovery(),
                Err(error) => {
                    self.abort_expiring_requests();
                    let delay = outage.next_delay(&error);
                    self.work_notifier.set_ready(LaneSet::EMPTY);
                    stop.run_until_cancelled(sleep_until(started_at + delay))
                        .await;
                    self.schedule.mark_unknown(LaneSet::ALL);
                    plan.schedule_check_now();
                    continue;
                }
            }
            self.work_notifier.set_ready(self.ready_lanes());
            let wake_time = self.next_wake_time(&plan);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(finished) = self.request_tasks.join_next_with_id() => {
                    self.handle_finished(finished);
                    self.gather_results().await;
                }
                () = self.work_notifier.wait_for_work() => {}
                () = sleep_until(wake_time) => {}
            }
        }
        self.work_notifier.set_ready(LaneSet::EMPTY);
        self.shut_down().await;
    }

    /// Does everything whose planned time has come.
    async fn run_planned_work(&mut self, plan: &mut DispatchPlan) -> Result<(), Error> {
        let now = Instant::now();
        let work = self.work_notifier.take_work();
        self.schedule.mark_due(work.due, now);
        if !work.unknown.is_empty() {
            self.schedule.mark_unknown(work.unknown);
            plan.schedule_check_now();
        }
        // Leases also expire while the database answers slowly.
        self.abort_expiring_requests();
        if plan.next_renewal <= now {
            self.renew_leases().await?;
            plan.next_renewal = now + LEASE_RENEWAL_INTERVAL;
        }
        if plan.next_sweep <= now {
            self.sweep_leases().await?;
            plan.next_sweep = now + spread(SWEEP_INTERVAL, fastrand::f64());
        }
        if plan
            .next_redelivery_batch
            .is_some_and(|moment| moment <= now)
        {
            let batch = with_database_timeout(self.redeliveries.enqueue_next_batch()).await?;
            if let Some(tenant) = batch.tenant {
                let lane = tenant_lane(&tenant);
                self.schedule.mark_due(lane.into(), Instant::now());
            }
            plan.next_redelivery_batch = None;
            plan.schedule_check_now();
        }
        if plan.next_poll <= now {
            self.schedule.mark_unknown(LaneSet::ALL);
            plan.schedule_check_now();
            plan.next_poll = now + spread(plan.poll_interval, fastrand::f64());
        }
        if plan.next_due_check.is_some_and(|moment| moment <= now) {
            plan.next_redelivery_batch = self
                .survey_lanes()
                .await?
                .map(|delay| Instant::now() + delay.min(plan.poll_interval));
            plan.next_due_check = None;
        }
        if self.has_work_for_a_round() {
            let round = self.write_results_and_claim().await?;
            // A process with free slots can take more of what is due, and of what became possible in lanes of others.
            if round.used_all_slots && round.started > 0 {
                self.work_notifier.set_ready(LaneSet::EMPTY);
                self.work_notifier
                    .notify_others(self.schedule.due_lanes(Instant::now()));
            }
            // A check that is planned already is not put off by further rounds: redeliveries wait for it too.
            let delay = if round.used_all_slots {
                BUSY_NEXT_DUE_DELAY
            } else {
                IDLE_NEXT_DUE_DELAY
            };
            let check = Instant::now() + delay;
            plan.next_due_check = Some(plan.next_due_check.map_or(check, |next| next.min(check)));
        }
        Ok(())
    }

    /// Asks the database what is due in the lanes of which it is not known. Returns when the next batch of a redelivery is due.
    async fn survey_lanes(&mut self) -> Result<Option<Duration>, Error> {
        let lanes = self.schedule.unknown();
        let asked_at = Instant::now();
        let next_due = with_database_timeout(self.store.load_next_due(lanes)).await?;
        let due_at: Vec<_> = next_due
            .deliveries
            .into_iter()
            .map(|(lane, delay)| (lane, asked_at + delay))
            .collect();
        let unwritten = self.unwritten_results.iter();
        let unwritten = unwritten
            .map(|result| tenant_lane(&result.claimed.job.tenant_id))
            .collect();
        self.schedule.record_survey(lanes, &due_at, unwritten);
        Ok(next_due.redelivery_batch)
    }

    fn has_work_for_a_round(&self) -> bool {
        let has_results = !self.unwritten_results.is_empty() || !self.maybe_claimed.is_empty();
        has_results || (self.count_free_slots() > 0 && !self.lanes_to_claim().is_empty())
    }

    fn lanes_to_claim(&self) -> LaneSet {
        let own = self.share.lanes();
        self.schedule
            .lanes_to_claim(own, self.is_busy, Instant::now())
    }

    /// The lanes in which a delivery that becomes due is claimed at once.
    fn ready_lanes(&self) -> LaneSet {
        match (self.count_free_slots(), self.is_busy) {
            (0, _) => LaneSet::EMPTY,
            (_, true) => self.share.lanes(),
            (_, false) => LaneSet::ALL,
        }
    }

    /// When the loop has something to do if nothing happens before.
    fn next_wake_time(&self, plan: &DispatchPlan) -> Instant {
        let mut wake_time = plan.next_poll.min(plan.next_sweep);
        if !self.in_flight.is_empty() {
            wake_time = wake_time.min(plan.next_renewal);
        }
        let next_claim = if self.count_free_slots() > 0 {
            self.schedule
                .next_claim_at(self.share.lanes(), self.is_busy)
        } else {
            // A slot becomes free when the oldest delivery in one counts as slow.
            let now = Instant::now();
            let freed_at = self
                .in_flight
                .values()
                .map(|delivery| delivery.started_at + slots::MAX_SLOT_TIME)
                .filter(|freed_at| *freed_at > now);
            freed_at.min()
        };
        for planned in [plan.next_due_check, plan.next_redelivery_batch, next_claim]
            .into_iter()
            .flatten()
        {
            wake_time = wake_time.min(planned);
        }
        wake_time
    }

    /// Does everything that is due once, without waiting for the attempts that it starts: sweeps leases, enqueues
    /// redeliveries, writes results and claims. For tests, which move time themselves.
    pub async fn tick(&mut self) -> Result<DispatchRound, Error> {
        self.sweep_leases().await?;
        while self.redeliveries.enqueue_next_batch().await?.had_request {}
        self.schedule.mark_due(LaneSet::ALL, Instant::now());
        let was_busy = self.is_busy;
        let round = self.write_results_and_claim().await?;
        if !was_busy || round.started > 0 {
            return Ok(round);
        }
        // Nothing more is due in its own lanes: it helps in those of others.
        let helped = self.write_results_and_claim().await?;
        Ok(DispatchRound {
            written: round.written,
            leases_lost: round.leases_lost,
            ..helped
        })
    }

    /// Waits for the attempts in flight and writes their results. Claims nothing.
    pub async fn finish_in_flight(&mut self) -> Result<DispatchRound, Error> {
        while let Some(finished) = self.request_tasks.join_next_with_id().await {
            self.handle_finished(finished);
        }
        self.write_results().await
    }

    /// Repeats [`tick`](Self::tick) and [`finish_in_flight`](Self::finish_in_flight) until nothing more is due now.
    /// Returns the number of attempts.
    pub async fn run_until_idle(&mut self) -> Result<usize, Error> {
        let mut attempts = 0;
        loop {
            let round = self.tick().await?;
            if round.started == 0 {
                return Ok(attempts);
            }
            attempts += round.started;
            self.finish_in_flight().await?;
        }
    }

    /// Writes the results of finished attempts, and starts as many due deliveries as there are free slots.
    async fn write_results_and_claim(&mut self) -> Result<DispatchRound, Error> {
        let round = self.run_round(self.count_free_slots()).await?;
        self.is_busy = round.used_all_slots;
        Ok(round)
    }

    async fn write_results(&mut self) -> Result<DispatchRound, Error> {
        self.run_round(0).await
    }

    /// Claims at most `limit` deliveries.
    async fn run_round(&mut self, limit: usize) -> Result<DispatchRound, Error> {
        if !self.maybe_claimed.is_empty() {
            with_database_timeout(self.store.release_leases(&self.maybe_claimed)).await?;
            self.maybe_claimed.clear();
            self.schedule.mark_unknown(LaneSet::ALL);
        }
        let mut round = DispatchRound::default();
        while self.unwritten_results.len() > MAX_RESULTS_PER_BATCH {
            self.process_batch(LaneSet::EMPTY, 0, &mut round).await?;
        }
        let lanes = if limit > 0 {
            self.lanes_to_claim()
        } else {
            LaneSet::EMPTY
        };
        if !lanes.is_empty() || !self.unwritten_results.is_empty() {
            self.process_batch(lanes, limit, &mut round).await?;
        }
        round.used_all_slots = round.started == limit;
        Ok(round)
    }

    async fn process_batch(
        &mut self,
        lanes: LaneSet,
        limit: usize,
        round: &mut DispatchRound,
    ) -> Result<(), Error> {
        let claimed_at = Instant::now();
        let count = self.unwritten_results.len().min(MAX_RESULTS_PER_BATCH);
        // Not under `with_database_timeout`: the error has to name the claims that may have been committed.
        let batch = self
            .store
            .write_results_and_claim(
                &self.unwritten_results[..count],
                lanes,
                limit,
                &self.last_served_tenant,
            )
            .await;
        let report = match batch {
            Ok(report) => report,
            Err(failed) => {
                self.maybe_written |= count > 0;
                self.maybe_claimed.extend(failed.maybe_claimed);
                return Err(failed.error);
            }
        };
        let results: Vec<_> = self.unwritten_results.drain(..count).collect();
        for result in &results {
            if report.written.contains(&result.claimed.job.id) {
                round.written += 1;
            } else if !self.maybe_written {
                round.leases_lost += 1;
                self.report_lost_lease(&result.claimed.lease);
            }
        }
        self.maybe_written = false;
        report.state_changes.iter().for_each(report_state_change);
        if let Some(last) = report.claimed.last() {
            self.last_served_tenant = last.job.tenant_id.to_string();
        }
        round.started += report.claimed.len();
        let now = Instant::now();
        let has_more = report.claimed.len() == limit;
        self.schedule.record_claim(report.locked, has_more, now);
        let elsewhere = lanes.iter().filter(|lane| !report.locked.contains(*lane));
        self.schedule
            .record_locked(elsewhere.collect(), now + IDLE_NEXT_DUE_DELAY);
        self.start_attempts(report.claimed, claimed_at);
        Ok(())
    }

    fn start_attempts(&mut self, claimed: Vec<ClaimedDelivery>, claimed_at: Instant) {
        let jobs = claimed.iter().map(|claimed| claimed.job.clone()).collect();
        let attempts = self.sender.send_batch(jobs);
        let started_at = Instant::now();
        for (claimed, attempt) in claimed.into_iter().zip(attempts) {
            self.metrics.lag.observe(claimed.lag.as_secs_f64());
            let span = attempt_span(&claimed);
            let abort_handle = self.request_tasks.spawn(attempt.instrument(span.clone()));
            let delivery = InFlightDelivery {
                claimed,
                started_at,
                lease_valid_until: claimed_at + LEASE_TTL,
                abort_handle: abort_handle.clone(),
                span,
            };
            self.in_flight.insert(abort_handle.id(), delivery);
        }
    }

    fn count_free_slots(&self) -> usize {
        let now = Instant::now();
        let ages = self.in_flight.values().map(|held| now - held.started_at);
        slots::count_free_slots(self.settings.concurrency, ages)
    }

    /// Decides what happens next to a delivery whose attempt has ended, and keeps the result for the next round.
    fn handle_finished(&mut self, finished: Result<(Id, AttemptOutcome), JoinError>) {
        let (id, outcome) = match finished {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        // The first is missing when the request was aborted before. The second is missing when it panicked: the lease
        // expires and an interruption is counted, so a delivery that causes panics is parked in the end.
        let (Some(delivery), Some(outcome)) = (self.in_flight.remove(&id), outcome) else {
            return;
        };
        let InFlightDelivery {
            claimed,
            started_at,
            span,
            ..
        } = delivery;
        let latency = started_at.elapsed();
        let delivery = Delivery {
            attempts: claimed.job.attempt_number - 1,
            max_retries: self.settings.max_retries,
        };
        let next_step = delivery.decide_next_step(&outcome, fastrand::f64());
        self.metrics.count_attempt(outcome.class());
        self.metrics.duration.observe(latency.as_secs_f64());
        span.record("attesto.outcome", outcome.class().as_str());
        if let Some(code) = outcome.status_code() {
            span.record("http.response.status_code", i64::from(code));
        }
        if outcome.class() != OutcomeClass::Success {
            span.record("otel.status_code", "ERROR");
        }
        span.in_scope(|| report_attempt(&claimed, &outcome, next_step.status(), latency));
        // Its tenant and its callback may have one more now.
        let lane = tenant_lane(&claimed.job.tenant_id);
        self.schedule.mark_due(lane.into(), Instant::now());
        self.unwritten_results.push(FinishedAttempt {
            claimed,
            outcome,
            next_step,
        });
    }

    /// Takes the attempts that finish within the next moment.
    async fn gather_results(&mut self) {
        let deadline = Instant::now() + GATHER_TIMEOUT;
        while self.unwritten_results.len() < MAX_RESULTS_PER_BATCH {
            match timeout_at(deadline, self.request_tasks.join_next_with_id()).await {
                Ok(Some(finished)) => self.handle_finished(finished),
                Ok(None) | Err(_) => return,
            }
        }
    }

    async fn sweep_leases(&mut self) -> Result<(), Error> {
        // Write first the results that waited while the database was away: a swept delivery would be sent again.
        if !self.unwritten_results.is_empty() {
            self.write_results().await?;
        }
        let swept = with_database_timeout(self.store.sweep_expired_leases()).await?;
        self.schedule.mark_due(swept.lanes, Instant::now());
        if swept.interrupted > 0 {
            let count = u64::try_from(swept.interrupted).unwrap_or(u64::MAX);
            self.metrics.interrupted.inc_by(count);
            tracing::warn!(
                count,
                hint =
                    "the process that held them stopped or lost the database; they are due again",
                "leases_expired"
            );
        }
        for delivery in swept.parked {
            self.metrics.parked.inc();
            tracing::error!(
                deliveryId = %delivery,
                hint = "its lease expired several times in a row; `attesto webhook redeliver` tries it again",
                "delivery_parked"
            );
        }
        Ok(())
    }

    async fn renew_leases(&mut self) -> Result<(), Error> {
        let in_flight = self.in_flight.values().map(|delivery| &delivery.claimed);
        let unwritten = self.unwritten_results.iter().map(|result| &result.claimed);
        let leases: Vec<Lease> = in_flight
            .chain(unwritten)
            .map(|claimed| claimed.lease.clone())
            .collect();
        if leases.is_empty() {
            return Ok(());
        }
        let asked_at = Instant::now();
        let renewed = with_database_timeout(self.store.renew_leases(&leases)).await?;
        let mut lost = Vec::new();
        for (id, delivery) in &mut self.in_flight {
            if renewed.contains(&delivery.claimed.job.id) {
                delivery.lease_valid_until = asked_at + LEASE_TTL;
            } else {
                lost.push(*id);
            }
        }
        self.abort_requests(&lost);
        Ok(())
    }

    /// Aborts requests whose lease could not be renewed and expires soon: another process may claim them then.
    fn abort_expiring_requests(&mut self) {
        let limit = Instant::now() + LEASE_SAFETY_MARGIN;
        let lost: Vec<Id> = self
            .in_flight
            .iter()
            .filter(|(_, delivery)| delivery.lease_valid_until < limit)
            .map(|(id, _)| *id)
            .collect();
        self.abort_requests(&lost);
    }

    fn abort_requests(&mut self, requests: &[Id]) {
        for id in requests {
            if let Some(delivery) = self.in_flight.remove(id) {
                delivery.abort_handle.abort();
                self.report_lost_lease(&delivery.claimed.lease);
            }
        }
    }

    fn report_lost_lease(&self, lease: &Lease) {
        self.metrics.count_attempt(OutcomeClass::LeaseLost);
        self.metrics.leases_lost.inc();
        tracing::warn!(
            deliveryId = %lease.delivery_id,
            outcome = OutcomeClass::LeaseLost.as_str(),
            hint = "the result of this attempt is not written; another process delivers",
            "lease_lost"
        );
    }

    /// Starts nothing new, lets attempts in flight finish, and releases the rest.
    async fn shut_down(&mut self) {
        let deadline = Instant::now() + self.settings.shutdown_timeout;
        let mut renewal = Instant::now() + LEASE_RENEWAL_INTERVAL;
        while !self.request_tasks.is_empty() && Instant::now() < deadline {
            let next = self.request_tasks.join_next_with_id();
            match timeout_at(deadline.min(renewal), next).await {
                Ok(Some(finished)) => {
                    self.handle_finished(finished);
                    self.gather_results().await;
                    // Results that cannot be written are kept and tried again below.
                    let _ = self.write_results().await;
                }
                Ok(None) => break,
                Err(_) => {
                    let _ = self.renew_leases().await;
                    renewal = Instant::now() + LEASE_RENEWAL_INTERVAL;
                }
            }
        }
        self.request_tasks.abort_all();
        let cut_off = self.in_flight.len();
        let in_flight = self.in_flight.drain().map(|(_, held)| held.claimed.lease);
        let unfinished: Vec<Lease> = self.maybe_claimed.drain(..).chain(in_flight).collect();
        let written = self.write_results().await.map(drop);
        let released = with_database_timeout(self.store.release_leases(&unfinished)).await;
        if let Err(error) = released.and(written) {
            tracing::warn!(
                error = describe_cause(&error),
                hint = "other processes take these deliveries over when their leases expire",
                "leases_not_released"
            );
        }
        if cut_off > 0 {
            tracing::warn!(
                count = cut_off,
                hint = "they did not finish within the shutdown timeout and are due again",
                "deliveries_released"
            );
        }
        self.work_notifier.notify_others(LaneSet::ALL);
    }
}

/// When the loop does what, by the clock of this process.
struct DispatchPlan {
    poll_interval: Duration,
    next_poll: Instant,
    next_sweep: Instant,
    next_renewal: Instant,
    /// When the database is asked what is due next.
    next_due_check: Option<Instant>,
    next_redelivery_batch: Option<Instant>,
}

impl DispatchPlan {
    fn new(poll_interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            poll_interval,
            next_poll: now,
            next_sweep: now,
            next_renewal: now + LEASE_RENEWAL_INTERVAL,
            next_due_check: None,
            next_redelivery_batch: None,
        }
    }

    fn schedule_check_now(&mut self) {
        self.next_due_check = Some(Instant::now());
    }
}

/// While the database does not answer: reports it once, and gives the delay until the next attempt.
struct DatabaseOutage {
    is_reported: bool,
    backoff: Backoff,
    status: DispatchStatus,
}

impl DatabaseOutage {
    fn new(status: DispatchStatus) -> Self {
        Self {
            is_reported: false,
            backoff: Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF),
            status,
        }
    }

    fn next_delay(&mut self, error: &Error) -> Duration {
        self.status
            .set_problem(Some(DatabaseConnectError::from_error(error)));
        if !self.is_reported {
            tracing::warn!(
                cause = describe_cause(error),
                causeClass = error_class(error),
                hint = "deliveries continue when the database answers",
                "deliveries_interrupted"
            );
            self.is_reported = true;
        }
        self.backoff.next_delay(fastrand::f64())
    }

    fn report_recovery(&mut self) {
        self.backoff.reset();
        self.status.set_problem(None);
        if std::mem::take(&mut self.is_reported) {
            tracing::info!("deliveries_resumed");
        }
    }
}

/// A dead connection reports an error only after minutes; the database server itself gives up sooner.
async fn with_database_timeout<T>(
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match timeout(DATABASE_TIMEOUT, work).await {
        Ok(done) => done,
        Err(_) => Err(timeout_error()),
    }
}

fn attempt_span(claimed: &ClaimedDelivery) -> Span {
    let job = &claimed.job;
    tracing::info_span!(
        parent: None,
        "webhook delivery",
        otel.kind = "client",
        otel.status_code = Empty,
        http.response.status_code = Empty,
        attesto.tenant_id = %job.tenant_id,
        attesto.callback = i64::from(job.callback.column()),
        attesto.event_id = %job.event_id,
        attesto.event = job.event_type,
        attesto.delivery_id = %job.id,
        attesto.attempt = i64::from(job.attempt_number),
        attesto.outcome = Empty,
    )
}

fn report_attempt(
    claimed: &ClaimedDelivery,
    outcome: &AttemptOutcome,
    status: &str,
    latency: Duration,
) {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let job = &claimed.job;
    tracing::info!(
        deliveryId = %job.id,
        eventId = %job.event_id,
        tenantId = %job.tenant_id,
        callback = job.callback.column(),
        attempt = job.attempt_number,
        status,
        responseCode = outcome.status_code(),
        latencyMs = millis(latency),
        waitedMs = millis(claimed.lag),
        outcome = outcome.class().as_str(),
        detail = outcome.detail(),
        "webhook_delivery"
    );
}

fn report_state_change(change: &EndpointStateChange) {
    let (tenant, health) = (&change.tenant_id, &change.health);
    let callback = change.callback.column();
    let (from, state) = (change.previous_state.as_str(), health.state.as_str());
    match health.state {
        EndpointState::Active | EndpointState::Throttled => tracing::info!(
            tenantId = %tenant, callback, from, state, failures = health.failures, "webhook_callback"
        ),
        EndpointState::Open | EndpointState::Paused => tracing::warn!(
            tenantId = %tenant,
            callback,
            from,
            state,
            failures = health.failures,
            failingSince = health.failing_since.map(|moment| moment.to_string()),
            "webhook_callback"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_gets_no_connection_says_what_to_do() {
        let status = DispatchStatus::new(true);
        assert_eq!(status.notice(), None);
        status.set_connection_advice("Set max=4 in DATABASE_URL".to_owned());
        assert_eq!(status.notice(), None, "it delivers");
        for (problem, says_so) in [
            (DatabaseConnectError::TooManyConnections, true),
            (DatabaseConnectError::PoolExhausted, true),
            (DatabaseConnectError::Timeout, false),
        ] {
            status.set_problem(Some(problem));
            let notice = status.notice().expect("it waits");
            assert_eq!(notice.contains("max=4"), says_so, "{notice}");
        }
        status.set_unprepared(true);
        let notice = status.notice().expect("it waits");
        assert!(notice.contains("not checked yet (Set max=4"), "{notice}");
    }
}
