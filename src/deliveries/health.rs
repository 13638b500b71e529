//! How a callback has behaved lately, and how much it is sent because of it.
//!
//! - *active*: all is well, or nothing is known yet. A callback that never answered gets one request at a time; each
//!   success doubles that, up to [`MOST`].
//! - *throttled*: it said that it is overloaded (429, 502, 503, 504) or did not answer in time. Each such answer halves
//!   how many requests may be under way, down to one; each success doubles it again.
//! - *open*: nobody answers there at all. Nothing is sent for a while, then one delivery, to see; each time it goes
//!   unanswered the while doubles, up to five minutes. What waits meanwhile keeps all of its attempts.
//! - *paused*: a day without one success. One delivery an hour, to see, until one succeeds.
//!
//! After a fault of our own, nothing is sent to the callback for some seconds, in whatever state it is.
//!
//! No state drops anything: events are stored and deliveries queue in all of them. One success ends *open* and *paused*.
//! The limits hold over all processes; they are in the database, and so is its clock, which is the `now` here.

use std::time::Duration;

use super::outcome::{AttemptOutcome, OutcomeClass};
use crate::base::clock::Timestamp;

/// How many requests to one callback may be under way at once.
pub const MAX_IN_FLIGHT_PER_CALLBACK: u8 = 8;
/// How many attempts in a row nobody must have answered before nothing is sent.
pub const MAX_CONSECUTIVE_UNREACHABLE: u32 = 5;
/// How long nothing is sent then, at first and at most.
pub const INITIAL_CLOSED_DURATION: Duration = Duration::from_secs(5);
/// See [`FIRST_CLOSING`].
pub const MAX_CLOSED_DURATION: Duration = Duration::from_mins(5);
/// A callback is paused after this time without a success …
pub const MAX_FAILING_DURATION: Duration = Duration::from_hours(24);
/// … and no fewer failures than this.
pub const MIN_FAILURES_TO_PAUSE: u32 = 10;
/// How often a paused callback is tried.
pub const PAUSED_PROBE_INTERVAL: Duration = Duration::from_hours(1);
/// How long nothing is sent after a fault of our own; then one request, to see.
pub const OWN_FAULT_CLOSED_DURATION: Duration = Duration::from_secs(15);
/// How exact `last_success_at` is kept while all is well.
const SUCCESS_RECORD_INTERVAL: Duration = Duration::from_mins(1);

/// In one word, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Nothing is wrong.
    Active,
    /// It gets fewer requests at once.
    Throttled,
    /// Nobody answers there.
    Open,
    /// Nothing has succeeded for a day.
    Paused,
}

impl EndpointState {
    /// As it is stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Throttled => "throttled",
            Self::Open => "open",
            Self::Paused => "paused",
        }
    }

    /// The column's check constraint allows no other word.
    pub(super) fn from_column(word: &str) -> Self {
        match word {
            "throttled" => Self::Throttled,
            "open" => Self::Open,
            "paused" => Self::Paused,
            _ => Self::Active,
        }
    }
}

/// What one attempt says about the callback, as opposed to the event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HealthSignal {
    /// It works.
    Success,
    /// It has too much to do: 429, 502, 503, 504.
    Overloaded,
    /// It did not answer in time.
    TimedOut,
    /// Nobody is there: no address, no connection, no TLS.
    Unreachable,
    /// It answered, and did not want this event; or it may not be called.
    Refused,
    /// Nothing was sent, for a fault of our own: a secret that does not open, a resolver that is away.
    OwnFault,
}

impl HealthSignal {
    /// What an outcome says.
    pub fn from_outcome(outcome: &AttemptOutcome) -> Self {
        let (class, code) = match outcome {
            AttemptOutcome::Delivered { .. } => return Self::Success,
            AttemptOutcome::NotAttempted { .. } => return Self::OwnFault,
            AttemptOutcome::Refused { class, code, .. } => (class, code),
        };
        match class {
            OutcomeClass::Timeout => Self::TimedOut,
            OutcomeClass::Dns | OutcomeClass::Connect | OutcomeClass::Tls => Self::Unreachable,
            _ if matches!(code, Some(429 | 502 | 503 | 504)) => Self::Overloaded,
            _ => Self::Refused,
        }
    }
}

