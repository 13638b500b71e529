//! Concurrent callers with the same key share one call.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared, WeakShared};
use parking_lot::Mutex;

/// Concurrent callers with the same key share one call.
///
/// A caller that arrives while the call runs gets its result; one that arrives later starts a new call. The call runs
/// as long as any of its callers waits for it, even if the one that started it was cancelled.
pub struct SingleFlight<K, V: Clone> {
    running_calls: Arc<Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>>,
}

impl<K, V: Clone> Clone for SingleFlight<K, V> {
    fn clone(&self) -> Self {
        Self {
            running_calls: self.running_calls.clone(),
        }
    }
}

impl<K, V: Clone> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self {
            running_calls: Arc::default(),
        }
    }
}

impl<K: Eq + Hash + Clone + Send + 'static, V: Clone + Send + Sync + 'static> SingleFlight<K, V> {
    /// Waits for the running call under `key`, or starts `call`.
    pub async fn share_call<F>(&self, key: K, call: impl FnOnce() -> F) -> V
    where
        F: Future<Output = V> + Send + 'static,
    {
        let shared: Shared<BoxFuture<'static, V>> = {
            let mut running = self.running_calls.lock();
            // A call that has finished or was abandoned is not joined, because its result is out of date.
            let joined = running
                .get(&key)
                .and_then(WeakShared::upgrade)
                .filter(|call| call.peek().is_none());
            joined.unwrap_or_else(|| {
                let call = call().boxed().shared();
                if let Some(weak) = call.downgrade() {
                    running.insert(key.clone(), weak);
                }
                call
            })
        };
        let _tidy = CallCleanup {
            running_calls: &self.running_calls,
            key: &key,
        };
        shared.await
    }
}

/// Removes the call's entry when its last waiter is dropped, also by cancellation.
struct CallCleanup<'a, K: Eq + Hash, V: Clone> {
    running_calls: &'a Mutex<HashMap<K, WeakShared<BoxFuture<'static, V>>>>,
    key: &'a K,
}

impl<K: Eq + Hash, V: Clone> Drop for CallCleanup<'_, K, V> {
    fn drop(&mut self) {
        let mut running = self.running_calls.lock();
        let ended = running
            .get(self.key)
            .is_some_and(|weak| weak.upgrade().is_none_or(|call| call.peek().is_some()));
        if ended {
            running.remove(self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::Barrier;

    use super::*;

    #[tokio::test]
    async fn callers_at_the_same_time_share_one_call() {
        let calls = Arc::new(AtomicU32::new(0));
        let in_flight = SingleFlight::<&str, u32>::default();
        let gate = Arc::new(Barrier::new(2));
        let ask = |gate: Arc<Barrier>| {
            let (calls, in_flight) = (calls.clone(), in_flight.clone());
            async move {
                in_flight
                    .share_call("key", || async move {
                        gate.wait().await;
                        calls.fetch_add(1, Ordering::SeqCst) + 1
                    })
                    .await
            }
        };
        let (one, two, ()) = tokio::join!(ask(gate.clone()), ask(gate.clone()), async {
            gate.wait().await;
        });
        assert_eq!((one, two), (1, 1));
        let (three, ()) = tokio::join!(ask(gate.clone()), async {
            gate.wait().await;
        });
        assert_eq!(three, 2, "a later caller asks again");
        assert!(
            in_flight.running_calls.lock().is_empty(),
            "nothing is left behind"
        );
    }

    #[tokio::test]
    async fn a_call_survives_the_caller_who_started_it() {
        let in_flight = SingleFlight::<u8, &str>::default();
        let (send, receive) = tokio::sync::oneshot::channel::<()>();
        let mut first = Box::pin(in_flight.share_call(1, || async {
            receive.await.ok();
            "answer"
        }));
        assert!((&mut first).now_or_never().is_none());
        let mut second = Box::pin(in_flight.share_call(1, || async { "another call" }));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        send.send(()).expect("the call still runs");
        assert_eq!(second.await, "answer");
    }
}
