//! A standby takes over from a primary, in each of the ways in which that happens, while notifications are pushed.
//!
//! Replication is synchronous, so that nothing may be lost. In each round the primary stops to serve, the standby is promoted,
//! and no replica is restarted. A round is clean when
//!
//! - every notification that was answered with 200 is on the new primary and is delivered,
//!
//! - every replica serves again within [`MAX_RECOVERY`] of the promotion,
//!
//! - `/ready` never says 200 while writes fail, but for the first [`MAX_UNNOTICED`],
//!
//! - an API key that is revoked on the new primary is refused by every replica, although the old one may still answer.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use attesto::base::clock::Clock;
use attesto::tenants::{ApiKeyEnvironment, RawApiKey, store};
use reqwest::Client;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::task::AbortOnDropHandle;

use super::judge;
use super::postgres::Postgres;
use super::pusher::{Accepted, Port, push};
use super::stage::Stage;
use crate::world::wait::{HANG_LIMIT, wait_until};

/// Within this time of the promotion every replica serves again.
const MAX_RECOVERY: Duration = Duration::from_secs(15);
/// Within this time a replica notices that writes fail; and what its probe needs to ask.
const MAX_UNNOTICED: Duration = Duration::from_millis(3500);
/// How long a revoked key may be accepted: the lease of the cached keys, and a look.
const MAX_REVOCATION: Duration = Duration::from_secs(6);
/// Pushes each second.
const RATE: u32 = 40;
/// A replica that does not serve again within this time never will, on the slowest machine.
const PATIENCE: Duration = HANG_LIMIT;
/// How long a request of the judge may take where times count.
const TIMED_REQUEST: Duration = Duration::from_secs(3);

/// How long the parts of a round take, and whether times are judged.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// How many notifications are accepted before the primary stops to serve.
    pub(crate) accepted_before: usize,
    /// From then until the standby is promoted.
    pub(crate) away: Duration,
    /// Whether times count, or only what is lost and what is trusted.
    pub(crate) is_timed: bool,
}

/// How the primary stops to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Failover {
    /// The primary crashes
    Kill,
    /// Its operator makes it read-only; it goes on answering
    Fence,
    /// Its machine is gone: connections stay open, and no answer comes
    Vanish,
    /// The standby is away and commits hang; the primary restarts, which shows what was not replicated; then the standby is back
    /// and takes over
    StandbyLost,
}

/// The answers of one replica's `/ready`.
type Looks = Vec<(Instant, bool)>;

/// What one round showed.
struct Outcome {
    way: Failover,
    /// From the promotion until each replica was ready again.
    recovery: Vec<Option<Duration>>,
    /// From the promotion until the next notification was accepted.
    first_accepted: Option<Duration>,
    /// How often `/ready` said 200 while writes failed.
    wrongly_ready: usize,
    looks: usize,
    /// Accepted while no write could reach the standby.
    accepted_while_away: usize,
    /// From the revocation until each replica refused the key.
    revocation: Vec<Option<Duration>>,
    is_whole: bool,
    is_timed: bool,
}

impl Outcome {
    fn is_clean(&self) -> bool {
        let within = |found: &[Option<Duration>], most: Duration| {
            let is_within = |it: Duration| !self.is_timed || it <= most;
            found.iter().all(|found| found.is_some_and(is_within))
        };
        self.is_whole
            && self.accepted_while_away == 0
            && (self.wrongly_ready == 0 || !self.is_timed)
            && within(&[self.first_accepted], MAX_RECOVERY)
            && within(&self.recovery, MAX_RECOVERY)
            && within(&self.revocation, MAX_REVOCATION)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |found: &Option<Duration>| {
            found.map_or_else(
                || "never".to_owned(),
                |it| format!("{:.1} s", it.as_secs_f64()),
            )
        };
        let all =
            |found: &[Option<Duration>]| found.iter().map(seconds).collect::<Vec<_>>().join(", ");
        writeln!(f, "{:?}", self.way)?;
        writeln!(
            f,
            "  ready after the promotion: {}; first notification accepted: {}",
            all(&self.recovery),
            seconds(&self.first_accepted)
        )?;
        writeln!(
            f,
            "  ready while writes failed: {} of {} looks; accepted meanwhile: {}",
            self.wrongly_ready, self.looks, self.accepted_while_away
        )?;
        writeln!(f, "  revoked key refused after: {}", all(&self.revocation))?;
        write!(
            f,
            "  {}",
            if self.is_clean() {
                "clean"
            } else {
                "NOT CLEAN"
            }
        )
    }
}

