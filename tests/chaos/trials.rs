//! Measurements of one fault each; a run of [`super::run`] mixes them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde_json::Value;
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::judge;
use super::pusher::{Accepted, Notification, Ports, push};
use super::stage::Stage;

/// Concurrent clients.
const CALLERS: u32 = 16;

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Trial {
    /// Five database sessions are terminated each second, for a minute
    Sessions,
    /// 10,000 requests, half of them cancelled by their clients, with two database connections
    Cancelled,
    /// Four other sessions read the delivery tables in long transactions, for five minutes
    Readers,
}

/// Runs the measurement and prints the result. Returns whether it is as required. `requests` is
/// used by [`Trial::Cancelled`].
pub(crate) async fn run(trial: Trial, requests: u32, seed: u64) -> bool {
    println!("{trial:?}, seed {seed}");
    match trial {
        Trial::Sessions => sessions(seed).await,
        Trial::Cancelled => cancelled(requests, seed).await.is_clean(),
        Trial::Readers => readers(seed).await,
    }
}

/// Deliveries per second.
fn rate(stage: &Stage, from: Instant, to: Instant) -> f64 {
    let taken = stage.receivers.seen(|seen| {
        let moments = seen.taken.values().flatten();
        moments.filter(|at| (from..to).contains(*at)).count()
    });
    f64::from(u32::try_from(taken).unwrap_or(u32::MAX)) / (to - from).as_secs_f64()
}

/// Clients push notifications one after the other until `end`: without a pause, or each at most
/// once per `pace`.
async fn load(stage: &Stage, accepted: &Accepted, pace: Option<Duration>, end: Instant, seed: u64) {
    let (client, ports) = (client(), stage.ports());
    let next = AtomicU32::new(0);
    let callers = (0..CALLERS).map(async |caller| {
        let mut ticks = interval(pace.unwrap_or(Duration::from_nanos(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        while Instant::now() < end {
            if pace.is_some() {
                ticks.tick().await;
            }
            let number = next.fetch_add(1, Ordering::Relaxed);
            let notification = stage.a_test(number);
            let seed = seed.wrapping_add(u64::from(number * CALLERS + caller));
            push(
                client.clone(),
                ports.clone(),
                notification,
                accepted.clone(),
                seed,
            )
            .await;
        }
    });
    join_all(callers).await;
}

fn client() -> reqwest::Client {
    attesto::outbound::build_http_client().expect("a client can be made")
}

/// Whether everything that was accepted arrived, and nothing else.
async fn nothing_is_lost(stage: &Stage, accepted: &Accepted, faults: usize) -> bool {
    let verdict = judge::judge(stage, accepted, faults, true).await;
    println!("{verdict}");
    verdict.is_clean()
}

async fn sessions(seed: u64) -> bool {
    const WARM: Duration = Duration::from_secs(10);
    const MEASURED: Duration = Duration::from_secs(20);
    const CUTTING: Duration = Duration::from_mins(1);
    const RECOVERY: Duration = Duration::from_secs(10);
    let stage = Stage::set(2, false).await;
    let accepted = Accepted::default();
    let begun = Instant::now();
    let calm = begun + WARM;
    let cut_from = calm + MEASURED;
    let cut_until = cut_from + CUTTING;
    let again = cut_until + RECOVERY;
    let end = again + MEASURED;
    let cutting = async {
        sleep_until(cut_from.into()).await;
        let mut ticks = interval(Duration::from_secs(1));
        let mut cuts = 0;
        while Instant::now() < cut_until {
            ticks.tick().await;
            stage.cut_sessions().await;
            cuts += 1;
        }
        cuts
    };
    let (cuts, ()) = tokio::join!(cutting, load(&stage, &accepted, None, end, seed));
    let (before, during, after) = (
        rate(&stage, calm, cut_from),
        rate(&stage, cut_from, cut_until),
        rate(&stage, again, end),
    );
    println!(
        "delivered each second: {before:.1} before, {during:.1} during ({:.0} %), {after:.1} from ten seconds after ({:.0} %)",
        100.0 * during / before,
        100.0 * after / before
    );
    let terminated = stage.terminated();
    println!("{terminated} sessions were terminated");
    let is_whole = nothing_is_lost(&stage, &accepted, cuts).await;
    stage.strike().await;
    is_whole
        && terminated >= 4 * cuts
        && before > 0.0
        && during >= 0.5 * before
        && after >= 0.95 * before
}

async fn readers(seed: u64) -> bool {
    const WARM: Duration = Duration::from_secs(10);
    const CALM: Duration = Duration::from_secs(30);
    const READING: Duration = Duration::from_mins(5);
    const READERS: u32 = 4;
    /// Duration of one of their transactions.
    const TRANSACTION: Duration = Duration::from_mins(1);
    let stage = Stage::set(2, false).await;
    let accepted = Accepted::default();
    let begun = Instant::now();
    let calm = begun + WARM;
    let from = calm + CALM;
    let end = from + READING;
    let scans = AtomicUsize::new(0);
    // Started one after the other, so that there is always an old transaction.
    let reading = join_all((0..READERS).map(async |reader| {
        sleep_until((from + TRANSACTION / READERS * reader).into()).await;
        let connection = PgConnection::connect(&stage.url()).await;
        let mut connection = connection.expect("the database is there");
        while Instant::now() < end {
            let until = end.min(Instant::now() + TRANSACTION);
            let snapshot = "begin isolation level repeatable read read only";
            connection.execute(snapshot).await.expect("it may");
            while Instant::now() < until {
                for table in ["webhook_deliveries", "webhook_events"] {
                    let scan = format!("select sum(length(t::text)) from {table} t");
                    let scan = sqlx::query(sqlx::AssertSqlSafe(scan));
                    scan.execute(&mut connection).await.expect("it may");
                    scans.fetch_add(1, Ordering::Relaxed);
                }
                sleep(Duration::from_millis(250)).await;
            }
            connection.execute("commit").await.expect("it may");
        }
    }));
    // Forty per second for all clients together.
    let pace = Some(Duration::from_millis(25) * CALLERS);
    tokio::join!(reading, load(&stage, &accepted, pace, end, seed));
    let (before, during) = (rate(&stage, calm, from), rate(&stage, from, end));
    println!(
        "delivered each second: {before:.1} before, {during:.1} beside {READERS} readers ({:.0} %), who read a table {} times",
        100.0 * during / before,
        scans.load(Ordering::Relaxed)
    );
    let is_whole = nothing_is_lost(&stage, &accepted, 0).await;
    stage.strike().await;
    is_whole && before > 0.0 && during >= 0.8 * before
}

/// The result of the cancelled requests.
#[derive(Debug)]
struct Cancelled {
    requests: usize,
    given_up: usize,
    /// Events answered with 200 that another session did not see a moment later.
    invisible: Vec<String>,
    /// Sessions that were idle in a transaction for longer than a second.
    idle: usize,
    /// Events at the end, after the cancelled notifications were pushed again.
    events: i64,
    is_whole: bool,
}

impl Cancelled {
    fn is_clean(&self) -> bool {
        self.invisible.is_empty()
            && self.idle == 0
            && self.given_up > self.requests / 20
            && usize::try_from(self.events) == Ok(self.requests)
            && self.is_whole
    }
}

impl fmt::Display for Cancelled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} given up; {} answered with 200 and invisible, {} sessions idle in a transaction; {} events",
            self.requests,
            self.given_up,
            self.invisible.len(),
            self.idle,
            self.events
        )
    }
}

