//! Deliveries: the retry schedule, leases, fairness, health, redelivery. No network: the sender is
//! a function that plays the receivers. Time is moved, not waited for.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attesto::base::clock::{Clock, Timestamp};
use attesto::base::id::{DeliveryId, EventId, ReplicaId, TenantId};
use attesto::base::lane::LaneSet;
use attesto::db::Database;
use attesto::db::change_listener::ChangeListener;
use attesto::deliveries::redelivery::{
    EventStatus, RedeliveryError, RedeliveryFilter, RedeliveryRequest,
};
use attesto::deliveries::{
    AttemptOutcome, DeliveryJob, Dispatcher, DispatcherSettings, JobSender, OutcomeClass,
    Redeliveries, WorkNotifier,
};
use attesto::replicas::LaneShare;
use attesto::tenants::lane::tenant_lane;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all, pending};
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::world::postgres::{Fresh, fresh_database, pass_time};
use crate::world::wait::{HANG_LIMIT, finished, wait_until};

const URL: &str = "https://receiver.example/hook";

fn start() -> Timestamp {
    Timestamp::parse("2026-04-20T00:00:00Z").unwrap()
}

/// A database, and the clock shared by every dispatcher made here.
struct World {
    fresh: Fresh,
    clock: Clock,
}

/// A row of `webhook_deliveries`.
#[derive(Debug, sqlx::FromRow)]
struct Row {
    id: String,
    status: String,
    attempt_count: i32,
    interruptions: i32,
    lease_no: i32,
    leased: bool,
    parked: bool,
    last_response_code: Option<i32>,
    last_outcome: Option<String>,
    settled_by: Option<String>,
    /// Seconds from the current time.
    due_in: Option<f64>,
}

impl World {
    async fn new() -> Self {
        Self {
            fresh: fresh_database().await,
            clock: Clock::fixed(start()),
        }
    }

    fn database(&self) -> &Database {
        &self.fresh.database
    }

    async fn pass(&self, time: Duration) {
        pass_time(self.database(), &self.clock, time).await;
    }

    async fn execute(&self, statement: &'static str) {
        sqlx::query(statement)
            .execute(self.database().pool())
            .await
            .expect("a statement of our own succeeds");
    }

    /// A tenant whose callback is [`URL`].
    async fn tenant(&self) -> TenantId {
        self.tenants(1).await.remove(0)
    }

    /// Tenants whose callbacks are all at [`URL`], in the order of their ids.
    async fn tenants(&self, count: usize) -> Vec<TenantId> {
        let mut tenants: Vec<_> = (0..count)
            .map(|_| TenantId::mint(self.clock.now()))
            .collect();
        tenants.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        let ids: Vec<String> = tenants.iter().map(ToString::to_string).collect();
        sqlx::query("insert into tenants (id, name) select id, 'T' from unnest($1) id")
            .bind(&ids)
            .execute(self.database().pool())
            .await
            .unwrap();
        let statement = "insert into webhook_configs (tenant_id, callback_url, secret_enc) select id, $2, '' from unnest($1) id";
        sqlx::query(statement)
            .bind(&ids)
            .bind(URL)
            .execute(self.database().pool())
            .await
            .unwrap();
        tenants
    }

    /// Two tenants whose lanes differ.
    async fn tenants_in_two_lanes(&self) -> (TenantId, TenantId) {
        loop {
            let mut tenants = self.tenants(2).await;
            let (other, one) = (tenants.remove(1), tenants.remove(0));
            if tenant_lane(&one) != tenant_lane(&other) {
                return (one, other);
            }
        }
    }

    /// Events of a tenant with one delivery each, due now.
    async fn events(&self, tenant: &TenantId, count: usize) -> Vec<EventId> {
        let events: Vec<_> = (0..count)
            .map(|_| EventId::mint(self.clock.now()))
            .collect();
        let ids: Vec<String> = events.iter().map(ToString::to_string).collect();
        let deliveries: Vec<String> = (0..count)
            .map(|_| DeliveryId::mint(self.clock.now()).to_string())
            .collect();
        // A hundred thousand rows take a busy machine longer than a request may.
        let begun = self
            .database()
            .pool()
            .begin_with("set local statement_timeout = 0");
        let mut transaction = begun.await.unwrap();
        sqlx::query(
            "
            with new as (
                select * from unnest($2::text[], $3::text[]) as new (event, delivery)
            ), event as (
                insert into webhook_events (lane, id, tenant_id, source, external_id, event_type, platform_event,
                    decoded_payload, stored_body, received_at)
                select tenant_lane($1), event, $1, 'apple', event, 'subscription.renewed', 'apple.did_renew', '{}',
                    '\\x00' || convert_to('body of ' || event, 'UTF8'), attesto_now()
                from new
            )
            insert into webhook_deliveries (lane, id, event_id, tenant_id, callback_url)
            select tenant_lane($1), delivery, event, $1, $4 from new
            ",
        )
        .bind(tenant.as_str())
        .bind(&ids)
        .bind(&deliveries)
        .bind(URL)
        .execute(&mut *transaction)
        .await
        .unwrap();
        transaction.commit().await.unwrap();
        events
    }

    async fn event(&self, tenant: &TenantId) -> EventId {
        self.events(tenant, 1).await.remove(0)
    }

    /// Callbacks that answered successfully before, and so get eight concurrent requests.
    async fn well_known(&self, tenants: &[TenantId]) {
        let ids: Vec<String> = tenants.iter().map(ToString::to_string).collect();
        let statement = "insert into webhook_health (lane, tenant_id, callback_url, allowed, last_success_at) \
            select tenant_lane(id), id, $2, 8, now() from unnest($1) id";
        sqlx::query(statement)
            .bind(&ids)
            .bind(URL)
            .execute(self.database().pool())
            .await
            .unwrap();
    }

    fn dispatcher(&self, sender: impl JobSender) -> Dispatcher {
        self.dispatcher_with(sender, 64, WorkNotifier::default())
    }

    fn dispatcher_with(
        &self,
        sender: impl JobSender,
        concurrency: usize,
        wake: WorkNotifier,
    ) -> Dispatcher {
        let settings = DispatcherSettings {
            concurrency,
            // Polling finds nothing for a test.
            poll_interval: Duration::from_hours(1),
            max_retries: 5,
            shutdown_timeout: Duration::from_millis(200),
        };
        Dispatcher::new(self.database(), &self.clock, sender, wake, settings)
    }

    fn redeliveries(&self) -> Redeliveries {
        Redeliveries::new(self.database(), &self.clock)
    }

