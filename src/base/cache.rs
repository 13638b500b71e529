//! The in-memory cache: entries with a time to live, one shared load for concurrent callers, invalidation, and a
//! maximum number of entries.
//!
//! Uses a plain map and not `moka`: times to live are measured by [`Clock`], which a test can move, and expired values
//! must be removed from memory within seconds, because some of them are unsealed credentials.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;

use super::clock::Clock;
use super::single_flight::SingleFlight;

/// How often [`Cache::sweep_in_background`] drops expired entries.
const SWEEP_INTERVAL: Duration = Duration::from_secs(15);

/// Values by key, each with a time to live. Clones share the entries.
///
/// `E` is the error of a load; errors are never cached. `get` returns a clone, so `V` is usually an `Arc`.
pub struct Cache<K, V, E = std::convert::Infallible>
where
    V: Clone,
    E: Clone,
{
    inner: Arc<Inner<K, V, E>>,
}

/// Counts invalidations. A value that was read before an invalidation must not be cached after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch(u64);

struct Inner<K, V: Clone, E: Clone> {
    clock: Clock,
    max_entries: usize,
    entries: RwLock<Entries<K, V>>,
    loads: SingleFlight<(K, Epoch), Result<V, E>>,
}

struct Entries<K, V> {
    by_key: HashMap<K, Entry<V>>,
    epoch: Epoch,
}

struct Entry<V> {
    value: V,
    /// Measured by [`Clock::uptime`], so that setting the machine's clock does not prolong an entry's life.
    expires_at: Duration,
}

impl<K, V: Clone, E: Clone> Clone for Cache<K, V, E> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

/// A reference to a [`Cache`] that does not keep it alive, for a callback that may outlive the cache.
pub struct WeakCache<K, V: Clone, E: Clone>(Weak<Inner<K, V, E>>);

impl<K, V: Clone, E: Clone> WeakCache<K, V, E> {
    /// The cache, or `None` if it was dropped.
    pub fn upgrade(&self) -> Option<Cache<K, V, E>> {
        self.0.upgrade().map(|inner| Cache { inner })
    }
}

impl<K: Eq + Hash, V: Clone, E: Clone> Cache<K, V, E> {
    /// An empty cache. When it is full, expired entries are dropped; if none has expired, all entries are dropped.
    pub fn new(clock: Clock, max_entries: usize) -> Self {
        Self {
            inner: Arc::new(Inner {
                clock,
                max_entries,
                entries: RwLock::new(Entries {
                    by_key: HashMap::new(),
                    epoch: Epoch(0),
                }),
                loads: SingleFlight::default(),
            }),
        }
    }

    /// The value under `key`, unless it has expired.
    pub fn get<Q>(&self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        let now = self.inner.clock.uptime();
        let entries = self.inner.entries.read();
        let entry = entries
            .by_key
            .get(key)
            .filter(|entry| now < entry.expires_at);
        entry.map(|entry| entry.value.clone())
    }

    /// Stores a value for `ttl` and replaces one under the same key.
    pub fn insert(&self, key: K, value: V, ttl: Duration) {
        let now = self.inner.clock.uptime();
        self.inner.entries.write().insert(
            key,
            Entry {
                value,
                expires_at: now + ttl,
            },
            now,
            self.inner.max_entries,
        );
    }

    /// Stores a value that was read after [`Cache::epoch`] returned `epoch`, unless anything was invalidated since.
    pub fn insert_if_current(&self, epoch: Epoch, key: K, value: V, ttl: Duration) {
        let now = self.inner.clock.uptime();
        let mut entries = self.inner.entries.write();
        if entries.epoch == epoch {
            let expires_at = now + ttl;
            let entry = Entry { value, expires_at };
            entries.insert(key, entry, now, self.inner.max_entries);
        }
    }

