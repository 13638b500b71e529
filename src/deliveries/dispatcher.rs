//! The loop that delivers: any number of them, in any number of processes, on one database.
//!
//! Each round is one transaction and then, with none open, the requests:
//!
//! 1. what has come back is written, as far as its row is still ours, and as many due deliveries are claimed as there
//!    are free slots ([`Store::turn`]);
//! 2. each claimed one is sent at once; its result waits for the next round.
//!
//! A round begins when a result is there, when somebody says that there is work ([`Wake`]), when the next delivery is
//! due, and now and then without any reason. A process that dies leaves leases behind, which others sweep; one that is
//! asked to stop finishes what is under way and gives the rest back.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;
use tracing::{Instrument as _, Span};

use super::delivery::Delivery;
use super::health::{EndpointState, HealthSignal};
use super::outcome::{AttemptOutcome, OutcomeClass};
use super::redelivery::Redeliveries;
use super::slots;
use super::store::{
    BatchError, DeliveryStore, EndpointStateChange, FinishedAttempt, LEASE_TTL, Lease,
    LeasedDelivery, timeout_error,
};
use super::transport::{ClaimedDelivery, DeliveryTransport};
use super::work_notifier::WorkNotifier;
use crate::base::backoff::{Backoff, spread};
use crate::base::clock::Clock;
use crate::db::{Database, Error};
use crate::metrics::metric_types::{DURATION_BUCKETS, LONG_DURATION_BUCKETS};
use crate::metrics::{Counter, Histogram, MetricsRegistry};

/// How often leases are renewed: three renewals may fail before one is lost.
const LEASE_RENEWAL_INTERVAL: Duration = Duration::from_millis(4500);
/// A request whose lease could not be renewed is given up this long before the lease ends, so that nobody else sends
/// while we do.
const LEASE_SAFETY_MARGIN: Duration = Duration::from_secs(5);
/// How often it is looked for leases that others left behind.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);
/// How long a first result waits for others, to be written with them.
const GATHER_TIMEOUT: Duration = Duration::from_millis(1);
/// Results written in one transaction.
const MAX_RESULTS_PER_BATCH: usize = 512;
/// How long after a round that left nothing to claim it is asked when there will be something.
const IDLE_NEXT_DUE_DELAY: Duration = Duration::from_millis(30);
/// The same while there is more than can be taken: only redeliveries wait for the answer.
const BUSY_NEXT_DUE_DELAY: Duration = Duration::from_secs(1);
/// How long the database may take for one thing. A renewal that takes longer has failed, early enough for giving up what
/// it was for.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(8);
/// The pause while the database does not answer; it doubles up to the last.
const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(3);

/// How a dispatcher works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatcherSettings {
    /// How many deliveries are under way at once, those that wait long aside: see [`slots`].
    pub concurrency: usize,
    /// How often it is looked for work that nobody announced.
    pub poll_interval: Duration,
    /// How often a delivery is tried again.
    pub max_retries: u32,
    /// How long what is under way may take to end when the process stops.
    pub shutdown_timeout: Duration,
}

/// How often what has happened, since the process began.
#[derive(Clone, Debug)]
pub struct DeliveryMetrics {
    outcomes: [Counter; OutcomeClass::ALL.len()],
    leases_lost: Counter,
    interrupted: Counter,
    parked: Counter,
    duration: Histogram,
    lag: Histogram,
}

impl DeliveryMetrics {
    /// Counts into `registry`.
    pub fn new(registry: &MetricsRegistry) -> Self {
        let outcomes = registry.register_counter_vec(
            "attesto_delivery_attempts_total",
            "Deliveries tried, by how the attempt ended.",
            ["outcome"],
        );
        Self {
            outcomes: OutcomeClass::ALL.map(|class| outcomes.with_label_values([class.as_str()])),
            leases_lost: registry.register_counter(
                "attesto_leases_lost_total",
                "Attempts whose result was not written, because another process had taken the delivery over.",
            ),
            interrupted: registry.register_counter(
                "attesto_interrupted_total",
                "Deliveries that a process which is gone left behind.",
            ),
            parked: registry.register_counter(
                "attesto_parked_total",
                "Deliveries set aside for a person, because process after process was lost over them.",
            ),
            duration: registry.register_histogram(
                "attesto_delivery_duration_seconds",
                "How long attempts to deliver took.",
                DURATION_BUCKETS,
            ),
            lag: registry.register_histogram(
                "attesto_delivery_lag_seconds",
                "How long deliveries were due when an attempt began.",
                LONG_DURATION_BUCKETS,
            ),
        }
    }