    /// Every delivery, oldest first.
    async fn rows(&self) -> Vec<Row> {
        sqlx::query_as(
            "
            select id, status, attempt_count, interruptions, lease_no, lease_until is not null as leased,
                parked_at is not null as parked, last_response_code, last_outcome, settled_by,
                extract(epoch from next_attempt_at - attesto_now())::float8 as due_in
            from webhook_deliveries
            order by created_at, id
            ",
        )
        .fetch_all(self.database().pool())
        .await
        .unwrap()
    }

    async fn row(&self) -> Row {
        self.rows().await.remove(0)
    }

    /// The number of deliveries by status.
    async fn standing(&self) -> BTreeMap<String, i64> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("select status, count(*) from webhook_deliveries group by status")
                .fetch_all(self.database().pool())
                .await
                .unwrap();
        rows.into_iter().collect()
    }

    async fn health(&self, tenant: &TenantId) -> (String, i16) {
        sqlx::query_as("select state, allowed from webhook_health where tenant_id = $1")
            .bind(tenant.as_str())
            .fetch_one(self.database().pool())
            .await
            .unwrap()
    }
}

fn answer(code: u16) -> AttemptOutcome {
    answer_later(code, None)
}

fn answer_later(code: u16, retry_after: Option<Duration>) -> AttemptOutcome {
    let excerpt = Some("what it said".to_owned());
    match OutcomeClass::from_status(code) {
        OutcomeClass::Success => AttemptOutcome::Delivered { code, excerpt },
        class => AttemptOutcome::Refused {
            class,
            code: Some(code),
            retry_after,
            excerpt,
            detail: format!("the receiver answered {code}"),
        },
    }
}

fn nobody_answers() -> AttemptOutcome {
    AttemptOutcome::Refused {
        class: OutcomeClass::Connect,
        code: None,
        retry_after: None,
        excerpt: None,
        detail: "connection refused".to_owned(),
    }
}

/// How a receiver answers a delivery.
type Reply = dyn Fn(&DeliveryJob) -> BoxFuture<'static, AttemptOutcome> + Send + Sync;

/// A receiver that records what it was sent.
#[derive(Clone)]
struct Receiver {
    seen: Arc<Mutex<Vec<DeliveryJob>>>,
    under_way: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    arrived: Arc<Notify>,
    reply: Arc<Reply>,
}

impl Receiver {
    fn new(
        reply: impl Fn(&DeliveryJob) -> BoxFuture<'static, AttemptOutcome> + Send + Sync + 'static,
    ) -> Self {
        Self {
            seen: Arc::default(),
            under_way: Arc::default(),
            most: Arc::default(),
            arrived: Arc::default(),
            reply: Arc::new(reply),
        }
    }

    /// Answers at once.
    fn answering(reply: impl Fn(&DeliveryJob) -> AttemptOutcome + Send + Sync + 'static) -> Self {
        Self::new(move |job| std::future::ready(reply(job)).boxed())
    }

    fn sender(&self) -> impl JobSender + use<> {
        let receiver = self.clone();
        move |job: Arc<DeliveryJob>| {
            let receiver = receiver.clone();
            async move {
                let reply = (receiver.reply)(&job);
                let now = receiver.under_way.fetch_add(1, Ordering::SeqCst) + 1;
                receiver.most.fetch_max(now, Ordering::SeqCst);
                receiver.seen.lock().unwrap().push((*job).clone());
                receiver.arrived.notify_one();
                let outcome = reply.await;
                receiver.under_way.fetch_sub(1, Ordering::SeqCst);
                outcome
            }
        }
    }

    fn seen(&self) -> Vec<DeliveryJob> {
        self.seen.lock().unwrap().clone()
    }

    /// How often each event arrived.
    fn times(&self) -> HashMap<EventId, usize> {
        let mut times = HashMap::new();
        for job in self.seen() {
            *times.entry(job.event_id).or_default() += 1;
        }
        times
    }

    async fn has_seen(&self, count: usize) {
        while self.seen.lock().unwrap().len() < count {
            self.arrived.notified().await;
        }
    }
}

fn fine() -> Receiver {
    Receiver::answering(|_| answer(200))
}

fn hanging() -> Receiver {
    Receiver::new(|_| pending().boxed())
}

#[tokio::test]
async fn a_delivery_accepted_on_the_third_attempt_was_sent_three_times() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let event = world.event(&tenant).await;
    let receiver =
        Receiver::answering(|job| answer(if job.attempt_number < 3 { 500 } else { 200 }));
    let mut dispatcher = world.dispatcher(receiver.sender());

    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    let row = world.row().await;
    assert_eq!((&*row.status, row.attempt_count), ("pending", 1));
    assert_eq!(row.last_response_code, Some(500));
    assert_eq!(row.last_outcome.as_deref(), Some("http_5xx"));
    let due_in = row.due_in.unwrap();
    assert!((26.0..=33.0).contains(&due_in), "{due_in}");

    world.pass(Duration::from_secs(25)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0, "too early");
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    world.pass(Duration::from_hours(1)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    world.pass(Duration::from_hours(100)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0);

    let row = world.row().await;
    assert_eq!((&*row.status, row.attempt_count), ("delivered", 3));
    assert_eq!((row.due_in, row.leased), (None, false));
    let seen = receiver.seen();
    let numbers: Vec<_> = seen.iter().map(|job| job.attempt_number).collect();
    assert_eq!(numbers, [1, 2, 3]);
    for job in &seen {
        assert_eq!(job.body, format!("body of {event}"));
        assert_eq!((&job.event_id, &job.tenant_id), (&event, &tenant));
        assert_eq!(
            (&*job.event_type, &*job.callback_url),
            ("subscription.renewed", URL)
        );
        assert_eq!(job.id.as_str(), row.id);
    }
}

/// Failed attempts are retried until the schedule ends; a 410 ends it at once.
#[tokio::test]
async fn retries_end_with_the_schedule_or_at_once_on_410() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let receiver = Receiver::answering(|job| match job.attempt_number {
        1 => answer_later(503, Some(Duration::from_mins(50))),
        2 => answer_later(429, Some(Duration::from_secs(1))),
        _ => answer(500),
    });
    let mut dispatcher = world.dispatcher(receiver.sender());
    let mut pauses = vec![];
    loop {
        assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
        let Some(pause) = world.row().await.due_in else {
            break;
        };
        pauses.push(pause);
        world.pass(Duration::from_secs_f64(pause + 0.1)).await;
    }
    // The first delay was extended by the receiver's Retry-After.
    for (pause, expected) in pauses.iter().zip([3000.0, 120.0, 600.0, 3600.0, 21_600.0]) {
        let ratio = pause / expected;
        assert!((0.89..=1.11).contains(&ratio), "{pause} of {expected}");
    }
    assert!(pauses[0] > 2999.0);
    assert_eq!(pauses.len(), 5);
    let row = world.row().await;
    assert_eq!((&*row.status, row.attempt_count), ("failed", 6));

    world.execute("delete from webhook_deliveries").await;
    world.event(&tenant).await;
    let gone = Receiver::answering(|_| answer(410));
    let mut dispatcher = world.dispatcher(gone.sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    let row = world.row().await;
    assert_eq!((&*row.status, row.attempt_count), ("failed", 1));
}

