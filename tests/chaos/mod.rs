//! Real server processes on a real database, killed at random while notifications are pushed.
//!
//! Replicas of `attesto serve` share one Postgres. Notifications are pushed as Pub/Sub and Apple
//! push them: to any replica, repeated until one answers 200. Meanwhile replicas are killed,
//! terminated and stopped for longer than their leases, database sessions are terminated, the
//! database itself crashes, and the encryption key is rotated step by step. Receivers record what
//! they get.
//!
//! Afterwards every accepted event must have arrived. The terms are those of Jepsen's checker for
//! queues:
//!
//! - *lost*: accepted, but never delivered
//!
//! - *unexpected*: delivered, but never accepted
//!
//! - *duplicated*: answered with 2xx more than once; each must be explained by an interrupted
//!   attempt
//!
//! - *recovered*: accepted only on a later push, after an error or no answer
//!
//! A run is clean when nothing was lost or unexpected, every signature verified, every duplicate is
//! explained, and every sealed value opens with the new encryption key alone. `bin/chaos` runs this
//! at length, the test suite a short version. [`trials`] measure one fault each; in [`failover`] a
//! standby takes over; in [`heal`] purchases go on through outages of days, in simulated time.

pub(crate) mod failover;
pub(crate) mod heal;
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

/// Parameters of a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Random seed; the same number makes the same plan.
    pub(crate) seed: u64,
    /// Number of notifications, and how many are pushed each second.
    pub(crate) events: u32,
    pub(crate) rate: u32,
    /// How many replicas serve.
    pub(crate) replicas: usize,
    pub(crate) extent: Extent,
}

/// Runs the plan, and prints the faults and the result.
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