    /// Attempts that ended so. [`Class::LeaseLost`] counts the results that were not written because the row was
    /// somebody else's by then.
    pub fn attempts_with_outcome(&self, class: OutcomeClass) -> u64 {
        self.outcomes[class as usize].get()
    }

    /// Leases that this process found left behind.
    pub fn interrupted(&self) -> u64 {
        self.interrupted.get()
    }

    fn count_outcome(&self, class: OutcomeClass) {
        self.outcomes[class as usize].increment();
    }
}

/// Delivers.
pub struct Dispatcher {
    store: DeliveryStore,
    redeliveries: Redeliveries,
    transport: DeliveryTransport,
    work_notifier: WorkNotifier,
    settings: DispatcherSettings,
    metrics: Arc<DeliveryMetrics>,
    /// The requests under way.
    request_tasks: JoinSet<AttemptOutcome>,
    in_flight: HashMap<Id, InFlightDelivery>,
    /// What came back and is not written yet, and whether it may be written already.
    unwritten_results: Vec<FinishedAttempt>,
    maybe_written: bool,
    /// Claims of a transaction of which nobody knows whether it was committed.
    maybe_claimed: Vec<Lease>,
    /// The tenant who was served last.
    last_served_tenant: String,
}

/// A claim that is being worked on.
struct InFlightDelivery {
    leased: LeasedDelivery,
    started_at: Instant,
    /// Until when the row is ours for certain, by this process' own watch.
    lease_valid_until: Instant,
    abort_handle: AbortHandle,
    span: Span,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DispatchRound {
    /// Results written.
    pub written: usize,
    /// Results that came too late: the row was somebody else's.
    pub leases_lost: usize,
    /// Deliveries begun.
    pub started: usize,
    /// Whether as many were begun as there were free slots, so that there may be more.
    pub used_all_slots: bool,
}

impl Dispatcher {
    /// A dispatcher that has claimed nothing yet.
    pub fn new(
        database: &Database,
        clock: &Clock,
        transport: DeliveryTransport,
        work_notifier: WorkNotifier,
        settings: DispatcherSettings,
    ) -> Self {
        Self {
            store: DeliveryStore::new(database, clock),
            redeliveries: Redeliveries::new(database, clock),
            transport,
            work_notifier,
            settings,
            metrics: Arc::new(DeliveryMetrics::new(&MetricsRegistry::default())),
            request_tasks: JoinSet::new(),
            in_flight: HashMap::new(),
            unwritten_results: Vec::new(),
            maybe_written: false,
            maybe_claimed: Vec::new(),
            last_served_tenant: String::new(),
        }
    }

    /// Counts there from now on.
    #[must_use]
    pub fn with_metrics(self, tally: DeliveryMetrics) -> Self {
        Self {
            metrics: Arc::new(tally),
            ..self
        }
    }

    /// What is counted while it works.
    pub fn metrics(&self) -> Arc<DeliveryMetrics> {
        self.metrics.clone()
    }

    /// How many requests are under way.
    pub fn in_flight_count(&self) -> usize {
        self.in_flight.len()
    }