#[tokio::test]
async fn an_internal_error_costs_no_attempt() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let broken = Receiver::answering(|_| AttemptOutcome::NotAttempted {
        class: OutcomeClass::Dns,
        detail: "no answer from our own resolver".to_owned(),
    });
    let mut dispatcher = world.dispatcher(broken.sender());
    for _ in 0..20 {
        assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
        world.pass(Duration::from_mins(1)).await;
    }
    let row = world.row().await;
    assert_eq!((&*row.status, row.attempt_count), ("pending", 0));
    assert!(broken.seen().iter().all(|job| job.attempt_number == 1));
    assert_eq!(row.last_outcome.as_deref(), Some("dns"));
}

/// Several dispatchers, in rounds that overlap at random.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_dispatchers_never_send_the_same_delivery() {
    const EACH: usize = 50;
    let world = World::new().await;
    let tenants = world.tenants(12).await;
    world.well_known(&tenants).await;
    for tenant in &tenants {
        world.events(tenant, EACH).await;
    }
    let receiver = Receiver::new(|job| {
        let answer = answer(if job.attempt_number == 1 && fastrand::bool() {
            500
        } else {
            200
        });
        async move {
            tokio::task::yield_now().await;
            answer
        }
        .boxed()
    });
    let dispatchers =
        (0..4).map(|_| world.dispatcher_with(receiver.sender(), 16, WorkNotifier::default()));
    let drained = join_all(dispatchers.map(|mut dispatcher| async move {
        let first = dispatcher.run_until_idle().await.unwrap();
        (first, dispatcher)
    }))
    .await;
    let total = tenants.len() * EACH;
    let first: usize = drained.iter().map(|(attempts, _)| attempts).sum();
    assert_eq!(first, total, "each once");
    assert!(receiver.times().values().all(|times| *times == 1));
    world.pass(Duration::from_mins(1)).await;
    let retried = join_all(drained.into_iter().map(|(_, mut dispatcher)| async move {
        let again = dispatcher.run_until_idle().await.unwrap();
        assert_eq!(
            dispatcher
                .metrics()
                .attempts_with_outcome(OutcomeClass::LeaseLost),
            0
        );
        again
    }))
    .await;
    let attempts = total + retried.iter().sum::<usize>();
    assert_eq!(receiver.seen().len(), attempts);
    let rows = world.rows().await;
    assert!(rows.iter().all(|row| row.status == "delivered"));
    let counted: i32 = rows.iter().map(|row| row.attempt_count).sum();
    assert_eq!(usize::try_from(counted).unwrap(), attempts);
}

/// A process that was stopped for longer than its lease reports an outdated result.
#[tokio::test]
async fn a_late_result_changes_nothing() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let gate = Arc::new(Semaphore::new(0));
    let slow = Receiver::new({
        let gate = gate.clone();
        move |_| {
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await;
                answer(500)
            }
            .boxed()
        }
    });
    let mut stopped = world.dispatcher(slow.sender());
    assert_eq!(stopped.tick().await.unwrap().started, 1);

    let receiver = fine();
    let mut other = world.dispatcher(receiver.sender());
    world.pass(Duration::from_secs(19)).await;
    assert_eq!(other.run_until_idle().await.unwrap(), 0, "the lease holds");
    world.pass(Duration::from_secs(2)).await;
    assert_eq!(other.run_until_idle().await.unwrap(), 1);
    assert_eq!(other.metrics().interrupted(), 1);
    let before = format!("{:?}", world.row().await);

    gate.add_permits(1);
    let round = stopped.finish_in_flight().await.unwrap();
    assert_eq!((round.written, round.leases_lost), (0, 1));
    assert_eq!(
        stopped
            .metrics()
            .attempts_with_outcome(OutcomeClass::LeaseLost),
        1
    );
    let row = world.row().await;
    assert_eq!(row.status, "delivered");
    let after = format!("{row:?}");
    assert_eq!(before, after);
}

/// Killed between the receiver's 200 and the commit.
#[tokio::test]
async fn a_success_that_was_not_recorded_is_sent_once_more_as_the_same_event() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let receiver = fine();
    let mut killed = world.dispatcher(receiver.sender());
    assert_eq!(killed.tick().await.unwrap().started, 1);
    receiver.has_seen(1).await;
    drop(killed);

    world.pass(Duration::from_secs(21)).await;
    let mut other = world.dispatcher(receiver.sender());
    assert_eq!(other.run_until_idle().await.unwrap(), 1);
    let [first, second] = receiver.seen().try_into().unwrap();
    assert_eq!(first, second, "also the attempt's number: none was burned");
    let row = world.row().await;
    assert_eq!((&*row.status, row.attempt_count), ("delivered", 1));
    assert_eq!(other.metrics().interrupted(), 1);
}

#[tokio::test]
async fn a_delivery_that_crashes_workers_is_parked() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let event = world.event(&tenant).await;
    for round in 1..=5 {
        let mut killed = world.dispatcher(hanging().sender());
        assert_eq!(killed.tick().await.unwrap().started, 1, "round {round}");
        drop(killed);
        world.pass(Duration::from_secs(45)).await;
    }
    let receiver = fine();
    let mut dispatcher = world.dispatcher(receiver.sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0);
    let row = world.row().await;
    assert!(row.parked && !row.leased);
    assert_eq!((&*row.status, row.attempt_count), ("pending", 0));
    assert_eq!(row.interruptions, 5);
    assert_eq!(row.lease_no, 10, "given five times and ended five times");

    let request = RedeliveryRequest {
        requested_by: "ada".into(),
        reason: None,
    };
    let redeliveries = world.redeliveries();
    redeliveries
        .redeliver_event(&tenant, &event, None, &request)
        .await
        .unwrap();
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    assert!(
        world
            .rows()
            .await
            .iter()
            .all(|row| row.status == "delivered")
    );
}