    /// The current epoch. Take it before reading a value that will be passed to [`Cache::insert_if_current`].
    pub fn epoch(&self) -> Epoch {
        self.inner.entries.read().epoch
    }

    /// Drops the entries for which `is_affected` returns true. The results of running loads are not cached.
    pub fn invalidate(&self, is_affected: impl Fn(&K, &V) -> bool) {
        let mut entries = self.inner.entries.write();
        entries.epoch.0 += 1;
        entries
            .by_key
            .retain(|key, entry| !is_affected(key, &entry.value));
    }

    /// Drops the entry under `key`. The results of running loads are not cached.
    pub fn invalidate_key(&self, key: &K) {
        self.invalidate_key_if(key, |_| true);
    }

    /// Like [`Cache::invalidate_key`], but drops the entry only if `is_meant` returns true for its value.
    pub fn invalidate_key_if(&self, key: &K, is_meant: impl FnOnce(&V) -> bool) {
        let mut entries = self.inner.entries.write();
        entries.epoch.0 += 1;
        if entries
            .by_key
            .get(key)
            .is_some_and(|entry| is_meant(&entry.value))
        {
            entries.by_key.remove(key);
        }
    }

    /// Drops all entries. The results of running loads are not cached.
    pub fn clear(&self) {
        self.invalidate(|_, _| true);
    }

    /// Drops expired entries, which frees their values.
    pub fn remove_expired(&self) {
        self.inner.remove_expired();
    }

    /// A reference that does not keep the cache alive.
    pub fn downgrade(&self) -> WeakCache<K, V, E> {
        WeakCache(Arc::downgrade(&self.inner))
    }

    /// The number of entries, including expired ones.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.inner.entries.read().by_key.len()
    }
}

impl<K, V, E> Cache<K, V, E>
where
    K: Eq + Hash + Clone + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Send + Sync + 'static,
{
    /// The cached value, or the result of `load`. A result is cached for the duration that `ttl` returns, counted from
    /// the start of the load. Concurrent callers with the same key share one load. `load` is not polled if a cached
    /// value is used.
    pub async fn get_or_load(
        &self,
        key: K,
        ttl: impl FnOnce(&V) -> Duration,
        load: impl Future<Output = Result<V, E>> + Send + 'static,
    ) -> Result<V, E> {
        let epoch = self.epoch();
        if let Some(value) = self.get(&key) {
            return Ok(value);
        }
        let started_at = self.inner.clock.uptime();
        let flight = (key.clone(), epoch);
        let value = self.inner.loads.share_call(flight, || load).await?;
        let now = self.inner.clock.uptime();
        let mut entries = self.inner.entries.write();
        // Of several callers that shared a load, only the first caches its result, so that the others do not prolong
        // the entry's life.
        let is_cached = |entry: &Entry<V>| now < entry.expires_at;
        if entries.epoch == epoch && !entries.by_key.get(&key).is_some_and(is_cached) {
            let entry = Entry {
                expires_at: started_at + ttl(&value),
                value: value.clone(),
            };
            entries.insert(key, entry, now, self.inner.max_entries);
        }
        Ok(value)
    }

    /// Starts a task that drops expired entries every [`SWEEP_INTERVAL`] for as long as the cache exists. Must be
    /// called within a Tokio runtime.
    pub fn sweep_in_background(&self) {
        tokio::spawn(sweep_periodically(Arc::downgrade(&self.inner)));
    }
}

impl<K: Eq + Hash, V: Clone, E: Clone> Inner<K, V, E> {
    fn remove_expired(&self) {
        let now = self.clock.uptime();
        self.entries.write().remove_expired(now);
    }
}

impl<K: Eq + Hash, V> Entries<K, V> {
    fn insert(&mut self, key: K, entry: Entry<V>, now: Duration, max_entries: usize) {
        if self.by_key.len() >= max_entries && !self.by_key.contains_key(&key) {
            self.remove_expired(now);
            if self.by_key.len() >= max_entries {
                self.by_key.clear();
            }
        }
        self.by_key.insert(key, entry);
    }