    /// Delivers until `stop`; then ends what is under way, within the grace, and gives back the rest.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut plan = DispatchPlan::new(self.settings.poll_interval);
        let mut outage = DatabaseOutage::default();
        while !stop.is_cancelled() {
            let begun = Instant::now();
            match self.run_planned_work(&mut plan).await {
                Ok(()) => outage.report_recovery(),
                Err(error) => {
                    self.abort_expiring_requests();
                    let pause = outage.next_delay(&error);
                    self.work_notifier.set_ready(false);
                    stop.run_until_cancelled(sleep_until(begun + pause)).await;
                    plan.schedule_round_now();
                    continue;
                }
            }
            self.work_notifier.set_ready(self.count_free_slots() > 0);
            let moment = self.next_wake_time(&plan);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.request_tasks.join_next_with_id() => {
                    self.handle_finished(ended);
                    self.gather_results().await;
                    plan.schedule_round_now();
                }
                () = self.work_notifier.wait_for_work() => plan.schedule_round_now(),
                () = sleep_until(moment) => {
                    // A slot came free because whoever was in it stepped aside.
                    if plan.used_all_slots && self.count_free_slots() > 0 {
                        plan.schedule_round_now();
                    }
                }
            }
        }
        self.work_notifier.set_ready(false);
        self.shut_down().await;
    }

    /// Whatever the plan says is to be done now.
    async fn run_planned_work(&mut self, plan: &mut DispatchPlan) -> Result<(), Error> {
        let now = Instant::now();
        // A database that answers slowly is as good as one that is away.
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
            with_database_timeout(self.redeliveries.enqueue_next_batch()).await?;
            plan.next_redelivery_batch = None;
            plan.schedule_round_now();
        }
        if plan.next_round <= now {
            let round = self.run_round(true).await?;
            plan.next_round = now + spread(plan.poll_interval, fastrand::f64());
            plan.used_all_slots = round.used_all_slots;
            // Whoever has a hand free may help.
            if round.used_all_slots && round.started > 0 {
                self.work_notifier.set_ready(false);
                self.work_notifier.notify_work();
            }
            // While rounds follow one another, what is planned stays planned: redeliveries wait for it too.
            let soon = Instant::now()
                + if round.used_all_slots {
                    BUSY_NEXT_DUE_DELAY
                } else {
                    IDLE_NEXT_DUE_DELAY
                };
            plan.next_due_check = Some(
                plan.next_due_check
                    .map_or(soon, |planned| planned.min(soon)),
            );
        }
        if plan.next_due_check.is_some_and(|moment| moment <= now) {
            let agenda = with_database_timeout(self.store.load_next_due()).await?;
            plan.next_due_check = None;
            plan.next_redelivery_batch = agenda
                .redelivery_batch
                .map(|pause| now + pause.min(plan.poll_interval));
            if let Some(pause) = agenda.delivery {
                // Due, and yet not claimed a moment ago: somebody else was at it.
                plan.next_round = plan.next_round.min(now + pause.max(IDLE_NEXT_DUE_DELAY));
            }
        }
        Ok(())
    }

    /// When there is something to do, if nothing happens before.
    fn next_wake_time(&self, plan: &DispatchPlan) -> Instant {
        let mut moment = plan.next_round.min(plan.next_sweep);
        if !self.in_flight.is_empty() {
            moment = moment.min(plan.next_renewal);
        }
        for planned in [plan.next_due_check, plan.next_redelivery_batch]
            .into_iter()
            .flatten()
        {
            moment = moment.min(planned);
        }
        if plan.used_all_slots {
            // A slot comes free when the slowest of those in one has waited long enough.
            let begun = self.in_flight.values().map(|held| held.started_at);
            let aside = begun
                .map(|begun| begun + slots::MAX_SLOT_TIME)
                .filter(|moment| *moment > Instant::now());
            moment = moment.min(aside.min().unwrap_or(moment));
        }
        moment
    }

    /// One look at everything there is to do, without waiting for what it begins: sweeps, works on redeliveries, writes
    /// and claims. For tests, which move time themselves.
    pub async fn tick(&mut self) -> Result<DispatchRound, Error> {
        self.sweep_leases().await?;
        while self.redeliveries.enqueue_next_batch().await?.had_request {}
        self.run_round(true).await
    }

    /// Waits until nothing is under way, and writes what became of it. Claims nothing.
    pub async fn finish_in_flight(&mut self) -> Result<DispatchRound, Error> {
        while let Some(ended) = self.request_tasks.join_next_with_id().await {
            self.handle_finished(ended);
        }
        self.run_round(false).await
    }

    /// [Ticks](Self::tick) and [settles](Self::settle) until there is nothing more to do at this moment. Returns how
    /// many attempts that were.
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

    /// Writes what came back, and claims and begins as much as there are free slots, if `claiming`.
    async fn run_round(&mut self, claiming: bool) -> Result<DispatchRound, Error> {
        if !self.maybe_claimed.is_empty() {
            with_database_timeout(self.store.release_leases(&self.maybe_claimed)).await?;
            self.maybe_claimed.clear();
        }
        let mut round = DispatchRound::default();
        while self.unwritten_results.len() > MAX_RESULTS_PER_BATCH {
            self.process_batch(0, &mut round).await?;
        }
        let wish = if claiming { self.count_free_slots() } else { 0 };
        if wish > 0 || !self.unwritten_results.is_empty() {
            self.process_batch(wish, &mut round).await?;
        }
        round.used_all_slots = round.started == wish;
        Ok(round)
    }

    async fn process_batch(&mut self, wish: usize, round: &mut DispatchRound) -> Result<(), Error> {
        let claimed_at = Instant::now();
        let count = self.unwritten_results.len().min(MAX_RESULTS_PER_BATCH);
        let turn = self.store.write_results_and_claim(
            &self.unwritten_results[..count],
            wish,
            &self.last_served_tenant,
        );
        // It minds its own time: of a claim that may have been committed it has to tell.
        let turn = match turn.await {
            Ok(turn) => turn,
            Err(BatchError {
                error,
                maybe_claimed: unsure,
            }) => {
                self.maybe_written |= count > 0;
                self.maybe_claimed.extend(unsure);
                return Err(error);
            }
        };
        let results: Vec<_> = self.unwritten_results.drain(..count).collect();
        for result in &results {
            if turn.written.contains(&result.lease.delivery_id) {
                round.written += 1;
            } else if !self.maybe_written {
                round.leases_lost += 1;
                self.report_lost_lease(&result.lease);
            }
        }
        self.maybe_written = false;
        turn.state_changes.iter().for_each(report_state_change);
        if let Some(last) = turn.claimed.last() {
            self.last_served_tenant = last.delivery.tenant_id.to_string();
        }
        round.started += turn.claimed.len();
        self.start_attempts(turn.claimed, claimed_at);
        Ok(())
    }

    fn start_attempts(&mut self, claimed: Vec<LeasedDelivery>, claimed_at: Instant) {
        let parcels: Vec<ClaimedDelivery> =
            claimed.iter().map(|one| one.delivery.clone()).collect();
        let attempts = self.transport.send_batch(parcels);
        let begun = Instant::now();
        for (mut claimed, attempt) in claimed.into_iter().zip(attempts) {
            self.metrics.lag.observe(claimed.lag);
            // The courier has it; there is no need for two.
            claimed.delivery.body = hyper::body::Bytes::new();
            let span = tracing::info_span!(
                parent: None,
                "webhook delivery",
                otel.kind = "client",
                otel.status_code = Empty,
                http.response.status_code = Empty,
                attesto.tenant_id = %claimed.delivery.tenant_id,
                attesto.event_id = %claimed.delivery.event_id,
                attesto.event = claimed.delivery.event_type,
                attesto.delivery_id = %claimed.delivery.id,
                attesto.attempt = i64::from(claimed.delivery.attempt_number),
                attesto.outcome = Empty,
            );
            let request = self.request_tasks.spawn(attempt.instrument(span.clone()));
            let held = InFlightDelivery {
                leased: claimed,
                started_at: begun,
                lease_valid_until: claimed_at + LEASE_TTL,
                abort_handle: request.clone(),
                span,
            };
            self.in_flight.insert(request.id(), held);
        }
    }

    /// How many more may begin.
    fn count_free_slots(&self) -> usize {
        let now = Instant::now();
        let ages = self.in_flight.values().map(|held| now - held.started_at);
        slots::count_free_slots(self.settings.concurrency, ages)
    }

    /// Notes how a request ended.
    fn handle_finished(&mut self, ended: Result<(Id, AttemptOutcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        let Some(held) = self.in_flight.remove(&id) else {
            // Given up before.
            return;
        };
        let Some(outcome) = outcome else {
            // It panicked, and said so. The lease runs out, and an interruption is counted: if it is the delivery's
            // fault, it is parked in the end.
            return;
        };
        let latency = held.started_at.elapsed();
        let InFlightDelivery {
            leased: claimed,
            span,
            ..
        } = held;
        let delivery = Delivery {
            attempts: claimed.delivery.attempt_number - 1,
            max_retries: self.settings.max_retries,
        };
        let next = delivery.decide_next_step(&outcome, fastrand::f64());
        self.metrics.count_outcome(outcome.class());
        self.metrics.duration.observe(latency);
        span.record("attesto.outcome", outcome.class().as_str());
        if let Some(code) = outcome.status_code() {
            span.record("http.response.status_code", i64::from(code));
        }
        if outcome.class() != OutcomeClass::Success {
            span.record("otel.status_code", "ERROR");
        }
        span.in_scope(|| report_attempt(&claimed, &outcome, next.status(), latency));
        drop(span);
        let signal = Some(HealthSignal::from_outcome(&outcome))
            .filter(|signal| !(claimed.is_callback_healthy && *signal == HealthSignal::Success));
        self.unwritten_results.push(FinishedAttempt {
            lease: claimed.lease,
            event_id: claimed.delivery.event_id,
            tenant_id: claimed.delivery.tenant_id,
            callback_url: claimed.delivery.callback_url,
            is_redelivery: claimed.is_redelivery,
            next_step: next,
            class: outcome.class(),
            status_code: outcome.status_code(),
            body_excerpt: outcome.body_excerpt().map(str::to_owned),
            health_signal: signal,
        });
    }

    /// Takes what else ends in the next moment.
    async fn gather_results(&mut self) {
        let until = Instant::now() + GATHER_TIMEOUT;
        while self.unwritten_results.len() < MAX_RESULTS_PER_BATCH {
            match timeout_at(until, self.request_tasks.join_next_with_id()).await {
                Ok(Some(ended)) => self.handle_finished(ended),
                Ok(None) | Err(_) => return,
            }
        }
    }

    async fn sweep_leases(&mut self) -> Result<(), Error> {
        // First what came back while the database was away: swept, it would be sent again.
        if !self.unwritten_results.is_empty() {
            self.run_round(false).await?;
        }
        let swept = with_database_timeout(self.store.sweep_expired_leases()).await?;
        if swept.interrupted > 0 {
            let count = u64::try_from(swept.interrupted).unwrap_or(u64::MAX);
            self.metrics.interrupted.add(count);
            tracing::warn!(
                count,
                "deliveries were left behind by a process that is gone; they are due again"
            );
        }
        for delivery in swept.parked {
            self.metrics.parked.increment();
            tracing::error!(
                deliveryId = %delivery,
                "a delivery was interrupted again and again and is parked; `attesto webhook redeliver` tries it anew"
            );
        }
        Ok(())
    }

    async fn renew_leases(&mut self) -> Result<(), Error> {
        let held: Vec<Lease> = self
            .in_flight
            .values()
            .map(|held| &held.leased.lease)
            .chain(self.unwritten_results.iter().map(|result| &result.lease))
            .cloned()
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let asked_at = Instant::now();
        let renewed = with_database_timeout(self.store.renew_leases(&held)).await?;
        let mut lost = Vec::new();
        for (id, held) in &mut self.in_flight {
            if renewed.contains(&held.leased.lease.delivery_id) {
                held.lease_valid_until = asked_at + LEASE_TTL;
            } else {
                lost.push(*id);
            }
        }
        self.abort_requests(&lost);
        Ok(())
    }

    /// The database does not answer, so nothing is renewed: what others may soon take over is not sent any more.
    fn abort_expiring_requests(&mut self) {
        let limit = Instant::now() + LEASE_SAFETY_MARGIN;
        let lost: Vec<Id> = self
            .in_flight
            .iter()
            .filter(|(_, held)| held.lease_valid_until < limit)
            .map(|(id, _)| *id)
            .collect();
        self.abort_requests(&lost);
    }

    fn abort_requests(&mut self, requests: &[Id]) {
        for id in requests {
            if let Some(held) = self.in_flight.remove(id) {
                held.abort_handle.abort();
                self.report_lost_lease(&held.leased.lease);
            }
        }
    }

    fn report_lost_lease(&self, lease: &Lease) {
        self.metrics.count_outcome(OutcomeClass::LeaseLost);
        self.metrics.leases_lost.increment();
        tracing::warn!(
            deliveryId = %lease.delivery_id,
            outcome = %OutcomeClass::LeaseLost,
            "another process took this delivery over; what became of this attempt is not written"
        );
    }

    /// Ends: nothing new is begun, what is under way may finish, the rest is given back.
    async fn shut_down(&mut self) {
        let deadline = Instant::now() + self.settings.shutdown_timeout;
        let mut renewal = Instant::now() + LEASE_RENEWAL_INTERVAL;
        while !self.request_tasks.is_empty() && Instant::now() < deadline {
            match timeout_at(
                deadline.min(renewal),
                self.request_tasks.join_next_with_id(),
            )
            .await
            {
                Ok(Some(ended)) => {
                    self.handle_finished(ended);
                    self.gather_results().await;
                    // Kept and tried again below when it fails.
                    let _ = self.run_round(false).await;
                }
                Ok(None) => break,
                Err(_) => {
                    let _ = self.renew_leases().await;
                    renewal = Instant::now() + LEASE_RENEWAL_INTERVAL;
                }
            }
        }
        self.request_tasks.abort_all();
        let mut left: Vec<Lease> = self.maybe_claimed.drain(..).collect();
        let cut = self.in_flight.len();
        left.extend(self.in_flight.drain().map(|(_, held)| held.leased.lease));
        let written = self.run_round(false).await.map(drop);
        let released = match with_database_timeout(self.store.release_leases(&left)).await {
            Ok(_) => written,
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            tracing::warn!(%error, "could not give back every delivery; others take them over in {LEASE_TTL:?}");
        }
        if cut > 0 {
            tracing::warn!(count = cut, "gave back deliveries that did not end in time");
        }
        self.work_notifier.notify_work();
    }
}

