//! One token bucket for each tenant, in this process.
//!
//! The buckets are governor's; the map around them is not, because governor's keyed limiter has one quota for all keys.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::{Clock as _, Reference as _};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use super::tenant::RateLimit;
use crate::base::clock::Clock;
use crate::base::governor_clock::{DirectRateLimiter, GovernorClock, GovernorInstant};
use crate::base::id::TenantId;

/// From this many buckets on, full ones are dropped from time to time.
const MIN_CLEANUP_BUCKETS: usize = 1024;

/// The buckets of all tenants.
pub(super) struct TenantRateLimiter {
    clock: GovernorClock,
    buckets: Mutex<TokenBuckets>,
}

struct TokenBuckets {
    by_tenant: HashMap<TenantId, TokenBucket>,
    /// At how many buckets full ones are dropped next.
    cleanup_at: usize,
}

struct TokenBucket {
    limit: RateLimit,
    limiter: DirectRateLimiter,
    last_request: GovernorInstant,
}

impl TenantRateLimiter {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            clock: GovernorClock::new(clock),
            buckets: Mutex::new(TokenBuckets {
                by_tenant: HashMap::new(),
                cleanup_at: MIN_CLEANUP_BUCKETS,
            }),
        }
    }

    /// The error is the time until there is a token. A tenant whose limit has changed begins with a full bucket.
    pub(super) fn take_token(&self, tenant: &TenantId, limit: RateLimit) -> Result<(), Duration> {
        let now = self.clock.now();
        let mut buckets = self.buckets.lock();
        if let Some(bucket) = buckets.by_tenant.get_mut(tenant)
            && bucket.limit == limit
        {
            return bucket.take_token(now);
        }
        if buckets.by_tenant.len() >= buckets.cleanup_at {
            // A full bucket is the same as a new one, so dropping it changes nothing.
            buckets.by_tenant.retain(|_, bucket| !bucket.is_full(now));
            buckets.cleanup_at = MIN_CLEANUP_BUCKETS.max(buckets.by_tenant.len() * 2);
        }
        let mut bucket = TokenBucket {
            limit,
            limiter: RateLimiter::direct_with_clock(governor_quota(limit), self.clock.clone()),
            last_request: now,
        };
        let answer = bucket.take_token(now);
        buckets.by_tenant.insert(tenant.clone(), bucket);
        answer
    }
}

impl TokenBucket {
    fn take_token(&mut self, now: GovernorInstant) -> Result<(), Duration> {
        self.last_request = now;
        self.limiter
            .check()
            .map_err(|refused| refused.wait_time_from(now))
    }

    /// Whether the last request was so long ago that the bucket has filled up.
    fn is_full(&self, now: GovernorInstant) -> bool {
        let quota = governor_quota(self.limit);
        let fill = quota.replenish_interval() * quota.burst_size().get();
        Duration::from(now.duration_since(self.last_request)) >= fill
    }
}

/// A limit of zero would refuse every request; settings and columns begin at one.
fn governor_quota(limit: RateLimit) -> Quota {
    let at_least_one = |number| NonZeroU32::new(number).unwrap_or(NonZeroU32::MIN);
    Quota::per_second(at_least_one(limit.per_second)).allow_burst(at_least_one(limit.burst))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::clock::Timestamp;
    use crate::http::problem::retry_after_seconds;

    fn limiter() -> (TenantRateLimiter, Clock) {
        let clock = Clock::fixed(Timestamp::from_millis(1_775_830_930_000));
        (TenantRateLimiter::new(clock.clone()), clock)
    }

    fn tenant(number: i64) -> TenantId {
        TenantId::mint(Timestamp::from_millis(number))
    }

    fn count_granted(
        limiter: &TenantRateLimiter,
        tenant: &TenantId,
        limit: RateLimit,
        asked: u32,
    ) -> u32 {
        (0..asked)
            .map(|_| u32::from(limiter.take_token(tenant, limit).is_ok()))
            .sum()
    }

    #[test]
    fn a_burst_then_a_steady_flow() {
        for (per_second, burst) in [(1, 1), (1, 10), (10, 1), (100, 200), (3, 7), (1000, 1000)] {
            let limit = RateLimit { per_second, burst };
            let (limiter, clock) = limiter();
            let tenant = tenant(1);
            assert_eq!(count_granted(&limiter, &tenant, limit, burst + 50), burst);
            clock.advance(Duration::from_secs(1));
            let flowed = per_second.min(burst);
            assert_eq!(
                count_granted(&limiter, &tenant, limit, per_second + 50),
                flowed,
                "{limit:?}"
            );
            clock.advance(Duration::from_hours(1));
            assert_eq!(count_granted(&limiter, &tenant, limit, burst + 50), burst);
        }
    }

    #[test]
    fn a_caller_is_admitted_after_the_announced_wait_and_no_sooner() {
        for (per_second, burst) in [(1, 1), (3, 2), (7, 1), (250, 3)] {
            let limit = RateLimit { per_second, burst };
            let (limiter, clock) = limiter();
            let tenant = tenant(1);
            count_granted(&limiter, &tenant, limit, burst);
            let wait = limiter
                .take_token(&tenant, limit)
                .expect_err("the bucket is empty");
            assert!(wait <= Duration::from_secs(1) / per_second, "{wait:?}");
            assert_eq!(retry_after_seconds(wait), 1, "rounded up");
            let too_soon = wait.saturating_sub(Duration::from_millis(1));
            clock.advance(Duration::from_millis(
                u64::try_from(too_soon.as_millis()).unwrap(),
            ));
            assert!(limiter.take_token(&tenant, limit).is_err(), "{limit:?}");
            clock.advance(Duration::from_millis(2));
            assert!(limiter.take_token(&tenant, limit).is_ok(), "{limit:?}");
        }
    }

    #[test]
    fn tenants_do_not_share_and_a_new_limit_begins_full() {
        let (limiter, _) = limiter();
        let (one, two) = (tenant(1), tenant(2));
        let narrow = RateLimit {
            per_second: 1,
            burst: 2,
        };
        let wide = RateLimit {
            per_second: 1,
            burst: 5,
        };
        assert_eq!(count_granted(&limiter, &one, narrow, 10), 2);
        assert_eq!(count_granted(&limiter, &two, narrow, 10), 2);
        assert_eq!(count_granted(&limiter, &one, wide, 10), 5);
        assert_eq!(count_granted(&limiter, &two, narrow, 10), 0);
    }

    #[test]
    fn full_buckets_are_forgotten_and_others_are_not() {
        let (limiter, clock) = limiter();
        let limit = RateLimit {
            per_second: 1,
            burst: 2,
        };
        let count = || limiter.buckets.lock().by_tenant.len();
        for number in 0..2000 {
            count_granted(&limiter, &tenant(number), limit, 2);
        }
        assert_eq!(count(), 2000, "all are empty, so all are kept");
        clock.advance(Duration::from_secs(3));
        let busy = tenant(5000);
        count_granted(&limiter, &busy, limit, 2);
        for number in 2000..2100 {
            count_granted(&limiter, &tenant(number), limit, 1);
        }
        assert!(count() < 200, "{}", count());
        assert_eq!(count_granted(&limiter, &busy, limit, 2), 0);
    }
}