#[tokio::test]
async fn an_unreadable_body_stops_no_other_delivery_and_is_parked() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.well_known(std::slice::from_ref(&tenant)).await;
    let events = world.events(&tenant, 3).await;
    // Of a format to come, and with a dictionary that is not there.
    for (event, stored) in [(&events[0], "\\x63"), (&events[1], "\\x01070000")] {
        sqlx::query("update webhook_events set stored_body = $2::bytea where id = $1")
            .bind(event.as_str())
            .bind(stored)
            .execute(world.database().pool())
            .await
            .unwrap();
    }
    let receiver = fine();
    for _ in 0..6 {
        let mut dispatcher = world.dispatcher(receiver.sender());
        dispatcher.run_until_idle().await.unwrap();
        world.pass(Duration::from_secs(45)).await;
    }
    assert_eq!(receiver.times(), HashMap::from([(events[2].clone(), 1)]));
    let rows = world.rows().await;
    let parked = rows.iter().filter(|row| row.parked);
    assert_eq!(parked.count(), 2);
    assert!(
        rows.iter()
            .all(|row| row.parked || row.status == "delivered")
    );
}

/// A panicking attempt counts as interrupted, and does not end the dispatcher.
#[tokio::test]
async fn a_panic_counts_as_an_interruption() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let receiver = Receiver::answering(|job| match job.attempt_number {
        1 if fastrand::u8(..) < u8::MAX => panic!("on purpose"),
        _ => answer(200),
    });
    let mut dispatcher = world.dispatcher(receiver.sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    assert!(world.row().await.leased);
    world.pass(Duration::from_secs(21)).await;
    dispatcher.tick().await.unwrap();
    assert_eq!(world.row().await.interruptions, 1);
}

/// Attempts that can finish in time do so; the others are released and claimed by another process
/// at once; no attempt starts.
#[tokio::test]
async fn a_graceful_stop_releases_unfinished_deliveries() {
    let world = World::new().await;
    let tenants = world.tenants(2).await;
    for tenant in &tenants {
        world.event(tenant).await;
    }
    let quick = tenants[0].clone();
    let gate = Arc::new(Semaphore::new(0));
    let receiver = Receiver::new({
        let (quick, gate) = (quick.clone(), gate.clone());
        move |job| {
            let (quick, gate) = (job.tenant_id == quick, gate.clone());
            async move {
                if !quick {
                    pending::<()>().await;
                }
                let _ = gate.acquire().await;
                answer(200)
            }
            .boxed()
        }
    });
    let stop = CancellationToken::new();
    let dispatcher = world.dispatcher(receiver.sender());
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    receiver.has_seen(2).await;
    stop.cancel();
    gate.add_permits(1);
    world.event(&quick).await;
    finished("the dispatcher stops", running).await.unwrap();
    assert_eq!(receiver.seen().len(), 2, "nothing new was begun");
    let rows = world.rows().await;
    assert!(rows.iter().all(|row| !row.leased && row.interruptions == 0));
    assert_eq!(
        rows.iter().map(|row| row.attempt_count).sum::<i32>(),
        1,
        "{rows:?}"
    );

    // No time passes: due at once, for any dispatcher.
    let mut other = world.dispatcher(fine().sender());
    assert_eq!(other.run_until_idle().await.unwrap(), 2);
    let delivered = BTreeMap::from([("delivered".to_owned(), 3)]);
    assert_eq!(world.standing().await, delivered);
}

/// A backlog of one tenant does not affect other tenants.
#[tokio::test]
async fn a_backlog_of_one_tenant_delays_no_other() {
    const FLOOD: usize = 100_000;
    let world = World::new().await;
    let tenants = world.tenants(2).await;
    let (flood, drop) = (&tenants[0], &tenants[1]);
    world.well_known(&tenants).await;
    world.events(flood, FLOOD).await;
    let receiver = fine();
    let mut dispatcher = world.dispatcher(receiver.sender());
    for round in 1..=20 {
        let event = world.event(drop).await;
        let begun_now = dispatcher.tick().await.unwrap().started;
        assert_eq!(begun_now, 9, "eight of the flood and the drop");
        dispatcher.finish_in_flight().await.unwrap();
        assert_eq!(receiver.times().get(&event), Some(&1), "round {round}");
    }
    assert_eq!(receiver.seen().len(), 180);
}

/// Fifty callbacks hang, and one tenant has a backlog for each of them; other tenants are hardly
/// delayed, although there are fewer slots than hanging requests.
#[tokio::test]
async fn hanging_callbacks_do_not_block_others() {
    let world = World::new().await;
    let tenants = world.tenants(51).await;
    let (healthy, hanging) = tenants.split_last().unwrap();
    // The worst case: the callbacks were healthy until now.
    world.well_known(&tenants).await;
    for tenant in hanging {
        world.events(tenant, 20).await;
    }
    let receiver = Receiver::new({
        let healthy = healthy.clone();
        move |job| {
            if job.tenant_id == healthy {
                std::future::ready(answer(200)).boxed()
            } else {
                pending().boxed()
            }
        }
    });
    let wake = WorkNotifier::default();
    let dispatcher = world.dispatcher_with(receiver.sender(), 64, wake.clone());
    let stop = CancellationToken::new();
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    receiver.has_seen(64).await;
    for _ in 0..3 {
        let event = world.event(healthy).await;
        wake.notify_work(healthy);
        // The sixty-four requests that hang never end.
        let arrived = async {
            while !receiver.times().contains_key(&event) {
                receiver.arrived.notified().await;
            }
        };
        finished("the healthy callback gets its event", arrived).await;
    }
    stop.cancel();
    running.await.unwrap();
}

/// The limits hold across all processes: eight per callback, thirty-two per tenant.
#[tokio::test]
async fn concurrency_limits_hold_across_replicas() {
    let world = World::new().await;
    let tenants = world.tenants(2).await;
    let (one, many) = (&tenants[0], &tenants[1]);
    world.well_known(&tenants).await;
    world.events(one, 20).await;
    world.events(many, 200).await;
    // Twenty callbacks, ten deliveries each.
    world
        .execute(
            "
            with spread as (
                select id, row_number() over (order by id) % 20 as number from webhook_deliveries
                where tenant_id = (select max(id) from tenants)
            )
            update webhook_deliveries d set callback_url = callback_url || number from spread where d.id = spread.id
            ",
        )
        .await;
    world
        .execute(
            "insert into webhook_health (lane, tenant_id, callback_url, allowed, last_success_at)
            select distinct tenant_lane(tenant_id), tenant_id, callback_url, 8, now() from webhook_deliveries on conflict do nothing",
        )
        .await;
    let receiver = hanging();
    let dispatchers: Vec<_> = (0..4)
        .map(|_| world.dispatcher_with(receiver.sender(), 64, WorkNotifier::default()))
        .collect();
    let begun = join_all(dispatchers.into_iter().map(|mut dispatcher| async move {
        let begun = dispatcher.tick().await.unwrap().started;
        (begun, dispatcher)
    }))
    .await;
    let total: usize = begun.iter().map(|(begun, _)| begun).sum();
    assert_eq!(total, 8 + 32);
    receiver.has_seen(total).await;
    let mut of_callback: HashMap<_, usize> = HashMap::new();
    let mut of_tenant: HashMap<_, usize> = HashMap::new();
    for job in receiver.seen() {
        *of_tenant.entry(job.tenant_id.clone()).or_default() += 1;
        *of_callback
            .entry((job.tenant_id, job.callback_url))
            .or_default() += 1;
    }
    assert_eq!(
        of_tenant,
        HashMap::from([(one.clone(), 8), (many.clone(), 32)])
    );
    // And within the tenant, every callback has its share.
    assert_eq!(of_callback.len(), 21);
}

