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

use super::courier::{Courier, Parcel};
use super::delivery::Delivery;
use super::health::{Signal, State};
use super::outcome::{Class, Outcome};
use super::redelivery::Redeliveries;
use super::slots;
use super::store::{Claimed, Finished, LEASE, Lease, StateChange, Store, TurnError, late};
use super::wake::Wake;
use crate::clock::Clock;
use crate::db::{Database, Error};
use crate::metrics::kinds::{LONG_SECONDS, SECONDS};
use crate::metrics::{Counter, Histogram, Registry};

/// How often leases are renewed: three renewals may fail before one is lost.
const RENEW_EVERY: Duration = Duration::from_millis(4500);
/// A request whose lease could not be renewed is given up this long before the lease ends, so that nobody else sends
/// while we do.
const SAFETY: Duration = Duration::from_secs(5);
/// How often it is looked for leases that others left behind.
const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// How long a first result waits for others, to be written with them.
const GATHER: Duration = Duration::from_millis(1);
/// Results written in one transaction.
const RESULTS: usize = 512;
/// How long after a round that left nothing to claim it is asked when there will be something.
const SETTLE: Duration = Duration::from_millis(30);
/// The same while there is more than can be taken: only redeliveries wait for the answer.
const BUSY: Duration = Duration::from_secs(1);
/// How long the database may take for one thing. A renewal that takes longer has failed, early enough for giving up what
/// it was for.
const PATIENCE: Duration = Duration::from_secs(8);
/// The pause while the database does not answer; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LAST_PAUSE: Duration = Duration::from_secs(3);

/// How a dispatcher works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DispatcherSettings {
    /// How many deliveries are under way at once, those that wait long aside: see [`slots`].
    pub concurrency: usize,
    /// How often it is looked for work that nobody announced.
    pub interval: Duration,
    /// How often a delivery is tried again.
    pub max_retries: u32,
    /// How long what is under way may take to end when the process stops.
    pub grace: Duration,
}

/// How often what has happened, since the process began.
#[derive(Clone, Debug)]
pub struct Tally {
    outcomes: [Counter; Class::ALL.len()],
    leases_lost: Counter,
    interrupted: Counter,
    parked: Counter,
    took: Histogram,
    waited: Histogram,
}

impl Tally {
    /// Counts into `registry`.
    pub fn new(registry: &Registry) -> Self {
        let outcomes = registry.counters(
            "attesto_delivery_attempts_total",
            "Deliveries tried, by how the attempt ended.",
            ["outcome"],
        );
        Self {
            outcomes: Class::ALL.map(|class| outcomes.with([class.as_str()])),
            leases_lost: registry.counter(
                "attesto_leases_lost_total",
                "Attempts whose result was not written, because another process had taken the delivery over.",
            ),
            interrupted: registry.counter(
                "attesto_interrupted_total",
                "Deliveries that a process which is gone left behind.",
            ),
            parked: registry.counter(
                "attesto_parked_total",
                "Deliveries set aside for a person, because process after process was lost over them.",
            ),
            took: registry.histogram(
                "attesto_delivery_duration_seconds",
                "How long attempts to deliver took.",
                SECONDS,
            ),
            waited: registry.histogram(
                "attesto_delivery_lag_seconds",
                "How long deliveries were due when an attempt began.",
                LONG_SECONDS,
            ),
        }
    }

    /// Attempts that ended so. [`Class::LeaseLost`] counts the results that were not written because the row was
    /// somebody else's by then.
    pub fn of(&self, class: Class) -> u64 {
        self.outcomes[class as usize].get()
    }

    /// Leases that this process found left behind.
    pub fn interrupted(&self) -> u64 {
        self.interrupted.get()
    }

    fn count(&self, class: Class) {
        self.outcomes[class as usize].count();
    }
}

/// Delivers.
pub struct Dispatcher {
    store: Store,
    redeliveries: Redeliveries,
    courier: Courier,
    wake: Wake,
    settings: DispatcherSettings,
    tally: Arc<Tally>,
    /// The requests under way.
    requests: JoinSet<Outcome>,
    under_way: HashMap<Id, Held>,
    /// What came back and is not written yet, and whether it may be written already.
    results: Vec<Finished>,
    maybe_written: bool,
    /// Claims of a transaction of which nobody knows whether it was committed.
    unsure: Vec<Lease>,
    /// The tenant who was served last.
    last_served: String,
}