/// Runs these rounds, prints each, and returns whether all are clean.
pub(crate) async fn run(ways: &[Failover], pace: Pace, seed: u64) -> bool {
    println!("failover, seed {seed}");
    let mut is_clean = true;
    for way in ways {
        let outcome = run_round(*way, pace, seed).await;
        println!("{outcome}");
        is_clean &= outcome.is_clean();
    }
    is_clean
}

async fn run_round(way: Failover, pace: Pace, seed: u64) -> Outcome {
    let mut stage = Stage::set_replicated(2).await;
    let standby = stage.standby.take().expect("it is replicated");
    let key = create_key(&stage).await;
    let ports: Vec<_> = stage
        .replicas
        .iter()
        .map(super::replica::Replica::port)
        .collect();
    let client = Client::builder()
        .no_proxy()
        .timeout(if pace.is_timed {
            TIMED_REQUEST
        } else {
            HANG_LIMIT
        })
        .build()
        .expect("a client can be made");
    let watching: Vec<_> = ports
        .iter()
        .map(|port| Watching::begin(&client, port))
        .collect();
    let pushing = Pushing::begin(&stage, seed);
    wait_until("notifications are accepted", async || {
        pushing.accepted.all().len() >= pace.accepted_before
    })
    .await;

    let failed_at = Instant::now();
    fail(way, pace.away, &mut stage.postgres, &standby).await;
    let accepted_before = pushing.accepted.all().len();
    let promoted_at = promote(way, &mut stage.postgres, &standby).await;
    let accepted_while_away = pushing
        .accepted
        .all()
        .values()
        .filter(|one| one.at > failed_at + MAX_UNNOTICED && one.at < promoted_at)
        .count();
    println!(
        "  {:?}: {accepted_before} accepted before, promoted after {:.1} s",
        way,
        (promoted_at - failed_at).as_secs_f64()
    );
    let is_back = |watch: &Watching| watch.ready_since(promoted_at).is_some();
    while !watching.iter().all(is_back) && promoted_at.elapsed() < PATIENCE {
        sleep(Duration::from_millis(100)).await;
    }
    let revocation = revoke(&client, &ports, &key, &standby).await;
    let accepted = pushing.end().await;
    let mut recovery = Vec::new();
    let (mut wrongly_ready, mut looks) = (0, 0);
    for watch in watching {
        let watched = watch.end();
        recovery.push(first_ready(&watched, promoted_at));
        let failing = failed_at + MAX_UNNOTICED..promoted_at;
        let failing: Vec<_> = watched
            .iter()
            .filter(|(at, _)| failing.contains(at))
            .collect();
        looks += failing.len();
        wrongly_ready += failing.iter().filter(|(_, is_ready)| *is_ready).count();
    }
    let first = accepted
        .all()
        .values()
        .map(|one| one.at)
        .filter(|at| *at > promoted_at)
        .min();
    let verdict = judge::judge(&stage, &accepted, 1, true).await;
    println!("{verdict}");
    let is_whole = verdict.is_clean();
    stage.standby = Some(standby);
    stage.strike().await;
    Outcome {
        way,
        recovery,
        first_accepted: first.map(|at| at - promoted_at),
        wrongly_ready,
        looks,
        accepted_while_away,
        revocation,
        is_whole,
        is_timed: pace.is_timed,
    }
}

/// From this moment until the first look that began after it and found the replica ready.
fn first_ready(looks: &Looks, moment: Instant) -> Option<Duration> {
    let mut later = looks.iter().filter(|(at, _)| *at > moment);
    later.find_map(|(at, is_ready)| is_ready.then(|| *at - moment))
}

/// Ends the primary's service, and waits.
async fn fail(way: Failover, away: Duration, primary: &mut Postgres, standby: &Postgres) {
    match way {
        Failover::Kill => tokio::task::block_in_place(|| primary.crash()),
        Failover::Fence => {
            primary
                .set_parameter("default_transaction_read_only", Some("on"))
                .await;
        }
        Failover::Vanish => primary.freeze(),
        Failover::StandbyLost => {
            standby.freeze();
            sleep(away).await;
            tokio::task::block_in_place(|| {
                primary.crash();
                primary.resume();
            });
        }
    }
    sleep(away).await;
}

/// Promotes the standby. Returns when that was begun: from then on writes may succeed.
async fn promote(way: Failover, primary: &mut Postgres, standby: &Postgres) -> Instant {
    if way == Failover::StandbyLost {
        // Before the standby is back, so that it gets nothing more.
        tokio::task::block_in_place(|| primary.crash());
        standby.thaw();
    }
    let begun = Instant::now();
    standby.execute("select pg_promote(true, 60)").await;
    begun
}