/// The same function in Rust and in SQL: rows are stored with what SQL says, and claimed by what Rust says.
#[tokio::test]
async fn the_lane_of_a_tenant_is_the_same_in_sql() {
    let world = World::new().await;
    let tenants: Vec<_> = (0..5_000)
        .map(|at| TenantId::mint(Timestamp::from_millis(at * 86_400_000)))
        .collect();
    let ids: Vec<&str> = tenants.iter().map(TenantId::as_str).collect();
    let in_sql: Vec<i16> = sqlx::query_scalar(
        "select tenant_lane(id) from unnest($1::text[]) with ordinality as ids (id, n) order by n",
    )
    .bind(&ids)
    .fetch_all(world.database().pool())
    .await
    .unwrap();
    let here = |tenant| i16::from(tenant_lane(tenant).number());
    assert_eq!(in_sql, tenants.iter().map(here).collect::<Vec<_>>());
    let used: LaneSet = tenants.iter().map(tenant_lane).collect();
    assert_eq!(used, LaneSet::ALL);
    // Rows exist with these lanes: the function never changes.
    let known: TenantId = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E".parse().unwrap();
    assert_eq!(tenant_lane(&known).number(), 27);
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let stored = sqlx::query_scalar::<_, i16>("select lane from webhook_deliveries");
    let stored = stored.fetch_one(world.database().pool()).await.unwrap();
    assert_eq!(stored, here(&tenant));
}

/// While one process claims in a lane, another one claims in the other lanes, and does not wait for the first.
#[tokio::test]
async fn a_claim_leaves_other_lanes_to_other_processes() {
    let world = World::new().await;
    let (one, other) = world.tenants_in_two_lanes().await;
    world.event(&one).await;
    world.event(&other).await;
    let mut claiming = world.database().pool().begin().await.unwrap();
    sqlx::query("select from delivery_lanes where lane = $1 for no key update")
        .bind(i16::from(tenant_lane(&one).number()))
        .execute(&mut *claiming)
        .await
        .unwrap();
    let receiver = fine();
    let mut dispatcher = world.dispatcher(receiver.sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    assert_eq!(receiver.seen()[0].tenant_id, other);
    claiming.commit().await.unwrap();
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    assert_eq!(receiver.seen()[1].tenant_id, one);
}

/// Running, it tries again by itself.
#[tokio::test]
async fn a_locked_lane_is_claimed_in_when_it_is_free() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let mut claiming = world.database().pool().begin().await.unwrap();
    sqlx::query("select from delivery_lanes for no key update")
        .execute(&mut *claiming)
        .await
        .unwrap();
    let receiver = fine();
    let mut dispatcher = world.dispatcher(receiver.sender());
    assert_eq!(dispatcher.tick().await.unwrap().started, 0);
    let stop = CancellationToken::new();
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    claiming.commit().await.unwrap();
    finished("the event is delivered", receiver.has_seen(1)).await;
    stop.cancel();
    running.await.unwrap();
}

/// With more to do than it can, a process claims in its own lanes; with free slots in all.
#[tokio::test]
async fn a_busy_process_leaves_the_lanes_of_others_alone() {
    const SLOTS: usize = 8;
    let share = LaneShare::default();
    let [own, other] = [0, 1].map(|at| ReplicaId::mint(Timestamp::from_millis(at)));
    share.update(&own, &[other]);
    let is_own = |tenant: &TenantId| share.lanes().contains(tenant_lane(tenant));
    let world = World::new().await;
    let tenants = world.tenants(24).await;
    world.well_known(&tenants).await;
    let owned = tenants.iter().filter(|tenant| is_own(tenant)).count();
    assert!(
        0 < owned && owned < tenants.len(),
        "24 in half of the lanes"
    );
    for tenant in &tenants {
        world.events(tenant, SLOTS * 2).await;
    }
    let receiver = fine();
    let mut dispatcher = world
        .dispatcher_with(receiver.sender(), SLOTS, WorkNotifier::default())
        .with_lane_share(share.clone())
        .with_neglect_timeout(HANG_LIMIT);
    assert_eq!(dispatcher.tick().await.unwrap().started, SLOTS);
    dispatcher.finish_in_flight().await.unwrap();
    assert_eq!(dispatcher.tick().await.unwrap().started, SLOTS);
    dispatcher.finish_in_flight().await.unwrap();
    assert!(
        receiver.seen()[SLOTS..]
            .iter()
            .all(|job| is_own(&job.tenant_id))
    );
    let rest = dispatcher.run_until_idle().await.unwrap();
    assert_eq!(rest, tenants.len() * SLOTS * 2 - 2 * SLOTS, "all");
}

/// Two processes work off a backlog together.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_processes_share_a_backlog() {
    const EACH: usize = 10;
    let world = World::new().await;
    // More than one process can have in flight.
    let tenants = world.tenants(80).await;
    world.well_known(&tenants).await;
    for tenant in &tenants {
        world.events(tenant, EACH).await;
    }
    let [one, other] = [0, 1].map(|at| ReplicaId::mint(Timestamp::from_millis(at)));
    let stop = CancellationToken::new();
    let gate = Arc::new(Semaphore::new(0));
    let receivers = [(), ()].map(|()| {
        let gate = gate.clone();
        Receiver::new(move |_| {
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await;
                answer(200)
            }
            .boxed()
        })
    });
    let shares = [(&one, &other), (&other, &one)].map(|(own, other)| {
        let share = LaneShare::default();
        share.update(own, std::slice::from_ref(other));
        share
    });
    let running: Vec<_> = receivers
        .iter()
        .zip(shares)
        .map(|(receiver, share)| {
            let dispatcher = world
                .dispatcher_with(receiver.sender(), 16, WorkNotifier::default())
                .with_lane_share(share);
            tokio::spawn(dispatcher.run(stop.clone()))
        })
        .collect();
    for receiver in &receivers {
        finished("both have claimed", receiver.has_seen(1)).await;
    }
    gate.add_permits(1_000);
    wait_until("everything is delivered", async || {
        !world.standing().await.contains_key("pending")
    })
    .await;
    stop.cancel();
    for process in running {
        process.await.unwrap();
    }
    let seen = receivers.each_ref().map(|receiver| receiver.seen().len());
    assert_eq!(seen[0] + seen[1], tenants.len() * EACH, "each once");
}

