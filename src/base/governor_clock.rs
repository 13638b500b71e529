//! [`Clock`] as the crate `governor` wants it, so that tests move the time of its limiters too.

use std::ops::Add;
use std::time::Duration;

use governor::RateLimiter;
use governor::clock::Reference;
use governor::middleware::NoOpMiddleware;
use governor::nanos::Nanos;
use governor::state::{InMemoryState, NotKeyed};

use super::clock::Clock;

/// One token bucket.
pub(crate) type DirectRateLimiter =
    RateLimiter<NotKeyed, InMemoryState, GovernorClock, NoOpMiddleware<GovernorInstant>>;

/// A monotonic clock for governor.
#[derive(Clone, Debug)]
pub(crate) struct GovernorClock(Clock);

impl GovernorClock {
    pub(crate) fn new(clock: Clock) -> Self {
        Self(clock)
    }
}

impl governor::clock::Clock for GovernorClock {
    type Instant = GovernorInstant;

    fn now(&self) -> GovernorInstant {
        GovernorInstant(self.0.uptime())
    }
}

/// A time of [`Clock::uptime`], as `governor` wants it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GovernorInstant(Duration);

impl Add<Nanos> for GovernorInstant {
    type Output = Self;

    fn add(self, more: Nanos) -> Self {
        Self(self.0 + Duration::from(more))
    }
}

impl Reference for GovernorInstant {
    fn duration_since(&self, earlier: Self) -> Nanos {
        self.0.saturating_sub(earlier.0).into()
    }

    fn saturating_sub(&self, duration: Nanos) -> Self {
        Self(self.0.checked_sub(duration.into()).unwrap_or(self.0))
    }
}