/// A claim that is being worked on.
struct Held {
    claimed: Claimed,
    begun: Instant,
    /// Until when the row is ours for certain, by this process' own watch.
    ours_until: Instant,
    request: AbortHandle,
    span: Span,
}

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Results written.
    pub written: usize,
    /// Results that came too late: the row was somebody else's.
    pub lost: usize,
    /// Deliveries begun.
    pub begun: usize,
    /// Whether as many were begun as there were free slots, so that there may be more.
    pub full: bool,
}

impl Dispatcher {
    /// A dispatcher that has claimed nothing yet.
    pub fn new(
        database: &Database,
        clock: &Clock,
        courier: Courier,
        wake: Wake,
        settings: DispatcherSettings,
    ) -> Self {
        Self {
            store: Store::new(database, clock),
            redeliveries: Redeliveries::new(database, clock),
            courier,
            wake,
            settings,
            tally: Arc::new(Tally::new(&Registry::default())),
            requests: JoinSet::new(),
            under_way: HashMap::new(),
            results: Vec::new(),
            maybe_written: false,
            unsure: Vec::new(),
            last_served: String::new(),
        }
    }

    /// Counts there from now on.
    #[must_use]
    pub fn counting(self, tally: Tally) -> Self {
        Self {
            tally: Arc::new(tally),
            ..self
        }
    }

    /// What is counted while it works.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// How many requests are under way.
    pub fn under_way(&self) -> usize {
        self.under_way.len()
    }

