//! The health of a callback, and how many requests it may get because of it.
//!
//! - *active*: healthy, or nothing is known yet. A callback that has never answered gets one request at a time; each
//!   success doubles that, up to [`MAX_IN_FLIGHT_PER_CALLBACK`].
//! - *throttled*: it answered that it is overloaded (429, 502, 503, 504) or did not answer in time. Each such answer halves
//!   the number of requests that may be in flight, down to one; each success doubles it.
//! - *open*, as in an open circuit breaker: it cannot be reached. Nothing is sent for a while, then one delivery as a
//!   probe; each probe that fails doubles the while, up to five minutes. Deliveries that wait keep all of their attempts.
//! - *paused*: no success for a day. One delivery an hour as a probe, until one succeeds.
//!
//! After a fault on our side nothing is sent to the callback for some seconds, in every state.
//!
//! No state drops anything: events are stored and deliveries are queued in all of them. One success ends *open* and
//! *paused*. The limits are kept in the database and hold over all processes; `now` is always the database's clock.

use std::time::Duration;

use super::outcome::{AttemptOutcome, OutcomeClass};
use crate::base::clock::Timestamp;

/// How many requests to one callback may be in flight at once.
pub const MAX_IN_FLIGHT_PER_CALLBACK: u8 = 8;
/// After this many attempts in a row without an answer a callback is *open*.
pub const MAX_CONSECUTIVE_UNREACHABLE: u32 = 5;
/// How long nothing is sent to an *open* callback at first.
pub const INITIAL_CLOSED_DURATION: Duration = Duration::from_secs(5);
/// How long nothing is sent to an *open* callback at most.
pub const MAX_CLOSED_DURATION: Duration = Duration::from_mins(5);
/// A callback is *paused* when it had no success for this time …
pub const MAX_FAILING_DURATION: Duration = Duration::from_hours(24);
/// … and at least this many failures.
pub const MIN_FAILURES_TO_PAUSE: u32 = 10;
/// How often a *paused* callback gets a probe.
pub const PAUSED_PROBE_INTERVAL: Duration = Duration::from_hours(1);
/// How long nothing is sent after a fault on our side; then one request as a probe.
pub const OWN_FAULT_CLOSED_DURATION: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum EndpointState {
    /// Healthy, or nothing is known yet.
    Active,
    /// Overloaded: it gets fewer requests at once.
    Throttled,
    /// It cannot be reached.
    Open,
    /// It had no success for a day.
    Paused,
}

impl EndpointState {
    /// The value of the column `state`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// The column's check constraint allows no other value.
    pub(super) fn from_column(word: &str) -> Self {
        word.parse().unwrap_or(Self::Active)
    }
}

/// What one attempt says about the callback, rather than about the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthSignal {
    /// The callback accepted it.
    Success,
    /// It has too much to do: 429, 502, 503, 504.
    Overloaded,
    /// It did not answer in time.
    TimedOut,
    /// No address, no connection or no TLS.
    Unreachable,
    /// It answered and refused this event, or it must not be called.
    Refused,
    /// Nothing was sent because of a fault on our side, such as a secret that does not open or a DNS resolver that does not
    /// answer.
    OwnFault,
}

impl HealthSignal {
    /// What an outcome says about the callback.
    pub fn from_outcome(outcome: &AttemptOutcome) -> Self {
        let (class, code) = match outcome {
            AttemptOutcome::Delivered { .. } => return Self::Success,
            AttemptOutcome::NotAttempted { .. } => return Self::OwnFault,
            AttemptOutcome::Refused { class, code, .. } => (class, code),
        };
        match class {
            OutcomeClass::Timeout => Self::TimedOut,
            OutcomeClass::Dns | OutcomeClass::Connect | OutcomeClass::Proxy | OutcomeClass::Tls => {
                Self::Unreachable
            }
            _ if matches!(code, Some(429 | 502 | 503 | 504)) => Self::Overloaded,
            _ => Self::Refused,
        }
    }
}

