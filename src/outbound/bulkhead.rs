//! Limits the concurrent calls of one owner, and leaves room for the others.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Limits how many calls of one owner run at the same time, so that one tenant cannot use all connections.
///
/// An owner gets at most half of what is free, beside its first call: however many owners take what they can, there is
/// room for the next one.
#[derive(Clone)]
pub struct Bulkhead<K: Eq + Hash> {
    max_concurrent: usize,
    semaphores: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
    calls: Arc<SharedRoom<K>>,
}

struct SharedRoom<K> {
    max_calls: usize,
    running: Mutex<RunningCalls<K>>,
    ended: Notify,
}

struct RunningCalls<K> {
    by_owner: HashMap<K, usize>,
    total: usize,
}

/// The right to make one call, until it is dropped.
pub struct CallPermit<K: Eq + Hash> {
    owner: K,
    room: Arc<SharedRoom<K>>,
    _of_owner: OwnedSemaphorePermit,
}

impl<K: Eq + Hash + Clone> Bulkhead<K> {
    /// At most `max_concurrent` calls for each owner, and `max_calls` in all.
    pub fn new(max_concurrent: usize, max_calls: usize) -> Self {
        Self {
            max_concurrent,
            semaphores: Arc::default(),
            calls: Arc::new(SharedRoom {
                max_calls,
                running: Mutex::new(RunningCalls {
                    by_owner: HashMap::new(),
                    total: 0,
                }),
                ended: Notify::new(),
            }),
        }
    }

    /// Waits for a permit of `owner`. `None` if none became free within `max_wait`.
    pub async fn acquire_permit(&self, owner: &K, max_wait: Duration) -> Option<CallPermit<K>> {
        let places = {
            let mut owners = self.semaphores.lock();
            if owners.len() > 1024 {
                owners.retain(|_, places| {
                    Arc::strong_count(places) > 1
                        || places.available_permits() < self.max_concurrent
                });
            }
            owners
                .entry(owner.clone())
                .or_insert_with(|| Arc::new(Semaphore::new(self.max_concurrent)))
                .clone()
        };
        let waiting = async {
            let of_owner = places.acquire_owned().await.ok()?;
            self.calls.wait_for_room(owner).await;
            Some(CallPermit {
                owner: owner.clone(),
                room: self.calls.clone(),
                _of_owner: of_owner,
            })
        };
        timeout(max_wait, waiting).await.ok()?
    }
}

impl<K: Eq + Hash + Clone> SharedRoom<K> {
    async fn wait_for_room(&self, owner: &K) {
        loop {
            let ended = self.ended.notified();
            if self.try_begin(owner) {
                return;
            }
            ended.await;
        }
    }

    fn try_begin(&self, owner: &K) -> bool {
        let mut running = self.running.lock();
        let free = self.max_calls.saturating_sub(running.total);
        let own = running.by_owner.get(owner).copied().unwrap_or(0);
        let has_room = free > 0 && (own == 0 || own * 2 < free);
        if has_room {
            running.total += 1;
            *running.by_owner.entry(owner.clone()).or_default() += 1;
        }
        has_room
    }
}

impl<K: Eq + Hash> Drop for CallPermit<K> {
    fn drop(&mut self) {
        {
            let mut running = self.room.running.lock();
            running.total -= 1;
            if let Some(own) = running.by_owner.get_mut(&self.owner) {
                *own -= 1;
                if *own == 0 {
                    running.by_owner.remove(&self.owner);
                }
            }
        }
        self.room.ended.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_owner_waits_and_another_does_not() {
        let bulkhead = Bulkhead::new(1, 100);
        let held = bulkhead.acquire_permit(&"a", Duration::ZERO).await;
        assert!(held.is_some());
        let tried = async |owner| {
            let permit = bulkhead.acquire_permit(&owner, Duration::from_millis(1));
            permit.await.is_some()
        };
        assert!(!tried("a").await);
        assert!(tried("b").await);
        drop(held);
        assert!(tried("a").await);
    }

    #[tokio::test]
    async fn owners_that_take_what_they_can_leave_room_for_the_next() {
        let bulkhead = Bulkhead::new(8, 16);
        let mut held = Vec::new();
        let mut take_all = async |owner: char| {
            let mut taken = 0;
            while let Some(permit) = bulkhead.acquire_permit(&owner, Duration::ZERO).await {
                held.push((owner, permit));
                taken += 1;
            }
            taken
        };
        let mut shares = Vec::new();
        for owner in 'a'..='f' {
            shares.push(take_all(owner).await);
        }
        assert_eq!(shares, [6, 4, 2, 2, 1, 1]);
        assert_eq!(take_all('g').await, 0, "all are taken");
        // What one gives back is shared anew.
        held.retain(|(owner, _)| *owner != 'a');
        let (waits, ()) = tokio::join!(
            bulkhead.acquire_permit(&'b', Duration::from_hours(1)),
            async { held.retain(|(owner, _)| *owner != 'b') }
        );
        assert!(waits.is_some());
        assert!(bulkhead.calls.running.lock().total <= 16);
    }
}
