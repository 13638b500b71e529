//! Lives of purchases, played on the simulated stores, and what the receiver of docs/integrate.md makes of them.
//!
//! A life is a random sequence of what happens to one purchase and those that follow it: bought, renewed, cancelled, changed,
//! paused, refunded, bought again. Each notification of it arrives late or twice, or before the one that was sent before it; in a
//! quarter of the lives, those that arrive within seconds arrive at the same moment. They go through Attesto's own routes, and the
//! events that come of it are received in many orders. Then two things must hold:
//!
//! - In the end the receiver lets the customer in exactly when the stores' own records say so, at every time from then on.
//!
//! - Before that, it never shuts out a paying customer because of a message about something older.
//!
//! The parts: [`life`] makes the sequence, [`actor`] plays it on the stores, [`stage`] runs many at a time, [`judge`] receives and
//! compares, [`reference_receiver`] is the page's SQL. `bin/histories` plays thousands, the test suite some hundred.

pub(crate) mod actor;
pub(crate) mod judge;
pub(crate) mod life;
pub(crate) mod reference_receiver;
mod stage;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use life::{Arrival, Life};
use reference_receiver::PageStatements;
use stage::Stage;

use crate::world::attesto::World;

/// Lives of one world.
const LIVES_PER_WORLD: usize = 200;
/// The stage completes states when their time has come.
const SETTINGS: [(&str, &str); 1] = [("WEBHOOK_DISPATCHER_DISABLED", "true")];
/// Failing lives that are shrunk and printed.
const MAX_STORIES: usize = 3;

/// Parameters of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// The same number makes the same lives.
    pub(crate) seed: u64,
    /// How many lives.
    pub(crate) count: u64,
    /// In how many random orders each is received, besides the order of the telling and the reverse.
    pub(crate) shuffled: usize,
    /// Worlds at the same time.
    pub(crate) worlds: u64,
}

impl Run {
    /// The seed of each life: readable, and different for all runs.
    fn life_seeds(&self) -> impl Iterator<Item = u64> {
        let first = self.seed.wrapping_mul(1_000_000);
        (0..self.count).map(move |number| first.wrapping_add(number))
    }
}

/// The result of a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    seed: u64,
    histories: u64,
    messages: usize,
    orders: usize,
    /// How many states were told later, because they were not known at first.
    late: usize,
    /// How often each kind of step was played.
    pub(crate) steps: BTreeMap<String, usize>,
    /// Seeds of the lives that went wrong, each with what was wrong.
    pub(crate) wrong: Vec<(u64, Vec<String>)>,
    took: Duration,
}

impl Tally {
    pub(crate) fn is_clean(&self) -> bool {
        self.wrong.is_empty() && self.histories > 0
    }

    fn add(&mut self, other: Self) {
        self.histories += other.histories;
        self.messages += other.messages;
        self.orders += other.orders;
        self.late += other.late;
        for (kind, count) in other.steps {
            *self.steps.entry(kind).or_default() += count;
        }
        self.wrong.extend(other.wrong);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: {} histories, {} messages, {} orders, {} states told later, {} s; wrong = {}",
            self.seed,
            self.histories,
            self.messages,
            self.orders,
            self.late,
            self.took.as_secs(),
            self.wrong.len()
        )
    }
}

/// Plays and judges the lives; prints the stories of those that went wrong.
pub(crate) async fn run(run: &Run) -> Tally {
    let begun = Instant::now();
    let seeds: Arc<Vec<u64>> = Arc::new(run.life_seeds().collect());
    let next = Arc::new(AtomicUsize::new(0));
    let mut worlds = JoinSet::new();
    for _ in 0..run.worlds {
        let (seeds, next, shuffled) = (seeds.clone(), next.clone(), run.shuffled);
        let runtime = Handle::current();
        // Each world has a thread: most of the work is the simulated stores', in the task that plays.
        worlds.spawn_blocking(move || runtime.block_on(play_batches(&seeds, &next, shuffled)));
    }
    let mut tally = Tally {
        seed: run.seed,
        ..Tally::default()
    };
    while let Some(played) = worlds.join_next().await {
        tally.add(played.expect("a world is played to its end"));
    }
    tally.wrong.sort();
    for (seed, wrong) in tally.wrong.iter().take(MAX_STORIES) {
        println!("life {seed}: {}", wrong[0]);
        println!(
            "{}",
            tell(&shrink(Life::from_seed(*seed), run.shuffled).await).await
        );
    }
    tally.took = begun.elapsed();
    tally
}

