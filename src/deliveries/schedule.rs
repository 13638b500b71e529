//! When a delivery is retried.

use std::time::Duration;

/// The delays between attempts. When more retries are configured than there are delays, the last one repeats.
pub(crate) const RETRY_DELAYS: [Duration; 5] = [
    Duration::from_secs(30),
    Duration::from_mins(2),
    Duration::from_mins(10),
    Duration::from_hours(1),
    Duration::from_hours(6),
];
/// The longest delay, whatever `Retry-After` says.
pub(crate) const MAX_RETRY_DELAY: Duration = Duration::from_hours(6);
/// The share by which a random number changes a delay in either direction, so that deliveries that failed together are not
/// retried together.
pub(crate) const RETRY_JITTER: f64 = 0.1;

/// The delay after the attempt with this number, counted from one. `jitter` is a random number from 0 to 1. `asked` is the
/// receiver's `Retry-After`, which makes a delay longer but never shorter.
pub(crate) fn retry_delay(attempt: u32, jitter: f64, asked: Option<Duration>) -> Duration {
    let step = usize::try_from(attempt.saturating_sub(1)).unwrap_or(usize::MAX);
    let planned = RETRY_DELAYS[step.min(RETRY_DELAYS.len() - 1)];
    let jitter = jitter.clamp(0.0, 1.0);
    let planned = planned.mul_f64(1.0 - RETRY_JITTER + 2.0 * RETRY_JITTER * jitter);
    // Never earlier than asked, and with jitter as well.
    let asked = asked.map_or(Duration::ZERO, |asked| {
        asked
            .min(MAX_RETRY_DELAY)
            .mul_f64(1.0 + RETRY_JITTER * jitter)
    });
    planned.max(asked).min(MAX_RETRY_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn delays_grow_and_then_stay() {
        for (attempt, expected) in [
            (1, 30),
            (2, 120),
            (3, 600),
            (4, 3600),
            (5, 21_600),
            (6, 21_600),
            (u32::MAX, 21_600),
        ] {
            assert_eq!(
                retry_delay(attempt, 0.5, None),
                seconds(expected),
                "{attempt}"
            );
        }
    }

    #[test]
    fn jitter_changes_a_delay_by_a_tenth() {
        assert_eq!(retry_delay(1, 0.0, None), seconds(27));
        assert_eq!(retry_delay(1, 1.0, None), seconds(33));
        assert_eq!(retry_delay(5, 1.0, None), MAX_RETRY_DELAY);
    }

    #[test]
    fn a_receiver_may_ask_for_more_time_and_not_for_less() {
        for (asked, jitter, expected) in [
            (seconds(0), 0.5, seconds(30)),
            (seconds(5), 0.5, seconds(30)),
            (seconds(100), 0.0, seconds(100)),
            (seconds(100), 1.0, seconds(110)),
            (seconds(21_600), 1.0, MAX_RETRY_DELAY),
            (Duration::MAX, 0.0, MAX_RETRY_DELAY),
        ] {
            assert_eq!(retry_delay(1, jitter, Some(asked)), expected, "{asked:?}");
        }
    }
}