    /// Delivers until `stop`; then ends what is under way, within the grace, and gives back the rest.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut plan = Plan::new(self.settings.interval);
        let mut trouble = Trouble::default();
        while !stop.is_cancelled() {
            let begun = Instant::now();
            match self.round_of(&mut plan).await {
                Ok(()) => trouble.over(),
                Err(error) => {
                    self.give_up_what_may_not_be_ours();
                    let pause = trouble.pause(&error);
                    self.wake.set_ready(false);
                    stop.run_until_cancelled(sleep_until(begun + pause)).await;
                    plan.work_now();
                    continue;
                }
            }
            self.wake.set_ready(self.free() > 0);
            let moment = self.next_moment(&plan);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(ended) = self.requests.join_next_with_id() => {
                    self.take(ended);
                    self.gather().await;
                    plan.work_now();
                }
                () = self.wake.heard() => plan.work_now(),
                () = sleep_until(moment) => {
                    // A slot came free because whoever was in it stepped aside.
                    if plan.full && self.free() > 0 {
                        plan.work_now();
                    }
                }
            }
        }
        self.wake.set_ready(false);
        self.finish().await;
    }

    /// Whatever the plan says is to be done now.
    async fn round_of(&mut self, plan: &mut Plan) -> Result<(), Error> {
        let now = Instant::now();
        // A database that answers slowly is as good as one that is away.
        self.give_up_what_may_not_be_ours();
        if plan.renew <= now {
            self.renew().await?;
            plan.renew = now + RENEW_EVERY;
        }
        if plan.sweep <= now {
            self.sweep().await?;
            plan.sweep = now + jittered(SWEEP_EVERY);
        }
        if plan.batch.is_some_and(|moment| moment <= now) {
            patiently(self.redeliveries.work()).await?;
            plan.batch = None;
            plan.work_now();
        }
        if plan.work <= now {
            let round = self.turn(true).await?;
            plan.work = now + jittered(plan.interval);
            plan.full = round.full;
            // Whoever has a hand free may help.
            if round.full && round.begun > 0 {
                self.wake.set_ready(false);
                self.wake.work_arrived();
            }
            // While rounds follow one another, what is planned stays planned: redeliveries wait for it too.
            let soon = Instant::now() + if round.full { BUSY } else { SETTLE };
            plan.agenda = Some(plan.agenda.map_or(soon, |planned| planned.min(soon)));
        }
        if plan.agenda.is_some_and(|moment| moment <= now) {
            let agenda = patiently(self.store.agenda()).await?;
            plan.agenda = None;
            plan.batch = agenda.batch.map(|pause| now + pause.min(plan.interval));
            if let Some(pause) = agenda.due {
                // Due, and yet not claimed a moment ago: somebody else was at it.
                plan.work = plan.work.min(now + pause.max(SETTLE));
            }
        }
        Ok(())
    }

    /// When there is something to do, if nothing happens before.
    fn next_moment(&self, plan: &Plan) -> Instant {
        let mut moment = plan.work.min(plan.sweep);
        if !self.under_way.is_empty() {
            moment = moment.min(plan.renew);
        }
        for planned in [plan.agenda, plan.batch].into_iter().flatten() {
            moment = moment.min(planned);
        }
        if plan.full {
            // A slot comes free when the slowest of those in one has waited long enough.
            let begun = self.under_way.values().map(|held| held.begun);
            let aside = begun
                .map(|begun| begun + slots::PATIENCE)
                .filter(|moment| *moment > Instant::now());
            moment = moment.min(aside.min().unwrap_or(moment));
        }
        moment
    }

    /// One look at everything there is to do, without waiting for what it begins: sweeps, works on redeliveries, writes
    /// and claims. For tests, which move time themselves.
    pub async fn tick(&mut self) -> Result<Round, Error> {
        self.sweep().await?;
        while self.redeliveries.work().await?.worked {}
        self.turn(true).await
    }

    /// Waits until nothing is under way, and writes what became of it. Claims nothing.
    pub async fn settle(&mut self) -> Result<Round, Error> {
        while let Some(ended) = self.requests.join_next_with_id().await {
            self.take(ended);
        }
        self.turn(false).await
    }

    /// [Ticks](Self::tick) and [settles](Self::settle) until there is nothing more to do at this moment. Returns how
    /// many attempts that were.
    pub async fn drain(&mut self) -> Result<usize, Error> {
        let mut attempts = 0;
        loop {
            let round = self.tick().await?;
            if round.begun == 0 {
                return Ok(attempts);
            }
            attempts += round.begun;
            self.settle().await?;
        }
    }

    /// Writes what came back, and claims and begins as much as there are free slots, if `claiming`.
    async fn turn(&mut self, claiming: bool) -> Result<Round, Error> {
        if !self.unsure.is_empty() {
            patiently(self.store.release(&self.unsure)).await?;
            self.unsure.clear();
        }
        let mut round = Round::default();
        while self.results.len() > RESULTS {
            self.write_and_claim(0, &mut round).await?;
        }
        let wish = if claiming { self.free() } else { 0 };
        if wish > 0 || !self.results.is_empty() {
            self.write_and_claim(wish, &mut round).await?;
        }
        round.full = round.begun == wish;
        Ok(round)
    }

    async fn write_and_claim(&mut self, wish: usize, round: &mut Round) -> Result<(), Error> {
        let claimed_at = Instant::now();
        let count = self.results.len().min(RESULTS);
        let turn = self
            .store
            .turn(&self.results[..count], wish, &self.last_served);
        // It minds its own time: of a claim that may have been committed it has to tell.
        let turn = match turn.await {
            Ok(turn) => turn,
            Err(TurnError { error, unsure }) => {
                self.maybe_written |= count > 0;
                self.unsure.extend(unsure);
                return Err(error);
            }
        };
        let results: Vec<_> = self.results.drain(..count).collect();
        for result in &results {
            if turn.written.contains(&result.lease.delivery) {
                round.written += 1;
            } else if !self.maybe_written {
                round.lost += 1;
                self.lost(&result.lease);
            }
        }
        self.maybe_written = false;
        turn.changes.iter().for_each(report_state);
        if let Some(last) = turn.claimed.last() {
            self.last_served = last.parcel.tenant.to_string();
        }
        round.begun += turn.claimed.len();
        self.begin(turn.claimed, claimed_at);
        Ok(())
    }

    fn begin(&mut self, claimed: Vec<Claimed>, claimed_at: Instant) {
        let parcels: Vec<Parcel> = claimed.iter().map(|one| one.parcel.clone()).collect();
        let attempts = self.courier.carry(parcels);
        let begun = Instant::now();
        for (mut claimed, attempt) in claimed.into_iter().zip(attempts) {
            self.tally.waited.observe(claimed.waited);
            // The courier has it; there is no need for two.
            claimed.parcel.body = hyper::body::Bytes::new();
            let span = tracing::info_span!(
                parent: None,
                "webhook delivery",
                otel.kind = "client",
                otel.status_code = Empty,
                http.response.status_code = Empty,
                attesto.tenant_id = %claimed.parcel.tenant,
                attesto.event_id = %claimed.parcel.event,
                attesto.event = claimed.parcel.word,
                attesto.delivery_id = %claimed.parcel.delivery,
                attesto.attempt = i64::from(claimed.parcel.number),
                attesto.outcome = Empty,
            );
            let request = self.requests.spawn(attempt.instrument(span.clone()));
            let held = Held {
                claimed,
                begun,
                ours_until: claimed_at + LEASE,
                request: request.clone(),
                span,
            };
            self.under_way.insert(request.id(), held);
        }
    }

    /// How many more may begin.
    fn free(&self) -> usize {
        let now = Instant::now();
        let ages = self.under_way.values().map(|held| now - held.begun);
        slots::free(self.settings.concurrency, ages)
    }

    /// Notes how a request ended.
    fn take(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok((id, outcome)) => (id, Some(outcome)),
            Err(error) => (error.id(), None),
        };
        let Some(held) = self.under_way.remove(&id) else {
            // Given up before.
            return;
        };
        let Some(outcome) = outcome else {
            // It panicked, and said so. The lease runs out, and an interruption is counted: if it is the delivery's
            // fault, it is parked in the end.
            return;
        };
        let latency = held.begun.elapsed();
        let Held { claimed, span, .. } = held;
        let delivery = Delivery {
            attempts: claimed.parcel.number - 1,
            max_retries: self.settings.max_retries,
        };
        let next = delivery.after(&outcome, fastrand::f64());
        self.tally.count(outcome.class());
        self.tally.took.observe(latency);
        span.record("attesto.outcome", outcome.class().as_str());
        if let Some(code) = outcome.code() {
            span.record("http.response.status_code", i64::from(code));
        }
        if outcome.class() != Class::Success {
            span.record("otel.status_code", "ERROR");
        }
        span.in_scope(|| report_attempt(&claimed, &outcome, next.status(), latency));
        drop(span);
        let signal = Some(Signal::of(&outcome))
            .filter(|signal| !(claimed.settled && *signal == Signal::Success));
        self.results.push(Finished {
            lease: claimed.lease,
            event: claimed.parcel.event,
            tenant: claimed.parcel.tenant,
            url: claimed.parcel.url,
            requested: claimed.requested,
            next,
            class: outcome.class(),
            code: outcome.code(),
            excerpt: outcome.excerpt().map(str::to_owned),
            signal,
        });
    }

    /// Takes what else ends in the next moment.
    async fn gather(&mut self) {
        let until = Instant::now() + GATHER;
        while self.results.len() < RESULTS {
            match timeout_at(until, self.requests.join_next_with_id()).await {
                Ok(Some(ended)) => self.take(ended),
                Ok(None) | Err(_) => return,
            }
        }
    }

    async fn sweep(&mut self) -> Result<(), Error> {
        // First what came back while the database was away: swept, it would be sent again.
        if !self.results.is_empty() {
            self.turn(false).await?;
        }
        let swept = patiently(self.store.sweep()).await?;
        if swept.interrupted > 0 {
            let count = u64::try_from(swept.interrupted).unwrap_or(u64::MAX);
            self.tally.interrupted.add(count);
            tracing::warn!(
                count,
                "deliveries were left behind by a process that is gone; they are due again"
            );
        }
        for delivery in swept.parked {
            self.tally.parked.count();
            tracing::error!(
                deliveryId = %delivery,
                "a delivery was interrupted again and again and is parked; `attesto webhook redeliver` tries it anew"
            );
        }
        Ok(())
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let held: Vec<Lease> = self
            .under_way
            .values()
            .map(|held| &held.claimed.lease)
            .chain(self.results.iter().map(|result| &result.lease))
            .cloned()
            .collect();
        if held.is_empty() {
            return Ok(());
        }
        let asked_at = Instant::now();
        let renewed = patiently(self.store.renew(&held)).await?;
        let mut lost = Vec::new();
        for (id, held) in &mut self.under_way {
            if renewed.contains(&held.claimed.lease.delivery) {
                held.ours_until = asked_at + LEASE;
            } else {
                lost.push(*id);
            }
        }
        self.give_up(&lost);
        Ok(())
    }

    /// The database does not answer, so nothing is renewed: what others may soon take over is not sent any more.
    fn give_up_what_may_not_be_ours(&mut self) {
        let limit = Instant::now() + SAFETY;
        let lost: Vec<Id> = self
            .under_way
            .iter()
            .filter(|(_, held)| held.ours_until < limit)
            .map(|(id, _)| *id)
            .collect();
        self.give_up(&lost);
    }

    fn give_up(&mut self, requests: &[Id]) {
        for id in requests {
            if let Some(held) = self.under_way.remove(id) {
                held.request.abort();
                self.lost(&held.claimed.lease);
            }
        }
    }

    fn lost(&self, lease: &Lease) {
        self.tally.count(Class::LeaseLost);
        self.tally.leases_lost.count();
        tracing::warn!(
            deliveryId = %lease.delivery,
            outcome = %Class::LeaseLost,
            "another process took this delivery over; what became of this attempt is not written"
        );
    }

    /// Ends: nothing new is begun, what is under way may finish, the rest is given back.
    async fn finish(&mut self) {
        let deadline = Instant::now() + self.settings.grace;
        let mut renewal = Instant::now() + RENEW_EVERY;
        while !self.requests.is_empty() && Instant::now() < deadline {
            match timeout_at(deadline.min(renewal), self.requests.join_next_with_id()).await {
                Ok(Some(ended)) => {
                    self.take(ended);
                    self.gather().await;
                    // Kept and tried again below when it fails.
                    let _ = self.turn(false).await;
                }
                Ok(None) => break,
                Err(_) => {
                    let _ = self.renew().await;
                    renewal = Instant::now() + RENEW_EVERY;
                }
            }
        }
        self.requests.abort_all();
        let mut left: Vec<Lease> = self.unsure.drain(..).collect();
        let cut = self.under_way.len();
        left.extend(self.under_way.drain().map(|(_, held)| held.claimed.lease));
        let written = self.turn(false).await.map(drop);
        let released = match patiently(self.store.release(&left)).await {
            Ok(_) => written,
            Err(error) => Err(error),
        };
        if let Err(error) = released {
            tracing::warn!(%error, "could not give back every delivery; others take them over in {LEASE:?}");
        }
        if cut > 0 {
            tracing::warn!(count = cut, "gave back deliveries that did not end in time");
        }
        self.wake.work_arrived();
    }
}

