//! Exponential backoff and jitter.

use std::time::Duration;

/// Exponential backoff: a delay that doubles after each failure, up to a maximum.
///
/// The caller passes the jitter in, so that this is a pure function and a test can choose it.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `initial`. No delay exceeds `max`, before jitter.
    pub const fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            next: initial,
        }
    }

    /// The delay after another failure. `jitter` is a random number from 0 to 1; see [`spread`].
    pub fn next_delay(&mut self, jitter: f64) -> Duration {
        let delay = self.next.min(self.max);
        self.next = delay.saturating_mul(2).min(self.max);
        spread(delay, jitter)
    }

    /// Starts again at the initial delay. Call this after a success.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

/// The delay after the failure number `attempt`, counted from 1, of work whose failures are counted elsewhere, without jitter: `initial`,
/// doubled after each failure up to `max`.
pub fn delay_after(attempt: u32, initial: Duration, max: Duration) -> Duration {
    let factor = 1_u32.checked_shl(attempt.saturating_sub(1).min(16));
    initial.saturating_mul(factor.unwrap_or(u32::MAX)).min(max)
}

/// Multiplies a delay by 0.75 to 1.25, so that processes that started together do not act at the same times. `jitter`
/// is a random number from 0 to 1.
pub fn spread(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_JITTER: f64 = 0.5;

    #[test]
    fn a_counted_failure_doubles_the_delay_up_to_the_maximum() {
        let (first, max) = (Duration::from_secs(15), Duration::from_mins(10));
        let seconds =
            [1, 2, 3, 6, 7, 100].map(|attempt| delay_after(attempt, first, max).as_secs());
        assert_eq!(seconds, [15, 30, 60, 480, 600, 600]);
    }

    #[test]
    fn the_pause_doubles_up_to_the_maximum_and_starts_again_after_a_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(1));
        let delays: Vec<_> = (0..5)
            .map(|_| backoff.next_delay(NO_JITTER).as_millis())
            .collect();
        assert_eq!(delays, [200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.next_delay(NO_JITTER), Duration::from_millis(200));
    }

    #[test]
    fn jitter_moves_the_pause_by_at_most_a_quarter() {
        let delay = Duration::from_millis(400);
        for (jitter, millis) in [(-1.0, 300), (0.0, 300), (0.5, 400), (1.0, 500), (9.0, 500)] {
            assert_eq!(spread(delay, jitter), Duration::from_millis(millis));
        }
    }

    #[test]
    fn a_maximum_below_the_first_pause_wins() {
        let mut backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(1));
        assert_eq!(backoff.next_delay(NO_JITTER), Duration::from_secs(1));
    }
}
