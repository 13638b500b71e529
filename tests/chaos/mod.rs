//! Real processes on a real database, killed at random while notifications pour in.
//!
//! Replicas of `attesto serve` share one Postgres. Notifications are pushed as Pub/Sub and Apple push them: to any
//! replica, again and again until one says 200. Meanwhile replicas are killed, told to end and stopped past their
//! leases, database sessions are terminated, the database itself crashes, and the encryption key is exchanged step by
//! step. Receivers remember what they were sent.
//!
//! Afterwards every event that was accepted must have arrived. The words are those of Jepsen's checker for queues:
//!
//! - *lost*: accepted, and not delivered in the end
//! - *unexpected*: delivered, and never accepted
//! - *duplicated*: answered with 2xx more than once; each must be explained by an attempt that was cut off
//! - *recovered*: accepted only when it was pushed again, after an error or no answer
//!
//! A run is clean when nothing was lost or unexpected, every signature verified, every duplicate is explained, and every
//! sealed value opens with the new encryption key alone.
//! `bin/chaos` runs this at length; the suite, in brief. [`trials`] measure one thing each.

mod judge;
mod plan;
pub(crate) mod postgres;
mod pusher;
mod receivers;
mod replica;
mod stage;
pub(crate) mod trials;

use judge::Verdict;
pub(crate) use plan::Extent;

/// What is run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Where chance begins; the same number makes the same plan.
    pub(crate) seed: u64,
    /// How many notifications are pushed, and how many of them each second.
    pub(crate) events: u32,
    pub(crate) rate: u32,
    /// How many processes serve.
    pub(crate) replicas: usize,
    pub(crate) extent: Extent,
}

/// Runs it, and prints what happens and what came of it.
pub(crate) async fn run(run: &Run) -> Verdict {
    let Run {
        seed,
        events,
        rate,
        replicas,
        ..
    } = *run;
    println!("seed {seed}: {events} notifications at {rate}/s to {replicas} replicas");
    let mut stage = stage::Stage::set(replicas, run.extent.long).await;
    let faults = plan::plan(run);
    let accepted = stage.endure(&faults, run).await;
    let hurry = run.extent.hurry;
    if hurry {
        stage.end_leases().await;
    }
    let verdict = judge::judge(&stage, &accepted, faults.len(), hurry).await;
    println!("{verdict}");
    stage.strike().await;
    verdict
}