/// When to do what, by this process' own watch.
struct DispatchPlan {
    poll_interval: Duration,
    /// The next round.
    next_round: Instant,
    next_sweep: Instant,
    next_renewal: Instant,
    /// When to ask what comes next.
    next_due_check: Option<Instant>,
    /// The next batch of a redelivery.
    next_redelivery_batch: Option<Instant>,
    /// Whether slots were the limit in the last round.
    used_all_slots: bool,
}

impl DispatchPlan {
    fn new(poll_interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            poll_interval,
            next_round: now,
            next_sweep: now,
            next_renewal: now + LEASE_RENEWAL_INTERVAL,
            next_due_check: None,
            next_redelivery_batch: None,
            used_all_slots: false,
        }
    }

    fn schedule_round_now(&mut self) {
        self.next_round = Instant::now();
    }
}

/// While the database is away: said once, tried again at growing distances.
struct DatabaseOutage {
    is_reported: bool,
    backoff: Backoff,
}

impl Default for DatabaseOutage {
    fn default() -> Self {
        Self {
            is_reported: false,
            backoff: Backoff::new(INITIAL_BACKOFF, MAX_BACKOFF),
        }
    }
}

impl DatabaseOutage {
    fn next_delay(&mut self, error: &Error) -> Duration {
        if !self.is_reported {
            tracing::warn!(
                cause = %error,
                causeClass = %crate::db::DatabaseConnectError::from_error(error),
                "deliveries wait for the database"
            );
            self.is_reported = true;
        }
        self.backoff.next_delay(fastrand::f64())
    }