/// Every tenant is served once before any is served twice, regardless of the order of ids.
#[tokio::test]
async fn tenants_are_served_round_robin() {
    let world = World::new().await;
    let tenants = world.tenants(10).await;
    world.well_known(&tenants).await;
    for tenant in &tenants {
        world.events(tenant, 3).await;
    }
    let receiver = fine();
    let mut dispatcher = world.dispatcher_with(receiver.sender(), 4, WorkNotifier::default());
    dispatcher.run_until_idle().await.unwrap();
    let seen = receiver.seen();
    assert_eq!(seen.len(), 30);
    let mut served: HashMap<_, usize> = HashMap::new();
    for job in &seen[..20] {
        *served.entry(&job.tenant_id).or_default() += 1;
    }
    assert_eq!(served.len(), 10);
    assert!(served.values().all(|count| *count == 2), "{served:?}");
}

#[tokio::test]
async fn a_disabled_callback_gets_its_events_later() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let receiver = fine();
    let mut dispatcher = world.dispatcher(receiver.sender());
    for table in ["tenants", "webhook_configs"] {
        let set = |active: bool| {
            let statement = format!("update {table} set is_active = {active}");
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(world.database().pool())
        };
        set(false).await.unwrap();
        assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0, "{table}");
        set(true).await.unwrap();
    }
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
}

/// All callbacks are down for two hours. Waiting deliveries keep their attempts, and afterwards the
/// rate rises gradually.
#[tokio::test]
async fn an_outage_costs_no_attempts_and_recovery_is_gradual() {
    const QUEUED: usize = 500;
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.well_known(std::slice::from_ref(&tenant)).await;
    world.events(&tenant, QUEUED).await;
    let down = Receiver::answering(|_| nobody_answers());
    let mut dispatcher = world.dispatcher(down.sender());
    let mut passed = Duration::ZERO;
    while passed < Duration::from_hours(2) {
        dispatcher.run_until_idle().await.unwrap();
        world.pass(Duration::from_secs(20)).await;
        passed += Duration::from_secs(20);
    }
    let (state, _) = world.health(&tenant).await;
    assert_eq!(state, "open");
    let tried = down.seen().len();
    assert!(
        tried < 100,
        "{tried} attempts at a callback that is not there"
    );
    let standing = world.standing().await;
    assert_eq!(standing.get("pending"), Some(&500), "{standing:?}");

    let receiver = Receiver::new(|_| {
        async {
            tokio::task::yield_now().await;
            answer(200)
        }
        .boxed()
    });
    let mut dispatcher = world.dispatcher(receiver.sender());
    world.pass(Duration::from_mins(5)).await;
    assert_eq!(dispatcher.tick().await.unwrap().started, 1, "one, to see");
    dispatcher.finish_in_flight().await.unwrap();
    assert_eq!(dispatcher.tick().await.unwrap().started, 2);
    dispatcher.finish_in_flight().await.unwrap();
    dispatcher.run_until_idle().await.unwrap();
    world.pass(Duration::from_hours(6)).await;
    dispatcher.run_until_idle().await.unwrap();
    let delivered = BTreeMap::from([("delivered".to_owned(), 500)]);
    assert_eq!(world.standing().await, delivered);
    assert!(receiver.most.load(Ordering::SeqCst) <= 8);
    assert_eq!(world.health(&tenant).await, ("active".to_owned(), 8));
}

#[tokio::test]
async fn after_a_day_without_success_a_callback_is_paused_and_keeps_its_events() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.events(&tenant, 12).await;
    let failing = Receiver::answering(|_| answer(500));
    let mut dispatcher = world.dispatcher(failing.sender());
    dispatcher.run_until_idle().await.unwrap();
    world.pass(Duration::from_hours(25)).await;
    world.events(&tenant, 5).await;
    dispatcher.tick().await.unwrap();
    dispatcher.finish_in_flight().await.unwrap();
    assert_eq!(world.health(&tenant).await.0, "paused");
    let before = failing.seen().len();
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0);
    world.pass(Duration::from_mins(61)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1, "one an hour");
    assert_eq!(failing.seen().len(), before + 1);
    assert_eq!(world.standing().await.get("pending"), Some(&17));

    world.pass(Duration::from_mins(61)).await;
    let mut dispatcher = world.dispatcher(fine().sender());
    dispatcher.run_until_idle().await.unwrap();
    world.pass(Duration::from_hours(7)).await;
    dispatcher.run_until_idle().await.unwrap();
    assert_eq!(world.standing().await.get("delivered"), Some(&17));
}

/// The SQL of the claim agrees with `Health::admits`.
#[tokio::test]
async fn the_claim_sql_agrees_with_the_health_rules() {
    for (closed_until, allowed, admitted) in [
        ("null", 1, 1),
        ("null", 4, 4),
        ("null", 8, 8),
        ("now() + interval '1 minute'", 8, 0),
        ("now() - interval '1 minute'", 8, 1),
    ] {
        let world = World::new().await;
        let tenant = world.tenant().await;
        world.events(&tenant, 10).await;
        let statement = format!(
            "insert into webhook_health (lane, tenant_id, callback_url, allowed, closed_until)
            select tenant_lane(tenant_id), tenant_id, callback_url, {allowed}, {closed_until} from webhook_configs"
        );
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(world.database().pool())
            .await
            .unwrap();
        let mut dispatcher = world.dispatcher(hanging().sender());
        let begun = dispatcher.tick().await.unwrap().started;
        assert_eq!(begun, admitted, "{closed_until}, {allowed}");
        assert_eq!(dispatcher.tick().await.unwrap().started, 0);
    }
}

/// Requested twice while the automatic retry waits.
#[tokio::test]
async fn a_redelivery_that_succeeds_ends_the_automatic_retries() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let event = world.event(&tenant).await;
    let mut dispatcher = world.dispatcher(Receiver::answering(|_| answer(500)).sender());
    dispatcher.run_until_idle().await.unwrap();

    let redeliveries = world.redeliveries();
    let request = RedeliveryRequest {
        requested_by: "ada".into(),
        reason: Some("they asked".into()),
    };
    let first = redeliveries
        .redeliver_event(&tenant, &event, None, &request)
        .await
        .unwrap();
    let second = redeliveries
        .redeliver_event(&tenant, &event, None, &request)
        .await
        .unwrap();
    assert_ne!(first, second);
    let receiver = fine();
    let mut dispatcher = world.dispatcher(receiver.sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 2);
    world.pass(Duration::from_hours(100)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0);

    let seen = receiver.seen();
    assert!(seen.iter().all(|job| job.event_id == event));
    assert!(seen.iter().all(|job| job.attempt_number == 1));
    let rows = world.rows().await;
    assert!(rows.iter().all(|row| row.status == "delivered"));
    let settled: Vec<_> = rows
        .iter()
        .filter_map(|row| row.settled_by.clone())
        .collect();
    assert_eq!(settled.len(), 1, "the automatic one, once");
    let counts: Vec<_> = rows.iter().map(|row| row.attempt_count).collect();
    assert_eq!(counts, [1, 1, 1]);
    let kept: Vec<(String, String)> = sqlx::query_as(
        "select requested_by, request_reason from webhook_deliveries where requested_by is not null",
    )
    .fetch_all(world.database().pool())
    .await
    .unwrap();
    assert_eq!(kept, vec![("ada".to_owned(), "they asked".to_owned()); 2]);
}

