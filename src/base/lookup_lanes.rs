//! Bounds the look-ups that strangers can cause, and keeps room for those that were found before.
//!
//! What is looked up without a credential, or by a made-up one, must not keep the database from what tenants ask. So there
//! are two lanes: one for keys that were found once, and one for all others. Each lane lets a few look-ups run and some
//! wait; a further one is refused at once, which costs nothing. A look-up that cannot begin in time never begins; one that
//! has begun is not cancelled by its lane.

use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::cache::Cache;
use super::clock::Clock;

/// How long a key that was found stays in the lane of those, without being looked up again.
const FOUND_TTL: Duration = Duration::from_hours(24);
/// A few dozen bytes each.
const MAX_FOUND_KEYS: usize = 100_000;

/// How many look-ups there may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LookupLimits {
    /// Running at once, of keys that were found before.
    pub(crate) max_running_found: usize,
    /// Running at once, of all other keys.
    pub(crate) max_running_others: usize,
    /// Waiting at once, in each lane.
    pub(crate) max_waiting: usize,
    /// How long one waits.
    pub(crate) wait_timeout: Duration,
}

impl LookupLimits {
    /// For a pool of so many connections: less than half of it for both lanes.
    pub(crate) fn for_pool(max_connections: u64) -> Self {
        let connections = usize::try_from(max_connections).unwrap_or(usize::MAX);
        Self {
            max_running_found: (connections / 4).clamp(1, 8),
            max_running_others: (connections / 6).clamp(1, 4),
            max_waiting: 512,
            wait_timeout: Duration::from_secs(2),
        }
    }
}

/// Too many look-ups wait already, or this one waited for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many look-ups wait for the database")]
pub struct LookupQueueFullError;

/// One lane for keys that were found before, and one for all others.
pub(crate) struct LookupLanes<K> {
    found_keys: Cache<K, ()>,
    found: LookupLane,
    others: LookupLane,
}

/// The right to run a look-up, until it is dropped.
#[derive(Debug)]
pub(crate) struct LookupPermit {
    _permit: OwnedSemaphorePermit,
}

impl<K: Eq + Hash + Clone> LookupLanes<K> {
    pub(crate) fn new(clock: &Clock, limits: LookupLimits) -> Self {
        Self {
            found_keys: Cache::new(clock.clone(), MAX_FOUND_KEYS),
            found: LookupLane::new(limits.max_running_found, limits),
            others: LookupLane::new(limits.max_running_others, limits),
        }
    }

    /// Waits until `key` may be looked up.
    pub(crate) async fn enter(&self, key: &K) -> Result<LookupPermit, LookupQueueFullError> {
        match self.found_keys.get(key) {
            Some(()) => self.found.enter().await,
            None => self.others.enter().await,
        }
    }

    /// Notes what a look-up found, which decides the lane of the next one.
    pub(crate) fn record_result(&self, key: &K, is_found: bool) {
        if is_found {
            self.found_keys.insert(key.clone(), (), FOUND_TTL);
        } else if self.found_keys.get(key).is_some() {
            self.found_keys.invalidate_key(key);
        }
    }
}

struct LookupLane {
    running: Arc<Semaphore>,
    waiting: AtomicUsize,
    limits: LookupLimits,
}

impl LookupLane {
    fn new(max_running: usize, limits: LookupLimits) -> Self {
        Self {
            running: Arc::new(Semaphore::new(max_running)),
            waiting: AtomicUsize::new(0),
            limits,
        }
    }

    async fn enter(&self) -> Result<LookupPermit, LookupQueueFullError> {
        if let Ok(permit) = self.running.clone().try_acquire_owned() {
            return Ok(LookupPermit { _permit: permit });
        }
        let waits = WaitingLookup::start(self)?;
        let permit = self.running.clone().acquire_owned();
        let permit = timeout(self.limits.wait_timeout, permit).await;
        drop(waits);
        match permit {
            Ok(Ok(permit)) => Ok(LookupPermit { _permit: permit }),
            Ok(Err(_)) | Err(_) => Err(LookupQueueFullError),
        }
    }
}

/// A look-up that waits.
struct WaitingLookup<'a>(&'a AtomicUsize);

impl<'a> WaitingLookup<'a> {
    fn start(lane: &'a LookupLane) -> Result<Self, LookupQueueFullError> {
        let before = lane.waiting.fetch_add(1, Ordering::Relaxed);
        let waits = Self(&lane.waiting);
        if before < lane.limits.max_waiting {
            Ok(waits)
        } else {
            Err(LookupQueueFullError)
        }
    }
}

impl Drop for WaitingLookup<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::base::clock::Timestamp;

    #[tokio::test]
    async fn a_crowd_is_refused_at_the_door_and_found_keys_pass_it() {
        let limits = LookupLimits {
            max_running_found: 1,
            max_running_others: 1,
            max_waiting: 2,
            wait_timeout: Duration::from_hours(1),
        };
        let lanes = LookupLanes::new(&Clock::fixed(Timestamp::from_millis(0)), limits);
        lanes.record_result(&"good", true);
        let enter = |key: &'static str| {
            let lanes = &lanes;
            Box::pin(async move { lanes.enter(&key).await })
        };
        let running = enter("a").await.expect("the lane is empty");
        let (mut second, mut third) = (enter("b"), enter("c"));
        assert!((&mut second).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        let refused = enter("d").now_or_never().expect("at once");
        assert_eq!(refused.map(drop), Err(LookupQueueFullError));

        let good = enter("good").now_or_never().expect("at once");
        drop(good);
        lanes.record_result(&"good", false);
        let refused = enter("good").now_or_never().expect("at once");
        assert_eq!(refused.map(drop), Err(LookupQueueFullError), "not any more");

        drop(running);
        let permit = second.await.expect("it is its turn");
        assert!((&mut third).now_or_never().is_none());
        drop(permit);
        drop(third.await);
        assert!(enter("d").now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_look_up_that_cannot_begin_in_time_is_refused() {
        let limits = LookupLimits {
            wait_timeout: Duration::ZERO,
            ..LookupLimits::for_pool(5)
        };
        let lanes = LookupLanes::new(&Clock::fixed(Timestamp::from_millis(0)), limits);
        let _running = lanes.enter(&1).await.expect("the lane is empty");
        let refused = lanes.enter(&2).await.map(drop);
        assert_eq!(refused, Err(LookupQueueFullError));
    }
}
