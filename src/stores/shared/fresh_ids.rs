//! Asking again about a purchase that its store does not know yet: for some hundred milliseconds after a sale, both stores
//! answer "not found" about the id or token that they have just given out.

use std::array;
use std::time::Duration;

use crate::base::cache::Cache;
use crate::base::clock::{Clock, Timestamp};
use crate::base::id::TenantId;
use crate::crypto::token;

/// When the store is asked again, counted from the beginning of the request.
const RETRY_AT: [Duration; 2] = [Duration::from_millis(200), Duration::from_millis(600)];
/// The store is not asked again when its answers have taken longer than this.
const MAX_RETRY_TIME: Duration = Duration::from_millis(750);
/// How long after an id was first seen its store may still not know it.
const MAX_EARLY_TIME: Duration = Duration::from_mins(1);
/// How long it is remembered when an unknown id was first seen.
const FIRST_SEEN_TTL: Duration = Duration::from_mins(10);
const MAX_IDS: usize = 100_000;

/// The ids that a store did not know. Clones share them.
#[derive(Clone)]
pub(crate) struct FreshIds {
    clock: Clock,
    /// When an id was first found unknown, by a digest of tenant and id.
    first_seen: Cache<[u8; 32], Timestamp>,
}

/// The tries of one request.
pub(crate) struct FreshIdTries<'a> {
    ids: &'a FreshIds,
    key: [u8; 32],
    /// The uptime at the beginning of the request.
    started_at: Duration,
    retry_at: array::IntoIter<Duration, 2>,
}

/// What to do about an id that the store does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnknownId {
    TryAgain,
    /// `may_be_early`: it was first seen so lately that the store may know it soon.
    GiveUp {
        may_be_early: bool,
    },
}

impl FreshIds {
    pub(crate) fn new(clock: &Clock) -> Self {
        Self {
            clock: clock.clone(),
            first_seen: Cache::new(clock.clone(), MAX_IDS),
        }
    }

    /// Call it before the store is first asked.
    pub(crate) fn start_tries(&self, tenant: &TenantId, id: &str) -> FreshIdTries<'_> {
        FreshIdTries {
            ids: self,
            key: token::sha256(format!("{tenant} {id}").as_bytes()),
            started_at: self.clock.uptime(),
            retry_at: RETRY_AT.into_iter(),
        }
    }
}

impl FreshIdTries<'_> {
    /// Call it when the store does not know the id. Waits until the store is to be asked again: at most twice, and only
    /// about an id that no earlier request was about.
    pub(crate) async fn wait_for_retry(&mut self) -> UnknownId {
        let clock = &self.ids.clock;
        let elapsed = clock.uptime().saturating_sub(self.started_at);
        let (may_be_early, is_fresh) = self.record_unknown(elapsed);
        let retry_at = self.retry_at.next();
        match retry_at.filter(|_| is_fresh && elapsed < MAX_RETRY_TIME) {
            Some(at) => {
                clock.sleep(at.saturating_sub(elapsed)).await;
                UnknownId::TryAgain
            }
            None => UnknownId::GiveUp { may_be_early },
        }
    }

    /// Whether the store may know the id soon, and whether no request before this one, which began `elapsed` ago, was about
    /// it.
    fn record_unknown(&self, elapsed: Duration) -> (bool, bool) {
        let now = self.ids.clock.now();
        let Some(first_seen) = self.ids.first_seen.get(&self.key) else {
            self.ids.first_seen.insert(self.key, now, FIRST_SEEN_TTL);
            return (true, true);
        };
        let age = now.duration_since(first_seen);
        (age < MAX_EARLY_TIME, age <= elapsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant() -> TenantId {
        "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3E".parse().expect("an id")
    }

    /// How often the store is asked about an id that it never knows, and whether the answer may be early.
    async fn tries(ids: &FreshIds, tenant: &TenantId, answer_time: Duration) -> (u32, bool) {
        let mut tries = ids.start_tries(tenant, "id");
        let mut count = 0;
        loop {
            count += 1;
            ids.clock.advance(answer_time);
            if let UnknownId::GiveUp { may_be_early } = tries.wait_for_retry().await {
                return (count, may_be_early);
            }
        }
    }

    #[tokio::test]
    async fn a_fresh_id_is_tried_three_times_and_one_seen_before_once() {
        let clock = Clock::fixed(Timestamp::from_millis(0));
        let ids = FreshIds::new(&clock);
        let answer_time = Duration::from_millis(50);
        let started_at = clock.uptime();
        assert_eq!(tries(&ids, &tenant(), answer_time).await, (3, true));
        let waited = clock.uptime().saturating_sub(started_at);
        assert_eq!(
            waited,
            Duration::from_millis(650),
            "600 and the last answer"
        );
        assert_eq!(tries(&ids, &tenant(), answer_time).await, (1, true));
        clock.advance(MAX_EARLY_TIME);
        assert_eq!(tries(&ids, &tenant(), answer_time).await, (1, false));
        clock.advance(FIRST_SEEN_TTL);
        assert_eq!(tries(&ids, &tenant(), answer_time).await, (3, true));
    }

    #[tokio::test]
    async fn a_slow_store_is_not_asked_again() {
        let ids = FreshIds::new(&Clock::fixed(Timestamp::from_millis(0)));
        assert_eq!(tries(&ids, &tenant(), MAX_RETRY_TIME).await, (1, true));
    }

    #[tokio::test]
    async fn tenants_do_not_share_what_was_seen() {
        let ids = FreshIds::new(&Clock::fixed(Timestamp::from_millis(0)));
        let other: TenantId = "tenant_01J9ZQ4T5W6X7Y8Z9A0B1C2D3F".parse().expect("an id");
        for tenant in [tenant(), other] {
            assert_eq!(tries(&ids, &tenant, Duration::ZERO).await, (3, true));
        }
    }
}