/// Half of the clients disconnect before the answer, at any moment, while two database connections
/// do all the work.
async fn cancelled(requests: u32, seed: u64) -> Cancelled {
    let stage = Stage::set_with(1, false, "&max=2").await;
    let mut chance = fastrand::Rng::with_seed(seed);
    let notifications = stage.notifications(requests, &mut chance);
    let (ports, accepted) = (stage.ports(), Accepted::default());
    let watching = Watching::begin(&stage);
    let (next, given_up) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let callers = (0..CALLERS).map(async |caller| {
        // Each has its own client, so that a disconnect does not close another one's connection.
        let client = client();
        let mut chance = fastrand::Rng::with_seed(seed.wrapping_add(caller.into()));
        let mut invisible = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(notification) = notifications.get(number) else {
                return invisible;
            };
            let patience = chance
                .bool()
                .then(|| Duration::from_micros(chance.u64(..20_000)));
            let Some(event) = ask(&client, &ports, notification, patience).await else {
                given_up.fetch_add(1, Ordering::Relaxed);
                // As the store does, much later.
                let seed = chance.u64(..);
                let (client, ports) = (client.clone(), ports.clone());
                push(client, ports, notification.clone(), accepted.clone(), seed).await;
                continue;
            };
            let row = sqlx::query("select from webhook_events where id = $1").bind(&event);
            let row = row.fetch_optional(stage.database.pool()).await;
            if row.expect("the database is there").is_none() {
                invisible.push(event.clone());
            }
            accepted.note(&event, 0);
        }
    });
    let invisible = join_all(callers).await.concat();
    let idle = watching.end();
    let events = sqlx::query_scalar("select count(*) from webhook_events");
    let events = events.fetch_one(stage.database.pool()).await;
    let is_whole = nothing_is_lost(&stage, &accepted, 0).await;
    let found = Cancelled {
        requests: notifications.len(),
        given_up: given_up.into_inner(),
        invisible,
        idle,
        events: events.expect("the database is there"),
        is_whole,
    };
    println!("{found}");
    stage.strike().await;
    found
}

/// The event id in a 200; `None` when the client's timeout expired or the request failed.
async fn ask(
    client: &reqwest::Client,
    ports: &Ports,
    notification: &Notification,
    patience: Option<Duration>,
) -> Option<String> {
    let port = (*ports[0].lock().expect("not poisoned"))?;
    let asking = async {
        let answer = notification.request(client, port).send().await.ok()?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.ok()?;
        let event = body["eventId"].as_str().filter(|_| status == 200)?;
        Some(event.to_owned())
    };
    match patience {
        // Dropping the future closes the connection.
        Some(patience) => timeout(patience, asking).await.ok()?,
        None => asking.await,
    }
}

/// Counts sessions that are idle in a transaction, repeatedly.
struct Watching {
    found: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

impl Watching {
    fn begin(stage: &Stage) -> Self {
        const IDLE: &str = "select count(*) from pg_stat_activity where pid <> pg_backend_pid()
            and state like 'idle in transaction%' and clock_timestamp() - state_change > interval '1 second'";
        let found = Arc::<AtomicUsize>::default();
        let (count, database) = (found.clone(), stage.database.clone());
        let task = tokio::spawn(async move {
            loop {
                let idle = sqlx::query_scalar::<_, i64>(IDLE)
                    .fetch_one(database.pool())
                    .await;
                let idle = idle.ok().and_then(|idle| usize::try_from(idle).ok());
                count.fetch_max(idle.unwrap_or(0), Ordering::Relaxed);
                sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            found,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// The highest count so far.
    fn end(self) -> usize {
        self.found.load(Ordering::Relaxed)
    }
}
