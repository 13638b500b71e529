//! Growing pauses between attempts.

use std::time::Duration;

/// Exponential backoff: the first pause, then twice as long after each further failure, up to a maximum.
///
/// The jitter is passed in, so that this stays a pure function of its inputs and a test can choose it.
#[derive(Clone, Debug)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    /// Starts at `initial` and never exceeds `max` (before jitter).
    pub const fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            next: initial,
        }
    }

    /// The pause after one more failure. `jitter` is a random number from 0 to 1; see [`spread`].
    pub fn next_delay(&mut self, jitter: f64) -> Duration {
        let delay = self.next.min(self.max);
        self.next = delay.saturating_mul(2).min(self.max);
        spread(delay, jitter)
    }

    /// Starts again at the first pause, after a success.
    pub fn reset(&mut self) {
        self.next = self.initial;
    }
}

/// Spreads a pause over 75 % to 125 % of its length, so that processes which started together do not act together.
/// `jitter` is a random number from 0 to 1.
pub fn spread(delay: Duration, jitter: f64) -> Duration {
    delay.mul_f64(0.75 + jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_JITTER: f64 = 0.5;

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