/// When to do what, by this process' own watch.
struct Plan {
    interval: Duration,
    /// The next round.
    work: Instant,
    sweep: Instant,
    renew: Instant,
    /// When to ask what comes next.
    agenda: Option<Instant>,
    /// The next batch of a redelivery.
    batch: Option<Instant>,
    /// Whether slots were the limit in the last round.
    full: bool,
}

impl Plan {
    fn new(interval: Duration) -> Self {
        let now = Instant::now();
        Self {
            interval,
            work: now,
            sweep: now,
            renew: now + RENEW_EVERY,
            agenda: None,
            batch: None,
            full: false,
        }
    }

    fn work_now(&mut self) {
        self.work = Instant::now();
    }
}

/// While the database is away: said once, tried again at growing distances.
#[derive(Default)]
struct Trouble {
    pause: Option<Duration>,
}

impl Trouble {
    fn pause(&mut self, error: &Error) -> Duration {
        let pause = match self.pause {
            None => {
                tracing::warn!(
                    cause = %error,
                    causeClass = %crate::db::Unreachable::of(error),
                    "deliveries wait for the database"
                );
                FIRST_PAUSE
            }
            Some(pause) => (pause * 2).min(LAST_PAUSE),
        };
        self.pause = Some(pause);
        jittered(pause)
    }

