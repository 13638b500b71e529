//! Limits the concurrent calls of one owner.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Limits how many calls of one owner run at the same time, so that one tenant cannot use all connections.
#[derive(Clone)]
pub struct Bulkhead<K> {
    max_concurrent: usize,
    semaphores: Arc<Mutex<HashMap<K, Arc<Semaphore>>>>,
}

impl<K: Eq + Hash + Clone> Bulkhead<K> {
    /// At most `max_concurrent` calls for each owner.
    pub fn new(max_concurrent: usize) -> Self {
        Self {
            max_concurrent,
            semaphores: Arc::default(),
        }
    }

    /// Waits for a permit of `owner`. `None` if none became free within `max_wait`.
    pub async fn acquire_permit(
        &self,
        owner: &K,
        max_wait: Duration,
    ) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut owners = self
                .semaphores
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
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
        tokio::time::timeout(max_wait, places.acquire_owned())
            .await
            .ok()?
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_owner_waits_and_another_does_not() {
        let bulkhead = Bulkhead::new(1);
        let held = bulkhead.acquire_permit(&"a", Duration::ZERO).await;
        assert!(held.is_some());
        assert!(
            bulkhead
                .acquire_permit(&"a", Duration::from_millis(1))
                .await
                .is_none()
        );
        assert!(
            bulkhead
                .acquire_permit(&"b", Duration::from_millis(1))
                .await
                .is_some()
        );
        drop(held);
        assert!(
            bulkhead
                .acquire_permit(&"a", Duration::from_millis(1))
                .await
                .is_some()
        );
    }
}
