//! The retry policy: what happens to a delivery after an attempt, in one pure function.
//!
//! ```text
//!            Delivered                              ┌───────────┐
//!  pending ───────────────────────────────────────► │ delivered │
//!   │ ▲ │                                           └───────────┘
//!   │ │ │    Refused with 410, or for the last time ┌───────────┐
//!   │ │ └─────────────────────────────────────────► │  failed   │
//!   │ │                                             └───────────┘
//!   └─┘ Refused: retried later, one attempt fewer is left. NotAttempted: retried soon, no attempt is counted
//! ```

use std::time::Duration;

use super::outcome::AttemptOutcome;
use super::schedule;

/// RFC 9110: the resource is gone and will not come back.
const HTTP_GONE: u16 = 410;
/// The delay after a fault on our side.
const POSTPONED_DELAY: Duration = Duration::from_secs(15);

/// The counters of a delivery when an attempt begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Delivery {
    /// Attempts that were counted before this one.
    pub attempts: u32,
    /// `WEBHOOK_MAX_RETRIES`: how many times it is retried after the first attempt.
    pub max_retries: u32,
}

/// What happens to a delivery after an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextStep {
    /// It was delivered.
    Delivered,
    /// It is retried. The attempt counts.
    Retry {
        /// The delay from the end of the attempt.
        after: Duration,
    },
    /// It is not retried automatically.
    Failed,
    /// Nothing was sent. It is retried, and the attempt does not count.
    Postponed {
        /// The delay from now.
        after: Duration,
    },
}

impl Delivery {
    /// `jitter` is a random number from 0 to 1.
    #[must_use]
    pub(crate) fn decide_next_step(self, outcome: &AttemptOutcome, jitter: f64) -> NextStep {
        match outcome {
            AttemptOutcome::Delivered { .. } => NextStep::Delivered,
            AttemptOutcome::NotAttempted { .. } => NextStep::Postponed {
                after: POSTPONED_DELAY.mul_f64(1.0 + jitter.clamp(0.0, 1.0)),
            },
            AttemptOutcome::Refused {
                code: Some(HTTP_GONE),
                ..
            } => NextStep::Failed,
            AttemptOutcome::Refused { .. } if self.attempts >= self.max_retries => NextStep::Failed,
            AttemptOutcome::Refused { retry_after, .. } => NextStep::Retry {
                after: schedule::retry_delay(self.attempts.saturating_add(1), jitter, *retry_after),
            },
        }
    }
}

impl NextStep {
    /// Whether the attempt counts towards the maximum.
    pub(crate) fn is_attempt_counted(self) -> bool {
        !matches!(self, Self::Postponed { .. })
    }