    fn remove_expired(&mut self, now: Duration) {
        self.by_key.retain(|_, entry| now < entry.expires_at);
    }
}

/// Holds only a weak reference between two sweeps, so that the task ends when the cache is dropped.
async fn sweep_periodically<K: Eq + Hash, V: Clone, E: Clone>(cache: Weak<Inner<K, V, E>>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        match cache.upgrade() {
            Some(inner) => inner.remove_expired(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;
    use crate::base::clock::Timestamp;

    const TTL: Duration = Duration::from_secs(10);

    fn cache(max_entries: usize) -> (Clock, Cache<&'static str, u32, &'static str>) {
        let clock = Clock::fixed(Timestamp::from_millis(0));
        (clock.clone(), Cache::new(clock, max_entries))
    }

    #[test]
    fn an_entry_expires_and_a_sweep_drops_it() {
        let (clock, cache) = cache(10);
        cache.insert("a", 1, TTL);
        clock.skew_by(3_600_000);
        assert_eq!(
            cache.get("a"),
            Some(1),
            "the machine's clock does not count"
        );
        clock.advance(TTL);
        assert_eq!(cache.get("a"), None);
        assert_eq!(cache.len(), 1);
        cache.remove_expired();
        assert_eq!(cache.len(), 0);
    }

    #[test]
    fn a_full_cache_drops_expired_entries_first_and_everything_if_there_are_none() {
        let (clock, cache) = cache(2);
        cache.insert("short", 1, TTL);
        cache.insert("long", 2, TTL * 2);
        cache.insert("long", 3, TTL * 2);
        assert_eq!(cache.len(), 2, "replacing needs no room");
        clock.advance(TTL);
        cache.insert("new", 4, TTL);
        assert_eq!((cache.get("long"), cache.get("new")), (Some(3), Some(4)));
        cache.insert("more", 5, TTL);
        assert_eq!((cache.get("long"), cache.get("more")), (None, Some(5)));
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn what_was_read_before_an_invalidation_is_not_cached_after_it() {
        let (_, cache) = cache(10);
        cache.insert("kept", 1, TTL);
        let epoch = cache.epoch();
        cache.invalidate(|key, _| *key == "other");
        cache.insert_if_current(epoch, "other", 2, TTL);
        assert_eq!((cache.get("kept"), cache.get("other")), (Some(1), None));
        cache.insert_if_current(cache.epoch(), "other", 2, TTL);
        assert_eq!(cache.get("other"), Some(2));
    }

    #[tokio::test]
    async fn callers_share_a_load_and_an_invalidation_during_it_is_respected() {
        let (_, cache) = cache(10);
        let loads = Arc::new(AtomicU32::new(0));
        let load = |gate: oneshot::Receiver<()>| {
            let loads = loads.clone();
            async move {
                gate.await.ok();
                Ok(loads.fetch_add(1, Ordering::SeqCst) + 1)
            }
        };
        let get = |gate| cache.get_or_load("a", |_| TTL, load(gate));
        let ((open_one, one), (open_two, two)) = (oneshot::channel(), oneshot::channel());
        let (first, second, ()) = tokio::join!(get(one), get(two), async {
            cache.invalidate_key(&"a");
            open_one.send(()).expect("it waits");
            drop(open_two);
        });
        assert_eq!((first, second), (Ok(1), Ok(1)));
        assert_eq!(cache.get("a"), None, "it was read before the change");
        let (open, closed) = oneshot::channel();
        drop(open);
        assert_eq!(get(closed).await, Ok(2));
        assert_eq!(cache.get("a"), Some(2));
        let failed = cache.get_or_load("b", |_| TTL, async { Err("no database") });
        assert_eq!(failed.await, Err("no database"));
        assert_eq!(cache.get("b"), None);
    }
}