/// The health of one callback: a row of `webhook_health`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    /// For people; the limits are in the other fields.
    pub state: EndpointState,
    /// How many requests may be in flight at once, unless it is closed.
    pub allowed: u8,
    /// Failures since the last success.
    pub failures: u32,
    /// How many of the last failures, in a row, had no answer.
    pub unreachable: u32,
    /// When the first of `failures` ended.
    pub failing_since: Option<Timestamp>,
    /// Exact to the minute while the callback is healthy.
    pub last_success_at: Option<Timestamp>,
    /// When the last failure was.
    pub last_failure_at: Option<Timestamp>,
    /// Nothing is sent before this time, and one request at a time after it. `None`: not closed.
    pub closed_until: Option<Timestamp>,
    /// How many times in a row it was closed.
    pub closings: u32,
}

impl Default for EndpointHealth {
    /// Nothing is known yet.
    fn default() -> Self {
        Self {
            state: EndpointState::Active,
            allowed: 1,
            failures: 0,
            unreachable: 0,
            failing_since: None,
            last_success_at: None,
            last_failure_at: None,
            closed_until: None,
            closings: 0,
        }
    }
}

impl EndpointHealth {
    /// How many requests may be in flight at `now`.
    pub fn max_in_flight(&self, now: Timestamp) -> u8 {
        match self.closed_until {
            Some(until) if now < until => 0,
            Some(_) => 1,
            None => self.allowed,
        }
    }

    /// The health after an attempt that ended at `now`.
    #[must_use]
    pub fn after_signal(self, signal: HealthSignal, now: Timestamp) -> Self {
        match signal {
            HealthSignal::Success => self.after_success(now),
            // This says nothing about the callback. But deliveries that cannot be sent must not be tried in a tight loop.
            HealthSignal::OwnFault => Self {
                closed_until: self
                    .closed_until
                    .max(Some(now.plus(OWN_FAULT_CLOSED_DURATION))),
                ..self
            },
            _ => self.after_failure(signal, now),
        }
    }

    fn after_success(self, now: Timestamp) -> Self {
        let recovering = self.closed_until.is_some();
        let allowed = if recovering { 2 } else { self.allowed * 2 }.min(MAX_IN_FLIGHT_PER_CALLBACK);
        let state = match self.state {
            EndpointState::Active => EndpointState::Active,
            _ if allowed == MAX_IN_FLIGHT_PER_CALLBACK => EndpointState::Active,
            _ => EndpointState::Throttled,
        };
        Self {
            state,
            allowed,
            last_success_at: Some(now),
            last_failure_at: self.last_failure_at,
            ..Self::default()
        }
    }

    fn after_failure(self, signal: HealthSignal, now: Timestamp) -> Self {
        let mut health = Self {
            failures: self.failures.saturating_add(1),
            failing_since: self.failing_since.or(Some(now)),
            last_failure_at: Some(now),
            ..self
        };
        health.unreachable = match signal {
            HealthSignal::Unreachable | HealthSignal::TimedOut => {
                self.unreachable.saturating_add(1)
            }
            _ => 0,
        };
        if matches!(signal, HealthSignal::Overloaded | HealthSignal::TimedOut) {
            health.allowed = (self.allowed / 2).max(1);
            if self.state == EndpointState::Active {
                health.state = EndpointState::Throttled;
            }
        }
        // Requests that were in flight when it was closed change nothing more.
        if self.closed_until.is_some_and(|until| now < until) {
            return health;
        }
        let failing_for = health
            .failing_since
            .map_or(Duration::ZERO, |since| now.duration_since(since));
        if failing_for >= MAX_FAILING_DURATION && health.failures >= MIN_FAILURES_TO_PAUSE {
            health.close_until(EndpointState::Paused, now, PAUSED_PROBE_INTERVAL);
        } else if health.unreachable >= MAX_CONSECUTIVE_UNREACHABLE {
            let doubled = 2_u32.saturating_pow(self.closings);
            let pause = INITIAL_CLOSED_DURATION
                .saturating_mul(doubled)
                .min(MAX_CLOSED_DURATION);
            health.close_until(EndpointState::Open, now, pause);
        } else if self.state == EndpointState::Open && health.unreachable == 0 {
            // It can be reached again, even if it refuses.
            health.state = EndpointState::Throttled;
            health.allowed = 1;
            health.closed_until = None;
            health.closings = 0;
        } else if matches!(self.state, EndpointState::Active | EndpointState::Throttled) {
            // It was closed for a fault on our side.
            health.closed_until = None;
        }
        health
    }