/// The automatic attempt is running while the redelivery succeeds.
#[tokio::test]
async fn a_redelivery_does_not_change_automatic_retries() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let event = world.event(&tenant).await;
    let failing = Receiver::answering(|_| answer(500));
    let mut dispatcher = world.dispatcher(failing.sender());
    dispatcher.run_until_idle().await.unwrap();
    let request = RedeliveryRequest {
        requested_by: "ada".into(),
        reason: None,
    };
    let redeliveries = world.redeliveries();
    redeliveries
        .redeliver_event(&tenant, &event, None, &request)
        .await
        .unwrap();
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    world.pass(Duration::from_secs(40)).await;
    assert_eq!(
        dispatcher.run_until_idle().await.unwrap(),
        2,
        "both chains go on"
    );
    let counts: Vec<_> = world
        .rows()
        .await
        .iter()
        .map(|row| (row.status.clone(), row.attempt_count))
        .collect();
    assert_eq!(counts, vec![("pending".to_owned(), 2); 2]);

    // Only the automatic delivery is due, and it hangs while a new redelivery succeeds.
    world
        .execute("delete from webhook_deliveries where requested_by is not null")
        .await;
    world.pass(Duration::from_mins(3)).await;
    world.execute("update webhook_health set allowed = 8").await;
    let gate = Arc::new(Semaphore::new(0));
    let slow = Receiver::new({
        let gate = gate.clone();
        move |_| {
            let gate = gate.clone();
            async move {
                let _ = gate.acquire().await;
                answer(500)
            }
            .boxed()
        }
    });
    let mut hangs = world.dispatcher(slow.sender());
    assert_eq!(hangs.tick().await.unwrap().started, 1);
    redeliveries
        .redeliver_event(&tenant, &event, None, &request)
        .await
        .unwrap();
    let mut dispatcher = world.dispatcher(fine().sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    gate.add_permits(1);
    let round = hangs.finish_in_flight().await.unwrap();
    assert_eq!((round.written, round.leases_lost), (1, 0));
    let rows = world.rows().await;
    assert!(rows.iter().all(|row| row.status == "delivered"), "{rows:?}");
}

/// By filter, at a limited rate, by several processes that are killed one after the other.
#[tokio::test]
async fn a_redelivery_by_filter_covers_each_event_once() {
    const FAILED: usize = 2_000;
    let world = World::new().await;
    let tenants = world.tenants(2).await;
    let (tenant, stranger) = (&tenants[0], &tenants[1]);
    world.events(stranger, 50).await;
    let old = world.events(tenant, 10).await;
    world
        .execute("update webhook_deliveries set status = 'failed'")
        .await;
    world.pass(Duration::from_hours(30)).await;
    let failed = world.events(tenant, FAILED).await;
    world
        .execute("update webhook_deliveries set status = 'failed'")
        .await;
    let fine_already = world.events(tenant, 1500).await;
    world
        .execute("update webhook_deliveries set status = 'delivered' where status = 'pending'")
        .await;
    world.well_known(&tenants).await;

    let redeliveries = world.redeliveries();
    let filter = RedeliveryFilter {
        tenant: tenant.clone(),
        status: Some(EventStatus::Failed),
        event_type: None,
        received_within: Some(Duration::from_hours(24)),
        callback: None,
        is_for_previous_callback: false,
    };
    let found = redeliveries.preview_matching(&filter).await.unwrap();
    assert_eq!(found.count, 2_000);
    assert!(found.oldest.is_some());
    let renewed = RedeliveryFilter {
        event_type: Some("subscription.renewed".into()),
        received_within: None,
        ..filter.clone()
    };
    assert_eq!(
        redeliveries.preview_matching(&renewed).await.unwrap().count,
        2_010
    );
    let other = RedeliveryFilter {
        event_type: Some("test".into()),
        ..filter.clone()
    };
    assert_eq!(
        redeliveries.preview_matching(&other).await.unwrap().count,
        0
    );

    let request = RedeliveryRequest {
        requested_by: "ada".into(),
        reason: None,
    };
    redeliveries
        .redeliver_matching(&filter, &request)
        .await
        .unwrap();
    // Deliveries that fail from now on are not part of it.
    let receiver = fine();
    let (mut seconds, begun) = (0_u32, Instant::now());
    while receiver.seen().len() < FAILED {
        // Each second a new process; the previous one was killed with requests running.
        let mut dispatcher = world.dispatcher(receiver.sender());
        dispatcher.run_until_idle().await.unwrap();
        world.pass(Duration::from_secs(1)).await;
        seconds += 1;
        assert!(seconds <= 22, "{} after {seconds} s", receiver.seen().len());
    }
    // The database's clock runs by itself, in addition to the time the test adds.
    let took = Duration::from_secs(seconds.into()) + begun.elapsed();
    assert!(took >= Duration::from_secs(19), "{took:?} for 2,000");
    world.pass(Duration::from_secs(10)).await;
    let mut dispatcher = world.dispatcher(receiver.sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0);

    let times = receiver.times();
    assert_eq!(times.len(), FAILED);
    assert!(failed.iter().all(|event| times.get(event) == Some(&1)));
    assert!(
        old.iter()
            .chain(&fine_already)
            .all(|event| !times.contains_key(event))
    );
    let finished: (i32, bool) =
        sqlx::query_as("select enqueued, finished_at is not null from webhook_redeliveries")
            .fetch_one(world.database().pool())
            .await
            .unwrap();
    assert_eq!(finished, (2_000, true));
}

