//! What goes wrong, and when: made of one number.

use std::time::Duration;

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

/// The plan of a run.
pub(crate) fn plan(seed: u64, events: u32, rate: u32, replicas: usize, long: bool) -> Vec<Planned> {
    let mut chance = fastrand::Rng::with_seed(seed);
    let total = Duration::from_secs(events.into()) / rate;
    let mut planned = Vec::new();
    let mut add = |at: f64, fault| {
        planned.push(Planned {
            at: total.mul_f64(at),
            fault,
        });
    };
    for _ in 0..20 {
        add(chance.f64(), Fault::Kill(chance.usize(..replicas)));
    }
    for _ in 0..3 {
        add(chance.f64(), Fault::Terminate(chance.usize(..replicas)));
        add(chance.f64(), Fault::CutSessions);
        let short = Duration::from_millis(chance.u64(200..3000));
        add(chance.f64(), Fault::Freeze(chance.usize(..replicas), short));
    }
    add(
        0.3 + 0.4 * chance.f64(),
        Fault::CrashDatabase(Duration::from_secs(3)),
    );
    if long {
        add(0.1, Fault::Freeze(0, PAST_A_LEASE));
        add(0.8, Fault::CrashDatabase(Duration::from_secs(10)));
    }
    planned.sort_by_key(|planned| planned.at);
    planned
}