    /// The value of the column `status`.
    pub(crate) fn status(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Retry { .. } | Self::Postponed { .. } => "pending",
        }
    }

    /// How long until it is retried. `None`: it is not retried.
    pub(crate) fn retry_delay(self) -> Option<Duration> {
        match self {
            Self::Retry { after } | Self::Postponed { after } => Some(after),
            Self::Delivered | Self::Failed => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::outcome::OutcomeClass;
    use super::super::schedule::{MAX_RETRY_DELAY, RETRY_DELAYS, RETRY_JITTER};
    use super::*;

    fn refused(code: Option<u16>, retry_after: Option<Duration>) -> AttemptOutcome {
        AttemptOutcome::Refused {
            class: code.map_or(OutcomeClass::Timeout, OutcomeClass::from_status),
            code,
            retry_after,
            excerpt: None,
            detail: String::new(),
        }
    }

    fn delivered() -> AttemptOutcome {
        AttemptOutcome::Delivered {
            code: 200,
            excerpt: None,
        }
    }

    fn not_attempted() -> AttemptOutcome {
        AttemptOutcome::NotAttempted {
            class: OutcomeClass::Dns,
            detail: String::new(),
        }
    }

    #[test]
    fn the_contracts_schedule() {
        let after = |attempts, outcome| {
            let delivery = Delivery {
                attempts,
                max_retries: 5,
            };
            delivery.decide_next_step(&outcome, 0.5)
        };
        let retry = |seconds| NextStep::Retry {
            after: Duration::from_secs(seconds),
        };
        let failing = || refused(Some(500), None);
        assert_eq!(after(0, delivered()), NextStep::Delivered);
        assert_eq!(after(0, failing()), retry(30));
        assert_eq!(after(1, failing()), retry(120));
        assert_eq!(after(2, failing()), retry(600));
        assert_eq!(after(3, failing()), retry(3600));
        assert_eq!(after(4, failing()), retry(21_600));
        assert_eq!(after(5, failing()), NextStep::Failed);
        assert_eq!(after(5, delivered()), NextStep::Delivered);
        assert_eq!(after(0, refused(Some(410), None)), NextStep::Failed);
        assert_eq!(after(0, refused(None, None)), retry(30));
        let asked = Some(Duration::from_secs(400));
        assert_eq!(after(0, refused(Some(429), asked)), retry(420));
        let postponed = after(5, not_attempted());
        assert!(!postponed.is_attempt_counted());
        assert_eq!(postponed.status(), "pending");
    }

    #[test]
    fn no_retries_means_one_attempt() {
        let only = Delivery {
            attempts: 0,
            max_retries: 0,
        };
        assert_eq!(
            only.decide_next_step(&refused(Some(500), None), 0.5),
            NextStep::Failed
        );
        assert!(
            !only
                .decide_next_step(&not_attempted(), 0.5)
                .is_attempt_counted()
        );
    }

    fn outcome() -> impl Strategy<Value = AttemptOutcome> {
        let asked = proptest::option::of((0_u64..100_000).prop_map(Duration::from_secs));
        prop_oneof![
            1 => Just(delivered()),
            1 => Just(not_attempted()),
            6 => (proptest::option::of(300_u16..600), asked).prop_map(|(code, asked)| refused(code, asked)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2_000))]

        /// For any sequence of answers a delivery ends, every attempt is counted, and every delay is within its bounds.
        #[test]
        fn every_history_ends(
            max_retries in 0_u32..=20,
            history in proptest::collection::vec((outcome(), 0.0_f64..=1.0), 64),
        ) {
            let mut attempts = 0;
            for (outcome, jitter) in history {
                let delivery = Delivery { attempts, max_retries };
                let next = delivery.decide_next_step(&outcome, jitter);
                match (&outcome, next) {
                    (AttemptOutcome::Delivered { .. }, next) => {
                        prop_assert_eq!(next, NextStep::Delivered);
                        return Ok(());
                    }
                    (AttemptOutcome::NotAttempted { .. }, NextStep::Postponed { after }) => {
                        prop_assert!(after >= POSTPONED_DELAY && after <= 2 * POSTPONED_DELAY);
                    }
                    (AttemptOutcome::Refused { code, .. }, NextStep::Failed) => {
                        prop_assert!(*code == Some(HTTP_GONE) || attempts == max_retries);
                        return Ok(());
                    }
                    (AttemptOutcome::Refused { code, retry_after, .. }, NextStep::Retry { after }) => {
                        prop_assert_ne!(*code, Some(HTTP_GONE));
                        attempts += 1;
                        prop_assert!(attempts <= max_retries);
                        let step = RETRY_DELAYS[(attempts as usize - 1).min(RETRY_DELAYS.len() - 1)];
                        prop_assert!(after >= step.mul_f64(1.0 - RETRY_JITTER));
                        prop_assert!(after <= MAX_RETRY_DELAY);
                        match retry_after {
                            Some(asked) => {
                                prop_assert!(after >= (*asked).min(MAX_RETRY_DELAY));
                                let longest = step.max(*asked).mul_f64(1.0 + RETRY_JITTER);
                                prop_assert!(after <= longest);
                            }
                            None => prop_assert!(after <= step.mul_f64(1.0 + RETRY_JITTER)),
                        }
                    }
                    (outcome, next) => prop_assert!(false, "{outcome:?} led to {next:?}"),
                }
            }
        }
    }
}