#[tokio::test]
async fn a_redelivery_needs_an_event_and_a_callback() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let event = world.event(&tenant).await;
    let redeliveries = world.redeliveries();
    let request = RedeliveryRequest {
        requested_by: "ada".into(),
        reason: None,
    };
    let stranger = EventId::mint(start());
    let refused = redeliveries
        .redeliver_event(&tenant, &stranger, None, &request)
        .await;
    assert!(matches!(refused, Err(RedeliveryError::EventNotFound(_))));
    let filter = |tenant: &TenantId| RedeliveryFilter {
        tenant: tenant.clone(),
        status: None,
        event_type: None,
        received_within: None,
        callback: None,
        is_for_previous_callback: false,
    };
    let nobody = TenantId::mint(start());
    let refused = redeliveries
        .redeliver_matching(&filter(&nobody), &request)
        .await;
    assert!(matches!(refused, Err(RedeliveryError::TenantNotFound(_))));
    world
        .execute("update webhook_configs set is_active = false")
        .await;
    let refused = redeliveries
        .redeliver_event(&tenant, &event, None, &request)
        .await;
    assert!(matches!(refused, Err(RedeliveryError::NoActiveCallback(_))));
    let refused = redeliveries
        .redeliver_matching(&filter(&tenant), &request)
        .await;
    assert!(matches!(refused, Err(RedeliveryError::NoActiveCallback(_))));

    // While the callback is disabled, a request waits.
    world
        .execute("update webhook_configs set is_active = true")
        .await;
    redeliveries
        .redeliver_matching(&filter(&tenant), &request)
        .await
        .unwrap();
    world
        .execute("update webhook_configs set is_active = false")
        .await;
    let batch = redeliveries.enqueue_next_batch().await.unwrap();
    assert_eq!((batch.had_request, batch.enqueued), (true, 0));
    world
        .execute("update webhook_configs set is_active = true")
        .await;
    assert!(!redeliveries.enqueue_next_batch().await.unwrap().had_request);
    world.pass(Duration::from_secs(11)).await;
    assert_eq!(redeliveries.enqueue_next_batch().await.unwrap().enqueued, 1);
}

/// A process that only receives notifies one that delivers, which otherwise would poll only every
/// ten seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_created_by_another_process_starts_at_once() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    let stop = CancellationToken::new();
    let receiver = fine();
    let there = Database::open(&world.fresh.settings);
    let changes = ChangeListener::new(&there);
    let heard = WorkNotifier::from_changes(&changes);
    let dispatcher = world.dispatcher_with(receiver.sender(), 64, heard);
    let ear = tokio::spawn({
        let stop = stop.clone();
        async move { changes.run_until_stopped(stop).await }
    });
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    let here = WorkNotifier::default();
    let telling = tokio::spawn({
        let (here, database, stop) = (here.clone(), world.database().clone(), stop.clone());
        async move { here.run_remote_notifications(&database, stop).await }
    });

    // The first may have to wait until the other process listens.
    for count in 1..=5 {
        let event = world.event(&tenant).await;
        here.notify_work(&tenant);
        receiver.has_seen(count).await;
        assert!(receiver.times().contains_key(&event));
    }
    stop.cancel();
    running.await.unwrap();
    telling.await.unwrap();
    ear.await.unwrap();
    there.close_connections().await;
}

/// The database is down for longer than a lease: answers received meanwhile count, and nothing is
/// sent again.
#[tokio::test]
async fn results_that_arrive_during_a_database_outage_are_recorded() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    let receiver = fine();
    let mut dispatcher = world.dispatcher(receiver.sender());
    assert_eq!(dispatcher.tick().await.unwrap().started, 1);
    world
        .execute("alter table webhook_deliveries rename to away")
        .await;
    assert!(dispatcher.finish_in_flight().await.is_err());
    world.pass(Duration::from_mins(2)).await;
    world
        .execute("alter table away rename to webhook_deliveries")
        .await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 0);
    let row = world.row().await;
    assert_eq!((&*row.status, row.attempt_count), ("delivered", 1));
    assert_eq!(row.interruptions, 0);
    assert_eq!(receiver.seen().len(), 1);
}

/// Requested redeliveries start, however busy a dispatcher is.
#[tokio::test]
async fn a_backlog_does_not_delay_a_redelivery() {
    let world = World::new().await;
    let tenants = world.tenants(2).await;
    let (flood, quiet) = (&tenants[0], &tenants[1]);
    world.well_known(&tenants).await;
    let failed = world.events(quiet, 5).await;
    world
        .execute("update webhook_deliveries set status = 'failed'")
        .await;
    world.events(flood, 20_000).await;
    let filter = RedeliveryFilter {
        tenant: quiet.clone(),
        status: Some(EventStatus::Failed),
        event_type: None,
        received_within: None,
        callback: None,
        is_for_previous_callback: false,
    };
    let request = RedeliveryRequest {
        requested_by: "ada".into(),
        reason: None,
    };
    let receiver = fine();
    let stop = CancellationToken::new();
    let dispatcher = world.dispatcher_with(receiver.sender(), 8, WorkNotifier::default());
    let running = tokio::spawn(dispatcher.run(stop.clone()));
    receiver.has_seen(100).await;
    world
        .redeliveries()
        .redeliver_matching(&filter, &request)
        .await
        .unwrap();
    while !failed
        .iter()
        .all(|event| receiver.times().contains_key(event))
    {
        receiver.arrived.notified().await;
    }
    assert!(receiver.seen().len() < 15_000, "{}", receiver.seen().len());
    stop.cancel();
    running.await.unwrap();
}

/// Deliveries that cannot be sent are not retried in a tight loop.
#[tokio::test]
async fn an_internal_error_pauses_its_callback_briefly() {
    let world = World::new().await;
    let tenants = world.tenants(1).await;
    world.well_known(&tenants).await;
    world.events(&tenants[0], 100).await;
    let broken = Receiver::answering(|_| AttemptOutcome::NotAttempted {
        class: OutcomeClass::Unsigned,
        detail: "a secret does not open".to_owned(),
    });
    let mut dispatcher = world.dispatcher(broken.sender());
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 8);
    world.pass(Duration::from_secs(16)).await;
    assert_eq!(dispatcher.run_until_idle().await.unwrap(), 1);
    assert_eq!(world.health(&tenants[0]).await.0, "active");
    // After the repair they continue at once.
    world.pass(Duration::from_secs(31)).await;
    let mut mended = world.dispatcher(fine().sender());
    assert_eq!(mended.run_until_idle().await.unwrap(), 100);
}

/// A retry starts when it is due, not at the next poll.
#[tokio::test]
async fn a_running_dispatcher_wakes_up_for_due_deliveries() {
    let world = World::new().await;
    let tenant = world.tenant().await;
    world.event(&tenant).await;
    world
        .execute("update webhook_deliveries set next_attempt_at = now() + interval '1 second'")
        .await;
    let receiver = fine();
    let stop = CancellationToken::new();
    let running = tokio::spawn(world.dispatcher(receiver.sender()).run(stop.clone()));
    receiver.has_seen(1).await;
    stop.cancel();
    running.await.unwrap();
    assert_eq!(
        world.row().await.status,
        "delivered",
        "written before it ends"
    );
}