async fn create_key(stage: &Stage) -> RawApiKey {
    let key = RawApiKey::generate(ApiKeyEnvironment::Live);
    let (tenant, _) = &stage.tenants[0];
    let now = Clock::system().now();
    store::create_api_key(
        &stage.database,
        tenant,
        None,
        ApiKeyEnvironment::Live,
        &key,
        now,
    )
    .await
    .expect("the database is there");
    key
}

/// Revokes the key on the new primary, and returns when each replica refused it, if it did and went on so.
async fn revoke(
    client: &Client,
    ports: &[Port],
    key: &RawApiKey,
    primary: &Postgres,
) -> Vec<Option<Duration>> {
    let ask = async |port: &Port| {
        let port = (*port.lock().expect("not poisoned"))?;
        let question = json!({ "packageName": "com.example.chaos0", "purchaseToken": "none" });
        let asked = client
            .post(format!("http://127.0.0.1:{port}/v1/google/verify"))
            .bearer_auth(key.expose())
            .json(&question);
        let answer = asked.send().await.ok()?;
        Some(answer.status().as_u16())
    };
    // Known to each, so that there is something to forget.
    for port in ports {
        let status = ask(port).await;
        assert_ne!(status, Some(401), "the key is good");
    }
    primary
        .execute("update api_keys set revoked_at = now()")
        .await;
    let begun = Instant::now();
    let mut refused_at: Vec<Option<Duration>> = vec![None; ports.len()];
    let is_settled = |refused_at: &[Option<Duration>]| {
        // For a while after the last of them refused it first.
        let all = refused_at.iter().copied().collect::<Option<Vec<_>>>();
        let last = all.and_then(|all| all.into_iter().max());
        last.is_some_and(|last| begun.elapsed() > last + Duration::from_secs(2))
    };
    while !is_settled(&refused_at) && begun.elapsed() < PATIENCE {
        for (port, refused_at) in ports.iter().zip(&mut refused_at) {
            let is_refused = ask(port).await == Some(401);
            let at = refused_at.unwrap_or_else(|| begun.elapsed());
            *refused_at = is_refused.then_some(at);
        }
        sleep(Duration::from_millis(100)).await;
    }
    refused_at
}

/// Asks a replica again and again whether it is ready.
struct Watching {
    looks: Arc<Mutex<Looks>>,
    task: AbortOnDropHandle<()>,
}

impl Watching {
    fn begin(client: &Client, port: &Port) -> Self {
        let looks = Arc::<Mutex<Looks>>::default();
        let (client, port, kept) = (client.clone(), port.clone(), looks.clone());
        let task = tokio::spawn(async move {
            loop {
                let known = *port.lock().expect("not poisoned");
                if let Some(port) = known {
                    let asked = client.get(format!("http://127.0.0.1:{port}/ready"));
                    let begun = Instant::now();
                    let is_ready = asked.send().await.is_ok_and(|it| it.status() == 200);
                    kept.lock().expect("not poisoned").push((begun, is_ready));
                }
                sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            looks,
            task: AbortOnDropHandle::new(task),
        }
    }

    fn ready_since(&self, moment: Instant) -> Option<Duration> {
        first_ready(&self.looks.lock().expect("not poisoned"), moment)
    }

    fn end(self) -> Looks {
        self.task.abort();
        std::mem::take(&mut self.looks.lock().expect("not poisoned"))
    }
}

/// Pushes notifications, each until it is accepted.
struct Pushing {
    accepted: Accepted,
    is_over: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Pushing {
    fn begin(stage: &Stage, seed: u64) -> Self {
        let (accepted, is_over) = (Accepted::default(), Arc::<AtomicBool>::default());
        let client = attesto::outbound::build_http_client().expect("a client can be made");
        let (ports, kept, over) = (stage.ports(), accepted.clone(), is_over.clone());
        let most = RATE * 120;
        let notifications: Vec<_> = (0..most).map(|number| stage.a_test(number)).collect();
        let task = tokio::spawn(async move {
            let next = AtomicU32::new(0);
            let mut pushes = tokio::task::JoinSet::new();
            let mut ticks = interval(Duration::from_secs(1) / RATE);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            for notification in notifications {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                ticks.tick().await;
                let number = next.fetch_add(1, Ordering::Relaxed);
                pushes.spawn(push(
                    client.clone(),
                    ports.clone(),
                    notification,
                    kept.clone(),
                    seed.wrapping_add(number.into()),
                ));
            }
            while let Some(pushed) = pushes.join_next().await {
                pushed.expect("every notification is accepted in the end");
            }
        });
        Self {
            accepted,
            is_over,
            task,
        }
    }

    async fn end(self) -> Accepted {
        self.is_over.store(true, Ordering::Relaxed);
        self.task.await.expect("every notification is accepted");
        self.accepted
    }
}