    fn close_until(&mut self, state: EndpointState, now: Timestamp, pause: Duration) {
        self.state = state;
        self.allowed = 1;
        self.closed_until = Some(now.plus(pause));
        self.closings = self.closings.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp::from_millis(1_775_830_930_000);

    fn after(
        mut health: EndpointHealth,
        signals: &[HealthSignal],
        now: Timestamp,
    ) -> EndpointHealth {
        for signal in signals {
            health = health.after_signal(*signal, now);
        }
        health
    }

    fn well() -> EndpointHealth {
        after(
            EndpointHealth::default(),
            &[HealthSignal::Success; 3],
            START,
        )
    }

    #[test]
    fn a_new_callback_starts_with_one_request_at_a_time() {
        let mut allowed = vec![];
        let mut health = EndpointHealth::default();
        for _ in 0..5 {
            allowed.push(health.max_in_flight(START));
            health = health.after_signal(HealthSignal::Success, START);
            assert_eq!(health.state, EndpointState::Active);
        }
        assert_eq!(allowed, [1, 2, 4, 8, 8]);
    }

    #[test]
    fn an_overloaded_callback_gets_less_and_then_more() {
        let busy = after(
            well(),
            &[HealthSignal::Overloaded, HealthSignal::TimedOut],
            START,
        );
        assert_eq!(
            (busy.state, busy.max_in_flight(START)),
            (EndpointState::Throttled, 2)
        );
        let busier = after(busy, &[HealthSignal::Overloaded; 50], START);
        assert_eq!(
            (busier.state, busier.max_in_flight(START)),
            (EndpointState::Throttled, 1)
        );
        let better = after(busier, &[HealthSignal::Success; 2], START);
        assert_eq!(
            (better.state, better.max_in_flight(START)),
            (EndpointState::Throttled, 4)
        );
        let fine = better.after_signal(HealthSignal::Success, START);
        assert_eq!(
            (fine.state, fine.max_in_flight(START)),
            (EndpointState::Active, 8)
        );
    }

    #[test]
    fn a_callback_that_refuses_is_asked_all_the_same() {
        let health = after(well(), &[HealthSignal::Refused; 1000], START);
        assert_eq!(
            (health.state, health.max_in_flight(START)),
            (EndpointState::Active, 8)
        );
        assert_eq!(health.failures, 1000);
    }

    #[test]
    fn an_unreachable_callback_is_closed_for_doubling_durations() {
        let mut health = after(well(), &[HealthSignal::Unreachable; 5], START);
        let mut now = START;
        let mut pauses = vec![];
        for _ in 0..9 {
            assert_eq!(
                (health.state, health.max_in_flight(now)),
                (EndpointState::Open, 0)
            );
            let until = health.closed_until.expect("it is closed");
            pauses.push(until.duration_since(now).as_secs());
            // Requests that were in flight change nothing more.
            assert_eq!(
                health
                    .after_signal(HealthSignal::Unreachable, now)
                    .closed_until,
                Some(until)
            );
            now = until;
            assert_eq!(health.max_in_flight(now), 1, "one probe");
            health = health.after_signal(HealthSignal::TimedOut, now);
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
        let refused = health.after_signal(HealthSignal::Refused, now.plus(MAX_CLOSED_DURATION));
        assert_eq!(
            (refused.state, refused.max_in_flight(now)),
            (EndpointState::Throttled, 1)
        );
        let back = health.after_signal(HealthSignal::Success, now);
        assert_eq!(
            (back.state, back.max_in_flight(now)),
            (EndpointState::Throttled, 2)
        );
    }

    #[test]
    fn a_fault_of_our_own_closes_for_a_moment_and_counts_for_nothing() {
        let closed = well().after_signal(HealthSignal::OwnFault, START);
        assert_eq!((closed.state, closed.failures), (EndpointState::Active, 0));
        let open = START.plus(OWN_FAULT_CLOSED_DURATION);
        assert_eq!(
            (closed.max_in_flight(START), closed.max_in_flight(open)),
            (0, 1)
        );
        let better = closed.after_signal(HealthSignal::Success, open);
        assert_eq!(
            (better.state, better.max_in_flight(open)),
            (EndpointState::Active, 2)
        );
        let refused = closed.after_signal(HealthSignal::Refused, open);
        assert_eq!(
            (refused.state, refused.max_in_flight(open)),
            (EndpointState::Active, MAX_IN_FLIGHT_PER_CALLBACK)
        );
        // A longer pause stays.
        let gone = after(well(), &[HealthSignal::Unreachable; 20], START);
        let probed = gone.after_signal(
            HealthSignal::Unreachable,
            gone.closed_until.expect("it is closed"),
        );
        assert!(
            probed
                .after_signal(HealthSignal::OwnFault, START)
                .closed_until
                >= probed.closed_until
        );
    }

    #[test]
    fn a_day_of_failures_pauses_a_callback() {
        for signal in [
            HealthSignal::Refused,
            HealthSignal::Overloaded,
            HealthSignal::Unreachable,
        ] {
            let failing = after(well(), &[signal; 4], START);
            let almost = START
                .plus(MAX_FAILING_DURATION)
                .minus(Duration::from_secs(1));
            let few = after(failing, &[signal; 4], almost);
            assert_ne!(few.state, EndpointState::Paused);
            let late = almost.plus(Duration::from_hours(2));
            let few = few.after_signal(signal, late);
            assert_ne!(few.state, EndpointState::Paused, "that was the ninth");
            let later = late.plus(Duration::from_hours(1));
            let paused = few.after_signal(signal, later);
            assert_eq!(
                (paused.state, paused.max_in_flight(later)),
                (EndpointState::Paused, 0)
            );
            let probe = later.plus(PAUSED_PROBE_INTERVAL);
            assert_eq!(paused.max_in_flight(probe), 1);
            assert_eq!(paused.after_signal(signal, probe).max_in_flight(probe), 0);
            let back = paused.after_signal(HealthSignal::Success, probe);
            assert_eq!(
                (back.state, back.max_in_flight(probe)),
                (EndpointState::Throttled, 2)
            );
            assert_eq!(back.failing_since, None);
        }
    }

    /// Random answers to half a million attempts, by any number of processes.
    #[test]
    fn no_history_sends_two_probes_at_once_or_gets_stuck() {
        let mut chance = fastrand::Rng::with_seed(20);
        for _ in 0..5_000 {
            let mut health = EndpointHealth::default();
            let mut now = START;
            // Whether each request in flight was started as a probe.
            let mut under_way: Vec<bool> = vec![];
            for _ in 0..100 {
                now = now.plus(match chance.u8(..4) {
                    0 => Duration::ZERO,
                    1 => Duration::from_millis(chance.u64(..10_000)),
                    2 => Duration::from_secs(chance.u64(..600)),
                    _ => Duration::from_mins(chance.u64(..180)),
                });
                while under_way.len() < usize::from(health.max_in_flight(now)) {
                    under_way.push(health.closed_until.is_some());
                }
                assert!(under_way.len() <= usize::from(MAX_IN_FLIGHT_PER_CALLBACK));
                assert!(under_way.iter().filter(|probe| **probe).count() <= 1);
                if under_way.is_empty() {
                    continue;
                }
                under_way.swap_remove(chance.usize(..under_way.len()));
                let signal = match chance.u8(..12) {
                    0 => HealthSignal::Success,
                    1..4 => HealthSignal::Overloaded,
                    4..7 => HealthSignal::TimedOut,
                    7..10 => HealthSignal::Unreachable,
                    10 => [HealthSignal::Refused, HealthSignal::OwnFault][chance.usize(..2)],
                    // The process died, so there is no signal.
                    _ => continue,
                };
                health = health.after_signal(signal, now);
                assert!((1..=MAX_IN_FLIGHT_PER_CALLBACK).contains(&health.allowed));
            }
            // From now on every request succeeds: within an hour and a few answers the callback is healthy again.
            now = now.plus(PAUSED_PROBE_INTERVAL);
            assert!(health.max_in_flight(now) >= 1, "stuck in {health:?}");
            let health = after(health, &[HealthSignal::Success; 3], now);
            assert_eq!(
                (health.state, health.max_in_flight(now)),
                (EndpointState::Active, MAX_IN_FLIGHT_PER_CALLBACK)
            );
        }
    }
}