    fn over(&mut self) {
        if self.pause.take().is_some() {
            tracing::info!("deliveries go on");
        }
    }
}

/// A connection on which nothing arrives any more says so only after minutes. The server itself gives up sooner.
async fn patiently<T, E: From<Error>>(work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    match timeout(PATIENCE, work).await {
        Ok(done) => done,
        Err(_) => Err(late().into()),
    }
}

/// Up to a fifth more or less, so that processes which began together do not stay together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(0.8 + 0.4 * fastrand::f64())
}

fn report_attempt(claimed: &Claimed, outcome: &Outcome, status: &str, latency: Duration) {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let detail = match outcome {
        Outcome::Delivered { .. } => None,
        Outcome::Refused { detail, .. } | Outcome::NotAttempted { detail, .. } => {
            Some(detail.as_str())
        }
    };
    tracing::info!(
        deliveryId = %claimed.parcel.delivery,
        eventId = %claimed.parcel.event,
        tenantId = %claimed.parcel.tenant,
        attempt = claimed.parcel.number,
        status,
        responseCode = outcome.code(),
        latencyMs = millis(latency),
        waitedMs = millis(claimed.waited),
        outcome = %outcome.class(),
        detail,
        "webhook_delivery"
    );
}

fn report_state(change: &StateChange) {
    let StateChange {
        tenant,
        from,
        health,
    } = change;
    let (from, state) = (from.as_str(), health.state.as_str());
    match health.state {
        State::Active | State::Throttled => tracing::info!(
            tenantId = %tenant, from, state, failures = health.failures, "webhook_callback"
        ),
        State::Open | State::Paused => tracing::warn!(
            tenantId = %tenant,
            from,
            state,
            failures = health.failures,
            failingSince = health.failing_since.map(|moment| moment.to_string()),
            "webhook_callback"
        ),
    }
}