    fn report_recovery(&mut self) {
        self.backoff.reset();
        if std::mem::take(&mut self.is_reported) {
            tracing::info!("deliveries go on");
        }
    }
}

/// A connection on which nothing arrives any more says so only after minutes. The server itself gives up sooner.
async fn with_database_timeout<T, E: From<Error>>(
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    match timeout(DATABASE_TIMEOUT, work).await {
        Ok(done) => done,
        Err(_) => Err(timeout_error().into()),
    }
}

fn report_attempt(
    claimed: &LeasedDelivery,
    outcome: &AttemptOutcome,
    status: &str,
    latency: Duration,
) {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let detail = match outcome {
        AttemptOutcome::Delivered { .. } => None,
        AttemptOutcome::Refused { detail, .. } | AttemptOutcome::NotAttempted { detail, .. } => {
            Some(detail.as_str())
        }
    };
    tracing::info!(
        deliveryId = %claimed.delivery.id,
        eventId = %claimed.delivery.event_id,
        tenantId = %claimed.delivery.tenant_id,
        attempt = claimed.delivery.attempt_number,
        status,
        responseCode = outcome.status_code(),
        latencyMs = millis(latency),
        waitedMs = millis(claimed.lag),
        outcome = %outcome.class(),
        detail,
        "webhook_delivery"
    );
}

fn report_state_change(change: &EndpointStateChange) {
    let EndpointStateChange {
        tenant_id: tenant,
        previous_state: from,
        health,
    } = change;
    let (from, state) = (from.as_str(), health.state.as_str());
    match health.state {
        EndpointState::Active | EndpointState::Throttled => tracing::info!(
            tenantId = %tenant, from, state, failures = health.failures, "webhook_callback"
        ),
        EndpointState::Open | EndpointState::Paused => tracing::warn!(
            tenantId = %tenant,
            from,
            state,
            failures = health.failures,
            failingSince = health.failing_since.map(|moment| moment.to_string()),
            "webhook_callback"
        ),
    }
}
