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
    /// Whether a process is also stopped for longer than a lease, and the database is away for ten seconds more.
    pub(crate) long: bool,
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
    if long {
        add(0.1, Fault::Freeze(0, PAST_A_LEASE));
        add(0.8, Fault::CrashDatabase(Duration::from_secs(10)));
    }
    planned.sort_by_key(|planned| planned.at);
    planned
}
