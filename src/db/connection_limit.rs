//! [`ConnectionLimit`]: whether a role may have as many connections as a process takes.

use super::database::{MIN_CONNECTIONS_TO_RESERVE, WATCH_CONNECTIONS};

/// A role may have fewer connections than a process takes: then the process serves, and has none for its deliveries when requests took
/// them all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ConnectionLimit {
    /// How many the role may have, over all processes.
    allowed: u64,
    /// How many a process takes.
    pub(crate) needed: u64,
}

impl ConnectionLimit {
    /// `allowed`: Postgres' `rolconnlimit`, which is -1 where there is none. `max`: that of the database's URL. `None`: the role may have as
    /// many as one process takes.
    pub(crate) fn of_role(allowed: i32, max: u64) -> Option<Self> {
        let allowed = u64::try_from(allowed).ok()?;
        let needed = connections_of_process(max);
        (allowed < needed).then_some(Self { allowed, needed })
    }

    /// The largest `max` with which a process takes no more than the role may have. `None`: there is none.
    fn fitting_max(self) -> Option<u64> {
        let fits = |max: &u64| connections_of_process(*max) <= self.allowed;
        (1..=self.allowed).rev().find(fits)
    }

    /// A sentence without its full stop.
    pub(crate) fn describe(self) -> String {
        let Self { allowed, needed } = self;
        format!("The role may have {allowed} connections, and a process takes up to {needed}")
    }

    /// The setting to change, and its value: a clause without a full stop.
    pub(crate) fn advise(self) -> String {
        match self.fitting_max() {
            Some(max) => format!("Set max={max} in DATABASE_URL"),
            None => format!(
                "Raise the role's connection limit to at least {}",
                connections_of_process(1)
            ),
        }
    }
}

/// How many connections a process takes at most with this `max`. A small pool reserves none, and those that watch the database come on top.
fn connections_of_process(max: u64) -> u64 {
    if max < u64::from(MIN_CONNECTIONS_TO_RESERVE) {
        max + u64::from(WATCH_CONNECTIONS)
    } else {
        max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_says_which_max_fits() {
        for (allowed, max, advice) in [
            (-1, 10, None),
            (10, 10, None),
            (100, 10, None),
            (6, 4, None),
            (9, 10, Some("Set max=9 in DATABASE_URL")),
            (8, 10, Some("Set max=8 in DATABASE_URL")),
            (7, 10, Some("Set max=5 in DATABASE_URL")),
            (6, 10, Some("Set max=4 in DATABASE_URL")),
            (6, 5, Some("Set max=4 in DATABASE_URL")),
            (3, 10, Some("Set max=1 in DATABASE_URL")),
            (
                2,
                10,
                Some("Raise the role's connection limit to at least 3"),
            ),
        ] {
            let limit = ConnectionLimit::of_role(allowed, max);
            let said = limit.map(ConnectionLimit::advise);
            assert_eq!(said.as_deref(), advice, "{allowed} of {max}");
        }
    }
}
