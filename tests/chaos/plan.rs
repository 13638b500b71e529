//! The plan of a run: which fault happens when, derived from the seed.

use std::time::Duration;

use super::Run;

/// A fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`; the replica is restarted at once.
    Kill(usize),
    /// `SIGTERM`; the replica is restarted when it has ended.
    Terminate(usize),
    /// `SIGSTOP`, and `SIGCONT` after this long.
    Freeze(usize, Duration),
    /// Five database sessions are terminated.
    CutSessions,
    /// The database crashes, and is restarted after this long.
    CrashDatabase(Duration),
    /// The database's volume is full for this long.
    FillDisk(Duration),
    /// The encryption key is rotated step by step while the other faults happen; in each step the
    /// replicas are restarted one by one, in this order.
    Key(Step, Order),
}

/// A step of the section "The encryption key" in `docs/operations.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Every replica can open values sealed with the new key.
    Announce,
    /// Every replica seals with the new key.
    Swap,
    /// `encryption rotate`, killed once and restarted.
    Reseal,
    /// Nothing is sealed with the old key any more, and every replica drops it.
    Retire,
}

/// Which replica is restarted first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    FirstToLast,
    LastToFirst,
}

/// A fault and its time since the start.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// Longer than a lease, so that other replicas have taken over when the process continues.
const PAST_A_LEASE: Duration = Duration::from_secs(55);

/// How many faults happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// How often a replica is killed.
    pub(crate) kills: usize,
    /// How often each of the other faults happens.
    pub(crate) others: usize,
    /// How long the database is down.
    pub(crate) away: Duration,
    /// Whether a replica is also stopped for longer than a lease, the database is down for ten more
    /// seconds, and its volume is full for a while.
    pub(crate) long: bool,
    /// Whether leases and retry delays are ended by moving time in the database instead of waiting
    /// for them.
    pub(crate) hurry: bool,
}

/// The plan of a run.
pub(crate) fn plan(run: &Run) -> Vec<Planned> {
    let mut chance = fastrand::Rng::with_seed(run.seed);
    let total = Duration::from_secs(run.events.into()) / run.rate;
    let mut planned = Vec::new();
    let mut add = |at: f64, fault| {
        planned.push(Planned {
            at: total.mul_f64(at),
            fault,
        });
    };
    let Extent {
        kills,
        others,
        away,
        long,
        hurry: _,
    } = run.extent;
    for _ in 0..kills {
        add(chance.f64(), Fault::Kill(chance.usize(..run.replicas)));
    }
    for _ in 0..others {
        add(chance.f64(), Fault::Terminate(chance.usize(..run.replicas)));
        add(chance.f64(), Fault::CutSessions);
        let short = Duration::from_millis(chance.u64(200..3000));
        add(
            chance.f64(),
            Fault::Freeze(chance.usize(..run.replicas), short),
        );
    }
    add(0.3 + 0.4 * chance.f64(), Fault::CrashDatabase(away));
    // The first step comes before any kill: a killed replica that does not know the new key delays
    // the others until its registration expires.
    for (at, step) in [
        (0.0, Step::Announce),
        (0.25, Step::Swap),
        (0.4, Step::Reseal),
        (0.85, Step::Retire),
    ] {
        let order = if chance.bool() {
            Order::FirstToLast
        } else {
            Order::LastToFirst
        };
        add(at, Fault::Key(step, order));
    }
    if long {
        add(0.1, Fault::Freeze(0, PAST_A_LEASE));
        add(0.65, Fault::FillDisk(Duration::from_secs(8)));
        add(0.8, Fault::CrashDatabase(Duration::from_secs(10)));
    }
    planned.sort_by_key(|planned| planned.at);
    planned
}
