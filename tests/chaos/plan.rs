//! What goes wrong, and when: made of one number.

use std::time::Duration;

use super::Run;

/// One thing that goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`; it is started again at once.
    Kill(usize),
    /// `SIGTERM`; it is started again when it has ended.
    Terminate(usize),
    /// `SIGSTOP`, and `SIGCONT` after this long.
    Freeze(usize, Duration),
    /// Five database sessions are terminated.
    CutSessions,
    /// The database ends without a goodbye, and is started again after this long.
    CrashDatabase(Duration),
    /// The volume that the database is on is full for this long.
    FillDisk(Duration),
    /// The encryption key is exchanged, one step after the other, while all of the above goes on; in each step process
    /// after process, from the first on or from the last.
    Key(Step, Order),
}

/// A step of `docs/operations.md`, The encryption key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Every process learns to open what the new key seals.
    Announce,
    /// Every process seals with it.
    Swap,
    /// `encryption rotate`, killed on its way and begun again.
    Reseal,
    /// Nothing is sealed with the old key any more, and every process forgets it.
    Retire,
}

/// Which process is started again first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    FirstToLast,
    LastToFirst,
}

/// A fault, and when it happens, counted from the beginning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) fault: Fault,
}

/// Longer than a lease, so that others have taken over by the time it goes on.
const PAST_A_LEASE: Duration = Duration::from_secs(55);

/// How much goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// How often a process is killed.
    pub(crate) kills: usize,
    /// How often each of the gentler things happens.
    pub(crate) others: usize,
    /// How long the database is away.
    pub(crate) away: Duration,
    /// Whether a process is also stopped for longer than a lease, the database is away for ten seconds more, and its
    /// volume is full for a while.
    pub(crate) long: bool,
    /// Whether time is moved in the end, instead of waiting for leases that the dead hold and for pauses.
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
    // The first before anything is killed: whoever was killed and does not know the new key holds the rest up for as long
    // as it may still be alive.
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