/// How a callback has behaved lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointHealth {
    /// In one word.
    pub state: EndpointState,
    /// How many requests may be under way at once, when any may.
    pub allowed: u8,
    /// Attempts without a success since the last one.
    pub failures: u32,
    /// Those of them, without a break, that nobody answered.
    pub unreachable: u32,
    /// When the first of `failures` ended.
    pub failing_since: Option<Timestamp>,
    /// To the minute, while all is well.
    pub last_success_at: Option<Timestamp>,
    /// When an attempt last failed.
    pub last_failure_at: Option<Timestamp>,
    /// Before this nothing is sent; from then on one request at a time.
    pub closed_until: Option<Timestamp>,
    /// How often in a row it was closed.
    pub closings: u32,
}

impl Default for EndpointHealth {
    /// Nothing is known.
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
    /// How many requests may be under way at `now`.
    pub fn max_in_flight(&self, now: Timestamp) -> u8 {
        match self.closed_until {
            Some(until) if now < until => 0,
            Some(_) => 1,
            None => self.allowed,
        }
    }

    /// What is known after an attempt that ended at `now`.
    #[must_use]
    pub fn after_signal(self, signal: HealthSignal, now: Timestamp) -> Self {
        match signal {
            HealthSignal::Success => self.after_success(now),
            // Nothing is learned of the callback; but a queue that cannot be sent must not be walked through at full
            // speed, again and again.
            HealthSignal::OwnFault => Self {
                closed_until: self
                    .closed_until
                    .max(Some(now.plus(OWN_FAULT_CLOSED_DURATION))),
                ..self
            },
            _ => self.after_failure(signal, now),
        }
    }

    /// Whether one more success would say nothing new.
    pub fn is_fully_healthy(&self, now: Timestamp) -> bool {
        let noted = self
            .last_success_at
            .is_some_and(|moment| now.duration_since(moment) < SUCCESS_RECORD_INTERVAL);
        noted
            && self.state == EndpointState::Active
            && self.allowed == MAX_IN_FLIGHT_PER_CALLBACK
            && self.failures == 0
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
        // What was under way when it was closed says nothing new.
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
            // Somebody is there again, if only to refuse.
            health.state = EndpointState::Throttled;
            health.allowed = 1;
            health.closed_until = None;
            health.closings = 0;
        } else if matches!(self.state, EndpointState::Active | EndpointState::Throttled) {
            // What was closed for a fault of our own.
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
        assert!(health.is_fully_healthy(START));
        assert!(!health.is_fully_healthy(START.plus(SUCCESS_RECORD_INTERVAL)));
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
            // What was under way says nothing new.
            assert_eq!(
                health
                    .after_signal(HealthSignal::Unreachable, now)
                    .closed_until,
                Some(until)
            );
            now = until;
            assert_eq!(health.max_in_flight(now), 1, "one, to see");
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

    /// A receiver that does anything at all, and as many processes as there are. Half a million attempts.
    #[test]
    fn no_history_sends_two_probes_at_once_or_gets_stuck() {
        let mut chance = fastrand::Rng::with_seed(20);
        for _ in 0..5_000 {
            let mut health = EndpointHealth::default();
            let mut now = START;
            // Whether each request under way was begun as a probe.
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
                    // The process died: nothing is learned.
                    _ => continue,
                };
                health = health.after_signal(signal, now);
                assert!((1..=MAX_IN_FLIGHT_PER_CALLBACK).contains(&health.allowed));
            }
            // From now on all is well: it is found out within the hour, and a few answers later nothing is left of it.
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