/// Plays lives, a world full at a time, until all are taken.
async fn play_batches(seeds: &[u64], next: &AtomicUsize, shuffled: usize) -> Tally {
    let page = PageStatements::read();
    let mut tally = Tally::default();
    loop {
        let begin = next.fetch_add(LIVES_PER_WORLD, Ordering::Relaxed);
        let batch = seeds.iter().skip(begin).take(LIVES_PER_WORLD);
        let batch: Vec<Life> = batch.map(|seed| Life::from_seed(*seed)).collect();
        if batch.is_empty() {
            return tally;
        }
        tally.add(play(&batch, &page, shuffled).await);
    }
}

/// Plays the lives in a world of their own, received by these statements.
pub(crate) async fn play(lives: &[Life], page: &PageStatements, shuffled: usize) -> Tally {
    let world = World::with(&SETTINGS).await;
    judge::install(world.database(), page).await;
    let mut tally = Tally::default();
    for life in &Stage::play(&world, lives).await {
        let (wrong, orders) = judge::judge(world.database(), life, shuffled).await;
        tally.histories += 1;
        tally.orders += orders;
        tally.messages += life.messages.len();
        let late = life.messages.iter();
        tally.late += late
            .filter(|it| it.title.starts_with("purchase.state"))
            .count();
        for kind in &life.steps {
            *tally.steps.entry(kind.clone()).or_default() += 1;
        }
        if !wrong.is_empty() {
            tally.wrong.push((life.seed, wrong));
        }
    }
    world.end().await;
    tally
}

/// The life with as few steps, late arrivals and repeats as it still goes wrong with.
pub(crate) async fn shrink(life: Life, shuffled: usize) -> Life {
    let page = PageStatements::read();
    let is_wrong = async |life: &Life| {
        let played = play(std::slice::from_ref(life), &page, shuffled).await;
        !played.wrong.is_empty()
    };
    let mut smallest = life;
    loop {
        let mut is_smaller = false;
        for number in (0..smallest.steps.len()).rev() {
            let mut without = smallest.clone();
            without.steps.remove(number);
            let mut prompt = smallest.clone();
            prompt.steps[number].arrivals = [Arrival::default(); 2];
            let is_late = prompt.steps[number].arrivals != smallest.steps[number].arrivals;
            if is_wrong(&without).await {
                smallest = without;
                is_smaller = true;
            } else if is_late && is_wrong(&prompt).await {
                smallest = prompt;
                is_smaller = true;
            }
        }
        if !is_smaller {
            return smallest;
        }
    }
}

/// The story of a life, step by step, with all that was said and what was wrong.
pub(crate) async fn tell(life: &Life) -> String {
    let world = World::with(&SETTINGS).await;
    judge::install(world.database(), &PageStatements::read()).await;
    let played = Stage::play(&world, std::slice::from_ref(life)).await;
    let played = &played[0];
    let (wrong, _) = judge::judge(world.database(), played, 4).await;
    let mut lines = played.story.clone();
    for (number, message) in played.messages.iter().enumerate() {
        let body: serde_json::Value = serde_json::from_str(&message.body).unwrap_or_default();
        let state = &body["state"];
        let said = if state.is_null() {
            format!("no state, {}", body["stateError"])
        } else {
            format!(
                "{} of {}, entitled {}, until {}, as of {}, basis {}",
                state["status"],
                state["productId"],
                state["entitled"],
                state["entitledUntil"],
                state["asOf"],
                state["basis"]
            )
        };
        let (told_at, title) = (message.told_at, &message.title);
        let (key, sequence) = (&body["subject"]["key"], &body["sequence"]);
        let key: String = key.as_str().unwrap_or_default().chars().take(8).collect();
        lines.push(format!(
            "{told_at}  message {number}, {title}, {key}…, sequence {sequence}: {said}"
        ));
    }
    lines.extend(wrong);
    world.end().await;
    lines.join("\n")
}
